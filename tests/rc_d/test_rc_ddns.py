"""`service natf_ddns`: starts what its check has found good, and stops whatever state its supervisor is in."""

from __future__ import annotations

import pytest

from tests.rc_d.machine import RELEASES, Machine, wait_for


@pytest.mark.parametrize("release", RELEASES)
def test_it_is_checked_started_and_stopped(machine: Machine, release: str) -> None:
    machine.tell(release=release)
    machine.start("ddns")
    assert machine.calls("natf")[:2] == [machine.natf("ddns", "check"), machine.natf("ddns", "run")]
    done = machine.service("ddns", "stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Stopping natf_ddns.\n", "")
    wait_for(lambda: machine.left() == [])
    assert machine.supervisor("ddns") is None


@pytest.mark.parametrize("release", RELEASES)
def test_it_stops_while_its_supervisor_waits_to_start_it_again(machine: Machine, release: str) -> None:
    machine.tell(release=release, run_fails="", natf_ddns_restart_delay="30", delay="30")
    machine.service("ddns", "start")
    wait_for(lambda: machine.natf("ddns", "run") in machine.calls())
    assert machine.service("ddns", "stop").returncode == 0
    wait_for(lambda: machine.left() == [])


def test_what_fails_its_check_is_not_started(machine: Machine) -> None:
    machine.tell(check_fails="Error: natf.toml:1: no [ddns] section\n")
    done = machine.service("ddns", "start")
    assert done.returncode != 0
    assert "natf.toml:1: no [ddns] section" in done.stderr
    assert machine.calls("natf") == [machine.natf("ddns", "check")]


def test_a_stop_of_what_does_not_run_says_so(machine: Machine) -> None:
    done = machine.service("ddns", "stop")
    assert (done.returncode, done.stdout) == (0, "natf_ddns is not running.\n")
