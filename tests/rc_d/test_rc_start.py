"""`service natf_en start`, `natf_router start`: what must be right before a daemon is started, and how it is."""

from __future__ import annotations

import os
import re

import pytest

from tests.rc_d.machine import ROLES, ROOT, Machine, wait_for

DENIES = "net.inet.ip.fw.default_to_accept"


@pytest.mark.parametrize("role", ROLES)
def test_its_place_in_the_boot_order(role: str) -> None:
    text = (ROOT / "rc.d" / f"natf_{role}").read_text()
    assert re.findall(r"^# ([A-Z]+): (.*)$", text, re.MULTILINE) == [
        ("PROVIDE", f"natf_{role}"),
        ("REQUIRE", "NETWORKING ipfw"),
        ("BEFORE", "DAEMON"),
        ("KEYWORD", "nojailvnet shutdown"),
    ]
    # service(8) -e and -R take these two lines out of the file and evaluate them alone.
    assert f'\nname="natf_{role}"\n' in text
    assert f'\nrcvar="natf_{role}_enable"\n' in text


@pytest.mark.parametrize("role", ROLES)
def test_the_head_names_every_setting_the_script_reads(role: str) -> None:
    head, code = (ROOT / "rc.d" / f"natf_{role}").read_text().split("\n. /etc/rc.subr")
    settings = set(re.findall(rf"\bnatf_{role}_\w+", code)) | {f"natf_{role}_flags"}
    # Not for users: a NO that no user has a reason to change.
    assert settings - set(re.findall(rf"natf_{role}_\w+", head)) == {f"natf_{role}_svcj"}


@pytest.mark.parametrize("role", ROLES)
def test_it_is_checked_then_started_under_a_supervisor(machine: Machine, role: str) -> None:
    done = machine.service(role, "start")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Starting natf_{role}.\n", "")
    machine.processes(role)
    options = f"-f -P {machine.pidfile(role)} -r -R 2 -S -T natf_{role} -t natf_{role}"
    natf = machine.config.parents[1] / "bin" / "natf"
    assert machine.calls() == [
        machine.natf(role, "check"),
        f"daemon {options} {natf} --config {machine.config} {role} run",
        machine.natf(role, "run"),
    ]


def test_settings_of_rc_conf_are_obeyed(machine: Machine) -> None:
    other = machine.config.with_name("other.toml")
    other.write_text("[router]\n")
    machine.rc_conf(f'natf_router_config="{other}" natf_router_flags="-v" natf_router_restart_delay=7')
    machine.start("router")
    [daemon] = machine.calls("daemon ")
    assert " -R 7 " in daemon
    assert daemon.endswith(f"/natf --config {other} -v router run")
    assert machine.calls("natf ")[0] == f"natf --config {other} router check"


def test_a_service_that_is_not_enabled_is_not_started(machine: Machine) -> None:
    machine.tell(**{"rc.conf": ""})
    done = machine.service("router", "start")
    assert done.returncode == 0
    assert "Set natf_router_enable to YES" in done.stdout
    assert machine.calls() == []
    assert machine.service("router", "onestart").returncode == 0
    machine.processes("router")


@pytest.mark.parametrize("role", ROLES)
def test_what_fails_its_check_is_not_started(machine: Machine, role: str) -> None:
    machine.tell(check_fails="Error: natf.toml:1: what is wrong\n")
    done = machine.service(role, "start")
    assert done.returncode == 1
    assert "natf.toml:1: what is wrong" in done.stderr
    assert machine.calls("daemon ") == []


def test_the_caller_s_output_is_not_kept_open(machine: Machine) -> None:
    done = machine.shell(f"{machine.script('en')} start | cat")
    assert done.stdout == "Starting natf_en.\n"
    machine.processes("en")


def test_a_second_start_says_that_it_runs(machine: Machine) -> None:
    supervisor, daemon = machine.start("en")
    done = machine.service("en", "start")
    assert done.returncode == 1
    assert f"natf_en already running?  (pid={supervisor})" in done.stderr
    # At boot rc.subr does not look.
    done = machine.service("en", "faststart")
    assert done.returncode == 1
    assert f"process {daemon} runs as en already" in done.stderr
    assert len(machine.calls("daemon ")) == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_daemon_whose_supervisor_was_killed_is_found(machine: Machine, role: str) -> None:
    supervisor, daemon = machine.start(role)
    machine.kill(supervisor)
    done = machine.service(role, "start")
    assert done.returncode == 1
    assert f"process {daemon} runs as {role} already; end it with: service natf_{role} stop" in done.stderr
    assert len(machine.calls("daemon ")) == 1


def test_the_number_of_a_daemon_that_was_killed_holds_nobody_up(machine: Machine) -> None:
    supervisor, daemon = machine.start("router")
    machine.kill(supervisor, daemon)
    # Its number may be another's by now.
    (machine.run_dir / "router.lock").write_text("1\n")
    machine.start("router")


def test_somebody_elses_process_is_not_taken_for_the_daemon_whatever_it_is_called(machine: Machine) -> None:
    """A user may wait for the number of one that was killed: it would keep the service from starting."""
    machine.run_dir.mkdir(parents=True)
    (machine.run_dir / "router.lock").write_text(f"{os.getpid()}\n")
    machine.called_by("sh -c natf router run")
    assert machine.service("router", "start").returncode == 1
    (machine.state / "owners").mkdir()
    machine.tell(**{f"owners/{os.getpid()}": "1001\n"})
    machine.start("router")


@pytest.mark.parametrize(
    "text",
    [
        '[router]\nrun_dir = "DIR"\n',
        "[en]\nrun_dir = '/elsewhere'\n\n[ router ]  # here\n  run_dir='DIR' # and so\n",
        '[en]\n[router]\ninterface = "em0"\nrun_dir = "DIR"\n[en.keys]\nrun_dir = "/no"\n',
    ],
)
def test_the_lock_is_where_the_configuration_says(machine: Machine, text: str) -> None:
    machine.run_dir = machine.run_dir.with_name("other")
    machine.tell(run_dir=str(machine.run_dir))
    machine.config.write_text(text.replace("DIR", str(machine.run_dir)))
    _, daemon = machine.start("router")
    assert machine.service("router", "status").stdout.startswith(f"natf_router is running as pid {daemon}, ")


def test_modules_are_loaded_before_the_check(machine: Machine) -> None:
    machine.tell(modules="ipfw\n")
    machine.start("router")
    assert machine.calls()[:2] == ["kldload ipdivert", machine.natf("router", "check")]


@pytest.mark.parametrize("role", ROLES)
def test_ipfw_is_not_loaded_where_that_would_cut_the_machine_off(machine: Machine, role: str) -> None:
    machine.tell(modules="")
    done = machine.service(role, "start")
    assert done.returncode == 1
    assert "ipfw is not loaded, and loaded without rules it would cut this machine off the network" in done.stderr
    assert 'firewall_enable="YES"' in done.stderr
    assert machine.calls() == []


def test_ipfw_is_loaded_where_it_accepts_by_default(machine: Machine) -> None:
    machine.tell(modules="", **{DENIES: "1\n"})
    machine.start("en")
    assert machine.calls("kldload") == ["kldload ipfw", "kldload ipdivert", "kldload ipfw_nat"]


@pytest.mark.parametrize(("jailed", "tried"), [("0\n", ["kldload ipfw_nat"]), ("1\n", [])])
def test_what_only_makes_it_faster_is_no_reason_not_to_start(machine: Machine, jailed: str, tried: list[str]) -> None:
    machine.tell(modules="ipfw\nipdivert\n", absent="ipfw_nat\n", **{"security.jail.jailed": jailed})
    machine.start("en")
    machine.start("router")
    assert machine.calls("kldload") == tried


@pytest.mark.parametrize(("loaded", "missing"), [("", "ipfw"), ("ipfw\n", "ipdivert")])
def test_a_jail_is_told_what_its_host_must_load(machine: Machine, loaded: str, missing: str) -> None:
    machine.tell(modules=loaded, **{"security.jail.jailed": "1\n", DENIES: "1\n"})
    done = machine.service("router", "start")
    assert done.returncode == 1
    assert f"{missing} is not in the kernel, and a jail may not load it; on the host: kldload {missing}" in done.stderr
    assert machine.calls() == []


def test_in_a_jail_with_all_modules_it_starts(machine: Machine) -> None:
    machine.tell(**{"security.jail.jailed": "1\n"})
    machine.start("router")
    assert machine.calls("kldload") == []


def test_a_daemon_that_dies_is_started_again(machine: Machine) -> None:
    supervisor, daemon = machine.start("en")
    machine.kill(daemon)
    wait_for(lambda: machine.daemon("en") not in (None, daemon))
    assert machine.supervisor("en") == supervisor
