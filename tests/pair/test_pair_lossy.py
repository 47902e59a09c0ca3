"""Both cores over a wire that loses, repeats and reorders: no program is left without an answer or an error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natf_bsd.config import RouterConfig
from natf_bsd.lab.fabric import PLAIN, ROUTER
from natf_bsd.lab.link import Link
from natf_bsd.natd_bridge.memory import EndpointIndependentNat, LibaliasNat

NATS = [LibaliasNat, EndpointIndependentNat]
DOCUMENTED = 4.0
"""Seconds from a flow's first packet until it is passed on or its program told (DESIGN.md section 5)."""


def flows(world, count: int, hosts: tuple[str, ...] = ("alice", "bob")) -> list:
    """Start `count` programs, TCP and UDP in turn, spread over a second."""
    virtual = {host: world.learn(host) for host in hosts}
    kinds = itertools.cycle(itertools.product(hosts, (False, True)))
    programs = []
    for _ in range(count):
        host, udp = next(kinds)
        programs.append(world.program(host, virtual[host], udp=udp))
        world.run(1.0 / count)
    return programs


@pytest.mark.parametrize("nat", NATS)
@pytest.mark.parametrize("loss", [0.1, 0.2, 0.3])
@pytest.mark.parametrize(("seed", "count"), [(1, 60), (2, 200)])
def test_every_flow_is_passed_on_or_refused_in_time_and_answered_in_the_end(
    make_world, nat, loss: float, seed: int, count: int
) -> None:
    link = Link(loss=loss, duplication=0.2, minimum_delay=0.005, maximum_delay=0.08)
    world = make_world(nat=nat(ROUTER), link=link, seed=seed)
    programs = flows(world, count)
    began = world.fabric.now
    world.run(DOCUMENTED)
    assert world.undecided(since=began) == []
    world.run(60)
    assert all(program.outcome for program in programs)
    assert all(program.outcome == "answered" for program in programs if loss < 0.2)
    assert len(world.fabric.en.held) == len(list(world.fabric.en.negotiations())) == 0


@pytest.mark.parametrize("nat", NATS)
def test_duplicates_alone_change_nothing(make_world, nat) -> None:
    world = make_world(nat=nat(ROUTER), link=Link(duplication=1.0))
    programs = flows(world, 20)
    world.run(1)
    assert {program.outcome for program in programs} == {"answered"}
    assert world.fabric.en.counters["negotiation.started"] == len(world.fabric.en.vat) == 20
    assert world.fabric.en.counters["out.sent.released"] == 20


@pytest.mark.parametrize("nat", NATS)
def test_a_wire_slower_than_the_first_timeout_costs_repetitions_and_nothing_else(make_world, nat) -> None:
    world = make_world(nat=nat(ROUTER), link=Link(minimum_delay=0.4, maximum_delay=0.4))
    first = world.program("alice", world.learn())
    world.run(2)
    assert first.outcome == "answered"
    assert world.fabric.en.counters["request.retransmitted"] == 2
    second = world.program("bob", world.learn("bob"))
    world.run(2)
    assert second.outcome == "answered"
    assert world.fabric.en.counters["request.retransmitted"] == 2


@pytest.mark.parametrize("cookies", ["always", "load"])
def test_cookies_over_a_bad_wire_lose_nobody_who_is_patient(make_world, cookies: str) -> None:
    link = Link(loss=0.2, duplication=0.3, minimum_delay=0.005, maximum_delay=0.05)
    world = make_world(link=link, router=RouterConfig(cookies=cookies, cookie_rate=5), seed=3)
    programs = flows(world, 60)
    began = world.fabric.now
    world.run(DOCUMENTED)
    assert world.undecided(since=began) == []
    world.run(60)
    answered = [program for program in programs if program.outcome == "answered"]
    assert all(program.outcome for program in programs)
    assert len(answered) >= 50


def test_refusals_and_fallbacks_over_a_bad_wire_come_in_time(make_world) -> None:
    world = make_world(link=Link(loss=0.3, duplication=0.3, minimum_delay=0.001, maximum_delay=0.1), seed=4)
    plain = world.learn("www", "plain.example.net", PLAIN)
    programs = flows(world, 30, ("eve", "mallory"))
    direct = [world.program("plain", plain, udp=number % 2 == 0) for number in range(10)]
    world.run(DOCUMENTED)
    assert world.undecided(since=world.fabric.now - DOCUMENTED) == []
    world.run(60)
    assert all(program.outcome in ("refused", "unreachable") for program in programs)
    assert sum(program.outcome == "refused" for program in programs) >= 25
    assert sum(program.outcome == "answered" for program in direct) >= 8


def test_a_dead_wire_tells_every_program_at_four_seconds(make_world) -> None:
    world = make_world(link=Link(loss=1.0))
    virtual = world.learn()
    programs = [world.program("alice", virtual, udp=udp) for udp in (False, True)]
    world.run(4.05)
    assert [program.outcome for program in programs] == ["unreachable"] * 2


@settings(max_examples=25, deadline=None)
@given(
    loss=st.floats(0.0, 0.5),
    duplication=st.floats(0.0, 1.0),
    slowest=st.floats(0.001, 0.6),
    seed=st.integers(0, 1 << 16),
    nat=st.sampled_from(NATS),
    cookies=st.sampled_from(["never", "load", "always"]),
    wanted=st.lists(
        st.tuples(st.sampled_from(["alice", "bob", "eve", "mallory"]), st.booleans()), min_size=1, max_size=12
    ),
)
def test_whatever_the_wire_does_no_program_waits_in_vain(
    world_class, loss, duplication, slowest, seed, nat, cookies, wanted
) -> None:
    world = world_class(
        nat=nat(ROUTER),
        link=Link(loss, duplication, 0.001, slowest),
        router=RouterConfig(cookies=cookies, cookie_rate=3),
        seed=seed,
    )
    programs = [world.program(host, world.learn(host), udp=udp) for host, udp in wanted]
    world.run(DOCUMENTED)
    assert world.undecided(since=1000.0) == []
    world.run(10)
    for program in programs:
        if program.host in ("eve", "mallory"):
            assert program.outcome != "answered"
    world.check()
