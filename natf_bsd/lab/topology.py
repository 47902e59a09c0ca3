"""Networks as data: who is on which segment, with what address, doing what. Addresses are text, as commands take it."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from natf_bsd.errors import NatfError


class ServiceKind(enum.Enum):
    HTTP = "http"
    UDP_ECHO = "udp-echo"
    DNS = "dns"


@dataclass(frozen=True, slots=True)
class Service:
    """A server on a host, on every address of it."""

    kind: ServiceKind
    port: int


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    segment: str
    address: str
    prefix_length: int = 24

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Interface(f"{self.address}/{self.prefix_length}").network


@dataclass(frozen=True, slots=True)
class Nat:
    """An ordinary home router's NAT: inside goes out under the outside address, only answers come in."""

    outside: str
    inside: str


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. With a `nat` it also forwards. `answers_echo` False: it drops ICMP echo requests, as some do.
    `bridges`: it is for frames to pass by a process on it (`bad_link`), and nobody talks to it.
    """

    name: str
    interfaces: tuple[Interface, ...]
    default_route: str | None = None
    nat: Nat | None = None
    services: tuple[Service, ...] = ()
    answers_echo: bool = True
    bridges: bool = False

    @property
    def address(self) -> str:
        """Its first interface's."""
        return self.interfaces[0].address


@dataclass(frozen=True, slots=True)
class Zone:
    """What the DNS server knows; everything else does not exist.

    `domains` are answered for the name itself and every name below it, `hosts` for the name alone.
    """

    domains: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    ttl: int = 60
    """Seconds; what providers of dynamic DNS use."""

    def address(self, name: str) -> str | None:
        """The A record of `name` (lower case, no dot at the end)."""
        if name in self.hosts:
            return self.hosts[name]
        return next((self.domains[parent] for parent in _ancestry(name) if parent in self.domains), None)

    def exists(self, name: str) -> bool:
        """Whether `name` has records or names below it: else the answer is NXDOMAIN."""
        below = f".{name}"
        return self.address(name) is not None or any(known.endswith(below) for known in (*self.domains, *self.hosts))


def _ancestry(name: str) -> Iterator[str]:
    """`name`, then its parents, nearest first."""
    while name:
        yield name
        _, _, name = name.partition(".")


@dataclass(frozen=True, slots=True)
class Topology:
    hosts: tuple[Host, ...]
    zone: Zone
    nameserver: str

    @property
    def segments(self) -> tuple[str, ...]:
        """Each an Ethernet switch of its own, in order of first use."""
        return tuple(dict.fromkeys(interface.segment for host in self.hosts for interface in host.interfaces))

    def ports(self, segment: str) -> list[tuple[Host, Interface]]:
        """Who is on `segment`, with which interface."""
        return [(host, port) for host in self.hosts for port in host.interfaces if port.segment == segment]

    def is_home(self, host: str) -> bool:
        """Whether it is a home's router, or behind one: not on the network of the DNS server."""
        found = self.host(host)
        return found.nat is not None or not any(
            ipaddress.IPv4Address(self.nameserver) in port.network for port in found.interfaces
        )

    def host(self, name: str) -> Host:
        """NatfError names those there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise NatfError(f"no host {name!r} in this lab; expected one of {', '.join(host.name for host in self.hosts)}")


HTTP_PORT = 80
ECHO_PORT = 5000
DNS_PORT = 53

_SERVICES = (Service(ServiceKind.HTTP, HTTP_PORT), Service(ServiceKind.UDP_ECHO, ECHO_PORT))


def _public(name: str, last: int, services: tuple[Service, ...] = (), *, answers_echo: bool = True) -> Host:
    address = Interface("eth0", "public", f"203.0.113.{last}")
    return Host(name, (address,), services=services, answers_echo=answers_echo)


def _private(name: str, last: int, segment: str = "private") -> Host:
    address = Interface("eth0", segment, f"192.168.0.{last}")
    return Host(name, (address,), default_route="192.168.0.1", services=_SERVICES)


def _home_router(name: str, last: int, segment: str, default_route: str | None = None) -> Host:
    outside, inside = Interface("wan", "public", f"203.0.113.{last}"), Interface("lan", segment, "192.168.0.1")
    return Host(name, (outside, inside), default_route, Nat(outside="wan", inside="lan"))


FIGURE1 = Topology(
    hosts=(
        # Nobody has the address of the EN's gateway: nothing is beyond, and no packet to 240/4 must ever get there.
        Host("en", (Interface("eth0", "public", "203.0.113.10"),), default_route="203.0.113.254"),
        _home_router("router", 1, "private"),
        _public("dns", 53, (Service(ServiceKind.DNS, DNS_PORT),)),
        _public("plain", 80, _SERVICES),
        _public("silent", 81, _SERVICES, answers_echo=False),
        _private("alice", 2),
        _private("bob", 3),
        _private("eve", 4),
    ),
    zone=Zone(
        domains={
            "home.example.net": "203.0.113.1",
            "plain.example.net": "203.0.113.80",
            "silent.example.net": "203.0.113.81",
        },
        hosts={"www.elsewhere.example.net": "203.0.113.80"},
    ),
    nameserver="203.0.113.53",
)
"""The paper's figure 1 on documentation addresses (RFC 5737).

`plain` and `silent` are under home domains of the EN but are no NAT-f routers; `silent` does not even answer an echo
request. www.elsewhere.example.net is under none.
"""


def with_bad_link(topology: Topology) -> Topology:
    """`topology` with a host "link" between the router and the public segment, which carries nothing by itself
    (`bad_link`): its interfaces are "near", on the public segment, and "far"."""
    near, far = Interface("near", "public", "203.0.113.201"), Interface("far", "far", "203.0.113.202")
    hosts = [
        replace(host, interfaces=(replace(host.interfaces[0], segment=far.segment), *host.interfaces[1:]))
        if host.name == "router"
        else host
        for host in topology.hosts
    ]
    return replace(topology, hosts=(*hosts, Host("link", (near, far), bridges=True)))


FIGURE3 = Topology(
    hosts=(
        # Both homes' routers also call: packets to 240/4 need a route, but nobody may get them.
        _home_router("router", 1, "private", "203.0.113.254"),
        _home_router("router2", 2, "private2", "203.0.113.254"),
        _public("dns", 53, (Service(ServiceKind.DNS, DNS_PORT),)),
        _private("alice", 2),
        _private("bob", 3),
        _private("carol", 2, "private2"),
        _private("dave", 3, "private2"),
        _private("eve", 4, "private2"),
    ),
    zone=Zone(domains={"home.example.net": "203.0.113.1", "home2.example.net": "203.0.113.2"}),
    nameserver="203.0.113.53",
)
"""The paper's figure 3: two homes with the same private addresses."""
