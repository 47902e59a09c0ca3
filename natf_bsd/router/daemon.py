"""The router's daemon: what a `RouterNode` needs round it while it runs on a host."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack
from typing import Any

from natf_bsd.config import RouterConfig, settings_of
from natf_bsd.errors import NatfError
from natf_bsd.firewall.guard import Guard
from natf_bsd.firewall.installed import Installed
from natf_bsd.ops import act_file, runtime
from natf_bsd.ops.control import ControlServer
from natf_bsd.ops.loop import Loop, epoch_offset
from natf_bsd.ops.watch import INTERVAL, CounterWatch
from natf_bsd.platforms import this_platform
from natf_bsd.router.core import RouterCore
from natf_bsd.router.node import RouterNode, prove_nat
from natf_bsd.tables.act import AccessTable
from natf_bsd.types import format_address

log = logging.getLogger(__name__)

_WATCH = 1.0
"""Seconds between looks at the access control table's file; `natf act` also says so at once."""

_WORTH_A_WARNING = (
    "mapping.failed.no_answer",
    "mapping.failed.untranslated",
    "mapping.failed.other_address",
    "request.answered.out_of_resources",
    "request.answered.bad_key",
)


class RouterDaemon:
    """Everything that lives while `natf router run` does; `run` returns when it is told to stop."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._watch_at = 0.0
        self._look_at = 0.0

    def run(self) -> None:
        config = self._config
        runtime.need_root("natf router run")
        with ExitStack() as stack:
            stack.enter_context(runtime.RoleLock(config.run_dir, "router"))
            platform = this_platform()
            side = platform.router(config)
            self._act = act_file.ActFile(config.act)
            table = self._act.load()
            ports = side.open(stack)
            self._bridge = ports.bridge
            self._core = RouterCore(config, table, self._bridge.style, self._bridge.lifetime)
            self._node = RouterNode(self._core, ports)
            self._counter_watch = CounterWatch(self._core.counters, _WORTH_A_WARNING)
            self._loop = Loop(self._next_deadline, self._tick)
            stack.callback(self._loop.close)
            self._listen()
            plan = side.plan(side.interface)
            installed = stack.enter_context(Installed(plan, config.run_dir, platform.settings))
            prove_nat(self._bridge, side.interface, side.proof, side.hint)
            self._guard = Guard(
                installed, side, self._loop, alarm=lambda: self._core.counters["mapping.failed.no_answer"]
            )
            stack.callback(self._guard.close)
            handlers = {"status": self._status, "reload": self._reload}
            server = ControlServer(config.run_dir / "router.sock", self._loop, handlers)
            stack.callback(server.close)
            log.info("router ready on %s with %d hosts in %s", side.interface, len(table), config.act)
            self._loop.run()
            log.info("router stops")

    def _listen(self) -> None:
        for source, read in self._node.readers():
            self._loop.add_reader(source, read)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the last one is meant for an external node
            self._loop.on_signal(number, self._loop.stop)
        self._loop.on_signal(signal.SIGHUP, self._reload_act)

    def _next_deadline(self) -> float:
        deadlines = (self._node.next_deadline(), self._watch_at, self._guard.next_deadline())
        return min(deadline for deadline in deadlines if deadline is not None)

    def _tick(self, now: float) -> None:
        self._node.tick(now)
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
        """Nobody waits for an answer: what is wrong goes to the log."""
        try:
            self._take_act()
        except NatfError as error:
            log.error("%s", error)

    def _reload(self, request: dict[str, Any]) -> dict[str, object]:
        """`firewall`: also look at the rules now, because somebody has just set the firewall anew."""
        self._take_act()
        healed = bool(request.get("firewall")) and self._guard.look_now()
        return {"hosts": len(self._core.act), "healed": healed}

    def _take_act(self) -> None:
        """Take the file as it is now; with a fault in it the table in force stays, without it all is denied. Either is
        a NatfError: `ActFile` tells of a change once only.
        """
        try:
            self._core.act = self._act.load()
        except NatfError as error:
            if self._config.act.exists():
                raise NatfError(f"{error}; the previous access control table stays in force") from None
            self._core.act = AccessTable()
            raise NatfError(f"{self._config.act} is gone; every request is denied until it is back") from None
        log.info("access control table of %d hosts in force", len(self._core.act))

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
            "refused": self._core.refused,
            "counters": self._core.counters.snapshot(),
            "handles": self._node.counters | {"guard": self._guard.counters},
            "trace": self._node.trace.snapshot(),
        }
