"""A hundred thousand random and mutated datagrams to each input of the router's core: it lives, its counters add up,
what waits at its NAT is bounded, no answer is longer than its request, and afterwards it works as before."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.effects import Drop, Effect, Inject, Send, WritePseudo
from natf_bsd.keys import Key
from natf_bsd.lab.fabric import ACT_TEXT, EN, ROUTER, Fabric
from natf_bsd.natd_bridge import pseudo
from natf_bsd.router.core import RouterCore
from natf_bsd.router.rates import BURST_SECONDS
from natf_bsd.tables import act
from natf_bsd.types import Direction, Endpoint, Flow, Name, Packet, Protocol, parse_address
from natf_bsd.wire import auth, build, icmp, message, packet
from tests.mutation import mutated

DATAGRAMS = 100_000
"""To each of the two inputs (issue 2)."""

MAXIMUM_PENDING = 12
KEY = Key(b"keyident", b"k" * 32)
VIRTUAL = parse_address("240.0.1.2")
SOURCES = [EN, parse_address("198.51.100.9"), ROUTER, parse_address("127.0.0.1"), parse_address("240.9.9.9")]


def request_corpus() -> list[bytes]:
    """Messages, unpadded: every host, both protocols, odd ports, signed and not, all other types."""
    found = []
    for host in ("alice", "bob", "eve", "mallory", "x" * 63):
        for protocol, port in ((6, 80), (17, 5000), (6, 0), (1, 8)):
            for s in (40000, 40001):
                flow = Flow(protocol, Endpoint(EN, s), Endpoint(VIRTUAL, port))
                found.append(message.encode(message.Request(b"\0" * 8, flow, Name(host, "home.example.net"))))
    found += [
        message.encode(message.Response(bytes(8), Endpoint(ROUTER, 61000), 60)),
        message.encode(message.CookieChallenge(bytes(8), b"cookie")),
        message.encode(message.Refused(bytes(8), message.Status.DENIED, "no")),
        b"NATf\x02\x01\x00\x10" + bytes(8),
        b"a ping of somebody's",
    ]
    return found


def fabric_corpus() -> list[bytes]:
    """Whole packets of a real exchange on the wire."""
    fabric = Fabric(en=EnConfig(("home.example.net",)), router=RouterConfig(cookies="always"))
    relation = fabric.en.names.learn(Name("alice", "home.example.net"), [ROUTER], 3600, fabric.now)
    for s in range(20):
        source = Endpoint(EN, 40000 + s)
        fabric.en_sends(build.tcp(source, Endpoint(relation.virtual, 80), flags=packet.TCP_SYN))
        fabric.en_sends(build.udp(source, Endpoint(relation.virtual, 5000), b"hello"))
    fabric.run(2)
    assert len(fabric.en.vat) == 40
    return [data for _, data in fabric.wire_log]


class Fuzzer:
    """A router, hostile external nodes before it, and a NAT behind it that loses and invents."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        config = RouterConfig(
            keys=(KEY,), tell_unknown=True, cookie_rate=100, maximum_pending=MAXIMUM_PENDING, source_rate=10
        )
        lifetimes = {Protocol.TCP: 86400, Protocol.UDP: 60}
        self.core = RouterCore(
            config,
            act.parse(ACT_TEXT, "act"),
            pseudo.LIBALIAS_STYLE,
            lambda protocol: lifetimes[protocol],
            token=self.rng.randbytes,
        )
        self.now = 1000.0
        self.written: deque[bytes] = deque(maxlen=30)
        self.challenges: deque[bytes] = deque(maxlen=30)
        self.done: Counter[type[Effect]] = Counter()
        self.longest = 0
        self.messages = request_corpus()
        self.packets = fabric_corpus()

    def perform(self, effects: list[Effect], asked: int | None = None) -> None:
        """`asked`: length of the request these effects answer at once."""
        for effect in effects:
            self.done[type(effect)] += 1
            if isinstance(effect, WritePseudo):
                self.written.append(effect.data)
            elif isinstance(effect, Inject):
                assert asked is None or len(effect.data) <= asked
                self.longest = max(self.longest, len(effect.data))
                if isinstance(heard := message.decode(effect.data[28:]), message.CookieChallenge):
                    self.challenges.append(heard.transaction + heard.cookie)

    def step(self, number: int) -> None:
        data = self.request()
        self.perform(self.core.handle_request(Packet(bytearray(data), Direction.IN), self.now), len(data))
        self.perform(self.core.handle_captured(self.captured(), self.now))
        self.pass_time(self.rng.random() * (0.004 if number % 1000 else 5.0))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        while (due := self.core.next_deadline()) is not None and due <= self.now:
            self.perform(self.core.handle_timer(self.now))

    def request(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.15:
            return mutated(rng, rng.choice(self.packets))
        data = bytearray(rng.choice(self.messages))
        data[8:16] = rng.randbytes(8)
        if rng.random() < 0.15 and self.challenges:
            data = self.with_cookie(rng.choice(self.challenges))
        if rng.random() < 0.1 and data[4:6] == b"\x01\x01":
            at = int((self.now + rng.choice((0, 0, 0, 200))) * 1000)
            data = bytearray(auth.sign(bytes(data), KEY.ident, KEY.secret, at))
        message_data = mutated(rng, bytes(data)) if rng.random() < 0.5 else bytes(data)
        kind = icmp.ECHO_REQUEST if rng.random() < 0.97 else icmp.ECHO_REPLY
        body = icmp.encode_echo(icmp.Echo(kind, 1, 1, message.pad(message_data, 128 if rng.random() < 0.95 else 0)))
        source = EN if rng.random() < 0.9 else rng.choice(SOURCES)
        whole = bytes(build.ipv4(Protocol.ICMP, source, ROUTER, body))
        return whole if rng.random() < 0.9 else mutated(rng, whole)

    @staticmethod
    def with_cookie(challenge: bytes) -> bytearray:
        flow = Flow(6, Endpoint(EN, 40000), Endpoint(VIRTUAL, 80))
        name = Name("alice", "home.example.net")
        return bytearray(message.encode(message.Request(challenge[:8], flow, name, challenge[8:])))

    def captured(self) -> bytes:
        """A pseudo-packet translated, as it was, or spoilt."""
        rng = self.rng
        if not self.written or rng.random() < 0.1:
            return mutated(rng, rng.choice(self.packets))
        data = bytearray(self.written[int(rng.random() * len(self.written))])
        flow = packet.flow_of(data)
        if flow is not None and rng.random() < 0.9:
            outside = ROUTER if rng.random() < 0.9 else rng.choice(SOURCES)
            packet.Rewrite(source=(flow.source, Endpoint(outside, 61000))).apply(data)
        return bytes(data) if rng.random() < 0.3 else mutated(rng, bytes(data))

    def check(self) -> None:
        core, counters = self.core, self.core.counters
        ended = counters["request.passed"] + counters.total("request.answered.") + counters.total("request.drop.")
        assert counters["request.received"] == ended + counters["request.accepted"]
        done = counters["mapping.made"] + counters.total("mapping.failed.")
        assert counters["request.accepted"] == done + core.pending
        again = counters["pseudo.retried"] + counters["pseudo.renumbered"]
        assert counters["pseudo.written"] == counters["request.accepted"] + again
        assert core.pending <= MAXIMUM_PENDING
        assert self.done[Send] == counters["request.passed"]
        assert self.done[Send] + self.done[Drop] == counters["request.received"]
        assert self.done[WritePseudo] == counters["pseudo.written"]
        assert self.done[Inject] == counters.total("request.answered.") + done


@pytest.fixture(scope="module")
def fuzzed() -> Fuzzer:
    """The router after all of it, checked on the way."""
    fuzzer = Fuzzer(4812)
    for number in range(DATAGRAMS):
        fuzzer.step(number)
        if number % 5000 == 0:
            fuzzer.check()
    fuzzer.check()
    return fuzzer


def test_each_input_got_its_share_and_every_request_is_accounted_for(fuzzed: Fuzzer) -> None:
    counters = fuzzed.core.counters
    assert counters["request.received"] == DATAGRAMS
    taken = counters["mapping.made"] + counters.total("mapping.failed.") - counters["mapping.failed.no_answer"]
    taken += counters["pseudo.renumbered"]
    assert taken + counters["captured.foreign"] + counters["captured.late"] == DATAGRAMS
    fuzzed.check()


def test_the_fuzz_went_everywhere(fuzzed: Fuzzer) -> None:
    """A fuzz that is refused at the door tests the door alone."""
    unseen = {name for name, value in fuzzed.core.counters.snapshot().items() if not value}
    assert unseen <= {"request.answered.key_required"}  # where a key is required
    assert all(fuzzed.done[kind] > 100 for kind in (Send, Drop, Inject, WritePseudo))


def test_no_answer_is_longer_than_the_shortest_request(fuzzed: Fuzzer) -> None:
    assert fuzzed.longest <= 28 + message.REQUEST_MINIMUM


def test_afterwards_all_is_forgotten_and_a_request_answered_as_ever(fuzzed: Fuzzer) -> None:
    core = fuzzed.core
    fuzzed.pass_time(1.0)  # each is tried once more, and then given up
    fuzzed.pass_time(1.0)
    fuzzed.pass_time(BURST_SECONDS)  # and no source has anything held against it
    assert (core.pending, core.next_deadline()) == (0, None)
    fuzzed.check()
    flow = Flow(Protocol.UDP, Endpoint(EN, 41000), Endpoint(VIRTUAL, 5000))
    request = message.encode(message.Request(b"finally!", flow, Name("bob", "home.example.net")))
    whole = build.icmp_echo(EN, ROUTER, reply=False, ident=1, sequence=1, payload=message.pad(request))
    dropped, written = core.handle_request(Packet(whole, Direction.IN), fuzzed.now)
    assert isinstance(dropped, Drop)
    assert isinstance(written, WritePseudo)
    translated = bytearray(written.data)
    packet.Rewrite(source=(packet.flow_of(translated).source, Endpoint(ROUTER, 61000))).apply(translated)
    (answer,) = core.handle_captured(bytes(translated), fuzzed.now)
    assert message.decode(answer.data[28:]) == message.Response(b"finally!", Endpoint(ROUTER, 61000), 60)
