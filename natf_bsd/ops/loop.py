"""The event loop, and the only place that reads the clock."""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

_LONGEST_WAIT = 3600.0
"""Seconds of one wait: epoll takes no more than 24 days and no infinity; a wake-up an hour costs nothing."""


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux's CLOCK_MONOTONIC stands still in suspend; CLOCK_BOOTTIME is the same clock without that."""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def monotonic() -> float:
    """Seconds of the monotonic clock: the `now` of every core. It goes on while a laptop sleeps, as mappings do."""
    return time.clock_gettime(_CLOCK)


def epoch_offset() -> float:
    """What to add to `monotonic()` for seconds since 1970."""
    return time.time() - monotonic()


def precise() -> float:
    """Seconds of the finest clock there is, for durations shown to people."""
    return time.perf_counter()


def _spare_what_is_there() -> None:
    """Modules and tables' furniture stay till the end: the garbage collector need not look at them while somebody
    waits. What the daemons make later has no cycles, but for what exceptions leave.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


class Loop:
    """Readers by descriptor, one function for deadlines, signals by self-pipe.

    loop = Loop(core.next_deadline, daemon.tick)
    loop.add_reader(divert, daemon.read_packets)
    loop.run()
    """

    def __init__(self, next_deadline: Callable[[], float | None], on_deadline: Callable[[float], None]) -> None:
        self._selector = selectors.DefaultSelector()
        self._next_deadline = next_deadline
        self._on_deadline = on_deadline
        self._stopped = False
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        self._signals: dict[int, Callable[[], None]] = {}
        self._pending: list[int] = []
        self.add_reader(self._wake_read, self._drain)

    def add_reader(self, source: int | HasFileno, callback: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, callback)

    def remove_reader(self, source: int | HasFileno) -> None:
        self._selector.unregister(source)

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Run `callback` in the loop, not in the signal handler."""
        self._signals[number] = callback
        signal.signal(number, self._signalled)

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """Until `stop()`. The deadline function runs only when its deadline has come, never for an idle wake-up."""
        _spare_what_is_there()
        while not self._stopped:
            deadline = self._next_deadline()
            timeout = None if deadline is None else min(max(0.0, deadline - monotonic()), _LONGEST_WAIT)
            for key, _ in self._selector.select(timeout):
                key.data()
            if deadline is not None and (now := monotonic()) >= deadline:
                self._on_deadline(now)

    def close(self) -> None:
        """Signals that come later are swallowed: a daemon that takes its rules back must not be cut off there."""
        self._closed = True
        self._selector.close()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._closed:
            return
        self._pending.append(number)
        with contextlib.suppress(BlockingIOError):  # full: then it wakes the loop anyway
            os.write(self._wake_write, b"!")

    def _drain(self) -> None:
        os.read(self._wake_read, 4096)
        while self._pending:
            self._signals[self._pending.pop(0)]()
