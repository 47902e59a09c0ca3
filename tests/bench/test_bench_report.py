"""What a report says of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from natf_bsd.bench import report
from natf_bsd.bench.quantiles import quantiles


def test_quantiles_are_values_that_were_measured() -> None:
    found = quantiles([float(n) for n in range(100, 0, -1)])
    assert found == {"median": 50.5, "p95": 95.0, "p99": 99.0, "count": 100}
    assert quantiles([3.0]) == {"median": 3.0, "p95": 3.0, "p99": 3.0, "count": 1}
    assert quantiles([1.0, 2.0])["p95"] == 2.0


TIMES = {"median": 0.0001, "p95": 0.0002, "p99": 0.0003, "count": 7}
WAYS = {way: {"established": TIMES, "first_byte": TIMES} for way in ("port forward", "NAT-f")}
SETUP = {
    "cold": WAYS,
    "warm": WAYS,
    "added_by_pair": [0.0007, 0.0008, 0.0009],
    "added": 0.0008,
    "breakdown": {"negotiation_start": 0.0001, "router": 0.0003, "total": 0.0006},
    "breakdown_to_added": 0.75,
}


@pytest.fixture
def found() -> dict[str, object]:
    return {"command": "natf bench setup", "machine": report.circumstances(), "setup": SETUP}


def test_the_page_has_the_machine_the_command_and_only_what_was_measured(found: dict[str, object]) -> None:
    page = "".join(report.markdown(found))
    assert "Made by `natf bench setup`" in page
    assert "| kernel | " in page
    assert "| commit | " in page
    assert "Added by NAT-f to a warm connection: **800** (median of 3 pairs: 700, 800, 900)" in page
    assert "| router | 300 | 114 |" in page
    assert "they are 0.75 of the time it added" in page
    assert "Throughput" not in page


def test_the_data_and_the_page_are_written_side_by_side(found: dict[str, object], tmp_path: Path) -> None:
    data, page = report.write(found, tmp_path / "new")
    assert json.loads(data.read_text())["setup"] == SETUP
    assert page.read_text() == "".join(report.markdown(found))
