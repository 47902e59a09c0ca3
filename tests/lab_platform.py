"""What tests ask of a lab's hosts, and do to them, with the tools of each system: the same words on both."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from natf_bsd.lab.figure1 import BadLinkLab, Figure1Lab
from natf_bsd.lab.figure3 import Figure3Lab
from natf_bsd.lab.lab import Lab, LabProcess

L = TypeVar("L", Figure1Lab, Figure3Lab, BadLinkLab)

ADDRESSES = "import socket, sys; print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}))"


def addresses(lab: Lab, name: str, host: str = "en") -> list[str]:
    """What the own resolver of `host` gives for `name`; empty if nothing."""
    return lab.exec(host, [sys.executable, "-c", ADDRESSES, name]).stdout.split()


def resolve(lab: Lab, name: str, host: str = "en") -> str:
    """The first of `addresses`."""
    return addresses(lab, name, host)[0]


_LOCK = ".lock"
_KINDS: dict[str, type[Figure1Lab] | type[Figure3Lab]] = {
    "test-r": Figure1Lab,
    "test-h": Figure3Lab,
    "test-l": BadLinkLab,
}
"""By the beginning of an instance's name."""


@contextmanager
def own_lab(kind: type[L]) -> Iterator[L]:
    """A lab of an instance that nobody else has, not up; inside, other test runs do not take it for remains."""
    begin = next(begin for begin, known in _KINDS.items() if known is kind)
    lab = kind(f"{begin}{secrets.token_hex(4)}")
    lock = lab.run_dir.with_suffix(_LOCK)
    with _held(lock):
        yield lab
        lock.unlink()
    with suppress(OSError):
        lock.parent.rmdir()


def remove_remains() -> None:
    """Of test runs that were killed: nobody holds the lock of their labs, in whatever process namespace they ran."""
    for lock in Figure1Lab().run_dir.parent.glob(f"test-*{_LOCK}"):
        with suppress(BlockingIOError), _held(lock, fcntl.LOCK_NB):
            _KINDS[lock.stem[:6]](lock.stem).down()
            lock.unlink(missing_ok=True)


@contextmanager
def _held(lock: Path, wait: int = 0) -> Iterator[None]:
    """Whoever had the lock before may have removed its file: then once more."""
    lock.parent.mkdir(mode=0o700, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | wait)
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            yield
            return
    with _held(lock, wait):
        yield


class Site(Protocol):
    """A system that carries labs."""

    touched: dict[str, tuple[str, ...]]
    """By role, the parts of `state` that its running daemon changes."""

    other_queues: dict[str, dict[str, object]]
    """By role, settings that keep a second daemon out of the first one's way, were it allowed to start."""

    def spare_loopback(self, lab: Figure1Lab) -> str:
        """Where a test's own name server may listen on the external node."""

    def interfaces(self, lab: Figure1Lab, host: str) -> list[str]:
        """The names of the Ethernet interfaces."""

    def state(self, lab: Lab, host: str) -> dict[str, list[str]]:
        """Everything a daemon of ours touches on a host: rules, routes, devices, kernel settings."""

    def own_rules(self, lab: Lab, host: str) -> list[str]:
        """The firewall rules that are marked as ours."""

    def reload_firewall(self, lab: Figure1Lab, host: str) -> None:
        """As a site does it: everything goes, and its own rules come back."""

    def without_icmp(self, lab: Figure1Lab) -> AbstractContextManager[None]:
        """Inside, no ICMP from outside gets to the router, in front of all that is ours."""

    def readdress(self, lab: Figure1Lab, host: str, old: str, new: str) -> None:
        """Give the first interface of `host` another address of its network."""

    def forget_neighbour(self, lab: Figure1Lab, host: str, address: str) -> None:
        """Let `host` find out anew where `address` is on its network, if anywhere."""

    def diverted(self, lab: Figure1Lab, host: str, readme: str, logger: LabProcess) -> AbstractContextManager[None]:
        """Inside, the packets that the README's logger is for go to `logger` on `host`."""

    def shell(self, location: str, program: list[str]) -> list[str]:
        """What a person types to run `program` on a host by what the lab calls its `location`."""

    def traces(self, instance: str) -> dict[str, list[str]]:
        """Everything on the machine that a lab leaves, were it to leave something."""


def lines(lab: Lab, host: str, *argv: str) -> list[str]:
    return lab.exec(host, list(argv), check=True).stdout.splitlines()


def files(instance: str) -> list[str]:
    return [str(path) for root in ("/run", "/var/run", "/tmp") for path in Path(root).glob(f"natf-lab*/{instance}")]


class Linux:
    _TABLES = ("filter", "mangle", "nat", "raw")
    _OF_THE_KERNEL = re.compile(
        r"nf_conntrack_count|\.route\.|random|nf_log|fib_notify|tcp_mem|udp_mem|\.neigh\.|ipfrag_time"
    )

    def __init__(self) -> None:
        self.touched: dict[str, tuple[str, ...]] = {"en": ("rules",), "router": ("rules", "policy routes", "settings")}
        self.other_queues: dict[str, dict[str, object]] = {
            "en": {"dns_queue": 1, "out_queue": 2, "in_queue": 3},
            "router": {"control_queue": 1, "tun": "natf1"},
        }

    def spare_loopback(self, lab: Figure1Lab) -> str:
        return "127.0.0.1"

    def interfaces(self, lab: Figure1Lab, host: str) -> list[str]:
        names = [line.split(":")[1].split("@")[0].strip() for line in lines(lab, host, "ip", "-o", "link")]
        return [name for name in names if name != "lo"]

    def state(self, lab: Lab, host: str) -> dict[str, list[str]]:
        rules = [line for line in lines(lab, host, "iptables-save") if line.startswith(("-A", ":NATF"))]
        settings = [line for line in lines(lab, host, "sysctl", "-a", "--ignore") if line.startswith("net.")]
        return {
            "rules": rules,
            "disciplines": lines(lab, host, "tc", "qdisc", "show"),
            "policy routes": lines(lab, host, "ip", "rule"),
            # Link-local ones come by themselves, up to two seconds after their interface (duplicate address detection).
            "routes": [
                line for line in lines(lab, host, "ip", "route", "show", "table", "all") if "fe80::" not in line
            ],
            "links": [line.split()[0] for line in lines(lab, host, "ip", "-br", "link")],
            "settings": [line for line in settings if not self._OF_THE_KERNEL.search(line)],
        }

    def own_rules(self, lab: Lab, host: str) -> list[str]:
        return [line for line in lines(lab, host, "iptables-save") if "NATF-" in line]

    def reload_firewall(self, lab: Figure1Lab, host: str) -> None:
        own = "".join(f"{line}\n" for line in lines(lab, host, "iptables-save") if "NATF-" not in line)
        for table in self._TABLES:
            for option in "-F", "-X":
                lab.exec(host, ["iptables", "-t", table, option], check=True)
        lab.exec(host, ["iptables-restore"], input=own, check=True)

    @contextmanager
    def without_icmp(self, lab: Figure1Lab) -> Iterator[None]:
        rule = ["PREROUTING", "-i", "wan", "-p", "icmp", "-j", "DROP"]
        lab.exec("router", ["iptables", "-t", "raw", "-I", *rule], check=True)
        try:
            yield
        finally:
            lab.exec("router", ["iptables", "-t", "raw", "-D", *rule], check=True)

    def readdress(self, lab: Figure1Lab, host: str, old: str, new: str) -> None:
        device = lab.topology.host(host).interfaces[0].name
        for change in ("del", old), ("add", new):
            lab.exec(host, ["ip", "address", change[0], f"{change[1]}/24", "dev", device], check=True)
        if gateway := lab.topology.host(host).default_route:  # it went with the address
            lab.exec(host, ["ip", "route", "replace", "default", "via", gateway], check=True)

    def forget_neighbour(self, lab: Figure1Lab, host: str, address: str) -> None:
        lab.exec(host, ["ip", "neighbour", "flush", "to", address], check=True)

    @contextmanager
    def diverted(self, lab: Figure1Lab, host: str, readme: str, logger: LabProcess) -> Iterator[None]:
        [rule] = re.findall(r"`iptables (-A INPUT .*?)`", readme)
        lab.exec(host, ["iptables", *rule.split()], check=True)
        try:
            queues = ["cat", "/proc/net/netfilter/nfnetlink_queue"]
            lab.wait_until(lambda: "8710" in lab.exec(host, queues).stdout, logger)
            yield
        finally:
            lab.exec(host, ["iptables", "-D", *rule.split()[1:]], check=True)

    def shell(self, location: str, program: list[str]) -> list[str]:
        return ["ip", "netns", "exec", location, *program]

    def traces(self, instance: str) -> dict[str, list[str]]:
        # The mount of /run/netns itself is ip-netns(8)'s, made for the first namespace of whoever.
        mounts = [
            line
            for line in Path("/proc/mounts").read_text().splitlines()
            if f"natf-{instance}-" in line or "natf-lab" in line
        ]
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        netns = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        return {
            "mounts": mounts,
            "links": [line.split(":")[1] for line in links.splitlines()],
            "hosts": sorted(line.split()[0] for line in netns.splitlines() if f"natf-{instance}-" in line),
            "processes": [pid for pid in os.listdir("/proc") if pid.isdigit() and self._belongs(pid, instance)],
            "files": files(instance),
        }

    def _belongs(self, pid: str, instance: str) -> bool:
        try:
            return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino and any(
                f"/{instance}".encode() in Path(f"/proc/{pid}/{file}").read_bytes() for file in ("environ", "cmdline")
            )
        except OSError:
            return False


class FreeBsd:
    _SETTINGS = (
        "net.inet.tcp.tso",
        "net.inet.ip.forwarding",
        "net.inet.ip.redirect",
        "net.inet.ip.fw.enable",
        "net.inet.ip.fw.one_pass",
    )
    _READDRESS = """\
[ "$(sysctl -n net.link.ether.inet.proxyall)" = 1 ] || exit 0
port=$(route -n get $1 | sed -n 's/ *interface: //p')
route -q delete -host $1
route -q add -host $2 -iface $port
"""
    """A switch that is a forwarding jail knows where each address is."""

    def __init__(self) -> None:
        self.touched: dict[str, tuple[str, ...]] = {"en": ("rules", "tables", "settings"), "router": ("rules",)}
        self.other_queues: dict[str, dict[str, object]] = {
            "en": {"dns_queue": 1, "out_queue": 2, "in_queue": 3, "control_queue": 4, "query_queue": 5},
            "router": {"control_queue": 1, "capture_queue": 2},
        }

    def spare_loopback(self, lab: Figure1Lab) -> str:
        # 127.0.0.1 may be the lab's own. Already there the second time.
        lab.exec("en", ["ifconfig", "lo0", "inet", "127.0.0.53/32", "alias"])
        return "127.0.0.53"

    def interfaces(self, lab: Figure1Lab, host: str) -> list[str]:
        return lab.exec(host, ["ifconfig", "-l", "ether"], check=True).stdout.split()

    def state(self, lab: Lab, host: str) -> dict[str, list[str]]:
        return {
            "rules": lines(lab, host, "ipfw", "-S", "list"),
            "sets": lines(lab, host, "ipfw", "set", "show"),
            "tables": lab.exec(host, ["ipfw", "table", "all", "list"]).stdout.splitlines(),
            "NAT": lines(lab, host, "ipfw", "nat", "show", "config"),
            "routes": lines(lab, host, "netstat", "-rn", "-f", "inet"),
            "links": lines(lab, host, "ifconfig", "-l"),
            "settings": lines(lab, host, "sysctl", *self._SETTINGS),
        }

    def own_rules(self, lab: Lab, host: str) -> list[str]:
        return [line for line in lines(lab, host, "ipfw", "-S", "list") if line.endswith("// natf")]

    def reload_firewall(self, lab: Figure1Lab, host: str) -> None:
        own = [line for line in lines(lab, host, "ipfw", "list") if not line.endswith("// natf")]
        batch = "".join(f"add {line}\n" for line in own if not line.startswith("65535 "))
        lab.exec(host, ["ipfw", "-q", "-f", "flush"], check=True)
        lab.exec(host, ["ipfw", "-q", "/dev/stdin"], input=batch, check=True)

    @contextmanager
    def without_icmp(self, lab: Figure1Lab) -> Iterator[None]:
        rule = ["deny", "icmp", "from", "any", "to", "any", "in", "recv", "wan"]
        lab.exec("router", ["ipfw", "-q", "add", "5", *rule], check=True)
        try:
            yield
        finally:
            lab.exec("router", ["ipfw", "-q", "delete", "5"], check=True)

    def readdress(self, lab: Figure1Lab, host: str, old: str, new: str) -> None:
        device = lab.topology.host(host).interfaces[0].name
        lab.exec(host, ["ifconfig", device, "inet", old, "-alias"], check=True)
        lab.exec(host, ["ifconfig", device, "inet", f"{new}/24", "alias"], check=True)
        if gateway := lab.topology.host(host).default_route:
            lab.exec(host, ["sh", "-c", "route -q delete default; route -q add default $0", gateway], check=True)
        switch = lab.platform.location("net_public")
        subprocess.run(["jexec", switch, "sh", "-ec", self._READDRESS, "sh", old, new], check=True)

    def forget_neighbour(self, lab: Figure1Lab, host: str, address: str) -> None:
        lab.exec(host, ["arp", "-d", address])  # fails where there is none

    @contextmanager
    def diverted(self, lab: Figure1Lab, host: str, readme: str, logger: LabProcess) -> Iterator[None]:
        [rule] = re.findall(r"`ipfw (add 100 divert .*?)`", readme)
        sockets = ["sockstat", "-P", "divert"]
        lab.wait_until(lambda: ":8710" in lab.exec(host, sockets).stdout, logger)
        lab.exec(host, ["ipfw", "-q", *rule.split()], check=True)
        try:
            yield
        finally:
            lab.exec(host, ["ipfw", "-q", "delete", "100"], check=True)

    def shell(self, location: str, program: list[str]) -> list[str]:
        return ["jexec", location, *program]

    def traces(self, instance: str) -> dict[str, list[str]]:
        names = subprocess.run(["jls", "jid", "name"], capture_output=True, text=True, check=True).stdout
        jails = [line.split() for line in names.splitlines()]
        ours = [(number, name) for number, name in jails if name.startswith(f"natf_{instance}_")]
        numbers = ",".join(number for number, _ in ours)
        found = subprocess.run(["ps", "-J", numbers or "0", "-ax", "-o", "pid="], capture_output=True, text=True)
        links = subprocess.run(["ifconfig", "-l"], capture_output=True, text=True, check=True).stdout
        return {
            "jails": names.splitlines(),
            "links": links.split(),
            "hosts": sorted(name for _, name in ours),
            "processes": found.stdout.split() if ours else [],
            "files": files(instance),
        }


HERE: Site = FreeBsd() if sys.platform.startswith("freebsd") or os.environ.get("NATF_LAB") == "vagrant" else Linux()
"""The labs' system: this one, or that of the machines of vagrant/."""
