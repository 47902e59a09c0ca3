"""The bridge to natd and `ipfw nat` on the model of FreeBSD's kernel: real divert backend, real rules."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.divert import host as divert_host
from natf_bsd.divert.divert4 import DivertBackend
from natf_bsd.lab.ipfw_model import Host, interface
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.bridge import NatBridge
from natf_bsd.natd_bridge.clock import BURST, FIRST_LIMIT, KeepAlive
from natf_bsd.natd_bridge.natd import NatdBridge
from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE, PSEUDO_IDENT, Captured
from natf_bsd.types import Direction, Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import build, packet

RECORDED = Path(__file__).with_name("freebsd_14_2_pseudo.jsonl")
G2, P1, P2 = (parse_address(text) for text in ("203.0.113.1", "192.168.0.2", "192.168.0.3"))
EN = Endpoint(parse_address("203.0.113.10"), 40000)
NOWHERE = parse_address("198.51.100.1")
ALICE, BOB = Endpoint(P1, 80), Endpoint(P2, 80)
CAPTURE = 8702
CAPTURE_RULE = "51 set 7 divert 8702 ip from any to any out xmit wan ipid 20038 ipttl 1 // natf"
NATD_RULE = "50 divert 8668 ip4 from any to any via wan"
NAT_RULE = "50 nat 123 ip4 from any to any via wan"


class Router:
    """A router host with our capture rule, a NAT rule if there is to be one, and the bridge."""

    def __init__(
        self, *rules: str, received_on: str | None = None, keep_alive: bool = False, one_pass: bool = False
    ) -> None:
        self.now = 1000.0
        self.host = Host(
            [interface("wan", "203.0.113.1"), interface("lan", "192.168.0.1")], forwarding=True, now=lambda: self.now
        )
        self.host.add_route((0, 0), "wan")
        self.host.firewall.one_pass = one_pass
        questions = divert_host.Host(mtu_to=lambda _: 1500, interfaces=lambda: ["wan", "lan"], sockstat=lambda: "")
        capture = DivertBackend(CAPTURE, Direction.OUT, calls=self.host.sockets, host=questions)
        self.keep = KeepAlive(G2, NOWHERE, self.now) if keep_alive else None
        self.durations = itertools.count(step=0.064)
        kind = "ipfw nat" if NAT_RULE in rules else "natd"
        self.bridge = NatdBridge(capture, 49, received_on, kind, self.keep, lambda: next(self.durations))
        for rule in (CAPTURE_RULE, *rules):
            self.add(rule)

    def add(self, rule: str) -> None:
        assert self.host.ipfw(["ipfw", "-q", "add", *rule.split()]) == (0, "", "")

    def captured(self, flow: Flow, cookie: int = 7) -> list[Captured | None]:
        """What comes back of a pseudo-packet."""
        self.bridge.write(pseudo.build(flow, cookie, self.bridge.style))
        return [pseudo.parse_captured(data) for data in list(self.bridge.captured())]

    def mapping(self, flow: Flow) -> Endpoint:
        (found,) = self.captured(flow)
        assert found is not None
        assert (found.cookie, found.translated.destination) == (7, flow.destination)
        return found.translated.source

    def counted(self, number: int = 50) -> int:
        """The packet counter of a rule, as the guard reads it."""
        return int(self.host.ipfw(["ipfw", "show", str(number)])[1].split()[1])

    def look(self) -> None:
        """The guard looks, and the loop turns until nothing is due."""
        assert self.keep is not None
        self.keep.note_packets(self.counted(), self.now)
        while (due := self.bridge.next_deadline()) is not None and due <= self.now:
            self.bridge.tick(self.now)
            assert list(self.bridge.captured()) == []


def natd(**options: Any) -> Router:
    router = Router(NATD_RULE, **options)
    router.host.start_natd("wan", deny_incoming=True)
    return router


def in_kernel(**options: Any) -> Router:
    router = Router(**options)
    config = "nat 123 config if wan deny_in same_ports"
    assert router.host.ipfw(["ipfw", "-q", *config.split()])[0] == 0
    router.add(NAT_RULE)
    return router


nats = pytest.mark.parametrize("make", [natd, in_kernel])
protocols = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])


def packet_between(protocol: int, source: Endpoint, destination: Endpoint) -> bytes:
    if protocol == Protocol.TCP:
        return bytes(build.tcp(source, destination, flags=packet.TCP_SYN))
    return bytes(build.udp(source, destination, b"data"))


def test_it_is_a_bridge_for_libalias() -> None:
    bridge: NatBridge = natd().bridge
    assert (bridge.name, bridge.style) == ("natd", LIBALIAS_STYLE)
    assert (bridge.lifetime(Protocol.UDP), bridge.lifetime(Protocol.TCP)) == (60, 86_400)
    assert in_kernel().bridge.lifetime(Protocol.UDP) == 60


@nats
@protocols
def test_a_mapping_is_made_and_leads_in_and_out(make: Callable[[], Router], protocol: int) -> None:
    router = make()
    assert router.mapping(Flow(protocol, ALICE, EN)) == Endpoint(G2, 80), "the port is the inside one"
    assert router.host.wire == [], "nothing of ours leaves"
    router.host.receive("wan", packet_between(protocol, EN, Endpoint(G2, 80)))
    router.host.receive("lan", packet_between(protocol, ALICE, EN))
    (there, inward), (back, outward) = router.host.wire
    assert (there, packet.flow_of(inward)) == ("lan", Flow(protocol, EN, ALICE))
    assert (back, packet.flow_of(outward)) == ("wan", Flow(protocol, Endpoint(G2, 80), EN))


@nats
@protocols
def test_a_repeated_request_gets_the_same_port(make: Callable[[], Router], protocol: int) -> None:
    router = make()
    first = router.mapping(Flow(protocol, ALICE, EN))
    router.host.receive("wan", packet_between(protocol, EN, first))
    assert router.mapping(Flow(protocol, ALICE, EN)) == first


@nats
@protocols
def test_a_port_taken_towards_the_same_remote_makes_it_another_one(make: Callable[[], Router], protocol: int) -> None:
    router = make()
    router.host.receive("lan", packet_between(protocol, BOB, EN))
    router.host.wire.clear()
    other = router.mapping(Flow(protocol, ALICE, EN))
    assert (other.address, other.port >= 32768) == (G2, True)
    assert router.mapping(Flow(protocol, ALICE, EN._replace(port=40001))) == Endpoint(G2, 80), "another remote"
    assert router.host.wire == []


def test_without_its_natd_nothing_comes_back() -> None:
    router = Router(NATD_RULE)
    program = router.host.start_natd("wan", deny_incoming=True)
    router.host.stop_natd(program)
    assert router.captured(Flow(Protocol.UDP, ALICE, EN)) == []
    assert router.host.wire == []
    assert router.bridge.counters["written"] == 1


def test_without_a_nat_rule_it_comes_back_untranslated() -> None:
    router = Router()
    assert router.mapping(Flow(Protocol.UDP, ALICE, EN)) == ALICE
    assert router.host.wire == []


def test_with_one_pass_the_in_kernel_nat_lets_the_packet_out_uncaptured() -> None:
    router = in_kernel(one_pass=True)
    assert router.captured(Flow(Protocol.UDP, ALICE, EN)) == []
    ((name, data),) = router.host.wire
    assert (name, data[8]) == ("wan", 1), "it dies at the next hop"


def test_a_missing_nat_instance_is_counted_as_not_permitted() -> None:
    router = Router(NAT_RULE)
    assert router.captured(Flow(Protocol.UDP, ALICE, EN)) == []
    assert router.bridge.counters["not_permitted"] == 1


def test_a_nat_rule_that_asks_where_a_packet_came_in_is_answered() -> None:
    rule = "50 divert 8668 ip4 from any to any out recv lan xmit wan"
    told, untold = Router(rule, received_on="lan"), Router(rule, received_on="")
    for router in told, untold:
        router.host.start_natd("wan", deny_incoming=True)
    assert told.mapping(Flow(Protocol.TCP, ALICE, EN)) == Endpoint(G2, 80)
    assert untold.mapping(Flow(Protocol.TCP, ALICE, EN)) == ALICE


def test_rules_before_the_nat_are_passed_over() -> None:
    router = natd()
    router.add("40 deny ip from any to any out")
    assert router.mapping(Flow(Protocol.UDP, ALICE, EN)) == Endpoint(G2, 80)


def marked(payload: bytes) -> bytes:
    return bytes(build.udp(Endpoint(P1, 5000), Endpoint(EN.address, 6000), payload, ident=PSEUDO_IDENT, ttl=2))


def test_packets_of_others_that_bear_the_marks_go_on_unchanged() -> None:
    plain, router = natd(), natd()
    plain.host.ipfw(["ipfw", "-q", "delete", "51"])
    for one in plain, router:
        one.host.receive("lan", marked(b"twelve bytes"))
    assert router.host.wire == []
    assert list(router.bridge.captured()) == []
    assert router.host.wire == plain.host.wire != []
    assert router.bridge.counters["foreign"] == 1


def test_a_foreign_packet_with_the_marks_meets_the_rules_behind_the_capture() -> None:
    router = natd()
    router.add("60 deny udp from any to any 6000 out")
    router.host.receive("lan", marked(b"twelve bytes"))
    assert list(router.bridge.captured()) == []
    assert router.host.wire == []
    assert router.bridge.counters["not_permitted"] == 1


def test_many_written_at_once_all_come_back_each_with_its_cookie() -> None:
    router = natd()
    flows = [Flow(Protocol.UDP, ALICE, EN._replace(port=10_000 + cookie)) for cookie in range(400)]
    for cookie, flow in enumerate(flows):
        router.bridge.write(pseudo.build(flow, cookie, router.bridge.style))
    found = [pseudo.parse_captured(data) for _ in range(400 // BURST + 1) for data in list(router.bridge.captured())]
    expected = [Flow(flow.protocol, Endpoint(G2, 80), flow.destination) for flow in flows]
    assert found == [Captured(cookie, flow) for cookie, flow in enumerate(expected)]
    assert router.bridge.counters["captured"] == router.bridge.counters["dropped"] == 400
    assert router.host.wire == []


outside = st.builds(
    Endpoint,
    st.binary(min_size=4, max_size=4).filter(lambda one: 1 < one[0] < 224 and one[0] != 127),
    st.integers(0, 65535),
)
inside = st.builds(Endpoint, st.integers(2, 254).map(lambda last: bytes([192, 168, 0, last])), st.integers(0, 65535))


@given(st.lists(st.tuples(st.sampled_from([6, 17]), inside, outside, st.integers(0, 2**32 - 1)), max_size=20))
def test_whatever_the_flow_what_comes_back_names_the_right_cookie(
    asked: list[tuple[int, Endpoint, Endpoint, int]],
) -> None:
    router = natd()
    own = (G2, parse_address("192.168.0.1"))
    nets = (G2[:3], P1[:3])
    for protocol, source, destination, cookie in asked:
        if destination.address in own or destination.address[:3] in nets:
            continue
        flow = Flow(protocol, source, destination)
        (found,) = router.captured(flow, cookie)
        assert found is not None
        assert (found.cookie, found.translated.destination) == (cookie, destination)
        assert found.translated.source.address == G2
    assert router.host.wire == []


@pytest.mark.parametrize(("deny_incoming", "expected_counts"), [(True, (39, 3)), (False, (37, 5))])
def test_what_natd_made_of_pseudo_packets_is_what_was_recorded(
    deny_incoming: bool, expected_counts: tuple[int, int]
) -> None:
    router = Router(NATD_RULE, received_on="lan")
    router.host.start_natd("wan", deny_incoming=deny_incoming)
    kept = moved = 0
    for event in map(json.loads, RECORDED.read_text().splitlines()):
        written, expected = (pseudo.parse_captured(bytes.fromhex(event[name])) for name in ("written", "captured"))
        if event["deny_incoming"] is not deny_incoming or written is None or expected is None:
            continue
        for name, key in (("wan", "stray"), ("lan", "before")):
            if key in event:
                router.host.receive(name, bytes.fromhex(event[key]))
        (found,) = router.captured(written.translated, written.cookie)
        assert found is not None
        if expected.translated.source.port == written.translated.source.port:
            assert found == expected, event["case"]
            kept += 1
        else:
            assert found.translated.source.port >= 32768, event["case"]
            moved += 1
    assert (kept, moved) == expected_counts


def test_close_gives_the_port_up_and_may_be_repeated() -> None:
    router = natd()
    router.bridge.close()
    router.bridge.close()
    DivertBackend(CAPTURE, Direction.OUT, calls=router.host.sockets)


# The keep-alive.


def test_without_a_keep_alive_nothing_is_ever_due() -> None:
    router = natd()
    assert router.bridge.next_deadline() is None
    router.bridge.tick(1e6)
    assert router.host.sockets.counters["diverted"] == 0


def test_keep_alive_packets_pass_the_nat_and_are_eaten() -> None:
    router = natd(keep_alive=True)
    router.look()
    assert router.counted() == FIRST_LIMIT
    assert router.host.wire == []
    counters = router.bridge.counters
    assert (counters["keep_alive_written"], counters["keep_alive_captured"]) == (FIRST_LIMIT, FIRST_LIMIT)
    assert (counters["samples_forced"], counters["captured"], counters["foreign"]) == (1, 0, 0)


def test_the_in_kernel_nat_lets_them_pass_too() -> None:
    router = in_kernel(keep_alive=True)
    router.look()
    assert router.bridge.counters["samples_forced"] == 1
    assert router.host.wire == []


def test_pseudo_packets_among_keep_alives_are_found() -> None:
    router = natd(keep_alive=True)
    assert router.keep is not None
    router.keep.note_packets(0, router.now)
    router.bridge.write(pseudo.build(Flow(Protocol.UDP, ALICE, EN), 7, LIBALIAS_STYLE))
    router.bridge.tick(router.now)
    first, second = list(router.bridge.captured()), list(router.bridge.captured())
    assert [len(first), len(second)] == [1, 0]
    assert router.bridge.counters["keep_alive_captured"] == BURST
    assert router.bridge.counters["keep_alive_ms"] == 64 + 63 + 64, "of the first reading 63 packets in 64"
    assert router.host.wire == []


def test_the_time_they_take_is_told() -> None:
    router = natd(keep_alive=True)
    assert router.keep is not None
    router.keep.note_packets(0, router.now)
    router.bridge.tick(router.now)
    assert router.bridge.counters["keep_alive_ms"] == 64
    list(router.bridge.captured())
    assert router.bridge.counters["keep_alive_ms"] == 128
    list(router.bridge.captured())
    assert router.bridge.counters["keep_alive_ms"] == 128, "nothing of them was read"


def test_keep_alives_that_the_kernel_refuses_are_counted_and_given_up() -> None:
    router = natd(keep_alive=True)
    router.host.routes.clear()
    router.look()
    assert router.bridge.counters["unreachable"] == BURST
    router.now += 2.0
    router.bridge.tick(router.now)
    assert router.bridge.counters["unreachable"] == BURST
    assert router.bridge.counters["samples_forced"] == 0


def after_quiet(*, keep_alive: bool) -> bool:
    """natd-time.jsonl: a mapping used every second for 75 s, 1500 other packets, 2.4 s: does it still lead inside?"""
    router = natd(keep_alive=True)
    outside = router.mapping(Flow(Protocol.UDP, ALICE, EN))
    for second in range(75):
        router.host.receive("wan", packet_between(Protocol.UDP, EN, outside))
        if keep_alive and second % 10 == 0:
            router.look()
        router.now += 1.0
    for number in range(1500):
        router.host.receive("lan", packet_between(Protocol.UDP, BOB, EN._replace(port=number)))
    router.host.wire.clear()
    router.now += 2.4
    router.host.receive("wan", packet_between(Protocol.UDP, EN, outside))
    return [name for name, _ in router.host.wire] == ["lan"]


def test_a_mapping_made_through_the_bridge_lives_by_the_keep_alive() -> None:
    assert not after_quiet(keep_alive=False)
    assert after_quiet(keep_alive=True)


def test_a_broken_socket_is_not_taken_for_a_refusal() -> None:
    router = natd()
    router.bridge.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        router.bridge.write(pseudo.build(Flow(Protocol.UDP, ALICE, EN), 7, LIBALIAS_STYLE))
