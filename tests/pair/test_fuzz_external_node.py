"""A hundred thousand random and mutated datagrams to each input of the external node's core: it lives, its counters add
up, its tables stay within their bounds, and afterwards it works as before and forgets everything in time."""

from __future__ import annotations

import random
from collections import Counter, deque

import dns.flags
import dns.message
import dns.reversename
import dns.rrset
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.effects import Drop, Effect, Inject, Resumed, Save, Send, SendControl
from natf_bsd.en import report
from natf_bsd.en.core import EnCore
from natf_bsd.en.held import IN_ALL
from natf_bsd.en.negotiations import MAXIMUM_NEGOTIATIONS
from natf_bsd.keys import Key
from natf_bsd.lab.fabric import EN, ROUTER, Fabric
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Direction, Endpoint, Name, Packet, format_address, parse_address
from natf_bsd.wire import auth, build, icmp, message, packet
from tests.mutation import mutated

DATAGRAMS = 100_000
"""To each of the four inputs (issue 2)."""

KEY = Key(b"keyident", b"k" * 32)
MAXIMUM_NAMES = 60
MAXIMUM_FLOWS = 150
HOSTS = [f"host{number}" for number in range(80)]
OTHER = parse_address("203.0.113.2")
PORTS = (80, 5000)
SOURCES = range(40000, 40005)


def virtual_of(host: str) -> bytes:
    return next(VirtualAddresses().candidates(Name(host, "home.example.net")))


SERVER, CLIENT = Endpoint(parse_address("203.0.113.53"), 53), Endpoint(EN, 40053)


def query_of(answer: dns.message.Message) -> dns.message.Message:
    query = dns.message.QueryMessage(answer.id)
    query.question = answer.question
    return query


def dns_corpus() -> list[tuple[bytes, bytes]]:
    """Packets with queries and their answers: ours and not, one address and several, over a CNAME, emptied, refused,
    truncated, by TCP, and about virtual addresses."""
    found = []
    for number, host in enumerate(HOSTS):
        name = f"{host}.home.example.net."
        answer = dns.message.make_response(dns.message.make_query(name, "A", use_edns=number % 2))
        if number % 3 == 0:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "dyn.example.org."))
            name = "dyn.example.org."
        addresses = ["203.0.113.1", "203.0.113.2"][: 1 + number % 2]
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", *addresses))
        found.append(answer)
    already = dns.message.make_response(dns.message.make_query("host2.home.example.net.", "A"))
    already.answer.append(dns.rrset.from_text("host2.home.example.net.", 60, "IN", "A", "240.0.1.2"))
    found.append(already)
    rebinding = dns.message.make_response(dns.message.make_query("evil.example.org.", "A"))
    rebinding.answer.append(dns.rrset.from_text("evil.example.org.", 60, "IN", "A", "240.0.1.2"))
    found.append(rebinding)
    for kind, text in (("AAAA", "2001:db8::1"), ("TXT", "hello")):
        answer = dns.message.make_response(dns.message.make_query("host1.home.example.net.", kind))
        answer.answer.append(dns.rrset.from_text("host1.home.example.net.", 60, "IN", kind, text))
        found.append(answer)
    truncated = dns.message.make_response(dns.message.make_query("host3.home.example.net.", "A"))
    truncated.flags |= dns.flags.TC
    found.append(truncated)
    for host in HOSTS[1], "never learned":
        name = dns.reversename.from_address(format_address(virtual_of(host)))
        found.append(dns.message.make_response(dns.message.make_query(name, "PTR")))
    by_tcp = [framed(query_of(answer)) for answer in found[:2]]
    return [
        (
            bytes(build.udp(CLIENT, SERVER, query_of(answer).to_wire())),
            bytes(build.udp(SERVER, CLIENT, answer.to_wire())),
        )
        for answer in found
    ] + [
        (
            bytes(build.tcp(CLIENT, SERVER, flags=packet.TCP_ACK, payload=query)),
            bytes(build.tcp(SERVER, CLIENT, flags=packet.TCP_ACK)),
        )
        for query in by_tcp
    ]


def framed(query: dns.message.Message) -> bytes:
    data = query.to_wire()
    return len(data).to_bytes(2, "big") + data


def outbound_corpus() -> list[bytes]:
    """What programs send to virtual addresses, known and unknown."""
    found = []
    for host in [*HOSTS, "never learned"]:
        virtual = virtual_of(host)
        for s in SOURCES:
            source, service = Endpoint(EN, s), Endpoint(virtual, 80)
            datagram = build.udp(source, Endpoint(virtual, 5000), b"datagram")
            found += [datagram, build.udp(source, Endpoint(virtual, 5000), b"another", checksum=False)]
            for flags in (2, 2, 16, 17, 4, 24):
                found.append(build.tcp(source, service, flags=flags, sequence=s, payload=b"x" * (flags & 8)))
            found.append(
                build.unreachable_for(build.udp(Endpoint(virtual, 5000), source, b"answer"), code=3, source=EN)
            )
        found.append(build.icmp_echo(EN, virtual, reply=False, ident=1, sequence=1, payload=b"ping"))
    chatty = Endpoint(virtual_of(HOSTS[0]), 5000)
    found += [build.udp(Endpoint(EN, 39999), chatty, bytes([number % 256])) for number in range(len(found) // 20)]
    return [bytes(data) for data in found]


def inbound_corpus() -> list[bytes]:
    """What comes back from routers; ports 61000 to 61063 are those the fuzzed routers hand out."""
    found = []
    for m in (*range(61000, 61064), *PORTS):
        for s in SOURCES:
            mapped, program = Endpoint(ROUTER, m), Endpoint(EN, s)
            found.append(build.udp(mapped, program, b"answer"))
            for flags in (18, 16, 17, 4):
                found.append(build.tcp(mapped, program, flags=flags))
            sent = build.udp(program, mapped, b"datagram")
            found += [
                build.unreachable_for(sent, code=3, source=ROUTER),
                build.unreachable_for(sent, code=1, source=OTHER),
            ]
    fabric = Fabric(en=EnConfig(("home.example.net",)))
    relation = fabric.en.names.learn(Name("alice", "home.example.net"), [ROUTER], 3600, fabric.now)
    for s in SOURCES:
        fabric.en_sends(build.tcp(Endpoint(EN, s), Endpoint(relation.virtual, 80), flags=packet.TCP_SYN))
        fabric.en_sends(build.udp(Endpoint(EN, s), Endpoint(relation.virtual, 5000), b"hello"))
    fabric.run(2)
    return [bytes(data) for data in found] + [data for _, data in fabric.wire_log]


class Fuzzer:
    """An external node, and a hostile or broken world round it."""

    def __init__(self, seed: int, *, keyed: bool = False) -> None:
        self.rng = random.Random(seed)
        self.keyed = keyed
        config = EnConfig(
            ("home.example.net",),
            maximum_names=MAXIMUM_NAMES,
            maximum_flows=MAXIMUM_FLOWS,
            minimum_ttl=1.0,
            quarantine=2.0,
            on_silence="direct",
            keys={"home.example.net": KEY} if keyed else {},
            resolvers=(SERVER.address,),
        )
        self.core = EnCore(config, inbound_exact=not keyed, token=self.rng.randbytes)
        self.now = 1000.0
        self.requests: deque[tuple[bytes, icmp.Echo]] = deque(maxlen=64)
        self.done: Counter[type[Effect]] = Counter()
        self.out = outbound_corpus()
        self.inbound = inbound_corpus()
        self.dns = dns_corpus()

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.done[type(effect)] += 1
            if isinstance(effect, SendControl):
                self.requests.append((effect.router, icmp.decode_echo(effect.data)))

    def step(self, number: int) -> None:
        rng, now = self.rng, self.now
        self.perform(self.core.handle_dns(self.dns_packet(), now))
        self.perform(
            self.core.handle_outbound(Packet(bytearray(mutated(rng, rng.choice(self.out))), Direction.OUT), now)
        )
        self.perform(
            self.core.handle_inbound(Packet(bytearray(mutated(rng, rng.choice(self.inbound))), Direction.IN), now)
        )
        self.perform(self.core.handle_control(*self.control()[:2], now))
        self.pass_time(rng.random() * (0.004 if number % 1000 else 10.0))

    def dns_packet(self) -> Packet:
        """A query, or an answer that somebody asked for lately, or not."""
        query, answer = self.rng.choice(self.dns)
        if self.rng.random() < 0.4:
            return Packet(bytearray(mutated(self.rng, query)), Direction.OUT)
        interface = "lo" if self.rng.random() < 0.1 else "eth0"
        return Packet(bytearray(mutated(self.rng, answer)), Direction.IN, interface)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        while (due := self.core.next_deadline()) is not None and due <= self.now:
            self.perform(self.core.handle_timer(self.now))

    def control(self) -> tuple[bytes, bytes]:
        """An ICMP message: an answer to a request of late, right or spoilt, with a right checksum mostly."""
        rng = self.rng
        if not self.requests:
            return ROUTER, rng.randbytes(40)
        router, echo = self.requests[int(rng.random() ** 3 * len(self.requests))]
        data = self.answer(router, echo)
        if self.keyed and rng.random() < 0.8 and data is not echo.data:
            data = auth.sign(data, KEY.ident, KEY.secret, int(self.now * 1000))
        source = router if rng.random() < 0.95 else OTHER
        if rng.random() < 0.4:
            data = mutated(rng, data)
        ident = echo.ident if rng.random() < 0.95 else 0
        whole = icmp.encode_echo(icmp.Echo(icmp.ECHO_REPLY, ident, int(rng.random() * 7), data))
        return source, whole if rng.random() < 0.9 else mutated(rng, whole)

    def answer(self, router: bytes, echo: icmp.Echo) -> bytes:
        transaction = echo.data[8:16]
        dice = self.rng.random()
        if dice < 0.6:
            mapped = Endpoint(router if dice < 0.55 else OTHER, 61000 + int(self.rng.random() * 64))
            return message.encode(message.Response(transaction, mapped, int(self.rng.random() * 100)))
        if dice < 0.7:
            return message.encode(message.CookieChallenge(transaction, self.rng.randbytes(8)))
        if dice < 0.85:
            status = self.rng.choice(list(message.Status))
            return message.encode(message.Refused(transaction, status, "no" if dice < 0.8 else ""))
        return echo.data

    def check(self) -> None:
        """Every packet is accounted for, and no table is beyond its bound or out of step with another."""
        core, counters = self.core, self.core.counters
        assert counters["dns.received"] == counters.total("dns.sent.") + counters.total("dns.drop.")
        leaving = counters.total("out.sent.") + counters.total("out.drop.")
        assert counters["out.received"] == leaving + len(core.held)
        assert counters["in.received"] == counters.total("in.sent.") + counters.total("in.drop.")
        assert counters["control.received"] == counters.total("control.used.") + counters.total("control.ignored.")
        sent = counters.total("dns.sent.") + counters.total("out.sent.") + counters.total("in.sent.")
        assert self.done[Send] == sent
        dropped = counters.total("dns.drop.") + counters.total("out.drop.") + counters.total("in.drop.")
        assert self.done[Drop] == dropped
        assert self.done[SendControl] == counters["request.sent"]
        assert len(core.names) <= MAXIMUM_NAMES
        assert len(core.vat) <= MAXIMUM_FLOWS
        assert len(core.held) <= IN_ALL
        negotiations = list(core.negotiations())
        assert len(negotiations) <= MAXIMUM_NEGOTIATIONS
        references = Counter(entry.relation.virtual for entry in core.vat)
        assert {relation.virtual: relation.flows for relation in core.names if relation.flows} == references
        waiting = {negotiation.flow.key for negotiation in negotiations}
        assert all(core.vat.by_out(entry.out_key) is entry is core.vat.by_in(entry.in_key) for entry in core.vat)
        assert set(core.held.flows()) <= waiting
        report.tables(core, self.now, 1000)


@pytest.fixture(scope="module")
def fuzzed() -> Fuzzer:
    """The external node after all of it, checked on the way."""
    fuzzer = Fuzzer(20070)
    for number in range(DATAGRAMS):
        fuzzer.step(number)
        if number % 5000 == 0:
            fuzzer.check()
    fuzzer.check()
    return fuzzer


def test_each_input_got_its_share_and_every_packet_is_accounted_for(fuzzed: Fuzzer) -> None:
    counters = fuzzed.core.counters
    assert [counters[f"{name}.received"] for name in ("dns", "out", "in", "control")] == [DATAGRAMS] * 4
    fuzzed.check()


def test_the_fuzz_went_everywhere(fuzzed: Fuzzer) -> None:
    """A fuzz that is refused at the door tests the door alone."""
    out_of_reach = {
        "out.drop.shutdown",
        "in.sent.foreign",  # where the packet filter selects by router
        "control.ignored.unauthenticated",  # with a key
        "dns.sent.query_forgotten",  # more in ten seconds than the fuzz sends
        "flows.restored",
        "out.drop.table_full",
        "out.drop.port_taken",  # where there are two ways
        "out.drop.left_address",  # where this host's address changes
        "flows.left_address",
        "negotiation.put_off",
        "out.sent.handed_over",  # where the kernel has a way
        "out.drop.kernel",
    }
    unseen = {name for name, value in fuzzed.core.counters.snapshot().items() if not value}
    assert unseen <= out_of_reach
    assert all(fuzzed.done[kind] > 100 for kind in (Send, Drop, Inject, SendControl, Save, Resumed))


def test_with_a_key_and_a_filter_that_selects_by_router_it_lives_as_well() -> None:
    fuzzer = Fuzzer(48, keyed=True)
    for number in range(DATAGRAMS // 10):
        fuzzer.step(number)
    fuzzer.check()
    assert fuzzer.core.counters["control.ignored.unauthenticated"] > 100
    assert fuzzer.core.counters["in.sent.foreign"] > 100
    assert fuzzer.core.counters["control.used.response"] > 100
    assert fuzzer.core.counters["control.used.mirror"] == 0
    assert not any(entry.direct for entry in fuzzer.core.vat)


def test_afterwards_all_is_forgotten_in_time_and_a_new_flow_works_as_ever(fuzzed: Fuzzer) -> None:
    core = fuzzed.core
    # The end of the negotiations with one router and the next, of the longest lifetime, of the names' quarantine.
    for seconds in (10.0, 10.0, 2.0**32, 10.0):
        fuzzed.pass_time(seconds)
    assert core.idle()
    assert core.next_deadline() is None
    fuzzed.check()
    query, dns_answer = fuzzed.dns[1]
    core.handle_dns(Packet(bytearray(query), Direction.OUT), fuzzed.now)
    core.handle_dns(Packet(bytearray(dns_answer), Direction.IN), fuzzed.now)
    virtual = virtual_of("host1")
    first = Packet(build.udp(Endpoint(EN, 41000), Endpoint(virtual, 7), b"hello"), Direction.OUT)
    (request,) = core.handle_outbound(first, fuzzed.now)
    assert isinstance(request, SendControl)
    echo = icmp.decode_echo(request.data)
    answer = message.encode(message.Response(echo.data[8:16], Endpoint(request.router, 61000), 60))
    reply = icmp.encode_echo(icmp.Echo(icmp.ECHO_REPLY, echo.ident, echo.sequence, answer))
    effects = core.handle_control(request.router, reply, fuzzed.now)
    assert any(isinstance(effect, Send) and effect.packet is first for effect in effects)
    assert packet.destination(first.data) == request.router
