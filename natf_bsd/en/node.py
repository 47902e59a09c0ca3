"""The external node's wiring: the core between its ways to the kernel.

    kernel -> dns / out / inward / control -> core -> effects -> divert, injector, control -> kernel

It waits for nothing: whoever runs it calls a reader when its descriptor is readable, and `tick` when time has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from natf_bsd.divert import Divert
from natf_bsd.effects import Admit, Drop, Effect, Inject, Resumed, Save, Send, SendControl
from natf_bsd.en.core import EnCore
from natf_bsd.ops.loop import HasFileno, monotonic, precise
from natf_bsd.ops.trace import Trace
from natf_bsd.platforms import EnPorts, EnSide
from natf_bsd.types import Packet

_BATCH = 64
"""Packets read from one handle before the others have their turn."""


class EnNode:
    """`save` takes what is to survive a restart; `now` is the monotonic clock."""

    def __init__(
        self,
        core: EnCore,
        side: EnSide,
        ports: EnPorts,
        save: Callable[[dict[str, object]], None],
        *,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.core = core
        self.trace = Trace()
        self._side = side
        self._ports = ports
        self._save = save
        self._now = now

    def readers(self) -> Iterator[tuple[HasFileno, Callable[[], None]]]:
        """What to wait for, and what to call then."""
        for dns in self._ports.dns:
            yield dns, partial(self._read_dns, dns)
        yield self._ports.out, partial(self._read, self._ports.out, self.core.handle_outbound)
        yield self._ports.inward, partial(self._read, self._ports.inward, self.core.handle_inbound)
        yield self._ports.control, self._read_control

    def tick(self, now: float) -> None:
        self._perform(self.core.handle_timer(now), self._ports.out, precise())

    def shutdown(self) -> None:
        """Let go of what is held."""
        self._perform(self.core.shutdown(), self._ports.out)

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """Of each way to the kernel."""
        names = ("dns", *(f"dns{number}" for number in range(2, len(self._ports.dns) + 1)))
        looks = {name: dns.counters for name, dns in zip(names, self._ports.dns, strict=True)}
        ports = self._ports
        writers = {"injector": ports.injector.counters}
        if ports.outward is not ports.injector:
            writers["outward"] = ports.outward.counters
        return (
            looks
            | {"out": ports.out.counters, "in": ports.inward.counters}
            | writers
            | {"control": ports.control.counters}
        )

    def _read_dns(self, dns: Divert) -> None:
        """Routers are admitted at once for all answers that wait: it may cost a process, and web pages choose names."""
        effects: list[Effect] = []
        for packet in dns.recv_batch(_BATCH):
            began = precise()
            rewritten = self.core.counters["dns.sent.rewritten"]
            effects += self.core.handle_dns(packet, self._now())
            if self.core.counters["dns.sent.rewritten"] > rewritten:
                self.trace.answers.append(precise() - began)
        admitted = {router for effect in effects if isinstance(effect, Admit) for router in effect.routers}
        if admitted:
            self._side.admit(admitted)
        self._perform((effect for effect in effects if not isinstance(effect, Admit)), dns)

    def _read(self, divert: Divert, handle: Callable[[Packet, float], list[Effect]]) -> None:
        arrived = precise()
        now = self._now()
        for packet in divert.recv_batch(_BATCH):
            self._perform(handle(packet, now), divert, arrived)

    def _read_control(self) -> None:
        arrived = precise()
        for source, data in self._ports.control.recv_batch(_BATCH):
            self._perform(self.core.handle_control(source, data, self._now()), self._ports.out, arrived)

    def _perform(self, effects: Iterable[Effect], divert: Divert, arrived: float = 0.0) -> None:
        """Do what the core asks, in order. `divert` is the handle the effects' packets came from: all but inbound
        ones and look-ups are of `out`."""
        for effect in effects:
            if isinstance(effect, Send):
                divert.send(effect.packet)
            elif isinstance(effect, Drop):
                divert.drop(effect.packet)
            elif isinstance(effect, SendControl):
                # Stamped before the call: on one machine the kernel delivers a packet before the call returns.
                self.trace.started(effect.transaction, arrived, precise())
                self._ports.control.send(effect.router, effect.data)
            elif isinstance(effect, Resumed):
                self.trace.ended(effect.transaction, arrived, precise())
            elif isinstance(effect, Inject):
                (self._ports.outward if effect.outward else self._ports.injector).send(effect.data)
            elif isinstance(effect, Save):
                self._save(effect.record)
            else:
                raise TypeError(f"no external node does {effect!r}")
