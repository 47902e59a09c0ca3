"""What the programs' work depends on and others may change: links, addresses, routes, rules, filters, and policies to
encrypt (linux/rtnetlink.h, linux/xfrm.h)."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Collection
from typing import Final

from natf_bsd.divert import netlink

# Groups by bits: links, traffic control, addresses, routes, rules.
_ROUTING: Final = 0x1 | 0x8 | 0x10 | 0x40 | 0x80
_POLICIES: Final = 0x8
_LARGEST: Final = 1 << 16

_GET_POLICIES: Final = 37  # XFRM_MSG_GETSPDINFO
_POLICY_COUNTS: Final = 1
_COUNTS: Final = struct.Struct("=II")  # inward, outward
_WORD: Final = struct.Struct("=I")
# Lists its sockets where the kernel has the other way to set policies (RFC 2367).
_KEY_SOCKETS: Final = "/proc/net/pfkey"


class Changes:
    """News from the kernel about all of that; `own` are netlink ports whose changes are none to us. OSError where there
    is no news to be had."""

    def __init__(self, own: Collection[int]) -> None:
        self._own = frozenset(own)
        self._sockets = [netlink.NetlinkSocket(netlink.NETLINK_ROUTE, _ROUTING)]
        if _has_policies():
            self._sockets.append(netlink.NetlinkSocket(netlink.NETLINK_XFRM, _POLICIES))
        self._either = select.epoll()
        for each in self._sockets:
            each.socket.setblocking(False)
            self._either.register(each.socket, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable while `heard` has something to look at."""
        return self._either.fileno()

    def heard(self) -> bool:
        """Whether anybody else has changed something since this was last asked."""
        heard = [self._heard(each) for each in self._sockets]
        return any(heard)

    def close(self) -> None:
        self._either.close()
        for each in self._sockets:
            each.close()

    def _heard(self, news: netlink.NetlinkSocket) -> bool:
        found = False
        while True:
            try:
                found |= netlink.sender_of(news.socket.recv(_LARGEST)) not in self._own
            except BlockingIOError:
                return found
            except OSError:  # more than we could keep
                found = True


def encrypts() -> bool:
    """Whether this host has a policy to encrypt some of what it sends or receives (IPsec), or does not say. Policies go
    by addresses: one for G2 would not see V1."""
    try:
        if not _has_policies():
            return os.path.exists(_KEY_SOCKETS)
        connection = netlink.Requests(netlink.NETLINK_XFRM)
        try:
            answer = connection.ask(_GET_POLICIES, 0, _WORD.pack(0))
        finally:
            connection.close()
    except OSError:
        return True
    found = netlink.attributes(answer, netlink.HEADER.size + _WORD.size, len(answer))
    return _POLICY_COUNTS not in found or any(_COUNTS.unpack_from(answer, found[_POLICY_COUNTS][0]))


def _has_policies() -> bool:
    """Whether the kernel can be asked about policies."""
    try:
        netlink.NetlinkSocket(netlink.NETLINK_XFRM).close()
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        return False
    return True
