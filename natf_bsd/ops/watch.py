"""Tells the log what the counters noticed, at a rate no outsider can drive."""

from __future__ import annotations

import logging
from collections.abc import Collection

from natf_bsd.counters import Counters

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks: soon enough for who waits for it, and one line a counter at the most."""


class CounterWatch:
    """Logs the growth of counters since the last look: those in `worth_a_warning` as warnings, others as debug."""

    def __init__(self, counters: Counters, worth_a_warning: Collection[str]) -> None:
        unknown = set(worth_a_warning) - set(counters.descriptions)
        if unknown:
            raise ValueError(f"no such counters: {', '.join(sorted(unknown))}")
        self._counters = counters
        self._warn = frozenset(worth_a_warning)
        self._seen = counters.snapshot()

    def look(self) -> None:
        now = self._counters.snapshot()
        for name, value in now.items():
            growth = value - self._seen[name]
            if growth:
                level = logging.WARNING if name in self._warn else logging.DEBUG
                log.log(level, "%s: %d more (%s)", name, growth, self._counters.descriptions[name])
        self._seen = now
