"""ICMP echo messages (RFC 792), the carrier of NAT-f messages."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from natf_bsd.errors import WireError
from natf_bsd.types import Address, Protocol
from natf_bsd.wire import packet
from natf_bsd.wire.checksum import checksum, ones_sum

ECHO_REQUEST = 8
ECHO_REPLY = 0

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_OFFSET_OR_MORE = 0x3FFF


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request or reply; a reply mirrors identifier, sequence and data of its request."""

    type: int
    ident: int
    sequence: int
    data: bytes


def encode_echo(echo: Echo) -> bytes:
    """The ICMP message with its checksum, from the type byte on."""
    blank = _HEADER.pack(echo.type, 0, 0, echo.ident, echo.sequence) + echo.data
    return _HEADER.pack(echo.type, 0, checksum(blank), echo.ident, echo.sequence) + echo.data


def decode_echo(icmp: bytes | bytearray) -> Echo:
    """The echo in an ICMP message; WireError when it is none, too short, or its checksum is wrong."""
    if len(icmp) < _HEADER.size:
        raise WireError(f"{len(icmp)} bytes are less than an ICMP echo header")
    number, code, _, ident, sequence = _HEADER.unpack_from(icmp)
    if number not in (ECHO_REQUEST, ECHO_REPLY) or code != 0:
        raise WireError(f"ICMP type {number} code {code} is not an echo")
    if ones_sum(icmp) != 0xFFFF:
        raise WireError("wrong ICMP checksum")
    return Echo(number, ident, sequence, bytes(icmp[_HEADER.size :]))


def decode_echo_packet(data: bytes | bytearray) -> tuple[Address, Address, Echo]:
    """Source, destination and echo of a whole IPv4 packet; WireError when it is a fragment or no echo."""
    packet.check_ipv4(data)
    if packet.protocol(data) != Protocol.ICMP:
        raise WireError(f"IP protocol {packet.protocol(data)} is not ICMP")
    total, fragment = struct.unpack_from("!2xH2xH", data)
    if fragment & _OFFSET_OR_MORE:
        raise WireError("fragment of an ICMP message")
    return packet.source(data), packet.destination(data), decode_echo(data[packet.header_length(data) : total])
