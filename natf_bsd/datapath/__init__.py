"""The in-kernel data path: established flows that the kernel translates by itself, at the speed it has without us.

The VAT table stays the authority. A flow is handed over when it has its mapping, the kernel reports from time to time
what it has carried, and the flow is taken back when its entry ends or its mapping becomes another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from natf_bsd.types import Endpoint, Flow


@dataclass(frozen=True, slots=True)
class Carried:
    """Packets of the flow with this `Flow.key` that the kernel has translated since its last report, at `since`
    (monotonic seconds): `out` to the router, `inward` back. `mapped` is where it sends them.

    `fins` (0 to 2) and `reset` are what it has seen of a TCP connection's end, ever. `unacknowledged`: whether this
    side waits for an acknowledgement now; None: that is not known.
    """

    key: bytes
    mapped: Endpoint
    since: float
    out: int
    inward: int
    fins: int = 0
    reset: bool = False
    unacknowledged: bool | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The kernel has forgotten the flow with this `Flow.key`: it was idle for long, or somebody emptied its table."""

    key: bytes


Report: TypeAlias = Carried | Gone


class KernelPath(Protocol):
    """A kernel's way to translate flows. Open until `close()`."""

    @property
    def room(self) -> int | None:
        """How many flows it takes: the busiest, handed over when they are in use. None: all, each with its first
        packet."""

    def hand_over(self, flow: Flow, mapped: Endpoint, leaves: str = "") -> bool:
        """From the next packet on, of those that come to the handle of the flow's way; where there is little `room`,
        from a later one on. `leaves` is the interface by which that packet would leave, as far as it is known. False if
        it is refused; `Gone` is reported if that turns out later."""

    def take_back(self, flow: Flow, *, at_once: bool = True) -> None:
        """Its packets come to that handle again; unless `at_once`, from a later one on."""

    def next_deadline(self) -> float:
        """When `tick` has something to do next, in monotonic seconds."""

    def tick(self, now: float) -> None:
        """Begin what is due; reports follow."""

    def fileno(self) -> int | None:
        """A descriptor that polls readable while there are reports; None: there may be some after each `tick`."""

    def receive(self) -> list[Report]:
        """Reports that are there; never blocks."""

    def look_at(self, flow: Flow) -> list[Report]:
        """A report of one flow, as it is now."""

    def look(self) -> list[Report]:
        """Reports of all flows as they are now; waits for them."""

    def take_over(self) -> list[Report]:
        """Once it is sure that no other daemon serves here: of what an earlier run has left. What is not reported is
        ended."""

    def forget(self) -> None:
        """Take back everything, flows of earlier runs included. OSError if some may be left."""

    def close(self) -> None:
        """What was handed over goes on, unless its packets would be refused or lost without a daemon."""

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far."""
