"""Who asks for the address of one of our names by TCP is refused: the answer could not be rewritten."""

from __future__ import annotations

import dns.message
import pytest

from natf_bsd.types import Direction, Endpoint, Packet, parse_address
from natf_bsd.wire import build, packet

ALICE = "alice.home.example.net."
STRANGER = Endpoint(parse_address("198.51.100.66"), 53)
LOCAL = Endpoint(parse_address("127.0.0.1"), 53)


def framed(name: str, kind: str = "A") -> bytes:
    query = dns.message.make_query(name, kind).to_wire()
    return len(query).to_bytes(2, "big") + query


def segment(bench, payload: bytes, server: Endpoint | None = None) -> Packet:
    """A program sends it to `server`."""
    client = LOCAL._replace(port=40055) if server == LOCAL else Endpoint(bench.G1, 40055)
    flags = packet.TCP_ACK
    data = build.tcp(client, server or bench.SERVER, flags=flags, sequence=100, acknowledgement=7777, payload=payload)
    sent = Packet(data, Direction.OUT)
    bench.perform(bench.core.handle_dns(sent, bench.now))
    return sent


def assert_reset(bench, query: Packet, reset: bytes) -> None:
    """Each end with the sequence number that it expects."""
    assert bench.put_back[-1] is query
    flow = packet.flow_of(query.data)
    assert packet.flow_of(reset) == flow.reversed()
    for data, sequence in (query.data, 100), (reset, 7777):
        assert packet.tcp_flags(data) == packet.TCP_RST
        assert packet.tcp_sequence(data) == sequence
        assert len(data) == 40


@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS", "SVCB", "ANY"])
@pytest.mark.parametrize("ahead", [0, 2], ids=["with its length", "length sent before"])
def test_a_query_for_an_address_of_ours_ends_its_connection(bench, kind: str, ahead: int) -> None:
    query = segment(bench, framed("aLiCe.home.example.net.", kind)[ahead:])
    (reset,) = bench.told
    assert_reset(bench, query, reset)
    assert bench.count("dns.sent.tcp_reset") == 1


def test_so_does_one_behind_another_query(bench) -> None:
    query = segment(bench, framed("www.elsewhere.example.") + framed(ALICE))
    assert_reset(bench, query, *bench.told)


@pytest.mark.parametrize(
    "payload",
    [
        framed("www.elsewhere.example."),
        framed(ALICE, "TXT"),
        framed("home.example.net."),
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
    ids=["another name", "another type", "the home domain", "nothing", "no DNS"],
)
def test_everything_else_passes_as_it_is(bench, payload: bytes) -> None:
    sent = segment(bench, payload)
    before = bytes(sent.data)
    assert bench.sent == [before]
    assert bench.told == []
    assert bench.count("dns.sent.tcp") == 1


def test_what_a_stranger_is_asked_is_no_affair_of_ours(bench) -> None:
    segment(bench, framed(ALICE), STRANGER)
    assert bench.count("dns.sent.query_to_stranger") == len(bench.sent) == 1


def test_on_loopback_the_reset_goes_out_to_come_in(bench) -> None:
    bench.core.lookups.resolvers |= {LOCAL.address}
    query = segment(bench, framed(ALICE), LOCAL)
    (reset,) = bench.outward
    assert_reset(bench, query, reset)
