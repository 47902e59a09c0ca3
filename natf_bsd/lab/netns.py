"""Labs of Linux network namespaces, one a host, and one that holds the switches; as root or as an ordinary user.

As root the namespaces are ordinary ones of ip-netns(8), named natf-HOST (natf-INSTANCE-HOST for another instance than
the first). Without root, a holder process keeps a user namespace in which we are root, with a /run of its own: the
same
commands work in there, and nothing of it shows outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from natf_bsd.divert import tun
from natf_bsd.errors import NatfError
from natf_bsd.firewall import runner
from natf_bsd.firewall.command import Command
from natf_bsd.lab.platform import FIRST_INSTANCE, HostProcess, daemon_here
from natf_bsd.lab.processes import end
from natf_bsd.lab.topology import Host, Interface, Nat, Topology
from natf_bsd.ops.process import Completed, run_process

SWITCH = "net"
"""The namespace of the switches, as if it were a host."""

NETNS_DIR = Path("/run/netns")
"""ip-netns(8)'s own."""

SYSTEM_DIRS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where iptables and others live; not on an ordinary user's PATH in Debian."""

TOOLS = {
    "ip": "iproute2",
    "iptables": "iptables",
    "iptables-restore": "iptables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
"""Commands a lab needs, with their Debian packages."""

_POLL = 0.01
"""Seconds between two looks at something that is about to happen."""

Naming = Callable[[str], str]
"""From a host's name to its namespace's."""


# What is done, as values.


def set_up(topology: Topology, namespace: Naming) -> list[Command]:
    """Every command that makes the network, in order, for a place where nothing of it exists."""
    names = [namespace(name) for name in (SWITCH, *(host.name for host in topology.hosts))]
    commands = [_batch(f"netns add {name}" for name in names)]
    # Before there are interfaces: these take their settings from the namespace's defaults.
    commands += [_settings(host, namespace(host.name)) for host in topology.hosts]
    commands.append(_batch(_switch_lines(topology, namespace), namespace(SWITCH)))
    commands += [_batch(_host_lines(host), namespace(host.name)) for host in topology.hosts]
    commands += [
        Command(_inside(namespace(host.name), "iptables-restore", "-w"), stdin=rules)
        for host in topology.hosts
        if (rules := filter_rules(host))
    ]
    return commands


def tear_down(topology: Topology, namespace: Naming, existing: Collection[str]) -> list[Command]:
    """What removes those of the lab's namespaces that exist, and with them all they hold."""
    names = [namespace(name) for name in (*(host.name for host in topology.hosts), SWITCH)]
    return [Command(("ip", "netns", "delete", name)) for name in names if name in existing]


def filter_rules(host: Host) -> str:
    """The host's packet filter as iptables-restore takes it; empty for none."""
    rules = _nat_rules(host.nat) if host.nat else ""
    if not host.answers_echo:
        rules += "*filter\n-A INPUT -p icmp --icmp-type echo-request -j DROP\nCOMMIT\n"
    return rules


def _nat_rules(nat: Nat) -> str:
    return (
        "*nat\n"
        f"-A POSTROUTING -o {nat.outside} -j MASQUERADE\n"
        "COMMIT\n"
        "*filter\n"
        ":FORWARD DROP [0:0]\n"
        "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n"
        f"-A FORWARD -i {nat.inside} -o {nat.outside} -j ACCEPT\n"
        "COMMIT\n"
    )


def _batch(lines: Iterator[str], namespace: str | None = None) -> Command:
    where = ("-n", namespace) if namespace else ()
    return Command(("ip", *where, "-batch", "-"), stdin="".join(f"{line}\n" for line in lines))


def _inside(namespace: str, *argv: str) -> tuple[str, ...]:
    return ("nsenter", f"--net={NETNS_DIR / namespace}", "--", *argv)


def _settings(host: Host, namespace: str) -> Command:
    """A new namespace copies the machine's settings (net.core.devconf_inherit_init_net 0); a lab is to be the same
    everywhere. rp_filter as systemd sets it: loose, on each interface.
    """
    values = {"ip_forward": int(host.nat is not None), "conf/all/rp_filter": 0, "conf/default/rp_filter": 2}
    script = "; ".join(f"echo {value} >/proc/sys/net/ipv4/{name}" for name, value in values.items())
    return Command(_inside(namespace, "sh", "-ec", script))


def _switch_lines(topology: Topology, namespace: Naming) -> Iterator[str]:
    for segment in topology.segments:
        yield f"link add {segment} type bridge"
        yield f"link set {segment} up"
    for host in topology.hosts:
        for interface in host.interfaces:
            port = _port(host, interface)
            yield f"link add {port} type veth peer name {interface.name} netns {namespace(host.name)}"
            yield f"link set {port} master {interface.segment} up"


def _port(host: Host, interface: Interface) -> str:
    return f"{host.name}-{interface.name}"


def _host_lines(host: Host) -> Iterator[str]:
    yield "link set lo up"
    for interface in host.interfaces:
        yield f"address add {interface.address}/{interface.prefix_length} brd + dev {interface.name}"
        yield f"link set {interface.name} up"
    if host.default_route:
        yield f"route add default via {host.default_route}"


_EXEC = """\
NATF_LAB=$1 PATH=$PATH:$2
export NATF_LAB PATH
for file in resolv.conf nsswitch.conf; do
    target=$(readlink -m /etc/$file)
    case $target in
    # A link into the /run that the holder's hides.
    /run/*) [ -e "$target" ] || { mkdir -p "${target%/*}" && : >"$target"; } ;;
    esac
    [ ! -e "$target" ] || mount --bind "$3/$file" "$target" || exit 125
done
cd "$4" || exit 125
shift 4
exec "$@"
"""
"""Gives one command its own resolv.conf and nsswitch.conf, in a mount namespace of its own: nothing is written to
/etc.

$1 mark, $2 more PATH, $3 directory of the files, $4 working directory, then the command.
"""

_PROBE = """\
mount -t tmpfs natf-lab /run
ip link add probe0 type bridge
ip link add probe1 type veth peer name probe2
iptables -t nat -A POSTROUTING -o probe1 -j MASQUERADE
"""
"""The least a lab needs of the kernel, tried where it vanishes at once."""

_HOLDER = "mount -t tmpfs -o mode=755 natf-lab /run && echo ready && exec sleep infinity >/dev/null 2>&1"


# Doing it.


class NetnsPlatform:
    """One lab instance on this machine."""

    def __init__(self, instance: str = FIRST_INSTANCE) -> None:
        self._instance = instance
        self._direct = is_true_root()
        # Not $XDG_RUNTIME_DIR: that is under the /run that the holder's hides.
        root = Path("/run/natf-lab") if self._direct else Path(f"/tmp/natf-lab-{os.getuid()}")
        self.run_dir = root / instance
        self._holder_process: subprocess.Popen[bytes] | None = None
        """Ours to collect, if we started it."""

    has_servers = False

    def is_supported(self) -> str | None:
        if missing := missing_tools():
            return missing
        if not Path("/etc/resolv.conf").exists():
            return "/etc/resolv.conf does not exist; an empty one will do"
        unshare = ("unshare", *(() if self._direct else ("-U", "-r")), "-n", "-m")
        done = _run((*unshare, "sh", "-ec", _PROBE), None)
        return None if done.status == 0 else f"network namespaces do not work here: {done.stderr.strip()}"

    def lacks_for_daemons(self) -> str | None:
        return tun.unavailable()

    def description(self) -> str:
        return "network namespaces, bridges, netfilter's NAT"

    def up(self, topology: Topology) -> None:
        if not self._direct:
            self._start_holder()
        for host in topology.hosts:
            self._write_etc(host, topology)
        if self._direct and not _netns_is_mounted():
            self._first_use.write_text("there" if NETNS_DIR.exists() else "absent")
        runner.apply(set_up(topology, self.location), self._run)

    def down(self, topology: Topology) -> None:
        existing = self._namespaces()
        ours = [
            name for host in (SWITCH, *(h.name for h in topology.hosts)) if (name := self.location(host)) in existing
        ]
        end(lambda: self._pids(ours))
        failures = runner.undo(tear_down(topology, self.location, existing), self._run)
        if self._direct:
            self._undo_first_use()
        else:
            self._end_holder()
        if failures:
            raise NatfError("\n".join(map(str, failures)))

    @property
    def _first_use(self) -> Path:
        """Exists if this lab was the first on the machine to use ip-netns(8), and says whether its directory was
        there."""
        return self.run_dir / "first-use-of-netns"

    def _undo_first_use(self) -> None:
        """ip-netns(8) mounts its directory on itself when first used, and leaves that. If nobody uses it now, take
        it back."""
        if not self._first_use.exists() or self._namespaces():
            return
        if _netns_is_mounted():
            runner.apply([Command(("umount", str(NETNS_DIR)))], self._run)
        if self._first_use.read_text() == "absent":
            with contextlib.suppress(OSError):
                NETNS_DIR.rmdir()

    def is_up(self, topology: Topology) -> bool:
        names = (SWITCH, *(host.name for host in topology.hosts))
        return all(_is_namespace(self._netns_dir / self.location(name)) for name in names)

    def location(self, host: str) -> str:
        return f"natf-{host}" if self._instance == FIRST_INSTANCE else f"natf-{self._instance}-{host}"

    def name_servers(self, topology: Topology) -> Mapping[str, Sequence[str]]:
        return {host.name: [topology.nameserver] for host in topology.hosts if host.address == topology.nameserver}

    def exec_argv(self, host: str, argv: Sequence[str], cwd: Path) -> list[str]:
        script = ("unshare", "-m", "--", "sh", "-c", _EXEC, "sh")
        arguments = (self._mark(host), SYSTEM_DIRS, str(self._etc(host)), str(cwd), *argv)
        return [*self._enter(), *_inside(self.location(host), *script), *arguments]

    def processes(self) -> list[HostProcess]:
        mark = f"NATF_LAB={self.run_dir}:"
        found = ((pid, _marked(pid, mark)) for pid in _all_pids())
        return [HostProcess(host, pid, _command_line(pid)) for pid, host in found if host]

    def daemon_at(self, host: str, socket: Path) -> int | None:
        return daemon_here(socket)

    def machine(self) -> list[str]:
        looks = (("ip", "netns", "list"), ("ip", "-br", "link"), ("ip", "rule"), ("findmnt", "-rno", "TARGET"))
        found = [line for look in looks for line in _run(look, None).stdout.splitlines()]
        return [line for line in found if any(text in line for text in (self.location(""), "natf0", "natf1"))]

    def _mark(self, host: str) -> str:
        """In the environment of every process we start, so that it is found whatever became of its namespace."""
        return f"{self.run_dir}:{host}"

    def _etc(self, host: str) -> Path:
        return self.run_dir / "etc" / host

    def _write_etc(self, host: Host, topology: Topology) -> None:
        directory = self._etc(host.name)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "resolv.conf").write_text(f"nameserver {topology.nameserver}\n")
        # Without this a machine's nss-resolve or nss-mdns would ask beyond the namespace.
        (directory / "nsswitch.conf").write_text("hosts: files dns\n")

    def _pids(self, namespaces: Collection[str]) -> set[int]:
        """Everything that runs in the lab: by its mark, or in one of its namespaces (a shell of `ip netns exec`)."""
        places = {place for name in namespaces if (place := _place(self._netns_dir / name))}
        inside = {pid for pid in _all_pids() if _place(Path(f"/proc/{pid}/ns/net")) in places}
        return inside | {process.pid for process in self.processes()}

    def _namespaces(self) -> list[str]:
        try:
            return os.listdir(self._netns_dir)
        except OSError:
            return []

    @property
    def _netns_dir(self) -> Path:
        """ip-netns(8)'s directory, as seen from outside of the holder."""
        if self._direct:
            return NETNS_DIR
        return Path(f"/proc/{self._holder() or 0}/root{NETNS_DIR}")

    def _run(self, argv: tuple[str, ...], stdin: str | None) -> Completed:
        return _run((*self._enter(), *argv), stdin)

    def _enter(self) -> tuple[str, ...]:
        """What to put before a command so that it runs where the namespaces' names are."""
        if self._direct:
            return ()
        if (pid := self._holder()) is None:
            raise NatfError(f"the lab is not up: nothing holds its namespaces ({self._holder_file})")
        return ("nsenter", f"--target={pid}", "-U", "-m", "-n", "--preserve-credentials", "--")

    @property
    def _holder_file(self) -> Path:
        return self.run_dir / "holder"

    def _start_holder(self) -> None:
        log = self.run_dir / "holder.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["unshare", "-U", "-r", "-n", "-m", "--", "sh", "-c", _HOLDER],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=os.environ | {"PATH": _search_path()},
                start_new_session=True,
            )
        self._holder_file.write_text(f"{process.pid} {_start_time(process.pid)}\n")
        self._holder_process = process
        while log.read_text() != "ready\n":
            if process.poll() is not None:
                raise NatfError(f"cannot make a user namespace: {log.read_text().strip()}")
            time.sleep(_POLL)

    def _holder(self) -> int | None:
        """The holder's pid while it lives; its start time tells it from a later process of the same pid."""
        try:
            pid, started = self._holder_file.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def _end_holder(self) -> None:
        if pid := self._holder():
            end(lambda: {pid} if self._holder() else set[int]())
        if self._holder_process:
            self._holder_process.wait()
        self._holder_file.unlink(missing_ok=True)


def missing_tools() -> str | None:
    """What to install before a lab is possible."""
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool, path=_search_path())}
    if not missing:
        return None
    packages = " ".join(dict.fromkeys(missing.values()))
    return f"missing: {', '.join(missing)} (Debian: apt-get install {packages})"


def _netns_is_mounted() -> bool:
    """Path.is_mount does not see a directory mounted on itself."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(NETNS_DIR) for line in lines)


def is_true_root() -> bool:
    """Root of the machine, or of a container that maps every user; not only root of a user namespace."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_DIRS}"


def _run(argv: tuple[str, ...], stdin: str | None) -> Completed:
    """run_process with the system's directories on the PATH, of what `argv` starts in turn too."""
    return run_process(("env", f"PATH={_search_path()}", *argv), stdin)


def _place(path: Path) -> tuple[int, int] | None:
    """What tells one namespace from another; None for one that is gone or not ours to see."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_namespace(path: Path) -> bool:
    """Not so for the plain file that `ip netns add` leaves when it is killed half-way."""
    place, own = _place(path), _place(Path("/proc/self/ns/net"))
    return place is not None and own is not None and place[0] == own[0]


def _all_pids() -> list[int]:
    """Of running processes; those that only wait to be collected by their parents do not count."""
    return [pid for name in os.listdir("/proc") if name.isdigit() and _start_time(pid := int(name))]


def _start_time(pid: int) -> str | None:
    """In clock ticks since boot; None for a process that has ended (proc(5): fields 3 and 22)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _marked(pid: int, mark: str) -> str | None:
    """What stands behind `mark` in the process's environment."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    start = mark.encode()
    return next((entry[len(start) :].decode() for entry in environment.split(b"\0") if entry.startswith(start)), None)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
