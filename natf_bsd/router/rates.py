"""How fast requests may come: all of them, above which strangers need a cookie, and each source's own share."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import Table

BURST_SECONDS = 5
"""A source may save up this many seconds of its rate: a browser opens a page's connections all at once."""

MAXIMUM_SOURCES = 65536  # about 600 bytes each


class Load:
    """Whether requests come faster than `rate` a second, counted in the last full second or the one running."""

    __slots__ = ("_count", "_previous", "_rate", "_second")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._second = -1
        self._count = 0
        self._previous = 0

    def note(self, now: float) -> bool:
        second = int(now)
        if second != self._second:
            self._previous = self._count if second == self._second + 1 else 0
            self._second, self._count = second, 0
        self._count += 1
        return max(self._count, self._previous) > self._rate


@dataclass(slots=True, eq=False)
class _Bucket:
    """What a source has left (token bucket). It is full again, and so forgotten, at `deadline`."""

    source: Hashable
    tokens: float
    noted: float
    deadline: float


class SourceRates:
    """Mappings each source may ask for: `rate` a second with bursts of five seconds' worth; 0 is without limit.

    One honest address could fill the NAT's table otherwise. Without room for another source it is let through: the
    load as a whole then needs cookies, so its address is at least its own.
    """

    def __init__(self, rate: int, maximum: int = MAXIMUM_SOURCES) -> None:
        self._rate = rate
        self._burst = rate * BURST_SECONDS
        self._table: Table[_Bucket] = Table(maximum, {"source": lambda bucket: bucket.source})

    @property
    def refused(self) -> int:
        """Requests let through uncounted, because a full table did not take their source."""
        return self._table.refused

    def take(self, source: Hashable, now: float) -> bool:
        """Whether `source` may have one more now."""
        if not self._rate:
            return True
        bucket = self._table.get("source", source)
        if bucket is None:
            return self._open(source, now)
        bucket.tokens = min(bucket.tokens + (now - bucket.noted) * self._rate, self._burst)
        bucket.noted = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        bucket.deadline = now + (self._burst - bucket.tokens) / self._rate
        return True

    def expire(self, now: float) -> None:
        self._table.expire(now)

    def next_deadline(self) -> float | None:
        return self._table.next_deadline()

    def _open(self, source: Hashable, now: float) -> bool:
        try:
            self._table.insert(_Bucket(source, self._burst - 1.0, now, now + 1 / self._rate))
        except TableFull:
            self._table.expire(now)
        return True
