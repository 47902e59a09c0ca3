"""A bench for the router's core: requests of an external node, a NAT whose part the test plays, and the answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from natf_bsd.config import RouterConfig
from natf_bsd.effects import Drop, Effect, ForgetMapping, Inject, Send, WritePseudo
from natf_bsd.natd_bridge import pseudo
from natf_bsd.router.core import RouterCore
from natf_bsd.tables import act
from natf_bsd.types import Address, Direction, Endpoint, Flow, Name, Packet, Protocol, parse_address
from natf_bsd.wire import auth, build, icmp, message, packet

ACT = """\
alice  192.168.0.2  allow
bob    192.168.0.3  allow  tcp/80,443 udp/5000-5010
eve    192.168.0.4  deny
"""
LIFETIMES = {Protocol.TCP: 86400, Protocol.UDP: 60}


class Bench:
    """One `RouterCore`. `passed` (pings given back), `dropped`, `written` (pseudo-packets), `answers` (replies),
    `forgotten` (flows)."""

    G1 = parse_address("203.0.113.10")
    G2 = parse_address("203.0.113.1")
    ALICE = parse_address("192.168.0.2")
    BOB = parse_address("192.168.0.3")

    def __init__(self, config: RouterConfig, table: str, style: pseudo.PseudoStyle, seed: int) -> None:
        self.random = random.Random(seed)
        self.token = self.random.randbytes
        self.core = RouterCore(
            config,
            act.parse(table, "act"),
            style,
            lambda number: LIFETIMES[number],
            token=lambda size: self.token(size),
        )
        self.now = 100.0
        self.passed: list[Packet] = []
        self.dropped: list[Packet] = []
        self.written: list[bytes] = []
        self.forgotten: list[Flow] = []
        self.answers: list[icmp.Echo] = []
        self.requests: dict[tuple[int, int], int] = {}
        """Length of the whole packet of each request, by identifier and sequence."""

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(given_back):
                    self.passed.append(given_back)
                case Drop(dropped):
                    self.dropped.append(dropped)
                case WritePseudo(data):
                    self.written.append(data)
                case ForgetMapping(inside, _):
                    self.forgotten.append(inside)
                case Inject(data, transaction):
                    self._answered(data, transaction)
                case _:
                    raise AssertionError(f"the router has no use for {effect}")

    def _answered(self, data: bytes, transaction: bytes | None) -> None:
        source, _, echo = icmp.decode_echo_packet(data)
        assert (source, echo.type) == (self.G2, icmp.ECHO_REPLY)
        assert len(data) <= self.requests[echo.ident, echo.sequence], "a reply longer than its request"
        assert transaction == echo.data[8:16]
        self.answers.append(echo)

    def count(self, name: str) -> int:
        return self.core.counters[name]

    @property
    def heard(self) -> message.Message:
        """The last answer."""
        return message.decode(self.answers[-1].data)

    def request(
        self,
        host: str = "alice",
        *,
        transaction: bytes | None = None,
        s: int = 40000,
        d: int = 80,
        protocol: int = Protocol.TCP,
        g1: Address | None = None,
        cookie: bytes = b"",
        established: bool = False,
    ) -> message.Request:
        flow = Flow(protocol, Endpoint(g1 or self.G1, s), Endpoint(parse_address("240.0.1.2"), d))
        name = Name(host, "home.example.net")
        return message.Request(transaction or self.random.randbytes(8), flow, name, cookie, established)

    def ask(self, host: str = "alice", **fields: object) -> message.Request:
        """Send a request, padded as it has to be, and let the core do what it does."""
        request = self.request(host, **fields)
        self.send(message.encode(request))
        return request

    def ask_signed(
        self, key: tuple[bytes, bytes], host: str = "alice", at: float | None = None, **fields: object
    ) -> None:
        data = message.encode(self.request(host, **fields))
        self.send(auth.sign(data, *key, int((self.now if at is None else at) * 1000)))

    def send(
        self, data: bytes, *, source: Address | None = None, destination: Address | None = None, pad: int = 128
    ) -> None:
        """An echo request with `data`, zero bytes behind it up to `pad`."""
        ident, sequence = 77, len(self.requests)
        whole = build.icmp_echo(
            source or self.G1,
            destination or self.G2,
            reply=False,
            ident=ident,
            sequence=sequence,
            payload=message.pad(data, pad),
        )
        self.requests[ident, sequence] = len(whole)
        self.handle(whole)

    def handle(self, whole: bytes | bytearray) -> None:
        self.perform(self.core.handle_request(Packet(bytearray(whole), Direction.IN), self.now))

    def capture(self, data: bytes) -> None:
        self.perform(self.core.handle_captured(data, self.now))

    def translate(self, port: int = 61000, number: int = -1) -> None:
        """The NAT gives a written pseudo-packet back as G2:port -> G1:s."""
        data = bytearray(self.written[number])
        flow = packet.flow_of(data)
        packet.Rewrite(source=(flow.source, Endpoint(self.G2, port))).apply(data)
        data[8] = pseudo.CAPTURED_TTL
        self.capture(bytes(data))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.perform(self.core.handle_timer(self.now))
        self.now = end

    def check_balance(self) -> None:
        """Every request is answered, passed on, dropped or given to the NAT, and every one at the NAT ends."""
        counters = self.core.counters
        done = counters["request.passed"] + counters.total("request.answered.") + counters.total("request.drop.")
        assert counters["request.received"] == done + counters["request.accepted"]
        ended = counters["mapping.made"] + counters.total("mapping.failed.")
        assert counters["request.accepted"] == ended + self.core.pending
        again = counters["pseudo.retried"] + counters["pseudo.renumbered"]
        assert counters["pseudo.written"] == counters["request.accepted"] + again
        assert len(self.written) == counters["pseudo.written"]
        assert len(self.answers) == counters.total("request.answered.") + ended
        assert len(self.passed) + len(self.dropped) == counters["request.received"]


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches; afterwards the counters of each must add up."""
    made: list[Bench] = []

    def make(
        table: str = ACT, *, style: pseudo.PseudoStyle = pseudo.LIBALIAS_STYLE, seed: int = 5, **config: object
    ) -> Bench:
        made.append(Bench(RouterConfig(**config), table, style, seed))
        return made[-1]

    yield make
    for bench in made:
        bench.check_balance()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
