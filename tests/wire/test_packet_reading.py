"""Reading IPv4 packets: keys of flows, header checks, TCP fields."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import WireError
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import build, packet

EN = Endpoint(parse_address("203.0.113.10"), 0x3E2E)
ALICE = Endpoint(parse_address("240.0.1.1"), 80)

protocols = st.sampled_from([Protocol.TCP, Protocol.UDP])
endpoints = st.builds(Endpoint, st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFF))


def packet_of(protocol: int, source: Endpoint, destination: Endpoint, options: bytes = b"") -> bytearray:
    """A TCP or UDP packet with IPv4 options (a multiple of 4 bytes); the header checksum is not looked at here."""
    make = build.udp if protocol == Protocol.UDP else lambda a, b: build.tcp(a, b, flags=packet.TCP_SYN)
    data = make(source, destination)
    data[20:20] = options
    data[0] += len(options) // 4
    struct.pack_into("!H", data, 2, len(data))
    return data


@given(protocols, endpoints, endpoints, st.integers(0, 10).map(lambda count: bytes([1]) * 4 * count))
def test_flow_and_key_of_a_packet_are_those_of_its_endpoints(
    protocol: Protocol, source: Endpoint, destination: Endpoint, options: bytes
) -> None:
    data = packet_of(protocol, source, destination, options)
    flow = Flow(protocol, source, destination)
    assert packet.flow_of(data) == flow
    assert packet.flow_key(data) == flow.key
    assert packet.flow_key(bytes(data)) == flow.key
    assert packet.header_length(data) == 20 + len(options)
    assert (packet.source(data), packet.destination(data)) == (source.address, destination.address)
    assert packet.protocol(data) == protocol


def test_key_of_a_recorded_packet() -> None:
    """freebsd-14.2/flows.jsonl, "udp exchange", en.8711."""
    data = bytes.fromhex("45000021547300004011080acb00710af000010157fe1388000d236f68656c6c6f")
    assert packet.flow_key(data) == bytes.fromhex("cb00710af000010157fe138811")
    assert str(packet.flow_of(data)) == "udp 203.0.113.10:22526 > 240.0.1.1:5000"


def test_first_fragment_has_a_key_and_later_ones_have_none() -> None:
    data = packet_of(Protocol.UDP, EN, ALICE)
    data[6] = 0x20  # more fragments, offset 0
    assert packet.flow_key(data) == Flow(Protocol.UDP, EN, ALICE).key
    for flags, offset in [(0x20, 1), (0x00, 185), (0x1F, 0)]:
        data[6], data[7] = flags, offset
        assert packet.flow_key(data) is None


def test_dont_fragment_does_not_make_a_fragment() -> None:
    data = packet_of(Protocol.TCP, EN, ALICE)
    data[6] = 0x40
    assert packet.flow_key(data) == Flow(Protocol.TCP, EN, ALICE).key


@pytest.mark.parametrize("protocol", [0, Protocol.ICMP, 41, 132, 255])
def test_other_protocols_have_no_key(protocol: int) -> None:
    data = packet_of(Protocol.UDP, EN, ALICE)
    data[9] = protocol
    assert packet.flow_key(data) is None
    assert packet.flow_of(data) is None


@pytest.mark.parametrize("options", [b"", bytes(8)])
def test_packet_that_ends_before_its_ports_has_no_key(options: bytes) -> None:
    data = packet_of(Protocol.TCP, EN, ALICE, options)
    ports_end = 24 + len(options)
    assert packet.flow_key(data[:ports_end]) is not None
    assert all(packet.flow_key(data[:size]) is None for size in range(ports_end))


@pytest.mark.parametrize("first", [0x00, 0x44, 0x55, 0x65, 0xF5])
def test_no_key_without_a_real_ipv4_header(first: int) -> None:
    data = packet_of(Protocol.TCP, EN, ALICE)
    data[0] = first
    assert packet.flow_key(data) is None


@given(st.binary(max_size=100))
def test_any_bytes_give_a_key_or_none(data: bytes) -> None:
    key = packet.flow_key(data)
    assert key is None or len(key) == 13


def test_check_accepts_a_packet_with_bytes_behind_it() -> None:
    packet.check_ipv4(packet_of(Protocol.UDP, EN, ALICE, bytes(40)) + b"link padding")
    packet.check_ipv4(build.ipv4(Protocol.UDP, EN.address, ALICE.address, b""))


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 0x65, "first byte 0x65"),
        (0, 0x44, "first byte 0x44"),
        (0, 0x4F, "total length 28 with a header of 60"),
        (3, 19, "total length 19"),
        (3, 29, "total length 29 with a header of 20 in 28 bytes"),
    ],
)
def test_check_refuses_impossible_lengths(at: int, value: int, text: str) -> None:
    data = packet_of(Protocol.UDP, EN, ALICE)
    data[at] = value
    with pytest.raises(WireError, match=text):
        packet.check_ipv4(data)


def test_check_refuses_every_cut_packet() -> None:
    data = packet_of(Protocol.TCP, EN, ALICE)
    for size in range(len(data)):
        with pytest.raises(WireError):
            packet.check_ipv4(data[:size])


def test_tcp_fields_of_a_packet_with_options() -> None:
    data = build.tcp(EN, ALICE, flags=packet.TCP_SYN | packet.TCP_ACK, sequence=0xBF7C04F4)
    data[20:20] = bytes(4)
    data[0] += 1
    assert packet.tcp_flags(data) == packet.TCP_SYN | packet.TCP_ACK
    assert packet.tcp_sequence(data) == 0xBF7C04F4


def test_tcp_fields_that_a_tiny_fragment_lacks_are_zero() -> None:
    data = build.tcp(EN, ALICE, flags=packet.TCP_RST, sequence=0x07070707)
    assert (packet.tcp_flags(data[:34]), packet.tcp_sequence(data[:28])) == (packet.TCP_RST, 0x07070707)
    assert (packet.tcp_flags(data[:33]), packet.tcp_sequence(data[:27])) == (0, 0)


def test_only_tcp_has_tcp_flags():
    data = build.udp(Endpoint(bytes((192, 0, 2, 1)), 1), Endpoint(bytes((192, 0, 2, 2)), 2), b"\xff" * 20)
    assert packet.tcp_flags(data) == 0
