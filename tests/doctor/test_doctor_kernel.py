"""Modules and kernel settings of FreeBSD."""

from dataclasses import replace

import pytest

from natf_bsd.doctor import kernel
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.process import Completed
from tests.doctor.machine import SYSCTL, external_node, recorded, router


def by_title(findings):
    return {finding.title: finding for finding in findings}


def test_what_is_compiled_into_the_kernel_counts_as_loaded(machine):
    found = kernel.modules(router(), machine.facts(router()))
    assert found == [Finding(Severity.OK, name, "in the kernel") for name in ("ipfw", "ipdivert")]


def test_a_missing_module_is_an_error_with_the_way_to_get_it(machine):
    machine.set("security.jail.jailed", "0")
    machine.commands["kldstat -q -m ipdivert"] = recorded("kldstat -q -m nosuch")
    found = by_title(kernel.modules(router(), machine.facts(router())))
    assert found["ipfw"].severity is Severity.OK
    assert found["ipdivert"].severity is Severity.ERROR
    assert found["ipdivert"].remedy.startswith("kldload ipdivert")


def test_without_ipfw_nobody_is_told_to_load_it_alone(machine):
    """It denies everything by default: whoever came by ssh would be cut off."""
    machine.set("security.jail.jailed", "0")
    machine.commands["kldstat -q -m ipfw"] = recorded("kldstat -q -m nosuch")
    found = by_title(kernel.modules(router(), machine.facts(router())))
    assert found["ipfw"].remedy.startswith("sysrc firewall_enable=YES")


def test_a_jail_is_told_that_its_host_must_load_modules(machine):
    machine.commands["kldstat -q -m ipdivert"] = recorded("kldstat -q -m nosuch")
    found = by_title(kernel.modules(router(), machine.facts(router())))
    assert found["ipdivert"].remedy == "on the jail's host: kldload ipdivert"


def test_a_jail_without_a_network_stack_is_an_error(machine):
    machine.set("security.jail.vnet", "0")
    found = by_title(kernel.modules(router(), machine.facts(router())))
    assert found["jail"].severity is Severity.ERROR


def test_a_module_that_cannot_be_asked_for_is_not_called_missing(machine):
    del machine.commands["kldstat -q -m ipfw"]
    found = by_title(kernel.modules(router(), machine.facts(router())))
    assert found["ipfw"] == Finding(Severity.WARNING, "ipfw", "not seen: kldstat -q -m ipfw: kldstat: not found")


def test_the_settings_of_a_router_are_well(machine):
    found = kernel.kernel_settings(router(), machine.facts(router()))
    assert [(one.severity, one.found) for one in found] == [
        (Severity.OK, "kern.ipc.maxsockbuf is 2097152"),
        (Severity.OK, "net.inet.ip.forwarding is 1"),
    ]


def test_the_settings_of_an_external_node_are_well(machine):
    machine.set("net.inet.ip.allow_net240", "1")
    found = kernel.kernel_settings(external_node(), machine.facts(external_node()))
    assert [(one.severity, one.found) for one in found] == [
        (Severity.OK, "kern.ipc.maxsockbuf is 2097152"),
        (Severity.OK, "net.inet.tcp.tso is 1; natf en sets it to 0 while it runs"),
        (Severity.OK, "net.inet.ip.allow_net240 is 1"),
    ]


@pytest.mark.parametrize(
    ("host", "name", "value", "title", "severity", "remedy"),
    [
        (router(), "net.inet.ip.forwarding", "0", "forwarding", Severity.ERROR, "sysrc gateway_enable=YES"),
        (router(), "net.inet.ip.fw.enable", "0", "ipfw", Severity.ERROR, "sysctl net.inet.ip.fw.enable=1"),
        (
            router(),
            "kern.ipc.maxsockbuf",
            "1048576",
            "receive buffers",
            Severity.WARNING,
            "kern.ipc.maxsockbuf=2097152",
        ),
        (
            external_node(77),
            "net.inet.tcp.tso",
            "1",
            "TCP segmentation offload",
            Severity.WARNING,
            "net.inet.tcp.tso=0",
        ),
        (external_node(), "net.inet.ip.allow_net240", "0", "virtual addresses", Severity.NOTE, "allow_net240=1"),
    ],
)
def test_a_wrong_setting_is_told_with_its_name_and_the_right_value(machine, host, name, value, title, severity, remedy):
    machine.set(name, value)
    found = by_title(kernel.kernel_settings(host, machine.facts(host)))[title]
    assert found.severity is severity
    assert found.found.startswith((f"{name} is {value}", f"switched off: {name} is {value}"))
    assert remedy in found.remedy


@pytest.mark.parametrize(("level", "titles"), [("2", []), ("3", ["secure level"]), ("-1", [])])
def test_a_secure_level_that_forbids_rules_is_an_error(machine, level, titles):
    machine.commands[SYSCTL] = Completed(0, f"kern.securelevel: {level}\n", "")
    found = kernel.kernel_settings(router(), machine.facts(router()))
    assert [one.title for one in found if one.severity is Severity.ERROR] == titles


def test_a_setting_this_release_does_not_have_is_not_missed(machine):
    machine.set("net.inet.ip.allow_net240", None)
    found = by_title(kernel.kernel_settings(external_node(), machine.facts(external_node())))
    assert "virtual addresses" not in found


@pytest.mark.parametrize(("root", "severity"), [(True, Severity.WARNING), (False, Severity.NOTE)])
def test_settings_that_cannot_be_read_are_said(machine, root, severity):
    host = replace(router(), root=root)
    del machine.commands[SYSCTL]
    (found,) = kernel.kernel_settings(host, machine.facts(host))
    assert (found.severity, found.title) == (severity, "kernel settings")
    assert found.found.startswith("not seen: sysctl -i ")


@pytest.mark.parametrize(
    ("release", "severity"), [("1402000", Severity.NOTE), ("1300000", Severity.NOTE), ("1204000", Severity.OK)]
)
def test_a_release_whose_nat_needs_its_clock_kept_going_is_noted(machine, release, severity):
    machine.set("kern.osreldate", release)
    (found,) = kernel.clock(router(), machine.facts(router()))
    assert found.severity is severity
    assert kernel.clock(external_node(), machine.facts(external_node())) == []


def test_what_keeps_the_kernel_from_translating_is_a_note(machine):
    def said(host):
        return [found.found for found in kernel.kernel_path(host, machine.facts(host))]

    host = external_node()
    machine.set("net.inet.ip.fw.one_pass", "1")
    assert said(host) == []
    machine.commands["kldstat -q -m ipfw_nat"] = Completed(1, "", "")
    machine.set("net.inet.ip.fw.one_pass", "0")
    assert [text.partition(":")[0] for text in said(host)] == [
        "ipfw_nat is not in the kernel",
        "net.inet.ip.fw.one_pass is not 1",
    ]
    assert said(replace(host, en=replace(host.en, kernel_path=False))) == []
    assert said(router()) == []
