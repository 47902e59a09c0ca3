"""Who may teach the external node a name: a server it believes, asked by this host, and nobody else."""

from __future__ import annotations

import dns.message
import dns.rcode
import dns.rrset
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.dns.queries import LIFETIME, MAXIMUM
from natf_bsd.types import Direction, Endpoint, Packet, parse_address
from natf_bsd.wire import build

ALICE = "alice.home.example.net."
EVIL = Endpoint(parse_address("198.51.100.66"), 53)


def answer_to(name: str, address: str, *, kind: str = "A", ident: int = 4711) -> bytes:
    answer = dns.message.make_response(dns.message.make_query(name, kind, id=ident))
    answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
    return answer.to_wire()


FORGED = answer_to(ALICE, "198.51.100.66")


def test_an_answer_nobody_asked_for_teaches_nothing_and_is_not_passed_on(bench) -> None:
    assert bench.answered(FORGED) is None
    assert bench.count("dns.drop.unasked") == 1
    assert (len(bench.core.names), bench.saved) == (0, [])


@pytest.mark.parametrize(
    ("name", "kind", "ident"), [(ALICE, "A", 4712), (ALICE, "AAAA", 4711), ("bob.home.example.net.", "A", 4711)]
)
def test_an_answer_must_fit_the_query_in_id_and_question(bench, name: str, kind: str, ident: int) -> None:
    virtual = bench.learn()
    bench.ask(name, kind, ident=ident)
    assert bench.answered(FORGED) is None
    assert bench.core.names.by_virtual(virtual).routers == (bench.G2,)


def test_an_answer_must_come_to_the_port_that_asked(bench) -> None:
    bench.ask(ALICE)
    elsewhere = Packet(build.udp(bench.SERVER, Endpoint(bench.G1, 40054), FORGED), Direction.IN)
    bench.perform(bench.core.handle_dns(elsewhere, bench.now))
    assert bench.dropped == [elsewhere]
    assert len(bench.core.names) == 0


def test_an_answer_must_come_from_the_server_that_was_asked(make_bench) -> None:
    bench = make_bench()
    bench.core.lookups.resolvers |= {EVIL.address}
    bench.ask(ALICE)
    assert bench.answered(FORGED, server=EVIL) is None


@pytest.mark.parametrize(("came", "believed"), [("lan", False), ("wan", True)])
def test_an_inside_hosts_answer_must_come_in_where_its_query_left(bench, came: str, believed: bool) -> None:
    """Who asks knows port and id; with the server's address as its source he could answer himself, for everybody."""
    inside = Endpoint(parse_address("192.168.0.2"), 40053)
    query = dns.message.make_query(ALICE, "A", id=4711).to_wire()
    asked = Packet(build.udp(inside, bench.SERVER, query), Direction.IN, "lan", leaves="wan")
    answer = Packet(build.udp(bench.SERVER, inside, FORGED), Direction.IN, came, leaves="lan")
    for passing in asked, answer:
        bench.perform(bench.core.handle_dns(passing, bench.now))
    assert bench.count("dns.drop.unasked") == (not believed)
    assert len(bench.core.names) == believed


def test_the_letter_case_of_the_question_does_not_matter(bench) -> None:
    bench.ask("aLiCe.Home.Example.Net.")
    assert bench.answered(FORGED) is not None
    assert bench.count("dns.sent.rewritten") == 1


def test_a_repeated_answer_becomes_the_same_until_the_query_expires(bench) -> None:
    bench.ask(ALICE)
    first = bench.answered(FORGED)
    bench.now += LIFETIME - 0.1
    assert bench.answered(FORGED) == first
    bench.now += 0.1
    assert bench.answered(FORGED) is None


def test_a_second_answer_to_one_query_teaches_nothing_but_one_to_a_repeated_query_does(bench) -> None:
    virtual = bench.learn()
    bench.ask(ALICE)
    first = bench.answered(answer_to(ALICE, "203.0.113.1"))
    assert bench.answered(FORGED) == first
    assert bench.core.names.by_virtual(virtual).routers == (bench.G2,)
    bench.ask(ALICE)
    assert bench.answered(answer_to(ALICE, "203.0.113.2")) == first
    assert bench.core.names.by_virtual(virtual).routers == (bench.OTHER,)


def test_a_repeated_query_is_remembered_from_its_last_time(bench) -> None:
    bench.ask(ALICE)
    bench.wait(LIFETIME - 1)
    bench.ask(ALICE)
    bench.wait(LIFETIME - 1)
    assert bench.answered(FORGED) is not None
    assert bench.count("dns.sent.query") == 2


def test_queries_are_forgotten(bench) -> None:
    bench.ask(ALICE)
    assert not bench.core.idle()
    bench.wait(LIFETIME)
    assert bench.core.idle()


def test_the_answer_of_a_server_that_is_not_ours_passes_and_is_not_believed(bench) -> None:
    bench.ask(ALICE, server=EVIL)
    assert bench.answered(FORGED, server=EVIL) == FORGED
    assert (bench.count("dns.sent.query_to_stranger"), bench.count("dns.sent.stranger")) == (1, 1)
    assert (len(bench.core.names), bench.saved) == (0, [])


def test_another_server_is_believed_as_soon_as_it_is_the_resolver(bench) -> None:
    bench.core.lookups.resolvers = frozenset((EVIL.address,))
    bench.ask(ALICE, server=EVIL)
    assert bench.answered(FORGED, server=EVIL) != FORGED
    assert bench.count("dns.sent.rewritten") == 1


def test_queries_about_other_names_are_not_remembered(bench) -> None:
    bench.ask("www.elsewhere.example.")
    assert bench.count("dns.sent.query_not_ours") == 1
    assert bench.core.idle()


def test_what_goes_to_port_53_and_is_no_query_passes(bench) -> None:
    for payload in (b"", b"hello", FORGED):
        packet = Packet(build.udp(bench.CLIENT, bench.SERVER, payload), Direction.OUT)
        bench.perform(bench.core.handle_dns(packet, bench.now))
    assert bench.count("dns.sent.query_not_ours") == len(bench.sent) == 3


def test_the_number_of_remembered_queries_is_bounded(bench) -> None:
    for ident in range(MAXIMUM + 2):
        bench.ask(ALICE, ident=ident)
    assert bench.count("dns.sent.query") == MAXIMUM
    assert bench.count("dns.sent.query_forgotten") == 2
    assert bench.answered(answer_to(ALICE, "203.0.113.1", ident=0)) is None, "the oldest had to go"
    assert bench.answered(answer_to(ALICE, "203.0.113.1", ident=MAXIMUM)) is not None


def test_a_server_that_is_a_resolver_by_now_is_believed_from_the_first_query_on(bench) -> None:
    """resolv.conf was rewritten a moment ago: the look at it every ten seconds would come too late."""
    server, lookups = bench.SERVER, bench.core.lookups
    lookups.resolvers = frozenset()

    def follow() -> None:
        lookups.resolvers = frozenset((server.address,))

    lookups.follow = follow
    seen = dns.message.from_wire(bench.dns(answer_to(ALICE, "203.0.113.1")))
    assert seen.answer[0][0].address.startswith("240.")


def test_a_virtual_address_for_our_name_is_believed_from_this_host_alone(bench) -> None:
    answer = answer_to(ALICE, "240.0.7.9")
    assert bench.dns(answer, interface="lo") == answer
    assert bench.count("dns.sent.already") == 1
    for interface in "eth0", "lower0":
        assert dns.message.from_wire(bench.dns(answer, interface=interface)).rcode() == dns.rcode.SERVFAIL
    assert bench.count("dns.sent.failed") == 2


def test_a_virtual_address_for_another_name_becomes_servfail(bench) -> None:
    seen = dns.message.from_wire(bench.dns(answer_to("evil.example.org.", "240.0.7.9")))
    assert (seen.rcode(), seen.answer) == (dns.rcode.SERVFAIL, [])
    assert bench.count("dns.sent.rebinding") == 1


def test_an_address_no_router_can_have_is_not_learned(bench) -> None:
    seen = dns.message.from_wire(bench.dns(answer_to(ALICE, "127.0.0.1")))
    assert seen.rcode() == dns.rcode.SERVFAIL
    assert bench.count("dns.sent.failed") == 1
    assert len(bench.core.names) == 0


def test_a_name_that_gave_way_is_taken_back_from_the_journal(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), maximum_names=1))
    bench.learn("alice", ttl=60)
    bench.wait(60)
    bench.learn("bob", ttl=60)
    assert {"id": "name alice.home.example.net", "gone": True} in bench.saved
    assert [relation.name.host for relation in bench.core.names] == ["bob"]


def test_a_name_somebody_sends_to_does_not_give_way_while_its_flow_is_negotiated(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), maximum_names=1))
    virtual = bench.learn("alice", ttl=60)
    bench.wait(60)
    bench.out(bench.syn(virtual))
    seen = dns.message.from_wire(bench.dns(answer_to("bob.home.example.net.", "203.0.113.1")))
    assert seen.rcode() == dns.rcode.SERVFAIL
    bench.map()
    assert bench.core.names.by_virtual(virtual).name.host == "alice"


def test_a_router_is_admitted_before_the_program_knows_the_name(bench) -> None:
    """Its packets must find their way to us by the time the program's first one is answered."""
    bench.ask(ALICE)
    answer = Packet(build.udp(bench.SERVER, bench.CLIENT, answer_to(ALICE, "203.0.113.1")), Direction.IN)
    effects = bench.core.handle_dns(answer, bench.now)
    assert [type(effect).__name__ for effect in effects] == ["Admit", "Send", "Save"]
    assert effects[0].routers == (bench.G2,)
    assert bench.core.routers() == {bench.G2}


def test_a_look_up_on_loopback_may_be_seen_going_out_both_ways(make_bench) -> None:
    """FreeBSD: a divert rule on `in via lo0` would see checksums that are none (FREEBSD.md 1.6)."""
    bench = make_bench()
    server, client = Endpoint(parse_address("127.0.0.1"), 53), Endpoint(parse_address("127.0.0.1"), 40053)
    bench.core.lookups.resolvers |= {server.address}
    query = dns.message.make_query(ALICE, "A", id=4711).to_wire()
    bench.perform(bench.core.handle_dns(Packet(build.udp(client, server, query), Direction.OUT), bench.now))
    answer = Packet(build.udp(server, client, answer_to(ALICE, "203.0.113.1")), Direction.OUT)
    bench.perform(bench.core.handle_dns(answer, bench.now))
    assert bench.count("dns.sent.rewritten") == 1
