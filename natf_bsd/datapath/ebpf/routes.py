"""Whether what is sent to a virtual address takes the way of its router, and a route of ours where it would not
(linux/rtnetlink.h).

A program's packet is routed to V1 and leaves with G2 in it: both must have the same next hop. Mostly that is the
default route's. Where it is not (G2 on the same network, a route of its own), V1 gets a host route with the way of G2;
it carries our protocol number, as all routes of ours do.
"""

from __future__ import annotations

import errno
import os
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

# Links, addresses, routes and rules: what a next hop depends on.
_CHANGES: Final = 0x1 | 0x10 | 0x40 | 0x80
_LARGEST: Final = 1 << 16
_PATIENCE: Final = 1.0  # s; the kernel answers within the call

_GET_POLICIES: Final = 37  # linux/xfrm.h, XFRM_MSG_GETSPDINFO
_POLICY_COUNTS: Final = 1
_COUNTS: Final = struct.Struct("=II")  # inward, outward


class NextHop(NamedTuple):
    """The interface's number, the neighbour the packet is given to, and the source a program's packet gets."""

    interface: int
    neighbour: Address
    source: Address


class Routes:
    """Of this network namespace. OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._netlink = netlink.NetlinkSocket(netlink.NETLINK_ROUTE)
        self._netlink.socket.settimeout(_PATIENCE)
        self._events = netlink.NetlinkSocket(netlink.NETLINK_ROUTE, _CHANGES)
        self._events.socket.setblocking(False)
        self._own = self._netlink.port
        self._sequence = 0

    def way(self, destination: Address, source: Address) -> NextHop | None:
        """None if there is none by a wire."""
        body = (
            _HEADER.pack(socket.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0)
            + netlink.attribute(_DESTINATION, destination)
            + netlink.attribute(_SOURCE, source)
        )
        try:
            answer = self._ask(_GET_ROUTE, 0, body)
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

    def changed(self) -> bool:
        """Whether something a next hop depends on is another since this was last asked, and not by us."""
        found = False
        while True:
            try:
                found |= netlink.sender_of(self._events.socket.recv(_LARGEST)) != self._own
            except BlockingIOError:
                return found
            except OSError:  # more than we could keep
                found = True

    def close(self) -> None:
        self._netlink.close()
        self._events.close()

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
        self._ask(kind, flags | netlink.NLM_F_ACK, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        connection = self._netlink.socket
        connection.send(netlink.message(kind, netlink.NLM_F_REQUEST | flags, self._sequence, body))
        while True:
            answer = connection.recv(_LARGEST)
            if netlink.sequence_of(answer) == self._sequence:
                break
        if status := netlink.error_of(answer):
            raise OSError(status, os.strerror(status))
        return answer


def encrypts() -> bool:
    """Whether this host has a policy to encrypt some of what it sends (IPsec). Policies go by addresses: one for G2
    would not see V1."""
    try:
        connection = netlink.NetlinkSocket(netlink.NETLINK_XFRM)
    except OSError:
        return False
    try:
        connection.socket.settimeout(_PATIENCE)
        connection.socket.send(netlink.message(_GET_POLICIES, netlink.NLM_F_REQUEST, 1, _WORD.pack(0)))
        answer = connection.socket.recv(_LARGEST)
        found = netlink.attributes(answer, netlink.HEADER.size + _WORD.size, len(answer))
        if netlink.error_of(answer) is not None or _POLICY_COUNTS not in found:
            return False
        return bool(_COUNTS.unpack_from(answer, found[_POLICY_COUNTS][0])[1])
    finally:
        connection.close()
