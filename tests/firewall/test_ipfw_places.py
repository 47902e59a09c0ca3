"""Where our rules go: the usual numbers, lower ones where the site's rules take our packets, or a refusal with why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw_nat import NatRule
from natf_bsd.firewall.ipfw_places import EnPlaces, RouterPlaces, en_places, router_places
from natf_bsd.firewall.ipfw_rules import Tables, parse_tables
from tests.firewall.ipfw_rule_sets import (
    BAD_ADDRESSES,
    CLIENT,
    KERNEL_NAT,
    NATD,
    OPEN,
    OUTER,
    SIMPLE,
    SPLIT,
    WORKSTATION,
    rules,
)

PREFIX = "240.0.0.0/8"
AT_50 = NatRule(50, "natd", 8668, None, 50)
HOST = EnPlaces(
    reass=29,
    deny=30,
    dns=31,
    loopback=32,
    control=34,
    out=35,
    pass_out=36,
    errors=37,
    queries=37,
    peers=38,
    pass_in=39,
    stand_in=35,
)
GATEWAY = EnPlaces(
    reass=39,
    control=43,
    deny=44,
    dns=45,
    loopback=47,
    errors=46,
    peers=48,
    out=53,
    pass_out=54,
    queries=55,
    pass_in=None,
    stand_in=39,
    nat=AT_50,
)


def router(listing: str, tables: Tables | None = None) -> RouterPlaces:
    return router_places(rules(listing), OUTER, tables)


def en(listing: str, tables: Tables | None = None) -> EnPlaces:
    return en_places(rules(listing), OUTER, PREFIX, tables)


def control(listing: str) -> tuple[int, int]:
    places = router(listing)
    return places.control, places.control_pass


def refusal(listing: str, role: str = "router") -> str:
    with pytest.raises(NatfError) as caught:
        router(listing) if role == "router" else en(listing)
    return str(caught.value)


@pytest.mark.parametrize("listing", [NATD + OPEN, NATD + CLIENT])
def test_the_router_is_around_natd_of_rc_firewall(listing: str) -> None:
    places = router(listing)
    assert places == RouterPlaces(40, 49, AT_50)
    assert (places.capture, places.reply, places.pseudo_after, places.reply_after) == (51, 52, 49, 51)


def test_the_router_is_around_the_nat_in_the_kernel() -> None:
    assert router(KERNEL_NAT + OPEN) == RouterPlaces(40, 49, NatRule(50, "ipfw nat", 123, None, 50))


def test_in_the_simple_type_control_goes_below_the_table_of_bad_addresses() -> None:
    """The table may hold our address, unless it is known what it holds. Whom the site denies by name stays denied."""
    places = router(SIMPLE)
    assert (places.control, places.control_pass, places.capture) == (1299, 1399, 1401)
    assert router(SIMPLE, parse_tables(BAD_ADDRESSES)).control == 1390


def test_with_a_rule_for_each_direction_control_goes_before_the_one_and_capture_behind_the_other() -> None:
    places = router(SPLIT.replace("01001", "01010"))
    assert (places.control, places.control_pass) == (90, 99)
    assert (places.pseudo_after, places.capture, places.reply) == (999, 1001, 1002)
    assert refusal(SPLIT).startswith("ipfw rule 01001 allow ip from any to any has a number that natf's rules behind")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("00045 set 0 allow icmp from any to any", (40, 49)),
        ("00041 set 0 allow icmp from any to any", (40, 49)),
        ("00040 set 0 allow icmp from any to any", (39, 49)),
        ("00020 set 0 allow icmp from any to any", (19, 49)),
        ("# DISABLED 00040 set 0 allow icmp from any to any", (39, 49)),
        ("00040 set 0 count ip from any to any", (39, 49)),
        ("00049 set 0 deny icmp from any to any icmptypes 8", (40, 48)),
        ("00020 set 0 count ip from any to any", (40, 49)),
        ("00020 set 0 allow ip from any to any via lo0", (40, 49)),
        ("00020 set 0 skipto 40 ip from any to any", (40, 49)),
        ("00020 set 0 skipto 41 ip from any to any", (19, 49)),
        ("00020 set 0 skipto 50 ip from any to any", (19, 49)),
        ("00045 set 5 allow icmp from any to any // natf", (40, 49)),
        ("00040 set 5 divert 8710 udp from any 53 to me in recv em0 // natf", (39, 49)),
        ("00020 set 5 allow icmp from any to me // natf", (40, 49)),
        ("00041 set 7 allow icmp from any to any // natf", (40, 49)),
    ],
)
def test_control_keeps_its_numbers_or_goes_to_the_highest_free_ones_in_front(
    rule: str, expected: tuple[int, int]
) -> None:
    assert control(f"{rule}\n{NATD}{OPEN}") == expected


@pytest.mark.parametrize("at", [266, 267, 268, 269])
def test_no_rule_that_writes_back_gets_a_number_that_pf_takes_for_a_direction(at: int) -> None:
    numbers = control(NATD.replace("00050", f"{at:05}"))
    assert {number & 255 for number in numbers}.isdisjoint({1, 2})
    assert max(numbers) < at


def test_no_room_for_control_names_the_rule_and_what_to_do() -> None:
    assert refusal("00003 set 0 allow ip from any to any in\n" + NATD + OPEN) == (
        "ipfw rule 00003 allow ip from any to any in could take echo requests to this host first, and below it there"
        " is no room for natf's rule 40; give it a number above 40, or narrow it to other packets"
    )
    assert refusal("00003 set 0 deny ip from any to table(1)\n" + NATD).endswith(
        " (a table may hold the address: `ipfw table all list`)"
    )
    assert refusal(NATD.replace("00050", "00004")) == (
        "no room for natf's rule -6 in front of the NAT's; expected that at 50 or above"
    )


def test_a_rule_behind_the_nat_in_natfs_place_is_named() -> None:
    for number in (51, 52):
        listing = f"{NATD}{number:05} set 0 allow ip from any to any\n{OPEN}"
        assert refusal(listing) == (
            f"ipfw rule {number:05} allow ip from any to any has a number that natf's rules behind the NAT need;"
            f" expected {number:05} to be free: give the rule a higher number"
        )
    assert "which pf, where it runs, takes for a mark" in refusal(NATD.replace("00050", "00256"))
    assert "has a number that natf's rules behind the NAT need" in refusal(NATD.replace("00050", "65533") + OPEN)


def test_without_a_nat_there_is_no_router() -> None:
    assert refusal(OPEN).startswith("no ipfw rule hands all that leaves by em0 to natd or `ipfw nat`; expected")


@pytest.mark.parametrize(("role", "number"), [("router", 7), ("en", 5), ("en", 6)])
def test_others_in_our_sets_are_refused(role: str, number: int) -> None:
    text = refusal(f"00700 set {number} count ip from any to any\n{NATD}{OPEN}", role)
    assert text.startswith(f"ipfw rule 00700 count ip from any to any is not natf's and in set {number}")
    assert text.endswith(f"`ipfw set move {number} to 8` takes them elsewhere")


def test_others_in_the_sets_of_the_other_role_are_its_affair() -> None:
    assert control("00700 set 5 count ip from any to any\n" + NATD) == (40, 49)


@pytest.mark.parametrize("listing", [OPEN, CLIENT, WORKSTATION])
def test_an_external_node_on_a_host_of_its_own(listing: str) -> None:
    assert en(listing) == HOST
    assert (HOST.gateway, HOST.request_after, HOST.error_after) == (False, 35, 38)


def test_an_external_node_finds_its_own_rules_no_obstacle() -> None:
    assert en("00035 set 5 divert 8711 ip from me to 240.0.0.0/8 out xmit em0 // natf\n" + OPEN) == HOST


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        ("00035 set 0 count ip from any to any", 24),
        ("00039 set 0 allow ip from any to any", 28),
        ("00020 set 0 allow udp from me to any 53 out", 9),
        ("00020 set 0 allow tcp from any to me established", 9),
        ("00020 set 0 check-state :default", 9),
        ("00020 set 0 allow ip from any to any out", 9),
        ("00020 set 0 deny ip from any to 240.0.0.0/4", 9),
        ("00020 set 0 allow icmp from any to any icmptypes 3", 9),
        ("00020 set 0 allow icmp from any to any icmptypes 8 in", 29),
        ("00020 set 0 deny ip from 240.0.0.0/4 to any in", 29),
        ("00020 set 0 deny ip from table(blocked) to any in", 29),
        ("00020 set 0 allow tcp from any to any 22 in recv em1", 29),
        ("00020 set 0 allow ip from any to any via lo0", 29),
    ],
)
def test_the_block_of_an_external_node_goes_below_what_could_take_its_packets(rule: str, first: int) -> None:
    places = en(f"{rule}\n{OPEN}")
    assert (places.reass, places.out, places.pass_in) == (first, first + 6, first + 10)


def test_the_rules_for_lo0_go_in_front_of_the_sites_alone() -> None:
    places = en("00010 set 0 allow ip from any to any via lo0\n" + OPEN)
    assert (places.loopback, places.reass) == (9, 29)
    assert en("00010 set 0 allow ip from any to any via lo0\n" + NATD + OPEN).loopback == 9
    assert refusal("00003 set 0 allow ip from any to any via lo0\n" + OPEN, "en").startswith(
        "ipfw rule 00003 allow ip from any to any via lo0 could take DNS queries on lo0 first, and below it there is no"
        " room for natf's rule 32;"
    )


def test_no_room_for_the_external_node_names_the_lowest_rule() -> None:
    listing = "00005 set 0 allow tcp from any to any established\n00007 set 0 allow ip from any to any\n" + OPEN
    assert refusal(listing, "en") == (
        "ipfw rule 00005 allow tcp from any to any established could take what NAT-f routers send to this host first,"
        " and below it there is no room for natf's rules 29 to 39; give it a number above 39, or narrow it to other"
        " packets"
    )
    taken = "".join(f"{number:05} set 0 count ip from any to any\n" for number in range(6, 40, 4))
    assert refusal(taken + OPEN, "en") == (
        "ipfw rule 00030 count ip from any to any has a number of natf's rules 29 to 39, and below it there is no room"
        " for them; give it another number"
    )


@pytest.mark.parametrize("listing", [NATD + OPEN, NATD + CLIENT])
def test_an_external_node_on_the_nat_box_is_around_natd(listing: str) -> None:
    assert en(listing) == GATEWAY
    assert (GATEWAY.gateway, GATEWAY.request_after, GATEWAY.error_after) == (True, 53, 49)


def test_in_the_simple_type_the_external_node_needs_240_out_of_the_table() -> None:
    assert refusal(SIMPLE, "en") == (
        "ipfw rule 01300 deny ip from any to table(13) via em0 could take packets to 240.0.0.0/8 first, and natf's"
        " rule 01403 behind the NAT never sees them; number it above 01403, or narrow it (a table may hold the"
        " address: `ipfw table all list`)"
    )
    with pytest.raises(NatfError, match="rule 01300"):
        en(SIMPLE, parse_tables(BAD_ADDRESSES))
    places = en(SIMPLE, parse_tables(BAD_ADDRESSES.replace("240.0.0.0/4 0\n", "")))
    assert (places.loopback, places.reass, places.peers, places.out) == (99, 1389, 1398, 1403)


def test_a_stateful_rule_in_front_of_the_nat_is_refused_for_an_external_node() -> None:
    assert refusal(SPLIT.replace("01001", "01010"), "en").startswith(
        "ipfw rule 00101 check-state :default could take DNS queries first, and natf's rule 01003 behind the NAT"
    )


def test_what_comes_in_on_the_nat_box_is_seen_first_below_what_takes_it() -> None:
    places = en("00041 set 0 allow tcp from any to me 22 in recv em0\n" + NATD + OPEN)
    assert (places.reass, places.control, places.peers, places.out) == (31, 35, 40, 53)


def test_both_roles_fit_on_one_box_in_either_order() -> None:
    router_rules = "".join(f"{number:05} set 7 count ip from any to any // natf\n" for number in (40, 49, 51, 52))
    en_rules = "".join(
        f"{number:05} set 5 count ip from any to any // natf\n" for number in (39, 43, 44, 45, 46, 47, 48, 53, 54, 55)
    )
    assert en(router_rules + NATD + OPEN) == GATEWAY
    assert control(en_rules + NATD + OPEN) == (40, 49)


def test_the_way_in_may_have_the_higher_number() -> None:
    """What both roles have behind the way out is not given away on the way in."""
    listing = "00050 set 0 nat 1 ip from any to any out via em0\n00062 set 0 nat 1 ip from any to any in via em0\n"
    places = en(listing)
    assert (places.out, places.pass_out, places.queries) == (53, 54, 55)
    assert (places.reass, places.control, places.deny, places.dns) == (40, 44, 45, 46)
    assert (router(listing).control, router(listing).control_pass) == (49, 61)


BODIES = (
    "count ip from any to any",
    "allow ip from any to any via lo0",
    "allow icmp from any to any",
    "allow tcp from any to any established",
    "allow ip from any to any via em1",
    "skipto 45 ip from any to any in",
    "check-state :default",
)
SITE = st.dictionaries(st.integers(1, 60), st.sampled_from(BODIES), max_size=8)


@given(site=SITE)
def test_whatever_the_site_our_numbers_are_our_own(site: dict[int, str]) -> None:
    """And rules that take everything are behind control, or there are no places at all."""
    listing = "".join(f"{number:05} set 0 {body}\n" for number, body in site.items() if number != 50) + NATD
    try:
        places = router(listing)
    except NatfError:
        return
    numbers = {places.control, places.control_pass, places.capture, places.reply}
    assert numbers.isdisjoint(set(site) - {50})
    takers = [
        n for n, body in site.items() if n != 50 and body in ("allow icmp from any to any", "check-state :default")
    ]
    assert all(places.control < number for number in takers)
    assert places.control < places.control_pass < 50
