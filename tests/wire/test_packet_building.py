"""Packets of our own making, read back with dpkt."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.types import Endpoint, Protocol, parse_address
from natf_bsd.wire import build
from natf_bsd.wire.checksum import checksum
from natf_bsd.wire.packet import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

EN = Endpoint(parse_address("203.0.113.10"), 15918)
ALICE = Endpoint(parse_address("240.0.1.1"), 80)
endpoints = st.builds(Endpoint, st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFF))


def remade(data: bytearray) -> bytes:
    """`data` as dpkt makes it from the parsed fields, with every checksum anew."""
    ip = dpkt.ip.IP(bytes(data))
    ip.sum = ip.data.sum = 0
    return bytes(ip)


@given(endpoints, endpoints, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=60))
def test_tcp_packet_is_the_one_dpkt_makes(
    source: Endpoint, destination: Endpoint, flags: int, sequence: int, payload: bytes
) -> None:
    data = build.tcp(
        source,
        destination,
        flags=flags,
        sequence=sequence,
        acknowledgement=3,
        window=9,
        payload=payload,
        ttl=1,
        ident=7,
    )
    ip = dpkt.ip.IP(bytes(data))
    assert remade(data) == bytes(data)
    assert (ip.src, ip.dst, ip.ttl, ip.id) == (source.address, destination.address, 1, 7)
    assert (ip.data.sport, ip.data.dport) == (source.port, destination.port)
    assert (ip.data.seq, ip.data.ack, ip.data.win, ip.data.flags) == (sequence, 3, 9, flags)
    assert ip.data.data == payload


@given(endpoints, endpoints, st.binary(max_size=60))
def test_udp_packet_is_the_one_dpkt_makes(source: Endpoint, destination: Endpoint, payload: bytes) -> None:
    data = build.udp(source, destination, payload, ttl=9, ident=0x4E46)
    ip = dpkt.ip.IP(bytes(data))
    assert remade(data) == bytes(data)
    assert (ip.ttl, ip.id, ip.data.ulen, ip.data.data) == (9, 0x4E46, 8 + len(payload), payload)


def test_udp_checksum_can_be_left_out() -> None:
    assert build.udp(EN, ALICE, b"data", checksum=False)[26:28] == b"\0\0"
    assert build.udp(EN, ALICE, b"data")[26:28] != b"\0\0"


def test_pseudo_packet_of_the_recordings() -> None:
    """freebsd-14.2/flows.jsonl, "tcp http fetch", router.8702: a bare ACK with a cookie as its sequence number."""
    alice = Endpoint(parse_address("192.168.0.2"), 80)
    made = build.tcp(alice, EN, flags=TCP_ACK, sequence=0x4E415466, ttl=1, ident=20038)
    recorded = "450000284e46000001066ed5c0a80002cb00710a00503e2e4e415466000000005010ffffd1f90000"
    # The program that was recorded wrote a wrong TCP checksum on purpose (FREEBSD.md 4.3).
    assert made[:36].hex() == recorded[:72]


def test_dont_fragment_is_set_on_request() -> None:
    assert build.ipv4(Protocol.UDP, EN.address, ALICE.address, b"")[6:8] == b"\0\0"
    assert build.ipv4(Protocol.UDP, EN.address, ALICE.address, b"", dont_fragment=True)[6:8] == b"\x40\0"


def test_packets_over_the_length_field_are_refused() -> None:
    assert len(build.udp(EN, ALICE, bytes(65507))) == 65535
    with pytest.raises(ValueError, match="65536 bytes"):
        build.udp(EN, ALICE, bytes(65508))
    with pytest.raises(ValueError, match="65536 bytes"):
        build.udp(EN, ALICE, bytes(65528))


@pytest.mark.parametrize(("reply", "type_"), [(False, 8), (True, 0)])
def test_echo_packet(reply: bool, type_: int) -> None:
    data = build.icmp_echo(EN.address, ALICE.address, reply=reply, ident=0x4E41, sequence=2, payload=b"abc", ttl=3)
    ip = dpkt.ip.IP(bytes(data))
    assert remade(data) == bytes(data)
    assert (ip.src, ip.dst, ip.ttl, ip.p) == (EN.address, ALICE.address, 3, 1)
    assert (ip.data.type, ip.data.code, ip.data.data.id, ip.data.data.seq) == (type_, 0, 0x4E41, 2)
    assert ip.data.data.data == b"abc"


def reset(data: bytearray) -> dpkt.tcp.TCP:
    answer = build.reset_for(data)
    assert answer is not None
    ip = dpkt.ip.IP(bytes(answer))
    assert (ip.src, ip.dst, ip.data.sport, ip.data.dport) == (ALICE.address, EN.address, ALICE.port, EN.port)
    assert remade(answer) == bytes(answer)
    return ip.data


@pytest.mark.parametrize(
    ("flags", "payload", "sequence", "acknowledged"),
    [
        (TCP_SYN, b"", 1000, 1001),
        (TCP_SYN, b"fast open", 1000, 1010),
        (TCP_FIN, b"bye", 1000, 1004),
        (0, b"data", 1000, 1004),
        (TCP_SYN, b"", 0xFFFFFFFF, 0),
    ],
)
def test_reset_of_a_segment_without_ack_acknowledges_all_of_it(
    flags: int, payload: bytes, sequence: int, acknowledged: int
) -> None:
    answer = reset(build.tcp(EN, ALICE, flags=flags, sequence=sequence, payload=payload))
    assert (answer.flags, answer.seq, answer.ack, answer.win) == (TCP_RST | TCP_ACK, 0, acknowledged, 0)


def test_reset_of_a_segment_with_ack_takes_its_sequence_from_there() -> None:
    answer = reset(build.tcp(EN, ALICE, flags=TCP_ACK, sequence=5, acknowledgement=77, payload=b"data"))
    assert (answer.flags, answer.seq, answer.ack, answer.win) == (TCP_RST, 77, 0, 0)


def test_tcp_options_are_no_payload_of_the_reset_segment() -> None:
    syn = bytearray.fromhex(
        "4500003c0000400040060000cb00710af00001013e2e0050bf7c04f400000000a002ffff7cdd0000020405b401030306"
        "0402080a738127a700000000"
    )
    assert reset(syn).ack == 0xBF7C04F5


def test_nothing_answers_a_reset_or_half_a_header_or_udp() -> None:
    assert build.reset_for(build.tcp(EN, ALICE, flags=TCP_RST)) is None
    assert build.reset_for(build.tcp(EN, ALICE, flags=TCP_RST | TCP_ACK)) is None
    assert build.reset_for(build.tcp(EN, ALICE, flags=TCP_SYN)[:39]) is None
    assert build.reset_for(build.udp(EN, ALICE, bytes(40))) is None


@pytest.mark.parametrize(("payload", "size"), [(b"", 56), (bytes(520), 576), (bytes(521), 576), (bytes(4000), 576)])
def test_unreachable_quotes_what_fits_in_576_bytes(payload: bytes, size: int) -> None:
    about = build.udp(EN, ALICE, payload)
    data = build.unreachable_for(about, code=13, source=ALICE.address)
    ip = dpkt.ip.IP(bytes(data))
    assert (len(data), ip.len) == (size, size)
    assert (ip.src, ip.dst, ip.data.type, ip.data.code) == (ALICE.address, EN.address, 3, 13)
    assert checksum(data[20:]) == checksum(data[:20]) == 0
    assert data[28:] == about[: size - 28]


def test_time_exceeded_is_the_same_but_for_its_type() -> None:
    about = build.udp(EN, ALICE, bytes(20))
    data = build.time_exceeded_for(about, source=ALICE.address)
    ip = dpkt.ip.IP(bytes(data))
    assert (ip.src, ip.dst, ip.data.type, ip.data.code) == (ALICE.address, EN.address, 11, 0)
    assert checksum(data[20:]) == checksum(data[:20]) == 0
    assert data[28:] == about
