"""Rewriting packets in place, against dpkt and against what a FreeBSD kernel and natd sent."""

from __future__ import annotations

import struct

import dpkt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from natf_bsd.types import Endpoint, Protocol, parse_address
from natf_bsd.wire import build
from natf_bsd.wire.checksum import checksum
from natf_bsd.wire.packet import TCP_ACK, Rewrite

addresses = st.binary(min_size=4, max_size=4)
endpoints = st.builds(Endpoint, addresses, st.integers(0, 0xFFFF))
options = st.integers(0, 10).map(lambda count: bytes([1]) * 4 * count)  # no-operation options


def end(text: str) -> Endpoint:
    address, _, port = text.partition(":")
    return Endpoint(parse_address(address), int(port))


EN = end("203.0.113.10:15918")
VIRTUAL = end("240.0.1.1:80")
MAPPED = end("203.0.113.1:80")


def with_options(data: bytearray, options: bytes) -> bytearray:
    data[20:20] = options
    data[0] += len(options) // 4
    struct.pack_into("!H", data, 2, len(data))
    length = 20 + len(options)
    struct.pack_into("!H", data, 10, 0)
    struct.pack_into("!H", data, 10, checksum(data[:length]))
    return data


def made_by_dpkt(data: bytes | bytearray, source: Endpoint, destination: Endpoint) -> bytes:
    """`data` with other endpoints and all checksums made anew (a UDP checksum of zero too)."""
    ip = dpkt.ip.IP(bytes(data))
    ip.src, ip.dst, ip.sum = source.address, destination.address, 0
    ip.data.sport, ip.data.dport, ip.data.sum = source.port, destination.port, 0
    return bytes(ip)


@given(
    st.booleans(), endpoints, endpoints, endpoints, endpoints, st.sampled_from("sdb"), options, st.binary(max_size=50)
)
def test_rewritten_packet_is_the_one_dpkt_makes(
    is_tcp: bool,
    source: Endpoint,
    destination: Endpoint,
    new_source: Endpoint,
    new_destination: Endpoint,
    ends: str,
    options: bytes,
    payload: bytes,
) -> None:
    data = (
        build.tcp(source, destination, flags=TCP_ACK, sequence=5, payload=payload)
        if is_tcp
        else build.udp(source, destination, payload)
    )
    with_options(data, options)
    to = (new_source if ends in "sb" else source, new_destination if ends in "db" else destination)
    Rewrite(
        source=(source, to[0]) if ends in "sb" else None, destination=(destination, to[1]) if ends in "db" else None
    ).apply(data)
    assert bytes(data) == made_by_dpkt(data, *to)


@given(endpoints, endpoints, endpoints, st.binary(max_size=40))
def test_rewriting_there_and_back_gives_the_same_bytes(
    source: Endpoint, old: Endpoint, new: Endpoint, payload: bytes
) -> None:
    data = build.tcp(source, old, flags=TCP_ACK, payload=payload)
    before = bytes(data)
    Rewrite(destination=(old, new)).apply(data)
    Rewrite(destination=(new, old)).apply(data)
    assert bytes(data) == before


@given(endpoints, endpoints, endpoints, options, st.binary(max_size=40))
def test_udp_without_checksum_stays_without(
    source: Endpoint, old: Endpoint, new: Endpoint, options: bytes, payload: bytes
) -> None:
    data = with_options(build.udp(source, old, payload, checksum=False), options)
    Rewrite(destination=(old, new)).apply(data)
    assert data[26 + len(options) : 28 + len(options)] == b"\0\0"
    assert checksum(data[: 20 + len(options)]) == 0
    assert data[16:20] == new.address


def payload_for_zero_sum(protocol: int, source: Endpoint, destination: Endpoint) -> bytes:
    """Two bytes of payload with which the transport checksum computes to zero."""
    make = build.udp if protocol == Protocol.UDP else lambda a, b, p: build.tcp(a, b, flags=TCP_ACK, payload=p)
    at = 26 if protocol == Protocol.UDP else 36
    return bytes(make(source, destination, b"\0\0")[at : at + 2])


def test_udp_checksum_that_becomes_zero_is_written_as_ffff() -> None:
    payload = payload_for_zero_sum(Protocol.UDP, EN, MAPPED)
    data = build.udp(EN, VIRTUAL, payload)
    assert bytes(data[26:28]) not in (b"\0\0", b"\xff\xff")
    Rewrite(destination=(VIRTUAL, MAPPED)).apply(data)
    assert data[26:28] == b"\xff\xff"
    assert bytes(data) == bytes(build.udp(EN, MAPPED, payload))


def test_udp_checksum_written_as_ffff_is_rewritten_right() -> None:
    payload = payload_for_zero_sum(Protocol.UDP, EN, MAPPED)
    data = build.udp(EN, MAPPED, payload)
    Rewrite(destination=(MAPPED, VIRTUAL)).apply(data)
    assert bytes(data) == bytes(build.udp(EN, VIRTUAL, payload))


def test_tcp_checksum_of_zero_is_a_checksum() -> None:
    payload = payload_for_zero_sum(Protocol.TCP, EN, MAPPED)
    data = build.tcp(EN, MAPPED, flags=TCP_ACK, payload=payload)
    assert data[36:38] == b"\0\0"
    Rewrite(destination=(MAPPED, VIRTUAL)).apply(data)
    assert bytes(data) == bytes(build.tcp(EN, VIRTUAL, flags=TCP_ACK, payload=payload))
    Rewrite(destination=(VIRTUAL, MAPPED)).apply(data)
    assert data[36:38] == b"\0\0"


@given(st.booleans(), endpoints, endpoints, endpoints, st.integers(1, 8))
def test_first_fragment_gets_the_checksum_of_the_whole(
    is_tcp: bool, source: Endpoint, old: Endpoint, new: Endpoint, eighths: int
) -> None:
    payload = bytes(range(64))

    def first_fragment(destination: Endpoint) -> bytearray:
        whole = (
            build.tcp(source, destination, flags=TCP_ACK, payload=payload)
            if is_tcp
            else build.udp(source, destination, payload)
        )
        part = build.ipv4(whole[9], source.address, destination.address, whole[20 : 20 + 8 * eighths])
        part[6] = 0x20
        struct.pack_into("!H", part, 10, 0)
        struct.pack_into("!H", part, 10, checksum(part[:20]))
        return part

    data = first_fragment(old)
    Rewrite(destination=(old, new)).apply(data)
    assert data == first_fragment(new)


@given(endpoints, endpoints, endpoints, st.integers(1, 0xFFFF))
def test_wrong_checksum_stays_wrong(source: Endpoint, old: Endpoint, new: Endpoint, error: int) -> None:
    """A damaged packet must not become a good one on the way through us."""
    data = build.tcp(source, old, flags=TCP_ACK, payload=b"some data")
    (right,) = struct.unpack_from("!H", data, 36)
    assume(right ^ error not in (0xFFFF, right) and (right, right ^ error) != (0xFFFF, 0))
    struct.pack_into("!H", data, 36, right ^ error)
    Rewrite(destination=(old, new)).apply(data)
    assert bytes(data) != made_by_dpkt(data, source, new)


# freebsd-14.2/flows.jsonl: what the EN's program, or natd, read and wrote.
RECORDED = [
    pytest.param(
        "45000045000040003f06c3a6cb007101cb00710a00503e2e4508e86dbf7c056280190403633c00000101080ae72dcfef738127e3"
        "68656c6c6f2066726f6d20616c6963650a",
        {"source": (MAPPED, VIRTUAL)},
        "45000045000040003f060ea7f0000101cb00710a00503e2e4508e86dbf7c056280190403ae3c00000101080ae72dcfef738127e3"
        "68656c6c6f2066726f6d20616c6963650a",
        id="tcp in, EN",
    ),
    pytest.param(
        "450000265aec00003f11a8cecb007101cb00710a138857fe001242206563686f3a68656c6c6f",
        {"source": (end("203.0.113.1:5000"), end("240.0.1.1:5000"))},
        "450000265aec00003f11f3cef0000101cb00710a138857fe00128d206563686f3a68656c6c6f",
        id="udp in, EN",
    ),
    pytest.param(
        "4500003c000040004006c2afcb00710acb0071013e2e0050bf7c04f400000000a002ffff31dd0000020405b401030306"
        "0402080a738127a700000000",
        {"destination": (MAPPED, end("192.168.0.2:80"))},
        "4500003c0000400040063e07cb00710ac0a800023e2e0050bf7c04f400000000a002ffffad340000020405b401030306"
        "0402080a738127a700000000",
        id="tcp in, natd",
    ),
]


@pytest.mark.parametrize(("read", "ends", "written"), RECORDED)
def test_recorded_packets_are_rewritten_as_on_freebsd(
    read: str, ends: dict[str, tuple[Endpoint, Endpoint]], written: str
) -> None:
    data = bytearray.fromhex(read)
    Rewrite(**ends).apply(data)
    assert data.hex() == written


@pytest.mark.parametrize(
    ("read", "port", "written"),
    [
        (
            "450000340000400040060000cb00710af00001013e2e0050bf7c04f54508e7b480100403c3ba00000101080a738127d9e72dcfbd",
            80,
            "45000034000040004006c2b7cb00710acb0071013e2e0050bf7c04f54508e7b48010040378ba00000101080a738127d9e72dcfbd",
        ),
        (
            "45000021547300004011080acb00710af000010157fe1388000d236f68656c6c6f",
            5000,
            "45000021547300004011ae4ccb00710acb00710157fe1388000dd86e68656c6c6f",
        ),
    ],
)
def test_recorded_local_output_gets_the_right_transport_checksum(read: str, port: int, written: str) -> None:
    """FREEBSD.md 1.6: divert(4) hands local output over before its header checksum is made; ip_output does that."""
    data = bytearray.fromhex(read)
    Rewrite(destination=(Endpoint(VIRTUAL.address, port), Endpoint(MAPPED.address, port))).apply(data)
    assert data[:10].hex() == written[:20]
    assert data[12:].hex() == written[24:]
