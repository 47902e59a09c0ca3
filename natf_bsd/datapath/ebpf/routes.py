"""Whether what is sent to a virtual address takes the way of its router, and a route of ours where it would not
(linux/rtnetlink.h).

A program's packet is routed to V1 and leaves with G2 in it: both must have the same next hop. Mostly that is the
default route's. Where it is not (G2 on the same network, a route of its own), V1 gets a host route with the way of G2;
it carries our protocol number, as all routes of ours do.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, NamedTuple

from natf_bsd.divert import netlink
from natf_bsd.firewall.linux_gateway import ROUTE_PROTOCOL
from natf_bsd.types import Address

_NEW_ROUTE: Final = 24
_DELETE_ROUTE: Final = 25
_GET_ROUTE: Final = 26

# Family, lengths of destination and source, TOS, table, protocol, scope, kind; flags.
_HEADER: Final = struct.Struct("=BBBBBBBBI")
_MAIN: Final = 254
_UNIVERSE: Final = 0
_UNICAST: Final = 1
_DESTINATION: Final = 1
_SOURCE: Final = 2
_OUT_INTERFACE: Final = 4
_GATEWAY: Final = 5
_PREFERRED_SOURCE: Final = 7
_ON_LINK: Final = 4  # the gateway is a neighbour, whatever other routes say
_WORD: Final = struct.Struct("=I")


class NextHop(NamedTuple):
    """The interface's number, the neighbour the packet is given to, and the source a program's packet gets."""

    interface: int
    neighbour: Address
    source: Address


class Routes:
    """Of this network namespace. OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._netlink = netlink.Requests(netlink.NETLINK_ROUTE)

    @property
    def port(self) -> int:
        """The netlink port that changes are made by."""
        return self._netlink.port

    def way(self, destination: Address, source: Address) -> NextHop | None:
        """None if there is none by a wire."""
        body = (
            _HEADER.pack(socket.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0)
            + netlink.attribute(_DESTINATION, destination)
            + netlink.attribute(_SOURCE, source)
        )
        try:
            answer = self._netlink.ask(_GET_ROUTE, 0, body)
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return None
            raise
        start = netlink.HEADER.size
        kind = _HEADER.unpack_from(answer, start)[7]
        found = netlink.attributes(answer, start + _HEADER.size, len(answer))
        if kind != _UNICAST or _OUT_INTERFACE not in found:
            return None
        interface: int = _WORD.unpack_from(answer, found[_OUT_INTERFACE][0])[0]

        def address(kind: int, otherwise: Address) -> Address:
            return Address(bytes(answer[slice(*found[kind])])) if kind in found else otherwise

        return NextHop(interface, address(_GATEWAY, destination), address(_PREFERRED_SOURCE, source))

    def add(self, destination: Address, way: NextHop) -> None:
        """A host route of ours; one of somebody else's is not replaced (EEXIST)."""
        self._change(_NEW_ROUTE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, destination, way)

    def remove(self, destination: Address) -> None:
        """One that `add` made, if it is there."""
        try:
            self._change(_DELETE_ROUTE, 0, destination, None)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENODEV):
                raise

    def ours(self, first: int) -> list[Address]:
        """Destinations of the host routes that `add` has made, in this run or an earlier one, which begin with the byte
        `first`."""
        asked = _HEADER.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        found: list[Address] = []
        for data, start, end in self._netlink.dump(_GET_ROUTE, asked):
            _, length, _, _, table, protocol, *_ = _HEADER.unpack_from(data, start)
            if (length, table, protocol) == (32, _MAIN, ROUTE_PROTOCOL):
                where = netlink.attributes(data, start + _HEADER.size, end)[_DESTINATION]
                found.append(Address(data[slice(*where)]))
        return [address for address in found if address[0] == first]

    def close(self) -> None:
        self._netlink.close()

    def _change(self, kind: int, flags: int, destination: Address, way: NextHop | None) -> None:
        flag = _ON_LINK if way else 0
        body = _HEADER.pack(socket.AF_INET, 32, 0, 0, _MAIN, ROUTE_PROTOCOL, _UNIVERSE, _UNICAST if way else 0, flag)
        body += netlink.attribute(_DESTINATION, destination)
        if way:
            body += (
                netlink.attribute(_GATEWAY, way.neighbour)
                + netlink.attribute(_OUT_INTERFACE, _WORD.pack(way.interface))
                + netlink.attribute(_PREFERRED_SOURCE, way.source)
            )
        self._netlink.ask(kind, flags | netlink.NLM_F_ACK, body)
