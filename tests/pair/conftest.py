"""Both cores over the in-memory fabric, with programs on the external node that retransmit as real ones do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import dns.message
import dns.rrset
import pytest

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.en.core import EnCore
from natf_bsd.lab.fabric import EN, PLAIN, ROUTER, Fabric
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.memory import MemoryBridge, NatModel
from natf_bsd.router.core import RouterCore
from natf_bsd.types import Address, Endpoint, Flow, Protocol, format_address, parse_address
from natf_bsd.wire import build, packet

DOMAINS = ("home.example.net", "plain.example.net", "silent.example.net")
INSIDE = parse_address("192.168.0.0")[:2]

_RESENT_AFTER = (1.0, 3.0, 7.0, *(float(second) for second in range(10, 60, 3)))
"""Seconds after its first packet at which a patient program sends it again, at first as TCP does (RFC 6298)."""


class Program:
    """One flow: sends until it hears an answer or an error. `outcome` is "answered", "refused" or "unreachable"."""

    def __init__(self, world: World, host: str, flow: Flow) -> None:
        self.host = host
        self.flow = flow
        self.outcome: str | None = None
        self.outcome_after: float | None = None
        self.answers: list[bytes] = []
        self._world = world
        self._began = world.fabric.now
        self._resend = [self._began + delay for delay in _RESENT_AFTER]

    def begin(self) -> None:
        self.send(b"hello")

    def send(self, payload: bytes, *, established: bool = False) -> None:
        source, destination = self.flow.source, self.flow.destination
        if self.flow.protocol == Protocol.UDP:
            data = build.udp(source, destination, payload)
        elif established:
            data = build.tcp(source, destination, flags=packet.TCP_ACK, sequence=1, acknowledgement=1, payload=payload)
        else:
            data = build.tcp(source, destination, flags=packet.TCP_SYN)
        self._world.fabric.en_sends(data)

    def tick(self, now: float) -> None:
        if self.outcome is None and self._resend and now >= self._resend[0]:
            self._resend.pop(0)
            self.begin()

    def hear(self, data: bytes) -> None:
        """A packet for this program's socket."""
        if packet.protocol(data) == Protocol.ICMP:
            code = data[packet.header_length(data) + 1]
            self._end("refused" if code == 3 else "unreachable")
        elif self.flow.protocol == Protocol.TCP and packet.tcp_flags(data) & packet.TCP_RST:
            self._end("refused")
        else:
            self.answers.append(data[packet.header_length(data) + (8 if self.flow.protocol == Protocol.UDP else 20) :])
            self._end("answered")

    def _end(self, outcome: str) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.outcome_after = self._world.fabric.now - self._began


class World:
    """A fabric, its programs, and the promises that hold in every story."""

    def __init__(self, *, en: EnConfig | None = None, **how: object) -> None:
        self.en_config = en or EnConfig(DOMAINS)
        self.router_config: RouterConfig = how.get("router") or RouterConfig()  # type: ignore[assignment]
        self.fabric = Fabric(en=self.en_config, **how)
        self.programs: dict[bytes, Program] = {}
        self._heard = 0
        self._port = 20000

    def learn(self, host: str = "alice", domain: str = "home.example.net", address: Address = ROUTER) -> Address:
        name = f"{host}.{domain}."
        answer = dns.message.make_response(dns.message.make_query(name, "A"))
        answer.answer.append(dns.rrset.from_text(name, 3600, "IN", "A", format_address(address)))
        seen = dns.message.from_wire(self.fabric.resolve(answer.to_wire()))
        return parse_address(seen.answer[0][0].address)

    def program(self, host: str, virtual: Address, *, udp: bool = False, port: int | None = None) -> Program:
        """Start a program that talks to `virtual`; it has a source port of its own."""
        self._port += 1
        protocol, service = (Protocol.UDP, 5000) if udp else (Protocol.TCP, 80)
        flow = Flow(protocol, Endpoint(EN, self._port), Endpoint(virtual, port or service))
        program = self.programs[flow.key] = Program(self, host, flow)
        program.begin()
        return program

    def run(self, seconds: float) -> None:
        """Let time pass: the fabric's events, and the programs' retransmissions."""
        end = self.fabric.now + seconds
        while self.fabric.now < end:
            self.fabric.run(min(0.05, end - self.fabric.now))
            self._deliver()
            for program in self.programs.values():
                program.tick(self.fabric.now)
        self._deliver()

    def _deliver(self) -> None:
        delivered = self.fabric.delivered
        for data in delivered[self._heard :]:
            flow = packet.quoted_flow(data) or packet.flow_of(data)
            key = flow.key if packet.protocol(data) == Protocol.ICMP else flow.reversed().key
            self.programs[key].hear(data)
        self._heard = len(delivered)

    def restart_router(self, nat: NatModel | None = None) -> None:
        """A new router daemon; with `nat` the whole router was rebooted and its mappings are gone."""
        fabric = self.fabric
        if nat is not None:
            fabric.nat = nat
            fabric.bridge = MemoryBridge(nat, lambda: fabric.now)
        self.account()
        fabric.router = RouterCore(self.router_config, fabric.router.act, fabric.bridge.style, fabric.bridge.lifetime)

    def restart_en(self) -> None:
        """A new external node's daemon with what the journal of the old one kept (ops/journal.py), by way of JSON."""
        self.account()
        living: dict[object, dict[str, object]] = {}
        for record in self.fabric.saved:
            living.pop(record["id"], None)
            if not record.get("gone"):
                living[record["id"]] = json.loads(json.dumps(record))
        self.fabric._perform_en(self.fabric.en.shutdown(), None)
        self.fabric.en = EnCore(replace(self.en_config, resolvers=(PLAIN,)))
        assert self.fabric.en.restore(list(living.values()), self.fabric.now) == []

    def account(self) -> None:
        """Both cores' counters add up."""
        counters, held = self.fabric.en.counters, len(self.fabric.en.held)
        assert counters["dns.received"] == counters.total("dns.sent.") + counters.total("dns.drop.")
        assert counters["out.received"] == counters.total("out.sent.") + counters.total("out.drop.") + held
        assert counters["in.received"] == counters.total("in.sent.") + counters.total("in.drop.")
        assert counters["control.received"] == counters.total("control.used.") + counters.total("control.ignored.")
        counters = self.fabric.router.counters
        ended = counters["request.passed"] + counters.total("request.answered.") + counters.total("request.drop.")
        assert counters["request.received"] == ended + counters["request.accepted"]
        done = counters["mapping.made"] + counters.total("mapping.failed.") + self.fabric.router.pending
        assert counters["request.accepted"] == done

    def check(self) -> None:
        """What must hold whatever happened: no pseudo-packet, private or virtual address on the wire, counters true."""
        for when, data in self.fabric.wire_log:
            about = f"{data.hex()} at {when}"
            assert pseudo.parse_captured(data) is None, about
            assert int.from_bytes(data[4:6], "big") != pseudo.PSEUDO_IDENT, about
            for address in (packet.source(data), packet.destination(data)):
                assert address[:2] != INSIDE, about
                assert address[0] != 240, about
        for program in self.programs.values():
            for answer in program.answers:
                assert answer in (b"", program.host.encode() + b": hello"), "an answer of somebody else"
        self.account()

    def undecided(self, since: float) -> list[Program]:
        """Programs started at `since` or before whose first packet was neither passed on nor answered by an error."""
        waiting = {negotiation.flow.key for negotiation in self.fabric.en.negotiations() if not negotiation.renewal}
        return [
            program
            for key, program in self.programs.items()
            if program._began <= since
            and (key in waiting or (program.outcome is None and self.fabric.en.vat.by_out(key) is None))
        ]


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Makes worlds; afterwards each one's promises are checked."""
    made: list[World] = []

    def make(**how: object) -> World:
        made.append(World(**how))
        return made[-1]

    yield make
    for world in made:
        world.check()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture(scope="session")
def world_class() -> type[World]:
    """For properties, whose every example needs a world of its own."""
    return World
