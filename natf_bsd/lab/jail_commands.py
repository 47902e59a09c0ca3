"""What is done to a FreeBSD machine for a lab, and what its tools' output means, as values: nothing here runs anything.

A lab's jails are one for each host and one for each segment, its switch. The jails share the machine's files (path=/),
/etc/resolv.conf too, and that is not ours to change: the lab's DNS server gets the addresses that stand there. Each
interface is one end of an epair(4), renamed; the other end, marked with a description, keeps the kernel's name and is
the switch's port.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from natf_bsd.errors import NatfError
from natf_bsd.firewall.command import Command
from natf_bsd.lab.topology import Host, Interface, Nat, Topology

NATD_PORT = 8668
"""natd(8)'s default (services(5))."""

NAT_RULE = 50
"""The number that /etc/rc.firewall gives to natd's or `ipfw nat`'s rule."""

REASS_RULE = 10
"""In front of the NAT's rule, and of all of natf's."""

NAT_INSTANCE = 123
"""The number that /etc/rc.firewall gives to the instance of `ipfw nat`."""

LIST_JAILS = ("jls", "jid", "name")
LIST_PROCESSES = ("ps", "-axww", "-o", "jid=", "-o", "pid=", "-o", "stat=", "-o", "command=")


class NatKind(enum.Enum):
    """What a router's NAT is made of."""

    NATD = "natd"
    IPFW_NAT = "ipfw-nat"


@dataclass(frozen=True, slots=True)
class Means:
    """What a lab is made of: if_bridge(4) or else forwarding jails as switches, a NAT, and the addresses of the name
    servers that the machine's resolv.conf(5) names."""

    bridge: bool
    nat: NatKind
    asked: tuple[str, ...]

    def __str__(self) -> str:
        switch = "bridges" if self.bridge else "forwarding jails with proxy ARP (kldload if_bridge gives bridges)"
        return f"vnet jails; switches: {switch}; NAT: {self.nat.value}"


Wires: TypeAlias = Mapping[tuple[str, str], str]
"""By host and interface, the epair without its last letter: "epair7"."""


class Names:
    """How an instance's jails are called: natf_INSTANCE_HOST. Neither instances nor hosts have underscores."""

    def __init__(self, instance: str) -> None:
        self._prefix = f"natf_{instance}_"
        self.mark = f"natf:{instance}"
        """The description of the instance's interfaces."""

    def jail(self, host: str) -> str:
        """A host's; legal is everything but a dot and a mere number (jail(8))."""
        return f"{self._prefix}{host}"

    def switch(self, segment: str) -> str:
        """A segment's."""
        return f"{self._prefix}net_{segment}"

    def host(self, jail: str) -> str | None:
        """Whose jail it is; None for one of somebody else."""
        return jail.removeprefix(self._prefix) if jail.startswith(self._prefix) else None

    def all(self, topology: Topology) -> list[str]:
        switches = [self.switch(segment) for segment in topology.segments]
        return [*switches, *(self.jail(host.name) for host in topology.hosts)]


# Making.


def make_jails(topology: Topology, names: Names) -> list[Command]:
    """Jails with the machine's files and processes of their own, and no interface but lo0."""
    parameters = ("path=/", "persist", "vnet", "children.max=0", "allow.raw_sockets")
    return [
        Command(("jail", "-q", "-c", f"name={name}", f"host.hostname={names.host(name)}", *parameters))
        for name in names.all(topology)
    ]


def make_wire(names: Names) -> Command:
    """A new epair, marked in the same breath: `down` finds it whenever we are killed. Prints the name of its end a."""
    return Command(("ifconfig", "epair", "create", "description", names.mark))


def wire_of(printed: str) -> str:
    """The epair that `make_wire` made, from what it printed."""
    match = re.fullmatch(r"(epair\d+)a", printed.strip())
    if not match:
        raise NatfError(f"ifconfig epair create printed {printed.strip()!r}; expected a name like epair7a")
    return match[1]


def connect(topology: Topology, names: Names, wires: Wires, means: Means, run_dir: Path) -> list[Command]:
    """Every command that turns jails and epairs into the network, in order."""
    switches = [
        _script(names.switch(segment), _switch_lines(topology, segment, wires, means)) for segment in topology.segments
    ]
    hosts = [
        _script(names.jail(host.name), _host_lines(topology, host, wires, means, run_dir)) for host in topology.hosts
    ]
    return [_plug_in(topology, names, wires), *switches, *hosts]


def _script(jail: str, lines: Iterator[str]) -> Command:
    return Command(("jexec", jail, "sh", "-e"), stdin="".join(f"{line}\n" for line in lines))


def _plug_in(topology: Topology, names: Names, wires: Wires) -> Command:
    lines = [
        f"ifconfig {wires[host.name, port.name]}{end} vnet {jail}\n"
        for host in topology.hosts
        for port in host.interfaces
        for end, jail in (("a", names.switch(port.segment)), ("b", names.jail(host.name)))
    ]
    return Command(("sh", "-e"), stdin="".join(lines))


_LET_PASS = "ipfw -q add 65000 allow ip from any to any"
"""Each vnet has an ipfw of its own, whose last rule may be deny."""


def _switch_lines(topology: Topology, segment: str, wires: Wires, means: Means) -> Iterator[str]:
    yield _LET_PASS
    ports = [(host, port, f"{wires[host.name, port.name]}a") for host, port in topology.ports(segment)]
    if means.bridge:
        yield "bridge=$(ifconfig bridge create)"
        for _, _, end in ports:
            yield f"ifconfig {end} up"
            yield f'ifconfig "$bridge" addm {end}'
        yield 'ifconfig "$bridge" up'
        return
    # With proxyall, ARP for an address that is routed to another port is answered, if the asking one is routed to the
    # port it asks on and that has an address of its own, whatever it is (sys/netinet/if_ether.c:in_arpinput).
    yield "sysctl net.inet.ip.forwarding=1 net.inet.ip.redirect=0 net.link.ether.inet.proxyall=1"
    for number, (host, port, end) in enumerate(ports, 1):
        yield f"ifconfig {end} inet 169.254.0.{number}/32 up"
        for address in (port.address, *_borrowed(topology, host, port, means.asked)):
            yield f"route -q add -host {address} -iface {end}"


def _host_lines(topology: Topology, host: Host, wires: Wires, means: Means, run_dir: Path) -> Iterator[str]:
    yield _LET_PASS
    yield "ifconfig lo0 inet 127.0.0.1/8 up"
    for port in host.interfaces:
        yield f"ifconfig {wires[host.name, port.name]}b name {port.name}"
        yield f"ifconfig {port.name} inet {port.address}/{port.prefix_length} up"
        for address in _borrowed(topology, host, port, means.asked):
            yield f"ifconfig {port.name} inet {address}/32 alias"
    if host.default_route:
        yield f"route -q add default {host.default_route}"
    for address, gateway in _detours(topology, host, means.asked):
        yield f"route -q add -host {address} {gateway}"
    if not host.answers_echo:
        yield "ipfw -q add 100 deny icmp from any to me in icmptypes 8"
    if host.nat:
        yield from _nat_lines(host.nat, means.nat, run_dir / f"natd-{host.name}.pid")


def _nat_lines(nat: Nat, kind: NatKind, pid_file: Path) -> Iterator[str]:
    """As rc.firewall and rc.d/natd make it; natd's socket before the rule, else packets were lost in between."""
    yield "sysctl net.inet.ip.forwarding=1"
    if kind is NatKind.NATD:
        options = f"-interface {nat.outside} -port {NATD_PORT} -deny_incoming -dynamic -exit_delay 0"
        yield f"natd {options} -P {pid_file}"
        yield f"ipfw -q add {NAT_RULE} divert {NATD_PORT} ip4 from any to any via {nat.outside}"
    else:
        # As ipfw(8) advises: `ipfw nat` puts nothing together, and translates a first fragment otherwise than the rest.
        yield f"ipfw -q add {REASS_RULE} reass ip from any to any in"
        yield "sysctl net.inet.ip.fw.one_pass=0"
        yield f"ipfw -q nat {NAT_INSTANCE} config if {nat.outside} same_ports deny_in"
        yield f"ipfw -q add {NAT_RULE} nat {NAT_INSTANCE} ip4 from any to any via {nat.outside}"


# Names.


def name_servers(topology: Topology, asked: Collection[str]) -> dict[str, list[str]]:
    """By host, the addresses it must serve DNS under, so that a program that asks any of `asked` is answered.

    Where only this host itself is asked (a local resolver), every host is one.
    """
    server, _ = _server(topology)
    if all(map(_is_loopback, asked)):
        own = {host.name: list(asked) for host in topology.hosts}
        return own | {server.name: [topology.nameserver, *asked]}
    found = {server.name: list(dict.fromkeys((topology.nameserver, *_distant(asked))))}
    for host in topology.hosts:
        owned = [address for address in _distant(asked) if host is not server and _owns(host, address)]
        if owned:
            found[host.name] = owned
    return found


def clash(topology: Topology, asked: Collection[str]) -> str | None:
    """Why this lab cannot answer for those addresses, and what to do; None if it can."""
    if not asked:
        return "/etc/resolv.conf names IPv6 servers only; add a line with an IPv4 one, or 127.0.0.1"
    _, port = _server(topology)
    for address in asked:
        if ipaddress.IPv4Address(address) in port.network and address != topology.nameserver:
            return f"/etc/resolv.conf names {address}, of the lab's own network {port.network}; expected another server"
    return None


def _server(topology: Topology) -> tuple[Host, Interface]:
    """The host of the DNS server."""
    return next(
        (host, port) for host in topology.hosts for port in host.interfaces if port.address == topology.nameserver
    )


def _borrowed(topology: Topology, host: Host, port: Interface, asked: Collection[str]) -> list[str]:
    """The addresses beside its own that `port` of `host` has, because the machine's resolv.conf names them."""
    if port.address != topology.nameserver:
        return []
    return [address for address in _distant(asked) if not _owns(host, address)]


def _detours(topology: Topology, host: Host, asked: Collection[str]) -> Iterator[tuple[str, str]]:
    """The gateways by which `host` reaches the borrowed addresses, also one that seems to be on its own network."""
    server, port = _server(topology)
    segments = {own.segment for own in host.interfaces}
    for address in _distant(asked):
        near = any(own.address == address for segment in segments for _, own in topology.ports(segment))
        if host is server or _owns(host, address) or near:
            continue
        if port.segment in segments:
            yield address, topology.nameserver
        elif host.default_route:
            yield address, host.default_route


def _owns(host: Host, address: str) -> bool:
    return any(port.address == address for port in host.interfaces)


def _distant(asked: Collection[str]) -> list[str]:
    return [address for address in asked if not _is_loopback(address)]


def _is_loopback(address: str) -> bool:
    return ipaddress.IPv4Address(address).is_loopback


# Removing.


def tear_down(existing: Sequence[str], ports: Mapping[str, Sequence[str]], loose: Collection[str]) -> list[Command]:
    """What removes the jails `existing`, the `ports` that some of them have, and marked ends `loose` on the machine.

    A port is fetched and destroyed, and with it the other end, in whatever jail. Only then jails go: an interface that
    is in one comes back to the machine under the name it has there, were it the machine's own.
    """
    fetched = [
        command
        for jail, ends in ports.items()
        for end in ends
        for command in (Command(("ifconfig", end, "-vnet", jail)), Command(("ifconfig", end, "destroy")))
    ]
    lying = [Command(("ifconfig", end, "destroy")) for end in sorted(loose)]
    return [*fetched, *lying, *(Command(("jail", "-R", jail)) for jail in existing)]


# Reading what tools print.


def parse_jails(printed: str) -> dict[int, str]:
    """`LIST_JAILS`: names by jail identifier. Dying jails are not among them."""
    return {int(number): name for number, name in (line.split() for line in printed.splitlines())}


def parse_processes(printed: str) -> Iterator[tuple[int, int, str]]:
    """`LIST_PROCESSES`: jail identifier, pid and command of each that has not ended."""
    for line in printed.splitlines():
        jail, pid, state, command = [*line.split(None, 3), ""][:4]
        if not state.startswith("Z"):
            yield int(jail), int(pid), command


def marked(ifconfig: str, mark: str) -> list[str]:
    """The interfaces with the description `mark` in what ifconfig(8) prints of all."""
    found, name = [], ""
    for line in ifconfig.splitlines():
        if not line[:1].isspace():
            name = line.partition(":")[0]
        elif line.strip() == f"description: {mark}":
            found.append(name)
    return found
