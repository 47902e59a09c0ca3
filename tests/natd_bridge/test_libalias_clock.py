"""The keep-alive of libalias's clock against the model of it, and that against what natd did on FreeBSD 14.2."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dpkt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from natf_bsd.lab.ipfw_model import Libalias, SampledClock
from natf_bsd.natd_bridge.clock import (
    BURST,
    BUSY_INTERVAL,
    FIRST_LIMIT,
    LATEST,
    PATIENCE,
    QUIET_INTERVAL,
    REST,
    SILENCE,
    KeepAlive,
    needs_keep_alive,
)
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build

RECORDED: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("freebsd_14_2_natd_time.jsonl").read_text().splitlines()
]
G2 = parse_address("203.0.113.1")
NOWHERE = parse_address("198.51.100.1")
INSIDE = Endpoint(parse_address("192.168.0.2"), 7000)
EN = Endpoint(parse_address("203.0.113.10"), 40000)
LINK_LIFE = 60.0


@dataclass
class Router:
    """A NAT with its clock and the counter of its rule, the keep-alive that looks at it, and the worst seen so far."""

    now: float = 1000.0
    total: int = 0
    writes: bool = True
    written: list[int] = field(default_factory=list)
    worst: float = 0.0

    def __post_init__(self) -> None:
        self.clock = SampledClock(lambda: self.now)
        self.keep = KeepAlive(G2, NOWHERE, self.now)

    def packets(self, number: int) -> None:
        self.worst = max(self.worst, self.now - self.clock.time)
        for _ in range(number):
            self.clock.tick()
        self.total += number

    def look(self) -> None:
        """The guard looks; all that is then to be written is written, and passed by the NAT at once."""
        self.keep.note_packets(self.total, self.now)
        self.pump()

    def pump(self) -> None:
        number = 0
        while self.writes and (taken := self.keep.take(self.now)):
            self.packets(taken)
            self.keep.note_captured(taken)
            number += taken
        if number:
            self.written.append(number)


def test_releases_whose_libalias_asks_for_the_time_itself_are_left_alone() -> None:
    assert not needs_keep_alive(1_204_000)
    assert needs_keep_alive(1_300_000)
    assert needs_keep_alive(1_402_000)


def test_the_packet_is_one_that_natd_lets_pass_and_the_capture_rule_takes() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    assert keep.packet.hex() == "4500001c4e46000001010565cb007101c63364012c0085b900004e46"
    read = dpkt.ip.IP(keep.packet)
    assert (read.id, read.ttl, read.data.type) == (20038, 1, 44)
    found = read.data.sum
    read.data.sum = 0
    assert dpkt.icmp.ICMP(bytes(dpkt.ip.IP(bytes(read)).data)).sum == found
    libalias = Libalias(G2)
    data = bytearray(keep.packet)
    assert not libalias.outbound(data, 0.0)
    assert data == keep.packet


def test_a_keep_alive_packet_is_known_whatever_its_header_checksum() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    data = bytearray(keep.packet)
    data[10:12] = b"\0\0"
    assert keep.is_ours(data)


@pytest.mark.parametrize("at", [0, 3, 4, 8, 9, 12, 19, 20, 27])
def test_a_packet_that_differs_in_one_byte_is_not_ours(at: int) -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    data = bytearray(keep.packet)
    data[at] ^= 1
    assert not keep.is_ours(data)
    assert not keep.is_ours(keep.packet[:-1])
    assert not keep.is_ours(keep.packet + b"\0")


# How many, and when.


def test_in_quiet_the_first_thousand_decays_to_a_packet_now_and_then() -> None:
    router = Router()
    for _ in range(200):
        router.look()
        router.now += 10.0
    assert router.written[:4] == [1000, 1000, 666, 555]
    assert router.written[24:] == [1] * 43
    assert len(router.written) == 67, "every third look"
    assert sum(router.written) == 5014
    assert router.worst == 30.0


def test_steady_traffic_needs_no_help() -> None:
    router = Router()
    for second in range(600):
        router.packets(100)
        if second % 10 == 0:
            router.look()
        router.now += 1.0
    assert router.written == [1000], "only the first, when nothing was known"
    assert router.worst < 10.0


def test_after_heavy_traffic_no_more_is_written_than_two_looks_saw() -> None:
    router = Router()
    for second in range(120):
        router.packets(2000 if second < 60 else 0)
        if second % 5 == 0:
            router.look()
        router.now += 1.0
    after = router.written[1:]
    assert after, "the quiet behind it needs help"
    assert max(after) <= 20_000
    assert after == sorted(after, reverse=True)
    assert router.worst < LATEST + 5.0


def pages(draw: random.Random) -> Iterator[int]:
    """Packets in each second where web pages are read: about one in ten seconds, over three of them."""
    while True:
        whole = draw.randint(300, 3000)
        yield from (whole // 2, whole // 3, whole // 6)
        yield from (draw.randint(0, 5) for _ in range(draw.randint(2, 12)))


def test_where_web_pages_are_read_one_packet_is_written_for_ten_of_others() -> None:
    router = Router()
    for number in itertools.islice(pages(random.Random(1)), 1800):
        router.packets(number)
        if router.now >= router.keep.next_look():
            router.look()
        router.now += 1.0
    own = sum(router.written)
    assert own < (router.total - own) / 10
    assert router.worst <= LATEST + QUIET_INTERVAL


patterns = st.lists(
    st.tuples(
        st.floats(0.0, 40.0),  # quiet before
        st.integers(1, 2000),  # packets
        st.sampled_from([0.0, 0.3, 1.0, 7.0]),  # seconds they take
    ),
    max_size=10,
)
cadences = st.sampled_from([1.0, 5.0, 10.0, 15.0])


def play(router: Router, pattern: list[tuple[float, int, float]], cadence: float) -> None:
    """Traffic, with looks between; then a minute of quiet. Checks the bound on packet_limit at every look."""
    next_look = router.now
    arrivals: list[tuple[float, int]] = []
    at = router.now
    for quiet, number, duration in pattern:
        at += quiet
        parts = min(number, 20) if duration else 1
        arrivals += [(at + duration * part / parts, number // parts) for part in range(parts)]
        at += duration
    for when, number in [*arrivals, (at + 60.0, 0)]:
        while next_look <= when:
            router.now = next_look
            router.look()
            assert router.clock.limit <= router.keep.limit
            next_look += cadence
        router.now = when
        router.packets(number)


@given(patterns, cadences, st.floats(0.0, 0.99))
@example([(0.0, 2000, 0.0), (0.5, 2000, 0.0)], 10.0, 0.0)
def test_the_clock_is_never_further_behind_than_promised_whatever_the_traffic(
    pattern: list[tuple[float, int, float]], cadence: float, fraction: float
) -> None:
    router = Router(now=1000.0 + fraction)
    play(router, pattern, cadence)
    assert router.worst <= LATEST + cadence
    assert router.worst < LINK_LIFE


@given(patterns, patterns, cadences)
def test_a_nat_that_is_older_than_we_are_is_caught_up_with_at_once(
    before: list[tuple[float, int, float]], pattern: list[tuple[float, int, float]], cadence: float
) -> None:
    router = Router()
    for quiet, number, _ in before:
        router.now += quiet
        router.packets(number)
    router.worst = 0.0
    router.look()
    assert router.now - router.clock.time < 1.0
    router.worst = 0.0
    play(router, pattern, cadence)
    assert router.worst <= LATEST + cadence


@given(patterns, patterns, cadences)
def test_the_bound_holds_also_where_nothing_can_be_written(
    quiet: list[tuple[float, int, float]], pattern: list[tuple[float, int, float]], cadence: float
) -> None:
    router = Router(writes=False)
    play(router, [(wait, number % 20 + 1, duration) for wait, number, duration in quiet], cadence)
    play(router, pattern, cadence)


@given(patterns, st.sampled_from([5.0, 10.0, 15.0]))
def test_a_burst_is_no_larger_than_what_others_sent_between_three_looks(
    pattern: list[tuple[float, int, float]], cadence: float
) -> None:
    router = Router()
    play(router, pattern, cadence)
    total = sum(number for _, number, _ in pattern)
    assert max(router.written, default=0) <= max(FIRST_LIMIT, total)
    looks = (router.now - 1000.0) / cadence + 1
    assert len(router.written) <= looks / 2 + 1, "there is always a look without one between two"


@given(patterns, patterns)
@example([(0.0, 1, 1.0)], [(0.0, 1000, 0.0)])
def test_a_restarted_natd_is_taken_for_a_new_one(
    before: list[tuple[float, int, float]], after: list[tuple[float, int, float]]
) -> None:
    router = Router()
    play(router, before, 10.0)
    router.clock = SampledClock(lambda: router.now)
    router.packets(37)
    router.keep.note_restart()
    router.worst = 0.0
    play(router, after, 10.0)
    assert router.worst <= LATEST + 10.0


@given(patterns)
def test_a_counter_that_began_anew_is_believed_from_then_on(pattern: list[tuple[float, int, float]]) -> None:
    router = Router()
    for _ in range(40):
        router.packets(1000)
        router.now += 10.0
        router.keep.note_packets(router.total, router.now)
    router.total = 0
    play(router, pattern, 10.0)
    assert router.worst <= LATEST + 10.0


def test_a_counter_that_began_anew_costs_one_burst_at_most() -> None:
    router = Router()
    for _ in range(40):
        router.packets(1000)
        router.now += 10.0
        router.look()
    before = len(router.written)
    router.total = 0
    for _ in range(40):
        router.packets(1000)
        router.now += 10.0
        router.look()
    assert len(router.written) <= before + 1


@given(patterns, st.integers(1, 10), patterns)
def test_a_natd_that_did_not_answer_for_a_time_is_not_supposed_to_have_counted(
    before: list[tuple[float, int, float]], looks: int, after: list[tuple[float, int, float]]
) -> None:
    router = Router()
    play(router, before, 10.0)
    for _ in range(looks):
        router.now += 10.0
        router.keep.note_packets(router.total, router.now)
        router.total += router.keep.take(router.now)
        assert router.keep.take(router.now + PATIENCE) == 0
    router.worst = 0.0
    play(router, after, 10.0)


@pytest.mark.parametrize(("looks", "between"), [(20, ""), (4, ""), (4, "counter began anew"), (4, "packets were lost")])
def test_the_packets_of_a_second_are_remembered_until_the_next_sample(looks: int, between: str) -> None:
    """10,000 packets follow a sample in its second; whenever the next comes, it counts them. It comes with a look, and
    behind it, in its second, as many packets as would be a sample in any other.
    """
    router = Router(writes=False)
    router.packets(2999)
    for _ in range(2):
        router.look()
        router.now += 5.0
    router.packets(1)
    assert router.clock.limit == 1000
    router.packets(10_000)
    for number in range(looks):
        router.look()
        if number == 0 and between == "counter began anew":
            router.total = 0
        if number == 0 and between == "packets were lost":
            assert router.keep.take(router.now) == BURST
            assert router.keep.take(router.now + PATIENCE) == 0
        router.now += 10.0
        router.packets(1000 // looks)
    assert router.clock.limit == 3666
    router.look()
    router.now += 0.9
    router.packets(router.keep.limit)
    router.now += 0.3
    router.look()
    assert router.keep.limit >= router.clock.limit == 3666


def test_a_natd_that_was_busy_before_is_supposed_to_have_a_high_limit() -> None:
    router = Router()
    router.now += 1.0
    router.packets(31_000)
    router.now += 1.0
    router.packets(1000)
    assert router.clock.limit == 10_101
    router.look()
    assert router.written == [16_000]
    for total, limit in ((1999, 1000), (2002, 1001), (10**9, 20_000)):
        keep = KeepAlive(G2, NOWHERE, 0.0)
        keep.note_packets(total, 0.0)
        assert keep.limit == limit


def test_the_first_packets_of_a_counter_that_began_anew_count() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    keep.note_packets(100_000, 0.0)
    keep.note_restart()
    keep.note_packets(9000, 10.0)
    assert keep.limit == (9000 + FIRST_LIMIT) // 3


# The writing.


def taken(keep: KeepAlive, now: float) -> int:
    number = keep.take(now)
    keep.note_captured(number)
    return number


def test_packets_go_in_small_bursts_with_a_rest_of_three_times_as_long_between() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    keep.note_packets(0, 0.0)
    assert keep.next_deadline() == 0.0
    assert keep.take(0.0) == BURST
    assert keep.next_deadline() == PATIENCE
    assert keep.take(0.1) == 0, "the NAT still has them"
    keep.note_captured(BURST - 1)
    assert keep.take(0.1) == 0
    keep.note_captured(1)
    assert keep.next_deadline() <= 0.1
    assert keep.take(0.1) == 0
    assert keep.next_deadline() == pytest.approx(0.1 + REST * 0.1)
    assert keep.take(0.45) == BURST


def test_a_sample_counts_as_forced_when_the_last_packet_is_back() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    keep.note_packets(0, 0.0)
    written = 0
    while number := keep.take(0.0):
        assert keep.forced == 0
        written += number
        keep.note_captured(number)
    assert (written, keep.forced) == (FIRST_LIMIT, 1)
    assert keep.next_deadline() == SILENCE


def test_a_nat_that_gives_nothing_back_is_asked_again_at_the_next_look_only() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    keep.note_packets(0, 0.0)
    assert keep.take(0.0) == BURST
    assert keep.take(PATIENCE) == 0
    assert keep.next_deadline() == SILENCE
    keep.note_packets(5000, 10.0)
    assert keep.limit >= FIRST_LIMIT, "5000 counted packets prove nothing if it was dead"
    assert keep.take(10.0) == BURST
    assert keep.forced == 0


def test_a_look_while_packets_are_being_written_does_not_begin_again() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    keep.note_packets(0, 0.0)
    number = taken(keep, 0.0)
    assert taken(keep, 0.0) == BURST
    keep.note_packets(2 * number, 1.0)
    assert taken(keep, 1.0) == 0, "the burst took a second, as far as is known"
    while more := taken(keep, 4.0):
        number += more
    assert number + BURST == FIRST_LIMIT


def test_without_looks_at_the_counter_a_thousand_are_written_every_15_s() -> None:
    keep = KeepAlive(G2, NOWHERE, 0.0)
    bursts: dict[float, int] = {}
    for second in range(61):
        while number := taken(keep, float(second)):
            bursts[float(second)] = bursts.get(float(second), 0) + number
    assert bursts == {15.0: 1000, 30.0: 1000, 45.0: 1000, 60.0: 1000}


def test_a_look_right_after_another_is_not_taken() -> None:
    router = Router()
    router.look()
    before = router.keep.limit
    router.now += 0.5
    router.packets(10_000)
    router.look()
    assert router.keep.limit == before
    router.now += 0.5
    router.look()
    assert router.keep.limit > before


def test_looks_are_wanted_often_in_traffic_and_for_a_minute_after_it() -> None:
    router = Router()
    assert router.keep.next_look() <= router.now
    for packets, after, interval in (
        (BURST, 0.0, QUIET_INTERVAL),
        (BURST + 1, 10.0, BUSY_INTERVAL),
        (0, 59.0, BUSY_INTERVAL),
        (0, 1.0, QUIET_INTERVAL),
    ):
        router.packets(packets)
        router.now += after
        router.keep.note_packets(router.total, router.now)
        assert router.keep.next_look() == router.now + interval


# What it is for: natd-time.jsonl.


def recorded(event: str) -> dict[str, Any]:
    (found,) = [one for one in RECORDED if one["event"].startswith(event)]
    return found


def datagram(router: Router, libalias: Libalias, port: int) -> None:
    router.packets(0)
    data = build.udp(Endpoint(INSIDE.address, port), EN)
    assert libalias.outbound(data, router.clock.tick())
    router.total += 1


def answers(router: Router, libalias: Libalias, port: int) -> bool:
    router.total += 1
    return libalias.inbound(build.udp(EN, Endpoint(G2, port)), router.clock.tick())


ACTIVE, IDLE = 7000, 7001


def after_a_burst(router: Router, seconds: int, burst: int, *, keep_alive: bool) -> tuple[bool, bool]:
    """Whether a mapping used every second, and one not used, live 2.4 s after a burst behind so many quiet seconds."""
    libalias = Libalias(G2)
    datagram(router, libalias, IDLE)
    for second in range(seconds):
        datagram(router, libalias, ACTIVE)
        if keep_alive and second % 10 == 0:
            router.look()
        router.now += 1.0
    for number in range(burst):
        datagram(router, libalias, 20_000 + number)
    router.now += 2.4
    return answers(router, libalias, ACTIVE), answers(router, libalias, IDLE)


def test_a_burst_after_quiet_kills_a_mapping_in_use_and_the_keep_alive_saves_it() -> None:
    event = recorded("burst on a quiet natd")
    quiet, burst = event["seconds_before_burst"], event["burst_packets"]
    without, kept = Router(), Router()
    assert after_a_burst(without, quiet, burst, keep_alive=False)[0] is event["mapping_alive_after"]
    assert without.worst > LINK_LIFE
    assert after_a_burst(kept, quiet, burst, keep_alive=True)[0]
    assert kept.worst <= LATEST + 10.0


def test_with_the_keep_alive_an_idle_mapping_dies_as_it_should() -> None:
    event = recorded("1000 keep-alive packets")
    seconds = event["seconds_before_burst"]
    found = after_a_burst(Router(), seconds, 1500, keep_alive=True)
    assert found == (event["mapping_alive_after"], event["mapping_idle_for_100_s_alive"]) == (True, False)


def test_without_it_an_idle_mapping_lives_on_while_the_clock_stands() -> None:
    for event in RECORDED:
        if event["event"] == "idle mapping probed once":
            found = after_a_burst(Router(), event["idle_s"], 0, keep_alive=False)
            assert found == (True, event["alive"]), event["idle_s"]
