"""A bench for the external node's core: a clock, a router whose part the test plays, and effects sorted by kind."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import dns.exception
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.effects import Admit, Drop, Effect, HandOver, Inject, Resumed, Save, Send, SendControl, TakeBack
from natf_bsd.en.core import EnCore
from natf_bsd.types import Address, Direction, Endpoint, Flow, Packet, format_address, parse_address
from natf_bsd.wire import auth, build, icmp, message, packet

DOMAIN = "home.example.net"


class Bench:
    """One `EnCore`. `sent` (bytes) and `put_back` (the packets), `dropped`, `told` (errors and answers of ours to
    programs), `outward` (what took the way of a program's own packets), `handed_over` and `taken_back` (the kernel's
    flows), `asked` (requests as time, router, echo)."""

    G1 = parse_address("203.0.113.10")
    G2 = parse_address("203.0.113.1")
    OTHER = parse_address("203.0.113.2")
    SERVER = Endpoint(parse_address("203.0.113.53"), 53)

    def __init__(self, config: EnConfig | None = None, **how: bool) -> None:
        self.config = replace(config or EnConfig((DOMAIN,)), resolvers=(self.SERVER.address,))
        self.core = EnCore(self.config, token=random.Random(7).randbytes, **how)
        self.now = 100.0
        self.sent: list[bytes] = []
        self.put_back: list[Packet] = []
        self.dropped: list[Packet] = []
        self.told: list[bytes] = []
        self.outward: list[bytes] = []
        self.asked: list[tuple[float, Address, icmp.Echo]] = []
        self.saved: list[dict[str, object]] = []
        self.admitted: list[tuple[bytes, ...]] = []
        self.resumed: list[bytes] = []
        self.handed_over: list[HandOver] = []
        self.taken_back: list[Flow] = []

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(sent):
                    self.sent.append(bytes(sent.data))
                    self.put_back.append(sent)
                case HandOver():
                    self.handed_over.append(effect)
                case TakeBack(flow):
                    self.taken_back.append(flow)
                case Drop(dropped):
                    self.dropped.append(dropped)
                case Inject(data, outward=True):
                    self.outward.append(data)
                case Inject(data):
                    self.told.append(data)
                case SendControl(router, data, _):
                    self.asked.append((self.now, router, icmp.decode_echo(data)))
                case Save(record):
                    self.saved.append(record)
                case Admit(routers):
                    self.admitted.append(routers)
                case Resumed(transaction):
                    self.resumed.append(transaction)
                case _:
                    raise AssertionError(f"the external node has no use for {effect}")

    def count(self, name: str) -> int:
        return self.core.counters[name]

    # What comes from outside.

    CLIENT = Endpoint(G1, 40053)

    def ask(
        self, name: str, kind: str = "A", *, ident: int = 4711, server: Endpoint = SERVER, edns: bool = False
    ) -> None:
        """A program's query goes out."""
        query = dns.message.make_query(name, kind, id=ident, use_edns=0 if edns else False).to_wire()
        self.perform(self.core.handle_dns(Packet(build.udp(self.CLIENT, server, query), Direction.OUT), self.now))
        assert self.sent.pop()[28:] == query

    def answered(self, answer: bytes, *, server: Endpoint = SERVER, interface: str = "eth0") -> bytes | None:
        """Let a DNS answer come in; returns the UDP payload that goes on to the program, None if it is dropped."""
        diverted = Packet(build.udp(server, self.CLIENT, answer), Direction.IN, interface)
        self.perform(self.core.handle_dns(diverted, self.now))
        return None if diverted in self.dropped else self.sent.pop()[28:]

    def dns(self, answer: bytes, *, interface: str = "eth0") -> bytes:
        """A query goes out, `answer` comes in; returns the UDP payload that goes on to the program."""
        with contextlib.suppress(dns.exception.DNSException):
            question = dns.message.from_wire(answer, question_only=True)
            asked = question.question[0]
            self.ask(asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype), ident=question.id)
        seen = self.answered(answer, interface=interface)
        assert seen is not None
        return seen

    def learn(self, host: str = "alice", *routers: Address, ttl: int = 60, domain: str = DOMAIN) -> Address:
        """Resolve host.domain by an answer with `routers`; returns its virtual address."""
        name = f"{host}.{domain}."
        answer = dns.message.make_response(dns.message.make_query(name, "A"))
        for router in routers or (self.G2,):  # an rrset each: dnspython shuffles the records of one
            answer.answer.append(dns.rrset.from_text(name, ttl, "IN", "A", format_address(router)))
        seen = dns.message.from_wire(self.dns(answer.to_wire()))
        return parse_address(seen.answer[0][0].address)

    def out(self, data: bytes | bytearray) -> None:
        self.perform(self.core.handle_outbound(Packet(bytearray(data), Direction.OUT), self.now))

    def come(self, data: bytes | bytearray) -> None:
        self.perform(self.core.handle_inbound(Packet(bytearray(data), Direction.IN), self.now))

    def control(self, source: Address, data: bytes) -> None:
        self.perform(self.core.handle_control(source, data, self.now))

    def hear(
        self,
        answer: Callable[[bytes], message.Message] | bytes,
        *,
        source: Address | None = None,
        request: int = -1,
        key: tuple[bytes, bytes, int] | None = None,
        ident: int | None = None,
    ) -> None:
        """The router's answer to a request of `asked`: bytes, or a message made from the transaction id."""
        _, router, echo = self.asked[request]
        data = answer if isinstance(answer, bytes) else message.encode(answer(echo.data[8:16]))
        if key:
            data = auth.sign(data, *key)
        reply = icmp.Echo(icmp.ECHO_REPLY, echo.ident if ident is None else ident, echo.sequence, data)
        self.control(source or router, icmp.encode_echo(reply))

    def map(self, port: int = 61000, lifetime: int = 60, **how: object) -> None:
        """The router makes G2:port the mapping of the last request."""
        router = self.asked[-1][1]
        self.hear(lambda ident: message.Response(ident, Endpoint(router, port), lifetime), **how)

    def refuse(self, status: message.Status = message.Status.DENIED, **how: object) -> None:
        self.hear(lambda ident: message.Refused(ident, status), **how)

    def challenge(self, cookie: bytes, **how: object) -> None:
        self.hear(lambda ident: message.CookieChallenge(ident, cookie), **how)

    def mirror(self, **how: object) -> None:
        """An ordinary host answers the last request's ping."""
        self.hear(self.asked[-1][2].data, **how)

    def wait(self, seconds: float) -> None:
        """Let time pass, with the timer at every deadline."""
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.perform(self.core.handle_timer(self.now))
        self.now = end

    # What programs send and what comes back to them.

    def syn(
        self, virtual: Address, *, s: int = 40000, d: int = 80, sequence: int = 7000, payload: bytes = b""
    ) -> bytes:
        return self.tcp(virtual, packet.TCP_SYN, s=s, d=d, sequence=sequence, payload=payload)

    def tcp(self, virtual: Address, flags: int, *, s: int = 40000, d: int = 80, **fields: object) -> bytes:
        return bytes(build.tcp(Endpoint(self.G1, s), Endpoint(virtual, d), flags=flags, **fields))

    def udp(self, virtual: Address, payload: bytes = b"hello", *, s: int = 40000, d: int = 5000) -> bytes:
        return bytes(build.udp(Endpoint(self.G1, s), Endpoint(virtual, d), payload))

    def tcp_back(self, flags: int, *, m: int = 61000, s: int = 40000, **fields: object) -> bytes:
        return bytes(build.tcp(Endpoint(self.G2, m), Endpoint(self.G1, s), flags=flags, **fields))

    def udp_back(self, payload: bytes = b"hello yourself", *, m: int = 61000, s: int = 40000) -> bytes:
        return bytes(build.udp(Endpoint(self.G2, m), Endpoint(self.G1, s), payload))

    def check_balance(self) -> None:
        """Each input's received = sent + dropped + held, or used + ignored."""
        counters = self.core.counters
        assert counters["dns.received"] == counters.total("dns.sent.") + counters.total("dns.drop.")
        leaving = counters.total("out.sent.") + counters.total("out.drop.")
        assert counters["out.received"] == leaving + len(self.core.held)
        assert counters["in.received"] == counters.total("in.sent.") + counters.total("in.drop.")
        assert counters["control.received"] == counters.total("control.used.") + counters.total("control.ignored.")


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches; afterwards the counters of each must add up."""
    made: list[Bench] = []

    def make(config: EnConfig | None = None, **how: bool) -> Bench:
        made.append(Bench(config, **how))
        return made[-1]

    yield make
    for bench in made:
        bench.check_balance()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
