"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624)."""

from __future__ import annotations

import struct
from typing import TypeAlias

from natf_bsd.types import Protocol

Data: TypeAlias = bytes | bytearray | memoryview


def ones_sum(data: Data) -> int:
    """The ones-complement sum of `data` in 16-bit words, an odd last byte padded with zero; 0 only for all zero.

    2**16 is 1 modulo 0xffff, so the sum of the words is the whole number modulo 0xffff: one C division, no loop.
    """
    number = int.from_bytes(data, "big") << (len(data) % 2 * 8)
    return number % 0xFFFF or (0xFFFF if number else 0)


def checksum(data: Data) -> int:
    """The value for the checksum field of `data`, whose own checksum field holds zero."""
    return ones_sum(data) ^ 0xFFFF


def transport(protocol: int, addresses: Data, segment: Data) -> int:
    """The checksum of a TCP segment or UDP datagram whose own field holds zero, its pseudo-header included.

    `addresses` are the 8 bytes of source and destination. Never 0 for UDP, where that means none (RFC 768).
    """
    value = checksum(struct.pack("!8sHH", addresses, protocol, len(segment)) + segment)
    return value or 0xFFFF if protocol == Protocol.UDP else value


def delta(old: Data, new: Data) -> int:
    """The ones-complement difference `new - old` of a field at an even offset, 1..0xffff; 0xffff is no change.

    It is never 0, the other way to write zero, so that `update` can never come to a sum of 0.
    """
    return add(ones_sum(new), ones_sum(old) ^ 0xFFFF) or 0xFFFF


def add(first: int, second: int) -> int:
    """The ones-complement sum of two 16-bit words, or of two deltas."""
    total = first + second
    return (total & 0xFFFF) + (total >> 16)


def update(old_checksum: int, delta: int) -> int:
    """The checksum after a change by `delta`: RFC 1624 equation 3, HC' = ~(~HC + ~m + m'); 0..0xfffe.

    A header that is not all zero has no checksum 0xffff, and equation 3 with a delta that is not 0 never gives it.
    """
    total = (old_checksum ^ 0xFFFF) + delta
    return ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF
