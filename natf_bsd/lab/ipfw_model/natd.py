"""natd, and libalias as natd and `ipfw nat` use it.

TCP and UDP links, port choice, filtering and timeouts are `natd_bridge.memory.LibaliasNat`; here is what a
pseudo-packet does not need: ICMP, other protocols, fragments, libalias's way with quoted checksums, its clock, and
natd's loop. Of the helpers there is only `ftp`.
"""

from __future__ import annotations

import errno
import random
import struct
from collections import Counter
from collections.abc import Callable

from natf_bsd.lab.ipfw_model import ftp
from natf_bsd.lab.ipfw_model.errors import NotModelledError
from natf_bsd.lab.ipfw_model.fragments import fragment_field
from natf_bsd.lab.ipfw_model.sockets import AF_DIVERT, SOCK_RAW, DivertAddress, DivertSockets
from natf_bsd.natd_bridge.memory import LibaliasNat, Timeouts, _Link
from natf_bsd.types import Address, Direction, Endpoint, Flow, Protocol
from natf_bsd.wire import packet
from natf_bsd.wire.checksum import Data, delta, update

NATD_PORT = 8668
_QUERIES = frozenset({0, 8, 13, 14})  # echo and timestamp, both ways: links keyed (remote, id)
_ERRORS = frozenset({3, 4, 11, 12})
_ICMP_HEADER = 8
_SOURCE, _DESTINATION = 12, 16
_OFFSET = 0x1FFF
# alias_db.c:HouseKeeping
_FIRST_PACKET_LIMIT = 1000
_LARGEST = 65535


class SampledClock:
    """libalias's clock of 13.2 and later: it looks at the time only every so many packets (FREEBSD.md 4.5)."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._time = now()
        self._packets = 0
        self._limit = _FIRST_PACKET_LIMIT

    @property
    def limit(self) -> int:
        """packet_limit of alias_db.c; no program can ask for it."""
        return self._limit

    @property
    def time(self) -> float:
        """LibAliasTime of alias_db.c: when it looked last."""
        return self._time

    def tick(self) -> float:
        """The time libalias believes it is when the next packet comes."""
        self._packets += 1
        if self._packets % self._limit == 0 and int(self._now()) != int(self._time):
            self._time = self._now()
            self._limit = max(1, self._packets // 3)
            self._packets = 0
        return self._time


class Libalias(LibaliasNat):
    """`outbound` and `inbound` translate in place; False is libalias's PKT_ALIAS_IGNORED: left as it was.

    What becomes of an ignored packet is the caller's to decide: see `passes`. Without `same_ports`, the default of
    `ipfw nat` but not of natd, every link gets a random port. `draw` is where random ports come from.
    """

    def __init__(
        self,
        outside: Address,
        *,
        deny_incoming: bool = True,
        same_ports: bool = True,
        timeouts: Timeouts | None = None,
        draw: random.Random | None = None,
    ) -> None:
        super().__init__(outside, deny_incoming=deny_incoming, timeouts=timeouts)
        self._random = draw or self._random
        self._same_ports = same_ports
        self._expected: dict[tuple[int, Endpoint, Address], Endpoint] = {}

    def passes(self, data: bytearray, direction: Direction, now: float) -> bool:
        """Translate what can be; False for a packet that natd or `ipfw nat` then drops."""
        if direction is Direction.OUT:
            self.outbound(data, now)
            return True
        return self.inbound(data, now) or not self._deny_incoming

    def outbound(self, data: bytearray, now: float) -> bool:
        if fragment_field(data) & _OFFSET:
            _replace_address(data, _SOURCE, self.outside)
            return True
        flow = packet.flow_of(data)
        if flow is not None:
            self._help_ftp(flow, data)
            return super().outbound(data, now)
        query = _query(data)
        if query is not None:
            link = self._outgoing_link(Flow(Protocol.ICMP, query, Endpoint(packet.destination(data), 0)), now)
            if link is None:
                return False
            link.used = now
            _replace_ident(data, link.outside.port)
            _replace_address(data, _SOURCE, link.outside.address)
            return True
        if packet.protocol(data) == Protocol.ICMP:
            return self._error_outbound(data, now)
        source, destination = Endpoint(packet.source(data), 0), Endpoint(packet.destination(data), 0)
        link = self._outgoing_link(Flow(packet.protocol(data), source, destination), now)
        if link is not None:
            link.used = now
            _replace_address(data, _SOURCE, link.outside.address)
        return link is not None

    def inbound(self, data: bytearray, now: float) -> bool:
        if packet.destination(data) != self.outside or fragment_field(data) & _OFFSET:
            return False
        if packet.flow_of(data) is not None:
            return super().inbound(data, now)
        protocol = packet.protocol(data)
        query = _query(data)
        if query is None and protocol == Protocol.ICMP:
            return self._error_inbound(data, now)
        ident = 0 if query is None else query.port
        flow = Flow(protocol, Endpoint(packet.source(data), 0), Endpoint(self.outside, ident))
        link = self._incoming_link(flow, now)
        if link is None or link.inside is None:
            return False
        link.used = now
        if query is not None:
            _replace_ident(data, link.inside.port)
        _replace_address(data, _DESTINATION, link.inside.address)
        return True

    def _help_ftp(self, flow: Flow, data: bytearray) -> None:
        if flow.source.port != ftp.CONTROL_PORT:
            return
        port = ftp.announce(data, self.outside)
        if port is not None:
            expected = (flow.protocol, Endpoint(self.outside, port), flow.destination.address)
            self._expected[expected] = Endpoint(flow.source.address, port)

    def _incoming_link(self, flow: Flow, now: float) -> _Link | None:
        """With a partial link (FTP data: any port of that remote) specialised when its first packet comes."""
        expected = (flow.protocol, flow.destination, flow.source.address)
        inside = self._expected.get(expected)
        if inside is not None and self._live(self._by_outside, (*expected[:2], flow.source), now) is None:
            return self._add(flow.protocol, inside, flow.destination, flow.source, now)
        return super()._incoming_link(flow, now)

    def _add(
        self, protocol: int, inside: Endpoint | None, outside: Endpoint, remote: Endpoint | None, now: float
    ) -> _Link:
        # FindOriginalAddress: without a target address, a stray packet's link is to the alias address itself, and the
        # router's own answer goes by it.
        return super()._add(protocol, inside or outside, outside, remote, now)

    def _free_port(self, protocol: int, wanted: int, remote: Endpoint | None, now: float) -> Endpoint | None:
        if not self._same_ports:
            wanted = self._random.randint(32768, 65535)
        return super()._free_port(protocol, wanted, remote, now)

    def _error_outbound(self, data: bytearray, now: float) -> bool:
        """IcmpAliasOut2. Unlike a careful NAT it leaves the checksums inside the quote as they are."""
        quote = _quote(data)
        if quote is None:
            return False
        flow, at, port_at = quote
        link = self._live(
            self._by_inside, (flow.protocol, flow.destination, self._quoted_remote(flow.source, flow)), now
        )
        if link is None:
            return False
        if packet.source(data) == flow.destination.address:
            _replace_address(data, _SOURCE, link.outside.address)
        _replace_quoted(data, at + _DESTINATION, link.outside.address)
        _replace_quoted(data, port_at + (0 if flow.protocol == Protocol.ICMP else 2), _word(link.outside.port))
        return True

    def _error_inbound(self, data: bytearray, now: float) -> bool:
        """IcmpAliasIn2. It does put the quoted ip_sum right, so that the ICMP checksum changes by the port only."""
        quote = _quote(data)
        if quote is None:
            return False
        flow, at, port_at = quote
        remote = self._quoted_remote(flow.destination, flow)
        link = self._live(self._by_outside, (flow.protocol, flow.source, remote), now)
        if link is None or link.inside is None:
            return False
        _replace_address(data, _DESTINATION, link.inside.address)
        _patch(data, at + 10, data[at + _SOURCE : at + _SOURCE + 4], link.inside.address)
        data[at + _SOURCE : at + _SOURCE + 4] = link.inside.address
        _replace_quoted(data, port_at, _word(link.inside.port))
        return True

    def _quoted_remote(self, remote: Endpoint, flow: Flow) -> Endpoint:
        return Endpoint(remote.address, 0) if flow.protocol == Protocol.ICMP else remote


def _word(number: int) -> bytes:
    return struct.pack("!H", number)


def _query(data: bytearray) -> Endpoint | None:
    """Source address and id of an ICMP echo or timestamp message; None for another packet."""
    at = packet.header_length(data)
    if packet.protocol(data) != Protocol.ICMP or len(data) < at + _ICMP_HEADER:
        return None
    if data[at] not in _QUERIES or data[at + 1] != 0:
        return None
    return Endpoint(packet.source(data), int.from_bytes(data[at + 4 : at + 6], "big"))


def _quote(data: bytearray) -> tuple[Flow, int, int] | None:
    """The flow an ICMP error is about, where its quote begins, and where the port (ICMP: id) of its source lies."""
    at = packet.header_length(data)
    if packet.protocol(data) != Protocol.ICMP or len(data) < at + _ICMP_HEADER + 28 or data[at] not in _ERRORS:
        return None
    start = at + _ICMP_HEADER
    quoted = data[start:]
    transport = start + packet.header_length(quoted)
    flow = packet.flow_of(quoted)
    if flow is not None:
        return flow, start, transport
    query = _query(quoted)
    if query is None:
        return None
    ident = query.port
    ends = Endpoint(packet.source(quoted), ident), Endpoint(packet.destination(quoted), ident)
    return Flow(Protocol.ICMP, *ends), start, transport + 4


def _patch(data: bytearray, at: int, old: Data, new: Data) -> None:
    (value,) = struct.unpack_from("!H", data, at)
    struct.pack_into("!H", data, at, update(value, delta(old, new)))


def _replace_address(data: bytearray, at: int, address: Address) -> None:
    _patch(data, 10, data[at : at + 4], address)
    data[at : at + 4] = address


def _replace_ident(data: bytearray, ident: int) -> None:
    at = packet.header_length(data)
    _patch(data, at + 2, data[at + 4 : at + 6], _word(ident))
    data[at + 4 : at + 6] = _word(ident)


def _replace_quoted(data: bytearray, at: int, new: bytes) -> None:
    _patch(data, packet.header_length(data) + 2, data[at : at + len(new)], new)
    data[at : at + len(new)] = new


class Natd:
    """natd on its divert socket: one `recvfrom`, one `sendto` back to the same address for each packet."""

    def __init__(
        self, sockets: DivertSockets, libalias: Libalias, now: Callable[[], float], *, port: int = NATD_PORT
    ) -> None:
        self.libalias = libalias
        self.counters: Counter[str] = Counter()
        self._sockets = sockets
        self._clock = SampledClock(now)
        self._descriptor = sockets.socket(AF_DIVERT, SOCK_RAW, 0)
        sockets.bind(self._descriptor, bytes([16, 2]) + _word(port) + bytes(12))

    def step(self) -> bool:
        """Handle one packet; False if there is none."""
        try:
            data, sockaddr = self._sockets.recvfrom(self._descriptor, _LARGEST)
        except BlockingIOError:
            return False
        translated = bytearray(data)
        direction = DivertAddress.unpack(sockaddr).direction
        if not self.libalias.passes(translated, direction, self._clock.tick()):
            self.counters["dropped"] += 1
            return True
        self._write(translated, sockaddr)
        return True

    def _write(self, data: bytearray, sockaddr: bytes) -> None:
        try:
            self._sockets.sendto(self._descriptor, bytes(data), sockaddr)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise NotModelledError("natd's own need-fragment message") from error
            self.counters["refused"] += 1

    def close(self) -> None:
        """natd ends; its rule stays and swallows packets."""
        self._sockets.close(self._descriptor)
