"""Reading and rewriting one IPv4 packet where it lies.

The readers trust what the kernel checked before it handed the packet over (version, header length, total length); bytes
from anywhere else go through `check_ipv4` first. A `Rewrite` is made once per flow and direction, and then costs a few
byte stores per packet.
"""

from __future__ import annotations

import struct

from natf_bsd.errors import WireError
from natf_bsd.types import Address, Endpoint, Flow, Protocol
from natf_bsd.wire import checksum

TCP_FIN = 1
TCP_SYN = 2
TCP_RST = 4
TCP_ACK = 16

# Errors about a packet quote it (RFC 792). A redirect (5) is not among them: it names a gateway, and no rewriting makes
# that right.
_QUOTING_TYPES = frozenset({3, 4, 11, 12})
_TIME_EXCEEDED = 11
_IN_TRANSIT = 0
_ICMP_HEADER = 8
# A quote's longest IP header and the TCP header up to behind its checksum: nothing beyond is ever rewritten.
_QUOTE_REWRITTEN = 60 + 20

_FRAGMENT_OFFSET = 0x1FFF
_PLAIN = 0x45  # version 4, five words of header: no options

# First byte, flags and fragment offset, protocol, then (in a plain header) both addresses and both ports, which is a
# flow key but for its last byte.
_HEAD = struct.Struct("!B5xHxB2x12s")
# In a plain header: protocol, header checksum, addresses, ports.
_ENDS = struct.Struct("!BH4s4s2s2s")
_PORTS = struct.Struct("!2s2s")
_LENGTHS = struct.Struct("!BxH")
_KEY = struct.Struct("!4s4sHHB")
_TCP = int(Protocol.TCP)  # a plain number, for the per-packet path
_WORD = struct.Struct("!H")
_KEY_ENDS = {int(Protocol.TCP): bytes([Protocol.TCP]), int(Protocol.UDP): bytes([Protocol.UDP])}

_SOURCE = slice(12, 16)
_DESTINATION = slice(16, 20)


def check_ipv4(data: bytes | bytearray) -> None:
    """WireError unless `data` begins with a whole IPv4 packet (bytes behind its total length are allowed)."""
    if len(data) < 20:
        raise WireError(f"{len(data)} bytes are less than an IPv4 header")
    first, total = _LENGTHS.unpack_from(data)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20:
        raise WireError(f"first byte {first:#04x} is not that of an IPv4 header")
    if not header <= total <= len(data):
        raise WireError(f"IPv4 total length {total} with a header of {header} in {len(data)} bytes")


def source(data: bytes | bytearray) -> Address:
    return bytes(data[_SOURCE])


def destination(data: bytes | bytearray) -> Address:
    return bytes(data[_DESTINATION])


def protocol(data: bytes | bytearray) -> int:
    return data[9]


def header_length(data: bytes | bytearray) -> int:
    """Length of the IPv4 header in bytes, which is where the transport header begins."""
    return (data[0] & 15) * 4


def is_later_fragment(data: bytes | bytearray) -> bool:
    """Whether this is a fragment that does not begin its packet, and so carries no transport header."""
    return bool(_WORD.unpack_from(data, 6)[0] & _FRAGMENT_OFFSET)


def flow_key(data: bytes | bytearray) -> bytes | None:
    """`Flow.key` of a TCP or UDP packet, whole or first fragment; None for anything that carries no two ports."""
    ends: bytes
    try:
        first, fragment, number, ends = _HEAD.unpack_from(data)
    except struct.error:
        return None
    last = _KEY_ENDS.get(number)
    if last is None or fragment & _FRAGMENT_OFFSET:
        return None
    if first == _PLAIN:
        return ends + last
    return _key_behind_options(data, last)


def _key_behind_options(data: bytes | bytearray, last: bytes) -> bytes | None:
    transport = header_length(data)
    if data[0] >> 4 != 4 or transport < 20 or len(data) < transport + 4:
        return None
    return bytes(data[12:20] + data[transport : transport + 4]) + last


def flow_of(data: bytes | bytearray) -> Flow | None:
    """The flow of a packet that `flow_key` has a key for, else None."""
    key = flow_key(data)
    return None if key is None else flow_of_key(key)


def flow_of_key(key: bytes) -> Flow:
    """The flow that has this `Flow.key`."""
    source, destination, source_port, destination_port, number = _KEY.unpack(key)
    return Flow(number, Endpoint(source, source_port), Endpoint(destination, destination_port))


def tcp_flags(data: bytes | bytearray) -> int:
    """The TCP flag byte; 0 when the packet ends before it (a tiny first fragment), and for every other protocol."""
    at = header_length(data) + 13
    return data[at] if at < len(data) and data[9] == _TCP else 0


def tcp_sequence(data: bytes | bytearray) -> int:
    """The sequence number of a TCP packet; 0 when the packet ends before it."""
    at = header_length(data) + 4
    return int.from_bytes(data[at : at + 4], "big") if at + 4 <= len(data) else 0


class Rewrite:
    """New endpoints for the packets of one flow in one direction, with the checksum differences computed beforehand.

    `source` and `destination` are pairs (old, new). The old endpoints are not compared with the packet: the table
    look-up did that.
    """

    __slots__ = ("_destination", "_destination_port", "_header_delta", "_source", "_source_port", "_transport_delta")

    def __init__(
        self, *, source: tuple[Endpoint, Endpoint] | None = None, destination: tuple[Endpoint, Endpoint] | None = None
    ) -> None:
        self._source, self._source_port = _new_end(source)
        self._destination, self._destination_port = _new_end(destination)
        changes = [change for change in (source, destination) if change is not None]
        old_addresses = b"".join(old.address for old, _ in changes)
        new_addresses = b"".join(new.address for _, new in changes)
        old_ports = b"".join(_WORD.pack(old.port) for old, _ in changes)
        new_ports = b"".join(_WORD.pack(new.port) for _, new in changes)
        self._header_delta = checksum.delta(old_addresses, new_addresses)
        # The pseudo-header of TCP and UDP holds the addresses, so their checksums change by both.
        self._transport_delta = checksum.delta(old_addresses + old_ports, new_addresses + new_ports)

    def apply(self, data: bytearray) -> None:
        """Patch addresses, ports and checksums of a packet that `flow_key` has a key for.

        A UDP checksum of zero (none) stays zero. A first fragment's transport checksum covers fragments we don't see;
        adding the difference keeps it right all the same. Where the fragment ends before the field, nothing is patched.
        """
        transport = (data[0] & 15) << 2
        if transport == 20:
            # One read and one write: two thirds of the time that separate stores of each field take.
            number, total, source, destination, source_port, destination_port = _ENDS.unpack_from(data, 9)
            total = (total ^ 0xFFFF) + self._header_delta
            _ENDS.pack_into(
                data,
                9,
                number,
                ((total & 0xFFFF) + (total >> 16))
                ^ 0xFFFF,  # checksum.update written out: calls cost more than it does
                self._source or source,
                self._destination or destination,
                self._source_port or source_port,
                self._destination_port or destination_port,
            )
        else:
            self._apply_around_options(data, transport)
        tcp = data[9] == 6
        at = transport + (16 if tcp else 6)
        if at + 2 > len(data):
            return
        total = data[at] << 8 | data[at + 1]
        if not (total or tcp):
            return
        total = (total ^ 0xFFFF) + self._transport_delta
        total = ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF
        if not (total or tcp):
            total = 0xFFFF  # RFC 768: zero would mean no checksum
        data[at] = total >> 8
        data[at + 1] = total & 0xFF

    def _apply_around_options(self, data: bytearray, transport: int) -> None:
        _patch(data, 10, self._header_delta)
        data[_SOURCE] = self._source or data[_SOURCE]
        data[_DESTINATION] = self._destination or data[_DESTINATION]
        source_port, destination_port = _PORTS.unpack_from(data, transport)
        _PORTS.pack_into(data, transport, self._source_port or source_port, self._destination_port or destination_port)


def _new_end(change: tuple[Endpoint, Endpoint] | None) -> tuple[bytes, bytes]:
    """Address and port to write, both empty when the end stays as it is."""
    if change is None:
        return b"", b""
    return change[1].address, _WORD.pack(change[1].port)


def quoted_flow(data: bytes | bytearray) -> Flow | None:
    """The TCP or UDP flow that an ICMP error (types 3, 4, 11, 12) is about, read from the packet it quotes; else None.

    A quote may hold as little as an IP header and 8 bytes (RFC 792), and need not be whole.
    """
    if len(data) < 20 or data[9] != Protocol.ICMP or _WORD.unpack_from(data, 6)[0] & _FRAGMENT_OFFSET:
        return None
    at = header_length(data)
    if len(data) < at + _ICMP_HEADER or data[at] not in _QUOTING_TYPES:
        return None
    return flow_of(data[at + _ICMP_HEADER : at + _ICMP_HEADER + _QUOTE_REWRITTEN])


def is_expired_in_transit(data: bytes | bytearray) -> bool:
    """Whether an ICMP error that `quoted_flow` has a flow for is time exceeded in transit (RFC 792: type 11, code 0),
    which only a router says, never the packet's destination.
    """
    at = header_length(data)
    return data[at] == _TIME_EXCEEDED and data[at + 1] == _IN_TRANSIT


class QuotedRewrite:
    """New addresses for ICMP errors about one flow, both of the error and of its quote. Pairs are (old, new)."""

    __slots__ = ("_outer_delta", "_outer_edits", "_quote")

    def __init__(
        self,
        *,
        outer_source: tuple[Address, Address] | None = None,
        outer_destination: tuple[Address, Address] | None = None,
        quoted_source: tuple[Endpoint, Endpoint] | None = None,
        quoted_destination: tuple[Endpoint, Endpoint] | None = None,
    ) -> None:
        ends = [(_SOURCE, outer_source), (_DESTINATION, outer_destination)]
        changes = [(where, *change) for where, change in ends if change is not None]
        self._outer_edits = tuple((where, new) for where, _, new in changes)
        old_addresses = b"".join(old for _, old, _ in changes)
        new_addresses = b"".join(new for _, _, new in changes)
        self._outer_delta = checksum.delta(old_addresses, new_addresses)
        self._quote = Rewrite(source=quoted_source, destination=quoted_destination)

    def apply(self, data: bytearray) -> None:
        """Patch an ICMP error that `quoted_flow` has a flow for: its addresses, its quote, and all checksums.

        Checksums in the quote change by the difference only: a NAT before us may have left them wrong (libalias does).
        """
        for where, address in self._outer_edits:
            data[where] = address
        _patch(data, 10, self._outer_delta)
        icmp = header_length(data)
        quote = slice(icmp + _ICMP_HEADER, icmp + _ICMP_HEADER + _QUOTE_REWRITTEN)
        old = data[quote]
        new = bytearray(old)
        self._quote.apply(new)
        data[quote] = new
        _patch(data, icmp + 2, checksum.delta(old, new))


def _patch(data: bytearray, at: int, delta: int) -> None:
    _WORD.pack_into(data, at, checksum.update(_WORD.unpack_from(data, at)[0], delta))
