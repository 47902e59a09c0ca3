"""Linux conntrack's table over netlink (linux/netfilter/nfnetlink_conntrack.h), as far as we need it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from natf_bsd.divert import netlink
from natf_bsd.types import Address, Endpoint, Flow
from natf_bsd.wire.packet import flow_of_key

_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET: Final = _SUBSYSTEM | 1
_DELETE: Final = _SUBSYSTEM | 2

_NESTED: Final = 1 << 15
_TYPE: Final = 0x3FFF
_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_MARK: Final = 8
_COUNTERS_ORIGINAL: Final = 9
_COUNTERS_REPLY: Final = 10
_MARK_MASK: Final = 21
_PROTOCOL_STATE: Final = 4  # CTA_PROTOINFO
_STATE_OF_TCP: Final = 1  # CTA_PROTOINFO_TCP, and in it CTA_PROTOINFO_TCP_STATE
_FLAGS_OF_SENDER: Final = 4  # CTA_PROTOINFO_TCP_FLAGS_ORIGINAL
_UNACKNOWLEDGED: Final = 0x10  # IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED
_PICKED_UP: Final = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL: it was begun midway, and its windows are guessed

_CLOSED: Final = 8  # TCP_CONNTRACK_CLOSE: a RST was seen

# Of the states of a TCP connection (linux/netfilter/nf_conntrack_tcp.h), those in which one FIN or two were seen.
_FINS: Final = {4: 1, 5: 1, 6: 2, 7: 2}

# A tuple of TCP or UDP as the kernel writes it: addresses, protocol, ports, each behind its attribute's header.
_TUPLE: Final = struct.Struct("!8x4s4x4s8xB7xH6xH2x")
_TUPLE_KEY: Final = struct.Struct("!4s4sHHB")
# The first attribute of counters: packets.
_PACKETS: Final = struct.Struct("!4xQ")

_GENERIC: Final = struct.pack("!BBH", socket.AF_INET, 0, 0)
_FIRST_ATTRIBUTE: Final = netlink.HEADER.size + len(_GENERIC)
_LARGEST: Final = 4096  # an entry takes about 400 bytes
_LARGEST_PIECE: Final = 1 << 16  # above what the kernel puts into one datagram of a list
_PATIENCE: Final = 1.0  # s; the kernel lists entries as fast as they are read


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

    def get(self, flow: Flow) -> Tracked | None:
        """The entry of the flow whose first packet was `flow`, if there is one. OSError as `forget_closed`."""
        found = self._ask(_GET, _tuple(flow))
        return None if found is None else _tracked(found, _FIRST_ATTRIBUTE, len(found))

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


def problem() -> str | None:
    """Why this kernel's table cannot be asked, None if it can."""
    nobody = Endpoint(bytes(4), 0)
    try:
        conntrack = Conntrack()
    except OSError as error:
        return f"no netlink to netfilter: {error.strerror}"
    try:
        conntrack.get(Flow(socket.IPPROTO_UDP, nobody, nobody))
    except OSError as error:
        return f"conntrack does not answer (ctnetlink): {os.strerror(error.errno or 0)}"
    finally:
        conntrack.close()
    return None


class Tracked(NamedTuple):
    """A TCP or UDP flow in conntrack's table: `Flow.key` of its first packet, where its answers come from, packets each
    way (0 where they are not counted), how many FINs were seen, and whether a RST was. `unacknowledged`: whether its
    first sender waits for an acknowledgement; None where that is not told, as of UDP."""

    key: bytes
    mapped: Endpoint
    out: int
    inward: int
    fins: int
    reset: bool
    unacknowledged: bool | None


class Dump:
    """Lists the entries with the connection mark `mark` within `mask`, in pieces. OSError as `Conntrack`."""

    def __init__(self, mark: int, mask: int) -> None:
        self._wanted = _GENERIC + _marked(mark, mask)
        self._sequence = 0
        self._netlink = netlink.NetlinkSocket(netlink.NETLINK_NETFILTER)
        self._netlink.socket.setblocking(False)
        self._buffer = bytearray(_LARGEST_PIECE)
        self.under_way = False
        self.whole = True
        """Whether the last one, once it is over, has seen all there was; the table may change meanwhile."""

    def begin(self) -> None:
        self._discard()
        self._sequence += 1
        request = netlink.message(_GET, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, self._sequence, self._wanted)
        self._netlink.socket.send(request)
        self.under_way = self.whole = True

    def _discard(self) -> None:
        """What is left of one that was given up: the kernel begins no other before all of it has been read."""
        with contextlib.suppress(OSError):
            while self._netlink.socket.recv_into(self._buffer):
                pass

    def receive(self) -> list[Tracked]:
        """One more piece, if it is there; `under_way` is false after the last."""
        try:
            length = self._netlink.socket.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except OSError:
            self.under_way = self.whole = False
            return []
        found: list[Tracked] = []
        offset = 0
        while offset + netlink.HEADER.size <= length:
            size, kind, flags, sequence, _ = netlink.HEADER.unpack_from(self._buffer, offset)
            if sequence != self._sequence:  # what is left of one that was given up
                break
            if flags & netlink.NLM_F_DUMP_INTR:
                self.whole = False
            if kind == netlink.NLMSG_DONE or kind == netlink.NLMSG_ERROR:
                self.under_way = False
                self.whole = self.whole and kind == netlink.NLMSG_DONE and not netlink.status_of(self._buffer, offset)
                break
            if (entry := _tracked(self._buffer, offset + _FIRST_ATTRIBUTE, offset + size)) is not None:
                found.append(entry)
            offset += netlink.align(size)
        return found

    def listed(self) -> list[Tracked]:
        """Begin, and wait for all of it."""
        self.begin()
        found: list[Tracked] = []
        while self.under_way:
            self.wait()
            found += self.receive()
        return found

    def wait(self) -> None:
        """Until `receive` has something. A kernel that does not go on with what it has begun is not waited for."""
        if not select.select([self._netlink.socket], [], [], _PATIENCE)[0]:
            self.under_way = self.whole = False

    def fileno(self) -> int:
        return self._netlink.socket.fileno()

    def close(self) -> None:
        self._netlink.close()


def forget_untranslated(mark: int, mask: int, concerns: Callable[[Address], bool]) -> None:
    """Delete the entries with the connection mark `mark` within `mask` to addresses that this `concerns` and that no
    NAT has changed. OSError if some may be left."""
    dump = Dump(mark, mask)
    try:
        flows = [(flow_of_key(entry.key), entry.mapped) for entry in dump.listed()]
        whole = dump.whole
    finally:
        dump.close()
    conntrack = Conntrack()
    try:
        for flow, mapped in flows:
            if flow.destination == mapped and concerns(mapped.address):
                conntrack.forget(flow)
    finally:
        conntrack.close()
    if not whole:
        raise OSError(errno.EAGAIN, "conntrack could not be listed as a whole")


def _tracked(data: bytes | bytearray, offset: int, end: int) -> Tracked | None:
    """None for what is neither TCP nor UDP."""
    out = inward = state = 0
    key, mapped, unacknowledged = b"", None, None
    while offset + netlink.ATTRIBUTE.size <= end:
        length, kind = netlink.ATTRIBUTE.unpack_from(data, offset)
        value, kind = offset + netlink.ATTRIBUTE.size, kind & _TYPE
        if kind == _TUPLE_ORIGINAL:
            if length - netlink.ATTRIBUTE.size != _TUPLE.size:
                return None
            source, destination, protocol, port, to = _TUPLE.unpack_from(data, value)
            key = _TUPLE_KEY.pack(source, destination, port, to, protocol)
        elif kind == _TUPLE_REPLY:
            source, _, _, port, _ = _TUPLE.unpack_from(data, value)
            mapped = Endpoint(source, port)
        elif kind == _COUNTERS_ORIGINAL:
            (out,) = _PACKETS.unpack_from(data, value)
        elif kind == _COUNTERS_REPLY:
            (inward,) = _PACKETS.unpack_from(data, value)
        elif kind == _PROTOCOL_STATE:
            of_tcp = _value(data, value, offset + length, _STATE_OF_TCP)
            if of_tcp is not None:
                found, flags = (_value(data, *of_tcp, wanted) for wanted in (_STATE_OF_TCP, _FLAGS_OF_SENDER))
                state = data[found[0]] if found else 0
                unacknowledged = _waits(data[flags[0]]) if flags else None
        offset += max(netlink.align(length), netlink.ATTRIBUTE.size)
    if mapped is None:
        return None
    return Tracked(key, mapped, out, inward, _FINS.get(state, 0), state == _CLOSED, unacknowledged)


def _waits(flags: int) -> bool | None:
    """What is outside a guessed window does not set the flag."""
    if flags & _UNACKNOWLEDGED:
        return True
    return None if flags & _PICKED_UP else False


def _marked(mark: int, mask: int) -> bytes:
    return netlink.attribute(_MARK, struct.pack("!I", mark)) + netlink.attribute(_MARK_MASK, struct.pack("!I", mask))


# An original tuple with all attributes in it, sizes and kinds in host order: addresses, then protocol and ports.
_QUESTION: Final = struct.Struct("=HHHHHH4sHH4sHHHHB3xHH2s2xHH2s2x")


def _tuple(flow: Flow) -> bytes:
    source, destination = flow.source, flow.destination
    return _QUESTION.pack(
        *(_QUESTION.size, _TUPLE_ORIGINAL | _NESTED, 20, 1 | _NESTED),
        *(8, 1, source.address, 8, 2, destination.address),
        *(28, 2 | _NESTED, 5, 1, flow.protocol),
        *(6, 2, source.port.to_bytes(2, "big"), 6, 3, destination.port.to_bytes(2, "big")),
    )


def _tcp_state(entry: bytes) -> int | None:
    of_protocol = _value(entry, _FIRST_ATTRIBUTE, len(entry), _PROTOCOL_STATE)
    of_tcp = of_protocol and _value(entry, *of_protocol, _STATE_OF_TCP)
    state = of_tcp and _value(entry, *of_tcp, _STATE_OF_TCP)
    return entry[state[0]] if state else None


def _value(data: bytes | bytearray, offset: int, end: int, wanted: int) -> tuple[int, int] | None:
    """Where the value of the attribute `wanted` begins and ends, among those between `offset` and `end`."""
    while offset + netlink.ATTRIBUTE.size <= end:
        length, kind = netlink.ATTRIBUTE.unpack_from(data, offset)
        if kind & _TYPE == wanted:
            return offset + netlink.ATTRIBUTE.size, offset + length
        offset += max(netlink.align(length), netlink.ATTRIBUTE.size)
    return None
