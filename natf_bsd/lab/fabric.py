"""The paper's figure 1 in memory: cores, a model NAT and small hosts on a wire that loses, repeats and reorders.

Time is simulated: `run` takes the next event, whatever hour that is. Tests use it to meet the cores with a bad
network in milliseconds, and `natf demo` where no lab can be made.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.dns.question import read_question
from natf_bsd.effects import Drop, Effect, ForgetMapping, Inject, Save, Send, SendControl, WritePseudo
from natf_bsd.en.core import EnCore
from natf_bsd.errors import WireError
from natf_bsd.lab.link import GOOD, Link
from natf_bsd.natd_bridge.memory import LibaliasNat, MemoryBridge, NatModel
from natf_bsd.router.core import RouterCore
from natf_bsd.tables.act import AccessTable
from natf_bsd.tables.act import parse as parse_act
from natf_bsd.types import Address, Direction, Endpoint, Flow, Packet, Protocol, format_address, parse_address
from natf_bsd.wire import build, icmp, packet

EN = parse_address("203.0.113.10")
ROUTER = parse_address("203.0.113.1")
PLAIN = parse_address("203.0.113.80")
SILENT = parse_address("203.0.113.81")
ALICE = parse_address("192.168.0.2")
BOB = parse_address("192.168.0.3")
EVE = parse_address("192.168.0.4")

ACT_TEXT = """\
alice  192.168.0.2  allow
bob    192.168.0.3  allow
eve    192.168.0.4  deny
"""


class EchoHost:
    """A host that answers: UDP datagrams come back behind the host's name, TCP connections open, echo and close,
    pings are mirrored.

    `accepts` limits the ports that are open; the others answer with a RST or a port unreachable.
    """

    def __init__(
        self, name: str, address: Address, *, pings: bool = True, accepts: Sequence[int] | None = None
    ) -> None:
        self.name = name
        self.address = address
        self.received: list[bytes] = []
        self._pings = pings
        self._accepts = accepts

    def receive(self, data: bytearray) -> list[bytes]:
        """The packets this host answers `data` with."""
        self.received.append(bytes(data))
        flow = packet.flow_of(data)
        if flow is None:
            return self._pong(data)
        if self._accepts is not None and flow.destination.port not in self._accepts:
            return self._closed(data, flow)
        if flow.protocol == Protocol.UDP:
            payload = bytes(data[packet.header_length(data) + 8 :])
            return [bytes(build.udp(flow.destination, flow.source, self.name.encode() + b": " + payload))]
        return self._tcp(data, flow)

    def _pong(self, data: bytearray) -> list[bytes]:
        try:
            source, destination, echo = icmp.decode_echo_packet(bytes(data))
        except WireError:
            return []
        if not self._pings or echo.type != icmp.ECHO_REQUEST:
            return []
        return [
            bytes(
                build.icmp_echo(
                    destination, source, reply=True, ident=echo.ident, sequence=echo.sequence, payload=echo.data
                )
            )
        ]

    def _closed(self, data: bytearray, flow: Flow) -> list[bytes]:
        if flow.protocol == Protocol.TCP:
            reset = build.reset_for(data)
            return [bytes(reset)] if reset is not None else []
        return [bytes(build.unreachable_for(data, code=3, source=self.address))]

    def _tcp(self, data: bytearray, flow: Flow) -> list[bytes]:
        """Enough of TCP for a NAT and a translation table to see all of a connection's life."""
        flags = packet.tcp_flags(data)
        start = packet.header_length(data)
        payload = bytes(data[start + (data[start + 12] >> 4) * 4 :])
        sequence = packet.tcp_sequence(data)
        if flags & packet.TCP_RST:
            return []
        if flags & packet.TCP_SYN:
            answer = packet.TCP_SYN | packet.TCP_ACK
            return [self._segment(flow, answer, 1000, sequence + 1)]
        if flags & packet.TCP_FIN:
            return [self._segment(flow, packet.TCP_FIN | packet.TCP_ACK, 1001, sequence + 1)]
        if payload:
            return [
                self._segment(flow, packet.TCP_ACK, 1001, sequence + len(payload), self.name.encode() + b": " + payload)
            ]
        return []

    @staticmethod
    def _segment(flow: Flow, flags: int, sequence: int, acknowledgement: int, payload: bytes = b"") -> bytes:
        return bytes(
            build.tcp(
                flow.destination,
                flow.source,
                flags=flags,
                sequence=sequence,
                acknowledgement=acknowledgement & 0xFFFFFFFF,
                payload=payload,
            )
        )


class Fabric:
    """External node, wire, router with its NAT, inside hosts, and two plain hosts (one of them deaf to pings).

    `en_sends` is what a program on the external node sends; `delivered` what reached its sockets; `wire_log`
    every packet that came out of the wire as (time, packet). `router_up` False is a router without our daemon: an
    ordinary one that mirrors pings. `router_refuses`: whether closed ports of the router itself answer; behind
    its firewall they don't.
    """

    def __init__(
        self,
        *,
        en: EnConfig,
        router: RouterConfig | None = None,
        act: AccessTable | None = None,
        link: Link = GOOD,
        nat: NatModel | None = None,
        seed: int = 0,
    ) -> None:
        self.now = 1000.0
        self.nat: NatModel = nat or LibaliasNat(ROUTER)
        self.bridge = MemoryBridge(self.nat, lambda: self.now)
        self.en = EnCore(replace(en, resolvers=(PLAIN,)))
        self.router = RouterCore(
            router or RouterConfig(), act or parse_act(ACT_TEXT, "act"), self.bridge.style, self.bridge.lifetime
        )
        self.router_up = True
        self.router_pings = True
        self.router_refuses = False
        self.link = link
        self.inside = {
            host.address: host for host in (EchoHost("alice", ALICE), EchoHost("bob", BOB), EchoHost("eve", EVE))
        }
        self.outside = {
            host.address: host for host in (EchoHost("plain", PLAIN), EchoHost("silent", SILENT, pings=False))
        }
        self.delivered: list[bytes] = []
        self.wire_log: list[tuple[float, bytes]] = []
        self.saved: list[dict[str, object]] = []
        self.lost = Counter[str]()
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    # What a test or the demo does.

    def resolve(self, answer: bytes) -> bytes:
        """Let a program ask, and a DNS answer (payload) come; returns the payload its resolver library sees."""
        server, client = Endpoint(PLAIN, 53), Endpoint(EN, 40053)
        asked = Packet(build.udp(client, server, _query_for(answer)), Direction.OUT)
        self.en.handle_dns(asked, self.now)
        diverted = Packet(build.udp(server, client, answer), Direction.IN)
        self._perform_en(self.en.handle_dns(diverted, self.now), Direction.IN)
        return self.delivered.pop()[28:]

    def en_sends(self, data: bytes | bytearray) -> None:
        diverted = Packet(bytearray(data), Direction.OUT)
        self._perform_en(self.en.handle_outbound(diverted, self.now), Direction.OUT)

    def run(self, seconds: float) -> None:
        """Let `seconds` pass: packets travel, timers fire, in the order of their times."""
        end = self.now + seconds
        while True:
            due = min(self._deadlines(), default=math.inf)
            if due > end:
                break
            # A deadline in the past is due now; time never goes back.
            self.now = max(self.now, due)
            self._tick()
        self.now = end

    def _deadlines(self) -> list[float]:
        found = [self.en.next_deadline(), self.router.next_deadline(), self._events[0][0] if self._events else None]
        return [deadline for deadline in found if deadline is not None]

    def _tick(self) -> None:
        if self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
            return
        self._perform_en(self.en.handle_timer(self.now), Direction.OUT)
        self._perform_router(self.router.handle_timer(self.now))

    # The wire.

    def _transmit(self, data: bytes, deliver: Callable[[bytearray], None]) -> None:
        delays = self.link.delays(self._random)
        self.lost["wire"] += not delays
        for delay in delays:
            self._later(delay, lambda: self._arrive(data, deliver))

    def _arrive(self, data: bytes, deliver: Callable[[bytearray], None]) -> None:
        self.wire_log.append((self.now, data))
        deliver(bytearray(data))

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._number), action))

    # The external node.

    def _perform_en(self, effects: list[Effect], direction: Direction) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._en_passes(effect.packet, direction)
            elif isinstance(effect, SendControl):
                request = icmp.decode_echo(effect.data)
                self._to_outside(bytes(_echo_packet(EN, effect.router, request)))
            elif isinstance(effect, Inject):
                self.delivered.append(effect.data)
            elif isinstance(effect, Save):
                self.saved.append(effect.record)

    def _en_passes(self, released: Packet, direction: Direction) -> None:
        if direction is Direction.OUT:
            self._to_outside(bytes(released.data))
        else:
            self.delivered.append(bytes(released.data))

    def _en_receives(self, data: bytearray) -> None:
        if packet.protocol(data) == Protocol.ICMP and data[packet.header_length(data)] == icmp.ECHO_REPLY:
            message = bytes(data[packet.header_length(data) :])
            effects = self.en.handle_control(packet.source(data), message, self.now)
            self._perform_en(effects, Direction.OUT)
            return
        self._perform_en(self.en.handle_inbound(Packet(data, Direction.IN), self.now), Direction.IN)

    # The public segment and the router.

    def _to_outside(self, data: bytes) -> None:
        destination = packet.destination(data)
        if destination == ROUTER:
            self._transmit(data, self._router_receives)
        elif destination in self.outside:
            self._transmit(data, lambda copy: self._answer(self.outside[destination].receive(copy)))
        else:
            self.lost[f"no route to {format_address(destination)}"] += 1

    def _answer(self, packets: list[bytes]) -> None:
        for data in packets:
            self._transmit(data, self._en_receives)

    def _router_receives(self, data: bytearray) -> None:
        if packet.protocol(data) == Protocol.ICMP and data[packet.header_length(data)] == icmp.ECHO_REQUEST:
            self._router_pinged(data)
        elif self.nat.inbound(data, self.now) and (host := self.inside.get(packet.destination(data))):
            for answer in host.receive(data):
                self._from_inside(bytearray(answer))
        else:
            self.lost["router: no mapping"] += 1
            if self.router_refuses:
                self._answer(EchoHost("router", ROUTER, accepts=()).receive(data))

    def _router_pinged(self, data: bytearray) -> None:
        if not self.router_pings:
            self.lost["router: ICMP filtered"] += 1
        elif self.router_up:
            self._perform_router(self.router.handle_request(Packet(data, Direction.IN), self.now))
        else:
            self._answer(EchoHost("router", ROUTER).receive(data))

    def _perform_router(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, WritePseudo):
                self.bridge.write(effect.data)
                for captured in self.bridge.captured():
                    self._perform_router(self.router.handle_captured(captured, self.now))
            elif isinstance(effect, Inject):
                self._answer([effect.data])
            elif isinstance(effect, Send):
                self._answer(EchoHost("router", ROUTER).receive(effect.packet.data))
            elif isinstance(effect, ForgetMapping):
                self.bridge.forget(effect.inside)
            elif isinstance(effect, Drop):
                continue

    def _from_inside(self, data: bytearray) -> None:
        if self.nat.outbound(data, self.now):
            self._transmit(bytes(data), self._en_receives)


def _query_for(answer: bytes) -> bytes:
    """The query that `answer` is one to."""
    question = read_question(answer, answer=True)
    end = question.end if question is not None else 12
    return answer[:2] + b"\x01\0\0\1\0\0\0\0\0\0" + answer[12:end]  # recursion desired, one question


def _echo_packet(source: Address, destination: Address, echo: icmp.Echo) -> bytearray:
    return build.icmp_echo(
        source, destination, reply=False, ident=echo.ident, sequence=echo.sequence, payload=echo.data
    )
