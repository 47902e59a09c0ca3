"""Which end-to-end tests are left out over ssh."""

from __future__ import annotations

from typing import Any

from tests.vagrant.over_ssh import reason

lab: Any = None


def captures() -> None:
    with lab.capture("en", "eth0"):
        pass


def asks_linux() -> None:
    lab.exec("router", ["iptables", "-S"])


def compares_processes() -> None:
    assert f"process {lab.en.pid} holds" in lab.natf("en", "run").stderr


def fetches() -> None:
    lab.exec("en", ["curl", "http://alice.home.example.net/"])


def test_a_test_that_only_runs_programs_runs() -> None:
    assert reason(fetches) is None


def test_what_only_one_machine_can_do_is_left_out_with_its_reason() -> None:
    assert "packets while they pass" in str(reason(captures))
    assert "kernel of Linux" in str(reason(asks_linux))
    assert "process ids" in str(reason(compares_processes))
