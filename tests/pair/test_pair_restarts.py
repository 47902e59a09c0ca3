"""Either side restarted, or the whole router rebooted: what lives goes on, what is lost is found again."""

from __future__ import annotations

import pytest

from natf_bsd.config import RouterConfig
from natf_bsd.lab.fabric import ROUTER
from natf_bsd.lab.link import Link
from natf_bsd.natd_bridge.memory import EndpointIndependentNat, LibaliasNat
from natf_bsd.types import Protocol, parse_address

NATS = [LibaliasNat, EndpointIndependentNat]


def started(world, count: int = 20) -> list:
    """Programs in the middle of their conversation, TCP and UDP in turn."""
    hosts = {host: world.learn(host) for host in ("alice", "bob")}
    programs = [
        world.program(host, hosts[host], udp=udp) for _ in range(count // 4) for host in hosts for udp in (False, True)
    ]
    world.run(1.0)
    assert {program.outcome for program in programs} == {"answered"}
    return programs


def talk(world, programs, seconds: float = 1.0) -> list[int]:
    """Each program says something more; how many answers each one gets to it."""
    before = [len(program.answers) for program in programs]
    for program in programs:
        program.send(b"hello", established=True)
    world.run(seconds)
    return [len(program.answers) - earlier for program, earlier in zip(programs, before, strict=True)]


@pytest.mark.parametrize("nat", NATS)
def test_while_the_routers_daemon_is_away_established_flows_go_on(make_world, nat) -> None:
    world = make_world(nat=nat(ROUTER))
    programs = started(world)
    world.fabric.router_up = False
    for _ in range(20):
        assert talk(world, programs, 5.0) == [1] * len(programs)
    assert {entry.mapped.address for entry in world.fabric.en.vat} == {ROUTER}
    assert not any(entry.direct for entry in world.fabric.en.vat)
    world.fabric.router_up = True
    world.restart_router()
    assert talk(world, programs, 5.0) == [1] * len(programs)
    late = world.program("alice", world.learn())
    world.run(1.0)
    assert late.outcome == "answered"


@pytest.mark.parametrize("nat", NATS)
def test_the_external_node_restarted_goes_on_with_every_flow(make_world, nat) -> None:
    world = make_world(nat=nat(ROUTER))
    programs = started(world)
    before = {entry.flow: entry.mapped for entry in world.fabric.en.vat}
    addresses = (world.learn("alice"), world.learn("bob"))
    world.restart_en()
    assert talk(world, programs) == [1] * len(programs)
    assert {entry.flow: entry.mapped for entry in world.fabric.en.vat} == before
    asked = ("negotiation.renewals", "negotiation.started")
    assert [world.fabric.en.counters[name] for name in asked] == [len(programs) // 2] * 2  # TCP goes on, UDP asks first
    assert (world.learn("alice"), world.learn("bob")) == addresses
    late = world.program("bob", addresses[1], udp=True)
    world.run(1.0)
    assert late.outcome == "answered"


def test_both_daemons_restarted_at_once_lose_nothing(world) -> None:
    programs = started(world)
    world.restart_en()
    world.restart_router()
    assert talk(world, programs) == [1] * len(programs)


def test_the_external_node_restarted_while_the_routers_daemon_is_away(world) -> None:
    """It must not take the mirroring router for a plain host: its saved flows say that it spoke NAT-f. Connections go
    on; datagrams can't know whether their mapping still is, and wait for the router."""
    programs = started(world)
    world.fabric.router_up = False
    world.restart_en()
    assert talk(world, programs) == [int(program.flow.protocol == Protocol.TCP) for program in programs]
    new = world.program("alice", world.learn())
    world.run(4.5)
    assert new.outcome == "unreachable"
    assert not any(entry.direct for entry in world.fabric.en.vat)
    world.fabric.router_up = True
    assert talk(world, programs, 10.0) == [1] * len(programs)


def test_a_negotiation_cut_off_by_a_restart_begins_again_with_the_programs_next_packet(make_world) -> None:
    world = make_world(link=Link(minimum_delay=0.1, maximum_delay=0.1))
    program = world.program("alice", world.learn())
    world.run(0.05)
    world.restart_en()
    world.run(3.0)
    assert program.outcome == "answered"


@pytest.mark.parametrize("nat", NATS)
def test_a_rebooted_router_gets_its_mappings_back_by_renewal(make_world, nat) -> None:
    """Nobody answers any more; after three packets and five seconds without an answer the flow asks again."""
    world = make_world(nat=nat(ROUTER))
    programs = started(world)
    world.restart_router(nat(ROUTER, seed=9))
    assert talk(world, programs) == [0] * len(programs)
    for _ in range(6):
        talk(world, programs)
    assert talk(world, programs) == [1] * len(programs)
    assert world.fabric.en.counters["negotiation.renewals"] >= len(programs)


def test_a_rebooted_router_that_gives_other_ports_is_followed(make_world) -> None:
    """libalias without deny_incoming: our packets to the lost mappings occupy their ports (FREEBSD.md 4.1)."""
    world = make_world()
    programs = started(world)
    world.restart_router(LibaliasNat(ROUTER, deny_incoming=False, seed=9))
    for _ in range(7):
        talk(world, programs)
    assert talk(world, programs) == [1] * len(programs)
    assert world.fabric.en.counters["mapping.changed"] == len(programs)


def test_a_rebooted_router_that_says_its_ports_are_closed_is_asked_at_once(world) -> None:
    world.fabric.router_refuses = True
    program = world.program("alice", world.learn(), udp=True)
    world.run(6.0)
    world.restart_router(LibaliasNat(ROUTER))
    assert talk(world, [program], 0.1) == [0]
    assert world.fabric.en.counters["negotiation.renewals"] == 1
    assert talk(world, [program], 0.1) == [1]


def test_a_rebooted_router_that_resets_connections_ends_them_and_new_ones_work(world) -> None:
    world.fabric.router_refuses = True
    program = world.program("alice", world.learn())
    world.run(1.0)
    world.restart_router(LibaliasNat(ROUTER))
    talk(world, [program])
    world.run(2.0)
    assert len(world.fabric.en.vat) == 0
    again = world.program("alice", world.learn())
    world.run(1.0)
    assert again.outcome == "answered"


def test_restarts_in_the_middle_of_a_bad_wire_leave_nobody_waiting(make_world) -> None:
    world = make_world(
        link=Link(loss=0.15, duplication=0.2, minimum_delay=0.005, maximum_delay=0.1),
        router=RouterConfig(cookies="always"),
        seed=5,
    )
    virtual = {host: world.learn(host) for host in ("alice", "bob")}
    programs = []
    for number in range(40):
        host = ("alice", "bob")[number % 2]
        programs.append(world.program(host, virtual[host], udp=number % 4 < 2))
        world.run(0.1)
        if number == 15:
            world.restart_router(LibaliasNat(ROUTER, seed=3))
        if number == 25:
            world.restart_en()
    world.run(60)
    assert all(program.outcome for program in programs)
    assert sum(program.outcome == "answered" for program in programs) >= 36


def test_a_renewal_refused_after_the_table_changed_ends_the_flow(world) -> None:
    program = world.program("alice", world.learn(), udp=True)
    world.run(1.0)
    world.fabric.router.act = type(world.fabric.router.act)()
    world.run(35)
    program.outcome = None
    program.send(b"hello")
    world.run(0.5)
    program.send(b"hello")
    world.run(0.5)
    assert len(world.fabric.en.vat) == 0
    assert world.fabric.en.counters["out.drop.refused"] == 1


def test_addresses_stay_those_of_their_names_over_many_restarts(world) -> None:
    names = [f"host{number}" for number in range(300)]
    before = {name: world.learn(name) for name in names}
    assert len(set(before.values())) == 300
    for _ in range(3):
        world.restart_en()
    assert {name: world.learn(name) for name in reversed(names)} == before
    assert all(address[0] == 240 for address in before.values())
    assert parse_address("240.0.0.0") not in before.values()
