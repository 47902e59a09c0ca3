"""A truncated answer is asked for again with more room; over TCP the program would get the true address."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from natf_bsd.types import Direction, Packet
from natf_bsd.wire import build, packet

ALICE = "alice.home.example.net."
ROUTERS = [f"203.0.113.{last}" for last in range(1, 100)]


def answer(addresses: list[str], *, ident: int = 4711, room: int = 65535, edns: bool = False) -> bytes:
    """A server's answer to a query for alice, if it has `room`; else without any record, as BIND makes it."""
    query = dns.message.make_query(ALICE, "A", id=ident, use_edns=0 if edns else False)
    response = dns.message.make_response(query)
    response.answer = [dns.rrset.from_text_list(ALICE, 60, "IN", "A", addresses)]
    if len(wire := response.to_wire(max_size=65535)) <= room:
        return wire
    response.answer = []
    response.flags |= dns.flags.TC
    return response.to_wire()


def asked_again(bench) -> dns.message.Message:
    """The query that went out in the program's stead; it is shown to us as any other, as Linux does."""
    (data,) = bench.outward
    flow = packet.flow_of(data)
    assert (flow.source, flow.destination) == (bench.CLIENT, bench.SERVER)
    bench.perform(bench.core.handle_dns(Packet(bytearray(data), Direction.OUT), bench.now))
    assert bench.sent.pop() == data
    return dns.message.from_wire(data[28:])


@pytest.mark.parametrize("edns", [False, True])
def test_the_program_gets_the_virtual_address_and_hears_of_nothing_else(bench, edns: bool) -> None:
    bench.ask(ALICE, edns=edns)
    assert bench.answered(answer(ROUTERS, room=512, edns=edns)) is None
    again = asked_again(bench)
    assert (again.id, again.payload) == (4711, 4096)
    seen = dns.message.from_wire(bench.answered(answer(ROUTERS, edns=True)))
    assert seen.answer[0][0].address.startswith("240.")
    assert not seen.flags & dns.flags.TC
    assert seen.edns == (0 if edns else -1), "who did not speak of EDNS is not answered with it"
    assert bench.count("dns.drop.truncated") == bench.count("dns.sent.rewritten") == 1


def test_a_name_that_does_not_exist_after_all_is_told_as_such(bench) -> None:
    bench.ask(ALICE)
    assert bench.answered(answer(ROUTERS, room=512)) is None
    asked_again(bench)
    response = dns.message.make_response(dns.message.make_query(ALICE, "A", id=4711, use_edns=0))
    response.set_rcode(dns.rcode.NXDOMAIN)
    seen = dns.message.from_wire(bench.answered(response.to_wire()))
    assert (seen.rcode(), seen.edns) == (dns.rcode.NXDOMAIN, -1)


def test_one_that_is_too_long_for_any_datagram_is_servfail(bench) -> None:
    bench.ask(ALICE)
    assert bench.answered(answer(ROUTERS, room=512)) is None
    asked_again(bench)
    assert bench.answered(answer(ROUTERS, room=512)) is None
    seen = dns.message.from_wire(bench.answered(answer(ROUTERS, room=512)))
    assert (seen.rcode(), seen.answer) == (dns.rcode.SERVFAIL, [])
    assert not seen.flags & dns.flags.TC
    assert len(bench.outward) == 2
    assert bench.count("dns.sent.truncated") == 1


def test_the_query_for_a_longer_answer_may_get_lost(bench) -> None:
    for _ in range(2):
        bench.ask(ALICE)
        assert bench.answered(answer(ROUTERS, room=512)) is None
    assert len(bench.outward) == 2
    assert bench.answered(answer(ROUTERS)) is not None
    assert bench.count("dns.sent.rewritten") == 1


def test_a_host_behind_this_one_gets_servfail(bench) -> None:
    """A query in its stead would leave with its private address."""
    query = dns.message.make_query(ALICE, "A", id=4711).to_wire()
    bench.perform(bench.core.handle_dns(Packet(build.udp(bench.CLIENT, bench.SERVER, query), Direction.IN), bench.now))
    bench.sent.clear()
    seen = dns.message.from_wire(bench.answered(answer(ROUTERS, room=512)))
    assert seen.rcode() == dns.rcode.SERVFAIL
    assert bench.outward == []


def test_nothing_is_asked_again_for_a_truncated_answer_nobody_asked_for(bench) -> None:
    assert bench.answered(answer(ROUTERS, room=512)) is None
    assert bench.outward == []
    assert bench.count("dns.drop.unasked") == 1


def test_on_freebsd_the_query_in_the_programs_stead_is_not_seen_again(bench) -> None:
    bench.ask(ALICE)
    assert bench.answered(answer(ROUTERS, room=512)) is None
    assert bench.answered(answer(ROUTERS)) is not None
    assert bench.count("dns.sent.rewritten") == 1


def test_on_loopback_it_is_asked_of_the_server_there(bench) -> None:
    query = dns.message.make_query(ALICE, "A", id=4711).to_wire()
    server = bench.SERVER._replace(address=bytes((127, 0, 0, 1)))
    bench.core.lookups.resolvers |= {server.address}
    bench.perform(
        bench.core.handle_dns(Packet(build.udp(server._replace(port=40053), server, query), Direction.OUT), 1)
    )
    short = build.udp(server, server._replace(port=40053), answer(ROUTERS, room=512))
    bench.perform(bench.core.handle_dns(Packet(short, Direction.OUT, "lo0"), 1))
    (data,) = bench.outward
    assert packet.flow_of(data).destination == server
