"""The pseudo-packet: a forged packet P1:d -> G1:s that makes the NAT create the mapping [3.2 step 4].

It is known again by what no NAT changes (FREEBSD.md 3.1): IP identification, TTL, TCP sequence number, UDP payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from natf_bsd.errors import WireError
from natf_bsd.types import Flow, Protocol
from natf_bsd.wire import build as wire_build
from natf_bsd.wire import packet
from natf_bsd.wire.packet import TCP_ACK, TCP_SYN

# "NF". The capture rule selects by it; a kernel's own packets that may not be fragmented carry 0 (FREEBSD.md 3.1).
PSEUDO_IDENT: Final = 20038
# With this it arrives: should it ever leave the host, the next hop throws it away.
CAPTURED_TTL: Final = 1

_COOKIE: Final = struct.Struct("!I")
_TCP_HEADER: Final = 20
_UDP_HEADER: Final = 8
_IDENT: Final = struct.Struct("!4xH2xB")
_SEGMENT: Final = struct.Struct("!4xIIBB")  # sequence, acknowledgement, header length, flags
_FLAGS: Final = frozenset({TCP_SYN, TCP_ACK, TCP_SYN | TCP_ACK})
_WRONG: Final = 0x5555


@dataclass(frozen=True, slots=True)
class PseudoStyle:
    """What a NAT needs the pseudo-packet to be like.

    `ttl` is the one it is written with; it must be `CAPTURED_TTL` when it comes back. Without `valid_checksum` the
    transport checksum is wrong on purpose, so that no host could take the packet for real.
    """

    tcp_flags: int
    ttl: int
    valid_checksum: bool


# libalias takes a bare ACK and then keeps a half-open attempt for 300 s, after a SYN for a day (FREEBSD.md 4.3). It
# adjusts checksums and never verifies them. Written behind the forwarding step, so the TTL stays.
LIBALIAS_STYLE: Final = PseudoStyle(tcp_flags=TCP_ACK, ttl=1, valid_checksum=False)
# conntrack takes a bare ACK for a connection picked up midway and the real SYN behind it for invalid (FREEBSD.md
# section 10), and it verifies checksums (nf_conntrack_checksum=1). Forwarding takes one from the TTL.
NETFILTER_STYLE: Final = PseudoStyle(tcp_flags=TCP_SYN, ttl=2, valid_checksum=True)


@dataclass(frozen=True, slots=True)
class Captured:
    """A pseudo-packet behind the NAT: `translated` is G2:m -> G1:s, or P1:d -> G1:s if the NAT did nothing."""

    cookie: int
    translated: Flow


def build(flow: Flow, cookie: int, style: PseudoStyle, *, established: bool = False) -> bytes:
    """The pseudo-packet of `flow` (P1:d -> G1:s), carrying 32 bits by which its capture is matched.

    Of an `established` TCP connection it is an ACK for every NAT: conntrack then picks the connection up where it is,
    where behind a SYN it would take the inside host's next packet for invalid.

    ValueError for a protocol other than TCP and UDP.
    """
    if flow.protocol == Protocol.TCP:
        flags = TCP_ACK if established else style.tcp_flags
        data = wire_build.tcp(
            flow.source, flow.destination, flags=flags, sequence=cookie, ttl=style.ttl, ident=PSEUDO_IDENT
        )
    elif flow.protocol == Protocol.UDP:
        data = wire_build.udp(flow.source, flow.destination, _COOKIE.pack(cookie), ttl=style.ttl, ident=PSEUDO_IDENT)
    else:
        raise ValueError(f"no pseudo-packet for protocol {flow.protocol}")
    if not style.valid_checksum:
        _spoil(data, 36 if flow.protocol == Protocol.TCP else 26)
    return bytes(data)


def _spoil(data: bytearray, at: int) -> None:
    """Make the checksum at `at` wrong, but not zero: to UDP that means there is none."""
    (value,) = struct.unpack_from("!H", data, at)
    struct.pack_into("!H", data, at, value ^ _WRONG or value ^ _WRONG >> 1)


def parse_captured(data: bytes | bytearray) -> Captured | None:
    """What a pseudo-packet says after its NAT, None for any other packet. Checksums are not looked at."""
    try:
        packet.check_ipv4(data)
    except WireError:
        return None
    if _IDENT.unpack_from(data) != (PSEUDO_IDENT, CAPTURED_TTL):
        return None
    flow = packet.flow_of(data)
    if flow is None:
        return None
    cookie = _tcp_cookie(data) if flow.protocol == Protocol.TCP else _udp_cookie(data)
    return None if cookie is None else Captured(cookie, flow)


def _tcp_cookie(data: bytes | bytearray) -> int | None:
    at = packet.header_length(data)
    if len(data) != at + _TCP_HEADER:
        return None
    sequence, acknowledgement, _, flags = _SEGMENT.unpack_from(data, at)
    return sequence if acknowledgement == 0 and flags in _FLAGS else None


def _udp_cookie(data: bytes | bytearray) -> int | None:
    at = packet.header_length(data) + _UDP_HEADER
    return int(_COOKIE.unpack_from(data, at)[0]) if len(data) == at + _COOKIE.size else None
