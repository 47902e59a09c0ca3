"""Which flows the kernel should have where it has room for few and does not say what it carries (FreeBSD). Sans-IO.

A flow is judged by its packets of one interval. What the kernel then carries nobody sees, so that it gets the flow for
a time only: after that the flow is in user space for an interval at least, and is judged again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from natf_bsd.tables.vat import VatEntry

INTERVAL = 2.5
"""Seconds of an interval: half of what a flow is unanswered before it is asked for again
(`tables.vat.SILENCE_SECONDS`)."""

BUSY = 200
"""Packets in an interval: rewriting them here takes more than ten milliseconds, which is what a process with the
lines of a flow takes, there and back."""

LONGEST = 20.0
"""Seconds the kernel has a flow: eight intervals for each one in which it is judged. It ends earlier by so much at the
most, for what the kernel carries counts as no use; a shorter-lived flow by a quarter of its lifetime."""

WORTHWHILE = 5.0
"""Seconds the kernel must be able to have a flow."""


class Busiest:
    """At most `room` flows at once are with the kernel."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._counts: dict[VatEntry, int] = {}
        self._ends = math.inf
        self._until: dict[VatEntry, float] = {}
        self._back: dict[VatEntry, float] = {}

    def note(self, entry: VatEntry, now: float) -> None:
        """One of its packets, either way, passed in user space."""
        counts = self._counts
        if not counts:
            self._ends = now + INTERVAL
        counts[entry] = counts.get(entry, 0) + 1

    def due(self, now: float) -> list[VatEntry]:
        """Flows that the kernel has had for long enough; see `back`."""
        return [entry for entry, until in self._until.items() if until <= now]

    def chosen(self, now: float, may: Callable[[VatEntry], bool]) -> list[VatEntry]:
        """Those of the interval that ends now, if one does, for the kernel to have from now on: the busiest first, of
        the flows that `may`."""
        if now < self._ends:
            return []
        counts, self._counts, self._ends = self._counts, {}, math.inf
        self._back = {entry: at for entry, at in self._back.items() if now - at < INTERVAL}
        found = [entry for entry, packets in counts.items() if packets >= BUSY and self._is_fit(entry, packets, now)]
        found = [entry for entry in found if may(entry)]
        found.sort(key=counts.__getitem__, reverse=True)
        chosen = found[: self._room - len(self._until)]
        for entry in chosen:
            self._until[entry] = _until(entry, now)
        return chosen

    def back(self, entry: VatEntry, now: float) -> None:
        """It is in user space again, or still."""
        if self._until.pop(entry, None) is not None:
            self._back[entry] = now

    def remove(self, entry: VatEntry) -> None:
        """It has ended, or has another mapping."""
        for kept in (self._until, self._back, self._counts):
            kept.pop(entry, None)

    def next_deadline(self) -> float | None:
        """When `due` or `chosen` has something next (monotonic seconds), None if never."""
        deadline = min(self._until.values(), default=math.inf)
        deadline = min(deadline, self._ends)
        return None if deadline == math.inf else deadline

    def _is_fit(self, entry: VatEntry, packets: int, now: float) -> bool:
        """The last condition says that it was answered in this interval: else all its packets went out since."""
        return (
            entry not in self._until
            and entry not in self._back
            and _until(entry, now) - now >= WORTHWHILE
            and entry.unanswered < packets
        )


def _until(entry: VatEntry, now: float) -> float:
    """Until when the kernel may have it: a renewal needs one of its packets."""
    until = now + min(LONGEST, entry.lifetime / 4)
    return min(until, entry.renewal_at) if entry.state is None and not entry.direct else until
