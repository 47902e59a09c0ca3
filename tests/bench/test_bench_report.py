"""What a report says of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from natf_bsd.bench import plots, report
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


def test_the_data_and_the_page_are_written_side_by_side(
    found: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    data, page = report.write(found, tmp_path / "new")
    assert json.loads(data.read_text())["setup"] == SETUP
    assert page.read_text().startswith("".join(report.markdown(found)))
    assert page.read_text().endswith("matplotlib is not installed (pip install natf_bsd[bench]): no plots\n")


PEERS = [
    {
        "name": name,
        "gives": "nothing",
        "asks": "much",
        "counted": "connect()",
        "signalling": TIMES,
        "first_byte": TIMES,
        "added": added,
        "added_by_pair": [added],
        "natf_by_pair": [0.0005],
        "natf_to_own": 0.0005 / added,
        "streams": [{"protocol": "udp", "direction": "put", "size": 64, "speed": 2e6, "ratio": 0.5}],
    }
    for name, added in (("NAT-f", 0.0004), ("TURN", 0.0012), ("no NAT", -0.000001))
] + [{"name": "IP in IP", "gives": "all", "asks": "a module", "counted": "", "not_run": "no such device type"}]


def test_peers_are_compared_and_who_did_not_run_is_named(found: dict[str, object]) -> None:
    page = "".join(report.markdown(found | {"peers": PEERS}))
    assert "| TURN | 500 | 0.42 |" in page
    assert "| no NAT | 500 |" not in page, "it adds nothing that could be compared"
    assert "| TURN | 2 (0.50) |" in page
    assert "**IP in IP** did not run here: no such device type" in page


def test_what_round_trips_make_of_set_up_is_told_in_milliseconds(found: dict[str, object]) -> None:
    page = "".join(report.markdown(found | {"distance": {"one_way": 0.01, "rows": PEERS}}))
    assert "## Peers, with a home that is 10 ms away" in page
    assert "| TURN | **1.2** | 1.2 | 0.5 | 0.42 |" in page
    assert "| no NAT | **-0.0** | -0.0 | 0.5 |  |" in page
    assert "| IP in IP | did not run: no such device type |" in page


@pytest.mark.skipif(not plots.available(), reason=plots.MISSING)
def test_plots_are_the_same_bytes_for_the_same_figures(found: dict[str, object], tmp_path: Path) -> None:
    rows = [
        {"protocol": protocol, "direction": direction, "size": size, "port forward": 2e6, "NAT-f": 1e6, "ratio": 0.5}
        for protocol in ("tcp", "udp")
        for direction in ("from the external node", "to the external node")
        for size in (64, 1472)
    ]
    whole = found | {"peers": PEERS, "throughput": rows, "latency": {"port forward": TIMES, "NAT-f": TIMES, "added": 0}}
    first, second = tmp_path / "first", tmp_path / "second"
    files = report.write(whole, first)
    report.write(whole, second)
    names = {file.name for file in files}
    assert names == {"report.json", "report.md", "setup.svg", "latency.svg", "throughput.svg", "peers.svg"}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert "![setup](setup.svg)" in (first / "report.md").read_text()
