"""The router's daemon: the core between diverted echo requests, the bridge to the NAT, and a raw socket for the
answers.

    kernel -> control (divert) -> core -> pseudo-packet -> bridge -> NAT -> bridge -> core -> injector -> kernel
"""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from natf_bsd.config import RouterConfig, settings_of
from natf_bsd.divert import Divert
from natf_bsd.divert.inject import Injector
from natf_bsd.effects import Drop, Effect, Inject, Send, WritePseudo
from natf_bsd.errors import NatfError
from natf_bsd.firewall import plan
from natf_bsd.firewall.guard import Guard
from natf_bsd.firewall.installed import Installed
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.netfilter import NetfilterBridge
from natf_bsd.ops import act_file, runtime
from natf_bsd.ops.control import ControlServer
from natf_bsd.ops.interfaces import Interface, outer_interface
from natf_bsd.ops.loop import Loop, epoch_offset, monotonic, precise
from natf_bsd.ops.trace import Trace
from natf_bsd.ops.watch import INTERVAL, CounterWatch
from natf_bsd.router.core import RouterCore
from natf_bsd.tables.act import AccessTable
from natf_bsd.types import Direction, Endpoint, Flow, Protocol, format_address

log = logging.getLogger(__name__)

_BATCH = 64
_WATCH = 1.0
"""Seconds between looks at the access control table's file; `natf act` also says so at once."""

_WORTH_A_WARNING = (
    "mapping.failed.no_answer",
    "mapping.failed.untranslated",
    "mapping.failed.other_address",
    "request.answered.out_of_resources",
    "request.answered.bad_key",
)

_PROOF_TIMEOUT = 1.0


class RouterDaemon:
    """Everything that lives while `natf router run` does; `run` returns when it is told to stop."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._trace = Trace()
        self._watch_at = 0.0
        self._look_at = 0.0

    def run(self) -> None:
        config = self._config
        runtime.need_root("natf router run")
        with ExitStack() as stack:
            stack.enter_context(runtime.RoleLock(config.run_dir, "router"))
            self._interface = outer_interface(config.interface)
            self._act = act_file.ActFile(config.act)
            table = self._act.load()
            self._control = stack.enter_context(Divert(config.control_queue, direction=Direction.IN))
            self._injector = Injector(config.mark)
            stack.callback(self._injector.close)
            self._bridge = NetfilterBridge(config.tun)
            stack.callback(self._bridge.close)
            self._core = RouterCore(config, table, self._bridge.style, self._bridge.lifetime)
            self._counter_watch = CounterWatch(self._core.counters, _WORTH_A_WARNING)
            self._loop = Loop(self._next_deadline, self._tick)
            stack.callback(self._loop.close)
            self._listen()
            installed = stack.enter_context(Installed(plan.router(config, self._interface), config.run_dir))
            prove_nat(self._bridge, self._interface)
            self._guard = Guard(
                installed,
                partial(plan.router, config),
                self._interface,
                self._loop,
                alarm=lambda: self._core.counters["mapping.failed.no_answer"],
            )
            stack.callback(self._guard.close)
            handlers = {"status": self._status, "reload": self._reload}
            server = ControlServer(config.run_dir / "router.sock", self._loop, handlers)
            stack.callback(server.close)
            log.info("router ready on %s with %d hosts in %s", self._interface, len(table), config.act)
            self._loop.run()
            log.info("router stops")

    def _listen(self) -> None:
        self._loop.add_reader(self._control, self._read_requests)
        self._loop.add_reader(self._bridge, self._read_captured)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._loop.stop)
        self._loop.on_signal(signal.SIGHUP, self._reload_act)

    def _read_requests(self) -> None:
        arrived = precise()
        for packet in self._control.recv_batch(_BATCH):
            self._perform(self._core.handle_request(packet, monotonic()), arrived)

    def _read_captured(self) -> None:
        for data in self._bridge.read_batch():
            self._perform(self._core.handle_captured(data, monotonic()))

    def _perform(self, effects: Iterable[Effect], arrived: float = 0.0) -> None:
        for effect in effects:
            if isinstance(effect, WritePseudo):
                self._trace.started(effect.transaction, arrived, arrived)
                self._bridge.write(effect.data)
            elif isinstance(effect, Inject):
                if effect.transaction is not None:
                    self._trace.routed(effect.transaction, precise())
                self._injector.send(effect.data)
            elif isinstance(effect, Send):
                self._control.send(effect.packet)
            elif isinstance(effect, Drop):
                self._control.drop(effect.packet)
            else:
                raise TypeError(f"no router does {effect!r}")

    def _next_deadline(self) -> float:
        deadlines = (self._core.next_deadline(), self._watch_at, self._guard.next_deadline())
        return min(deadline for deadline in deadlines if deadline is not None)

    def _tick(self, now: float) -> None:
        self._perform(self._core.handle_timer(now))
        self._guard.tick(now)
        if now >= self._look_at:
            self._counter_watch.look()
            self._look_at = now + INTERVAL
        if now >= self._watch_at:
            self._core.epoch_offset = epoch_offset()
            self._watch_at = now + _WATCH
            if self._act.changed():
                self._reload_act()

    def _reload_act(self) -> None:
        """Take the file as it is now; with a fault in it the table in force stays, without it all is denied."""
        try:
            self._core.act = self._act.load()
        except NatfError as error:
            if self._config.act.exists():
                log.error("%s; the previous access control table stays in force", error)
            else:
                self._core.act = AccessTable()
                log.error("%s is gone; every request is denied until it is back", self._config.act)
            return
        log.info("access control table of %d hosts in force", len(self._core.act))

    def _reload(self, request: dict[str, Any]) -> dict[str, object]:
        self._core.act = self._act.load()
        return {"hosts": len(self._core.act)}

    def _status(self, request: dict[str, Any]) -> dict[str, object]:
        return {
            "role": "router",
            "process": os.getpid(),
            "interface": str(self._guard.interface),
            "nat": self._bridge.name,
            "settings": settings_of(self._config),
            "act": [
                {
                    "name": entry.name,
                    "address": format_address(entry.address),
                    "action": "allow" if entry.allow else "deny",
                    "services": [str(service) for service in entry.services],
                }
                for entry in self._core.act
            ],
            "pending": self._core.pending,
            "counters": self._core.counters.snapshot(),
            "handles": {
                "control": self._control.counters,
                "injector": self._injector.counters,
                "nat": self._bridge.counters,
                "guard": self._guard.counters,
            },
            "trace": self._trace.snapshot(),
        }


def prove_nat(bridge: NetfilterBridge, interface: Interface) -> None:
    """Pass one pseudo-packet between two documentation addresses (RFC 5737) through the NAT; NatfError if it does
    not come back translated.

    Better now, in words, than at the first request of a stranger.
    """
    flow = Flow(Protocol.UDP, Endpoint(bytes((192, 0, 2, 1)), 9), Endpoint(bytes((198, 51, 100, 1)), 9))
    cookie = int.from_bytes(os.urandom(4), "big")
    bridge.write(pseudo.build(flow, cookie, bridge.style))
    give_up = monotonic() + _PROOF_TIMEOUT
    while (left := give_up - monotonic()) > 0:
        if not select.select([bridge], [], [], left)[0]:
            break
        for data in bridge.read_batch():
            captured = pseudo.parse_captured(data)
            if captured is None or captured.cookie != cookie:
                continue
            if captured.translated.source.address == interface.address:
                return
            raise NatfError(f"the NAT gave a pseudo-packet back as {captured.translated}; expected it from {interface}")
    raise NatfError(
        "the NAT did not give a pseudo-packet back: does another firewall table drop what is forwarded between "
        f"{bridge.name} and itself? (nft list ruleset, iptables -S FORWARD)"
    )
