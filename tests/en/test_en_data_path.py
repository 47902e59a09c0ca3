"""Phases 2 and 3 at the core: holding, releasing and translating packets; every counter of `out` and `in`."""

from __future__ import annotations

import dpkt
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.en.core import DOUBT_AFTER
from natf_bsd.en.held import PER_FLOW
from natf_bsd.types import Direction, Endpoint, Flow, Name, Packet, Protocol, parse_address
from natf_bsd.wire import build, icmp, message, packet

ACK, SYN, FIN, RST = packet.TCP_ACK, packet.TCP_SYN, packet.TCP_FIN, packet.TCP_RST


def read(data: bytes) -> dpkt.ip.IP:
    """The packet as dpkt reads it, its checksums as they should be."""
    read_packet = dpkt.ip.IP(data)
    again = dpkt.ip.IP(data)
    again.sum = again.data.sum = 0
    assert bytes(again) == data, "a checksum is wrong"
    return read_packet


def mapped(bench, *, udp: bool = False, port: int = 61000, lifetime: int = 60, host: str = "alice"):
    """A flow of alice's with its mapping; returns her virtual address."""
    virtual = bench.learn(host)
    bench.out(bench.udp(virtual) if udp else bench.syn(virtual))
    bench.map(port, lifetime)
    bench.sent.clear()
    return virtual


# Outward.


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_first_packet_is_held_and_the_router_asked(bench, udp: bool) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual) if udp else bench.syn(virtual))
    assert (bench.sent, bench.dropped, bench.told) == ([], [], [])
    assert len(bench.core.held) == 1
    when, router, echo = bench.asked[0]
    assert (when, router) == (100.0, bench.G2)
    request = message.decode(echo.data)
    protocol, port = (Protocol.UDP, 5000) if udp else (Protocol.TCP, 80)
    assert request.flow == Flow(protocol, Endpoint(bench.G1, 40000), Endpoint(virtual, port))
    assert request.name == Name("alice", "home.example.net")
    assert bench.count("negotiation.started") == bench.count("request.sent") == 1


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_answer_releases_what_was_held_in_order_and_translated(bench, udp: bool) -> None:
    virtual = bench.learn()
    if udp:
        packets = [bench.udp(virtual, bytes([number])) for number in range(3)]
    else:
        packets = [bench.tcp(virtual, SYN, sequence=number) for number in range(3)]
    for data in packets:
        bench.out(data)
    bench.map(61000)
    assert len(bench.sent) == 3
    for before, after in zip(packets, bench.sent, strict=True):
        was, now = read(before), read(after)
        assert (now.dst, now.data.dport) == (bench.G2, 61000)
        assert (now.src, now.data.sport, bytes(now.data.data)) == (was.src, was.data.sport, bytes(was.data.data))
    assert bench.count("out.sent.released") == 3
    assert bench.resumed == [bench.asked[0][2].data[8:16]]
    assert len(bench.core.held) == 0


def test_later_packets_are_translated_at_once(bench) -> None:
    virtual = mapped(bench, udp=True)
    bench.out(bench.udp(virtual, b"more"))
    seen = read(bench.sent[0])
    assert (seen.dst, seen.data.dport, seen.data.data) == (bench.G2, 61000, b"more")
    assert bench.count("out.sent.translated") == 1
    assert len(bench.asked) == 1


def test_two_hosts_and_two_flows_have_mappings_of_their_own(bench) -> None:
    alice, bob = bench.learn("alice"), bench.learn("bob")
    bench.out(bench.udp(alice))
    bench.map(61000)
    bench.out(bench.udp(bob))
    bench.map(61001)
    bench.out(bench.udp(bob, s=40001))
    bench.map(61002)
    assert [read(data).data.dport for data in bench.sent] == [61000, 61001, 61002]
    assert [message.decode(echo.data).name.host for _, _, echo in bench.asked] == ["alice", "bob", "bob"]


def test_a_retransmitted_syn_replaces_the_held_one(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.out(bench.syn(virtual))
    assert bench.count("out.drop.replaced") == 1
    assert len(bench.dropped) == 1
    assert bench.count("negotiation.started") == 1
    bench.map()
    assert len(bench.sent) == 1


def test_more_packets_than_a_flow_may_hold_are_dropped_without_an_error(bench) -> None:
    virtual = bench.learn()
    for number in range(PER_FLOW + 2):
        bench.out(bench.udp(virtual, bytes([number])))
    assert bench.count("out.drop.no_room") == 2
    assert bench.told == []
    bench.map()
    assert [data[-1] for data in bench.sent] == list(range(PER_FLOW))


def test_a_new_flow_without_room_is_refused_aloud(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natf_bsd.en.held.IN_ALL", 1)
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.out(bench.udp(virtual, s=40001))
    assert bench.count("out.drop.no_room") == 1
    assert len(bench.told) == 1
    assert bench.count("negotiation.started") == 1


def test_negotiations_are_bounded_renewals_included(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natf_bsd.en.negotiations.MAXIMUM_NEGOTIATIONS", 2)
    virtual = mapped(bench, udp=True)
    bench.wait(40)
    bench.out(bench.udp(virtual, s=40001))
    bench.out(bench.udp(virtual, s=40002))
    bench.out(bench.udp(virtual, s=40003))
    assert bench.count("out.drop.table_full") == 1
    assert read(bench.told[0]).data.type == 3
    bench.out(bench.udp(virtual))
    assert (bench.count("negotiation.renewals"), bench.count("negotiation.put_off")) == (0, 1)
    assert len(list(bench.core.negotiations())) == 2
    bench.map(61001)
    bench.out(bench.udp(virtual))
    assert bench.count("negotiation.renewals") == 1


def test_a_full_vat_table_refuses_aloud(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), maximum_flows=1))
    virtual = mapped(bench)
    bench.out(bench.syn(virtual, s=40001))
    bench.map(61001)
    assert bench.count("out.drop.table_full") == 1
    assert read(bench.told[0]).dst == bench.G1
    assert len(bench.core.vat) == 1


def test_address_without_a_name_is_unreachable_at_once(bench) -> None:
    bench.out(bench.syn(parse_address("240.9.9.9")))
    assert bench.count("out.drop.no_such_address") == 1
    assert len(bench.told) == len(bench.dropped) == 1
    assert bench.asked == []


def test_a_reset_of_no_flow_is_dropped_in_silence(bench) -> None:
    bench.out(bench.tcp(bench.learn(), RST))
    assert bench.count("out.drop.stray_reset") == 1
    assert (bench.told, bench.asked) == ([], [])


@pytest.mark.parametrize(
    "make",
    [
        lambda bench, virtual: build.icmp_echo(bench.G1, virtual, reply=False, ident=1, sequence=1, payload=b"ping"),
        lambda bench, virtual: build.ipv4(132, bench.G1, virtual, bytes(20)),
        lambda bench, virtual: bench.udp(virtual)[:22],
    ],
    ids=["ping", "SCTP", "truncated"],
)
def test_what_nat_f_does_not_carry_is_refused_aloud_or_dropped(bench, make) -> None:
    data = make(bench, bench.learn())
    bench.out(data)
    assert len(bench.dropped) == 1
    whole = len(data) >= 28
    assert bench.count("out.drop.unsupported" if whole else "out.drop.malformed") == 1
    assert len(bench.told) == whole


@pytest.mark.parametrize("protocol", [1, 6, 17])
def test_later_fragments_are_dropped_without_an_error(bench, protocol: int) -> None:
    """RFC 1122 3.2.2: no error about a fragment that is not the first."""
    data = build.ipv4(protocol, bench.G1, bench.learn(), bytes(40))
    data[7] = 5
    bench.out(data)
    assert bench.count("out.drop.unsupported") == 1
    assert bench.told == []


@pytest.mark.parametrize("payload", [b"", bytes([3, 3]) + bytes(30), bytes([5, 1]) + bytes(30)])
def test_no_error_answers_an_icmp_error_or_an_empty_icmp_packet(bench, payload: bytes) -> None:
    bench.out(build.ipv4(1, bench.G1, bench.learn(), payload))
    assert bench.count("out.drop.unsupported") == 1
    assert bench.told == []


def test_an_error_of_this_host_is_translated(bench) -> None:
    """The program's socket is gone; the kernel answers alice's datagram, which it saw come from V1:d."""
    virtual = mapped(bench, udp=True)
    bench.come(bench.udp_back())
    delivered = bench.sent.pop()
    bench.out(build.unreachable_for(delivered, code=3, source=bench.G1))
    seen = dpkt.ip.IP(bench.sent[0])
    assert (seen.src, seen.dst, seen.data.type, seen.data.code) == (bench.G1, bench.G2, 3, 3)
    quoted = seen.data.data.data
    assert (quoted.src, quoted.data.sport, quoted.dst, quoted.data.dport) == (bench.G2, 61000, bench.G1, 40000)
    assert icmp.ones_sum(bench.sent[0][20:]) == 0xFFFF
    assert bench.count("out.sent.error") == 1
    assert virtual == packet.source(delivered)


# Inward.


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_answers_come_from_the_virtual_address(bench, udp: bool) -> None:
    virtual = mapped(bench, udp=udp)
    bench.come(bench.udp_back() if udp else bench.tcp_back(SYN | ACK, sequence=9, acknowledgement=7001))
    seen = read(bench.sent[0])
    assert (seen.src, seen.data.sport) == (virtual, 5000 if udp else 80)
    assert (seen.dst, seen.data.dport) == (bench.G1, 40000)
    assert bench.count("in.sent.translated") == 1


def test_an_answer_of_no_flow_is_dropped_where_the_kernel_selects_by_flow(bench) -> None:
    mapped(bench)
    bench.come(bench.tcp_back(ACK, m=61009))
    bench.come(bench.tcp_back(ACK, s=40009))
    assert bench.count("in.drop.no_flow") == len(bench.dropped) == 2
    assert bench.sent == []


def test_an_answer_of_no_flow_passes_where_the_kernel_selects_by_router(make_bench) -> None:
    bench = make_bench(inbound_exact=False)
    data = bench.tcp_back(ACK)
    bench.come(data)
    assert bench.sent == [data]
    assert bench.count("in.sent.foreign") == 1


@pytest.mark.parametrize("data", [b"", b"\x45", bytes(60), b"\x45\x00\x00\x80" + bytes(20)])
def test_what_is_no_packet_is_dropped_both_ways(bench, data: bytes) -> None:
    bench.come(data)
    bench.out(data)
    assert bench.count("in.drop.malformed") == bench.count("out.drop.malformed") == 1


@pytest.mark.parametrize("from_router", [True, False], ids=["from the router", "from a hop on the way"])
def test_an_error_from_outside_quotes_the_virtual_address(bench, from_router: bool) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.map()
    on_the_wire = bench.sent.pop()
    hop = bench.G2 if from_router else parse_address("198.51.100.1")
    bench.come(build.unreachable_for(on_the_wire, code=3, source=hop))
    seen = dpkt.ip.IP(bench.sent[0])
    assert (seen.src, seen.dst) == (virtual if from_router else hop, bench.G1)
    quoted = seen.data.data.data
    assert (quoted.src, quoted.data.sport, quoted.dst, quoted.data.dport) == (bench.G1, 40000, virtual, 5000)
    assert icmp.ones_sum(bench.sent[0][20:]) == 0xFFFF
    assert bench.count("in.sent.error") == 1


def test_a_packet_that_expired_on_the_router_was_with_the_router_not_with_the_inside_host(bench) -> None:
    """Two hops to traceroute, and no doubt about the mapping, however late it comes."""
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.map()
    bench.asked.clear()
    on_the_wire = bench.sent.pop()
    bench.wait(DOUBT_AFTER)
    bench.come(build.time_exceeded_for(on_the_wire, source=bench.G2))
    seen = dpkt.ip.IP(bench.sent[0])
    assert (seen.src, seen.dst, seen.data.type) == (bench.G2, bench.G1, dpkt.icmp.ICMP_TIMEXCEED)
    quoted = seen.data.data.data
    assert (quoted.src, quoted.data.sport, quoted.dst, quoted.data.dport) == (bench.G1, 40000, virtual, 5000)
    assert icmp.ones_sum(bench.sent[0][20:]) == 0xFFFF
    assert bench.asked == []


def test_an_error_about_no_flow_is_dropped(bench) -> None:
    stray = bench.udp(bench.G2, s=40009)
    bench.come(build.unreachable_for(stray, code=3, source=bench.G2))
    assert bench.count("in.drop.no_flow") == 1


# Lifetimes.


def test_an_idle_flow_is_forgotten_after_the_routers_lifetime_and_negotiates_again(bench) -> None:
    virtual = mapped(bench, udp=True, lifetime=60)
    bench.wait(59.9)
    assert len(bench.core.vat) == 1
    bench.wait(0.2)
    assert len(bench.core.vat) == 0
    assert bench.saved[-1]["gone"] is True
    bench.out(bench.udp(virtual))
    assert bench.count("negotiation.started") == 2


def test_an_established_connection_lives_as_long_as_the_router_says(bench) -> None:
    mapped(bench, lifetime=86400)
    bench.come(bench.tcp_back(SYN | ACK))
    bench.wait(86399)
    assert len(bench.core.vat) == 1
    bench.wait(2)
    assert len(bench.core.vat) == 0


def test_a_connection_that_never_opens_is_forgotten_after_300_seconds(bench) -> None:
    mapped(bench, lifetime=86400)
    bench.wait(299)
    assert len(bench.core.vat) == 1
    bench.wait(2)
    assert len(bench.core.vat) == 0


def test_fin_both_ways_ends_a_connection_after_its_last_acks(bench) -> None:
    virtual = mapped(bench, lifetime=86400)
    bench.come(bench.tcp_back(SYN | ACK))
    bench.out(bench.tcp(virtual, FIN | ACK))
    bench.come(bench.tcp_back(FIN | ACK))
    bench.out(bench.tcp(virtual, ACK))
    assert len(bench.sent) == 4
    bench.wait(11)
    assert len(bench.core.vat) == 0


@pytest.mark.parametrize("inward", [True, False])
def test_a_reset_ends_a_connection(bench, inward: bool) -> None:
    virtual = mapped(bench, lifetime=86400)
    bench.come(bench.tcp_back(SYN | ACK))
    bench.come(bench.tcp_back(RST)) if inward else bench.out(bench.tcp(virtual, RST))
    assert len(bench.sent) == 2
    bench.wait(2)
    assert len(bench.core.vat) == 0


def test_a_mapping_given_to_another_flow_ends_the_flow_that_had_it(bench) -> None:
    """The router is the authority for its ports: it was restarted, and the first flow's mapping is no more."""
    alice, bob = bench.learn("alice"), bench.learn("bob")
    bench.out(bench.udp(alice))
    bench.map(61000)
    bench.out(bench.udp(bob))
    bench.map(61000)
    assert [entry.relation.name.host for entry in bench.core.vat] == ["bob"]
    assert bench.core.names.by_virtual(alice).flows == 0
    bench.out(bench.udp(alice))
    assert bench.count("negotiation.started") == 3


def test_shutdown_lets_go_of_what_is_held_and_counts_it(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.out(bench.udp(virtual))
    bench.perform(bench.core.shutdown())
    assert bench.count("out.drop.shutdown") == len(bench.dropped) == 2
    assert len(bench.core.held) == 0


def test_the_very_packet_that_was_held_is_put_back(bench) -> None:
    diverted = Packet(bytearray(bench.syn(bench.learn())), Direction.OUT, token="its place in the kernel's queue")
    bench.perform(bench.core.handle_outbound(diverted, bench.now))
    bench.map()
    assert bench.put_back[-1] is diverted
