"""Look-ups the external node has a hand in beyond their answers, on the model of FreeBSD."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.reversename
import dns.rrset
import pytest

from natf_bsd.types import Address, Endpoint, Flow, Protocol, format_address, parse_address
from natf_bsd.wire import build, packet
from tests.platforms.test_freebsd_stories import G1, SERVER, Figure1, name_server, resolve
from tests.platforms.test_freebsd_stories import G2 as ROUTER

CLIENT = Endpoint(G1, 40053)
LOOPBACK = parse_address("127.0.0.1")


@pytest.fixture
def world() -> Figure1:
    return Figure1().start()


def name_of(world: Figure1, address: Address, client: Endpoint, server: Address) -> dns.message.Message:
    """What a program on the external node gets from `server`; nothing of it is on the wire."""
    query = dns.message.make_query(dns.reversename.from_address(format_address(address)), "PTR")
    world.en.received()
    world.wire.clear()
    world.send(world.en, build.udp(client, Endpoint(server, 53), query.to_wire()))
    (data,) = world.en.received()
    flow = packet.flow_of(data)
    assert flow is not None
    assert (flow.source, flow.destination) == (Endpoint(server, 53), client)
    assert world.wire == []
    answer = dns.message.from_wire(data[28:])
    assert query.is_response(answer)
    return answer


def test_the_name_of_a_virtual_address_is_told_without_a_packet_on_the_wire(world: Figure1) -> None:
    virtual = resolve(world, world.en, CLIENT)
    for client, server in ((CLIENT, SERVER), (Endpoint(LOOPBACK, 40053), LOOPBACK)):
        (rrset,) = name_of(world, virtual, client, server).answer
        assert [record.target.to_text() for record in rrset] == ["alice.home.example.net."]
    assert name_of(world, parse_address("240.9.9.9"), CLIENT, SERVER).rcode() == dns.rcode.NXDOMAIN


def test_the_sites_firewall_need_not_have_been_opened_by_the_query(world: Figure1) -> None:
    virtual = resolve(world, world.en, CLIENT)
    world.en.ipfw("add 200 deny udp from any to me in recv ext")
    assert name_of(world, virtual, CLIENT, SERVER).answer


def test_a_truncated_answer_is_asked_for_again_and_never_seen(world: Figure1) -> None:
    asked = []

    def serve(data: bytes) -> list[bytes]:
        """Has no room for its answer without EDNS."""
        query = dns.message.from_wire(data[28:])
        asked.append(query.edns)
        if query.edns == 0:
            return name_server({"home.example.net": ROUTER})(data)
        flow = packet.flow_of(data)
        assert flow is not None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return [bytes(build.udp(flow.destination, flow.source, response.to_wire()))]

    world.serve(world.boxes["dns"], serve)
    assert resolve(world, world.en, CLIENT)[0] == 240
    assert asked == [-1, 0]


@pytest.mark.parametrize("server", [SERVER, LOOPBACK], ids=["outside", "on this host"])
def test_a_query_by_tcp_is_reset(world: Figure1, server: Address) -> None:
    assert world.en.en is not None
    world.en.en.core.lookups.resolvers |= {server}
    query = dns.message.make_query("alice.home.example.net", "A").to_wire()
    client = Endpoint(LOOPBACK if server == LOOPBACK else G1, 40055)
    segment = build.tcp(
        client,
        Endpoint(server, 53),
        flags=packet.TCP_ACK,
        acknowledgement=7,
        payload=len(query).to_bytes(2, "big") + query,
    )
    world.send(world.en, segment)
    resets = world.en.received() if server == LOOPBACK else [*world.en.received(), *(data for *_, data in world.wire)]
    there = Flow(Protocol.TCP, client, Endpoint(server, 53))
    assert {packet.flow_of(data) for data in resets} == {there, there.reversed()}
    assert {packet.tcp_flags(data) for data in resets} == {packet.TCP_RST}
