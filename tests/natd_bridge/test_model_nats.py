"""The model NATs: libalias's against what natd did on FreeBSD 14.2, packet by packet; the other against RFC 4787."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.bridge import NatBridge
from natf_bsd.natd_bridge.memory import EndpointIndependentNat, LibaliasNat, MemoryBridge, NatModel, Timeouts
from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE, NETFILTER_STYLE
from natf_bsd.types import Endpoint, Flow, parse_address
from natf_bsd.wire import build, packet
from natf_bsd.wire.packet import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

RECORDED = Path(__file__).with_name("freebsd_14_2_pseudo.jsonl")
G2 = parse_address("203.0.113.1")
ALICE = Endpoint(parse_address("192.168.0.2"), 80)
BOB = Endpoint(parse_address("192.168.0.3"), 80)
EN = Endpoint(parse_address("203.0.113.10"), 40000)
OUTER = Endpoint(G2, 80)

MODELS: list[Callable[[], NatModel]] = [
    lambda: LibaliasNat(G2),
    lambda: LibaliasNat(G2, deny_incoming=False),
    lambda: EndpointIndependentNat(G2),
]
any_model = pytest.mark.parametrize("make", MODELS, ids=["natd -deny_incoming", "natd", "endpoint-independent"])


def recorded(*, deny_incoming: bool) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    return [event for event in events if event["deny_incoming"] is deny_incoming]


def same(found: bytearray, expected: str) -> bool:
    """Equal but for TTL and header checksum: between the recorded wires lies the router's forwarding."""
    wanted = bytes.fromhex(expected)
    return bytes(found[:8]) == wanted[:8] and bytes(found[12:]) == wanted[12:] and found[9] == wanted[9]


@pytest.mark.parametrize("deny_incoming", [True, False])
def test_libalias_translates_as_natd_did(deny_incoming: bool) -> None:
    nat = LibaliasNat(G2, deny_incoming=deny_incoming)
    exact = random = 0
    for event in recorded(deny_incoming=deny_incoming):
        if "stray" in event:
            nat.inbound(bytearray.fromhex(event["stray"]), 0.0)
        if "before" in event:
            assert nat.outbound(bytearray.fromhex(event["before"]), 0.0)
        written = bytearray.fromhex(event["written"])
        wanted = port(event["written"])
        assert nat.outbound(written, 0.0), event["case"]
        if port(event["captured"]) != wanted:
            assert 32768 <= port(written.hex()) != wanted, event["case"]
            random += 1
            continue
        assert same(written, event["captured"]), event["case"]
        exact += 1
        for step, translate in ("inbound", nat.inbound), ("outbound", nat.outbound):
            if step in event:
                sent, seen = event[step]
                data = bytearray.fromhex(sent)
                assert translate(data, 0.0), (event["case"], step)
                assert same(data, seen), (event["case"], step)
    assert exact > 30
    assert random >= (2 if deny_incoming else 4)


def port(data: str) -> int:
    return int(data[40:44], 16)


def udp_out(nat: NatModel, inside: Endpoint = ALICE, remote: Endpoint = EN, now: float = 0.0) -> Endpoint:
    """The outside endpoint a datagram gets."""
    data = build.udp(inside, remote, b"out")
    assert nat.outbound(data, now)
    flow = packet.flow_of(data)
    assert flow is not None
    assert flow.destination == remote
    return flow.source


def udp_in(nat: NatModel, outside: Endpoint, remote: Endpoint = EN, now: float = 0.0) -> Endpoint | None:
    """The inside endpoint a datagram reaches."""
    data = build.udp(remote, outside, b"in")
    if not nat.inbound(data, now):
        return None
    flow = packet.flow_of(data)
    assert flow is not None
    assert flow.source == remote
    return flow.destination


@any_model
def test_a_mapping_leads_back_and_repeating_it_gives_the_same(make: Callable[[], NatModel]) -> None:
    nat = make()
    outside = udp_out(nat)
    assert outside == OUTER
    assert udp_in(nat, outside) == ALICE
    assert udp_out(nat) == outside


@any_model
def test_a_second_host_on_the_same_flow_gets_a_port_of_its_own(make: Callable[[], NatModel]) -> None:
    nat = make()
    first, second = udp_out(nat, ALICE), udp_out(nat, BOB)
    assert first == OUTER
    assert second.port >= 32768
    assert (udp_in(nat, first), udp_in(nat, second)) == (ALICE, BOB)


@any_model
def test_a_udp_mapping_dies_60_s_after_its_last_packet_either_way(make: Callable[[], NatModel]) -> None:
    nat = make()
    udp_out(nat, now=0.0)
    assert udp_in(nat, OUTER, now=60.0) == ALICE
    udp_out(nat, now=120.0)
    assert udp_in(nat, OUTER, now=180.0) == ALICE
    assert udp_in(nat, OUTER, now=240.1) is None


@any_model
def test_packets_for_others_and_fragments_are_not_translated(make: Callable[[], NatModel]) -> None:
    nat = make()
    udp_out(nat)
    for data in (
        build.udp(EN, Endpoint(parse_address("198.51.100.1"), 80)),
        build.icmp_echo(EN.address, G2, reply=False, ident=1, sequence=1, payload=b""),
    ):
        before = bytes(data)
        assert not nat.inbound(data, 0.0)
        assert data == before
    fragment = build.udp(ALICE, EN, bytes(100))
    fragment[7] = 5
    assert not nat.outbound(fragment, 0.0)


@any_model
def test_without_a_free_port_nothing_is_translated(make: Callable[[], NatModel]) -> None:
    nat = make()
    for number in range(40_000):  # the wanted port and, with luck running out, all random ones
        inside = Endpoint(parse_address(f"10.0.{number >> 8}.{number & 255}"), 80)
        data = build.udp(inside, EN)
        if not nat.outbound(data, 0.0):
            assert packet.source(data) == inside.address
            return
    raise AssertionError("32,769 ports served 40,000 hosts")


def test_libalias_mappings_and_filters_go_by_the_remotes_port() -> None:
    nat = LibaliasNat(G2)
    other = Endpoint(EN.address, EN.port + 1)
    assert udp_out(nat) == OUTER
    assert udp_in(nat, OUTER, other) is None
    assert udp_out(nat, BOB, other) == OUTER, "the port is taken towards the first remote only"
    assert (udp_in(nat, OUTER), udp_in(nat, OUTER, other)) == (ALICE, BOB)


def test_a_stray_packet_poisons_libalias_unless_it_denies_incoming() -> None:
    poisoned, denying = LibaliasNat(G2, deny_incoming=False), LibaliasNat(G2)
    for nat in poisoned, denying:
        assert udp_in(nat, OUTER) is None
    assert udp_out(denying) == OUTER
    assert udp_out(poisoned).port >= 32768


def test_an_endpoint_independent_mapping_serves_every_remote() -> None:
    nat = EndpointIndependentNat(G2)
    other = Endpoint(parse_address("198.51.100.7"), 9)
    assert udp_out(nat) == udp_out(nat, remote=other) == OUTER
    assert udp_in(nat, OUTER, other) == ALICE


# FREEBSD.md 4.3, line by line: what is sent, from which side, and how long the mapping then lives.
CONNECTED, INITIAL, CLOSING, DEAD = 86_400, 300, 90, 10


@pytest.mark.parametrize(
    ("flags", "initial", "opened"), [(TCP_SYN, 300, 86_400), (TCP_ACK, 300, 300), (18, 300, 86_400)]
)
def test_tcp_timeouts_follow_the_flags(flags: int, initial: int, opened: int) -> None:
    for steps, expected in (
        ([("out", flags)], initial),
        ([("out", flags), ("in", TCP_SYN)], opened),
        ([("out", flags), ("in", TCP_SYN), ("out", TCP_SYN | TCP_ACK)], CONNECTED),
        ([("out", flags), ("in", TCP_SYN), ("out", 18), ("in", TCP_FIN | TCP_ACK)], CLOSING),
        ([("out", flags), ("in", TCP_SYN), ("out", 18), ("in", 17), ("out", TCP_FIN | TCP_ACK)], DEAD),
        ([("out", flags), ("in", TCP_SYN), ("out", TCP_RST | TCP_ACK)], CLOSING),
    ):
        assert survives(steps, expected), (steps, expected)
        assert not survives(steps, expected + 0.1), (steps, expected)


def survives(steps: list[tuple[str, int]], idle: float) -> bool:
    nat = LibaliasNat(G2)
    for side, flags in steps:
        if side == "out":
            assert nat.outbound(build.tcp(ALICE, EN, flags=flags), 0.0)
        else:
            assert nat.inbound(build.tcp(EN, OUTER, flags=flags), 0.0)
    return nat.inbound(build.tcp(EN, OUTER, flags=TCP_ACK), idle)


def test_a_dead_libalias_link_stays_dead_when_its_ports_are_used_again() -> None:
    nat = LibaliasNat(G2)
    for step, flags in (
        ("out", TCP_SYN),
        ("in", TCP_SYN),
        ("in", TCP_FIN),
        ("out", TCP_FIN),
        ("out", TCP_SYN),
        ("in", TCP_SYN),
    ):
        data = build.tcp(ALICE, EN, flags=flags) if step == "out" else build.tcp(EN, OUTER, flags=flags)
        assert (nat.outbound if step == "out" else nat.inbound)(data, 0.0)
    assert not nat.inbound(build.tcp(EN, OUTER, flags=TCP_ACK), DEAD + 0.1)


@any_model
def test_icmp_errors_are_translated_outside_and_in_the_quote(make: Callable[[], NatModel]) -> None:
    nat = make()
    outside = udp_out(nat)
    request = build.udp(EN, outside, b"in")
    assert nat.inbound(request, 0.0)
    from_alice = build.unreachable_for(request, code=3, source=ALICE.address)
    assert nat.outbound(from_alice, 0.0)
    assert from_alice == build.unreachable_for(build.udp(EN, outside, b"in"), code=3, source=G2)

    answer = build.udp(ALICE, EN, b"out")
    translated = bytearray(answer)
    assert nat.outbound(translated, 0.0)
    from_en = build.unreachable_for(translated, code=3, source=EN.address)
    assert nat.inbound(from_en, 0.0)
    assert from_en == build.unreachable_for(answer, code=3, source=EN.address)


@any_model
def test_icmp_errors_about_no_mapping_are_not_translated(make: Callable[[], NatModel]) -> None:
    nat = make()
    outward = build.unreachable_for(build.udp(EN, ALICE), code=3, source=ALICE.address)
    inward = build.unreachable_for(build.udp(OUTER, EN), code=3, source=EN.address)
    assert not nat.outbound(outward, 0.0)
    assert not nat.inbound(inward, 0.0)


def test_the_bridge_passes_pseudo_packets_through_its_model() -> None:
    now = [0.0]
    bridge: NatBridge = MemoryBridge(LibaliasNat(G2), lambda: now[0])
    assert bridge.style is LIBALIAS_STYLE
    assert list(bridge.captured()) == []
    for cookie, protocol in (1, 6), (2, 17):
        bridge.write(pseudo.build(Flow(protocol, ALICE, EN), cookie, bridge.style))
    assert [pseudo.parse_captured(data) for data in list(bridge.captured())] == [
        pseudo.Captured(cookie, Flow(protocol, OUTER, EN)) for cookie, protocol in ((1, 6), (2, 17))
    ]
    assert list(bridge.captured()) == []
    assert bridge.counters == {"written": 2}
    assert (bridge.lifetime(6), bridge.lifetime(17)) == (86_400, 60)
    bridge.close()


def test_a_pseudo_packet_the_model_cannot_translate_comes_back_as_it_was() -> None:
    class Full(EndpointIndependentNat):
        def outbound(self, data: bytearray, now: float) -> bool:
            return False

    bridge = MemoryBridge(Full(G2, timeouts=Timeouts(udp=30)), lambda: 0.0, style=NETFILTER_STYLE)
    data = pseudo.build(Flow(17, ALICE, EN), 1, LIBALIAS_STYLE)
    bridge.write(data)
    assert list(bridge.captured()) == [data]
    assert bridge.lifetime(17) == 30
    assert bridge.fileno() is None
