"""The NAT's part: slow, silent, refusing, or giving back what it was never given."""

from __future__ import annotations

import pytest

from natf_bsd.natd_bridge import pseudo
from natf_bsd.router.core import NAT_TIMEOUT
from natf_bsd.tables import act
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build, message, packet


def test_a_lost_pseudo_packet_is_written_once_more_the_same(bench) -> None:
    bench.ask()
    bench.wait(NAT_TIMEOUT)
    assert len(bench.written) == 2
    assert bench.written[0] == bench.written[1]
    assert bench.count("pseudo.retried") == 1
    bench.translate()
    assert isinstance(bench.heard, message.Response)


def test_a_nat_that_stays_silent_is_out_of_resources(bench) -> None:
    request = bench.ask()
    bench.wait(2 * NAT_TIMEOUT)
    assert bench.heard == message.Refused(
        request.transaction, message.Status.OUT_OF_RESOURCES, "the NAT did not answer"
    )
    assert bench.count("mapping.failed.no_answer") == 1
    assert (bench.core.pending, bench.core.next_deadline()) == (0, None)


def test_a_nat_that_translates_nothing_is_out_of_resources(bench) -> None:
    request = bench.ask()
    bench.capture(bench.written[0])
    assert bench.heard == message.Refused(
        request.transaction, message.Status.OUT_OF_RESOURCES, "the NAT made no mapping"
    )
    assert bench.count("mapping.failed.untranslated") == 1


def test_a_nat_with_another_address_than_the_one_asked_is_said_to_be_so(bench) -> None:
    """No external node believes such a mapping: it could point anywhere. Once the NAT is told to forget it."""
    request = bench.ask()
    translate_to(bench, parse_address("198.51.100.1"))
    assert bench.answers == []
    assert bench.forgotten == [packet.flow_of(bytearray(bench.written[0]))]
    assert bench.written[1] == bench.written[0]
    translate_to(bench, parse_address("198.51.100.1"))
    assert bench.heard == message.Refused(
        request.transaction, message.Status.OUT_OF_RESOURCES, "the NAT uses 198.51.100.1, not this address"
    )
    assert bench.count("mapping.failed.other_address") == 1


def test_a_mapping_at_an_address_the_router_had_before_is_made_anew(bench) -> None:
    request = bench.ask()
    translate_to(bench, parse_address("203.0.113.99"))
    bench.translate(61005)
    assert bench.heard == message.Response(request.transaction, Endpoint(bench.G2, 61005), 86400)
    assert bench.count("pseudo.renumbered") == 1


def translate_to(bench, address: bytes) -> None:
    """The NAT gives the last pseudo-packet back with `address` for its source."""
    data = bytearray(bench.written[-1])
    flow = packet.flow_of(data)
    packet.Rewrite(source=(flow.source, Endpoint(address, 80))).apply(data)
    bench.capture(bytes(data))


@pytest.mark.parametrize("established", [False, True])
def test_the_pseudo_packet_of_a_connection_in_use_is_an_ack(make_bench, established: bool) -> None:
    bench = make_bench(style=pseudo.NETFILTER_STYLE)
    bench.ask(established=established)
    flags = packet.tcp_flags(bytearray(bench.written[0]))
    assert flags == (packet.TCP_ACK if established else packet.TCP_SYN)


def test_an_answer_after_all_is_late_and_nobody_is_told(bench) -> None:
    bench.ask()
    bench.wait(1)
    bench.translate()
    assert bench.count("captured.late") == 1
    assert len(bench.answers) == 1


def test_an_answer_that_comes_twice_counts_once(bench) -> None:
    bench.ask()
    bench.wait(NAT_TIMEOUT)
    bench.translate(61000, 0)
    bench.translate(61000, 1)
    assert bench.count("mapping.made") == bench.count("captured.late") == 1
    assert len(bench.answers) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(build.udp(Endpoint(bytes([10, 0, 0, 1]), 5), Endpoint(bytes([10, 0, 0, 2]), 6), b"abcd", ttl=1)),
        bytes(build.ipv4(2, bytes(4), bytes([224, 0, 0, 22]), bytes(8), ttl=1)),
        b"\x60" + bytes(60),
    ],
    ids=["nothing", "another packet", "IGMP", "IPv6"],
)
def test_what_is_no_pseudo_packet_is_dropped(bench, data: bytes) -> None:
    bench.ask()
    bench.capture(data)
    assert bench.count("captured.foreign") == 1
    assert bench.core.pending == 1


def test_a_pseudo_packet_to_somebody_else_with_the_same_cookie_is_not_taken(bench) -> None:
    bench.ask()
    data = bytearray(bench.written[0])
    flow = packet.flow_of(data)
    elsewhere = Endpoint(parse_address("198.51.100.1"), 40000)
    packet.Rewrite(destination=(flow.destination, elsewhere)).apply(data)
    bench.capture(bytes(data))
    assert bench.count("captured.late") == 1
    assert bench.core.pending == 1


def test_a_request_repeated_while_it_waits_is_dropped(bench) -> None:
    request = bench.ask()
    bench.send(message.encode(request))
    assert bench.count("request.drop.pending") == 1
    assert len(bench.written) == 1
    bench.translate()
    assert len(bench.answers) == 1


def test_a_request_that_comes_once_more_gets_the_same_answer_and_no_second_pseudo_packet(bench) -> None:
    """It may come when the connection is half over, and a SYN would make the NAT forget it."""
    request = bench.ask()
    bench.translate(61007)
    bench.wait(4)
    bench.send(message.encode(request))
    assert len(bench.written) == 1
    assert bench.heard == message.Response(request.transaction, Endpoint(bench.G2, 61007), 86400)
    assert bench.count("request.answered.again") == 1


def test_an_answer_is_forgotten_after_seconds(bench) -> None:
    request = bench.ask()
    bench.translate()
    bench.wait(6)
    bench.send(message.encode(request))
    assert len(bench.written) == 1
    bench.wait(6)
    bench.send(message.encode(request))
    assert len(bench.written) == 2
    bench.translate()


def test_a_repeated_request_is_checked_as_the_first_one(bench) -> None:
    request = bench.ask()
    bench.translate()
    bench.core.act = act.parse("alice  192.168.0.2  deny\n", "act")
    bench.send(message.encode(request))
    assert bench.heard.status is message.Status.DENIED
    bench.core.act = act.parse("alice  192.168.0.9  allow\n", "act")
    bench.send(message.encode(request))
    assert len(bench.written) == 2, "who was alice's mapping is nobody's now"


def test_the_same_transaction_from_another_address_is_another_request(bench) -> None:
    request = bench.ask()
    elsewhere = parse_address("198.51.100.9")
    bench.send(message.encode(bench.request(transaction=request.transaction, g1=elsewhere)), source=elsewhere)
    assert len(bench.written) == 2


def test_requests_at_the_nat_are_bounded(make_bench) -> None:
    bench = make_bench(maximum_pending=3, cookies="never")
    for _ in range(5):
        bench.ask()
    assert bench.core.pending == 3
    assert bench.count("request.answered.out_of_resources") == 2
    assert bench.heard.status is message.Status.OUT_OF_RESOURCES
    bench.translate(61000, 0)
    bench.ask()
    assert bench.core.pending == 3


def test_a_cookie_in_use_is_not_given_to_a_second_request(make_bench) -> None:
    """The 32 bits in the pseudo-packet are what its capture is known by."""
    bench = make_bench()
    bench.token = bytes
    bench.ask()
    bench.ask()
    assert bench.core.pending == 1
    assert bench.count("request.answered.out_of_resources") == 1


def test_many_lost_pseudo_packets_are_all_retried_and_all_answered(make_bench) -> None:
    bench = make_bench(maximum_pending=1024, cookies="never", source_rate=0)
    for s in range(1024):
        bench.ask(s=s + 1)
    bench.wait(NAT_TIMEOUT)
    assert bench.count("pseudo.retried") == 1024
    bench.wait(NAT_TIMEOUT)
    assert bench.count("mapping.failed.no_answer") == len(bench.answers) == 1024


def test_a_timer_too_early_does_nothing(bench) -> None:
    bench.ask()
    assert bench.core.handle_timer(bench.now) == []
    assert bench.core.handle_timer(bench.now + NAT_TIMEOUT / 2) == []


def test_the_captured_time_to_live_is_what_tells_ours(bench) -> None:
    bench.ask()
    data = bytearray(bench.written[0])
    data[8] = pseudo.CAPTURED_TTL + 1
    bench.capture(bytes(data))
    assert bench.count("captured.foreign") == 1
