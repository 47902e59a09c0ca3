"""The external node's own address changes, as a laptop's does (issue 4: dynamic addresses)."""

from __future__ import annotations

import pytest

from natf_bsd.types import Address, Endpoint, parse_address
from natf_bsd.wire import build

ELSEWHERE = parse_address("198.51.100.7")


def udp_from(source: Address, virtual: Address, s: int = 40000) -> bytes:
    return bytes(build.udp(Endpoint(source, s), Endpoint(virtual, 5000), b"hello"))


def moves(bench, *addresses: Address) -> None:
    """From now on this host has `addresses` and no others."""
    bench.perform(bench.core.addresses_changed(lambda address: address in addresses, bench.now))


@pytest.fixture
def virtual(bench) -> Address:
    """Of alice, to whom a UDP flow is mapped."""
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.map()
    return virtual


def test_flows_of_a_lost_address_end_and_are_saved_as_ended(bench, virtual: Address) -> None:
    bench.saved.clear()
    moves(bench, ELSEWHERE)
    assert len(bench.core.vat) == 0
    assert bench.count("flows.left_address") == 1
    assert [record["id"] for record in bench.saved]
    bench.come(bench.udp_back())
    assert bench.count("in.drop.no_flow") == 1


def test_what_a_socket_with_the_lost_address_sends_is_dropped(bench, virtual: Address) -> None:
    moves(bench, ELSEWHERE)
    bench.asked.clear()
    bench.out(bench.udp(virtual))
    assert (bench.asked, bench.told) == ([], []), "an error could not come to it"
    assert bench.count("out.drop.left_address") == 1


def test_new_flows_from_the_new_address_work_at_once(bench, virtual: Address) -> None:
    moves(bench, ELSEWHERE)
    bench.out(udp_from(ELSEWHERE, virtual))
    bench.map(61001)
    assert [entry.flow.source.address for entry in bench.core.vat] == [ELSEWHERE]


def test_an_address_that_comes_back_is_served_again(bench, virtual: Address) -> None:
    moves(bench, ELSEWHERE)
    moves(bench, bench.G1)
    bench.out(bench.udp(virtual))
    bench.map()
    assert len(bench.core.vat) == 1


def test_an_address_this_host_keeps_beside_another_keeps_its_flows(bench, virtual: Address) -> None:
    moves(bench, bench.G1, ELSEWHERE)
    assert len(bench.core.vat) == 1


def test_negotiations_and_held_packets_of_the_lost_address_end(bench) -> None:
    bench.out(bench.udp(bench.learn()))
    moves(bench, ELSEWHERE)
    assert bench.count("negotiation.called_off") == bench.count("out.drop.left_address") == 1
    assert len(bench.dropped) == 1
    bench.wait(5)
    assert len(bench.asked) == 1, "nobody asks again"
    assert len(bench.core.held) == 0
