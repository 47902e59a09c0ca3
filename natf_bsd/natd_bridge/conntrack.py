"""Linux conntrack's table over netlink (linux/netfilter/nfnetlink_conntrack.h), as far as the bridge needs it."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from natf_bsd.divert import netlink
from natf_bsd.types import Flow

_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET: Final = _SUBSYSTEM | 1
_DELETE: Final = _SUBSYSTEM | 2

_NESTED: Final = 1 << 15
_TYPE: Final = 0x3FFF
_TUPLE_ORIGINAL: Final = 1
_PROTOCOL_STATE: Final = 4  # CTA_PROTOINFO
_STATE_OF_TCP: Final = 1  # CTA_PROTOINFO_TCP, and in it CTA_PROTOINFO_TCP_STATE

_CLOSED: Final = 8  # TCP_CONNTRACK_CLOSE: a RST was seen

_GENERIC: Final = struct.pack("!BBH", socket.AF_INET, 0, 0)
_FIRST_ATTRIBUTE: Final = netlink.HEADER.size + len(_GENERIC)
_LARGEST: Final = 4096  # an entry takes about 400 bytes


class Conntrack:
    """A connection to the kernel's table in this network namespace. OSError when there is none to be had."""

    def __init__(self) -> None:
        self._netlink = netlink.NetlinkSocket(netlink.NETLINK_NETFILTER)
        self._netlink.socket.setblocking(False)

    def forget_closed(self, flow: Flow) -> bool:
        """Delete the entry of the TCP connection whose first packet was `flow`, if it was ended by a RST; whether there
        was one. OSError with the kernel's errno when it does not say.
        """
        tuple_ = _tuple(flow)
        found = self._ask(_GET, tuple_)
        if found is None or _tcp_state(found) != _CLOSED:
            return False
        self._ask(_DELETE, tuple_)
        return True

    def forget(self, flow: Flow) -> None:
        """Delete the entry of the flow whose first packet was `flow`, if there is one. OSError as `forget_closed`."""
        self._ask(_DELETE, _tuple(flow))

    def _ask(self, kind: int, attributes: bytes) -> bytes | None:
        """The kernel's answer; None if there is no such entry, or nothing to say of it."""
        self._netlink.socket.send(netlink.message(kind, netlink.NLM_F_REQUEST, 0, _GENERIC + attributes))
        try:
            answer = self._netlink.socket.recv(_LARGEST)
        except BlockingIOError:
            return None
        status = netlink.error_of(answer)
        if status not in (None, 0, errno.ENOENT):
            raise OSError(status, "conntrack")
        return answer if status is None else None

    def close(self) -> None:
        self._netlink.close()


def _tuple(flow: Flow) -> bytes:
    attribute = netlink.attribute
    source, destination = flow.source, flow.destination
    addresses = attribute(1, source.address) + attribute(2, destination.address)
    ports = attribute(2, struct.pack("!H", source.port)) + attribute(3, struct.pack("!H", destination.port))
    protocol = attribute(1, bytes([flow.protocol])) + ports
    return attribute(_TUPLE_ORIGINAL | _NESTED, attribute(1 | _NESTED, addresses) + attribute(2 | _NESTED, protocol))


def _tcp_state(entry: bytes) -> int | None:
    of_protocol = _value(entry, _FIRST_ATTRIBUTE, len(entry), _PROTOCOL_STATE)
    of_tcp = of_protocol and _value(entry, *of_protocol, _STATE_OF_TCP)
    state = of_tcp and _value(entry, *of_tcp, _STATE_OF_TCP)
    return entry[state[0]] if state else None


def _value(data: bytes, offset: int, end: int, wanted: int) -> tuple[int, int] | None:
    """Where the value of the attribute `wanted` begins and ends, among those between `offset` and `end`."""
    while offset + netlink.ATTRIBUTE.size <= end:
        length, kind = netlink.ATTRIBUTE.unpack_from(data, offset)
        if kind & _TYPE == wanted:
            return offset + netlink.ATTRIBUTE.size, offset + length
        offset += max(netlink.align(length), netlink.ATTRIBUTE.size)
    return None
