"""The stories of issue 2 over a good wire: each program gets its answer or its error within the documented time."""

from __future__ import annotations

import itertools

import pytest

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.keys import Key
from natf_bsd.lab.fabric import ALICE, BOB, EN, PLAIN, ROUTER, SILENT
from natf_bsd.lab.link import Link
from natf_bsd.natd_bridge.memory import EndpointIndependentNat, LibaliasNat
from natf_bsd.types import Protocol, parse_address
from natf_bsd.wire import icmp, packet

DOMAINS = ("home.example.net", "plain.example.net", "silent.example.net")
NATS = [LibaliasNat, EndpointIndependentNat]
KEY = Key(b"keyident", b"k" * 32)
SOON = 0.05
"""Some round trips of the wire: "at once" to a person."""


def echoes(world, kind: int) -> list[bytes]:
    """Echo requests or replies on the wire."""
    return [
        data
        for _, data in world.fabric.wire_log
        if packet.protocol(data) == Protocol.ICMP and data[packet.header_length(data)] == kind
    ]


@pytest.mark.parametrize("nat", NATS)
@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_one_flow_costs_one_request_one_reply_then_its_packet(make_world, nat, udp: bool) -> None:
    world = make_world(nat=nat(ROUTER))
    program = world.program("alice", world.learn(), udp=udp)
    world.run(1.0)
    assert program.outcome == "answered"
    assert program.outcome_after <= SOON
    kinds = [packet.protocol(data) for _, data in world.fabric.wire_log]
    protocol = Protocol.UDP if udp else Protocol.TCP
    assert kinds == [Protocol.ICMP, Protocol.ICMP, protocol, protocol]
    assert (len(echoes(world, icmp.ECHO_REQUEST)), len(echoes(world, icmp.ECHO_REPLY))) == (1, 1)
    assert [host.name for host in world.fabric.inside.values() if host.received] == ["alice"]


@pytest.mark.parametrize("nat", NATS)
def test_two_hundred_flows_at_once_each_reach_their_own_host(make_world, nat) -> None:
    world = make_world(nat=nat(ROUTER), router=RouterConfig(cookie_rate=1000))
    virtual = {host: world.learn(host) for host in ("alice", "bob")}
    programs = [
        world.program(host, virtual[host], udp=udp)
        for _, host, udp in itertools.product(range(50), ("alice", "bob"), (False, True))
    ]
    world.run(0.5)
    assert len(programs) == 200
    assert {program.outcome for program in programs} == {"answered"}
    assert len(echoes(world, icmp.ECHO_REQUEST)) == len(echoes(world, icmp.ECHO_REPLY)) == 200
    assert len(world.fabric.inside[ALICE].received) == len(world.fabric.inside[BOB].received) == 100
    for program in programs:
        if program.flow.protocol == Protocol.UDP:
            assert program.answers == [program.host.encode() + b": hello"]
    assert world.fabric.en.counters["request.retransmitted"] == 0


def test_two_hundred_flows_at_once_under_load_prove_their_address_first(world) -> None:
    """Above the router's usual rate of 200 a second it asks for cookies; nobody is lost by it."""
    virtual = world.learn()
    programs = [world.program("alice", virtual, udp=number % 2 == 0) for number in range(400)]
    world.run(1.0)
    assert {program.outcome for program in programs} == {"answered"}
    assert world.fabric.router.counters["request.answered.challenge"] >= 200
    assert world.fabric.en.counters["control.used.challenge"] >= 200


def test_the_router_without_our_daemon_is_reached_itself(world) -> None:
    world.fabric.router_up = False
    world.fabric.router_refuses = True
    program = world.program("alice", world.learn())
    world.run(1.0)
    assert program.outcome == "refused"
    assert program.outcome_after <= SOON
    assert [entry.direct for entry in world.fabric.en.vat] == [True]
    assert not world.fabric.inside[ALICE].received


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_a_router_whose_daemon_went_away_is_unreachable_within_four_seconds(world, udp: bool) -> None:
    virtual = world.learn()
    first = world.program("alice", virtual)
    world.run(1.0)
    world.fabric.router_up = False
    second = world.program("alice", virtual, udp=udp)
    world.run(5.0)
    assert (first.outcome, second.outcome) == ("answered", "unreachable")
    assert second.outcome_after <= 4.05
    assert world.fabric.en.counters["control.ignored.mirror_of_peer"] == 8


def test_a_router_whose_daemon_comes_back_in_time_is_reached(world) -> None:
    virtual = world.learn()
    world.program("alice", virtual)
    world.run(1.0)
    world.fabric.router_up = False
    program = world.program("alice", virtual)
    world.run(0.2)
    world.fabric.router_up = True
    world.run(5.0)
    assert program.outcome == "answered"


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_with_icmp_filtered_a_program_is_told_within_four_seconds(world, udp: bool) -> None:
    world.fabric.router_pings = False
    program = world.program("alice", world.learn(), udp=udp)
    world.run(5.0)
    assert program.outcome == "unreachable"
    assert 3.9 <= program.outcome_after <= 4.05
    assert world.fabric.lost["router: ICMP filtered"] == 5


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_a_plain_host_is_reached_by_the_fallback(world, udp: bool) -> None:
    program = world.program("plain", world.learn("www", "plain.example.net", PLAIN), udp=udp)
    world.run(1.0)
    assert program.outcome == "answered"
    assert program.outcome_after <= SOON


def test_a_plain_hosts_closed_port_refuses(world) -> None:
    world.fabric.outside[PLAIN]._accepts = (443,)
    program = world.program("plain", world.learn("www", "plain.example.net", PLAIN))
    datagram = world.program("plain", world.learn("www", "plain.example.net", PLAIN), udp=True)
    world.run(1.0)
    assert (program.outcome, datagram.outcome) == ("refused", "refused")


@pytest.mark.parametrize(("on_silence", "outcome"), [("unreachable", "unreachable"), ("direct", "answered")])
@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_a_silent_plain_host_is_treated_as_configured(make_world, on_silence: str, outcome: str, udp: bool) -> None:
    world = make_world(en=EnConfig(DOMAINS, on_silence=on_silence))
    program = world.program("silent", world.learn("www", "silent.example.net", SILENT), udp=udp)
    world.run(5.0)
    assert program.outcome == outcome
    assert program.outcome_after <= 4.1


@pytest.mark.parametrize("host", ["eve", "mallory"])
@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_denied_and_unknown_hosts_refuse_at_once(world, host: str, udp: bool) -> None:
    """An unknown name has its V1, as the home domain's wildcard answers for it; only the router knows."""
    virtual = world.learn(host)
    assert virtual[0] == 240
    program = world.program(host, virtual, udp=udp)
    world.run(1.0)
    assert program.outcome == "refused"
    assert program.outcome_after <= SOON
    assert not any(inside.received for inside in world.fabric.inside.values())


def test_a_virtual_address_without_a_name_is_unreachable_at_once(world) -> None:
    program = world.program("nobody", parse_address("240.77.1.2"))
    world.run(0.1)
    assert program.outcome == "unreachable"
    assert world.fabric.wire_log == []


def test_a_closed_port_inside_refuses(world) -> None:
    world.fabric.inside[ALICE]._accepts = (443,)
    virtual = world.learn()
    programs = [world.program("alice", virtual, udp=udp) for udp in (False, True)]
    world.run(1.0)
    assert [program.outcome for program in programs] == ["refused", "refused"]


def test_with_a_key_on_both_sides_all_is_as_without(make_world) -> None:
    world = make_world(
        en=EnConfig(DOMAINS, keys={"home.example.net": KEY}), router=RouterConfig(keys=(KEY,), require_key=True)
    )
    answered = world.program("alice", world.learn())
    denied = world.program("eve", world.learn("eve"))
    world.run(1.0)
    assert (answered.outcome, denied.outcome) == ("answered", "refused")


def test_without_the_key_a_router_that_wants_one_refuses(make_world) -> None:
    world = make_world(router=RouterConfig(keys=(KEY,), require_key=True))
    program = world.program("alice", world.learn())
    world.run(1.0)
    assert program.outcome == "refused"
    assert program.outcome_after <= SOON


def test_with_the_wrong_key_a_program_is_told_within_four_seconds(make_world) -> None:
    """The router can't sign its "bad key", and the external node believes nothing unsigned."""
    wrong = Key(KEY.ident, b"w" * 32)
    world = make_world(en=EnConfig(DOMAINS, keys={"home.example.net": wrong}), router=RouterConfig(keys=(KEY,)))
    program = world.program("alice", world.learn())
    world.run(5.0)
    assert program.outcome == "unreachable"
    assert program.outcome_after <= 4.05


def test_clocks_an_hour_apart_are_told_within_four_seconds(make_world) -> None:
    world = make_world(en=EnConfig(DOMAINS, keys={"home.example.net": KEY}), router=RouterConfig(keys=(KEY,)))
    world.fabric.en.epoch_offset = 3600.0
    program = world.program("alice", world.learn())
    world.run(5.0)
    assert program.outcome == "unreachable"
    assert world.fabric.router.counters["request.answered.bad_key"] == 5


def test_always_asked_for_cookies_it_takes_one_round_trip_more(make_world) -> None:
    world = make_world(router=RouterConfig(cookies="always"), link=Link(minimum_delay=0.01, maximum_delay=0.01))
    program = world.program("alice", world.learn())
    world.run(1.0)
    assert program.outcome == "answered"
    assert len(echoes(world, icmp.ECHO_REQUEST)) == 2
    assert world.fabric.wire_log[4][0] - 1000.0 == pytest.approx(0.05)


def test_udp_in_use_keeps_one_mapping_for_an_hour(world) -> None:
    program = world.program("alice", world.learn(), udp=True)
    for _ in range(360):
        world.run(10)
        program.send(b"hello")
    world.run(1)
    assert len(program.answers) == 361
    ports = {packet.flow_of(data).destination.port for _, data in world.fabric.wire_log if data[9] == 17}
    assert len(ports - {program.flow.source.port}) == 1
    assert 100 <= world.fabric.en.counters["negotiation.renewals"] <= 125
    assert world.fabric.en.counters["mapping.changed"] == 0


def test_udp_that_pauses_beyond_its_lifetime_negotiates_again(world) -> None:
    program = world.program("alice", world.learn(), udp=True)
    world.run(100)
    assert len(world.fabric.en.vat) == 0
    program.send(b"hello")
    world.run(1)
    assert len(program.answers) == 2


def test_the_external_nodes_address_is_all_the_inside_host_sees(world) -> None:
    world.program("alice", world.learn())
    world.run(1.0)
    (received,) = world.fabric.inside[ALICE].received
    flow = packet.flow_of(received)
    assert (flow.source.address, flow.destination.address) == (EN, ALICE)
