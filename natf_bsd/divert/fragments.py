"""Keeps the fragments of a datagram together, so that one decision is made on all of it."""

from __future__ import annotations

import struct
from typing import Final

_LENGTH_IDENT_FLAGS: Final = struct.Struct("!2xHHH")  # flags and offset share the last one, RFC 791 section 3.1
_MORE: Final = 0x2000
_OFFSET: Final = 0x1FFF
_UNIT: Final = 8  # bytes an offset counts, RFC 791


class Fragments:
    """At most `maximum` datagrams wait for the rest of them, 64 KB each; then the oldest goes and is counted (`lost`).

    There is no time-out: the kernel hands over the fragments of one datagram in a row, so what has not come will not.
    """

    def __init__(self, maximum: int = 64) -> None:
        self.lost = 0
        self._maximum = maximum
        self._waiting: dict[bytes, dict[int, bytes]] = {}

    def take(self, data: bytes) -> list[bytes]:
        """`data`, an IPv4 packet with a whole header, if it is no fragment; with the last fragment that comes of a
        datagram all of them, in order; else nothing yet.
        """
        _, _, flags = _LENGTH_IDENT_FLAGS.unpack_from(data)
        if not flags & (_MORE | _OFFSET):
            return [data]
        key = data[4:6] + data[9:10] + data[12:20]
        parts = self._waiting.setdefault(key, {})
        parts[(flags & _OFFSET) * _UNIT] = data
        if _is_whole(parts):
            return [part for _, part in sorted(self._waiting.pop(key).items())]
        if len(self._waiting) > self._maximum:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1
        return []


def _is_whole(parts: dict[int, bytes]) -> bool:
    """Each fragment begins where the one before it ends, and the last one is there."""
    expected = 0
    flags = _MORE
    for offset, data in sorted(parts.items()):
        if offset != expected:
            return False
        total, _, flags = _LENGTH_IDENT_FLAGS.unpack_from(data)
        expected += total - (data[0] & 15) * 4
    return not flags & _MORE
