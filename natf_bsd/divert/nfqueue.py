"""Linux NFQUEUE: packets that a `-j NFQUEUE` rule selects, over netlink (linux/netfilter/nfnetlink_queue.h).

The kernel is asked for whole packets and no GSO, so that it cuts segments to MTU size and completes their checksums
before we see them; incremental checksum repair would be wrong on a partial sum.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final, TextIO, cast

from natf_bsd.divert import netlink
from natf_bsd.errors import NatfError
from natf_bsd.types import Direction, Packet

_SUBSYSTEM: Final = 3 << 8  # NFNL_SUBSYS_QUEUE
_MSG_PACKET: Final = _SUBSYSTEM | 0
_MSG_VERDICT: Final = _SUBSYSTEM | 1
_MSG_CONFIG: Final = _SUBSYSTEM | 2

_CFG_COMMAND: Final = 1
_CFG_PARAMETERS: Final = 2
_CFG_MAXIMUM: Final = 3
_COMMAND_BIND: Final = 1
_COPY_PACKET: Final = 2
_COPY_RANGE: Final = 0xFFFF  # the largest IPv4 packet

_ATTR_PACKET_HEADER: Final = 1
_ATTR_VERDICT: Final = 2
_ATTR_MARK: Final = 3
_ATTR_IN: Final = 5  # NFQA_IFINDEX_INDEV
_ATTR_OUT: Final = 6  # NFQA_IFINDEX_OUTDEV
_ATTR_PAYLOAD: Final = 10

_DROP: Final = 0  # linux/netfilter.h
_ACCEPT: Final = 1

# Hook numbers of linux/netfilter.h; FORWARD (2) is both, there the handle's direction counts.
_DIRECTIONS: Final = {0: Direction.IN, 1: Direction.IN, 3: Direction.OUT, 4: Direction.OUT}

# Held and unread packets together: 16,384 held SYNs are far above the core's own limit, so that one decides.
_QUEUE_MAXIMUM: Final = 16_384
# About 3,500 unread full-size packets (each costs 2.3 KB of buffer): a quarter of a second at 170 Mbit/s asleep.
_RECEIVE_BUFFER: Final = 8 << 20

# Verdicts in one system call, at the most. The first packet of several that wait goes on by itself, the others wait for
# as many as these, or until none is left to read.
_TOGETHER: Final = 16

_GENERIC: Final = struct.Struct("!BBH")  # nfgenmsg: family, version, queue
_PACKET_HEADER: Final = struct.Struct("!IHB")  # id, link protocol, hook
_BE32: Final = struct.Struct("!I")
_FIRST_ATTRIBUTE: Final = netlink.HEADER.size + _GENERIC.size
_VERDICT_HEAD: Final = netlink.ATTRIBUTE.pack(12, _ATTR_VERDICT)
_MARK_HEAD: Final = netlink.ATTRIBUTE.pack(8, _ATTR_MARK)
_LENGTH: Final = struct.Struct("=I")
_WORDS: Final = struct.Struct("!II")
_STATISTICS: Final = "/proc/thread-self/net/netfilter/nfnetlink_queue"


class NfqueueBackend:
    """One NFQUEUE, bound until `close()`.

    On sending, the packet's mark becomes (mark it had & ~`mask`) | `mark`; with `mask` 0 it stays. `direction` counts
    for the FORWARD hook only, all others tell it; and verdicts on packets that go out are given several at a time while
    others wait, which is faster there only (natf bench user_space). NatfError: no privilege, no kernel support, or
    another process holds the queue.
    """

    def __init__(self, queue: int, direction: Direction, *, mark: int = 0, mask: int = 0) -> None:
        self._queue = queue
        self._direction = direction
        self._mark = mark
        self._mask = mask
        self._names: dict[int, str] = {}
        self._buffer = bytearray(_FIRST_ATTRIBUTE + _COPY_RANGE + 1024)  # 1,024: the other attributes take up to 300
        self._view = memoryview(self._buffer)
        self._received = self._sent = self._rewritten = self._dropped = self._refused = 0
        # All of a verdict message between its length and the packet's id is the same each time.
        header = netlink.HEADER.pack(0, _MSG_VERDICT, netlink.NLM_F_REQUEST, 0, 0)[_LENGTH.size :]
        self._verdict = header + _GENERIC.pack(0, 0, queue) + _VERDICT_HEAD
        self._gathering = False
        self._gathered: list[bytes] = []
        self._netlink = _open(queue)
        self._socket = self._netlink.socket
        self._losses = (0, 0)
        # Opened now, because it is for root only and the daemon may give that up.
        self._statistics = _open_statistics()

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, limit: int) -> Iterator[Packet]:
        try:
            for _ in range(limit):
                try:
                    length = self._socket.recv_into(self._buffer)
                except BlockingIOError:
                    return
                packet = self._parse(length)
                if packet is not None:
                    self._received += 1
                    yield packet
                    self._gathering = self._direction is Direction.OUT
        finally:  # also when whoever reads has raised
            self._gathering = False
            self._give_gathered()

    def send(self, packet: Packet) -> None:
        packet_id, mark, original = cast("tuple[int, int, bytes]", packet.token)
        rest = self._verdict + _WORDS.pack(_ACCEPT, packet_id)
        if self._mask:
            rest += _MARK_HEAD + _BE32.pack(mark & ~self._mask | self._mark)
        if packet.data != original:
            self._rewritten += 1
            rest += netlink.ATTRIBUTE.pack(netlink.ATTRIBUTE.size + len(packet.data), _ATTR_PAYLOAD) + packet.data
        self._sent += 1
        self._give(rest)

    def drop(self, packet: Packet) -> None:
        packet_id = cast("tuple[int, int, bytes]", packet.token)[0]
        rest = self._verdict + _WORDS.pack(_DROP, packet_id)
        self._dropped += 1
        self._give(rest)

    def close(self) -> None:
        """The kernel unbinds the queue with the socket and drops what is held."""
        if self._statistics is not None:
            self._losses = self._kernel_losses(self._statistics)
            self._statistics.close()
            self._statistics = None
        self._netlink.close()

    @property
    def counters(self) -> dict[str, int]:
        """`received`, `sent` (of these `rewritten`), `dropped` by us; `refused`: verdicts the kernel did not take;
        `queue_full` and `buffer_full`: packets the kernel dropped for want of room in the queue or in our socket.
        """
        statistics = self._statistics
        queue_full, buffer_full = self._losses if statistics is None else self._kernel_losses(statistics)
        return {
            "received": self._received,
            "sent": self._sent,
            "rewritten": self._rewritten,
            "dropped": self._dropped,
            "refused": self._refused,
            "queue_full": queue_full,
            "buffer_full": buffer_full,
        }

    def _give(self, rest: bytes) -> None:
        """A verdict, without its length; messages begin at whole words."""
        message = _LENGTH.pack(_LENGTH.size + len(rest)) + rest + bytes(-len(rest) % 4)
        if not self._gathering:
            self._socket.send(message)
            return
        self._gathered.append(message)
        if len(self._gathered) == _TOGETHER:
            self._give_gathered()

    def _give_gathered(self) -> None:
        if self._gathered:
            messages, self._gathered = self._gathered, []
            self._socket.send(b"".join(messages))

    def _parse(self, end: int) -> Packet | None:
        """The packet in the first `end` bytes of the buffer; None for an error message, which is counted.

        One walk over the attributes, without building anything on the way: this runs for every packet.
        """
        buffer = self._buffer
        if netlink.HEADER.unpack_from(buffer)[1] != _MSG_PACKET:
            self._refused += bool(netlink.error_of(buffer))
            return None
        packet_id = mark = came = goes = hook = 0
        original = b""
        offset = _FIRST_ATTRIBUTE
        while offset < end:
            length, kind = netlink.ATTRIBUTE.unpack_from(buffer, offset)
            value = offset + 4
            if kind == _ATTR_PAYLOAD:
                original = bytes(self._view[value : offset + length])
            elif kind == _ATTR_PACKET_HEADER:
                packet_id, _, hook = _PACKET_HEADER.unpack_from(buffer, value)
            elif kind == _ATTR_MARK:
                mark = _BE32.unpack_from(buffer, value)[0]
            elif kind == _ATTR_IN:
                came = _BE32.unpack_from(buffer, value)[0]
            elif kind == _ATTR_OUT:
                goes = _BE32.unpack_from(buffer, value)[0]
            offset += (length + 3) & ~3
        direction = _DIRECTIONS.get(hook, self._direction)
        interface = came or goes
        name = self._names.get(interface) or self._name(interface)
        packet = Packet(bytearray(original), direction, name, (packet_id, mark, original))
        if came and goes:
            packet.leaves = self._names.get(goes) or self._name(goes)
        return packet

    def _name(self, interface: int) -> str:
        """The name of an interface number; a number is not given out twice while the kernel runs."""
        try:
            name = self._names[interface] = socket.if_indextoname(interface)
        except OSError:  # it has gone since, or there was none (number 0)
            return ""
        return name

    def _kernel_losses(self, statistics: TextIO) -> tuple[int, int]:
        statistics.seek(0)
        for line in statistics:
            # queue, port id, waiting, copy mode, copy range, dropped for a full queue, dropped for a full socket
            fields = line.split()
            if int(fields[0]) == self._queue:
                return int(fields[5]), int(fields[6])
        return self._losses


def _open_statistics() -> TextIO | None:
    """None where it is not ours to read: a network namespace made in one step with its user namespace leaves the file
    to the machine's root. The kernel's losses then show as 0.
    """
    try:
        return open(_STATISTICS, encoding="ascii")
    except PermissionError:
        return None


def _open(queue: int) -> netlink.NetlinkSocket:
    """A socket bound to `queue` in whole-packet mode."""
    body = (
        _GENERIC.pack(0, 0, queue)
        + netlink.attribute(_CFG_COMMAND, struct.pack("!BxH", _COMMAND_BIND, socket.AF_INET))
        + netlink.attribute(_CFG_MAXIMUM, _BE32.pack(_QUEUE_MAXIMUM))
        + netlink.attribute(_CFG_PARAMETERS, struct.pack("!IB", _COPY_RANGE, _COPY_PACKET))
    )
    try:
        connection = netlink.NetlinkSocket(netlink.NETLINK_NETFILTER)
    except OSError as error:
        raise NatfError(f"NFQUEUE {queue}: the kernel has no nfnetlink ({error.strerror})") from None
    try:
        connection.socket.setblocking(False)
        # Else one overrun makes the socket lose all packets until it is read empty. Losses are counted either way.
        connection.socket.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_NO_ENOBUFS, 1)
        connection.grow_receive_buffer(_RECEIVE_BUFFER)
        connection.request(_MSG_CONFIG, body)
    except OSError as error:
        connection.close()
        raise NatfError(f"NFQUEUE {queue}: {_reason(error, queue)}") from None
    return connection


def _reason(error: OSError, queue: int) -> str:
    """What a refused binding means; the kernel answers EPERM both to a stranger and for a queue that is taken."""
    if error.errno == errno.EPERM:
        holder = _holder(queue)
        if holder:
            return f"held by another program (netlink port {holder}, mostly its process id)"
        return "not permitted: root or CAP_NET_ADMIN is needed"
    if error.errno == errno.EINVAL:
        return "not supported by this kernel: load the module nfnetlink_queue"
    return f"{error.strerror}"


def _holder(queue: int) -> int | None:
    try:
        with open(_STATISTICS, encoding="ascii") as lines:
            holders = {int(fields[0]): int(fields[1]) for fields in map(str.split, lines)}
    except OSError:
        return None
    return holders.get(queue)
