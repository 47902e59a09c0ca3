"""restart, reload, status, configtest, and what rc.d/ipfw and /etc/rc ask for."""

from __future__ import annotations

import pytest

from tests.rc_d.machine import RELEASES, ROLES, Machine

IPFW = "/bin/sh /etc/rc.d/ipfw restart"


@pytest.mark.parametrize("role", ROLES)
def test_a_restart_that_fails_its_check_keeps_the_old_one_running(machine: Machine, role: str) -> None:
    before = machine.start(role)
    machine.tell(check_fails="Error: natf.toml:1: what is wrong\n")
    done = machine.service(role, "restart")
    assert done.returncode == 1
    assert "what is wrong" in done.stderr
    assert machine.processes(role) == before
    assert machine.has_rules(role)


@pytest.mark.parametrize("release", RELEASES)
def test_a_restarted_router_takes_its_rules_back_first(machine: Machine, release: str) -> None:
    machine.tell(release=release)
    before = machine.start("router")
    done = machine.service("router", "restart")
    assert (done.returncode, done.stderr) == (0, "")
    after = machine.processes("router")
    assert not {*before} & {*after}
    assert {*machine.left()} == {*after}
    # Checked once, and not cleaned up: the next one sets its rules anyway.
    words = [call.rsplit(" ", 1)[-1] for call in machine.calls() if not call.startswith("daemon ")]
    assert words == ["check", "run", "check", "undone", "run"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_restarted_external_node_leaves_its_rules_in_force_meanwhile(machine: Machine, release: str) -> None:
    machine.tell(release=release, delay="30")
    before = machine.start("en")
    marker = machine.state / "rules.en"
    marker.write_text("of the first")
    # The next one does not come up, so that what the first has left can be seen.
    machine.tell(run_fails="")
    machine.rc_conf('natf_en_flags="-v"')
    done = machine.service("en", "restart")
    assert (done.returncode, done.stderr) == (0, "")
    assert marker.read_text() == "of the first"
    assert not {*before} & {*machine.left()}
    # At once and with the new flags: the old supervisor would have waited and used the old ones.
    assert machine.calls("daemon ")[-1].endswith(" -v en run")


def test_a_restart_starts_what_does_not_run(machine: Machine) -> None:
    done = machine.service("en", "restart")
    assert (done.returncode, done.stdout) == (0, "Starting natf_en.\n")
    machine.processes("en")


@pytest.mark.parametrize("role", ROLES)
def test_reload_asks_the_daemon_and_has_its_exit_status(machine: Machine, role: str) -> None:
    assert machine.service(role, "reload").returncode == 1
    before = machine.start(role)
    assert machine.service(role, "reload").returncode == 0
    assert machine.calls()[-1] == machine.natf(role, "reload")
    assert machine.processes(role) == before


@pytest.mark.parametrize("role", ROLES)
def test_configtest_checks_and_does_nothing_else(machine: Machine, role: str) -> None:
    assert machine.service(role, "configtest").returncode == 0
    machine.tell(check_fails="Error: what is wrong\n")
    done = machine.service(role, "configtest")
    assert (done.returncode, done.stderr) == (1, "Error: what is wrong\n")
    assert machine.calls() == [machine.natf(role, "check")] * 2


def test_status_tells_the_states_apart(machine: Machine) -> None:
    def status() -> tuple[int, str]:
        done = machine.service("router", "status")
        return done.returncode, done.stdout.strip()

    assert status() == (1, "natf_router is not running.")
    machine.tell(delay="30")
    supervisor, daemon = machine.start("router")
    assert status() == (0, f"natf_router is running as pid {daemon}, supervised by {supervisor}.")
    machine.kill(daemon)
    again = f"its supervisor, pid {supervisor}, starts it again every 2 s (see the system log)."
    assert status() == (1, f"natf_router is not running; {again}")
    machine.kill(supervisor)
    machine.tell(delay="0.2")
    supervisor, daemon = machine.start("router")
    machine.kill(supervisor)
    assert status() == (0, f"natf_router is running as pid {daemon}, without a supervisor.")


@pytest.mark.parametrize("role", ROLES)
def test_when_ipfw_was_restarted_the_running_daemon_sets_its_rules_again(machine: Machine, role: str) -> None:
    before = machine.start(role)
    machine.called_by(IPFW)
    # rc.d/ipfw stops its coscripts, flushes, loads its rules, and starts its coscripts.
    assert machine.service(role, "quietstop").returncode == 0
    assert machine.processes(role) == before
    done = machine.service(role, "quietstart")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls()[-1] == machine.natf(role, "reload")
    assert machine.processes(role) == before


def test_when_ipfw_was_started_a_daemon_that_does_not_run_is_started(machine: Machine) -> None:
    machine.called_by(IPFW)
    assert machine.service("router", "quietstart").returncode == 0
    machine.processes("router")


@pytest.mark.parametrize("boot", ["sh /etc/rc autoboot", "/bin/sh /etc/rc"])
def test_at_boot_ipfw_starts_nothing_before_the_network_is_there(machine: Machine, boot: str) -> None:
    machine.called_by(boot)
    done = machine.service("router", "quietstart")
    assert (done.returncode, done.stdout, done.stderr, machine.calls()) == (0, "", "", [])


def test_rc_itself_may_start_and_anybody_stop_it_quietly(machine: Machine) -> None:
    """/etc/rc does so in jails and out of single-user mode."""
    machine.called_by("/sbin/init")
    assert machine.service("router", "quietstart", autoboot="no").returncode == 0
    machine.processes("router")
    assert machine.service("router", "quietstop").returncode == 0
    assert machine.left() == []


def test_an_unknown_verb_is_refused(machine: Machine) -> None:
    done = machine.service("en", "frobnicate")
    assert done.returncode == 1
    assert "unknown directive 'frobnicate'" in done.stderr
