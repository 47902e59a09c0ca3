"""The reverse name of a virtual address, and what is answered to a question about it."""

import dns.flags
import dns.message
import dns.rcode
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.dns import reverse
from natf_bsd.dns.question import Question, read_question
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Name, format_address, parse_address

VIRTUAL = VirtualAddresses()
ALICE = Name("alice", "home.example.net")
REVERSED = "82.51.0.240.in-addr.arpa."


def question(query: bytes) -> Question:
    found = read_question(query, answer=False)
    assert found is not None
    return found


def virtual(name: str, kind: str = "PTR", klass: str = "IN", virtual_addresses: VirtualAddresses = VIRTUAL):
    return reverse.virtual_address(
        question(dns.message.make_query(name, kind, rdclass=klass).to_wire()), virtual_addresses
    )


def answered(query: dns.message.Message, name: Name | None = ALICE, ttl: int = 60) -> dns.message.Message:
    data = query.to_wire()
    answer = dns.message.from_wire(reverse.answer(data, question(data), name, ttl))
    assert query.is_response(answer)
    return answer


@given(st.binary(min_size=3, max_size=3))
def test_the_reverse_name_of_every_virtual_address_is_known(rest):
    address = bytes([240]) + rest
    name = dns.reversename.from_address(format_address(address)).to_text()
    assert virtual(name) == address
    assert virtual(name.upper()) == address
    assert virtual(name, virtual_addresses=VirtualAddresses(10)) is None


@pytest.mark.parametrize(
    "name",
    [
        "82.51.0.203.in-addr.arpa.",
        "51.0.240.in-addr.arpa.",
        "240.in-addr.arpa.",
        "1.82.51.0.240.in-addr.arpa.",
        "082.51.0.240.in-addr.arpa.",
        "256.51.0.240.in-addr.arpa.",
        "-1.51.0.240.in-addr.arpa.",
        "a.51.0.240.in-addr.arpa.",
        "\\178.51.0.240.in-addr.arpa.",
        "82.51.0.240.in-addr.arpa.example.net.",
        "82.51.0.240.ip6.arpa.",
        "alice.home.example.net.",
        ".",
    ],
)
def test_any_other_name_is_none(name):
    assert virtual(name) is None


def test_another_class_is_none():
    assert virtual(REVERSED, klass="CH") is None


def test_the_name_is_answered():
    answer = answered(dns.message.make_query(REVERSED, "PTR"))
    assert [rrset.to_text() for rrset in answer.answer] == [f"{REVERSED} 60 IN PTR alice.home.example.net."]
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA


def test_an_address_that_stands_for_nothing_does_not_exist():
    answer = answered(dns.message.make_query(REVERSED, "PTR"), None)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])


def test_there_is_nothing_else_at_a_reverse_name():
    answer = answered(dns.message.make_query(REVERSED, "TXT"))
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize("edns", [False, True])
def test_only_who_knows_edns_gets_edns(edns):
    answer = answered(dns.message.make_query(REVERSED, "PTR", use_edns=0 if edns else False, payload=4096))
    assert answer.edns == (0 if edns else -1)


def test_the_letter_case_of_the_question_comes_back():
    query = dns.message.make_query("82.51.0.240.In-Addr.ARPA.", "PTR")
    assert b"\x07In-Addr\x04ARPA" in reverse.answer(query.to_wire(), question(query.to_wire()), ALICE, 60)


@given(st.text("abcz019-_", min_size=1, max_size=63), st.integers(0, 2**31 - 1), st.binary(max_size=40))
def test_whatever_the_name_the_ttl_and_what_follows_the_question(host, ttl, rest):
    query = dns.message.make_query(REVERSED, "PTR").to_wire()
    answer = dns.message.from_wire(reverse.answer(query + rest, question(query), Name(host, "h" * 63 + ".net"), ttl))
    (record,) = answer.answer
    assert record.ttl == ttl
    assert record[0].target.to_text() == f"{host}.{'h' * 63}.net."


def test_it_fits_what_a_program_without_edns_takes():
    longest = Name("a" * 63, ".".join(["b" * 63, "c" * 63, "d" * 60]))
    query = dns.message.make_query("255.255.255.240.in-addr.arpa.", "PTR", use_edns=0).to_wire()
    assert len(reverse.answer(query, question(query), longest, 60)) <= 512
    assert parse_address("240.255.255.255") == reverse.virtual_address(question(query), VIRTUAL)
