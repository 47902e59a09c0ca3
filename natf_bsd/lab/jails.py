"""Labs of FreeBSD vnet jails joined by epair(4), with tools of the base system only; as root.

What is done is in `jail_commands`, as values; here it is done.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.firewall import runner
from natf_bsd.lab import jail_commands as commands
from natf_bsd.lab.jail_commands import Means, Names, NatKind
from natf_bsd.lab.platform import FIRST_INSTANCE, HostProcess, daemon_here
from natf_bsd.lab.processes import end
from natf_bsd.lab.topology import FIGURE1, FIGURE3, Topology
from natf_bsd.ops.process import Completed, Run, run_process
from natf_bsd.ops.resolvers import RESOLV_CONF, name_servers
from natf_bsd.types import format_address

ROOT = Path("/var/run/natf-lab")

NAT_VARIABLE = "NATF_LAB_NAT"
"""The environment variable that says which NAT the routers of a lab get: natd (the default) or ipfw-nat."""

SYSTEM_DIRS = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
"""Where the tools live, for whoever has another PATH, cron(8) for one."""

_MODULES = {
    "if_epair": "kldload if_epair",
    "ipfw": "first kenv net.inet.ip.fw.default_to_accept=1, or it cuts this machine off; then kldload ipfw",
}
_NAT_MODULES = {
    NatKind.NATD: {"ipdivert": "kldload ipdivert"},
    NatKind.IPFW_NAT: {"ipdivert": "kldload ipdivert", "ipfw_nat": "kldload ipfw_nat"},
}
"""Kernel modules a lab needs, by the way to get them. They are never loaded unasked."""

_EXEC = """\
cd "$1" || exit 125
PATH=$PATH:$2
export PATH
shift 2
exec "$@"
"""
"""$1 working directory (a jail's is its root), $2 more PATH, then the command."""


def run_here(argv: tuple[str, ...], stdin: str | None) -> Completed:
    """run_process with the tools on the PATH, whatever ours is."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_DIRS}"
    return run_process(("env", f"PATH={path}", *argv), stdin)


class JailPlatform:
    """One lab instance on this machine."""

    def __init__(self, instance: str = FIRST_INSTANCE, run: Run = run_here) -> None:
        self._names = Names(instance)
        self._run = run
        self.run_dir = ROOT / instance

    has_servers = False

    def is_supported(self) -> str | None:
        if os.geteuid() != 0:
            return "labs of jails need root"
        try:
            nat, asked = nat_kind(os.environ), asked_name_servers(RESOLV_CONF)
        except NatfError as error:
            return str(error)
        return obstacle(nat, self._run) or commands.clash(FIGURE1, asked)

    def lacks_for_daemons(self) -> str | None:
        return None

    def description(self) -> str:
        if self._made_of.exists():
            return self._made_of.read_text()
        return str(means(self._run))

    def up(self, topology: Topology) -> None:
        made_of = means(self._run)
        self._made_of.write_text(str(made_of))
        write_stand_ins(self._bin)
        runner.apply(commands.make_jails(topology, self._names), self._run)
        wires = {(host.name, port.name): self._make_wire() for host in topology.hosts for port in host.interfaces}
        runner.apply(commands.connect(topology, self._names, wires, made_of, self.run_dir), self._run)

    def down(self, topology: Topology) -> None:
        end(lambda: {process.pid for process in self.processes()})
        there = set(self._jails().values())
        existing = [jail for jail in self._names.all(topology) if jail in there]
        switches = [jail for jail in map(self._names.switch, topology.segments) if jail in there]
        # Tolerant of a jail that was killed while it was made: without an epair in it there is no such group.
        ports = {jail: self._run(("jexec", jail, "ifconfig", "-g", "epair"), None).stdout.split() for jail in switches}
        loose = commands.marked(self._ask("ifconfig"), self._names.mark)
        if failures := runner.undo(commands.tear_down(existing, ports, loose), self._run):
            raise NatfError("\n".join(map(str, failures)))

    def is_up(self, topology: Topology) -> bool:
        return set(self._names.all(topology)) <= set(self._jails().values())

    def location(self, host: str) -> str:
        return self._names.jail(host)

    def name_servers(self, topology: Topology) -> Mapping[str, Sequence[str]]:
        return commands.name_servers(topology, asked_name_servers(RESOLV_CONF))

    def exec_argv(self, host: str, argv: Sequence[str], cwd: Path) -> list[str]:
        more = f"{SYSTEM_DIRS}:{self._bin}"
        return ["jexec", self.location(host), "sh", "-c", _EXEC, "sh", str(cwd), more, *argv]

    def processes(self) -> list[HostProcess]:
        hosts = {number: host for number, jail in self._jails().items() if (host := self._names.host(jail))}
        if not hosts:
            return []
        found = commands.parse_processes(self._ask(*commands.LIST_PROCESSES))
        return [HostProcess(hosts[number], pid, command) for number, pid, command in found if number in hosts]

    def daemon_at(self, host: str, socket: Path) -> int | None:
        return daemon_here(socket)

    def machine(self) -> list[str]:
        return [
            *self._ask("jls", "name").split(),
            *self._ask("ifconfig", "-l").split(),
            *self._ask("mount", "-p").splitlines(),
        ]

    def _make_wire(self) -> str:
        return commands.wire_of(self._ask(*commands.make_wire(self._names).argv))

    def _jails(self) -> dict[int, str]:
        return commands.parse_jails(self._ask(*commands.LIST_JAILS))

    def _ask(self, *argv: str) -> str:
        """What a command prints; CommandFailed when it fails."""
        done = self._run(argv, None)
        if done.status:
            raise CommandFailed(argv, done.status, done.stderr)
        return done.stdout

    @property
    def _made_of(self) -> Path:
        return self.run_dir / "made-of"

    @property
    def _bin(self) -> Path:
        """Of programs that the base system does not have; the last on the hosts' PATH."""
        return self.run_dir / "bin"


def nat_kind(environment: Mapping[str, str]) -> NatKind:
    """What `NAT_VARIABLE` asks for; NatfError for something unknown."""
    value = environment.get(NAT_VARIABLE, NatKind.NATD.value)
    try:
        return NatKind(value)
    except ValueError:
        known = " or ".join(kind.value for kind in NatKind)
        raise NatfError(f"{NAT_VARIABLE}={value}: expected {known}") from None


def asked_name_servers(path: Path) -> tuple[str, ...]:
    """The IPv4 name servers that programs on this machine ask, and those in jails too; 127.0.0.1 without any file."""
    found = name_servers(path.read_text(errors="replace") if path.exists() else "")
    return tuple(sorted(map(format_address, found)))


def means(run: Run) -> Means:
    """What a lab made now would be made of."""
    bridge = run(("kldstat", "-q", "-m", "if_bridge"), None).status == 0
    return Means(bridge, nat_kind(os.environ), asked_name_servers(RESOLV_CONF))


def obstacle(nat: NatKind, run: Run) -> str | None:
    """Why this kernel, or the jail we are in, allows no lab, and what to do; None if it does."""

    def value(name: str) -> str:
        return run(("sysctl", "-in", name), None).stdout.strip()

    if value("kern.features.vimage") != "1":
        return "this kernel has no vnet jails; expected GENERIC of FreeBSD 12 or later, or one with `options VIMAGE`"
    if value("security.jail.jailed") == "1":
        room = int(value("security.jail.children.max") or 0)
        needed = max(len(Names(FIRST_INSTANCE).all(figure)) for figure in (FIGURE1, FIGURE3))
        if value("security.jail.vnet") != "1" or room < needed:
            return f"this is a jail; it needs vnet and children.max={needed} or more (found {room})"
    for module, way in (_MODULES | _NAT_MODULES[nat]).items():
        if run(("kldstat", "-q", "-m", module), None).status:
            return f"the kernel module {module} is not loaded: {way}"
    if nat is NatKind.NATD and shutil.which("natd", path=SYSTEM_DIRS) is None:
        return f"natd is not installed; {NAT_VARIABLE}={NatKind.IPFW_NAT.value} does without"
    return None


def write_stand_ins(directory: Path) -> None:
    """curl and python3 for machines where no package brought them: behind whatever the PATH has."""
    directory.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, program in (("curl", f"{python} -m natf_bsd.lab.curl"), ("python3", python)):
        (directory / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (directory / name).chmod(0o755)
