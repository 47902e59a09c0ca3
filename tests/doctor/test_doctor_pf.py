"""pf next to ipfw."""

from dataclasses import replace

import pytest

from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.doctor.pf import pf
from natf_bsd.ops.process import Completed
from tests.doctor.machine import printed, recorded, router

ENABLED = "Status: Enabled for 0 days 00:00:05           Debug: Urgent\n"
SKIPPED = "epair0b (skip)\nepair1a (skip)\nlo0 (skip)\n"  # pf.jsonl


def finding(machine, host=None):
    host = host or router()
    (found,) = pf(host, machine.facts(host))
    return found


def test_without_pf_in_the_kernel_all_is_well(machine):
    machine.commands["kldstat -q -m pf"] = recorded("kldstat -q -m nosuch")
    assert finding(machine) == Finding(Severity.OK, "pf next to ipfw", "pf is not in the kernel")


def test_the_recorded_pf_is_disabled(machine):
    assert finding(machine) == Finding(Severity.OK, "pf next to ipfw", "pf is disabled")


def test_a_jail_that_cannot_reach_pf_is_well(machine):
    machine.commands["pfctl -s info"] = Completed(1, "", "pfctl: /dev/pf: No such file or directory\n")
    assert finding(machine).severity is Severity.OK


def test_pf_on_the_outer_interface_is_an_error(machine):
    machine.commands["pfctl -s info"] = printed(ENABLED)
    found = finding(machine)
    assert found.severity is Severity.ERROR
    assert found.remedy == "`set skip on epair0b` in /etc/pf.conf, and pfctl -f /etc/pf.conf"


@pytest.mark.parametrize(("text", "severity"), [(SKIPPED, Severity.OK), ("epair0b\nepair0 (skip)\n", Severity.ERROR)])
def test_pf_that_skips_it_is_well(machine, text, severity):
    machine.commands["pfctl -s info"] = printed(ENABLED)
    machine.commands["pfctl -v -s Interfaces"] = printed(text)
    assert finding(machine).severity is severity


def test_before_freebsd_14_pf_does_no_harm(machine):
    machine.commands["pfctl -s info"] = printed(ENABLED)
    machine.set("kern.osreldate", "1302001")
    assert finding(machine).severity is Severity.NOTE


def test_a_pf_that_cannot_be_asked_is_said(machine):
    machine.commands["pfctl -s info"] = Completed(1, "", "pfctl: /dev/pf: Permission denied\n")
    assert finding(machine, replace(router(), root=False)) == Finding(
        Severity.NOTE,
        "pf next to ipfw",
        "not seen: pfctl -s info: pfctl: /dev/pf: Permission denied",
        "run natf doctor as root",
    )
    machine.commands["pfctl -s info"] = printed(ENABLED)
    del machine.commands["pfctl -v -s Interfaces"]
    assert finding(machine).severity is Severity.WARNING
