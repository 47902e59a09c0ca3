"""The log hears of what the counters noticed, once a look."""

from __future__ import annotations

import logging

import pytest

from natf_bsd.counters import Counters
from natf_bsd.ops.watch import CounterWatch

MEANINGS = {"good": "all is well", "bad": "somebody should look"}


def test_growth_is_a_warning_or_for_debugging_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="natf_bsd")
    counters = Counters(MEANINGS)
    watch = CounterWatch(counters, ("bad",))
    watch.look()
    counters.add("bad", 3)
    counters.add("good")
    watch.look()
    watch.look()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "good: 1 more (all is well)"),
        ("WARNING", "bad: 3 more (somebody should look)"),
    ]


def test_what_was_counted_before_the_watch_began_is_not_news(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(MEANINGS)
    counters.add("bad")
    CounterWatch(counters, ("bad",)).look()
    assert caplog.records == []


def test_a_counter_that_does_not_exist_cannot_be_watched() -> None:
    with pytest.raises(ValueError, match="no such counters: worse"):
        CounterWatch(Counters(MEANINGS), ("bad", "worse"))
