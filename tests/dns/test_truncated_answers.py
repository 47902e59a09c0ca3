"""Answers about private hosts that did not fit into a datagram, and who would fetch the rest over TCP."""

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.dns.question import longer_answer_wanted, questions_of_stream, read_question
from natf_bsd.dns.records import without_options
from natf_bsd.dns.rewrite import Outcome
from tests.dns.test_dns_rewrite import G2, G3, QNAME, V1, Relations, answer, assert_servfail, read, run, texts


def cut(data: bytes, size: int | None = None) -> bytes:
    """`data` with TC set, and no more than `size` bytes of it."""
    return (data[:2] + bytes([data[2] | 0x02]) + data[3:])[:size]


def test_one_address_is_enough():
    relations = Relations()
    after, outcome = run(cut(answer(f"{QNAME} 300 A {G2}")), relations)
    assert outcome is Outcome.REWRITTEN
    assert texts(read(after).answer) == [f"{QNAME} 300 IN A {V1}"]
    assert not read(after).flags & dns.flags.TC
    assert relations.asked[0][1] == [G2]


def test_those_that_came_of_several_are_the_routers():
    relations = Relations()
    after, outcome = run(cut(answer(f"{QNAME} 300 A {G3}", f"{QNAME} 200 A {G2}")), relations)
    assert outcome is Outcome.REWRITTEN
    assert not read(after).flags & dns.flags.TC
    assert relations.asked[0][1] == [G3, G2]


@pytest.mark.parametrize("records", [(), (f"{QNAME} 60 CNAME home.example.net.",)])
def test_without_an_address_it_is_too_short(records):
    relations = Relations()
    after, outcome = run(cut(answer(*records, edns=True)), relations)
    assert outcome is Outcome.TRUNCATED
    assert_servfail(after)
    assert not relations.asked


def test_one_that_was_cut_within_a_record_is_too_short():
    data = answer(f"{QNAME} 300 A {G2}", f"{QNAME} 300 A {G3}")
    after, outcome = run(cut(data, len(data) - 3))
    assert outcome is Outcome.TRUNCATED
    assert_servfail(after)


@pytest.mark.parametrize("qtype", ["AAAA", "HTTPS", "SVCB"])
@pytest.mark.parametrize("records", [(), (f"{QNAME} 60 AAAA 2001:db8::1",)])
def test_one_that_would_bypass_the_a_record_is_empty_whatever_there_is_to_come(qtype, records):
    after, outcome = run(cut(answer(*records, qtype=qtype, edns=True)))
    assert outcome is Outcome.EMPTIED
    message = read(after)
    assert (message.rcode(), message.answer, message.edns) == (dns.rcode.NOERROR, [], 0)
    assert not message.flags & dns.flags.TC


@pytest.mark.parametrize("qtype", ["TXT", "MX"])
def test_other_types_may_be_fetched_over_tcp(qtype):
    data = cut(answer(qtype=qtype))
    after, outcome = run(data)
    assert after is data
    assert outcome is Outcome.UNCHANGED


def test_the_query_for_a_longer_answer_is_the_same_question_with_room_and_without_dnssec():
    data = cut(answer(qname="aLiCe.home.Example.net."))
    query = dns.message.from_wire(longer_answer_wanted(data, read_question(data, answer=True)))
    assert query.id == read(data).id
    assert query.question == read(data).question
    assert query.question[0].name.to_text() == "aLiCe.home.Example.net."
    assert query.flags == dns.flags.RD
    assert (query.edns, query.payload, query.ednsflags, query.options) == (0, 4096, 0, ())


def test_that_checking_is_off_stays_so():
    came = dns.message.make_response(dns.message.make_query(QNAME, "A"))
    came.flags = dns.flags.QR | dns.flags.CD
    data = cut(came.to_wire())
    assert dns.message.from_wire(longer_answer_wanted(data, read_question(data, answer=True))).flags == dns.flags.CD


def test_an_answer_without_options_is_the_same_object():
    data = answer(f"{QNAME} 300 A {G2}", additional=["ns.example.net. 60 A 192.0.2.1"])
    assert without_options(data) is data


def test_options_that_are_not_at_the_end_stay():
    data = answer(f"{QNAME} 300 A {G2}", edns=True)
    opt = data[-11:]
    moved = data[:11] + b"\x02" + data[12:-11] + opt + b"\xc0\x0c\0\x10\0\x01\0\0\0\0\0\0"
    assert without_options(moved) is moved


def framed(name: str) -> bytes:
    query = dns.message.make_query(name, "A").to_wire()
    return len(query).to_bytes(2, "big") + query


def asked(data: bytes) -> list[str]:
    return [question.name for question in questions_of_stream(data)]


def test_every_query_of_a_segment_is_found():
    first, second = framed("a.example."), framed("b.example.")
    assert asked(first) == ["a.example"]
    assert asked(first + second) == ["a.example", "b.example"]
    assert asked(first + second[:-5]) == ["a.example"], "whose question is not there in full"


def test_a_query_whose_length_went_ahead_is_found():
    assert asked(framed("a.example.")[2:]) == ["a.example"]
    assert asked(framed("a.example.")[:2]) == []


def test_the_options_of_a_query_may_be_cut_off():
    query = dns.message.make_query("a.example.", "A", use_edns=0, payload=4096).to_wire()
    assert asked(len(query).to_bytes(2, "big") + query[:-4]) == ["a.example"]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_in_a_stream_raise_nothing(data):
    assert len(asked(data)) <= len(data) // 12
