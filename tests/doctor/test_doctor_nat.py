"""natd and `ipfw nat`: are they there, and with the options a router needs."""

from dataclasses import replace

import pytest

from natf_bsd.doctor import nat
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.process import Completed
from tests.doctor.machine import NAT, NATD, PROCESSES, RULES, SOCKSTAT, external_node, printed, recorded, router

NAT_123 = "00050 set 0 nat 123 ip4 from any to any via epair0b"


def findings(machine, host=None):
    host = host or router()
    return nat.nat(host, machine.facts(host))


def test_the_recorded_natd_is_well(machine):
    assert findings(machine) == [
        Finding(Severity.OK, "natd of rule 00050", "runs (process 891) and reads divert port 8668"),
        Finding(Severity.OK, "natd -deny_incoming", "given to process 891"),
    ]


def test_without_a_nat_there_is_nothing_to_judge(machine):
    machine.rules()
    assert findings(machine) == []


@pytest.mark.parametrize(
    ("options", "file", "denies"),
    [
        ("-n epair0b -d", None, True),
        ("-n epair0b -deny_incoming yes", None, True),
        ("-n epair0b -deny_incoming no", None, False),
        ("-n epair0b", None, False),
        ("-f /etc/natd.conf", "interface epair0b\ndeny_incoming yes # as it should\n", True),
        ("-config /etc/natd.conf", "interface epair0b\n#deny_incoming yes\n", False),
    ],
)
def test_deny_incoming_is_found_on_the_command_line_or_in_the_file(machine, options, file, denies):
    machine.processes(f"891 1 /sbin/natd {options}")
    if file is not None:
        machine.files["/etc/natd.conf"] = file
    found = findings(machine)[1]
    assert (found.title, found.severity) == ("natd -deny_incoming", Severity.OK if denies else Severity.WARNING)
    assert ('natd_flags+=" -deny_incoming"' in found.remedy) is not denies


def test_a_file_that_cannot_be_read_leaves_it_open(machine):
    machine.processes("891 1 natd -f /etc/natd.conf")
    assert findings(machine)[1] == Finding(
        Severity.NOTE,
        "natd -deny_incoming",
        "not on the command line of process 891, and its file is not seen: /etc/natd.conf: No such file or directory",
        "run natf doctor as root, or look into the file for deny_incoming",
    )


def test_a_rule_without_a_natd_is_an_error(machine):
    machine.processes()
    machine.commands[SOCKSTAT] = printed("USER COMMAND PID FD PROTO LOCAL FOREIGN\n")
    (found,) = findings(machine)
    assert (found.severity, found.remedy) == (Severity.ERROR, "sysrc natd_enable=YES; service natd start")


def test_a_natd_in_another_jail_does_not_count(machine):
    machine.commands[PROCESSES] = printed("JID PID PPID COMMAND\n  5 891 1 natd -n epair0b -deny_incoming\n")
    machine.commands[SOCKSTAT] = printed("")
    (found,) = findings(machine)
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize("port", ["-port 8669", "-p 8669", "-in_port 8669 -out_port 8670"])
def test_a_natd_on_another_port_than_its_rule_is_an_error_that_names_both(machine, port):
    machine.processes(f"891 1 natd -n epair0b -d {port}")
    machine.commands[SOCKSTAT] = printed("")
    (found,) = findings(machine)
    assert found.severity is Severity.ERROR
    assert found.found.startswith("the rule diverts to port 8668, and no natd reads that (process 891 reads 8669")
    assert 'natd_flags="-port 8668"' in found.remedy


@pytest.mark.parametrize("port", ["", "-port natd", "-port 8668", "-in_port 8668 -out_port 8668"])
def test_the_port_of_a_natd_may_be_said_in_several_ways(machine, port):
    machine.processes(f"891 1 natd -d {port}")
    assert [one.severity for one in findings(machine)] == [Severity.OK, Severity.OK]


def test_another_program_at_the_port_is_noted(machine):
    machine.processes()
    machine.commands[SOCKSTAT] = printed("root mynat 900 3 div4 *:8668 *:*\n")
    (found,) = findings(machine)
    assert (found.severity, found.found) == (
        Severity.NOTE,
        "divert port 8668 is read by mynat (process 900 of root); natf takes it for a NAT",
    )


def test_processes_that_cannot_be_seen_are_no_proof(machine):
    host = replace(router(), root=False)
    machine.processes()
    machine.commands[SOCKSTAT] = printed("")
    machine.set("security.bsd.see_other_uids", "0")
    (found,) = findings(machine, host)
    assert (found.severity, found.remedy) == (Severity.NOTE, "run natf doctor as root")
    del machine.commands[PROCESSES]
    (found,) = findings(machine)
    assert (found.severity, found.found) == (Severity.WARNING, f"not seen: {PROCESSES}: ps: not found")


def test_without_the_rules_the_flags_are_judged_all_the_same(machine):
    machine.commands[RULES] = Completed(71, "", "ipfw: socket: Operation not permitted\n")
    assert findings(machine) == [Finding(Severity.OK, "natd -deny_incoming", "given to process 891")]
    assert findings(machine, external_node()) == []


def test_an_external_node_does_not_care_for_deny_incoming(machine):
    machine.processes("891 1 natd -n epair0b")
    assert [one.title for one in findings(machine, external_node())] == ["natd of rule 00050"]


def test_a_nat_in_the_kernel_is_well(machine):
    machine.rules(NAT_123)
    machine.commands[NAT] = recorded(NAT)
    machine.set("net.inet.ip.fw.one_pass", "0")
    assert findings(machine) == [Finding(Severity.OK, "ipfw nat 123", "if epair0b deny_in same_ports")]


def test_one_pass_is_an_error_for_a_nat_in_the_kernel_only(machine):
    """It is 1 by default, and of no effect on divert (FREEBSD.md 2.2)."""
    assert Severity.ERROR not in [one.severity for one in findings(machine)]
    machine.rules(NAT_123)
    machine.commands[NAT] = recorded(NAT)
    found = findings(machine)[-1]
    assert found.severity is Severity.ERROR
    assert found.found.startswith("net.inet.ip.fw.one_pass is 1: ")
    assert found.remedy.startswith("sysctl net.inet.ip.fw.one_pass=0; ")


def test_options_a_nat_in_the_kernel_lacks_are_told_with_all_it_should_have(machine):
    machine.rules(NAT_123)
    machine.set("net.inet.ip.fw.one_pass", "0")
    machine.commands[NAT] = printed("ipfw nat 123 config if epair0b log\n")
    _, deny, ports = findings(machine)
    assert (deny.severity, ports.severity) == (Severity.WARNING, Severity.NOTE)
    assert deny.remedy == ports.remedy == 'sysrc firewall_nat_flags="log deny_in same_ports"; service ipfw restart'


def test_a_rule_for_an_instance_that_is_not_there_is_an_error(machine):
    machine.rules(NAT_123)
    machine.commands[NAT] = printed("ipfw nat 1234 config if epair0b\n")
    assert findings(machine)[0].found == "there is no such instance: its rule denies everything"


def test_natd_is_found_by_the_rule_of_the_outer_interface(machine):
    machine.rules("00040 set 0 divert 9000 ip4 from any to any via epair1a", f"00050 set 0 {NATD}")
    assert findings(machine)[0].title == "natd of rule 00050"
