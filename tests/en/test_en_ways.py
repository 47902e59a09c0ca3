"""Programs of the host and inside hosts, each by a way of its own: packets go on by the one they came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natf_bsd.config import EnConfig
from natf_bsd.divert import Divert
from natf_bsd.divert.memory import MemoryBackend
from natf_bsd.en.core import EnCore
from natf_bsd.en.node import EnNode
from natf_bsd.platforms import EnPorts, EnSide, Way
from natf_bsd.types import Address, Direction, Endpoint, Flow, Name, Protocol, parse_address
from natf_bsd.wire import build, icmp, message, packet

G1, G2 = parse_address("203.0.113.1"), parse_address("203.0.113.2")
UNREACHABLE = 3
OWN, INSIDE = Endpoint(G1, 40000), Endpoint(G1, 2000)


class Written:
    """An injector that keeps what it is given."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.data.append(data)

    @property
    def counters(self) -> dict[str, int]:
        return {"sent": len(self.data)}


class Control:
    """The control channel: requests out, and the answers that wait."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answers: list[tuple[Address, bytes]] = []
        self.counters: dict[str, int] = {}

    def fileno(self) -> int:
        return -1

    def send(self, router: Address, message: bytes) -> None:
        self.requests.append(message)

    def waiting(self, limit: int = 64) -> list[tuple[Address, bytes]]:
        found, self.answers = self.answers, []
        return found


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.backends = {name: MemoryBackend() for name in ("dns", "own.out", "own.in", "inside.out", "inside.in")}
        handles = {name: Divert(0, backend=backend) for name, backend in self.backends.items()}
        self.errors = {"own": Written(), "inside": Written()}
        self.control = Control()
        own, inside = (
            Way(handles[f"{name}.out"], handles[f"{name}.in"], self.errors[name]) for name in ("own", "inside")
        )
        core = EnCore(EnConfig(("home2.example.net",)))
        self.ports = EnPorts((handles["dns"],), own, Written(), self.control, inside)
        self.node = EnNode(core, NoSide(), self.ports, lambda record: None, now=lambda: self.now)
        self.virtual = Endpoint(core.names.learn(Name("carol", "home2.example.net"), (G2,), 60, self.now).virtual, 80)

    def read(self) -> None:
        for source, read in self.node.readers():
            if source is not self.control:
                read()

    def answer(self, reply: message.Response | message.Refused) -> None:
        asked = icmp.decode_echo(self.control.requests[-1])
        echo = icmp.Echo(icmp.ECHO_REPLY, asked.ident, asked.sequence, message.encode(reply))
        self.control.answers.append((G2, icmp.encode_echo(echo)))
        for source, read in self.node.readers():
            if source is self.control:
                read()

    def request(self) -> message.Request:
        found = message.decode(icmp.decode_echo(self.control.requests[-1]).data)
        assert isinstance(found, message.Request)
        return found

    def close(self) -> None:
        for backend in self.backends.values():
            backend.close()


class NoSide(EnSide):
    def admit(self, routers: object) -> None:
        return


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def syn(source: Endpoint, destination: Endpoint) -> bytearray:
    return build.tcp(source, destination, flags=packet.TCP_SYN, sequence=1)


@pytest.mark.parametrize(("way", "other", "source"), [("own", "inside", OWN), ("inside", "own", INSIDE)])
def test_a_held_packet_goes_on_by_the_way_it_came(bench: Bench, way: str, other: str, source: Endpoint) -> None:
    bench.backends[f"{way}.out"].feed(syn(source, bench.virtual), Direction.OUT)
    bench.read()
    request = bench.request()
    bench.answer(message.Response(request.transaction, Endpoint(G2, 61000), 60))
    [sent] = bench.backends[f"{way}.out"].sent
    assert packet.flow_of(sent.data) == Flow(Protocol.TCP, source, Endpoint(G2, 61000))
    assert bench.backends[f"{other}.out"].sent == []


def test_an_answer_goes_on_by_the_way_it_came(bench: Bench) -> None:
    for name, source, port in (("own", OWN, 61000), ("inside", INSIDE, 61001)):
        bench.backends[f"{name}.out"].feed(syn(source, bench.virtual), Direction.OUT)
        bench.read()
        bench.answer(message.Response(bench.request().transaction, Endpoint(G2, port), 60))
        reply = build.tcp(Endpoint(G2, port), source, flags=packet.TCP_SYN | packet.TCP_ACK, sequence=9)
        bench.backends[f"{name}.in"].feed(reply, Direction.IN)
        bench.read()
        [sent] = bench.backends[f"{name}.in"].sent
        assert packet.flow_of(sent.data) == Flow(Protocol.TCP, bench.virtual, source)


@pytest.mark.parametrize(("way", "other", "source"), [("own", "inside", OWN), ("inside", "own", INSIDE)])
def test_a_refusal_goes_to_whoever_asked(bench: Bench, way: str, other: str, source: Endpoint) -> None:
    bench.backends[f"{way}.out"].feed(syn(source, bench.virtual), Direction.OUT)
    bench.read()
    bench.answer(message.Refused(bench.request().transaction, message.Status.DENIED))
    [reset] = bench.errors[way].data
    assert packet.flow_of(reset) == Flow(Protocol.TCP, bench.virtual, source)
    assert bench.errors[other].data == []
    assert len(bench.backends[f"{way}.out"].dropped) == 1


@pytest.mark.parametrize(("way", "other"), [("own", "inside"), ("inside", "own")])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_same_flow_by_the_other_way_is_refused_and_never_mixed(
    bench: Bench, way: str, other: str, mapped: bool
) -> None:
    def answer() -> None:
        bench.answer(message.Response(bench.request().transaction, Endpoint(G2, 61000), 60))

    bench.backends[f"{way}.out"].feed(syn(OWN, bench.virtual), Direction.OUT)
    bench.read()
    if mapped:
        answer()
    bench.backends[f"{other}.out"].feed(syn(OWN, bench.virtual), Direction.OUT)
    bench.read()
    if not mapped:
        answer()
    assert bench.node.core.counters["out.drop.port_taken"] == 1
    assert [(packet.protocol(data), data[20]) for data in bench.errors[other].data] == [(Protocol.ICMP, UNREACHABLE)]
    assert bench.errors[way].data == []
    assert bench.backends[f"{other}.out"].sent == []
    assert len(bench.backends[f"{way}.out"].sent) == 1


def test_silence_is_told_to_whoever_asked(bench: Bench) -> None:
    bench.backends["inside.out"].feed(syn(INSIDE, bench.virtual), Direction.OUT)
    bench.read()
    bench.node.tick(bench.now + 10)
    while bench.errors["inside"].data == [] and (due := bench.node.core.next_deadline()) is not None:
        bench.node.tick(due)
    assert packet.destination(bench.errors["inside"].data[0]) == G1
    assert bench.errors["own"].data == []


def test_each_way_has_its_counters(bench: Bench) -> None:
    names = ["dns", "out", "in", "injector", "outward", "inside_out", "inside_in", "inside_injector", "control"]
    assert list(bench.node.counters) == names
