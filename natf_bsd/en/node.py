"""The external node's wiring: the core between its ways to the kernel.

    kernel -> dns / out / inward / control -> core -> effects -> divert, injector, control -> kernel

A packet goes on by the handle it came from, whatever made it go on, and an error goes to whoever sent what it is about.

It waits for nothing: whoever runs it calls a reader when its descriptor is readable, and `tick` when time has come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from natf_bsd.datapath import KernelPath, Report
from natf_bsd.divert import Divert, held_by
from natf_bsd.effects import Admit, Drop, Effect, HandOver, Inject, Resumed, Save, Send, SendControl, TakeBack
from natf_bsd.en.busiest import Busiest
from natf_bsd.en.core import EnCore
from natf_bsd.ops.interfaces import is_local
from natf_bsd.ops.loop import HasFileno, monotonic, precise
from natf_bsd.ops.trace import Trace
from natf_bsd.platforms import EnPorts, EnSide, Injector, Way
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
        self._kernel = ports.own.kernel
        if self._kernel is not None and self._kernel.room is not None:
            core.busiest = Busiest(self._kernel.room)
        elif self._kernel is not None:
            core.kernel_ways = (ports.own.out,)

    def readers(self) -> Iterator[tuple[int | HasFileno, Callable[[], None]]]:
        """What to wait for, and what to call then."""
        for dns in self._ports.dns:
            yield dns, partial(self._read_dns, dns)
        for way in self._ports.ways:
            yield way.out, partial(self._read, way.out, self.core.handle_outbound)
            yield way.inward, partial(self._read, way.inward, self.core.handle_inbound)
        yield self._ports.control, self._read_control
        if self._kernel is not None and (descriptor := self._kernel.fileno()) is not None:
            yield descriptor, partial(self._read_kernel, self._kernel)

    def tick(self, now: float) -> None:
        if self._kernel is not None:
            for flow in self.core.doubtful(now):
                self._heed(self._kernel.look_at(flow))
            self._kernel.tick(now)
            if self._kernel.fileno() is None:
                self._read_kernel(self._kernel)
        self._perform(self.core.handle_timer(now), precise())

    def next_deadline(self) -> float | None:
        """When `tick` has something to do next (monotonic seconds), None if never."""
        deadline = self.core.next_deadline()
        if self._kernel is None or not (len(self.core.vat) or self._kernel.room):
            return deadline
        return min(self._kernel.next_deadline(), deadline or math.inf)

    def look(self) -> None:
        """Bring the tables up to date with what the kernel has carried."""
        if self._kernel is not None:
            self._heed(self._kernel.look())

    def take_over(self) -> None:
        """Once no other daemon can serve here: see to what the kernel has of an earlier run. OSError if something of
        that may be in the way of new flows."""
        if self._kernel is not None:
            self._heed(self._kernel.take_over())
            self._side.forget_rewritten(self.core.routers())

    def addresses_changed(self) -> None:
        """The outer interface has another address, or the flows may be those of an earlier run."""
        self._perform(self.core.addresses_changed(is_local, self._now()))

    def forget(self) -> None:
        """Let the kernel translate nothing any longer, and keep nothing of what was rewritten here. OSError if it does
        not."""
        if self._kernel is not None:
            self._kernel.forget()
        self._side.forget_rewritten(self.core.routers())

    def shutdown(self) -> None:
        """Let go of what is held."""
        self._perform(self.core.shutdown())

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """Of each way to the kernel."""
        names = ("dns", *(f"dns{number}" for number in range(2, len(self._ports.dns) + 1)))
        looks = {name: dns.counters for name, dns in zip(names, self._ports.dns, strict=True)}
        ports = self._ports
        inside = {} if ports.inside is None else _counters(ports.inside, "inside_")
        outward = {} if ports.outward is ports.own.injector else {"outward": ports.outward.counters}
        kernel = {} if self._kernel is None else {"kernel": self._kernel.counters}
        return looks | _counters(ports.own, "") | outward | inside | kernel | {"control": ports.control.counters}

    def _read_dns(self, dns: Divert) -> None:
        """Routers are admitted at once for all answers that wait: it may cost a process, and web pages choose names."""
        effects: list[Effect] = []
        for packet in dns.waiting(_BATCH):
            began = precise()
            rewritten = self.core.counters["dns.sent.rewritten"]
            effects += self.core.handle_dns(packet, self._now())
            if self.core.counters["dns.sent.rewritten"] > rewritten:
                self.trace.answers.append(precise() - began)
        admitted = {router for effect in effects if isinstance(effect, Admit) for router in effect.routers}
        if admitted:
            self._side.admit(admitted)
        self._perform(effect for effect in effects if not isinstance(effect, Admit))

    def _read(self, divert: Divert, handle: Callable[[Packet, float], list[Effect]]) -> None:
        arrived = precise()
        now = self._now()
        for packet in divert.waiting(_BATCH):
            self._perform(handle(packet, now), arrived)

    def _read_control(self) -> None:
        arrived = precise()
        for source, data in self._ports.control.waiting(_BATCH):
            self._perform(self.core.handle_control(source, data, self._now()), arrived)

    def _read_kernel(self, kernel: KernelPath) -> None:
        self._heed(kernel.receive())

    def _heed(self, reports: list[Report]) -> None:
        now = self._now()
        for report in reports:
            self._perform(self.core.handle_report(report, now))

    def _perform(self, effects: Iterable[Effect], arrived: float = 0.0) -> None:
        """Do what the core asks, in order."""
        for effect in effects:
            if isinstance(effect, Send):
                held_by(effect.packet).send(effect.packet)
            elif isinstance(effect, HandOver):
                self._hand_over(effect)
            elif isinstance(effect, TakeBack):
                self._carrier().take_back(effect.flow, at_once=effect.at_once)
            elif isinstance(effect, Drop):
                held_by(effect.packet).drop(effect.packet)
            elif isinstance(effect, SendControl):
                # Stamped before the call: on one machine the kernel delivers a packet before the call returns.
                self.trace.started(effect.transaction, arrived, precise())
                self._ports.control.send(effect.router, effect.data)
            elif isinstance(effect, Resumed):
                self.trace.ended(effect.transaction, arrived, precise())
            elif isinstance(effect, Inject):
                self._injector(effect).send(effect.data)
            elif isinstance(effect, Save):
                self._save(effect.record)
            else:
                raise TypeError(f"no external node does {effect!r}")

    def _hand_over(self, effect: HandOver) -> None:
        kernel = self._carrier()
        leaves = effect.packets[-1].interface if effect.packets else ""
        if not kernel.hand_over(effect.flow, effect.mapped, leaves):
            self._perform(self.core.not_handed_over(effect.flow, effect.packets, self._now()))
            return
        for packet in effect.packets:
            held_by(packet).send(packet)

    def _carrier(self) -> KernelPath:
        if self._kernel is None:
            raise TypeError("the core hands flows over without a kernel path")
        return self._kernel

    def _injector(self, effect: Inject) -> Injector:
        ports = self._ports
        if effect.outward:
            return ports.outward
        inside, about = ports.inside, effect.about
        return inside.injector if inside and about and about.handle is inside.out else ports.own.injector


def _counters(way: Way, prefix: str) -> dict[str, dict[str, int]]:
    handles = {"out": way.out.counters, "in": way.inward.counters, "injector": way.injector.counters}
    return {f"{prefix}{name}": counters for name, counters in handles.items()}
