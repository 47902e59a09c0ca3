"""What the external node remembers of routers: the first timeout of a negotiation follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.en.peers import INITIAL_RTO, MAXIMUM_RTO, MINIMUM_RTO, Peers
from natf_bsd.types import parse_address

G2 = parse_address("203.0.113.1")


@pytest.mark.parametrize(
    ("round_trip", "rto"), [(0.05, 0.1), (0.0001, 0.02), (0.01, 0.02), (0.3, 0.6), (0.5, 1.0), (9.0, 1.0)]
)
def test_first_timeout_is_twice_the_round_trip_within_its_limits(round_trip: float, rto: float) -> None:
    peers = Peers()
    peers.answered(G2, round_trip, 0.0)
    assert peers.rto(G2) == pytest.approx(rto)


def test_unknown_router_gets_a_quarter_second() -> None:
    assert Peers().rto(G2) == INITIAL_RTO == 0.25
    assert not Peers().speaks_natf(G2)


def test_round_trip_is_smoothed_by_an_eighth() -> None:
    peers = Peers()
    peers.answered(G2, 0.1, 0.0)
    peers.answered(G2, 0.18, 1.0)
    assert peers.rto(G2) == pytest.approx(2 * 0.11)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30))
def test_timeout_stays_within_its_limits_whatever_is_measured(round_trips: list[float]) -> None:
    peers = Peers()
    for round_trip in round_trips:
        peers.answered(G2, round_trip, 0.0)
        assert MINIMUM_RTO <= peers.rto(G2) <= MAXIMUM_RTO


def test_a_router_is_forgotten_a_week_after_its_last_answer() -> None:
    week = 7 * 86400.0
    peers = Peers()
    peers.answered(G2, 0.1, 0.0)
    peers.answered(G2, 0.1, 1000.0)
    assert peers.expire(week + 999.9) == []
    assert peers.speaks_natf(G2)
    assert [peer.address for peer in peers.expire(week + 1000.0)] == [G2]
    assert not peers.speaks_natf(G2)


def test_a_router_is_news_at_its_first_answer_and_once_a_day() -> None:
    peers = Peers()
    times = [0.0, 10.0, 86_399.0, 86_400.0, 86_401.0, 172_800.0]
    assert [peers.answered(G2, 0.1, now) is not None for now in times] == [True, False, False, True, False, True]


def test_without_room_a_new_router_is_not_remembered() -> None:
    peers = Peers(maximum=1)
    peers.answered(G2, 0.1, 0.0)
    peers.answered(bytes(4), 0.1, 0.0)
    assert [peer.address for peer in peers] == [G2]


def test_a_restored_router_speaks_natf_and_its_measured_round_trip_is_kept() -> None:
    peers = Peers()
    peers.restore(G2, 1000.0, 0.0)
    assert peers.speaks_natf(G2)
    assert peers.rto(G2) == INITIAL_RTO
    other = bytes(4)
    peers.answered(other, 0.05, 0.0)
    peers.restore(other, 1000.0, 0.0)
    assert peers.rto(other) == pytest.approx(0.1)
    peers.expire(1000.0)
    assert [peer.address for peer in peers] == [other], "what was restored lasts as long as it was to"
