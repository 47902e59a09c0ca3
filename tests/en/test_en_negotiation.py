"""One flow's negotiation: its state table, its tries over time, and what it believes (DESIGN.md section 5)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.en.negotiation import (
    GIVE_UP_AFTER,
    MAXIMUM_CHALLENGES,
    TRANSITIONS,
    TRIES,
    Event,
    IllegalTransition,
    Negotiation,
    State,
)
from natf_bsd.keys import Key
from natf_bsd.types import Endpoint, Flow, Name, Protocol, parse_address
from natf_bsd.wire import auth, icmp, message

ROUTER = parse_address("203.0.113.1")
FLOW = Flow(Protocol.TCP, Endpoint(parse_address("203.0.113.10"), 40000), Endpoint(parse_address("240.0.1.2"), 80))
KEY = Key(b"keyident", b"k" * 32)
TRANSACTION = b"transact"
START = 50.0

LEGAL = {
    (State.IDLE, Event.START): State.REQUESTING,
    (State.REQUESTING, Event.RETRY): State.REQUESTING,
    (State.REQUESTING, Event.CHALLENGE): State.REQUESTING,
    (State.REQUESTING, Event.RESPONSE): State.MAPPED,
    (State.REQUESTING, Event.MIRROR): State.DIRECT,
    (State.REQUESTING, Event.REFUSAL): State.REFUSED,
    (State.REQUESTING, Event.EXHAUSTED): State.SILENT,
}
ILLEGAL = [(state, event) for state in State for event in Event if (state, event) not in LEGAL]

CAUSES = {
    Event.START: lambda negotiation: negotiation.start(START, 0),
    Event.RETRY: lambda negotiation: negotiation.retry(START, 0),
    Event.CHALLENGE: lambda negotiation: negotiation.challenged(b"cookie", START, 0),
    Event.RESPONSE: lambda negotiation: negotiation.responded(message.Response(TRANSACTION, Endpoint(ROUTER, 9), 60)),
    Event.MIRROR: lambda negotiation: negotiation.mirrored(),
    Event.REFUSAL: lambda negotiation: negotiation.refused(message.Refused(TRANSACTION, message.Status.DENIED)),
    Event.EXHAUSTED: lambda negotiation: negotiation.retry(START + GIVE_UP_AFTER, 0),
}
"""What brings each event about. A negotiation that was never started counts its time from 0."""


def negotiation(rto: float = 0.25, key: Key | None = None) -> Negotiation:
    return Negotiation(FLOW, Name("alice", "home.example.net"), ROUTER, TRANSACTION, 77, rto, key)


def in_state(state: State) -> Negotiation:
    reached = negotiation()
    way = {
        State.IDLE: [],
        State.REQUESTING: [Event.START],
        State.MAPPED: [Event.START, Event.RESPONSE],
        State.DIRECT: [Event.START, Event.MIRROR],
        State.REFUSED: [Event.START, Event.REFUSAL],
        State.SILENT: [Event.START, Event.EXHAUSTED],
    }[state]
    for event in way:
        CAUSES[event](reached)
    assert reached.state is state
    return reached


def sendings(rto: float) -> tuple[list[float], float, Negotiation]:
    """Seconds after the first request of every request, and of the end, when nobody answers."""
    silent = negotiation(rto)
    times = []
    request: bytes | None = silent.start(START, 0)
    now = START
    while request is not None:
        times.append(now - START)
        now = silent.due
        request = silent.retry(now, 0)
    return times, now - START, silent


def echo_of(data: bytes) -> icmp.Echo:
    return icmp.decode_echo(data)


def test_the_table_is_the_one_of_the_diagram() -> None:
    assert {(state, event): to for state, row in TRANSITIONS.items() for event, to in row.items()} == LEGAL


@pytest.mark.parametrize(("state", "event"), LEGAL, ids=str)
def test_legal_event_moves_on(state: State, event: Event) -> None:
    reached = in_state(state)
    CAUSES[event](reached)
    assert reached.state is LEGAL[state, event]


@pytest.mark.parametrize(("state", "event"), ILLEGAL, ids=str)
def test_illegal_event_is_named_and_changes_nothing(state: State, event: Event) -> None:
    reached = in_state(state)
    # An idle negotiation has not begun its four seconds: counted from 0 they are over, and retrying is exhaustion.
    named = Event.EXHAUSTED if (state, event) == (State.IDLE, Event.RETRY) else event
    with pytest.raises(IllegalTransition, match=rf"{named.name} in state {state.name} of tcp 203\.0\.113\.10:40000"):
        CAUSES[event](reached)
    assert reached.state is state


@pytest.mark.parametrize(
    ("rto", "expected"),
    [
        (0.02, [0, 0.02, 0.06, 0.14, 0.30, 1.30, 2.30, 3.30]),
        (0.25, [0, 0.25, 0.75, 1.75, 3.75]),
        (1.0, [0, 1.0, 3.0]),
    ],
)
def test_tries_double_their_distance_and_end_after_four_seconds(rto: float, expected: list[float]) -> None:
    times, end, silent = sendings(rto)
    assert times == pytest.approx(expected)
    assert end == GIVE_UP_AFTER == 4.0
    assert silent.state is State.SILENT


@given(st.floats(0.02, 1.0))
def test_five_quick_tries_then_one_a_second_within_four_whatever_the_round_trip(rto: float) -> None:
    times, end, _ = sendings(rto)
    assert end == pytest.approx(GIVE_UP_AFTER)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    quick = [rto * 2**n for n in range(TRIES - 1)]
    assert waits == pytest.approx((quick + [max(quick[-1] * 2, 1.0)] * 4)[: len(waits)])
    assert 3 <= len(times) <= TRIES + 3 == 8


def test_a_late_timer_gives_up_instead_of_trying_on() -> None:
    late = negotiation()
    late.start(START, 0)
    assert late.retry(START + 60, 0) is None
    assert late.state is State.SILENT


def test_every_request_is_whole_padded_and_numbered() -> None:
    asking = negotiation()
    requests = [asking.start(START, 0), asking.retry(START + 0.25, 0), asking.retry(START + 0.75, 0)]
    for number, data in enumerate(requests):
        echo = echo_of(data or b"")
        assert (echo.type, echo.ident, echo.sequence) == (icmp.ECHO_REQUEST, 77, number)
        assert len(echo.data) == 128
        assert message.decode(echo.data) == message.Request(TRANSACTION, FLOW, Name("alice", "home.example.net"))


def test_a_long_name_makes_a_longer_request() -> None:
    asking = negotiation()
    asking.name = Name("a" * 63, ".".join(["b" * 63] * 3))
    assert len(echo_of(asking.start(START, 0)).data) == 16 + 16 + 65 + 2 + 191


def test_a_cookie_is_sent_back_at_once_and_kept_in_later_tries() -> None:
    asking = negotiation()
    asking.start(START, 0)
    answered = echo_of(asking.challenged(b"cookie", START + 0.1, 0) or b"")
    assert message.decode(answered.data).cookie == b"cookie"
    assert asking.due == pytest.approx(START + 0.35)
    assert message.decode(echo_of(asking.retry(asking.due, 0) or b"").data).cookie == b"cookie"


def test_cookies_do_not_prolong_the_four_seconds() -> None:
    asking = negotiation(1.0)
    asking.start(START, 0)
    asking.challenged(b"cookie", START + 3.9, 0)
    assert asking.due == START + GIVE_UP_AFTER


def test_no_more_cookies_than_one_negotiation_needs() -> None:
    asking = negotiation()
    asking.start(START, 0)
    for number in range(MAXIMUM_CHALLENGES):
        assert asking.challenged(bytes([number + 1]), START, 0) is not None
    due = asking.due
    assert asking.challenged(b"one more", START, 0) is None
    assert (asking.state, asking.due) == (State.REQUESTING, due)


def test_a_repeated_cookie_is_not_answered_again() -> None:
    asking = negotiation()
    asking.start(START, 0)
    asking.challenged(b"cookie", START + 0.1, 0)
    assert asking.challenged(b"cookie", START + 0.2, 0) is None
    assert asking.challenged(b"next time slot", START + 0.3, 0) is not None


def test_a_late_answer_gives_a_true_round_trip() -> None:
    asking = negotiation()
    asking.start(START, 0)
    asking.retry(START + 0.25, 0)
    assert asking.round_trip(0, START + 0.3) == pytest.approx(0.3)
    assert asking.round_trip(1, START + 0.3) == pytest.approx(0.05)
    assert asking.round_trip(2, START + 0.3) is None


def test_round_trips_stay_true_over_a_cookie() -> None:
    asking = negotiation()
    asking.start(START, 0)
    with_cookie = echo_of(asking.challenged(b"cookie", START + 0.1, 0) or b"")
    assert asking.round_trip(with_cookie.sequence, START + 0.2) == pytest.approx(0.1)
    assert asking.round_trip(0, START + 0.2) == pytest.approx(0.2)


def test_without_a_key_every_answer_is_believed() -> None:
    assert negotiation().authentic(b"anything", 0)


def test_with_a_key_requests_are_signed_and_unsigned_answers_not_believed() -> None:
    asking = negotiation(key=KEY)
    request = echo_of(asking.start(START, 5_000)).data
    assert auth.verify(request, {KEY.ident: KEY.secret}, 5_000) == KEY.ident
    plain = message.encode(message.Response(TRANSACTION, Endpoint(ROUTER, 9), 60))
    signed = auth.sign(plain, KEY.ident, KEY.secret, 5_000)
    assert asking.authentic(signed, 5_000)
    assert asking.authentic(signed, 65_000)
    assert not asking.authentic(signed, 65_001)
    assert not asking.authentic(plain, 5_000)
    assert not asking.authentic(auth.sign(plain, KEY.ident, b"x" * 32, 5_000), 5_000)
    assert not asking.authentic(auth.sign(plain, b"otherkey", KEY.secret, 5_000), 5_000)


def test_another_version_cannot_be_authentic() -> None:
    asking = negotiation(key=KEY)
    version_2 = bytearray(message.encode(message.Refused(TRANSACTION, message.Status.UNSUPPORTED)))
    version_2[4] = 2
    assert not asking.authentic(bytes(version_2), 0)


def test_the_secret_shows_nowhere() -> None:
    assert "kkkk" not in repr(negotiation(key=KEY))
