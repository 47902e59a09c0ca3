"""The external node's daemon: what an `EnNode` needs round it while it runs on a host.

Firewall rules are set only when every port has its reader, and taken back first when the daemon ends.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack
from typing import Any

from natf_bsd.config import EnConfig, settings_of
from natf_bsd.en import report
from natf_bsd.en.core import EnCore
from natf_bsd.en.node import EnNode
from natf_bsd.errors import RestartNeeded
from natf_bsd.firewall.guard import Guard
from natf_bsd.firewall.installed import Installed
from natf_bsd.ops import runtime
from natf_bsd.ops.control import ControlServer
from natf_bsd.ops.journal import Journal
from natf_bsd.ops.loop import Loop, epoch_offset, monotonic
from natf_bsd.ops.resolvers import RESOLV_CONF, Resolvers
from natf_bsd.ops.secret import kept_secret
from natf_bsd.ops.watch import INTERVAL, CounterWatch
from natf_bsd.platforms import this_platform
from natf_bsd.types import format_address

log = logging.getLogger(__name__)

_FLUSH_AGAIN_AFTER = 10.0
"""Seconds after which a disk that took nothing is tried again: the log is often on the same one."""

_KEEP = 60.0
"""Seconds between two looks at which routers no name and no flow knows any more."""

_KEY_SIZE = 16
"""Bytes of the virtual addresses' secret."""

_WORTH_A_WARNING = (
    "dns.sent.failed",
    "dns.sent.query_forgotten",
    "dns.sent.rebinding",
    "dns.drop.unasked",
    "out.drop.no_room",
    "out.drop.port_taken",
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
        self._flush_at: float | None = None
        self._watch_at = 0.0
        self._keep_at = 0.0
        self._stays = False
        self._installed: Installed | None = None

    def run(self) -> None:
        config = self._config
        runtime.need_root("natf en run")
        with ExitStack() as stack:
            stack.enter_context(runtime.RoleLock(config.run_dir, "en"))
            platform = this_platform()
            self._side = platform.external_node(config)
            key = kept_secret(config.state_dir / "virtual.key", _KEY_SIZE)
            self._core = EnCore(
                config,
                inbound_exact=self._side.inbound_exact,
                heeds_unreachable=self._side.heeds_unreachable,
                key=key,
            )
            self._watch = CounterWatch(self._core.counters, _WORTH_A_WARNING)
            self._follow_resolvers()
            self._core.lookups.follow = self._follow_resolvers
            self._journal = Journal(config.state_dir / "en.journal")
            stack.callback(self._flush)
            self._restore()
            self._node = EnNode(self._core, self._side, self._side.open(stack), self._save)
            stack.callback(self._node.shutdown)
            stack.callback(self._forget)
            self._loop = Loop(self._next_deadline, self._tick)
            stack.callback(self._loop.close)
            self._listen()
            self._side.keep(self._core.routers())
            plan = self._side.plan(self._side.interface)
            self._installed = stack.enter_context(Installed(plan, config.run_dir, platform.settings))
            self._take_over()
            self._node.addresses_changed()
            self._guard = Guard(
                self._installed,
                self._side,
                self._loop,
                alarm=lambda: self._core.counters["out.drop.kernel"],
                moved=self._node.addresses_changed,
            )
            stack.callback(self._guard.close)
            handlers = {"status": self._status, "reload": self._reload}
            server = ControlServer(config.run_dir / "en.sock", self._loop, handlers)
            stack.callback(server.close)
            log.info("external node ready on %s for %s", self._side.interface, ", ".join(config.home_domains))
            self._serve()
            log.info("external node stops")

    def _serve(self) -> None:
        """Until it is told to stop. When it must be started again, what refuses virtual addresses stays for so long."""
        try:
            self._loop.run()
        except RestartNeeded:
            self._stay()
            raise

    def _listen(self) -> None:
        for source, read in self._node.readers():
            self._loop.add_reader(source, read)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the last one: its terminal was closed
            self._loop.on_signal(number, self._loop.stop)
        self._loop.on_signal(signal.SIGUSR1, self._stop_for_restart)

    def _stop_for_restart(self) -> None:
        """End, but leave what refuses virtual addresses at once until the next daemon is there. On Linux these are the
        rules themselves, and they keep the kernel from answering a mapped connection's packets with a RST.
        """
        log.info("external node stops for a restart; virtual addresses are refused meanwhile")
        self._stay()
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

    def _save(self, record: dict[str, object]) -> None:
        self._journal.append(record)
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
        deadlines = (self._node.next_deadline(), self._flush_at, self._watch_at, self._guard.next_deadline())
        return min(deadline for deadline in deadlines if deadline is not None)

    def _tick(self, now: float) -> None:
        if now >= self._watch_at:
            self._core.epoch_offset = epoch_offset()  # the clock of day may have been set
            self._watch.look()
            self._follow_resolvers()
            self._watch_at = now + INTERVAL
        if now >= self._keep_at:
            self._side.keep(self._core.routers())
            self._keep_at = now + _KEEP
        if self._flush_at is not None and now >= self._flush_at:
            self._flush()
        self._guard.tick(now)
        self._node.tick(now)

    def _take_over(self) -> None:
        try:
            self._node.take_over()
        except OSError as error:
            log.warning("connections of an earlier run may be in the way of new ones: %s", error.strerror)

    def _forget(self) -> None:
        """What the kernel has of flows ends with us, unless the next daemon takes it over, or it is another's."""
        if self._installed is None or self._stays:
            return
        try:
            self._node.forget()
        except OSError as error:
            log.error("flows stay in the kernel (natf cleanup ends what it translates): %s", error.strerror)

    def _stay(self) -> None:
        if self._installed is not None:
            self._installed.stay()
            self._stays = True

    def _reload(self, request: dict[str, Any]) -> dict[str, object]:
        """Look at the firewall now, not within seconds: somebody has just set it anew."""
        return {"healed": self._guard.look_now()}

    def _status(self, request: dict[str, Any]) -> dict[str, object]:
        self._node.look()
        return {
            "role": "en",
            "process": os.getpid(),
            "interface": str(self._guard.interface),
            "settings": settings_of(self._config),
            "resolvers": sorted(map(format_address, self._core.lookups.resolvers)),
            **report.tables(self._core, monotonic(), int(request.get("rows", 1000))),
            "handles": self._node.counters | {"guard": self._guard.counters},
            "trace": self._node.trace.snapshot(),
        }
