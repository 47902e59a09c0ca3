"""The pseudo-packet and its capture, against what FreeBSD 14.2 wrote and read."""

from __future__ import annotations

import json
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE, NETFILTER_STYLE, PseudoStyle
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import build
from natf_bsd.wire.packet import Rewrite

RECORDED = Path(__file__).with_name("freebsd_14_2_pseudo.jsonl")

INSIDE = Endpoint(parse_address("192.168.0.2"), 80)
OUTSIDE = Endpoint(parse_address("203.0.113.1"), 8080)
REMOTE = Endpoint(parse_address("203.0.113.10"), 40000)

endpoints = st.builds(Endpoint, st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFF))
flows = st.builds(Flow, st.sampled_from([6, 17]), endpoints, endpoints)
cookies = st.integers(0, 0xFFFFFFFF)
# As the NAT hands it on, whatever it was written with.
CAPTURED = [LIBALIAS_STYLE, PseudoStyle(NETFILTER_STYLE.tcp_flags, ttl=1, valid_checksum=True)]


def checksums_hold(data: bytes) -> bool:
    whole = dpkt.ip.IP(data)
    found = whole.data.sum
    whole.data.sum = whole.sum = 0
    computed = dpkt.ip.IP(bytes(whole))
    return bool(found == computed.data.sum)


@pytest.mark.parametrize("style", CAPTURED)
@given(flow=flows, cookie=cookies)
def test_what_is_built_is_known_again_with_its_cookie(style: PseudoStyle, flow: Flow, cookie: int) -> None:
    data = pseudo.build(flow, cookie, style)
    assert pseudo.parse_captured(data) == pseudo.Captured(cookie, flow)


@given(flow=flows, cookie=cookies)
def test_checksums_are_right_for_netfilter_and_wrong_for_libalias(flow: Flow, cookie: int) -> None:
    assert checksums_hold(pseudo.build(flow, cookie, NETFILTER_STYLE))
    spoiled = pseudo.build(flow, cookie, LIBALIAS_STYLE)
    assert not checksums_hold(spoiled)
    assert flow.protocol == Protocol.TCP or spoiled[26:28] != b"\0\0", "to UDP zero would mean no checksum"


@pytest.mark.parametrize(
    ("protocol", "style", "expected"),
    [
        (6, NETFILTER_STYLE, "450000284e46000002066dd5c0a80002cb00710a00509c404e415466000000005002ffff73f50000"),
        (6, LIBALIAS_STYLE, "450000284e46000001066ed5c0a80002cb00710a00509c404e415466000000005010ffff26b20000"),
        (17, NETFILTER_STYLE, "450000204e46000002116dd2c0a80002cb00710a00509c40000cc3e84e415466"),
    ],
)
def test_golden_packets(protocol: int, style: PseudoStyle, expected: str) -> None:
    assert pseudo.build(Flow(protocol, INSIDE, REMOTE), 0x4E415466, style).hex() == expected


def test_other_protocols_have_no_pseudo_packet() -> None:
    with pytest.raises(ValueError, match="protocol 1"):
        pseudo.build(Flow(1, INSIDE, REMOTE), 0, NETFILTER_STYLE)


def recorded() -> list[dict[str, str]]:
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


def test_what_a_freebsd_kernel_and_natd_gave_back_is_read() -> None:
    for event in recorded():
        written = pseudo.parse_captured(bytes.fromhex(event["written"]))
        captured = pseudo.parse_captured(bytes.fromhex(event["captured"]))
        if captured is None:
            # Flags other than SYN and ACK: pseudo-packets that were tried and are not ours.
            assert "port free" in event["case"], event["case"]
            continue
        assert written is not None
        assert written.cookie == captured.cookie in (0x12345678, 0xC00C1E01)
        assert written.translated.destination == captured.translated.destination
        assert captured.translated.source.address == OUTSIDE.address


def test_packets_natd_was_really_tried_with_are_built_byte_for_byte() -> None:
    built = 0
    for event in recorded():
        written = pseudo.parse_captured(bytes.fromhex(event["written"]))
        if written is None or "checksum" in event["case"] or "dscp" in event["case"]:
            continue
        tcp = written.translated.protocol == Protocol.TCP
        flags = bytes.fromhex(event["written"])[33] if tcp else 0
        style = PseudoStyle(flags, ttl=1, valid_checksum=True)
        assert pseudo.build(written.translated, written.cookie, style).hex() == event["written"], event["case"]
        built += 1
    assert built > 60


def test_an_untranslated_capture_shows_the_inside_source() -> None:
    data = pseudo.build(Flow(6, INSIDE, REMOTE), 7, LIBALIAS_STYLE)
    captured = pseudo.parse_captured(data)
    assert captured is not None
    assert captured.translated.source == INSIDE


def captured_packet(protocol: int) -> bytearray:
    data = bytearray(pseudo.build(Flow(protocol, INSIDE, REMOTE), 7, CAPTURED[1]))
    Rewrite(source=(INSIDE, OUTSIDE)).apply(data)
    return data


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0x65), (4, 0x4F), (5, 0x47), (8, 2), (8, 0), (7, 1), (9, 1), (3, 60)],
    ids=["version", "ident", "ident low", "ttl 2", "ttl 0", "fragment", "protocol", "length"],
)
def test_a_packet_that_differs_in_one_mark_is_not_ours(protocol: int, at: int, value: int) -> None:
    data = captured_packet(protocol)
    assert pseudo.parse_captured(data) is not None
    data[at] = value
    assert pseudo.parse_captured(data) is None


@pytest.mark.parametrize(
    "data",
    [
        build.tcp(INSIDE, REMOTE, flags=2, payload=b"x", ttl=1, ident=pseudo.PSEUDO_IDENT),
        build.tcp(INSIDE, REMOTE, flags=2, acknowledgement=1, ttl=1, ident=pseudo.PSEUDO_IDENT),
        build.tcp(INSIDE, REMOTE, flags=4, ttl=1, ident=pseudo.PSEUDO_IDENT),
        build.udp(INSIDE, REMOTE, b"12345", ttl=1, ident=pseudo.PSEUDO_IDENT),
        build.udp(INSIDE, REMOTE, b"", ttl=1, ident=pseudo.PSEUDO_IDENT),
    ],
    ids=["tcp data", "tcp acknowledgement", "tcp reset", "long udp", "empty udp"],
)
def test_real_traffic_that_bears_the_marks_by_chance_is_not_ours(data: bytearray) -> None:
    assert pseudo.parse_captured(data) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    assert pseudo.parse_captured(data) is None


@given(st.sampled_from([6, 17]), st.integers(0, 39), st.binary(max_size=3))
def test_cut_and_damaged_packets_are_read_without_an_error(protocol: int, at: int, junk: bytes) -> None:
    data = captured_packet(protocol)
    pseudo.parse_captured(data[:at] + junk + data[at + len(junk) :])
    assert pseudo.parse_captured(data[:at]) is None or at >= len(data)
