"""FreeBSD divert(4) sockets: packets that an `ipfw add N divert PORT` rule selects.

Packets are read and written with the kernel's whole sockaddr_in, which names the rule, the direction and the receive
interface. All is by FREEBSD.md section 1, and recorded on 14.2 (tests/divert/data).
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from contextlib import suppress
from typing import Final, cast

from natf_bsd.divert import sockaddr
from natf_bsd.divert.host import Host, holder_of
from natf_bsd.divert.inject import REFUSALS, refusal
from natf_bsd.divert.sockaddr import NAME_MAXIMUM, NO_ADDRESS, Place
from natf_bsd.divert.syscalls import LARGEST, Libc, SystemCalls
from natf_bsd.errors import NatfError
from natf_bsd.types import Address, Direction, Packet, Protocol
from natf_bsd.wire import build
from natf_bsd.wire import packet as wire

log = logging.getLogger(__name__)

# FreeBSD 14 and later: PF_DIVERT. Before: IPPROTO_DIVERT in PF_INET, which 14 and 15 still take, with a complaint on
# the console; family 44 is unknown there (EAFNOSUPPORT).
_FORMS: Final = ((44, 0), (2, 258))
_NO_MODULE: Final = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})  # 14 and later; before

# 691 full-size packets, against 43 by default; more bytes bring nothing until kern.ipc.maxsockbuf is raised too.
RECEIVE_BUFFER: Final = 1 << 20
_SMALLEST_BUFFER: Final = 1 << 17  # below it the default of 65,636 bytes stays
# sys/socket.h; numbers, because a model kernel runs on other systems too.
_SOCK_RAW: Final = 3
_SOL_SOCKET: Final = 0xFFFF
_SO_RCVBUF: Final = 0x1002
_SO_RERROR: Final = 0x20000  # 13 and later: recv() says when packets were lost for want of room

_HEAD: Final = slice(0, 68)
"""The longest IP header and 8 bytes: what an ICMP error must quote (RFC 792)."""

_NEED_FRAGMENT: Final = 4  # code of ICMP unreachable (RFC 792)
_ICMP_ERRORS: Final = frozenset({3, 4, 5, 11, 12})
_DONT_FRAGMENT: Final = 0x40
_MULTICAST: Final = 224
_BROADCAST: Final[Address] = bytes([255] * 4)


def own_packet(
    data: bytes | bytearray,
    direction: Direction,
    *,
    after_rule: int = 0,
    interface: str = "",
    address: Address = NO_ADDRESS,
) -> Packet:
    """A packet of our own making that `Divert.send` of any FreeBSD handle writes.

    ipfw goes on with it at the first rule whose number is higher than `after_rule`. Outgoing: it is routed by its
    destination, and `interface`, if given, is what it seems to have come in by (`recv` rules match it). Incoming: it
    comes in by the interface with that name or that `address`, and needs a right IP header checksum and, for this
    host, right TCP and UDP checksums. NatfError: no such place can be told to the kernel.
    """
    place = sockaddr.made(direction, after_rule, interface, address)
    return Packet(bytearray(data), direction, interface, (place, bytes(data[_HEAD])))


class DivertBackend:
    """One divert socket, bound until `close()`.

    Every packet is written back the way `direction` says, whatever its address looks like: an incoming packet on an
    interface without IPv4 address looks outgoing. So there is one handle for `in` rules and one for `out` rules.
    `calls` and `host` are for a model kernel. NatfError: no privilege, no kernel support, or the port is taken.
    """

    def __init__(
        self, port: int, direction: Direction, *, calls: SystemCalls | None = None, host: Host | None = None
    ) -> None:
        self._port = port
        self._direction = direction
        self._calls = calls or Libc()
        self._host = host or Host()
        # By sockaddr as received: the interface and the sockaddr to write back. There are as many as rules and
        # interfaces meet.
        self._places: dict[bytes, tuple[str, bytes]] = {}
        names = ["received", "sent", "dropped", "need_fragment", "buffer_full", *REFUSALS]
        self._counters = Counter(dict.fromkeys(names, 0))
        self._descriptor = _open(self._calls, self._host, port)

    def fileno(self) -> int:
        return self._descriptor

    def receive(self, limit: int) -> list[Packet]:
        packets: list[Packet] = []
        while len(packets) < limit:
            try:
                data, raw = self._calls.recvfrom(self._descriptor, LARGEST)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._counters["buffer_full"] += 1  # said once per overrun, after what was kept (SO_RERROR)
                continue
            interface, place = self._places.get(raw) or self._learn(raw)
            packets.append(Packet(bytearray(data), self._direction, interface, (place, data[_HEAD])))
        self._counters["received"] += len(packets)
        return packets

    def send(self, packet: Packet) -> None:
        error = _write(self._calls, self._descriptor, packet, self._counters)
        _, original = cast("tuple[bytes, bytes]", packet.token)
        if error == errno.EMSGSIZE and may_answer(original):
            self._need_fragment(wire.destination(packet.data), original)

    def drop(self, packet: Packet) -> None:
        """The kernel gave the packet away when it was read: there is nothing to tell it."""
        self._counters["dropped"] += 1

    def close(self) -> None:
        if self._descriptor >= 0:
            self._calls.close(self._descriptor)
        self._descriptor = -1

    @property
    def counters(self) -> dict[str, int]:
        """`received`, `sent`, `dropped` by us; `buffer_full`: how often the kernel dropped packets for want of room in
        our socket (13 and later say so). What it would not take: `not_permitted` (a deny rule), `unreachable`,
        `no_buffers`, `too_big`, `invalid`, `other`; and `need_fragment`: how many of the too big were answered.
        """
        return dict(self._counters)

    def _learn(self, raw: bytes) -> tuple[str, bytes]:
        """Decide once for all packets with sockaddr `raw` how they are written back."""
        place = Place.unpack(raw)
        back, problem = (self._way_in if self._direction is Direction.IN else self._way_out)(raw, place)
        if problem:
            log.warning("divert port %d: %s", self._port, problem)
        entry = self._places[raw] = (place.interface, back)
        return entry

    def _way_out(self, raw: bytes, place: Place) -> tuple[bytes, str | None]:
        problem = f"rule {place.rule} diverts incoming packets to it, they are sent out; it needs the word `out`"
        return sockaddr.outgoing(raw), None if place.address == NO_ADDRESS else problem

    def _way_in(self, raw: bytes, place: Place) -> tuple[bytes, str | None]:
        if place.address != NO_ADDRESS:
            # A name of 7 characters may be a longer one cut off, and the kernel would take another interface whose
            # name it is. The address tells without a doubt.
            return sockaddr.incoming(raw, keep_name=len(place.interface) < NAME_MAXIMUM), None
        if not place.interface:
            problem = f"rule {place.rule} diverts outgoing packets to it, they are lost; it needs the word `in`"
            return sockaddr.incoming(raw, keep_name=False), problem
        if len(place.interface) < NAME_MAXIMUM or self._is_whole(place.interface):
            return sockaddr.incoming(raw, keep_name=True), None
        problem = (
            f"packets of an interface {place.interface}... can't be put back and are lost: give it an IPv4 address, or "
            f"a name of at most {NAME_MAXIMUM} characters that begins no other"
        )
        return sockaddr.incoming(raw, keep_name=False), problem

    def _is_whole(self, name: str) -> bool:
        """Whether an interface of just this name exists, and no other that would be cut to it."""
        return [found for found in self._host.interfaces() if found.startswith(name)] == [name]

    def _need_fragment(self, destination: Address, original: bytes) -> None:
        """Tell the sender of `original` the MTU on the way to `destination`, as natd does; the kernel does not.

        The error quotes the packet as its sender knows it. It comes in by the interface that has the sender's address,
        like that of a router further on: so natd sees it, which may stand between us and the true sender. If nobody
        here has that address, the sender is another host, and the error goes out to it.
        """
        mtu = min(self._host.mtu_to(destination), LARGEST)
        error = build.unreachable_for(original, code=_NEED_FRAGMENT, source=destination, mtu=mtu)
        for address in wire.source(original), NO_ADDRESS:
            with suppress(OSError):
                self._calls.sendto(self._descriptor, bytes(error), Place(0, address).pack())
                self._counters["need_fragment"] += 1
                return


class DivertWriter:
    """A divert socket that is bound to no port: it writes packets of our own making (`own_packet`), wherever they are
    to go on, and never reads. NatfError as `DivertBackend`."""

    def __init__(self, *, calls: SystemCalls | None = None) -> None:
        self._calls = calls or Libc()
        self._counters = Counter(dict.fromkeys(["sent", *REFUSALS], 0))
        self._descriptor = _socket(self._calls, "divert socket")

    def send(self, packet: Packet) -> None:
        """Write it; what the kernel will not take is counted, not raised."""
        _write(self._calls, self._descriptor, packet, self._counters)

    def close(self) -> None:
        if self._descriptor >= 0:
            self._calls.close(self._descriptor)
        self._descriptor = -1

    @property
    def counters(self) -> dict[str, int]:
        """`sent`, and what the kernel would not take as in `DivertBackend.counters`."""
        return dict(self._counters)


def _write(calls: SystemCalls, descriptor: int, packet: Packet, counters: Counter[str]) -> int | None:
    """Write a packet where its token says; returns the errno if the kernel would not take it, which is counted. The
    packet is gone either way."""
    place, _ = cast("tuple[bytes, bytes]", packet.token)
    try:
        calls.sendto(descriptor, bytes(packet.data), place)
    except OSError as error:
        counters[refusal(error)] += 1
        return error.errno
    counters["sent"] += 1
    return None


def may_answer(original: bytes) -> bool:
    """Whether the beginning of a packet allows an ICMP error about it (RFC 1122 3.2.2), and it must not be cut up."""
    if len(original) < 20 or original[0] >> 4 != 4 or not original[6] & _DONT_FRAGMENT:
        return False
    if wire.is_later_fragment(original) or wire.source(original) == NO_ADDRESS:
        return False
    destination = wire.destination(original)
    if destination[0] & 0xF0 == _MULTICAST or destination == _BROADCAST:
        return False
    kind = original[wire.header_length(original) :][:1]
    return wire.protocol(original) != Protocol.ICMP or (bool(kind) and kind[0] not in _ICMP_ERRORS)


def _open(calls: SystemCalls, host: Host, port: int) -> int:
    """A divert socket bound to `port`, with a large receive buffer."""
    address = sockaddr.bind_address(port)
    descriptor = _socket(calls, f"divert port {port}")
    try:
        with suppress(OSError):
            calls.setsockopt(descriptor, _SOL_SOCKET, _SO_RERROR, 1)  # ENOPROTOOPT before 13
        _grow_receive_buffer(calls, descriptor, port)
        calls.bind(descriptor, address)
    except OSError as error:
        calls.close(descriptor)
        raise NatfError(f"divert port {port}: {_bind_problem(error, host, port)}") from None
    return descriptor


def _socket(calls: SystemCalls, name: str) -> int:
    for domain, protocol in _FORMS:
        try:
            return calls.socket(domain, _SOCK_RAW, protocol)
        except PermissionError:
            raise NatfError(f"{name}: not permitted: {_needed_privilege()}") from None
        except OSError as error:
            if error.errno not in _NO_MODULE:
                raise NatfError(f"{name}: {error.strerror}") from None
    raise NatfError(
        f"{name}: this kernel has no divert sockets: `kldload ipdivert`, for a jail on its host (before "
        "FreeBSD 14 this loads ipfw too, which then denies everything unless net.inet.ip.fw.default_to_accept=1 is in "
        "/boot/loader.conf)"
    )


def _needed_privilege() -> str:
    if os.geteuid() != 0:
        return "root is needed"
    return "root of a jail needs a network stack of the jail's own (`vnet` in jail.conf)"


def _bind_problem(error: OSError, host: Host, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port, host.sockstat())
        return f"held by {holder or 'another program; `sockstat -P divert` on the host of all jails may name it'}"
    if error.errno == errno.EADDRNOTAVAIL:  # until 12: bind() goes the way of other Internet sockets
        return "this host has no IPv4 address yet"
    return f"{error.strerror}"


def _grow_receive_buffer(calls: SystemCalls, descriptor: int, port: int) -> None:
    """Ask for the wanted size, then for halves of it; one line in the log if less is granted."""
    size = RECEIVE_BUFFER
    while size >= _SMALLEST_BUFFER:
        try:
            calls.setsockopt(descriptor, _SOL_SOCKET, _SO_RCVBUF, size)
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        size //= 2
    if size < RECEIVE_BUFFER:
        log.warning(
            "divert port %d: the kernel grants a receive buffer of %d bytes, not %d: bursts of packets will be lost; "
            "raise kern.ipc.maxsockbuf (sysctl) to 2097152, and the limit sbsize (limits -b) if there is one",
            port,
            calls.getsockopt(descriptor, _SOL_SOCKET, _SO_RCVBUF),
            RECEIVE_BUFFER,
        )
