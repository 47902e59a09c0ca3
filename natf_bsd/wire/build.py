"""Whole IPv4 packets of our own making: errors to applications, pseudo-packets, tests. Not on the per-packet path."""

from __future__ import annotations

import struct

from natf_bsd.types import Address, Endpoint, Protocol
from natf_bsd.wire import packet
from natf_bsd.wire.checksum import checksum
from natf_bsd.wire.checksum import transport as transport_checksum
from natf_bsd.wire.icmp import ECHO_REPLY, ECHO_REQUEST, Echo, encode_echo
from natf_bsd.wire.packet import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")
_UDP = struct.Struct("!HHHH")
_DONT_FRAGMENT = 0x4000
_UNREACHABLE = 3
_TIME_EXCEEDED = 11
# RFC 1812 4.3.2.3: an error quotes as much as fits without its datagram getting longer than 576 bytes.
_ERROR_SIZE = 576


def ipv4(
    protocol: int,
    source: Address,
    destination: Address,
    payload: bytes | bytearray,
    *,
    ttl: int = 64,
    ident: int = 0,
    dont_fragment: bool = False,
) -> bytearray:
    """`payload` behind an IPv4 header without options, header checksum included; ValueError over 65,535 bytes."""
    total = _IPV4.size + len(payload)
    if total > 0xFFFF:
        raise ValueError(f"{total} bytes are more than an IPv4 packet holds")
    flags = _DONT_FRAGMENT if dont_fragment else 0
    header = bytearray(_IPV4.pack(0x45, 0, total, ident, flags, ttl, protocol, 0, source, destination))
    struct.pack_into("!H", header, 10, checksum(header))
    return header + payload


def tcp(
    source: Endpoint,
    destination: Endpoint,
    *,
    flags: int,
    sequence: int = 0,
    acknowledgement: int = 0,
    window: int = 65535,
    payload: bytes = b"",
    ttl: int = 64,
    ident: int = 0,
) -> bytearray:
    """An IPv4 packet with one TCP segment without options; `flags` are the TCP_ constants of `wire.packet`."""
    header = _TCP.pack(source.port, destination.port, sequence, acknowledgement, 5 << 4, flags, window, 0, 0)
    segment = bytearray(header + payload)
    addresses = source.address + destination.address
    struct.pack_into("!H", segment, 16, transport_checksum(Protocol.TCP, addresses, segment))
    return ipv4(Protocol.TCP, source.address, destination.address, segment, ttl=ttl, ident=ident)


def udp(
    source: Endpoint,
    destination: Endpoint,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    ident: int = 0,
    checksum: bool = True,
) -> bytearray:
    """An IPv4 packet with one UDP datagram; without `checksum` its field is zero (RFC 768: none)."""
    length = _UDP.size + len(payload)
    if length > 0xFFFF:
        raise ValueError(f"{length} bytes are more than a UDP datagram holds")
    datagram = bytearray(_UDP.pack(source.port, destination.port, length, 0) + payload)
    if checksum:
        addresses = source.address + destination.address
        struct.pack_into("!H", datagram, 6, transport_checksum(Protocol.UDP, addresses, datagram))
    return ipv4(Protocol.UDP, source.address, destination.address, datagram, ttl=ttl, ident=ident)


def icmp_echo(
    source: Address,
    destination: Address,
    *,
    reply: bool,
    ident: int,
    sequence: int,
    payload: bytes,
    ttl: int = 64,
) -> bytearray:
    """An IPv4 packet with one ICMP echo request or reply."""
    echo = Echo(ECHO_REPLY if reply else ECHO_REQUEST, ident, sequence, payload)
    return ipv4(Protocol.ICMP, source, destination, encode_echo(echo), ttl=ttl)


def reset_for(data: bytes | bytearray) -> bytearray | None:
    """The RST that answers TCP packet `data` (RFC 9293 3.10.7.1); None for a RST, or without a whole TCP header."""
    flow = packet.flow_of(data)
    transport = packet.header_length(data) if flow else 0
    if flow is None or flow.protocol != Protocol.TCP or len(data) < transport + _TCP.size:
        return None
    _, _, sequence, acknowledgement, offset, flags, *_ = _TCP.unpack_from(data, transport)
    if flags & TCP_RST:
        return None
    if flags & TCP_ACK:
        return tcp(flow.destination, flow.source, flags=TCP_RST, sequence=acknowledgement, window=0)
    # SEG.LEN counts SYN and FIN besides the payload.
    payload = max(0, len(data) - transport - (offset >> 4) * 4)
    length = payload + bool(flags & TCP_SYN) + bool(flags & TCP_FIN)
    return tcp(
        flow.destination,
        flow.source,
        flags=TCP_RST | TCP_ACK,
        acknowledgement=(sequence + length) & 0xFFFFFFFF,
        window=0,
    )


def unreachable_for(data: bytes | bytearray, *, code: int, source: Address, mtu: int = 0) -> bytearray:
    """ICMP destination unreachable about packet `data`, from `source` to the sender of `data`, quoting all that fits.

    `mtu` goes with code 4, fragmentation needed (RFC 1191 section 4; 0: unknown, the sender guesses).
    Whoever calls sees to RFC 1122 3.2.2: no error about an ICMP error or a fragment that is not the first.
    """
    return _error_for(data, _UNREACHABLE, code, source, mtu)


def time_exceeded_for(data: bytes | bytearray, *, source: Address) -> bytearray:
    """ICMP time exceeded in transit (RFC 792) about packet `data`; else as `unreachable_for`."""
    return _error_for(data, _TIME_EXCEEDED, 0, source, 0)


def _error_for(data: bytes | bytearray, kind: int, code: int, source: Address, rest: int) -> bytearray:
    quote = bytes(data[: _ERROR_SIZE - _IPV4.size - 8])
    value = checksum(struct.pack("!BBHI", kind, code, 0, rest) + quote)
    return ipv4(Protocol.ICMP, source, packet.source(data), struct.pack("!BBHI", kind, code, value, rest) + quote)
