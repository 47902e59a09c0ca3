"""What a run found, as pictures: SVG by matplotlib (the extra "bench"), the same bytes for the same figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

MISSING: Final = "matplotlib is not installed (pip install natf_bsd[bench]): no plots"

# Okabe and Ito's colours, which colour-blind people tell apart too.
_FORWARD, _NATF, _OTHERS = "#999999", "#0072B2", "#E69F00"
_QUANTILES: Final = {"median": 1.0, "p95": 0.65, "p99": 0.35}
_SETTINGS: Final[Any] = {
    "svg.hashsalt": "natf_bsd",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(found: dict[str, Any], directory: Path) -> list[Path]:
    """A file for each part of the run that has a picture; returns them."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pictures: dict[str, Callable[[Any, Any], None]] = {
        "setup": _setup,
        "latency": _latency,
        "throughput": _throughput,
        "peers": _peers,
    }
    written = []
    with matplotlib.rc_context(_SETTINGS):
        for name, draw in pictures.items():
            if name in found:
                figure = pyplot.figure(figsize=(7.5, 4.2 if name != "throughput" else 6))
                draw(figure, found[name])
                path = directory / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None, "Creator": "natf bench"})
                pyplot.close(figure)
                written.append(path)
    return written


def _colour(way: str) -> str:
    return {"NAT-f": _NATF, "port forward": _FORWARD}.get(way, _OTHERS)


def _setup(figure: Any, found: dict[str, Any]) -> None:
    """Quantiles of connect() by way, cold and warm."""
    axes = figure.add_subplot()
    bars = [
        (f"{way}, {kind}", way, found[kind][way]["established"]) for kind in ("warm", "cold") for way in found[kind]
    ]
    for row, (_, way, times) in enumerate(bars):
        for name, shade in reversed(_QUANTILES.items()):
            axes.barh(row, times[name] * 1e6, color=_colour(way), alpha=shade, height=0.6)
        axes.text(times["median"] * 1e6, row, f" {times['median'] * 1e6:.0f}", va="center", color="black")
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("until connect() returned, us: median (full colour, number), 95th and 99th percentile")
    axes.set_title("A new TCP connection")


def _latency(figure: Any, found: dict[str, Any]) -> None:
    """Quantiles of a round trip by way."""
    axes = figure.add_subplot()
    ways = ("port forward", "NAT-f")
    for row, way in enumerate(ways):
        for name, shade in reversed(_QUANTILES.items()):
            axes.barh(row, found[way][name] * 1e6, color=_colour(way), alpha=shade, height=0.6)
        axes.text(found[way]["median"] * 1e6, row, f" {found[way]['median'] * 1e6:.0f}", va="center")
    axes.set_yticks(range(len(ways)), ways)
    axes.set_xlabel("us: median (full colour, number), 95th and 99th percentile")
    axes.set_title("Round trip of a datagram on an open flow")


def _throughput(figure: Any, found: list[dict[str, Any]]) -> None:
    """The paper's table 5: a panel for each protocol and direction."""
    panels = sorted({(row["protocol"], row["direction"]) for row in found})
    for place, (protocol, direction) in enumerate(panels):
        axes = figure.add_subplot(2, 2, place + 1)
        rows = [row for row in found if (row["protocol"], row["direction"]) == (protocol, direction)]
        ticks = range(len(rows))
        for way in "port forward", "NAT-f":
            axes.plot(ticks, [row[way] / 1e6 for row in rows], "o-", color=_colour(way), label=way)
        axes.set_xticks(ticks, [str(row["size"]) for row in rows])
        axes.set_title(f"{protocol.upper()}, {direction}")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("Mbit/s delivered")
        axes.set_xlabel("bytes a message")
        if not place:
            axes.legend(frameon=False)


def _peers(figure: Any, found: list[dict[str, Any]]) -> None:
    """What each adds to a new flow of the port forward's, on a logarithmic axis."""
    axes = figure.add_subplot()
    rows = sorted((row for row in found if row.get("added", 0) > 0), key=lambda row: row["added"])
    for place, row in enumerate(rows):
        axes.barh(place, row["added"] * 1e6, color=_colour(row["name"]), height=0.6)
        axes.text(row["added"] * 1e6, place, f" {row['added'] * 1e6:,.0f}", va="center")
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 2)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("added to a new flow by a port forward, until its first byte, us")
    axes.set_title("What people use instead")


def links(files: list[Path]) -> Iterator[str]:
    """Markdown that shows them."""
    yield from (f"![{file.stem}]({file.name})\n\n" for file in files)
