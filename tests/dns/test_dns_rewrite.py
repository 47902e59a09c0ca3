"""Rewriting single answers. dnspython builds what goes in and reads what comes out."""

import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from natf_bsd.dns.names import HomeDomains
from natf_bsd.dns.rewrite import MAXIMUM_RECORDS, Outcome, rewrite
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Name, format_address, parse_address

HOMES = HomeDomains(["home.example.net"])
VIRTUAL = VirtualAddresses()
ALICE = Name("alice", "home.example.net")
QNAME = "alice.home.example.net."
G2 = "203.0.113.1"
G3 = "203.0.113.2"
V1 = "240.0.51.82"


class Relations:
    """Remembers what it was asked; answers with `address`."""

    def __init__(self, address: str | None = V1) -> None:
        self.address = parse_address(address) if address else None
        self.asked: list[tuple[Name, list[str], int]] = []

    def __call__(self, name, addresses, ttl):
        self.asked.append((name, [format_address(address) for address in addresses], ttl))
        return self.address


def answer(*records: str, qname=QNAME, qtype="A", authority=(), additional=(), rcode="NOERROR", edns=False) -> bytes:
    """The wire form of an answer; records as master-file lines."""
    message = dns.message.make_response(dns.message.make_query(qname, qtype, id=4711, use_edns=0 if edns else False))
    message.flags |= dns.flags.RA | dns.flags.AD | dns.flags.AA
    message.set_rcode(dns.rcode.from_text(rcode))
    for section, lines in ((message.answer, records), (message.authority, authority), (message.additional, additional)):
        for line in lines:
            owner, ttl, kind, data = line.split(maxsplit=3)
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, data))
    return message.to_wire()


def run(data: bytes, relate=None, **options):
    relations = relate if relate is not None else Relations()
    return rewrite(data, HOMES, relations, VIRTUAL, **options)


def read(data: bytes) -> dns.message.Message:
    return dns.message.from_wire(data)


def texts(section) -> list[str]:
    return [line for rrset in section for line in rrset.to_text().split("\n")]


def assert_servfail(data: bytes, question: str = QNAME) -> None:
    message = read(data)
    assert message.rcode() == dns.rcode.SERVFAIL
    assert message.id == 4711
    assert [rrset.name.to_text() for rrset in message.question] == [question]
    assert not message.answer
    assert not message.authority
    assert parse_address(G2) not in data
    assert not message.flags & (dns.flags.AD | dns.flags.AA | dns.flags.TC)
    assert message.flags & dns.flags.QR
    assert message.flags & dns.flags.RD
    assert message.flags & dns.flags.RA


# One address


def test_a_single_address_is_replaced_in_place():
    before = answer(f"{QNAME} 300 A {G2}", authority=["home.example.net. 60 NS ns.example.net."])
    relations = Relations()
    after, outcome = run(before, relations)
    assert outcome is Outcome.REWRITTEN
    assert relations.asked == [(ALICE, [G2], 300)]
    expected = bytearray(before.replace(parse_address(G2), parse_address(V1)))
    expected[3] &= ~dns.flags.AD & 0xFF
    assert after == expected


def test_the_case_of_the_question_is_kept():
    before = answer(f"{QNAME} 300 A {G2}", qname="aLiCe.HOME.example.NET.")
    relations = Relations()
    after, outcome = run(before, relations)
    assert outcome is Outcome.REWRITTEN
    assert relations.asked[0][0] == ALICE
    assert b"\x05aLiCe\x04HOME" in after


def test_an_uncompressed_owner_in_another_case_is_the_same_name():
    question = b"\x05alice\x04home\x07example\x03net\0"
    data = (
        struct.pack("!6H", 4711, 0x8180, 1, 1, 0, 0)
        + question
        + struct.pack("!2H", 1, 1)
        + question.upper()
        + struct.pack("!HHIH", 1, 1, 300, 4)
        + parse_address(G2)
    )
    after, outcome = run(data)
    assert outcome is Outcome.REWRITTEN
    assert after == data.replace(parse_address(G2), parse_address(V1))


def test_bytes_behind_the_message_stay():
    after, outcome = run(answer(f"{QNAME} 300 A {G2}") + b"trailing")
    assert outcome is Outcome.REWRITTEN
    assert after.endswith(parse_address(V1) + b"trailing")


def test_a_long_ttl_is_cut_to_what_the_relation_lasts():
    relations = Relations()
    after, _ = run(answer(f"{QNAME} 604800 A {G2}"), relations)
    assert texts(read(after).answer) == [f"{QNAME} 86400 IN A {V1}"]
    assert relations.asked[0][2] == 86400
    after, _ = run(answer(f"{QNAME} 604800 A {G2}", f"{QNAME} 604800 A {G3}"), maximum_ttl=100)
    assert texts(read(after).answer) == [f"{QNAME} 100 IN A {V1}"]


def test_a_ttl_with_the_top_bit_means_zero():
    data = bytearray(answer(f"{QNAME} 300 A {G2}"))
    data[-10:-6] = b"\xff\xff\xff\xff"
    relations = Relations()
    after, outcome = run(bytes(data), relations)
    assert outcome is Outcome.REWRITTEN
    assert relations.asked[0][2] == 0
    assert texts(read(after).answer) == [f"{QNAME} 0 IN A {V1}"]


# Several addresses, CNAMEs


def test_several_addresses_become_one():
    relations = Relations()
    after, outcome = run(answer(f"{QNAME} 300 A {G3}", f"{QNAME} 200 A {G2}"), relations)
    assert outcome is Outcome.REWRITTEN
    assert relations.asked == [(ALICE, [G3, G2], 200)]
    message = read(after)
    assert texts(message.answer) == [f"{QNAME} 200 IN A {V1}"]
    assert not message.flags & dns.flags.AD
    assert message.flags & dns.flags.AA


def test_a_chain_of_cnames_is_flattened_with_its_smallest_ttl():
    relations = Relations()
    before = answer(
        f"{QNAME} 300 CNAME Router.dyn.example.org.",
        "router.DYN.example.org. 20 CNAME r1.dyn.example.org.",
        f"r1.dyn.example.org. 60 A {G2}",
        f"r1.dyn.example.org. 60 A {G3}",
    )
    after, outcome = run(before, relations)
    assert outcome is Outcome.REWRITTEN
    assert relations.asked == [(ALICE, [G2, G3], 20)]
    assert texts(read(after).answer) == [f"{QNAME} 20 IN A {V1}"]
    assert len(after) < len(before)


def test_a_chain_may_stand_in_any_order():
    before = answer(f"r.example.org. 60 A {G2}", f"{QNAME} 300 CNAME r.example.org.")
    assert texts(read(run(before).data).answer) == [f"{QNAME} 60 IN A {V1}"]


def test_an_address_ends_the_chain_even_beside_a_cname():
    relations = Relations()
    run(answer(f"{QNAME} 300 CNAME r.example.org.", f"{QNAME} 300 A {G2}", f"r.example.org. 60 A {G3}"), relations)
    assert relations.asked == [(ALICE, [G2], 300)]


def test_a_loop_of_cnames_with_an_address_is_odd():
    before = answer(
        f"{QNAME} 300 CNAME b.example.org.", f"b.example.org. 300 CNAME {QNAME}", f"c.example.org. 60 A {G2}"
    )
    after, outcome = run(before)
    assert outcome is Outcome.FAILED
    assert_servfail(after)


def test_cnames_that_lead_to_no_address_stay():
    for before in (
        answer(f"{QNAME} 300 CNAME b.example.org."),
        answer(f"{QNAME} 300 CNAME b.example.org.", f"b.example.org. 300 CNAME {QNAME}"),
    ):
        after, outcome = run(before)
        assert outcome is Outcome.UNCHANGED
        assert after is before


def test_a_rebuilt_answer_keeps_edns_and_drops_all_that_could_show_the_true_address():
    before = answer(
        f"{QNAME} 300 A {G2}",
        f"{QNAME} 300 A {G3}",
        authority=["home.example.net. 60 NS ns.home.example.net."],
        additional=[f"ns.home.example.net. 60 A {G2}", "ns.home.example.net. 60 AAAA 2001:db8::1"],
        edns=True,
    )
    after, outcome = run(before)
    assert outcome is Outcome.REWRITTEN
    message = read(after)
    assert message.edns == 0
    assert message.payload == read(before).payload
    assert not message.authority
    assert not message.additional
    assert parse_address(G2) not in after


def test_a_signed_answer_loses_its_signature():
    signature = f"{QNAME} 300 RRSIG A 13 4 300 20300101000000 20200101000000 1 example.net. AAAA"
    after, outcome = run(answer(f"{QNAME} 300 A {G2}", signature))
    assert outcome is Outcome.REWRITTEN
    assert texts(read(after).answer) == [f"{QNAME} 300 IN A {V1}"]


# Not ours, or nothing to hide: the very same object


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        answer(f"www.example.com. 300 A {G2}", qname="www.example.com."),
        answer(f"home.example.net. 300 A {G2}", qname="home.example.net."),
        answer(f"a.b.home.example.net. 300 A {G2}", qname="a.b.home.example.net."),
        dns.message.make_query(QNAME, "A").to_wire(),
        dns.message.make_response(dns.message.make_query(QNAME, "A", rdclass="CH")).to_wire(),
        answer(f"{QNAME} 300 A {G2}")[:25],
        answer(f"{QNAME} 300 A {G2}").replace(b"\x05alice\x04home", b"\x0aalice.home"),
    ],
    ids=["empty", "short", "another's", "the home's own", "too deep", "query", "chaos", "cut off", "a dot in a label"],
)
def test_what_is_not_about_a_private_host_is_the_same_object(data):
    relations = Relations()
    after, outcome = run(data, relations)
    assert after is data
    assert outcome is Outcome.NOT_OURS
    assert not relations.asked


def test_another_opcode_or_question_count_is_not_ours():
    data = answer(f"{QNAME} 300 A {G2}")
    for changed in (
        data[:2] + b"\xa1\x80" + data[4:],
        data[:4] + b"\0\x02" + data[6:],
        data[:4] + b"\0\0" + data[6:],
    ):
        assert run(changed) == (changed, Outcome.NOT_OURS)


@pytest.mark.parametrize(
    "data",
    [
        answer(),
        answer(authority=["example.net. 60 SOA ns.example.net. h.example.net. 1 2 3 4 5"], rcode="NXDOMAIN"),
        answer(rcode="SERVFAIL"),
        answer(f'{QNAME} 60 TXT "hello"', qtype="TXT"),
        answer(qtype="AAAA"),
        answer(f"{QNAME} 60 CNAME b.example.org.", qtype="AAAA"),
    ],
)
def test_an_answer_of_ours_without_an_address_to_hide_is_the_same_object(data):
    relations = Relations()
    after, outcome = run(data, relations)
    assert after is data
    assert outcome is Outcome.UNCHANGED
    assert not relations.asked


def test_an_answer_of_this_host_with_virtual_addresses_only_was_rewritten_already():
    for data in (answer(f"{QNAME} 300 A {V1}"), answer(f"{QNAME} 300 A {V1}", f"{QNAME} 300 A 240.1.2.3")):
        relations = Relations()
        after, outcome = run(data, relations, local=True)
        assert after is data
        assert outcome is Outcome.ALREADY
        assert not relations.asked
        after, outcome = run(data, relations)
        assert outcome is Outcome.FAILED
        assert_servfail(after)
        assert not relations.asked


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.9.9.9", "169.254.1.1", "224.0.0.1", "239.1.1.1", "255.255.255.255"],
)
def test_an_address_no_router_can_have_is_left_out(address):
    relations = Relations()
    after, outcome = run(answer(f"{QNAME} 300 A {address}"), relations)
    assert outcome is Outcome.FAILED
    assert_servfail(after)
    assert not relations.asked
    assert run(answer(f"{QNAME} 300 A {address}", f"{QNAME} 300 A {G2}"), relations).outcome is Outcome.REWRITTEN
    assert relations.asked == [(ALICE, [G2], 300)]


@pytest.mark.parametrize(
    "address", ["126.1.1.1", "128.1.1.1", "169.253.1.1", "169.255.1.1", "192.168.1.1", "223.1.1.1"]
)
def test_any_other_address_may_be_a_routers(address):
    assert run(answer(f"{QNAME} 300 A {address}")).outcome is Outcome.REWRITTEN


def test_an_answer_nobody_asked_for_is_told_and_nothing_learned():
    relations = Relations()
    seen = []
    data = answer(f"{QNAME} 300 A {G2}")
    assert run(data, relations, asked=lambda question: bool(seen.append(question))) == (data, Outcome.UNASKED)
    assert (seen[0].ident, seen[0].name, seen[0].type) == (4711, QNAME[:-1], 1)
    assert not relations.asked
    foreign = answer(f"www.example.com. 300 A {G2}", qname="www.example.com.")
    assert run(foreign, asked=lambda question: False).outcome is Outcome.NOT_OURS


# Not ours, with a virtual address: DNS rebinding


EVIL = "evil.example.org."


@pytest.mark.parametrize(
    "record",
    [
        f"{EVIL} 300 A {V1}",
        f"cdn.example.org. 300 A {V1}",
        f"{EVIL} 300 AAAA ::ffff:{V1}",
        f"{EVIL} 300 HTTPS 1 . ipv4hint={V1}",
        f'{EVIL} 300 HTTPS 1 . alpn=h2 ipv4hint="192.0.2.1,{V1}"',
        f"{EVIL} 300 SVCB 1 . ipv6hint=::ffff:{V1}",
    ],
)
@pytest.mark.parametrize("local", [False, True])
def test_an_answer_of_somebody_else_with_a_virtual_address_is_servfail(record, local):
    for records in ([record], [f"{EVIL} 300 CNAME cdn.example.org.", f"{EVIL} 300 A {G2}", record]):
        relations = Relations()
        after, outcome = run(answer(*records, qname=EVIL, edns=True), relations, local=local)
        assert outcome is Outcome.REBINDING
        assert_servfail(after, EVIL)
        assert not relations.asked


def test_a_fault_behind_the_virtual_address_does_not_let_it_pass():
    data = answer(f"{EVIL} 300 A {V1}", f"{EVIL} 300 A {G2}", qname=EVIL)[:-1]
    assert run(data).outcome is Outcome.REBINDING
    assert run(data[:11] + b"\7" + data[12:]).outcome is Outcome.REBINDING


def test_an_answer_with_another_number_of_questions_has_its_virtual_address_found():
    data = answer(f"{EVIL} 300 A {V1}", qname=EVIL)
    question = data[12 : 12 + len(EVIL) + 1 + 4]
    for count in 0, 2:
        several = data[:4] + bytes([0, count]) + data[6:12] + question * count + data[12 + len(question) :]
        after, outcome = run(several)
        assert outcome is Outcome.REBINDING
        assert parse_address(V1) not in after
        assert len(after) == 12 + count * len(question)


def test_the_same_bytes_elsewhere_in_an_answer_are_no_address():
    for data in (
        answer(f'{EVIL} 300 TXT "\\000\\004\\240abc"', qname=EVIL, qtype="TXT"),
        answer(f"{EVIL} 300 AAAA 2001:db8::ffff:f000:1", qname=EVIL, qtype="AAAA"),
        answer(f"{EVIL} 300 A {G2}", qname=EVIL)[:-7] + b"\0\4\xf0",
        b"\0\4\xf0",
        b"\0\4\xf0" * 5,
        dns.message.make_query(EVIL, "A").to_wire() + b"\0\4\xf0\1\2\3",
    ):
        assert run(data) == (data, Outcome.NOT_OURS)
        assert run(data).data is data


def test_virtual_addresses_among_true_ones_do_not_count():
    relations = Relations()
    after, outcome = run(answer(f"{QNAME} 300 A 240.1.2.3", f"{QNAME} 300 A {G2}"), relations)
    assert outcome is Outcome.REWRITTEN
    assert relations.asked == [(ALICE, [G2], 300)]
    assert texts(read(after).answer) == [f"{QNAME} 300 IN A {V1}"]


# Types that lead past the A record


@pytest.mark.parametrize(
    ("qtype", "data"),
    [
        ("AAAA", "2001:db8::1"),
        ("HTTPS", f"1 . alpn=h2 ipv4hint={G2}"),
        ("SVCB", f"1 . ipv4hint={G2}"),
    ],
)
def test_answers_that_bypass_the_a_record_are_emptied(qtype, data):
    before = answer(
        f"{QNAME} 300 CNAME b.example.org.",
        f"b.example.org. 300 {qtype} {data}",
        qtype=qtype,
        additional=[f"b.example.org. 60 A {G2}"],
        edns=True,
    )
    relations = Relations()
    after, outcome = run(before, relations)
    assert outcome is Outcome.EMPTIED
    assert not relations.asked
    message = read(after)
    assert message.rcode() == dns.rcode.NOERROR
    assert [rrset.to_text() for rrset in message.question] == [f"{QNAME} IN {qtype}"]
    assert (message.answer, message.authority, message.additional) == ([], [], [])
    assert message.edns == 0
    assert not message.flags & dns.flags.AD
    assert parse_address(G2) not in after


# Ours but odd: SERVFAIL, never the true address


def test_whatever_there_is_of_a_name_is_not_told_with_its_address():
    after, outcome = run(answer(f"{QNAME} 300 A {G2}", f'{QNAME} 300 TXT "text"', qtype="ANY"))
    assert outcome is Outcome.EMPTIED
    assert read(after).answer == []
    data = answer(f'{QNAME} 300 TXT "text"', qtype="ANY")
    assert run(data).data is data


def test_no_virtual_address_to_be_had_is_servfail():
    for records in ([f"{QNAME} 300 A {G2}"], [f"{QNAME} 300 A {G2}", f"{QNAME} 300 A {G3}"]):
        after, outcome = run(answer(*records, edns=True), Relations(None))
        assert outcome is Outcome.FAILED
        assert_servfail(after)
        assert read(after).edns == 0


@pytest.mark.parametrize("length", range(40, len(answer(f"{QNAME} 300 A {G2}", f"{QNAME} 300 A {G3}"))))
def test_an_answer_of_ours_that_ends_too_early_is_servfail(length):
    after, outcome = run(answer(f"{QNAME} 300 A {G2}", f"{QNAME} 300 A {G3}")[:length])
    assert outcome is Outcome.FAILED
    assert_servfail(after)


def test_an_address_the_question_does_not_lead_to_is_servfail():
    after, outcome = run(answer(f"www.example.com. 300 A {G2}"))
    assert outcome is Outcome.FAILED
    assert_servfail(after)


def record(owner: bytes, kind: int, data: bytes, klass: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", kind, klass, 300, len(data)) + data


def handmade(*records: bytes, counts: tuple[int, int, int] | None = None) -> bytes:
    question = b"\x05alice\x04home\x07example\x03net\0" + struct.pack("!HH", 1, 1)
    header = struct.pack("!6H", 4711, 0x8180, 1, *(counts if counts is not None else (len(records), 0, 0)))
    return header + question + b"".join(records)


QUESTION = b"\xc0\x0c"
FIRST_ANSWER = 12 + 24 + 4  # behind header and question
GOOD = record(QUESTION, 1, parse_address(G2))
B_GOOD = record(b"\x01b\0", 1, parse_address(G2))
EMPTY_OPT = record(b"\0", 41, b"")


@pytest.mark.parametrize("data", [handmade(GOOD), handmade(record(QUESTION, 5, b"\x01b\0"), B_GOOD)])
def test_the_handmade_answer_is_a_good_one(data):
    assert run(data).outcome is Outcome.REWRITTEN


@pytest.mark.parametrize(
    "data",
    [
        handmade(record(QUESTION, 1, parse_address(G2) + b"x")),
        handmade(record(QUESTION, 1, b"\1\2\3")),
        handmade(GOOD, record(QUESTION, 1, b"")),
        handmade(record(QUESTION, 1, parse_address(G2), klass=3)),
        handmade(record(b"\xc0" + bytes([FIRST_ANSWER]), 1, parse_address(G2))),
        handmade(record(b"\xc0\xff", 1, parse_address(G2))),
        handmade(record(b"\x01x\xc0" + bytes([FIRST_ANSWER]), 1, parse_address(G2))),
        handmade(record(b"\x40abc\0", 1, parse_address(G2))),
        handmade(record(b"\x80abc\0", 1, parse_address(G2))),
        handmade(record((b"\x3f" + b"a" * 63) * 4 + b"\0", 1, parse_address(G2))),
        handmade(record(QUESTION, 5, b"\x01b\0x"), B_GOOD),
        handmade(record(QUESTION, 5, b"\x01b\xc0"), B_GOOD),
        handmade(record(QUESTION, 5, b"\x01b"), B_GOOD),
        handmade(record(QUESTION, 5, b""), B_GOOD),
        handmade(GOOD, GOOD, counts=(3, 0, 0)),
        handmade(GOOD, counts=(1, 0, 1)),
        handmade(GOOD, EMPTY_OPT, EMPTY_OPT, counts=(1, 0, 2)),
        handmade(GOOD, record(QUESTION, 41, b""), counts=(1, 0, 1)),
        handmade(*[GOOD] * (MAXIMUM_RECORDS + 1)),
        handmade(GOOD, counts=(65535, 65535, 65535)),
    ],
)
def test_an_unsound_answer_of_ours_is_servfail(data):
    relations = Relations()
    after, outcome = run(data, relations)
    assert outcome is Outcome.FAILED
    assert_servfail(after)
    assert not relations.asked


def test_as_many_records_as_a_udp_answer_holds_are_read():
    relations = Relations()
    after, outcome = run(handmade(*[GOOD] * MAXIMUM_RECORDS), relations)
    assert outcome is Outcome.REWRITTEN
    assert len(relations.asked[0][1]) == MAXIMUM_RECORDS
    assert after == handmade(record(QUESTION, 1, parse_address(V1)))


def test_a_pointer_to_a_pointer_backwards_is_followed():
    cname = record(QUESTION, 5, b"\x01b\xc0\x12")  # b.home.example.net
    target = bytes([0xC0, FIRST_ANSWER + 12])
    data = handmade(cname, record(target, 1, parse_address(G2)))
    assert run(data).outcome is Outcome.REWRITTEN
    again = handmade(
        cname, record(target, 5, b"\x01c\0"), record(bytes([0xC0, FIRST_ANSWER + 12 + 4 + 12]), 1, b"\1\2\3\4")
    )
    assert texts(read(run(again).data).answer) == [f"{QNAME} 300 IN A {V1}"]


@pytest.mark.parametrize(("pointers", "outcome"), [(6, Outcome.REWRITTEN), (7, Outcome.FAILED), (4000, Outcome.FAILED)])
def test_a_chain_of_pointers_in_a_row_has_its_limit(pointers, outcome):
    """A message of 20 kB could else cost half a second."""
    start = FIRST_ANSWER + 12
    chain = QUESTION + b"".join(struct.pack("!H", 0xC000 | start + 2 * number) for number in range(pointers - 1))
    owner = struct.pack("!H", 0xC000 | start + len(chain) - 2)
    data = handmade(record(QUESTION, 16, chain), record(owner, 1, parse_address(G2)))
    assert run(data).outcome is outcome
