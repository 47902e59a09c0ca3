"""Reading the rules that are there: what could they take from ours? A word not understood never keeps one away."""

from __future__ import annotations

import gzip
import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw_rules import NEVER, Reader, Rule, Tables, Traffic, parse_rules, parse_tables
from natf_bsd.types import Direction
from tests.firewall.ipfw_rule_sets import BAD_ADDRESSES, OUTER

RECORDED = Path(__file__).parents[1] / "ipfw_model" / "data" / "ipfw-commands.jsonl.gz"
OWN = IPv4Network("203.0.113.1")
PREFIX = IPv4Network("240.0.0.0/8")
REQUESTS = Traffic(
    "echo requests", Direction.IN, "em0", frozenset({"icmp"}), destination=OWN, icmp_types=frozenset({8})
)
ANSWERS = Traffic("DNS answers", Direction.IN, "em0", frozenset({"udp"}), destination=OWN, source_port=53)
PEERS = Traffic("peers", Direction.IN, "em0", frozenset({"tcp", "udp"}), destination=OWN)
QUERIES = Traffic("DNS queries", Direction.OUT, "em0", frozenset({"udp"}), OWN, destination_port=53)
VIRTUAL = Traffic("packets to 240.0.0.0/8", Direction.OUT, "em0", source=OWN, destination=PREFIX)
FORWARDED = Traffic("packets to 240.0.0.0/8", Direction.OUT, "em0", destination=PREFIX)


def until(body: str, traffic: Traffic, tables: Tables | None = None) -> int | None:
    return Reader(OUTER, tables or {}).taken_until(Rule(10, 0, True, body), traffic)


def test_the_recorded_lists_are_read_rule_by_rule() -> None:
    with gzip.open(RECORDED, "rt") as lines:
        events = [json.loads(line) for line in lines]
    listings = [event["stdout"] for event in events if event["argv"] == ["ipfw", "-S", "list"]]
    assert len(listings) == 2
    for listing in listings:
        lines_again = [
            f"{'' if rule.enabled else '# DISABLED '}{rule.number:05} set {rule.set} {rule.body}"
            for rule in parse_rules(listing)
        ]
        assert lines_again == listing.splitlines()


def test_a_rule_is_ours_by_set_and_comment() -> None:
    (ours, disabled, elsewhere, foreign) = parse_rules(
        "00040 set 7 allow ip from any to any // natf\n"
        "# DISABLED 00041 set 6 reject ip from any to any // natf\n"
        "00042 set 0 allow ip from any to any // natf\n"
        "00043 set 5 allow ip from any to any // not natf's\n"
    )
    assert (ours.is_ours, disabled.is_ours, elsewhere.is_ours, foreign.is_ours) == (True, True, False, False)
    assert (ours.enabled, disabled.enabled) == (True, False)
    assert str(ours) == "00040 allow ip from any to any // natf"


def test_a_line_that_is_no_rule_is_not_passed_over() -> None:
    with pytest.raises(NatfError, match=r"printed '## Dynamic rules \(1 152\):'; expected a rule with its number"):
        parse_rules("00010 set 0 count ip from any to any\n## Dynamic rules (1 152):\n")


def test_tables_of_ipv4_addresses_are_read_and_others_stay_unknown() -> None:
    others = "--- table(flows), set(0) ---\n203.0.113.10,6,40000,240.0.1.1,80 1002\n--- table(empty), set(0) ---\n"
    tables = parse_tables(BAD_ADDRESSES + others + "--- table(six), set(0) ---\n2001:db8::/32 0\n10.1.0.0/16 7\n")
    assert tables.keys() == {"13", "empty", "six"}
    assert tables["13"][1] == IPv4Network("10.0.0.0/8")
    assert (len(tables["13"]), tables["empty"], tables["six"]) == (8, (), (IPv4Network("10.1.0.0/16"),))


@pytest.mark.parametrize(
    ("body", "traffic"),
    [
        ("allow ip from any to any", REQUESTS),
        ("allow icmp from any to any", REQUESTS),
        ("deny log logamount 100 icmp from any to me in recv em0 icmptypes 0,3,8", REQUESTS),
        ("reject ip from any to any in via em0", REQUESTS),
        ("allow ip4 from any to 203.0.113.0/24 via em*", REQUESTS),
        ("allow ip from any to 203.0.113.0:255.255.255.0", REQUESTS),
        ("allow ip from any to any via 203.0.113.1", REQUESTS),
        ("allow ip from any to any via table(3)", REQUESTS),
        ("allow { icmp or tcp } from any to { 192.0.2.1 or me }", REQUESTS),
        ("allow not udp from any to any", REQUESTS),
        ("allow ip from not 198.51.100.0/24 to any", REQUESTS),
        ("allow ip from any to not 198.51.100.1 in", REQUESTS),
        ("allow ip from any to any not out", REQUESTS),
        ("allow ip from any to any { out or recv em0 }", REQUESTS),
        ("allow ip from 198.51.100.0/24 to me", REQUESTS),
        ("allow in recv em0", REQUESTS),
        ("allow ip from any to any frobnicate out", REQUESTS),
        ("prob 0.500000 deny ip from any to me", REQUESTS),
        ("allow tag 5 ip from any to any", REQUESTS),
        ("allow ip from any to any proto icmp", REQUESTS),
        ("allow ip from any to any iplen 100 ipttl 5 ipid 7", REQUESTS),
        ("deny ip from any to table(13) via em0", REQUESTS),
        ("check-state :default", REQUESTS),
        ("allow udp from me to any 53 keep-state :default", REQUESTS),
        ("allow tcp from any to me 22 in setup limit src-addr 4", REQUESTS),
        ("pipe 1 ip from any to any", REQUESTS),
        ("fwd 192.0.2.1 ip from any to any", REQUESTS),
        ("call 200 ip from any to any", REQUESTS),
        ("netgraph 9 ip from any to any", REQUESTS),
        ("divert 8668 ip4 from any to any via em0", REQUESTS),
        ("nat tablearg ip from any to any", REQUESTS),
        ("unheard-of 7 ip from any to any", REQUESTS),
        ("allow udp from any 53 to me", ANSWERS),
        ("allow 17 from any 1-1023 to me", ANSWERS),
        ("allow udp from any not 80 to me", ANSWERS),
        ("allow ip from any to any src-port 50-60,80", ANSWERS),
        ("allow tcp from any to any established", PEERS),
        ("deny tcp from any to any tcpflags syn,!ack", PEERS),
        ("deny { tcp or udp } from any to me", PEERS),
        ("allow udp from me to any 53", QUERIES),
        ("allow udp from any to any dst-port 53 out", QUERIES),
        ("allow udp from any to any not 54", QUERIES),
        ("allow ip from me to any out xmit em0", VIRTUAL),
        ("allow ip from any to any recv em1", VIRTUAL),
        ("deny ip from any to 240.0.0.0/4", VIRTUAL),
        ("deny ip from any to 240.0.1.1", VIRTUAL),
        ("deny ip from any to table(13) via em0", VIRTUAL),
        ("allow ip from 192.168.0.0/24 to any", FORWARDED),
    ],
)
def test_a_rule_could_take_the_traffic(body: str, traffic: Traffic) -> None:
    assert until(body, traffic) == NEVER
    assert until(f"{body} // in out via lo0", traffic) == NEVER


@pytest.mark.parametrize(
    ("body", "traffic"),
    [
        ("count log ip from any to any", REQUESTS),
        ("reass ip from any to any in", REQUESTS),
        ("setdscp cs1 ip from any to any", REQUESTS),
        ("tee 8000 ip from any to any", REQUESTS),
        ("ngtee 5 ip from any to any", REQUESTS),
        ("setfib 1 ip from any to any", REQUESTS),
        ("tcp-setmss 1400 tcp from any to any", PEERS),
        ("allow ip from any to any via lo0", REQUESTS),
        ("allow ip from any to any recv em1", REQUESTS),
        ("allow ip from any to any xmit em0", REQUESTS),
        ("allow ip from any to any out", REQUESTS),
        ("allow ip from any to any in", VIRTUAL),
        ("allow ip from any to any out xmit em1", VIRTUAL),
        ("allow ip from any to any via em0.7", VIRTUAL),
        ("allow tcp from any to any", REQUESTS),
        ("allow { tcp or udp } from any to any", REQUESTS),
        ("allow ipv6-icmp from any to any icmp6types 1", REQUESTS),
        ("allow ip6 from any to any", REQUESTS),
        ("allow ip6 from any to any", VIRTUAL),
        ("allow ipv6-icmp from any to any icmp6types 1", VIRTUAL),
        ("allow ip from any to any proto udp", REQUESTS),
        ("allow icmp from any to any icmptypes 0,3,11", REQUESTS),
        ("allow ip from any to any established", REQUESTS),
        ("allow ip from any to any setup", ANSWERS),
        ("deny ip from any to 127.0.0.0/8", REQUESTS),
        ("deny ip from 127.0.0.0/8 to any", REQUESTS),
        ("allow ip from 127.0.0.0/8 to any", REQUESTS),
        ("deny ip from any to ::1", REQUESTS),
        ("deny ip from ::1 to any", REQUESTS),
        ("allow ip from any to 198.51.100.0/24,203.0.113.2", REQUESTS),
        ("allow ip from any to { 198.51.100.1 or 203.0.113.2 }", REQUESTS),
        ("allow ip from any to 255.255.255.255", REQUESTS),
        ("deny ip from 198.51.100.0/24 to any in", REQUESTS),
        ("deny ip from table(blocked) to me", REQUESTS),
        ("allow udp from any 54-60 to me", ANSWERS),
        ("allow udp from any to me 67 src-port 67", ANSWERS),
        ("allow udp from any to any dst-port 123", QUERIES),
        ("allow udp from me to any 123", QUERIES),
        ("allow ip from 192.168.0.0/24 to any", QUERIES),
        ("allow ip from me to 127.0.0.0/8", QUERIES),
        ("deny ip from any to 198.51.100.0/24", QUERIES),
        ("allow ip from any to me", VIRTUAL),
        ("allow ip from 192.168.0.0/24 to any", VIRTUAL),
        ("deny ip from 192.168.0.0/24 to any", FORWARDED),
        ("allow ip from any to 10.0.0.0/8 out", VIRTUAL),
    ],
)
def test_a_rule_leaves_the_traffic_alone(body: str, traffic: Traffic) -> None:
    assert until(body, traffic) is None


def test_a_skip_takes_what_lies_between() -> None:
    assert until("skipto 1000 udp from any to any 53 out via em0", QUERIES) == 1000
    assert until("skipto tablearg udp from any to any 53 out via em0", QUERIES) == NEVER
    assert until("skipto 1000 udp from any to any 53 out via em1", QUERIES) is None
    assert until("skipto 1000 udp from any to any 53 out via em0 keep-state :default", ANSWERS) == NEVER


def test_a_table_that_is_known_keeps_a_rule_away_from_what_it_does_not_hold() -> None:
    tables = parse_tables(BAD_ADDRESSES)
    body = "deny ip from any to table(13) via em0"
    assert until(body, REQUESTS, tables) is None
    assert until(body, VIRTUAL, tables) == NEVER
    assert until("deny ip from any to table(13,1) via em0", VIRTUAL, tables) == NEVER
    without = {"13": tuple(network for network in tables["13"] if not network.overlaps(PREFIX))}
    assert until(body, VIRTUAL, without) is None


WORDS = "allow skipto 10 ip tcp from any me table(1) to 53 in out via em0 not { or } icmptypes 8 frobnicate 1.2.3.4/8"


@given(words=st.lists(st.sampled_from(WORDS.split()), max_size=12))
def test_no_text_breaks_the_reader(words: list[str]) -> None:
    body = " ".join(["allow", *words])
    for traffic in (REQUESTS, QUERIES, VIRTUAL):
        assert until(body, traffic) in (None, NEVER)


@given(words=st.lists(st.sampled_from(WORDS.split()), max_size=6))
def test_a_word_that_is_not_known_ends_the_reading(words: list[str]) -> None:
    assert until(" ".join(["allow ip from any to any in recv em0 frobnicate", *words]), REQUESTS) == NEVER
