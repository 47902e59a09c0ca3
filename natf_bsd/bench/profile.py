"""Where the daemons' time goes while a flow is set up: both under cProfile, function by function.

The profiler itself takes about half of the time it shows, so figures are for comparing functions, not for adding up;
`natf bench setup` has the true times.
"""

from __future__ import annotations

import pstats
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from natf_bsd.bench import bed
from natf_bsd.bench.bed import Bed

_ROLES: Final = ("en", "router")
_SHOWN: Final = 25
_SOURCE: Final = Path(__file__).parents[2]


def profile(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The functions of each daemon that take the most of their own time, per flow of `rounds`."""
    with TemporaryDirectory() as folder:
        files = {role: Path(folder) / role for role in _ROLES}
        with _under_profile(files) as ground:
            ground.client("setup", rounds, ground.natf.target)
        return {role: _functions(file, rounds) for role, file in files.items()}


@contextmanager
def _under_profile(files: dict[str, Path]) -> Iterator[Bed]:
    under = {role: ("-m", "cProfile", "-o", str(file)) for role, file in files.items()}
    with bed.made(under) as ground:
        yield ground
        ground.stop()


def _functions(file: Path, rounds: int) -> list[dict[str, Any]]:
    stats: Any = pstats.Stats(str(file))
    rows = [
        {
            "function": _name(*where),
            "calls": calls / rounds,
            "own": own / rounds,
            "with_callees": cumulative / rounds,
        }
        for where, (_, calls, own, cumulative, _) in stats.stats.items()
    ]
    waits = ("epoll", "read_proc", "cProfile", "runpy")
    return sorted(
        (row for row in rows if not any(word in row["function"] for word in waits)),
        key=lambda row: -row["own"],
    )[:_SHOWN]


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    path = Path(file)
    return f"{path.relative_to(_SOURCE) if path.is_relative_to(_SOURCE) else path.name}:{line} {function}"


def markdown(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for role, rows in found.items():
        yield f"## {role}\n\nus a flow, under the profiler.\n\n| own | with callees | calls | function |\n"
        yield "| --- | --- | --- | --- |\n"
        for row in rows:
            yield f"| {row['own'] * 1e6:.1f} | {row['with_callees'] * 1e6:.1f} | {row['calls']:.1f} "
            yield f"| `{row['function']}` |\n"
        yield "\n"
