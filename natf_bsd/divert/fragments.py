"""Keeps the fragments of a datagram together, so that one decision is made on all of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

_LENGTH_IDENT_FLAGS: Final = struct.Struct("!2xHHH")  # flags and offset share the last one, RFC 791 section 3.1
_MORE: Final = 0x2000
_OFFSET: Final = 0x1FFF
_UNIT: Final = 8  # bytes an offset counts, RFC 791
_LARGEST: Final = 0xFFFF
_PARTS: Final = 256
"""Fragments of one datagram: 64 KB in such of 256 bytes. Who sends it chooses the size of ours, down to 8 bytes, and
each is a packet to send."""


@dataclass(slots=True)
class _Datagram:
    """What is there of it, by offset: `octets`, and where it ends, once the last fragment has come."""

    parts: dict[int, bytes] = field(default_factory=dict)
    octets: int = 0
    end: int | None = None


class Fragments:
    """At most `maximum` datagrams wait for the rest of them, 64 KB each; then the oldest is given up and counted
    (`lost`), as is one of too many fragments, or of fragments that do not fit together. There is no time-out: what
    never becomes whole makes room for what comes later.
    """

    def __init__(self, maximum: int = 64) -> None:
        self.lost = 0
        self._maximum = maximum
        self._waiting: dict[bytes, _Datagram] = {}

    def take(self, data: bytes) -> list[bytes]:
        """`data`, an IPv4 packet with a whole header, if it is no fragment; with the last fragment that comes of a
        datagram all of them, in order; else nothing yet.
        """
        total, _, flags = _LENGTH_IDENT_FLAGS.unpack_from(data)
        if not flags & (_MORE | _OFFSET):
            return [data]
        key = data[4:6] + data[9:10] + data[12:20]
        offset = (flags & _OFFSET) * _UNIT
        if (known := self._waiting.get(key)) is not None and offset in known.parts:
            # The number was given out again. What never became whole must not become part of another datagram.
            self._give_up(key)
        datagram = self._waiting.setdefault(key, _Datagram())
        datagram.parts[offset] = data
        datagram.octets += total - (data[0] & 15) * 4
        if not flags & _MORE:
            datagram.end = offset + total - (data[0] & 15) * 4
        if datagram.octets == datagram.end and _is_whole(datagram.parts):
            return [part for _, part in sorted(self._waiting.pop(key).parts.items())]
        end = _LARGEST if datagram.end is None else datagram.end - 1
        if datagram.octets > end or len(datagram.parts) >= _PARTS:
            self._give_up(key)
        elif len(self._waiting) > self._maximum:
            self._give_up(next(iter(self._waiting)))
        return []

    def _give_up(self, key: bytes) -> None:
        del self._waiting[key]
        self.lost += 1


def _is_whole(parts: dict[int, bytes]) -> bool:
    """Each fragment begins where the one before it ends. Costs as many steps as there are: once a datagram."""
    expected = 0
    for offset, data in sorted(parts.items()):
        if offset != expected:
            return False
        total, _, _ = _LENGTH_IDENT_FLAGS.unpack_from(data)
        expected += total - (data[0] & 15) * 4
    return True
