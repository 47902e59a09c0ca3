"""The outer interface, and names divert(4) cannot tell apart."""

import pytest

from natf_bsd.doctor import interfaces
from natf_bsd.doctor.facts import Role
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.interfaces import Interface
from tests.doctor.machine import RUN_DIR, external_node, printed, router


def host_on(name):
    return router(roles=(Role("router", RUN_DIR, Interface(name, bytes((203, 0, 113, 1)))),))


def test_the_outer_interface_is_named_with_its_address(machine):
    assert interfaces.outer(router(), machine.facts(router())) == [
        Finding(Severity.OK, "outer interface of natf router", "epair0b 203.0.113.1")
    ]


def test_one_without_an_address_is_an_error(machine):
    host = router(roles=(Role("router", RUN_DIR, None, "epair2b has no IPv4 address; expected the public one"),))
    (found,) = interfaces.outer(host, machine.facts(host))
    assert (found.severity, found.found) == (
        Severity.ERROR,
        "epair2b has no IPv4 address; expected the public one",
    )
    assert found.remedy == 'interface = "IF" in [router] of the configuration'


def test_recorded_names_are_clear(machine):
    assert interfaces.names(router(), machine.facts(router())) == []


@pytest.mark.parametrize(
    ("name", "other", "renamed"),
    [
        ("wanport", "wanport0", "wanport0"),  # as recorded in divert-addresses.jsonl
        ("wanport0", "wanport", "wanport0"),
        ("vlan100", "vlan1000", "vlan1000"),
    ],
)
def test_a_name_that_is_the_beginning_of_another_one_is_a_warning(machine, name, other, renamed):
    machine.commands["ifconfig"] = printed(f"{name}: flags=8843<UP> mtu 1500\n{other}: flags=8843<UP> mtu 1500\n")
    host = host_on(name)
    (found,) = interfaces.names(host, machine.facts(host))
    assert found.severity is Severity.WARNING
    assert f"take {name} and {other} for one" in found.found
    assert found.remedy.startswith(f'ifconfig_{renamed}_name="wan0" in /etc/rc.conf')


@pytest.mark.parametrize(("name", "other"), [("wan", "wanport0"), ("epair0b", "epair0a"), ("em0.100", "em0.10")])
def test_names_that_fit_and_differ_are_clear(machine, name, other):
    machine.commands["ifconfig"] = printed(f"{name}: flags=8843<UP>\n\tinet 1.2.3.4\n{other}: flags=8843<UP>\n")
    host = host_on(name)
    assert interfaces.names(host, machine.facts(host)) == []


def test_a_long_name_alone_is_only_noted(machine):
    machine.commands["ifconfig"] = printed("wanport0: flags=8843<UP> mtu 1500\nwanport1: flags=8843<UP> mtu 1500\n")
    host = host_on("wanport0")
    (found,) = interfaces.names(host, machine.facts(host))
    assert (found.severity, found.title) == (Severity.NOTE, "name of wanport0")


# ipfw-commands.jsonl of the recordings: in a jail with a default route, and in one without.
BY_DEFAULT = (
    "   route to: 240.0.1.1\ndestination: 0.0.0.0\n       mask: 0.0.0.0\n    gateway: 203.0.113.1\n        fib: 0\n"
    "  interface: {}\n      flags: <UP,GATEWAY,DONE,STATIC>\n"
)
WAY = "route -n get 240.0.0.1"


def test_a_default_route_by_the_outer_interface_is_way_enough(machine):
    machine.commands[WAY] = printed(BY_DEFAULT.format("epair0b"))
    host = external_node()
    assert interfaces.way_out(host, machine.facts(host)) == [
        Finding(Severity.OK, "way to virtual addresses", "by epair0b")
    ]


@pytest.mark.parametrize(
    ("route", "says"),
    [("", "there is none"), (BY_DEFAULT.format("tun0"), "by tun0, where natf refuses them; it works on epair0b")],
)
def test_no_way_or_another_one_is_an_error_with_the_route_to_add(machine, route, says):
    machine.commands[WAY] = printed(route)
    host = external_node()
    (found,) = interfaces.way_out(host, machine.facts(host))
    assert found.severity is Severity.ERROR
    assert found.found.startswith(says)
    assert "route add -net 240.0.0.0/8 GATEWAY" in found.remedy


def test_a_router_needs_no_way_to_virtual_addresses(machine):
    assert interfaces.way_out(router(), machine.facts(router())) == []
