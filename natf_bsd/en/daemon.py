"""The external node's daemon: the core between three diverted streams, a raw socket to applications and one to
routers.

    kernel -> dns / out / inward (divert) -> core -> effects -> divert, injector, control -> kernel

Firewall rules are set only when every queue has its reader, and taken back first when the daemon ends.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from natf_bsd.config import EnConfig, settings_of
from natf_bsd.divert import Divert
from natf_bsd.divert.inject import ControlSocket, Injector
from natf_bsd.effects import Drop, Effect, Inject, Resumed, Save, Send, SendControl
from natf_bsd.en import report
from natf_bsd.en.core import EnCore
from natf_bsd.firewall import plan
from natf_bsd.firewall.guard import Guard
from natf_bsd.firewall.installed import Installed
from natf_bsd.ops import runtime
from natf_bsd.ops.control import ControlServer
from natf_bsd.ops.interfaces import outer_interface
from natf_bsd.ops.journal import Journal
from natf_bsd.ops.loop import Loop, epoch_offset, monotonic, precise
from natf_bsd.ops.resolvers import RESOLV_CONF, Resolvers
from natf_bsd.ops.secret import kept_secret
from natf_bsd.ops.trace import Trace
from natf_bsd.ops.watch import INTERVAL, CounterWatch
from natf_bsd.types import Direction, Packet, format_address

log = logging.getLogger(__name__)

_BATCH = 64
"""Packets read from one handle before the others have their turn."""

_FLUSH_AGAIN_AFTER = 10.0
"""Seconds after which a disk that took nothing is tried again: the log is often on the same one."""

_KEY_SIZE = 16
"""Bytes of the virtual addresses' secret."""

_WORTH_A_WARNING = (
    "dns.sent.failed",
    "dns.sent.query_forgotten",
    "dns.sent.rebinding",
    "dns.drop.unasked",
    "out.drop.no_room",
    "out.drop.table_full",
    "control.ignored.wrong_source",
    "control.ignored.unauthenticated",
    "control.ignored.mirror_of_peer",
    "control.ignored.foreign_mapping",
    "negotiation.silent",
)


class EnDaemon:
    """Everything that lives while `natf en run` does; `run` returns when it is told to stop."""

    def __init__(self, config: EnConfig) -> None:
        self._config = config
        self._resolvers = Resolvers()
        self._trace = Trace()
        self._flush_at: float | None = None
        self._watch_at = 0.0

    def run(self) -> None:
        config = self._config
        runtime.need_root("natf en run")
        with ExitStack() as stack:
            stack.enter_context(runtime.RoleLock(config.run_dir, "en"))
            self._interface = outer_interface(config.interface)
            self._core = EnCore(config, key=kept_secret(config.state_dir / "virtual.key", _KEY_SIZE))
            self._watch = CounterWatch(self._core.counters, _WORTH_A_WARNING)
            self._follow_resolvers()
            self._journal = Journal(config.state_dir / "en.journal")
            stack.callback(self._flush)
            self._restore()
            self._dns = stack.enter_context(Divert(config.dns_queue, direction=Direction.IN))
            self._out = stack.enter_context(
                Divert(config.out_queue, direction=Direction.OUT, mark=config.mark, mask=plan.MARK_MASK)
            )
            self._in = stack.enter_context(Divert(config.in_queue, direction=Direction.IN))
            self._injector = Injector(config.mark)
            stack.callback(self._injector.close)
            self._control = ControlSocket()
            stack.callback(self._control.close)
            stack.callback(lambda: self._perform(self._core.shutdown(), self._out))
            self._loop = Loop(self._next_deadline, self._tick)
            stack.callback(self._loop.close)
            self._listen()
            self._installed = stack.enter_context(Installed(plan.en(config, self._interface), config.run_dir))
            self._guard = Guard(self._installed, partial(plan.en, config), self._interface, self._loop)
            stack.callback(self._guard.close)
            server = ControlServer(config.run_dir / "en.sock", self._loop, {"status": self._status})
            stack.callback(server.close)
            log.info("external node ready on %s for %s", self._interface, ", ".join(config.home_domains))
            self._loop.run()
            log.info("external node stops")

    def _listen(self) -> None:
        self._loop.add_reader(self._dns, self._read_dns)
        self._loop.add_reader(self._out, self._read_out)
        self._loop.add_reader(self._in, self._read_in)
        self._loop.add_reader(self._control, self._read_control)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the last one: its terminal was closed
            self._loop.on_signal(number, self._loop.stop)
        self._loop.on_signal(signal.SIGUSR1, self._stop_for_restart)

    def _stop_for_restart(self) -> None:
        """End, but let the rules stand: until the next daemon is there they refuse virtual addresses at once, and keep
        the kernel from answering a mapped connection's packets with a RST.
        """
        log.info("external node stops for a restart; its rules stay")
        self._installed.stay()
        self._loop.stop()

    def _restore(self) -> None:
        self._core.epoch_offset = epoch_offset()
        complaints = self._journal.skipped + self._core.restore(self._journal.records(), monotonic())
        for complaint in complaints:
            log.warning("not restored: %s", complaint)

    def _follow_resolvers(self) -> None:
        """Believe the DNS servers this host asks, whichever these are by now."""
        if self._config.resolvers:
            return
        try:
            found = self._resolvers.read()
        except OSError as error:
            log.warning("%s: %s; the DNS servers believed stay as they were", error.filename, error.strerror)
            return
        if found == self._core.lookups.resolvers:
            return
        self._core.lookups.resolvers = found
        if found:
            log.info("DNS servers believed: %s", ", ".join(sorted(map(format_address, found))))
        else:
            log.warning("%s names no DNS server with an IPv4 address: no name is ours to serve", RESOLV_CONF)

    # One reader a stream.

    def _read_dns(self) -> None:
        for packet in self._dns.recv_batch(_BATCH):
            began = precise()
            rewritten = self._core.counters["dns.sent.rewritten"]
            effects = self._core.handle_dns(packet, monotonic())
            if self._core.counters["dns.sent.rewritten"] > rewritten:
                self._trace.answers.append(precise() - began)
            self._perform(effects, self._dns)

    def _read_out(self) -> None:
        self._read(self._out, self._core.handle_outbound)

    def _read_in(self) -> None:
        self._read(self._in, self._core.handle_inbound)

    def _read(self, divert: Divert, handle: Callable[[Packet, float], list[Effect]]) -> None:
        arrived = precise()
        now = monotonic()
        for packet in divert.recv_batch(_BATCH):
            self._perform(handle(packet, now), divert, arrived)

    def _read_control(self) -> None:
        arrived = precise()
        for source, data in self._control.recv_batch(_BATCH):
            self._perform(self._core.handle_control(source, data, monotonic()), self._out, arrived)

    # Effects.

    def _perform(self, effects: Iterable[Effect], divert: Divert, arrived: float = 0.0) -> None:
        """Do what the core asks, in order. `divert` is the handle the effects' packets came from: all but inbound
        ones are of `out`."""
        for effect in effects:
            if isinstance(effect, Send):
                divert.send(effect.packet)
            elif isinstance(effect, Drop):
                divert.drop(effect.packet)
            elif isinstance(effect, SendControl):
                # Stamped before the call: on one machine the kernel delivers a packet before the call returns.
                self._trace.started(effect.transaction, arrived, precise())
                self._control.send(effect.router, effect.data)
            elif isinstance(effect, Resumed):
                self._trace.ended(effect.transaction, arrived, precise())
            elif isinstance(effect, Inject):
                self._injector.send(effect.data)
            elif isinstance(effect, Save):
                self._save(effect)
            else:
                raise TypeError(f"no external node does {effect!r}")

    def _save(self, effect: Save) -> None:
        self._journal.append(effect.record)
        if self._flush_at is None:
            # At the loop's next turn: no packet waits for the file, and next to nothing is lost by a crash.
            self._flush_at = monotonic()

    def _flush(self) -> None:
        self._flush_at = None
        try:
            self._journal.flush()
        except OSError as error:
            self._flush_at = monotonic() + _FLUSH_AGAIN_AFTER
            log.error("%s: %s; names and flows would not survive a restart", self._journal.path, error.strerror)

    # Time.

    def _next_deadline(self) -> float | None:
        deadlines = (self._core.next_deadline(), self._flush_at, self._watch_at, self._guard.next_deadline())
        return min(deadline for deadline in deadlines if deadline is not None)

    def _tick(self, now: float) -> None:
        if now >= self._watch_at:
            self._core.epoch_offset = epoch_offset()  # the clock of day may have been set
            self._watch.look()
            self._follow_resolvers()
            self._watch_at = now + INTERVAL
        if self._flush_at is not None and now >= self._flush_at:
            self._flush()
        self._guard.tick(now)
        self._perform(self._core.handle_timer(now), self._out, precise())

    def _status(self, request: dict[str, Any]) -> dict[str, object]:
        return {
            "role": "en",
            "process": os.getpid(),
            "interface": str(self._guard.interface),
            "settings": settings_of(self._config),
            "resolvers": sorted(map(format_address, self._core.lookups.resolvers)),
            **report.tables(self._core, monotonic(), int(request.get("rows", 1000))),
            "handles": {
                "dns": self._dns.counters,
                "out": self._out.counters,
                "in": self._in.counters,
                "injector": self._injector.counters,
                "control": self._control.counters,
                "guard": self._guard.counters,
            },
            "trace": self._trace.snapshot(),
        }
