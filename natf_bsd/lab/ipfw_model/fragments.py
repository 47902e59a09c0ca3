"""Fragments: cut on output, put together before a divert socket, by `reass` and before delivery (RFC 791)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from natf_bsd.wire import packet
from natf_bsd.wire.checksum import checksum

_OFFSET = 0x1FFF
_MORE = 0x2000
# net/if... IPFRAGTTL: half seconds; a datagram that is not whole by then is given up.
_LIFETIME = 30.0
_COPIED = 0x80


def set_header_sum(data: bytearray, value: int | None = None) -> None:
    """Put the header checksum in, or `value`."""
    struct.pack_into("!H", data, 10, 0)
    header = data[: packet.header_length(data)]
    struct.pack_into("!H", data, 10, checksum(header) if value is None else value)


def fragment_field(data: bytes | bytearray) -> int:
    return int.from_bytes(data[6:8], "big")


def is_fragment(data: bytes | bytearray) -> bool:
    return data[0] >> 4 == 4 and bool(fragment_field(data) & (_OFFSET | _MORE))


def split(data: bytearray, mtu: int) -> list[bytearray]:
    """Fragments of at most `mtu` bytes, header checksums included; `data` itself if it fits."""
    if len(data) <= mtu:
        set_header_sum(data)
        return [data]
    start = packet.header_length(data)
    step = (mtu - start) & ~7
    field_of_all = fragment_field(data)
    pieces = []
    for at in range(start, len(data), step):
        header = data[:start] if at == start else _later_header(data[:start])
        payload = data[at : at + step]
        more = _MORE if at + step < len(data) else field_of_all & _MORE
        offset = (field_of_all & _OFFSET) + (at - start) // 8
        struct.pack_into("!H", header, 2, len(header) + len(payload))
        struct.pack_into("!H", header, 6, offset | more)
        set_header_sum(header)
        pieces.append(header + payload)
    return pieces


def _later_header(header: bytearray) -> bytearray:
    """Only options with the copied flag go into later fragments."""
    options = bytearray()
    at = 20
    while at < len(header) and header[at] > 1:
        size = max(2, header[at + 1])
        if header[at] & _COPIED:
            options += header[at : at + size]
        at += size
    options += bytes(-len(options) % 4)
    plain = header[:20] + options
    plain[0] = 0x40 | len(plain) // 4
    return plain


@dataclass(slots=True)
class _Datagram:
    since: float
    first: bytearray | None = None
    pieces: dict[int, bytes] = field(default_factory=dict)
    size: int | None = None


class Reassembly:
    """The queue of fragments of one host; ipfw and ip_input share it (ip_reass)."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[bytes, bytes, int], _Datagram] = {}

    def add(self, data: bytearray, now: float) -> bytearray | None:
        """The whole datagram if `data` was its last missing fragment, header checksum put right; else None."""
        key = (bytes(data[4:6]), bytes(data[12:20]), data[9])
        waiting = self._waiting.get(key)
        if waiting is None or now - waiting.since > _LIFETIME:
            waiting = self._waiting[key] = _Datagram(now)
        start = packet.header_length(data)
        offset = (fragment_field(data) & _OFFSET) * 8
        waiting.pieces[offset] = bytes(data[start:])
        if offset == 0:
            waiting.first = data[:start]
        if not fragment_field(data) & _MORE:
            waiting.size = offset + len(data) - start
        whole = _join(waiting)
        if whole is not None:
            del self._waiting[key]
        return whole


def _join(waiting: _Datagram) -> bytearray | None:
    if waiting.first is None or waiting.size is None:
        return None
    payload = bytearray()
    for offset, piece in sorted(waiting.pieces.items()):
        if offset > len(payload):
            return None
        payload[offset:] = piece
    if len(payload) < waiting.size:
        return None
    whole = waiting.first + payload
    struct.pack_into("!H", whole, 2, len(whole))
    struct.pack_into("!H", whole, 6, 0)
    set_header_sum(whole)
    return whole
