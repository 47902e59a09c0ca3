"""The IPv4 packet round a DNS message: taking the message out, putting another one into a UDP datagram."""

from __future__ import annotations

import struct

from natf_bsd.types import Protocol
from natf_bsd.wire import checksum, packet

_UDP_HEADER = 8
_TCP_OFFSET = 12  # of the byte whose upper half is the length of the header in words (RFC 9293 section 3.1)


def payload(data: bytearray) -> bytes | None:
    """The UDP payload of a whole IPv4 packet, or None if it is not a complete, unfragmented UDP datagram."""
    if packet.flow_key(data) is None or packet.protocol(data) != Protocol.UDP:
        return None
    start = packet.header_length(data)
    if len(data) < start + _UDP_HEADER:
        return None
    (fragment,) = struct.unpack_from("!H", data, 6)
    (length,) = struct.unpack_from("!H", data, start + 4)
    if fragment & 0x3FFF or length < _UDP_HEADER or start + length > len(data):
        return None
    return bytes(data[start + _UDP_HEADER : start + length])


def segment_payload(data: bytearray) -> bytes:
    """The data in a TCP segment; none if it is a fragment, or ends too early."""
    start = packet.header_length(data)
    (fragment,) = struct.unpack_from("!H", data, 6)
    if fragment & 0x3FFF or len(data) <= start + _TCP_OFFSET:
        return b""
    return bytes(data[start + (data[start + _TCP_OFFSET] >> 4) * 4 :])


def replace_payload(data: bytearray, message: bytes) -> bytearray:
    """The packet `data` with `message` as its UDP payload: lengths and both checksums made anew, a zero UDP
    checksum kept zero (RFC 768).
    """
    start = packet.header_length(data)
    length = _UDP_HEADER + len(message)
    renewed = bytearray(data[: start + _UDP_HEADER]) + message
    struct.pack_into("!H", renewed, 2, start + length)
    struct.pack_into("!H", renewed, 10, 0)
    struct.pack_into("!H", renewed, 10, checksum.checksum(renewed[:start]))
    had_checksum = data[start + 6 : start + 8] != b"\0\0"
    struct.pack_into("!HH", renewed, start + 4, length, 0)
    if had_checksum:
        value = checksum.transport(Protocol.UDP, renewed[12:20], renewed[start:])
        struct.pack_into("!H", renewed, start + 6, value)
    return renewed
