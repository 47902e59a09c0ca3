"""The NAT that is there is found by its rules, or it is said why not and what would make one."""

from __future__ import annotations

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw_nat import NatRule, find_nat, no_nat
from tests.firewall.ipfw_rule_sets import CLIENT, KERNEL_NAT, NATD, OPEN, OUTER, SIMPLE, SPLIT, WORKSTATION, rules


def nat(*bodies: str) -> NatRule | None:
    """Of rules 50, 60, ..."""
    listing = "".join(f"{50 + 10 * at:05} set 0 {body}\n" for at, body in enumerate(bodies))
    return find_nat(rules(listing), OUTER)


NATD_AT_50 = NatRule(50, "natd", 8668, None, 50)


@pytest.mark.parametrize("listing", [NATD + OPEN, NATD + CLIENT])
def test_natd_of_rc_firewall_is_found(listing: str) -> None:
    assert find_nat(rules(listing), OUTER) == NATD_AT_50


def test_natd_of_the_simple_type_has_a_number_of_its_own() -> None:
    assert find_nat(rules(SIMPLE), OUTER) == NatRule(1400, "natd", 8668, None, 1400)


def test_the_nat_in_the_kernel_is_found() -> None:
    assert find_nat(rules(KERNEL_NAT + OPEN), OUTER) == NatRule(50, "ipfw nat", 123, None, 50)


def test_a_rule_for_each_direction_is_one_nat() -> None:
    assert find_nat(rules(SPLIT), OUTER) == NatRule(1000, "ipfw nat", 1, None, 100)
    assert nat("divert 8670 ip from any to any out via em0", "divert 8669 ip from any to me in via em0") == NatRule(
        50, "natd", 8670, None, 60
    )


@pytest.mark.parametrize(
    "body",
    [
        "divert 8668 all from any to any via em0",
        "divert 8668 log ip from any to any via em*",
        "divert 8668 log logamount 10 ip4 from any to any via 203.0.113.1 // the NAT",
        "divert 8668 ip from any to any",
    ],
)
def test_other_ways_to_say_all_that_passes_the_interface(body: str) -> None:
    assert nat(body) == NATD_AT_50


def test_the_inside_a_rule_asks_for_is_remembered() -> None:
    found = nat("divert 8668 ip from any to any out recv em1 xmit em0", "divert 8668 ip from any to any in recv em0")
    assert found == NatRule(50, "natd", 8668, "em1", 60)


@pytest.mark.parametrize(
    "listing",
    [
        OPEN,
        WORKSTATION,
        "00050 set 0 divert 8668 ip4 from any to any via em1\n",
        "00050 set 0 divert 8668 ip from 192.168.0.0/24 to any via em0\n",
        "00050 set 0 divert 8668 tcp from any to any via em0\n",
        "00050 set 0 divert 8668 ip from any to any in via em0\n",
        "00050 set 0 divert 8668 ip from any to any via em0 not diverted\n",
        "00050 set 0 divert 8668 ip from any to any out recv table(2) xmit em0\n",
        "00050 set 0 nat tablearg ip from any to any via em0\n",
        "# DISABLED 00050 set 0 divert 8668 ip4 from any to any via em0\n",
        "00051 set 7 divert 8702 ip from any to any via em0 // natf\n",
    ],
)
def test_what_is_no_rule_for_all_that_leaves_is_not_taken_for_one(listing: str) -> None:
    assert find_nat(rules(listing), OUTER) is None


def test_without_a_nat_the_text_says_which_lines_make_one() -> None:
    listing = "00050 set 0 divert 8668 ip from 192.168.0.0/24 to any via em0\n" + OPEN
    assert str(no_nat(rules(listing), OUTER)) == (
        "no ipfw rule hands all that leaves by em0 to natd or `ipfw nat` (found only: 00050 divert 8668 ip from"
        " 192.168.0.0/24 to any via em0); expected a rule such as `divert natd ip4 from any to any via em0`, which"
        " these lines of /etc/rc.conf make: gateway_enable=YES, firewall_enable=YES, firewall_type=open,"
        " natd_enable=YES, natd_interface=em0 (or, for the NAT in the kernel, firewall_nat_enable=YES,"
        " firewall_nat_interface=em0), and `service ipfw restart`"
    )
    assert "found only" not in str(no_nat(rules(OPEN), OUTER))


@pytest.mark.parametrize(
    ("bodies", "text"),
    [
        (
            ("divert 8668 ip4 from any to any via em0", "nat 123 ip4 from any to any via em0"),
            "several ipfw rules hand the same packets of em0 to a NAT or another reader: 00050 divert 8668 ip4 from any"
            " to any via em0; 00060 nat 123 ip4 from any to any via em0",
        ),
        (
            ("nat 1 ip from any to any out via em0", "nat 2 ip from any to any out via em0"),
            "several ipfw rules hand the same packets of em0 to a NAT",
        ),
        (
            (
                "nat 1 ip from any to any out via em0",
                "nat 1 ip from any to any in via em0",
                "nat 2 ip from any to any in",
            ),
            "several ipfw rules .*: 00060 nat 1 ip from any to any in via em0; 00070 nat 2 ip from any to any in;",
        ),
        (
            ("nat 1 ip from any to any out via em0", "nat 2 ip from any to any in via em0"),
            "two NATs translate em0, one what leaves and one what comes in: ipfw rules 00050 nat 1 .* and 00060 nat 2",
        ),
        (
            ("divert 8668 ip from any to any out via em0", "nat 2 ip from any to any in via em0"),
            "two NATs translate em0",
        ),
        (
            ("divert 8668 ip from any to any out via em0",),
            "ipfw rule 00050 .* translates what leaves by em0, and no rule what comes in there; expected `via em0`",
        ),
        (
            ("divert 8668 ip from any to any out recv vlan1000 xmit em0", "divert 8668 ip from any to any in via em0"),
            "packets received on vlan1000, a name of more than 7 characters",
        ),
    ],
)
def test_a_nat_that_pseudo_packets_cannot_use_is_refused(bodies: tuple[str, ...], text: str) -> None:
    with pytest.raises(NatfError, match=text):
        nat(*bodies)


@pytest.mark.parametrize(
    "listing", ["00050 set 0 count ip from any to any\n" + NATD, KERNEL_NAT + "00050 set 0 allow ip from any to any\n"]
)
def test_the_nats_number_is_for_the_nat_alone(listing: str) -> None:
    with pytest.raises(NatfError, match=r"ipfw rule 00050 (count|allow) .* has the number of the NAT's rule; give it"):
        find_nat(rules(listing), OUTER)


def test_both_directions_may_have_one_number() -> None:
    listing = "00050 set 0 nat 1 ip from any to any in via em0\n00050 set 0 nat 1 ip from any to any out via em0\n"
    assert find_nat(rules(listing), OUTER) == NatRule(50, "ipfw nat", 1, None, 50)
