"""Where the kernel has room for few flows: the busiest are handed over when they are in use, and for a time only."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from natf_bsd.datapath import Gone
from natf_bsd.effects import HandOver, TakeBack
from natf_bsd.en.busiest import BUSY, INTERVAL, LONGEST, Busiest
from natf_bsd.en.core import DOUBT_AFTER
from natf_bsd.en.report import tables
from natf_bsd.tables.vat import TCP_CLOSING, UDP_RENEWAL, VatEntry
from natf_bsd.types import Address, Endpoint
from natf_bsd.wire import build, message, packet
from tests.en.conftest import Bench

ROOM = 2


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    bench = make_bench()
    bench.core.busiest = Busiest(ROOM)
    return bench


@pytest.fixture
def alice(bench: Bench) -> Address:
    return bench.learn("alice")


def entry_of(bench: Bench, data: bytes) -> VatEntry:
    key = packet.flow_key(data)
    assert key is not None
    entry = bench.core.vat.by_out(key)
    assert entry is not None
    return entry


def connect(bench: Bench, virtual: Address, *, s: int = 40000, m: int = 61000, lifetime: int = 86400) -> VatEntry:
    bench.out(bench.syn(virtual, s=s))
    bench.map(m, lifetime=lifetime)
    bench.come(bench.tcp_back(packet.TCP_SYN | packet.TCP_ACK, m=m, s=s))
    return entry_of(bench, bench.syn(virtual, s=s))


def use(bench: Bench, virtual: Address, packets: int = BUSY, *, s: int = 40000, m: int = 61000) -> None:
    """Packets out, one in five answered."""
    for number in range(packets):
        back = number % 5 == 4
        bench.come(bench.tcp_back(packet.TCP_ACK, m=m, s=s)) if back else bench.out(
            bench.tcp(virtual, packet.TCP_ACK, s=s)
        )


def use_udp(bench: Bench, virtual: Address, packets: int = BUSY) -> None:
    for _ in range(packets // 2):
        bench.out(bench.udp(virtual))
        bench.come(bench.udp_back())


def test_a_busy_flow_is_handed_over_at_the_end_of_an_interval(bench: Bench, alice: Address) -> None:
    entry = connect(bench, alice)
    use(bench, alice)
    assert bench.handed_over == [], "not at once: in batches"
    assert len(bench.sent) == BUSY + 2
    bench.wait(INTERVAL)
    assert bench.handed_over == [HandOver(entry.flow, entry.mapped, ())]
    (flow,) = tables(bench.core, bench.now, 9)["flows"]
    assert flow["in_kernel"] is True


def test_a_flow_with_few_packets_stays(bench: Bench, alice: Address) -> None:
    connect(bench, alice)
    for _ in range(10):
        use(bench, alice, BUSY // 4)
        bench.wait(INTERVAL)
    assert bench.handed_over == []


def test_packets_that_nobody_answers_are_no_reason(bench: Bench, alice: Address) -> None:
    bench.out(bench.udp(alice))
    bench.map()
    for _ in range(2 * BUSY):
        bench.out(bench.udp(alice))
    bench.wait(INTERVAL)
    assert bench.handed_over == []
    connect(bench, alice)
    bench.wait(INTERVAL)
    for _ in range(2 * BUSY):
        bench.out(bench.tcp(alice, packet.TCP_ACK))
    bench.wait(INTERVAL)
    assert bench.handed_over == []


def test_the_busiest_get_the_room_there_is(bench: Bench, alice: Address) -> None:
    entries = [connect(bench, alice, s=40000 + n, m=61000 + n) for n in range(4)]
    for number in range(4):
        use(bench, alice, BUSY + 10 * number, s=40000 + number, m=61000 + number)
    bench.wait(INTERVAL)
    assert [handed.flow for handed in bench.handed_over] == [entries[3].flow, entries[2].flow]
    use(bench, alice)
    bench.wait(INTERVAL)
    assert len(bench.handed_over) == ROOM


def test_it_comes_back_after_its_time_and_is_judged_again(bench: Bench, alice: Address) -> None:
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL + LONGEST - 0.1)
    assert bench.taken_back == []
    bench.wait(0.1)
    assert bench.taken_back == [entry.flow]
    assert not entry.in_kernel
    use(bench, alice)
    bench.wait(INTERVAL)
    assert len(bench.handed_over) == 2
    bench.wait(LONGEST + 100)
    assert (len(bench.taken_back), len(bench.handed_over)) == (2, 2), "it was quiet"
    assert len(bench.asked) == 1, "what the kernel answered is no silence"


def test_packets_that_were_on_their_way_are_translated_here(bench: Bench, alice: Address) -> None:
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL)
    bench.sent.clear()
    bench.out(bench.tcp(alice, packet.TCP_ACK))
    bench.come(bench.tcp_back(packet.TCP_ACK))
    there, back = map(packet.flow_of, bench.sent)
    assert there is not None
    assert back is not None
    assert (there.destination, back.source) == (entry.mapped, entry.flow.destination)
    assert entry.in_kernel


@pytest.mark.parametrize("inward", [False, True])
@pytest.mark.parametrize("flag", [packet.TCP_FIN, packet.TCP_RST])
def test_the_end_of_a_connection_is_seen_here_and_takes_it_back(
    bench: Bench, alice: Address, flag: int, inward: bool
) -> None:
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL)
    bench.come(bench.tcp_back(flag)) if inward else bench.out(bench.tcp(alice, flag))
    assert bench.taken_back == [entry.flow]
    bench.come(bench.tcp_back(packet.TCP_FIN))
    bench.out(bench.tcp(alice, packet.TCP_FIN))
    bench.wait(TCP_CLOSING)
    assert len(bench.core.vat) == 0
    assert len(bench.asked) == 1


def test_a_datagram_flow_comes_back_in_time_for_its_renewal(bench: Bench, alice: Address) -> None:
    bench.out(bench.udp(alice))
    bench.map(lifetime=120)
    began = bench.now
    renewed = []
    while bench.now - began < 180:
        if not entry_of(bench, bench.udp(alice)).in_kernel:
            use_udp(bench, alice)
        if len(bench.asked) > 1 + len(renewed):
            renewed.append(bench.now)
            bench.map(lifetime=120)
        bench.wait(0.5)
    gaps = [later - earlier for earlier, later in zip([began, *renewed], renewed, strict=False)]
    assert len(renewed) >= 5
    assert max(gaps) <= UDP_RENEWAL + 1
    assert len(bench.handed_over) > len(renewed)


def test_the_kernel_has_a_short_lived_flow_for_a_quarter_of_its_lifetime(bench: Bench, alice: Address) -> None:
    bench.out(bench.udp(alice))
    bench.map(lifetime=60)
    use_udp(bench, alice)
    bench.wait(INTERVAL)
    assert len(bench.handed_over) == 1
    bench.wait(15)
    assert len(bench.taken_back) == 1
    last = bench.now
    while len(bench.core.vat):
        bench.wait(1)
    assert 60 - 15 - INTERVAL <= bench.now - last + 1 <= 60, "what nobody saw is no use"


def test_a_flow_that_is_being_asked_for_stays(bench: Bench, alice: Address) -> None:
    bench.out(bench.udp(alice))
    bench.map(lifetime=120)
    bench.wait(UDP_RENEWAL)
    use_udp(bench, alice)
    assert len(bench.asked) == 2
    bench.wait(INTERVAL)
    assert bench.handed_over == []


def test_an_error_about_it_is_translated_and_has_it_asked_for_here(bench: Bench, alice: Address) -> None:
    """The rule for errors is the daemon's on FreeBSD, whoever carries the flow."""
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL + DOUBT_AFTER)
    seen = build.tcp(Endpoint(bench.G1, 40000), entry.mapped, flags=packet.TCP_ACK)
    bench.sent.clear()
    bench.come(build.unreachable_for(seen, code=3, source=bench.G2))
    (error,) = bench.sent
    assert packet.quoted_flow(error) == entry.flow
    assert (len(bench.asked), bench.taken_back) == (2, [entry.flow])


def test_a_mapping_that_became_another_is_taken_back_at_once(
    bench: Bench, alice: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is on its way back: the kernel may have it still."""
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL)
    done: list[object] = []
    perform = bench.perform

    def noted(effects: list[object]) -> None:
        done.extend(effects)
        perform(effects)

    monkeypatch.setattr(bench, "perform", noted)
    bench.wait(DOUBT_AFTER)
    seen = build.tcp(Endpoint(bench.G1, 40000), entry.mapped, flags=packet.TCP_ACK)
    bench.come(build.unreachable_for(seen, code=3, source=bench.G2))
    bench.map(61001, lifetime=86400)
    back = [effect for effect in done if isinstance(effect, TakeBack)]
    assert back == [TakeBack(entry.flow, at_once=False), TakeBack(entry.flow, at_once=True)]
    use(bench, alice, m=61001)
    bench.wait(INTERVAL)
    assert bench.handed_over[-1].mapped.port == 61001


def test_a_new_connection_on_old_ports_is_first_taken_back(bench: Bench, alice: Address) -> None:
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL)
    bench.out(bench.syn(alice, sequence=9000))
    assert bench.taken_back == [entry.flow]
    assert len(bench.asked) == 2


def test_a_router_that_says_no_ends_what_the_kernel_carries(bench: Bench, alice: Address) -> None:
    entry = connect(bench, alice)
    use(bench, alice)
    bench.wait(INTERVAL + DOUBT_AFTER)
    seen = build.tcp(Endpoint(bench.G1, 40000), entry.mapped, flags=packet.TCP_ACK)
    bench.come(build.unreachable_for(seen, code=3, source=bench.G2))
    bench.refuse(message.Status.DENIED)
    assert bench.taken_back[-1] == entry.flow
    assert len(bench.core.vat) == 0


def test_what_the_kernel_does_not_take_stays_and_may_be_tried_again(bench: Bench, alice: Address) -> None:
    entry = connect(bench, alice)
    for told in (
        lambda: bench.core.not_handed_over(entry.flow, (), bench.now),
        lambda: bench.core.handle_report(Gone(entry.flow.key), bench.now),
    ):
        handed = len(bench.handed_over)
        use(bench, alice)
        bench.wait(INTERVAL)
        assert len(bench.handed_over) == handed + 1
        assert told() == []
        assert not entry.in_kernel
        bench.wait(INTERVAL)
    assert bench.told == []
