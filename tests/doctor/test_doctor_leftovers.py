"""Rules without a daemon, a daemon without rules or without a supervisor, ports in other hands."""

from dataclasses import replace

import pytest

from natf_bsd.doctor import leftovers
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.process import Completed
from tests.doctor.machine import RULES, SOCKSTAT, external_node, printed, recorded, router

ROUTER_RULE = "00040 set 7 divert 8701 icmp from any to me in recv epair0b icmptypes 8 // natf"
EN_RULE = "00031 set 5 divert 8710 udp from any 53 to me in recv epair0b // natf"
STAND_IN = "00035 set 6 unreach host ip from any to 240.0.0.0/8 out // natf"


def rules(machine, host):
    return leftovers.rules(host, machine.facts(host))


def test_nothing_is_left_where_nothing_ran(machine):
    for host in (router(), external_node()):
        assert rules(machine, host) == []
        assert leftovers.ports(host, machine.facts(host)) == []
        assert leftovers.orphans(host, machine.facts(host)) == []
        assert leftovers.divert_ports_unseen(host, machine.facts(host)) == []


def test_daemons_are_told_as_they_are(machine):
    def said(host):
        (found,) = leftovers.daemons(host, machine.facts(host))
        return found

    assert said(router()) == Finding(
        Severity.NOTE, "natf router", "not running", "natf router run (FreeBSD: service natf_router start)"
    )
    assert said(router(77)) == Finding(Severity.OK, "natf router", "running (process 77)")
    assert said(router(0)).found == "running (process unknown, just started)"
    (role,) = router().roles
    hidden = router(roles=(replace(role, unseen="/var/run/natf/router.lock: Permission denied"),))
    assert (said(hidden).severity, said(hidden).remedy) == (Severity.NOTE, "run natf doctor as root")


def test_kernel_settings_a_killed_daemon_left_are_a_warning(machine):
    machine.files["/var/run/natf/en.sysctl"] = '{"net.inet.tcp.tso": "1"}'
    _, found = leftovers.daemons(external_node(), machine.facts(external_node()))
    assert (found.severity, found.remedy) == (Severity.WARNING, "natf cleanup en")
    assert len(leftovers.daemons(external_node(77), machine.facts(external_node(77)))) == 1


@pytest.mark.parametrize(
    ("host", "rule", "remedy"),
    [(router(), ROUTER_RULE, "natf cleanup router"), (external_node(), EN_RULE, "natf cleanup en")],
)
def test_rules_without_a_daemon_are_an_error(machine, host, rule, remedy):
    machine.rules(rule)
    (found,) = rules(machine, host)
    assert found.severity is Severity.ERROR
    assert found.remedy.endswith(remedy)


def test_the_other_role_s_rules_are_not_counted(machine):
    machine.rules(ROUTER_RULE)
    assert rules(machine, external_node()) == []


def test_the_stand_in_of_a_daemon_that_is_away_is_only_noted(machine):
    machine.rules(f"# DISABLED {EN_RULE}", STAND_IN)
    (found,) = rules(machine, external_node())
    assert (found.severity, found.title) == (Severity.NOTE, "leftovers of natf en")


def test_a_daemon_with_its_rules_is_well(machine):
    machine.rules(EN_RULE, f"# DISABLED {STAND_IN}", ROUTER_RULE)
    assert rules(machine, external_node(77)) == []
    assert rules(machine, router(78)) == []


@pytest.mark.parametrize(("lines", "state"), [((), "not there"), ((f"# DISABLED {EN_RULE}", STAND_IN), "disabled")])
def test_a_daemon_without_its_rules_is_a_warning(machine, lines, state):
    machine.rules(*lines)
    (found,) = rules(machine, external_node(77))
    assert (found.severity, found.remedy) == (Severity.WARNING, "natf en reload")
    assert found.found == f"it runs (process 77), and its rules are {state}"


def test_a_daemon_that_may_run_is_not_called_dead(machine):
    machine.rules(EN_RULE)
    (role,) = external_node().roles
    host = external_node(roles=(replace(role, unseen="Permission denied"),))
    assert rules(machine, host) == []
    assert leftovers.ports(host, machine.facts(host)) == []


def test_rules_that_cannot_be_read_are_said_elsewhere(machine):
    for listed in (Completed(71, "", "no"), printed("what is this\n")):
        machine.commands[RULES] = listed
        assert rules(machine, router()) == []


@pytest.mark.parametrize(
    ("pidfile", "processes", "is_orphan"),
    [
        ("1465\n", ("1433 1 python3.11 natf en run",), True),  # as recorded after kill -9 of the supervisor
        ("", ("1433 1 python3.11 natf en run",), True),
        ("1432\n", ("1432 1 daemon: natf_en[1433]", "1433 1432 python3.11 natf en run"), False),
        (None, ("1433 1 python3.11 natf en run",), False),  # never had one
        ("1465\n", ("1433 900 python3.11 natf en run",), False),
    ],
)
def test_a_daemon_whose_supervisor_is_dead_is_a_warning(machine, pidfile, processes, is_orphan):
    machine.processes(*processes)
    if pidfile is not None:
        machine.files["/var/run/natf_en.pid"] = pidfile
    found = leftovers.orphans(external_node(1433), machine.facts(external_node(1433)))
    expected = [(Severity.WARNING, "service natf_en stop; service natf_en start")] if is_orphan else []
    assert [(one.severity, one.remedy) for one in found] == expected


def test_a_port_that_others_hold_is_an_error_that_names_them(machine):
    machine.commands[SOCKSTAT] = printed("root natd 891 3 div4 *:8701 *:*\n? ? ? ? div4 *:8702 *:*\n")
    (found,) = leftovers.ports(router(), machine.facts(router()))
    assert (found.severity, found.found) == (
        Severity.ERROR,
        "divert port 8701 (control_queue of [router]) is held by natd (process 891 of root)",
    )
    assert leftovers.ports(router(77), machine.facts(router(77))) == []


def test_ports_in_other_jails_are_no_concern(machine):
    machine.commands[SOCKSTAT] = recorded(SOCKSTAT)
    assert leftovers.ports(router(), machine.facts(router())) == []


def test_programs_that_do_not_answer_are_said(machine):
    del machine.commands[SOCKSTAT]
    (found,) = leftovers.divert_ports_unseen(router(), machine.facts(router()))
    assert found == Finding(Severity.WARNING, "divert ports", "not seen: sockstat -P divert: sockstat: not found")


FLOW = "ipfw nat 7803 config ip 240.0.1.1 reverse redirect_port tcp 203.0.113.1:80 240.0.1.1:80 203.0.113.10:40000\n"


def test_flows_that_a_killed_daemon_gave_to_the_kernel_are_a_warning(machine):
    machine.commands["ipfw nat show config"] = printed(f"ipfw nat 123 config if epair0b same_ports\n{FLOW}")
    (found,) = leftovers.flows(external_node(), machine.facts(external_node()))
    assert (found.severity, found.title) == (Severity.WARNING, "leftovers of natf en")
    assert found.found.startswith("1 flows ")
    assert found.remedy.endswith("natf cleanup en")
    for host in (external_node(77), router()):
        assert leftovers.flows(host, machine.facts(host)) == []
    machine.commands["ipfw nat show config"] = printed(FLOW.replace("7803", "1001"))
    assert leftovers.flows(external_node(), machine.facts(external_node())) == []
