"""Which end-to-end tests are left out over ssh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from natf_bsd.lab.figure3 import Figure3Lab
from tests.vagrant import over_ssh

lab: Any = None


def captures() -> None:
    with lab.capture("en", "eth0"):
        pass


def compares_processes() -> None:
    assert f"process {lab.en.pid} holds" in lab.natf("en", "run").stderr


def fetches() -> None:
    lab.exec("en", ["curl", "http://alice.home.example.net/"])


def calls_between_homes(natf: Figure3Lab) -> None:
    natf.exec("alice", ["curl", "http://dave.home2.example.net/"])


def reason(request: pytest.FixtureRequest, function: Callable[..., None], *marks: pytest.MarkDecorator) -> str | None:
    item = pytest.Function.from_parent(request.node.parent, name=function.__name__, callobj=function)
    for mark in marks:
        item.add_marker(mark)
    return over_ssh.reason(item)


def test_a_test_that_only_runs_programs_runs(request: pytest.FixtureRequest) -> None:
    assert reason(request, fetches) is None


def test_what_only_one_machine_can_do_is_left_out_with_its_reason(request: pytest.FixtureRequest) -> None:
    assert "packets while they pass" in str(reason(request, captures))
    assert "process ids" in str(reason(request, compares_processes))
    assert "than there are machines" in str(reason(request, calls_between_homes))


def test_what_is_for_linux_alone_is_left_out(request: pytest.FixtureRequest) -> None:
    request.config.addinivalue_line("markers", "linux(reason): needs Linux, for the reason given")
    linux = pytest.mark.linux("it has TUN devices")
    assert reason(request, fetches, linux) == "the machines are FreeBSD's: it has TUN devices"
