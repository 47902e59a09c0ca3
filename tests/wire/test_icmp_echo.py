"""The carrier of NAT-f messages: ICMP echo, alone and in a whole packet."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import WireError
from natf_bsd.types import parse_address
from natf_bsd.wire import build
from natf_bsd.wire.checksum import checksum
from natf_bsd.wire.icmp import ECHO_REPLY, ECHO_REQUEST, Echo, decode_echo, decode_echo_packet, encode_echo

EN = parse_address("203.0.113.10")
ROUTER = parse_address("203.0.113.1")
words = st.integers(0, 0xFFFF)
echoes = st.builds(Echo, st.sampled_from([ECHO_REPLY, ECHO_REQUEST]), words, words, st.binary(max_size=80))

# freebsd-14.2/flows.jsonl, "tcp http fetch", router.8701: what the kernel sent out.
RECORDED_REPLY = (
    "4500003a4e4700004001b46fcb007101cb00710a000066304e4100014e4154660102001e6b6597cb8d95d474050ccb0071010050"
    "00000000012c"
)


@given(echoes)
def test_echo_survives_encoding_and_decoding(echo: Echo) -> None:
    assert decode_echo(encode_echo(echo)) == echo


@given(echoes)
def test_echo_survives_a_whole_packet(echo: Echo) -> None:
    data = build.icmp_echo(
        EN, ROUTER, reply=echo.type == ECHO_REPLY, ident=echo.ident, sequence=echo.sequence, payload=echo.data
    )
    assert decode_echo_packet(data) == (EN, ROUTER, echo)
    assert decode_echo_packet(bytes(data) + b"link padding") == (EN, ROUTER, echo)


def test_recorded_reply_in_both_directions() -> None:
    source, destination, echo = decode_echo_packet(bytes.fromhex(RECORDED_REPLY))
    assert (source, destination) == (ROUTER, EN)
    assert (echo.type, echo.ident, echo.sequence, echo.data[:4]) == (ECHO_REPLY, 0x4E41, 1, b"NATf")
    assert encode_echo(echo).hex() == RECORDED_REPLY[40:]


def with_checksum(icmp: bytes) -> bytes:
    message = bytearray(icmp)
    struct.pack_into("!H", message, 2, 0)
    struct.pack_into("!H", message, 2, checksum(message))
    return bytes(message)


@pytest.mark.parametrize(("type_", "code"), [(3, 1), (5, 0), (11, 0), (13, 0), (8, 1), (0, 255)])
def test_other_icmp_is_refused(type_: int, code: int) -> None:
    with pytest.raises(WireError, match=f"type {type_} code {code} is not an echo"):
        decode_echo(with_checksum(bytes([type_, code]) + bytes(20)))


def test_every_flipped_bit_is_refused() -> None:
    whole = encode_echo(Echo(ECHO_REQUEST, 1, 2, b"NATf data"))
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode_echo(damaged)


def test_short_messages_are_refused() -> None:
    for size in range(8):
        with pytest.raises(WireError, match="less than an ICMP echo header"):
            decode_echo(bytes(size))


def echo_packet() -> bytearray:
    return build.icmp_echo(EN, ROUTER, reply=False, ident=1, sequence=2, payload=bytes(20))


@pytest.mark.parametrize(("flags", "offset"), [(0x20, 0), (0, 1), (0x20, 9)])
def test_fragments_are_refused(flags: int, offset: int) -> None:
    data = echo_packet()
    data[6], data[7] = flags, offset
    with pytest.raises(WireError, match="fragment"):
        decode_echo_packet(data)


def test_dont_fragment_is_no_fragment() -> None:
    data = echo_packet()
    data[6] = 0x40
    assert decode_echo_packet(data)[2].ident == 1


def test_other_protocols_are_refused() -> None:
    data = echo_packet()
    data[9] = 17
    with pytest.raises(WireError, match="protocol 17 is not ICMP"):
        decode_echo_packet(data)


def test_every_cut_packet_is_refused() -> None:
    data = echo_packet()
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode_echo_packet(data[:size])


def test_header_options_are_skipped() -> None:
    data = echo_packet()
    data[20:20] = bytes(8)
    data[0] += 2
    data[3] += 8
    assert decode_echo_packet(data)[2] == Echo(ECHO_REQUEST, 1, 2, bytes(20))


@given(st.binary(max_size=80))
def test_any_bytes_give_an_echo_or_a_wire_error(data: bytes) -> None:
    for decode in (decode_echo, decode_echo_packet):
        try:
            decode(data)
        except WireError:
            continue
