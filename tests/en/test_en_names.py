"""Phase 1 at the core: DNS answers become virtual addresses, each with its counter and its journal record."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.types import Direction, Endpoint, Packet, format_address, parse_address
from natf_bsd.wire import build


def answer_bytes(
    name: str, *sets: tuple[str, str], rcode: dns.rcode.Rcode = dns.rcode.NOERROR, kind: str = "A"
) -> bytes:
    answer = dns.message.make_response(dns.message.make_query(name, kind))
    answer.set_rcode(rcode)
    answer.answer += [dns.rrset.from_text(name, 60, "IN", one, text) for one, text in sets]
    return answer.to_wire()


def test_every_private_host_gets_an_address_of_its_own(bench) -> None:
    alice, bob = bench.learn("alice"), bench.learn("bob")
    assert alice != bob
    assert alice[0] == bob[0] == 240
    assert bench.learn("alice") == alice
    assert bench.count("dns.sent.rewritten") == 3


def test_the_prefix_is_the_configured_one(make_bench) -> None:
    assert make_bench(EnConfig(("home.example.net",), virtual_prefix=250)).learn()[0] == 250


def test_a_learned_name_is_saved_with_its_expiry_as_time_of_day(bench) -> None:
    bench.core.epoch_offset = 1_700_000_000.0
    virtual = bench.learn("alice", bench.G2, bench.OTHER, ttl=300)
    assert bench.saved == [
        {
            "id": "name alice.home.example.net",
            "host": "alice",
            "domain": "home.example.net",
            "virtual": format_address(virtual),
            "routers": ["203.0.113.1", "203.0.113.2"],
            "expires": 1_700_000_400.0,
        }
    ]


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        (answer_bytes("www.elsewhere.example.", ("A", "203.0.113.80")), "dns.sent.not_ours"),
        (b"", "dns.sent.not_ours"),
        (answer_bytes("alice.home.example.net.", rcode=dns.rcode.NXDOMAIN), "dns.sent.unchanged"),
        (answer_bytes("alice.home.example.net."), "dns.sent.unchanged"),
    ],
    ids=["another's", "empty", "no such name", "no such record"],
)
def test_other_answers_pass_untouched(bench, answer: bytes, counter: str) -> None:
    assert bench.dns(answer) == answer
    assert bench.count(counter) == 1
    assert bench.saved == []
    assert len(bench.core.names) == 0


def test_an_ipv6_answer_is_emptied(bench) -> None:
    seen = dns.message.from_wire(
        bench.dns(answer_bytes("alice.home.example.net.", ("AAAA", "2001:db8::1"), kind="AAAA"))
    )
    assert (seen.rcode(), seen.answer) == (dns.rcode.NOERROR, [])
    assert bench.count("dns.sent.emptied") == 1


def test_an_answer_of_ours_that_makes_no_sense_becomes_servfail(bench) -> None:
    seen = dns.message.from_wire(bench.dns(answer_bytes("alice.home.example.net.", ("A", "203.0.113.1"))[:-2]))
    assert (seen.rcode(), seen.answer) == (dns.rcode.SERVFAIL, [])
    assert bench.count("dns.sent.failed") == 1


def test_a_full_name_table_answers_servfail_never_the_true_address(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), maximum_names=1))
    bench.learn("alice")
    seen = dns.message.from_wire(bench.dns(answer_bytes("bob.home.example.net.", ("A", "203.0.113.1"))))
    assert (seen.rcode(), seen.answer) == (dns.rcode.SERVFAIL, [])
    assert bench.count("dns.sent.failed") == 1
    assert len(bench.core.names) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(build.udp(Endpoint(bytes(4), 53), Endpoint(bytes(4), 9), b"abc"))[:24],
        bytes(build.udp(Endpoint(bytes(4), 53), Endpoint(bytes(4), 9), b"abc"))[:27],
        bytes(build.tcp(Endpoint(bytes(4), 53), Endpoint(bytes(4), 9), flags=16, payload=b"abc")),
        bytes(build.ipv4(1, bytes(4), bytes(4), b"")),
    ],
    ids=["nothing", "ports only", "UDP header cut", "TCP", "ICMP"],
)
def test_what_is_no_whole_datagram_passes_untouched(bench, data: bytes) -> None:
    bench.perform(bench.core.handle_dns(Packet(bytearray(data), Direction.IN), bench.now))
    assert bench.sent == [data]
    assert bench.count("dns.sent.not_dns") == 1


def test_a_fragment_of_a_datagram_passes_untouched(bench) -> None:
    data = build.udp(bench.SERVER, Endpoint(bench.G1, 9), answer_bytes("alice.home.example.net.", ("A", "203.0.113.1")))
    data[6] |= 0x20  # more fragments
    bench.perform(bench.core.handle_dns(Packet(bytearray(data), Direction.IN), bench.now))
    assert bench.sent == [bytes(data)]
    assert bench.count("dns.sent.not_dns") == 1


def test_a_name_is_forgotten_after_its_ttl_and_quarantine_and_the_journal_told(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), quarantine=100.0))
    virtual = bench.learn(ttl=60)
    bench.wait(159)
    assert bench.core.names.by_virtual(virtual)
    bench.wait(1)
    assert bench.core.names.by_virtual(virtual) is None
    assert bench.saved[-1] == {"id": "name alice.home.example.net", "gone": True}


def test_a_name_in_use_outlives_its_ttl(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), quarantine=0.0))
    virtual = bench.learn(ttl=60)
    bench.out(bench.syn(virtual))
    bench.map(lifetime=86400)
    bench.come(bench.tcp_back(18))
    bench.wait(3600)
    assert bench.core.names.by_virtual(virtual)
    bench.come(bench.tcp_back(4))
    bench.wait(2)
    assert len(bench.core.vat) == 0
    assert bench.core.names.by_virtual(virtual) is None


def test_names_of_another_home_domain_are_kept_apart(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net", "office.example.org")))
    home = bench.learn("alice")
    office = bench.learn("alice", parse_address("198.51.100.7"), domain="office.example.org")
    assert home != office
    bench.out(bench.syn(office))
    assert bench.asked[-1][1] == parse_address("198.51.100.7")
