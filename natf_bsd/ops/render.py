"""`natf status` as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from natf_bsd.en.counts import COUNTERS as EN_COUNTERS
from natf_bsd.router.counts import COUNTERS as ROUTER_COUNTERS

_WIDE = 240
"""Columns where no terminal sets a limit: a line cut in two is no line for grep."""


def render(status: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables of one daemon, its counters that are not zero, and what each counts."""
    console = console or _console()
    head = "external node" if status["role"] == "en" else f"router (NAT: {status['nat']})"
    console.print(f"{head}, process {status['process']}, {status['interface']}")
    if status["role"] == "en":
        console.print(names_table(status))
        console.print(flows_table(status))
        console.print(routers_table(status))
        for refusal in status["heard"]:
            console.print(f"refused: {refusal}", markup=False)
    else:
        console.print(act_table(status))
    console.print(counters_table(status))
    console.print(handles_table(status))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def counters_table(status: dict[str, Any]) -> Table:
    """What was counted so far, and what that is."""
    meanings = EN_COUNTERS if status["role"] == "en" else ROUTER_COUNTERS
    rows = [(name, count, meanings.get(name, "")) for name, count in sorted(status["counters"].items()) if count]
    return _table("Counters", ("counter", "count", "meaning"), rows)


def handles_table(status: dict[str, Any]) -> Table:
    """What the ways into and out of the kernel counted, its own losses included."""
    rows = [
        (handle, ", ".join(f"{name} {count}" for name, count in counters.items() if count) or "nothing yet")
        for handle, counters in status["handles"].items()
    ]
    return _table("Handles", ("handle", "counted"), rows)


def names_table(status: dict[str, Any]) -> Table:
    """The name relation table."""
    rows = [
        (row["name"], row["virtual"], ", ".join(row["routers"]), row["flows"], _seconds(row["ttl_left"]))
        for row in status["names"]
    ]
    return _table(
        _title("NRT, names", status, "names"), ("name", "virtual address V1", "router G2", "flows", "TTL left"), rows
    )


def flows_table(status: dict[str, Any]) -> Table:
    """The virtual address translation table."""
    rows = [
        (
            row["protocol"],
            row["source"],
            row["virtual"],
            row["mapped"],
            row["name"],
            f"{row['state']}{', direct' if row['direct'] else ''}{', in kernel' if row['in_kernel'] else ''}",
            _seconds(row["idle"]),
            _seconds(row["expires_in"]),
        )
        for row in status["flows"]
    ]
    columns = ("", "G1:s", "V1:d", "G2:m", "name", "state", "idle", "expires in")
    return _table(_title("VAT, flows", status, "flows"), columns, rows)


def routers_table(status: dict[str, Any]) -> Table:
    rows = [(row["address"], f"{row['round_trip'] * 1000:.2f} ms") for row in status["routers"]]
    return _table("NAT-f routers", ("address", "round trip"), rows)


def act_table(status: dict[str, Any]) -> Table:
    """The access control table in force."""
    rows = [(row["name"], row["address"], row["action"], " ".join(row["services"]) or "any") for row in status["act"]]
    return _table("ACT", ("name", "address", "action", "services"), rows)


def _seconds(value: float) -> str:
    """What is over, and waits only to be cleared away, is shown as over."""
    return f"{max(value, 0):.0f} s"


def _title(text: str, status: dict[str, Any], table: str) -> str:
    """With how many there are, and how many found no room."""
    refused = status["refused"][table]
    return f"{text} ({status[f'{table}_total']}{f', {refused} refused' if refused else ''})"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    return table
