"""The demo's story in memory, for machines without namespaces or jails: the same cores, a model NAT, no kernel."""

from __future__ import annotations

from collections.abc import Callable

import dns.message
import dns.rrset

from natf_bsd.config import EnConfig
from natf_bsd.lab.fabric import EN, PLAIN, ROUTER, Fabric
from natf_bsd.types import Address, Endpoint, Flow, Protocol, format_address, parse_address
from natf_bsd.wire import build, packet

_DOMAINS = ("home.example.net", "plain.example.net")


class _Story:
    """One telling: says each step and keeps what failed."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.failed: list[str] = []
        self.fabric = Fabric(en=EnConfig(_DOMAINS))
        self._say = say
        self._port = 40000

    def step(self, what: str, good: bool, seen: str) -> None:
        self._say(f"  {'ok ' if good else 'BAD'} t={self.fabric.now - 1000:6.3f} s  {what}: {seen}")
        if not good:
            self.failed.append(what)

    def resolve(self, name: str, address: Address) -> Address:
        answer = dns.message.make_response(dns.message.make_query(f"{name}.", "A"))
        answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "A", format_address(address)))
        seen = dns.message.from_wire(self.fabric.resolve(answer.to_wire()))
        return parse_address(seen.answer[0][0].address)

    def udp(self, virtual: Address, payload: bytes) -> str:
        data = build.udp(self._source(), Endpoint(virtual, 7), payload)
        return self._exchange(data)

    def tcp(self, virtual: Address) -> str:
        return self._exchange(build.tcp(self._source(), Endpoint(virtual, 80), flags=packet.TCP_SYN))

    def _source(self) -> Endpoint:
        self._port += 1
        return Endpoint(EN, self._port)

    def _exchange(self, data: bytearray) -> str:
        """Send, let two seconds pass, and say in words what came to the program."""
        self.fabric.delivered.clear()
        self.fabric.en_sends(data)
        self.fabric.run(2.0)
        return "; ".join(map(_describe, self.fabric.delivered)) or "nothing"


def _describe(data: bytes) -> str:
    flow = packet.flow_of(data)
    if flow is None:
        return f"ICMP type {data[packet.header_length(data)]} code {data[packet.header_length(data) + 1]}"
    if flow.protocol == Protocol.UDP:
        return f"{data[packet.header_length(data) + 8 :].decode(errors='replace')!r} from {flow.source}"
    flags = packet.tcp_flags(data)
    names = [name for name in ("SYN", "ACK", "RST") if flags & getattr(packet, f"TCP_{name}")]
    return f"{'+'.join(names)} from {flow.source}"


def tell(say: Callable[[str], object], reason: str) -> list[str]:
    """The story with simulated time; returns the steps that failed."""
    say(f"Running in memory, with model hosts and a model NAT (libalias): {reason}.")
    story = _Story(say)
    direct = bytearray(build.tcp(Endpoint(EN, 39999), Endpoint(ROUTER, 80), flags=packet.TCP_SYN))
    reached = story.fabric.nat.inbound(direct, story.fabric.now)
    story.step("without NAT-f a SYN to the router reaches no inside host", not reached, "no mapping")
    alice = story.resolve("alice.home.example.net", ROUTER)
    bob = story.resolve("bob.home.example.net", ROUTER)
    addresses = f"{format_address(alice)} and {format_address(bob)}"
    story.step(
        "alice and bob have virtual addresses of their own", alice != bob and alice[0] == bob[0] == 240, addresses
    )
    for name, virtual in (("alice", alice), ("bob", bob)):
        seen = story.tcp(virtual)
        story.step(f"TCP to {name}", f"SYN+ACK from {Endpoint(virtual, 80)}" == seen, seen)
        seen = story.udp(virtual, b"hello")
        story.step(f"UDP to {name}", f"'{name}: hello' from {Endpoint(virtual, 7)}" == seen, seen)
    eve = story.resolve("eve.home.example.net", ROUTER)
    seen = story.tcp(eve)
    story.step("eve refuses at once", "RST" in seen, seen)
    plain = story.resolve("www.plain.example.net", PLAIN)
    seen = story.tcp(plain)
    story.step("a plain host by the fallback", f"SYN+ACK from {Endpoint(plain, 80)}" == seen, seen)
    _path(story, say, alice)
    return story.failed


def _path(story: _Story, say: Callable[[str], object], alice: Address) -> None:
    """The addresses one packet has at every hop."""
    fabric = story.fabric
    fabric.wire_log.clear()
    host = fabric.inside[parse_address("192.168.0.2")]
    host.received.clear()
    flow = Flow(Protocol.UDP, Endpoint(EN, 41000), Endpoint(alice, 7))
    fabric.en_sends(build.udp(flow.source, flow.destination, b"path"))
    fabric.run(2.0)
    on_wire = [packet.flow_of(data) for _, data in fabric.wire_log if packet.protocol(data) == Protocol.UDP]
    say("  one datagram's way:")
    say(f"    program          {flow}")
    if on_wire and host.received:
        say(f"    public segment   {on_wire[0]}")
        say(f"    alice            {packet.flow_of(host.received[-1])}")
    story.step("the datagram arrived", bool(on_wire and host.received), "as above" if on_wire else "lost")
