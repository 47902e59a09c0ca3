"""Ending the processes of a lab, however they were found."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from natf_bsd.errors import NatfError

_TERM_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL: a daemon's own clean-up takes a tenth of that."""

_KILL_GRACE = 5.0
"""Seconds after which a killed process that is still there is a fault to report."""

_POLL = 0.01


def end(find: Callable[[], set[int]]) -> None:
    """End what `find` finds, by SIGTERM, then by SIGKILL; NatfError when something outlives that.

    What enters the lab only now (a shell on its way in) is asked in its turn, not killed unasked.
    """
    asked: set[int] = set()
    start = time.monotonic()
    while pids := find():
        _signal(pids - asked, signal.SIGTERM)
        asked |= pids
        waited = time.monotonic() - start
        if waited > _TERM_GRACE + _KILL_GRACE:
            raise NatfError(f"processes {sorted(pids)} of the lab do not end, not even by SIGKILL")
        if waited > _TERM_GRACE:
            _signal(pids, signal.SIGKILL)
        time.sleep(_POLL)


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
