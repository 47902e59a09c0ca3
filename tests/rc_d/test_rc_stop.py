"""`service natf_en stop` ends everything within bounded time, whatever state it is in, and leaves no rules."""

from __future__ import annotations

import pytest

from tests.rc_d.machine import RELEASES, ROLES, Machine, wait_for


def nothing_is_left(machine: Machine, role: str) -> bool:
    return not (machine.left() or machine.has_rules(role) or machine.pidfile(role).exists())


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("role", ROLES)
def test_stop_waits_for_the_daemon_and_leaves_nothing(machine: Machine, role: str, release: str) -> None:
    machine.tell(release=release)
    machine.start(role)
    done = machine.service(role, "stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Stopping natf_{role}.\n", "")
    assert nothing_is_left(machine, role)
    assert machine.calls()[-2:] == ["undone", machine.natf(role, "cleanup")]


@pytest.mark.parametrize("release", RELEASES)
def test_stop_ends_a_supervisor_that_waits_to_start_its_daemon_again(machine: Machine, release: str) -> None:
    machine.tell(release=release, run_fails="", delay="30")
    machine.service("router", "start")
    wait_for(lambda: machine.calls()[-1] == machine.natf("router", "run"))
    assert machine.supervisor("router") is not None
    done = machine.service("router", "stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert nothing_is_left(machine, "router")


def test_stop_ends_a_daemon_that_fails_again_and_again(machine: Machine) -> None:
    machine.tell(run_fails="", delay="0.01")
    machine.service("router", "start")
    assert machine.service("router", "stop").returncode == 0
    assert nothing_is_left(machine, "router")


def test_a_daemon_that_does_not_listen_is_killed_and_cleaned_up_after(machine: Machine) -> None:
    machine.tell(hangs="")
    _, daemon = machine.start("en")
    done = machine.service("en", "stop")
    assert done.returncode == 0
    assert f"process {daemon} did not end within 20 s of being asked: killed" in done.stderr
    assert nothing_is_left(machine, "en")


@pytest.mark.parametrize("role", ROLES)
def test_stop_ends_a_daemon_whose_supervisor_was_killed(machine: Machine, role: str) -> None:
    supervisor, _ = machine.start(role)
    machine.kill(supervisor)
    done = machine.service(role, "stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert nothing_is_left(machine, role)


def test_stop_ends_a_second_supervisor_and_the_daemon_in_its_way(machine: Machine) -> None:
    supervisor, _ = machine.start("router")
    machine.kill(supervisor)
    machine.service("router", "forcestart")  # does not listen to start_precmd
    assert machine.supervisor("router") not in (None, supervisor)
    done = machine.service("router", "stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert nothing_is_left(machine, "router")


def test_a_daemon_that_has_only_just_been_started_is_not_forgotten(machine: Machine) -> None:
    machine.tell(starts_slowly="")
    machine.service("router", "start")
    wait_for(lambda: machine.calls()[-1] == machine.natf("router", "run"))
    assert machine.daemon("router") is None
    assert machine.service("router", "stop").returncode == 0
    assert nothing_is_left(machine, "router")


def test_stop_removes_the_rules_of_what_was_killed(machine: Machine) -> None:
    machine.kill(*machine.start("router"))
    assert machine.has_rules("router")
    done = machine.service("router", "stop")
    assert (done.returncode, done.stdout) == (0, "natf_router is not running.\n")
    assert not machine.has_rules("router")


def test_at_shutdown_nothing_is_done_for_what_does_not_run(machine: Machine) -> None:
    done = machine.service("router", "faststop")
    assert (done.returncode, done.stdout, done.stderr, machine.calls()) == (0, "", "", [])
    machine.start("router")
    machine.service("router", "faststop")
    assert nothing_is_left(machine, "router")


def test_one_role_is_stopped_without_the_other(machine: Machine) -> None:
    machine.start("router")
    before = machine.start("en")
    machine.service("router", "stop")
    assert machine.processes("en") == before
    assert machine.has_rules("en")
