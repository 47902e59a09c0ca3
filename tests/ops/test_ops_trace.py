"""Trace points: the parts of a negotiation's time, and that strangers cannot make them grow."""

import json

import pytest

from natf_bsd.ops.trace import _KEPT, _OPEN, Trace


def ident(number):
    return number.to_bytes(8, "big")


def test_the_parts_of_a_negotiation_add_up_to_its_total():
    trace = Trace()
    trace.started(ident(1), arrived=10.0, sent=10.5)
    trace.ended(ident(1), answered=12.5, resumed=12.75)
    (found,) = trace.finished
    assert found == {
        "transaction": "0000000000000001",
        "arrived": 10.0,
        "negotiation_start": 0.5,
        "answer_wait": 2.0,
        "resume": 0.25,
        "total": 2.75,
    }


def test_a_retransmission_does_not_move_the_beginning():
    trace = Trace()
    trace.started(ident(1), 10.0, 10.5)
    trace.started(ident(1), 20.0, 20.5)
    trace.ended(ident(1), 21.0, 21.0)
    assert trace.finished[0]["total"] == 11.0


def test_the_end_of_what_never_began_is_nothing():
    trace = Trace()
    trace.ended(ident(1), 1.0, 2.0)
    trace.routed(ident(1), 2.0)
    assert not trace.finished


def test_an_end_counts_once():
    trace = Trace()
    trace.started(ident(1), 1.0, 1.0)
    trace.ended(ident(1), 2.0, 2.0)
    trace.ended(ident(1), 3.0, 3.0)
    assert len(trace.finished) == 1


def test_the_router_has_one_part():
    trace = Trace()
    trace.started(ident(1), arrived=1.0, sent=1.1)
    trace.routed(ident(1), sent=1.5)
    assert list(trace.finished) == [{"transaction": "0000000000000001", "router": 0.5}]


def test_only_the_newest_finished_ones_are_kept():
    trace = Trace()
    for number in range(_KEPT + 10):
        trace.started(ident(number), 0.0, 0.0)
        trace.ended(ident(number), 1.0, 1.0)
        trace.answers.append(float(number))
    assert len(trace.finished) == len(trace.answers) == _KEPT
    assert trace.finished[-1]["transaction"] == ident(_KEPT + 9).hex()
    assert trace.answers[0] == 10.0


def test_negotiations_that_never_end_are_bounded_and_the_oldest_goes():
    trace = Trace()
    for number in range(_OPEN + 1):
        trace.started(ident(number), 0.0, 0.0)
    trace.ended(ident(0), 1.0, 1.0)
    assert not trace.finished
    trace.ended(ident(1), 1.0, 1.0)
    trace.ended(ident(_OPEN), 1.0, 1.0)
    assert len(trace.finished) == 2
    assert len(trace._open) == _OPEN - 2


@pytest.mark.parametrize("filled", [False, True])
def test_the_snapshot_is_json(filled):
    trace = Trace()
    if filled:
        trace.started(ident(1), 0.0, 0.5)
        trace.ended(ident(1), 1.0, 1.0)
        trace.answers.append(0.001)
    shown = json.loads(json.dumps(trace.snapshot()))
    assert shown == {"negotiations": list(trace.finished), "answer_rewriting": list(trace.answers)}
