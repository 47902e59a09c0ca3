"""The outer interface and its address, asked of the kernel (Linux: rtnetlink through pyroute2; FreeBSD: route(8) and
ifconfig(8))."""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import struct
import sys
from dataclasses import dataclass

from natf_bsd.errors import NatfError
from natf_bsd.ops.process import Run, run_process
from natf_bsd.types import Address, format_address, parse_address

_INET = re.compile(r"^\s+inet (\S+)(?: --> \S+)? netmask", re.MULTILINE)
_SIOCGIFMTU = 0x8921  # linux/sockios.h
_IFREQ_MTU = struct.Struct("16si20x")  # struct ifreq
_ETHERNET_MTU = 1500
_MAIN_TABLE = 254  # linux/rtnetlink.h, RT_TABLE_MAIN
_NO_ROUTE = "no IPv4 default route; name the outer interface (interface = in the configuration)"


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    address: Address

    def __str__(self) -> str:
        return f"{self.name} {format_address(self.address)}"


def outer_interface(wanted: str | None) -> Interface:
    """The interface `wanted`, else the default route's, with its first global IPv4 address; NatfError without."""
    if sys.platform.startswith("linux"):
        return _outer_on_linux(wanted)
    if sys.platform.startswith("freebsd"):
        return outer_on_freebsd(wanted)
    raise NatfError(f"interfaces of {sys.platform} cannot be read: natf runs on FreeBSD and Linux")


def is_local(address: Address) -> bool:
    """Whether this host has `address`: a socket can have it then, on every system."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            any_socket.bind((format_address(address), 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def mtu_on_linux(name: str) -> int:
    """Of the interface `name`; the Ethernet's where it has just gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFMTU, _IFREQ_MTU.pack(name.encode(), 0))
        except OSError:
            return _ETHERNET_MTU
    return int(_IFREQ_MTU.unpack(answer)[1])


def _outer_on_linux(wanted: str | None) -> Interface:
    # Imported here: it takes longer than the rest of the program together, and only a starting daemon needs it.
    try:
        from pyroute2 import IPRoute
    except ImportError:
        raise NatfError(
            "the Python package pyroute2 is missing; expected natf_bsd[linux] to be installed, or python3-pyroute2"
        ) from None

    with IPRoute() as routes:
        if wanted is None:
            wanted = _default_on_linux(routes)
        index = next(iter(routes.link_lookup(ifname=wanted)), None)
        if index is None:
            raise _missing(wanted)
        for message in routes.get_addr(family=2, index=index):
            if message.get("scope") == 0 and (text := message.get_attr("IFA_LOCAL")):
                return Interface(wanted, parse_address(text))
    raise _without_address(wanted)


def _default_on_linux(routes: object) -> str:
    # pyroute2 gives the routes of every table: those of VPNs, of second lines, and the one of our own TUN device.
    for route in routes.get_default_routes(family=2):  # type: ignore[attr-defined]
        if route.get_attr("RTA_TABLE") == _MAIN_TABLE and (index := route.get_attr("RTA_OIF")):
            name = routes.get_links(index)[0].get_attr("IFLA_IFNAME")  # type: ignore[attr-defined]
            return str(name)
    raise NatfError(_NO_ROUTE)


def outer_on_freebsd(wanted: str | None, run: Run = run_process) -> Interface:
    """`outer_interface` of FreeBSD. ifconfig(8) lists an interface's addresses first to last as the kernel does."""
    name = wanted or route_to("default", run).get("interface")
    if name is None:
        raise NatfError(_NO_ROUTE)
    done = run(("ifconfig", name), None)
    if done.status:
        raise _missing(name)
    for text in _INET.findall(done.stdout):
        return Interface(name, parse_address(text))
    raise _without_address(name)


def route_to(destination: str, run: Run = run_process) -> dict[str, str]:
    """What route(8) of FreeBSD says of the way to `destination` ("interface", "gateway", ...); empty if there is
    none."""
    done = run(("route", "-n", "get", destination), None)
    return read_route(done.stdout) if done.status == 0 else {}


def read_route(output: str) -> dict[str, str]:
    """The lines of `route -n get` by their names."""
    pairs = (line.partition(":") for line in output.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon and value.strip()}


def _missing(name: str) -> NatfError:
    return NatfError(f"there is no interface {name}; expected the outer one (interface = in the configuration)")


def _without_address(name: str) -> NatfError:
    return NatfError(f"{name} has no IPv4 address; expected the public one")
