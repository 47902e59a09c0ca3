"""The router's wiring: the core between echo requests for it, the bridge to its NAT, and the way back.

kernel -> control (divert) -> core -> pseudo-packet -> bridge -> NAT -> bridge -> core -> injector -> kernel
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator

from natf_bsd.effects import Drop, Effect, ForgetMapping, Inject, Send, WritePseudo
from natf_bsd.errors import NatfError
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.bridge import NatBridge
from natf_bsd.ops.interfaces import Interface, is_local
from natf_bsd.ops.loop import HasFileno, monotonic, precise
from natf_bsd.ops.trace import Trace
from natf_bsd.platforms import RouterPorts
from natf_bsd.router.core import RouterCore
from natf_bsd.types import Address, Endpoint, Flow, Protocol

_BATCH = 64
_PROOF_TIMEOUT = 1.0
_DISCARD = 9  # RFC 863


class RouterNode:
    """As `EnNode`."""

    def __init__(self, core: RouterCore, ports: RouterPorts, *, now: Callable[[], float] = monotonic) -> None:
        self.core = core
        self.trace = Trace()
        self._ports = ports
        self._now = now

    def readers(self) -> Iterator[tuple[HasFileno | int, Callable[[], None]]]:
        """What to wait for, and what to call then."""
        yield self._ports.control, self._read_requests
        if (captured := self._ports.bridge.fileno()) is not None:
            yield captured, self._read_captured

    def tick(self, now: float) -> None:
        self._perform(self.core.handle_timer(now))
        self._ports.bridge.tick(now)

    def next_deadline(self) -> float | None:
        deadlines = (self.core.next_deadline(), self._ports.bridge.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """Of each way to the kernel."""
        return {
            "control": self._ports.control.counters,
            "injector": self._ports.injector.counters,
            "nat": self._ports.bridge.counters,
        }

    def _read_requests(self) -> None:
        """Netfilter's NAT is done when the write returns: its answer goes on at once, a turn of the loop saved. That
        the kernel is to forget the request can wait for that."""
        arrived = precise()
        before = self.core.pending
        drops: list[Effect] = []
        for packet in self._ports.control.waiting(_BATCH):
            effects = self.core.handle_request(packet, self._now())
            drops += [effect for effect in effects if isinstance(effect, Drop)]
            self._perform((effect for effect in effects if not isinstance(effect, Drop)), arrived)
        if self.core.pending > before:
            self._read_captured()
        self._perform(drops)

    def _read_captured(self) -> None:
        for data in self._ports.bridge.captured():
            self._perform(self.core.handle_captured(data, self._now()))

    def _perform(self, effects: Iterable[Effect], arrived: float = 0.0) -> None:
        for effect in effects:
            if isinstance(effect, WritePseudo):
                self.trace.started(effect.transaction, arrived, arrived)
                self._ports.bridge.write(effect.data)
            elif isinstance(effect, Inject):
                if effect.transaction is not None:
                    self.trace.routed(effect.transaction, precise())
                self._ports.injector.send(effect.data)
            elif isinstance(effect, ForgetMapping):
                if not is_local(effect.address):
                    self._ports.bridge.forget(effect.inside)
            elif isinstance(effect, Send):
                self._ports.control.send(effect.packet)
            elif isinstance(effect, Drop):
                self._ports.control.drop(effect.packet)
            else:
                raise TypeError(f"no router does {effect!r}")


def prove_nat(
    bridge: NatBridge,
    interface: Interface,
    ends: tuple[Address, Address],
    hint: str,
    *,
    wait: Callable[[int, float], bool] = lambda descriptor, seconds: bool(
        select.select([descriptor], [], [], seconds)[0]
    ),
) -> None:
    """Pass one pseudo-packet between two addresses, inside and outside, through the NAT; NatfError, with the `hint`, if
    it does not come back translated. Better now, in words, than at the first request of a stranger.

    `wait` tells whether a descriptor becomes readable within so many seconds.
    """
    inside, outside = (Endpoint(address, _DISCARD) for address in ends)
    cookie = int.from_bytes(os.urandom(4), "big")
    bridge.write(pseudo.build(Flow(Protocol.UDP, inside, outside), cookie, bridge.style))
    give_up = monotonic() + _PROOF_TIMEOUT
    descriptor = bridge.fileno()
    while descriptor is None or wait(descriptor, max(0.0, give_up - monotonic())):
        found = [pseudo.parse_captured(data) for data in bridge.captured()]
        for captured in found:
            if captured is not None and captured.cookie == cookie:
                _check_proof(captured.translated.source.address, captured.translated, interface)
                return
        if descriptor is None or monotonic() >= give_up:
            break
    raise NatfError(f"the NAT ({bridge.name}) did not give a pseudo-packet back: {hint}")


def _check_proof(source: Address, translated: Flow, interface: Interface) -> None:
    if source != interface.address:
        raise NatfError(f"the NAT gave a pseudo-packet back as {translated}; expected it from {interface}")
