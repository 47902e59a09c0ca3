"""Median, 95th and 99th percentile: what a report shows of many times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """By the method of the nearest rank for the upper two: no value is shown that was not measured."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[_rank(95, len(ordered))],
        "p99": ordered[_rank(99, len(ordered))],
        "count": len(ordered),
    }


def _rank(percent: int, count: int) -> int:
    return max(0, -(-percent * count // 100) - 1)
