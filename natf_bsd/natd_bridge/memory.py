"""Model NATs, and a bridge to them: the router's core without a kernel, for tests and model labs.

`LibaliasNat` behaves as libalias was seen to behave (FREEBSD.md 4.1 to 4.4), but for its clock, and
`EndpointIndependentNat` as RFC 4787 recommends, which is what many home routers do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol as TypingProtocol

from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE, PseudoStyle
from natf_bsd.types import Address, Endpoint, Flow, Protocol
from natf_bsd.wire import packet
from natf_bsd.wire.packet import TCP_FIN, TCP_RST, TCP_SYN, QuotedRewrite, Rewrite


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without a packet after which a mapping is gone; the defaults are libalias's (FREEBSD.md 4.2)."""

    udp: float = 60.0
    tcp_initial: float = 300.0
    tcp_connected: float = 86_400.0
    tcp_closing: float = 90.0
    tcp_dead: float = 10.0


class NatModel(TypingProtocol):
    """A NAT with one outside address. It translates packets in place; False: not translated, and so not passed on."""

    @property
    def timeouts(self) -> Timeouts: ...

    def outbound(self, data: bytearray, now: float) -> bool:
        """A packet from inside: P1:d -> G1:s becomes G2:m -> G1:s."""

    def inbound(self, data: bytearray, now: float) -> bool:
        """A packet from outside: G1:s -> G2:m becomes G1:s -> P1:d."""


class _Side(Enum):
    """What libalias knows of one direction of a TCP connection (alias_db.c)."""

    NOT_CONNECTED = 0
    CONNECTED = 1
    DISCONNECTED = 2


@dataclass(slots=True, eq=False)
class _Link:
    """One mapping. `inside` is None for libalias's link to the router itself; `remote` None: any remote may use it."""

    protocol: int
    inside: Endpoint | None
    outside: Endpoint
    remote: Endpoint | None
    used: float
    timeout: float
    sent: _Side = _Side.NOT_CONNECTED
    received: _Side = _Side.NOT_CONNECTED


_Key = tuple[int, Endpoint, Endpoint | None]
"""Protocol, endpoint on one side of the NAT, remote."""


class _Nat:
    """What both models share: links, port choice, translation of packets and of ICMP errors about them."""

    def __init__(self, outside: Address, timeouts: Timeouts, seed: int) -> None:
        self.outside = outside
        self.timeouts = timeouts
        self._random = random.Random(seed)
        self._by_inside: dict[_Key, _Link] = {}
        self._by_outside: dict[_Key, _Link] = {}

    def outbound(self, data: bytearray, now: float) -> bool:
        """See `NatModel`; False also for a packet that no outside port is free for."""
        flow = packet.flow_of(data)
        if flow is None:
            return self._error_outbound(data, now)
        link = self._outgoing_link(flow, now)
        if link is None:
            return False
        link.used = now
        self._saw_sent(link, data)
        Rewrite(source=(flow.source, link.outside)).apply(data)
        return True

    def inbound(self, data: bytearray, now: float) -> bool:
        """See `NatModel`; False also for what is meant for the router itself."""
        if packet.destination(data) != self.outside:
            return False
        flow = packet.flow_of(data)
        if flow is None:
            return self._error_inbound(data, now)
        link = self._incoming_link(flow, now)
        if link is None or link.inside is None:
            return False
        link.used = now
        self._saw_received(link, data)
        Rewrite(destination=(link.outside, link.inside)).apply(data)
        return True

    def _remote(self, remote: Endpoint) -> Endpoint | None:
        """The part the remote plays in a link's identity."""
        raise NotImplementedError

    def _initial_timeout(self, protocol: int) -> float:
        raise NotImplementedError

    def _saw_sent(self, link: _Link, data: bytearray) -> None:
        """A packet of `link` goes out."""

    def _saw_received(self, link: _Link, data: bytearray) -> None:
        """A packet of `link` comes in."""

    def _outgoing_link(self, flow: Flow, now: float) -> _Link | None:
        remote = self._remote(flow.destination)
        found = self._live(self._by_inside, (flow.protocol, flow.source, remote), now)
        if found is not None:
            return found
        outside = self._free_port(flow.protocol, flow.source.port, remote, now)
        return None if outside is None else self._add(flow.protocol, flow.source, outside, remote, now)

    def _incoming_link(self, flow: Flow, now: float) -> _Link | None:
        return self._live(self._by_outside, (flow.protocol, flow.destination, self._remote(flow.source)), now)

    def _add(
        self, protocol: int, inside: Endpoint | None, outside: Endpoint, remote: Endpoint | None, now: float
    ) -> _Link:
        link = _Link(protocol, inside, outside, remote, now, self._initial_timeout(protocol))
        self._by_outside[protocol, outside, remote] = link
        if inside is not None:
            self._by_inside[protocol, inside, remote] = link
        return link

    def _live(self, index: dict[_Key, _Link], key: _Key, now: float) -> _Link | None:
        """The link under `key`; an expired one is removed when it is come upon."""
        link = index.get(key)
        if link is None or now - link.used <= link.timeout:
            return link
        del self._by_outside[link.protocol, link.outside, link.remote]
        if link.inside is not None:
            del self._by_inside[link.protocol, link.inside, link.remote]
        return None

    def _free_port(self, protocol: int, wanted: int, remote: Endpoint | None, now: float) -> Endpoint | None:
        """The inside host's own port if free, else up to 20 random ones of 32768 to 65535 (FREEBSD.md 4.1)."""
        for port in (wanted, *(self._random.randint(32768, 65535) for _ in range(20))):
            outside = Endpoint(self.outside, port)
            if self._live(self._by_outside, (protocol, outside, remote), now) is None:
                return outside
        return None

    def _error_outbound(self, data: bytearray, now: float) -> bool:
        """An ICMP error of an inside host about G1:s -> P1:d (FREEBSD.md 4.4)."""
        quoted = packet.quoted_flow(data)
        if quoted is None:
            return False
        key = (quoted.protocol, quoted.destination, self._remote(quoted.source))
        link = self._live(self._by_inside, key, now)
        if link is None:
            return False
        about_sender = packet.source(data) == quoted.destination.address
        QuotedRewrite(
            outer_source=(quoted.destination.address, self.outside) if about_sender else None,
            quoted_destination=(quoted.destination, link.outside),
        ).apply(data)
        return True

    def _error_inbound(self, data: bytearray, now: float) -> bool:
        """An ICMP error from outside about G2:m -> G1:s."""
        quoted = packet.quoted_flow(data)
        link = None if quoted is None else self._incoming_link(quoted.reversed(), now)
        if quoted is None or link is None or link.inside is None:
            return False
        QuotedRewrite(
            outer_destination=(self.outside, link.inside.address), quoted_source=(quoted.source, link.inside)
        ).apply(data)
        return True


class EndpointIndependentNat(_Nat):
    """One outside port per inside endpoint, open to every remote ("full cone"; RFC 4787 REQ-1, laxest of REQ-8)."""

    def __init__(self, outside: Address, *, timeouts: Timeouts | None = None, seed: int = 0) -> None:
        super().__init__(outside, timeouts or Timeouts(), seed)

    def _remote(self, remote: Endpoint) -> Endpoint | None:
        return None

    def _initial_timeout(self, protocol: int) -> float:
        # Several connections share a link, so that one's FIN says nothing about it.
        return self.timeouts.tcp_connected if protocol == Protocol.TCP else self.timeouts.udp


class LibaliasNat(_Nat):
    """natd and `ipfw nat`: links are exact to the remote's port; timeouts follow SYN, FIN and RST, no sequences.

    Without `deny_incoming` a packet no link fits makes a link to the router itself, which then occupies its port
    ("poisoning", FREEBSD.md 4.1); the packet is for the router and so False here either way.
    """

    def __init__(
        self, outside: Address, *, deny_incoming: bool = True, timeouts: Timeouts | None = None, seed: int = 0
    ) -> None:
        super().__init__(outside, timeouts or Timeouts(), seed)
        self._deny_incoming = deny_incoming

    def _remote(self, remote: Endpoint) -> Endpoint | None:
        return remote

    def _initial_timeout(self, protocol: int) -> float:
        return self.timeouts.tcp_initial if protocol == Protocol.TCP else self.timeouts.udp

    def _incoming_link(self, flow: Flow, now: float) -> _Link | None:
        link = super()._incoming_link(flow, now)
        if link is None and not self._deny_incoming:
            return self._add(flow.protocol, None, flow.destination, flow.source, now)
        return link

    def _saw_sent(self, link: _Link, data: bytearray) -> None:
        if link.protocol == Protocol.TCP:
            link.sent = self._next(link, link.sent, link.received, packet.tcp_flags(data))

    def _saw_received(self, link: _Link, data: bytearray) -> None:
        if link.protocol == Protocol.TCP:
            link.received = self._next(link, link.received, link.sent, packet.tcp_flags(data))

    def _next(self, link: _Link, side: _Side, other: _Side, flags: int) -> _Side:
        """TcpMonitorIn, TcpMonitorOut and SetStateIn, SetStateOut of alias.c and alias_db.c (FREEBSD.md 4.3)."""
        both = other is _Side.CONNECTED
        if side is _Side.NOT_CONNECTED and flags & TCP_SYN and not flags & TCP_RST:
            link.timeout = self.timeouts.tcp_connected if both else link.timeout
            return _Side.CONNECTED
        ends = TCP_RST if side is _Side.NOT_CONNECTED else TCP_RST | TCP_FIN
        if side is not _Side.DISCONNECTED and flags & ends:
            link.timeout = self.timeouts.tcp_closing if both else self.timeouts.tcp_dead
            return _Side.DISCONNECTED
        return side


class MemoryBridge:
    """A `NatBridge` to a model: what is written is translated at once and waits to be read.

    As with natd, a packet the NAT can't translate comes back as it was (FREEBSD.md section 3).
    """

    name = "memory"

    def __init__(self, nat: NatModel, clock: Callable[[], float], *, style: PseudoStyle = LIBALIAS_STYLE) -> None:
        self.style: PseudoStyle = style
        self._nat = nat
        self._clock = clock
        self._waiting: list[bytes] = []
        self._written = 0

    def fileno(self) -> int | None:
        return None

    def write(self, data: bytes) -> None:
        self._written += 1
        translated = bytearray(data)
        self._nat.outbound(translated, self._clock())
        self._waiting.append(bytes(translated))

    def captured(self) -> list[bytes]:
        found, self._waiting = self._waiting, []
        return found

    def forget(self, inside: Flow) -> None:
        return

    def lifetime(self, protocol: int) -> int:
        timeouts = self._nat.timeouts
        return int(timeouts.tcp_connected if protocol == Protocol.TCP else timeouts.udp)

    def next_deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        return

    def close(self) -> None:
        self._waiting.clear()

    @property
    def counters(self) -> dict[str, int]:
        return {"written": self._written}
