"""rc.conf."""

from pathlib import Path

import pytest

from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.doctor.services import rc_conf
from natf_bsd.ops.process import Completed
from tests.doctor.machine import SYSRC, external_node, printed, router

ROUTER = {
    "natf_router_enable": "YES",
    "firewall_enable": "yes",
    "gateway_enable": "YES",
    "natd_enable": "YES",
    "firewall_coscripts": "/etc/rc.d/other /usr/local/etc/rc.d/natf_router",
}


def findings(machine, host=None, **knobs):
    machine.commands[SYSRC] = printed("".join(f"{name}: {value}\n" for name, value in knobs.items()))
    host = host or router()
    return rc_conf(host, machine.facts(host))


def test_a_router_that_will_start_with_all_it_needs_is_well(machine):
    assert findings(machine, **ROUTER) == [Finding(Severity.OK, "natf_router", "started at boot (natf_router_enable)")]


def test_a_service_that_is_not_enabled_is_only_noted(machine):
    (found,) = findings(machine, external_node(), firewall_enable="NO")
    assert found == Finding(Severity.NOTE, "natf_en", "not started at boot", "sysrc natf_en_enable=YES")


@pytest.mark.parametrize("missing", ["firewall_enable", "gateway_enable", "natd_enable"])
def test_what_a_router_needs_at_boot_is_a_warning_where_it_is_off(machine, missing):
    _, found = findings(machine, **(ROUTER | {missing: "NO"}))
    assert (found.severity, found.remedy) == (Severity.WARNING, f"sysrc {missing}=YES")


def test_a_nat_in_the_kernel_does_as_well(machine):
    knobs = ROUTER | {"natd_enable": "NO", "firewall_nat_enable": "YES"}
    assert [one.severity for one in findings(machine, **knobs)] == [Severity.OK]


def test_an_external_node_needs_neither_a_nat_nor_forwarding(machine):
    found = findings(
        machine, external_node(), natf_en_enable="YES", firewall_enable="YES", firewall_coscripts="/opt/rc.d/natf_en"
    )
    assert [one.severity for one in found] == [Severity.OK]


def test_a_script_that_ipfw_does_not_call_is_noted(machine):
    _, found = findings(machine, **(ROUTER | {"firewall_coscripts": "/etc/rc.d/other"}))
    assert (found.severity, found.remedy) == (
        Severity.NOTE,
        'sysrc firewall_coscripts+=" /usr/local/etc/rc.d/natf_router"',
    )


def test_another_configuration_than_the_one_looked_at_is_noted(machine):
    host = router(configuration=Path("/usr/local/etc/natf.toml"))
    assert len(findings(machine, host, **ROUTER, natf_router_config="/usr/local/etc/natf.toml")) == 1
    _, found = findings(machine, host, **ROUTER, natf_router_config="/root/natf.toml")
    assert (found.severity, found.remedy) == (Severity.NOTE, "natf --config /root/natf.toml doctor")


def test_an_rc_conf_that_cannot_be_asked_is_said(machine):
    machine.commands[SYSRC] = Completed(1, "", "sysrc: no\n")
    (found,) = rc_conf(router(), machine.facts(router()))
    assert found.severity is Severity.WARNING
