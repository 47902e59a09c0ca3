"""The load makers and what is made of them, on a lab and on a core; no figure is judged here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from natf_bsd.bench import bed, measure
from natf_bsd.bench.bed import DOMAIN, EN, NAME, ROUTER, Bed

TINY = measure.Effort(pairs=1, rounds=5, turns=2, seconds=0.05, fresh=1, entries=100)

lab = [pytest.mark.lab, pytest.mark.linux("a port forward of netfilter to compare with")]


@pytest.fixture(scope="module")
def ground() -> Iterator[Bed]:
    with bed.made(instance="measure") as ground:
        yield ground


def needs_lab(function):
    for each in lab:
        function = each(function)
    return function


@needs_lab
def test_a_connection_is_timed_each_way_and_its_parts_are_told(ground: Bed) -> None:
    found = measure.setup(ground, TINY, str)
    for kind in "cold", "warm":
        for way in "port forward", "NAT-f":
            times = found[kind][way]
            assert 0 < times["established"]["median"] <= times["first_byte"]["median"] < 10
    parts = found["breakdown"]
    assert all(seconds > 0 for name, seconds in parts.items() if name != "less_the_port_forward")
    assert parts["less_the_port_forward"] < 0


@needs_lab
def test_the_parts_of_one_connection_are_all_that_it_took(ground: Bed) -> None:
    """Of several the medians are told, which need not add up."""
    found = measure.setup(ground, replace(TINY, rounds=1), str)
    assert found["breakdown_to_added"] == pytest.approx(1, rel=0.01)


@needs_lab
@pytest.mark.parametrize(("protocol", "receiver"), [("tcp", "awake"), ("udp", "awake"), ("udp", "asleep")])
@pytest.mark.parametrize("direction", ["put", "get"])
def test_bytes_are_counted_where_they_arrive(ground: Bed, protocol: str, receiver: str, direction: str) -> None:
    for way in ground.ways:
        (((count, took),),) = ground.client("throughput", protocol, direction, 512, receiver, 0.05, 1, way.target)
        assert count > 0
        assert count % 512 == 0
        assert 0 < took < 10


@needs_lab
def test_round_trips_are_timed_each_way(ground: Bed) -> None:
    found = measure.latency(ground, TINY, str)
    assert found["port forward"]["count"] == found["NAT-f"]["count"] == 50


@needs_lab
def test_only_mappings_count_as_answers(ground: Bed) -> None:
    answered, took = ground.client("ask", 0.2, EN, ROUTER, NAME, DOMAIN)
    assert answered > 0
    assert took > 0
    assert ground.client("ask", 0.2, EN, ROUTER, "eve", DOMAIN)[0] == 0


def test_a_filled_core_is_measured_and_expires_whole() -> None:
    found = measure.fill(200)
    assert found["entries"] == 200
    assert found["seconds_of_a_packet"] > 0
    assert found["longest_sweep"] > 0
