"""Flows that the kernel translates: handed over with their mapping, kept by what it says, taken back at their end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from natf_bsd.datapath import Carried, Gone
from natf_bsd.effects import HandOver, TakeBack
from natf_bsd.en.core import DOUBT_AFTER
from natf_bsd.en.report import tables
from natf_bsd.tables.vat import SILENCE_PACKETS, SILENCE_SECONDS, TCP_CLOSING, TCP_RESET, TcpState
from natf_bsd.types import Address, Endpoint
from natf_bsd.wire import build, message, packet
from tests.en.conftest import Bench

LOOK = 2.5


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    bench = make_bench()
    bench.core.kernel_ways = (None,)  # the packets of a bench have no handle
    return bench


@pytest.fixture
def alice(bench: Bench) -> Address:
    return bench.learn("alice")


def entry_of(bench: Bench, data: bytes):
    key = packet.flow_key(data)
    assert key is not None
    entry = bench.core.vat.by_out(key)
    assert entry is not None
    return entry


def report(bench: Bench, data: bytes, out: int = 0, inward: int = 0, **how: object) -> None:
    """The kernel's next look, at a flow that began with `data`."""
    bench.wait(LOOK)
    key = packet.flow_key(data)
    assert key is not None
    how = {"mapped": Endpoint(bench.G2, 61000), "since": bench.now - LOOK} | how
    bench.perform(bench.core.handle_report(Carried(key, out=out, inward=inward, **how), bench.now))


def test_the_held_packet_goes_on_as_it_is_and_its_flow_with_it(bench: Bench, alice: Address) -> None:
    syn = bench.syn(alice)
    bench.out(syn)
    assert bench.handed_over == []
    bench.map()
    (handed,) = bench.handed_over
    assert handed.flow.key == packet.flow_key(syn)
    assert handed.mapped == Endpoint(bench.G2, 61000)
    assert [bytes(held.data) for held in handed.packets] == [syn]
    assert bench.sent == []
    (flow,) = tables(bench.core, bench.now, 9)["flows"]
    assert flow["in_kernel"] is True


def test_a_packet_that_comes_nevertheless_is_handed_over_again(bench: Bench, alice: Address) -> None:
    """The kernel had forgotten its flow; the router is not asked."""
    bench.out(bench.udp(alice))
    bench.map()
    key = bench.handed_over[0].flow.key
    bench.perform(bench.core.handle_report(Gone(key), bench.now))
    assert not entry_of(bench, bench.udp(alice)).in_kernel
    bench.out(bench.udp(alice, b"again"))
    assert [bytes(handed.packets[0].data)[28:] for handed in bench.handed_over] == [b"hello", b"again"]
    assert len(bench.asked) == 1


def test_a_syn_sent_again_is_no_new_connection_and_one_with_another_number_is(bench: Bench, alice: Address) -> None:
    """What became of the first one the kernel has not said yet."""
    bench.out(bench.syn(alice))
    bench.map()
    bench.out(bench.syn(alice))
    assert (len(bench.handed_over), bench.taken_back) == (2, [])
    bench.out(bench.syn(alice, sequence=8000))
    assert bench.count("negotiation.started") == 2
    assert [flow.key for flow in bench.taken_back] == [packet.flow_key(bench.syn(alice))]
    bench.map(61001)
    assert bench.handed_over[-1].mapped.port == 61001


def test_a_syn_sent_again_and_answered_asks_for_nothing_once_the_kernel_has_said_so(
    bench: Bench, alice: Address
) -> None:
    """A new mapping made in the middle of a connection ends it at the router (conntrack takes it for a new one)."""
    syn = bench.syn(alice)
    bench.out(syn)
    bench.map()
    bench.out(syn)
    (doubtful,) = bench.core.doubtful(bench.now + 1)
    assert doubtful.key == packet.flow_key(syn)
    assert bench.core.doubtful(bench.now) == []
    said = Carried(doubtful.key, Endpoint(bench.G2, 61000), bench.now, 3, 2)
    bench.perform(bench.core.handle_report(said, bench.now))
    assert bench.core.doubtful(bench.now + 1) == []
    bench.wait(5)
    assert len(bench.asked) == 1


def test_an_error_about_an_open_connection_asks_for_it_as_that(bench: Bench, alice: Address) -> None:
    """Its router may have lost its table. What the entry says of a connection may be old: the kernel is asked first."""
    syn = bench.syn(alice)
    bench.out(syn)
    bench.map(lifetime=86400)
    bench.wait(DOUBT_AFTER)
    seen = build.tcp(Endpoint(bench.G1, 40000), Endpoint(bench.G2, 61000), flags=packet.TCP_ACK)
    bench.come(build.unreachable_for(seen, code=3, source=bench.G2))
    assert len(bench.asked) == 1
    (doubtful,) = bench.core.doubtful(bench.now + 1)
    said = Carried(doubtful.key, Endpoint(bench.G2, 61000), bench.now, 3, 2)
    bench.perform(bench.core.handle_report(said, bench.now))
    bench.wait(1)
    request = message.decode(bench.asked[1][2].data)
    assert isinstance(request, message.Request)
    assert request.established


def test_a_flow_the_kernel_does_not_take_is_refused_and_its_program_told(bench: Bench, alice: Address) -> None:
    bench.out(bench.udp(alice))
    bench.map()
    (handed,) = bench.handed_over
    bench.perform(bench.core.not_handed_over(handed.flow, handed.packets, bench.now))
    assert bench.dropped == list(handed.packets)
    assert bench.count("out.drop.kernel") == 1
    assert len(bench.told) == 1
    assert not entry_of(bench, bench.udp(alice)).in_kernel


def test_what_is_used_lives_and_is_renewed_in_time(bench: Bench, alice: Address) -> None:
    data = bench.udp(alice)
    bench.out(data)
    bench.map(lifetime=60)
    for _ in range(24):
        report(bench, data, 1, 1)
        if bench.count("negotiation.renewals") > len(bench.asked) - 2 and len(bench.asked) > 1:
            bench.map(lifetime=60)
    assert bench.count("negotiation.renewals") >= 1
    assert entry_of(bench, data).in_kernel
    assert bench.taken_back == []


def test_what_is_idle_ends_no_later_than_its_mapping_and_the_kernel_lets_it_go(bench: Bench, alice: Address) -> None:
    data = bench.udp(alice)
    bench.out(data)
    bench.map(lifetime=60)
    report(bench, data, 3, 3)
    last = bench.now
    while len(bench.core.vat):
        report(bench, data)
    assert bench.now - last <= 60
    assert {flow.key for flow in bench.taken_back} == {packet.flow_key(data)}
    assert len(bench.core.vat) == 0


def test_the_end_of_a_connection_is_what_the_kernel_has_seen(bench: Bench, alice: Address) -> None:
    data = bench.syn(alice)
    bench.out(data)
    bench.map(lifetime=86400)
    entry = entry_of(bench, data)
    assert entry.state is TcpState.OPENING
    report(bench, data, 2, 1)
    assert entry.state is TcpState.ESTABLISHED
    report(bench, data, 2, 2, fins=1)
    assert entry.state is TcpState.ESTABLISHED
    report(bench, data, 2, 2, fins=2)
    assert entry.state is TcpState.CLOSING
    bench.wait(TCP_CLOSING)
    assert len(bench.taken_back) == 1


def test_a_reset_ends_it_within_a_second(bench: Bench, alice: Address) -> None:
    data = bench.syn(alice)
    bench.out(data)
    bench.map(lifetime=86400)
    report(bench, data, 2, 1, reset=True)
    assert entry_of(bench, data).state is TcpState.CLOSED
    bench.wait(TCP_RESET)
    assert len(bench.taken_back) == 1


def test_a_flow_that_nobody_answers_is_asked_for_again_and_its_new_mapping_taken(bench: Bench, alice: Address) -> None:
    data = bench.syn(alice)
    bench.out(data)
    bench.map(lifetime=86400)
    report(bench, data, 2, 1)
    asked = len(bench.asked)
    for _ in range(int(SILENCE_SECONDS / LOOK)):
        assert len(bench.asked) == asked
        report(bench, data, SILENCE_PACKETS, 0)
    assert len(bench.asked) == asked + 1
    bench.map(61005, lifetime=86400)
    assert len(bench.taken_back) == 1, "its next packet comes to us, and is handed over by the new mapping"
    bench.out(bench.tcp(alice, packet.TCP_ACK))
    assert bench.handed_over[-1].mapped.port == 61005


def test_many_packets_that_are_answered_are_no_silence(bench: Bench, alice: Address) -> None:
    data = bench.syn(alice)
    bench.out(data)
    bench.map(lifetime=86400)
    for _ in range(10):
        report(bench, data, 100, 1)
    assert len(bench.asked) == 1


def test_what_the_kernel_has_of_an_earlier_run_is_taken_over_or_ended(bench: Bench, make_bench) -> None:
    """Open connections go on, and their mapping is asked for; a datagram may go where nobody is any more."""
    alice = bench.learn("alice")
    syn, datagram = bench.syn(alice), bench.udp(alice)
    for first in syn, datagram:
        bench.out(first)
        bench.map(lifetime=86400)
    entry_of(bench, syn)
    again = make_bench()
    again.core.kernel_ways = (None,)
    assert again.core.restore([record for record in bench.saved if "gone" not in record], again.now) == []
    report(again, syn, 1, 1)
    assert again.taken_back == []
    assert again.count("negotiation.renewals") == 1
    report(again, datagram, 1, 1)
    assert [flow.key for flow in again.taken_back] == [packet.flow_key(datagram)]
    report(again, bench.udp(alice, s=1), 1, 1)
    assert len(again.taken_back) == 2, "a flow nobody knows"
    report(again, syn, mapped=Endpoint(bench.G2, 4))
    assert len(again.taken_back) == 3, "a mapping that is not ours"


def test_errors_are_told_by_the_daemon_with_the_source_each_has(bench: Bench, alice: Address) -> None:
    """A NAT's kernel would give all of them V1 as their source; traceroute would see nothing else."""
    data = bench.udp(alice)
    bench.out(data)
    bench.map()
    seen = build.udp(Endpoint(bench.G1, 40000), Endpoint(bench.G2, 61000), b"hello")
    unreachable = bytes(build.unreachable_for(seen, code=3, source=bench.G2))
    bench.come(unreachable)
    expired = bytes(build.time_exceeded_for(seen, source=bench.OTHER))
    bench.come(expired)
    assert len(bench.dropped) == 2
    for told, source in zip(bench.told, (alice, bench.OTHER), strict=True):
        quoted = packet.quoted_flow(told)
        assert packet.source(told) == source
        assert quoted is not None
        assert quoted.key == packet.flow_key(data)


def test_a_datagram_that_was_in_fragments_is_told_to_its_program(bench: Bench, alice: Address) -> None:
    """The kernel has its flow, and did not translate it."""
    bench.out(bench.udp(alice))
    bench.map()
    answer = build.udp(Endpoint(bench.G2, 61000), Endpoint(bench.G1, 40000), bytes(4000))
    bench.come(bytes(answer))
    assert len(bench.dropped) == 1
    (told,) = bench.told
    assert packet.source(told) == alice
    assert told[28:] == bytes(4000)
    assert bench.count("in.sent.translated") == 1


def test_a_router_that_says_no_ends_what_the_kernel_carries(bench: Bench, alice: Address) -> None:
    data = bench.udp(alice)
    bench.out(data)
    bench.map(lifetime=60)
    while len(bench.asked) == 1:
        report(bench, data, 1, 1)
    bench.refuse(message.Status.DENIED)
    assert len(bench.taken_back) == 1


def test_a_flow_whose_mapping_another_one_gets_is_taken_back_before_that_one_goes_on(
    bench: Bench, alice: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router was restarted. Two connections with the same answers are one too many for the kernel's NAT."""
    bench.out(bench.udp(alice))
    bench.map()
    done: list[object] = []
    perform = bench.perform

    def noted(effects: list[object]) -> None:
        done.extend(effects)
        perform(effects)

    monkeypatch.setattr(bench, "perform", noted)
    bench.out(bench.udp(bench.learn("bob")))
    bench.map()
    assert [type(effect) for effect in done if isinstance(effect, HandOver | TakeBack)] == [TakeBack, HandOver]


def test_a_flow_of_an_earlier_run_is_its_ways_once_the_kernel_has_told_of_it(bench: Bench, alice: Address) -> None:
    bench.out(bench.udp(alice))
    bench.map()
    entry = entry_of(bench, bench.udp(alice))
    handle = object()
    bench.core.kernel_ways = (handle,)
    report(bench, bench.udp(alice), out=1)
    assert entry.way is handle
