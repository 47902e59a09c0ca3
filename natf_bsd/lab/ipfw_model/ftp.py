"""libalias's alias_ftp, as far as a server inside needs it: passive replies (FREEBSD.md 4.6)."""

from __future__ import annotations

import re
import struct

from natf_bsd.lab.ipfw_model.errors import NotModelledError
from natf_bsd.types import Address, Protocol
from natf_bsd.wire import packet
from natf_bsd.wire.checksum import delta, update

CONTROL_PORT = 21
_PASSIVE = re.compile(rb"227 [^(]*\((\d+),(\d+),(\d+),(\d+),(\d+),(\d+)\)")
_EXTENDED = re.compile(rb"229 [^(]*\(\|\|\|(\d+)\|\)")
_LOWEST_PORT = 1024
_CHECKSUM_AT = 16


def announce(data: bytearray, outside: Address) -> int | None:
    """The port that this segment of an inside server (not yet translated) offers; its address becomes `outside`.

    None if it offers none, or one that alias_ftp does not believe: another address than its own, a low port.
    """
    start = packet.header_length(data)
    if packet.protocol(data) != Protocol.TCP or len(data) < start + 20:
        return None
    payload_at = start + (data[start + 12] >> 4) * 4
    payload = bytes(data[payload_at:])
    extended = _EXTENDED.match(payload)
    if extended:
        return _believable(int(extended[1]))
    passive = _PASSIVE.match(payload)
    if passive is None or bytes(int(part) & 255 for part in passive.groups()[:4]) != packet.source(data):
        return None
    port = _believable(int(passive[5]) * 256 + int(passive[6]))
    if port is not None:
        text = b",".join(str(part).encode() for part in (*outside, port >> 8, port & 255))
        _replace(data, payload_at + passive.start(1), payload_at + passive.end(6), text)
    return port


def _believable(port: int) -> int | None:
    return port if _LOWEST_PORT <= port <= 0xFFFF else None


def _replace(data: bytearray, start: int, end: int, text: bytes) -> None:
    if len(text) != end - start:
        raise NotModelledError("an FTP reply that changes its length, and so the sequence numbers behind it")
    segment = packet.header_length(data)
    old = bytes(data[segment:])
    data[start:end] = text
    at = segment + _CHECKSUM_AT
    (value,) = struct.unpack_from("!H", data, at)
    struct.pack_into("!H", data, at, update(value, delta(old, bytes(data[segment:]))))
