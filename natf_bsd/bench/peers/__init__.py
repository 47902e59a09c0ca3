"""What people use instead of NAT-f, on the same lab in the same run: `natf bench peers`.

Each peer is a context manager that gives a `Reach` for as long as it runs; `ALL` lists them. Programs that are missing
here are named with the reason, and nothing is started outside the lab's namespaces.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from natf_bsd.bench.bed import Bed
from natf_bsd.errors import NatfError


@dataclass(frozen=True, slots=True)
class Reach:
    """How alice is reached by a peer that runs.

    `target`: ADDRESS:PORT, if the load makers can use it as it is, by `protocols`. `signalling`: seconds of the
    exchange that a new flow needs before its first packet may go, told by the programs that make it; where there is no
    target, `flow` gives that and the seconds of a round trip by the new flow. `first`: seconds of a first connection
    after the peer was started anew, where it has a state of its own.
    """

    target: str = ""
    protocols: tuple[str, ...] = ()
    signalling: Callable[[], float] | None = None
    flow: Callable[[], list[float]] | None = None
    first: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """`run` raises NatfError with the reason when it cannot run here. `gives`: beside reachability; `asks`: of the
    inside host, the router, or a third party; `counted`: what the time of a new flow is made of."""

    name: str
    gives: str
    asks: str
    counted: str
    run: Callable[[Bed], AbstractContextManager[Reach]]


def need(*programs: tuple[str, str]) -> None:
    """NatfError unless all are here; pairs of program and Debian package."""
    missing = [f"{program} (Debian package {package})" for program, package in programs if not shutil.which(program)]
    if missing:
        raise NatfError(f"not installed: {', '.join(missing)}; make bench-peers does that")


def undo(bed: Bed, host: str, commands: Sequence[str]) -> None:
    """Commands that take back what a peer has set, whatever is left of it."""
    for command in commands:
        bed.run(host, "sh", "-c", f"{command} 2>/dev/null || true")
