"""The name of a virtual address is told by this host and asked of nobody."""

from __future__ import annotations

import dns.message
import dns.rcode
import dns.reversename
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.types import Address, Direction, Endpoint, Packet, format_address, parse_address
from natf_bsd.wire import build, packet

STRANGER = Endpoint(parse_address("198.51.100.66"), 53)
LOCAL = Endpoint(parse_address("127.0.0.1"), 53)


def look_up(bench, address: Address, *, server: Endpoint | None = None) -> Packet:
    """A program asks `server` for the name of `address`."""
    query = dns.message.make_query(dns.reversename.from_address(format_address(address)), "PTR").to_wire()
    client = Endpoint(LOCAL.address if server == LOCAL else bench.G1, 40054)
    asked = Packet(build.udp(client, server or bench.SERVER, query), Direction.OUT)
    bench.perform(bench.core.handle_dns(asked, bench.now))
    assert asked in bench.dropped, "it did not leave"
    return asked


def read(asked: Packet, data: bytes) -> dns.message.Message:
    """The answer in `data`, which must fit the query as a program's socket and resolver see it."""
    assert packet.flow_of(data) == packet.flow_of(asked.data).reversed()
    answer = dns.message.from_wire(data[28:])
    assert dns.message.from_wire(bytes(asked.data[28:])).is_response(answer)
    return answer


def test_a_program_gets_the_name_of_the_address_it_has(bench) -> None:
    virtual = bench.learn("alice", ttl=300)
    bench.wait(100)
    asked = look_up(bench, virtual)
    (data,) = bench.told
    (rrset,) = read(asked, data).answer
    assert [record.target.to_text() for record in rrset] == ["alice.home.example.net."]
    assert rrset.ttl == 200
    assert bench.count("dns.drop.reverse") == 1


def test_an_address_that_stands_for_nothing_does_not_exist(bench) -> None:
    asked = look_up(bench, parse_address("240.9.9.9"))
    (data,) = bench.told
    assert read(asked, data).rcode() == dns.rcode.NXDOMAIN
    assert bench.count("dns.drop.reverse_unknown") == 1


def test_no_server_whatever_hears_of_it(bench) -> None:
    virtual = bench.learn()
    asked = look_up(bench, virtual, server=STRANGER)
    (data,) = bench.told
    assert read(asked, data).answer
    assert bench.sent == []


def test_on_loopback_the_answer_goes_out_to_come_in(bench) -> None:
    """FreeBSD: what comes in from outside must not have a source of this host's own."""
    virtual = bench.learn()
    asked = look_up(bench, virtual, server=LOCAL)
    assert bench.told == []
    (data,) = bench.outward
    assert read(asked, data).answer


def test_a_name_whose_ttl_is_over_is_still_told_and_not_to_be_kept(bench) -> None:
    virtual = bench.learn("alice", ttl=60)
    bench.wait(61)
    asked = look_up(bench, virtual)
    (rrset,) = read(asked, bench.told[0]).answer
    assert rrset.ttl == 0


def test_a_forgotten_name_is_not_told(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), quarantine=10))
    virtual = bench.learn("alice", ttl=60)
    bench.wait(71)
    asked = look_up(bench, virtual)
    assert read(asked, bench.told[0]).rcode() == dns.rcode.NXDOMAIN


def test_the_prefix_is_the_configured_one(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), virtual_prefix=10))
    virtual = bench.learn()
    assert virtual[0] == 10
    asked = look_up(bench, virtual)
    assert read(asked, bench.told[0]).answer
    bench.ask(dns.reversename.from_address("240.0.51.82").to_text(), "PTR")
    assert bench.count("dns.sent.query_not_ours") == 1


@pytest.mark.parametrize("name", ["10.113.0.203.in-addr.arpa.", "51.0.240.in-addr.arpa."])
def test_any_other_reverse_name_is_asked_of_the_world(bench, name: str) -> None:
    bench.ask(name, "PTR")
    assert bench.count("dns.sent.query_not_ours") == 1
    assert bench.told == []
