"""The order of ipfw's rules: what is in front of ours, and what denies mapped flows behind the NAT."""

import pytest

from natf_bsd.doctor import rules
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.process import Completed
from tests.doctor.machine import NATD, RULES, external_node, printed, recorded, router

NAT = f"00050 set 0 {NATD}"
CLOSED = "65535 set 31 deny ip from any to any"
# What /etc/rc.firewall makes of firewall_type="simple" behind natd's rule (FREEBSD.md 2.4).
SIMPLE = (
    "00100 set 0 allow ip from any to any via lo0",
    "00200 set 0 deny ip from any to 127.0.0.0/8",
    f"00900 set 0 {NATD}",
    "01000 set 0 deny ip from table(13) to any via epair0b",
    "01100 set 0 allow tcp from any to any established",
    "01200 set 0 allow ip from any to any frag",
    "01300 set 0 allow tcp from any to me 25 setup",
    "01400 set 0 allow udp from any to me 53",
    "01500 set 0 allow udp from me 53 to any",
    "01600 set 0 deny log logamount 100 ip4 from any to any in via epair0b setup proto tcp",
    "01700 set 0 allow tcp from any to any setup",
    "01800 set 0 allow udp from me to any 53 keep-state :default",
    CLOSED,
)


def places(machine, host):
    return rules.places(host, machine.facts(host))


def denials(machine):
    return rules.denials(router(), machine.facts(router()))


def test_the_places_around_the_nat_are_told(machine):
    assert places(machine, router()) == [
        Finding(Severity.OK, "rules for natf router", "00040 and 00049, 00051 and 00052 around the NAT at 00050 (natd)")
    ]


def test_a_host_without_a_nat_is_an_error_for_a_router_only(machine):
    machine.rules()
    (found,) = places(machine, router())
    assert found.severity is Severity.ERROR
    assert found.found.startswith("no ipfw rule hands all that leaves by epair0b to natd or `ipfw nat`")
    (found,) = places(machine, external_node())
    assert (found.severity, found.found) == (Severity.OK, "from 00029 to 00039")


def test_an_external_node_beside_a_nat_is_told_so(machine):
    (found,) = places(machine, external_node())
    assert found == Finding(Severity.OK, "rules for natf en", "from 00039 to 00055, beside the NAT at 00050 (natd)")


@pytest.mark.parametrize("host", [router(), external_node()])
def test_an_earlier_rule_that_takes_our_packets_is_an_error_that_names_it(machine, host):
    machine.rules("00001 set 0 allow ip from any to any", NAT)
    (found,) = places(machine, host)
    assert found.severity is Severity.ERROR
    assert "ipfw rule 00001 allow ip from any to any" in found.found
    assert found.remedy


@pytest.mark.parametrize(("host", "number"), [(router(), 7), (external_node(), 5), (external_node(), 6)])
def test_foreign_rules_in_our_sets_are_an_error(machine, host, number):
    machine.rules(NAT, f"00300 set {number} count ip from any to any")
    (found,) = places(machine, host)
    assert found.severity is Severity.ERROR
    assert f"`ipfw set move {number} to 8`" in found.found


def test_rules_for_loopback_in_front_of_the_others_are_counted(machine):
    machine.rules("00010 set 0 allow ip from any to any via lo0")
    (found,) = places(machine, external_node())
    assert (found.severity, found.found) == (Severity.OK, "from 00009 to 00039")


def test_rules_that_cannot_be_listed_or_read_are_said(machine):
    machine.commands[RULES] = Completed(71, "", "ipfw: socket: Operation not permitted\n")
    (found,) = places(machine, router())
    assert (found.severity, found.title) == (Severity.WARNING, "rules of ipfw")
    assert denials(machine) == []
    machine.commands[RULES] = printed("something else\n")
    (found,) = places(machine, router())
    assert found.severity is Severity.ERROR
    assert denials(machine) == []


def test_an_open_firewall_lets_mapped_flows_pass(machine):
    assert denials(machine) == [
        Finding(Severity.OK, "mapped flows", "allowed behind the NAT by ipfw rule 65535 allow ip from any to any")
    ]


def test_the_firewall_type_simple_denies_them(machine):
    machine.rules(*SIMPLE)
    tcp, udp = denials(machine)
    assert (tcp.severity, tcp.title) == (Severity.WARNING, "mapped TCP flows")
    assert "denied by ipfw rule 01600 deny log logamount 100 ip4" in tcp.found
    assert "add allow tcp from any to 192.168.0.2 in recv epair0b (number it from 906 to 1599)" in tcp.remedy
    assert (udp.severity, udp.title) == (Severity.WARNING, "mapped UDP flows")
    assert "denied by ipfw rule 65535 deny ip from any to any" in udp.found


def test_simple_with_rules_for_the_inside_hosts_is_only_noted(machine):
    allowed = "00950 set 0 allow ip from any to 192.168.0.2 in recv epair0b"
    machine.rules(*SIMPLE[:3], allowed, *SIMPLE[3:])
    tcp, udp = denials(machine)
    assert (tcp.severity, udp.severity) == (Severity.NOTE, Severity.NOTE)
    assert "but for what these allow: 00950 allow ip from any to 192.168.0.2 in recv epair0b" in tcp.found


@pytest.mark.parametrize(
    "rule",
    [
        "allow ip from any to any via lo0",
        "allow ip from any to any via epair1a",
        "allow tcp from any to any established",
        "allow ip from any to any frag",
        "allow ip from any to any out keep-state :default",
        "allow ip from any to any out xmit epair0b",
        "allow ip from any to me",
        "allow ip from me to any",
        "allow icmp from any to any",
        "count ip from any to any",
        "check-state :default",
        "skipto 500 ip from any to any",
    ],
)
def test_rules_that_do_not_allow_new_flows_from_outside_do_not_hide_a_denial(machine, rule):
    machine.rules(NAT, f"00100 set 0 {rule}", CLOSED)
    (found,) = denials(machine)
    assert (found.severity, found.title) == (Severity.WARNING, "mapped flows")


@pytest.mark.parametrize(
    "rule",
    [
        "allow ip from any to any",
        "pass ip from any to any in via epair0b",
        "accept log logamount 5 ip4 from any to any recv epair0b keep-state :default",
        "permit { tcp or udp } from any to any",
    ],
)
def test_a_rule_that_allows_all_is_enough(machine, rule):
    machine.rules(NAT, f"00100 set 0 {rule}", CLOSED)
    (found,) = denials(machine)
    assert (found.severity, found.title) == (Severity.OK, "mapped flows")


@pytest.mark.parametrize(
    "rule",
    [
        "deny ip from 10.0.0.0/8 to any via epair0b",
        "deny ip from any to 10.0.0.0/8",
        "deny ip from any to any via epair9a",
        "deny ip from any to any 137-139",
        "deny tcp from any to any established",
    ],
)
def test_a_denial_of_some_is_the_site_s_own_affair(machine, rule):
    machine.rules(NAT, f"00100 set 0 {rule}")
    (found,) = denials(machine)
    assert found.severity is Severity.OK


@pytest.mark.parametrize(
    "rule", ["deny ip from any to any", "reset tcp from any to any", "unreach port ip from any to any"]
)
def test_every_kind_of_denial_counts(machine, rule):
    machine.rules(NAT, f"00100 set 0 {rule}")
    assert denials(machine)[0].severity is Severity.WARNING


def test_disabled_rules_and_those_in_front_of_the_nat_do_not_count(machine):
    machine.rules(
        "00020 set 0 deny tcp from any to any 80 in via epair0b setup",
        NAT,
        "# DISABLED 00100 set 9 deny ip from any to any",
    )
    (found,) = denials(machine)
    assert found.severity is Severity.OK


def test_the_recorded_rules_are_refused_for_what_is_in_set_5(machine):
    """The recordings' router kept its rules there."""
    machine.commands[RULES] = recorded(RULES)
    (found,) = places(machine, external_node())
    assert found.severity is Severity.ERROR
    assert "is not natf's and in set 5" in found.found
