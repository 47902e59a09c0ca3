"""What holds for every answer, with dnspython as the second implementation, and for every string of bytes."""

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.dns.names import HomeDomains
from natf_bsd.dns.records import without_options
from natf_bsd.dns.rewrite import Outcome, rewrite
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import format_address

HOMES = HomeDomains(["home.example.net"])
VIRTUAL = VirtualAddresses()
V1 = b"\xf0\0\x33\x52"
QNAMES = st.sampled_from(["alice.home.example.net.", "BOB.home.Example.net.", "home.example.net.", "www.example.com."])
HOSTS = st.sampled_from(
    ["router.example.org.", "Router.EXAMPLE.org.", "b.home.example.net.", "alice.home.example.net."]
)
ADDRESSES = st.one_of(st.just(b"\xcb\0\x71\1"), st.binary(min_size=4, max_size=4))
TTLS = st.integers(0, 2**31 - 1)


def relate(name, addresses, ttl):
    return V1


@st.composite
def records(draw, owners):
    kind = draw(st.sampled_from(["A", "A", "A", "CNAME", "CNAME", "AAAA", "TXT", "HTTPS"]))
    data = {
        "A": format_address(draw(ADDRESSES)),
        "CNAME": draw(HOSTS),
        "AAAA": "2001:db8::1",
        "TXT": '"text"',
        "HTTPS": "1 . ipv4hint=203.0.113.1",
    }[kind]
    return dns.rrset.from_text(draw(owners), draw(TTLS), "IN", kind, data)


@st.composite
def messages(draw):
    qname = draw(QNAMES)
    query = dns.message.make_query(
        qname,
        draw(st.sampled_from(["A", "A", "AAAA", "HTTPS", "ANY", "TXT"])),
        use_edns=draw(st.sampled_from([False, 0])),
    )
    message = dns.message.make_response(query)
    message.flags |= draw(st.sampled_from([0, dns.flags.AD, dns.flags.RA | dns.flags.AD, dns.flags.TC]))
    message.set_rcode(draw(st.sampled_from([dns.rcode.NOERROR] * 4 + [dns.rcode.NXDOMAIN])))
    owners = st.one_of(st.just(qname), HOSTS)
    message.answer = draw(st.lists(records(owners), max_size=5))
    message.authority = draw(st.lists(records(owners), max_size=2))
    message.additional = draw(st.lists(records(owners), max_size=2))
    return message


def reached(message: dns.message.Message) -> tuple[list[bytes], int | None] | None:
    """What dnspython's own walk over the CNAMEs finds: true addresses and the smallest TTL; None where it sees no way.

    None as well for two CNAMEs of one name, which are against RFC 2181 section 10.1: it takes the last, we the first.
    """
    aliases = [rrset.name for rrset in message.answer if rrset.rdtype == dns.rdatatype.CNAME]
    if len(aliases) != len(set(aliases)) or message.question[0].rdtype != dns.rdatatype.A:
        return None
    try:
        chain = dns.message.from_wire(message.to_wire()).resolve_chaining()
    except dns.exception.DNSException:
        return None
    if chain.answer is None:
        return [], None
    addresses = [bytes(map(int, record.address.split("."))) for record in chain.answer]
    return [address for address in addresses if not VIRTUAL.contains(address)], chain.minimum_ttl


@given(messages())
def test_an_answer_with_addresses_becomes_what_dnspython_understands_as_the_virtual_address(message):
    wire = message.to_wire()
    expected = reached(message)
    message = dns.message.from_wire(wire)
    asked = []

    def remember(name, addresses, ttl):
        asked.append((list(addresses), ttl))
        return V1

    after, outcome = rewrite(wire, HOMES, remember, VIRTUAL, maximum_ttl=2**31 - 1)
    assert len(after) <= len(wire)
    result = dns.message.from_wire(after)
    assert result.question == message.question
    assert result.id == message.id
    assert (result.edns, result.payload) == (message.edns, message.payload) or result.rcode() == dns.rcode.SERVFAIL
    if outcome in (Outcome.NOT_OURS, Outcome.UNCHANGED, Outcome.ALREADY):
        assert after is wire
    else:
        assert not result.flags & dns.flags.AD
    if outcome is Outcome.REWRITTEN:
        (rrset,) = result.answer
        assert rrset.name == message.question[0].name
        assert [record.address for record in rrset] == [format_address(V1)]
        if expected is not None:
            ((addresses, ttl),) = asked
            assert set(addresses) == set(expected[0])
            assert rrset.ttl == ttl == expected[1]
    if outcome is Outcome.EMPTIED:
        assert not result.answer
        assert result.rcode() == message.rcode()
    if outcome in (Outcome.FAILED, Outcome.TRUNCATED):
        assert result.rcode() == dns.rcode.SERVFAIL
        assert not result.answer


def sections(message):
    return [*message.answer, *message.authority, *message.additional]


@given(messages())
def test_no_usable_answer_of_ours_shows_a_true_address_to_who_asks_for_one(message):
    wire = message.to_wire()
    after, outcome = rewrite(wire, HOMES, relate, VIRTUAL)
    asked = message.question[0]
    ours = HOMES.split(asked.name.to_text()) is not None
    if outcome is Outcome.REBINDING:
        assert not ours
        assert any(b"\xf0" in record.to_wire() for rrset in sections(message) for record in rrset)
        assert dns.message.from_wire(after).rcode() == dns.rcode.SERVFAIL
        return
    if ours and message.flags & dns.flags.TC and asked.rdtype != dns.rdatatype.TXT:
        assert not dns.message.from_wire(after).flags & dns.flags.TC, "nobody is sent to TCP"
    elif not ours or asked.rdtype == dns.rdatatype.TXT or message.rcode():
        assert after is wire
        assert outcome in (Outcome.NOT_OURS, Outcome.UNCHANGED)
        return
    for rrset in dns.message.from_wire(after).answer:
        assert asked.rdtype == dns.rdatatype.A or rrset.rdtype not in (
            dns.rdatatype.AAAA,
            dns.rdatatype.HTTPS,
            dns.rdatatype.SVCB,
        )
        if rrset.rdtype == dns.rdatatype.A:
            assert all(record.address.startswith("240.") for record in rrset)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_nothing(data):
    after, outcome = rewrite(data, HOMES, relate, VIRTUAL)
    assert isinstance(outcome, Outcome)
    assert len(after) <= len(data) or after is data


QUESTION = b"\x05alice\x04home\x07example\x03net\0\0\x01\0\x01"


@given(st.binary(min_size=6, max_size=6), st.binary(max_size=80), st.sampled_from([b"\x00\x01", b"\x00\x1c"]))
def test_arbitrary_bytes_behind_a_question_of_ours_raise_nothing(counts, rest, kind):
    data = b"\x12\x67\x81\x80\0\1" + counts + QUESTION[:-4] + kind + QUESTION[-2:] + rest
    after, outcome = rewrite(data, HOMES, relate, VIRTUAL)
    assert outcome is not Outcome.NOT_OURS
    assert len(after) <= len(data)


@given(messages(), st.data())
def test_a_damaged_answer_raises_nothing_and_never_grows(message, data):
    wire = bytearray(message.to_wire())
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.sampled_from([0, 1, 5, 0x0C, 0x3F, 0xC0, 0xFF]))
    damaged = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    after, _ = rewrite(damaged, HOMES, relate, VIRTUAL)
    assert len(after) <= len(damaged)


@given(messages())
def test_an_answer_without_its_options_is_the_same_but_for_them(message):
    wire = message.to_wire()
    message = dns.message.from_wire(wire)
    plain = dns.message.from_wire(without_options(wire))
    assert plain.edns == -1
    assert (plain.id, plain.flags, plain.question) == (message.id, message.flags, message.question)
    assert sections(plain) == sections(message)


@given(st.binary(max_size=80))
def test_taking_the_options_out_of_arbitrary_bytes_raises_nothing(data):
    assert len(without_options(data)) <= len(data)
