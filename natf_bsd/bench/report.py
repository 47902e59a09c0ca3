"""What a run found, as JSON with the machine it was on, and as a Markdown page made from that."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from natf_bsd import __version__
from natf_bsd.bench import plots
from natf_bsd.lab.lab import SOURCE

PAPER: Final = {"added": 650e-6, "router": 114e-6, "answer_rewriting": 7e-6, "negotiation_start": 3e-6}
"""Seconds, of the paper's section 5: its kernel prototype on its machines."""


def circumstances() -> dict[str, Any]:
    """What figures mean nothing without."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "natf_bsd": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "processors": os.cpu_count(),
        "offloads": "as the kernel has them on veth (GSO, no wire): the same for every way",
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "not a checkout"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(found: dict[str, Any], directory: Path) -> list[Path]:
    """report.json, report.md and, with matplotlib, plots in `directory`; returns them."""
    directory.mkdir(parents=True, exist_ok=True)
    data, page = directory / "report.json", directory / "report.md"
    data.write_text(json.dumps(found, indent=1) + "\n")
    drawn = plots.write(found, directory) if plots.available() else []
    shown = [*plots.links(drawn)] if plots.available() else [f"{plots.MISSING}\n"]
    page.write_text("".join((*markdown(found), "\n## Plots\n\n", *shown)).rstrip() + "\n")
    return [data, page, *drawn]


def markdown(found: dict[str, Any]) -> Iterator[str]:
    """The page; measurements that were left out of the run are left out of it."""
    yield "# natf bench\n\n"
    yield f"Made by `{found['command']}`; method: [README.md](README.md).\n\n"
    yield "| | |\n| --- | --- |\n"
    yield from (f"| {name} | {value} |\n" for name, value in found["machine"].items())
    parts: tuple[tuple[str, Callable[[Any], Iterator[str]]], ...] = (
        ("setup", _setup),
        ("latency", _latency),
        ("rate", _rate),
        ("throughput", _throughput),
        ("user_space", _user_space),
        ("peers", _peers),
        ("distance", _distance),
        ("scale", _scale),
    )
    for name, part in parts:
        if name in found:
            yield "\n"
            yield from part(found[name])


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _setup(found: dict[str, Any]) -> Iterator[str]:
    yield "## Set-up\n\nOf a TCP connection, in microseconds.\n\n"
    yield "| way | | connect() returned: median | p95 | p99 | first byte: median | p95 | p99 | connections |\n"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    for kind in "warm", "cold":
        for way, times in found[kind].items():
            cells = [
                _microseconds(times[what][quantile])
                for what in ("established", "first_byte")
                for quantile in ("median", "p95", "p99")
            ]
            yield f"| {way} | {kind} | {' | '.join(cells)} | {times['established']['count']} |\n"
    yield f"\nAdded by NAT-f to a warm connection: **{_microseconds(found['added'])}** (median of "
    yield f"{len(found['added_by_pair'])} pairs: {', '.join(map(_microseconds, found['added_by_pair']))}); the paper "
    yield f"has {_microseconds(PAPER['added'])} on its machines.\n\n"
    yield "Where it goes (medians):\n\n| part | here | paper |\n| --- | --- | --- |\n"
    for name, seconds in found["breakdown"].items():
        paper = _microseconds(PAPER[name]) if name in PAPER else ""
        yield f"| {name.replace('_', ' ')} | {_microseconds(seconds)} | {paper} |\n"
    yield "\nTo the daemon, and from the packet's release on, it is the kernel's way, by the client's clock. All are "
    yield "of the last pair; without answer rewriting, which is the look-up's, they are "
    yield f"{found['breakdown_to_added']:.2f} of the time it added.\n"


def _latency(found: dict[str, Any]) -> Iterator[str]:
    yield "## Latency\n\nRound trips of small UDP datagrams on open flows, in microseconds.\n\n"
    yield "| way | median | p95 | p99 |\n| --- | --- | --- | --- |\n"
    for way in "port forward", "NAT-f":
        yield f"| {way} | {' | '.join(_microseconds(found[way][name]) for name in ('median', 'p95', 'p99'))} |\n"
    yield f"\nAdded to a round trip: {_microseconds(found['added'])}.\n"


def _rate(found: dict[str, Any]) -> Iterator[str]:
    yield "## Rate\n\nMapping requests for new UDP flows that the router answered with a mapping: "
    yield f"**{found['a_second']:,.0f} a second**, {found['a_second_of_processor']:,.0f} for each second of one "
    yield f"processor ({found['answered']:,.0f} answered, 64 under way).\n"


def _throughput(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Throughput\n\nDelivered, one flow, in Mbit/s; the ratio is the median of pairs.\n\n"
    yield from _streams(found)
    for row in found:
        if "itself" in row:
            stream = f"{row['protocol'].upper()} {row['direction']} with {row['size']} bytes"
            yield f"\nThe port forward to itself, {stream}: {row['itself']:.2f}.\n"


def _user_space(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Throughput in user space\n\nThe same with `kernel_path = false`: the daemon rewrites every packet.\n\n"
    yield from _streams(found)


def _streams(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "| protocol | direction | bytes a message | port forward | NAT-f | ratio |\n"
    yield "| --- | --- | --- | --- | --- | --- |\n"
    for row in found:
        yield f"| {row['protocol'].upper()} | {row['direction']} | {row['size']} | {row['port forward'] / 1e6:,.1f} "
        yield f"| {row['NAT-f'] / 1e6:,.1f} | {row['ratio']:.2f} |\n"


def _peers(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Peers\n\nA new flow until its first byte, in microseconds: what a peer needs before the first packet may "
    yield "go (signalling), and from then on. *Added* is against the port forward, a median of alternating pairs.\n\n"
    yield "| peer | signalling | first byte: median | p95 | added | of which pairs | first after its start "
    yield "| round trip | what was timed |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    ran = [row for row in found if "not_run" not in row]
    for row in ran:
        trip = _microseconds(row["round_trip"]["median"]) if "round_trip" in row else ""
        first = _microseconds(row["first"]) if "first" in row else ""
        yield f"| {row['name']} | {_microseconds(row['signalling']['median'])} "
        yield f"| {_microseconds(row['first_byte']['median'])} | {_microseconds(row['first_byte']['p95'])} "
        yield f"| **{_microseconds(row['added'])}** | {', '.join(map(_microseconds, row['added_by_pair']))} "
        yield f"| {first} | {trip} | {row['counted']} |\n"
    yield "\nWhat NAT-f added in the same turns, and the median of the pairs' ratios:\n\n"
    yield "| peer | added by NAT-f | ratio to its own |\n| --- | --- | --- |\n"
    for row in ran:
        if row["name"] != "NAT-f" and row["added"] > 0:
            beside = ", ".join(map(_microseconds, row["natf_by_pair"]))
            yield f"| {row['name']} | {beside} | {row['natf_to_own']:.2f} |\n"
    yield "\nStreams, in Mbit/s delivered (ratio to the port forward):\n\n"
    streams = [(row["protocol"], row["direction"], row["size"]) for row in ran[0]["streams"]]
    titles = [f"{protocol.upper()} {size} {_ARROWS[direction]}" for protocol, direction, size in streams]
    yield f"| peer | {' | '.join(titles)} |\n| --- |{' --- |' * len(titles)}\n"
    for row in ran:
        by = {(s["protocol"], s["direction"], s["size"]): s for s in row["streams"]}
        cells = [f"{by[s]['speed'] / 1e6:,.0f} ({by[s]['ratio']:.2f})" if s in by else "" for s in streams]
        yield f"| {row['name']} | {' | '.join(cells)} |\n" if any(cells) else ""
    yield "\n| peer | gives, beside reachability | asks |\n| --- | --- | --- |\n"
    yield from (f"| {row['name']} | {row['gives']} | {row['asks']} |\n" for row in found)
    for row in found:
        if "not_run" in row:
            yield f"\n**{row['name']}** did not run here: {row['not_run']}\n"


def _distance(found: dict[str, Any]) -> Iterator[str]:
    yield f"## Peers, with a home that is {found['one_way'] * 1000:.0f} ms away\n\nA new flow until its first byte, in "
    yield "milliseconds, as above: what each adds to the port forward, and what NAT-f adds in the same turns.\n\n"
    yield "| peer | added | of which pairs | added by NAT-f | ratio of NAT-f's to its own |\n"
    yield "| --- | --- | --- | --- | --- |\n"
    for row in found["rows"]:
        if "not_run" in row:
            yield f"| {row['name']} | did not run: {row['not_run']} | | | |\n"
            continue
        pairs, natf = (", ".join(map(_milliseconds, row[name])) for name in ("added_by_pair", "natf_by_pair"))
        ratio = f"{row['natf_to_own']:.2f}" if row["name"] != "NAT-f" and row["added"] > 0 else ""
        yield f"| {row['name']} | **{_milliseconds(row['added'])}** | {pairs} | {natf} | {ratio} |\n"


_ARROWS: Final = {"put": "to alice", "get": "from alice"}


def _scale(found: dict[str, Any]) -> Iterator[str]:
    yield "## Scale\n\nAn external node's core alone; a packet is one of an open flow, look-up and rewriting.\n\n"
    yield "| names and flows | bytes a name | bytes a flow | us a packet | ms of the longest sweep of expiry |\n"
    yield "| --- | --- | --- | --- | --- |\n"
    for row in found["tables"]:
        yield f"| {row['entries']:,.0f} | {row['bytes_of_a_name']:,.0f} | {row['bytes_of_a_flow']:,.0f} "
        yield f"| {row['seconds_of_a_packet'] * 1e6:.1f} | {row['longest_sweep'] * 1e3:.1f} |\n"
    yield f"\n`natf --help` takes {found['start_of_help'] * 1e3:.0f} ms.\n"


def command_line() -> str:
    """As it was typed, for whoever wants to do it again."""
    return " ".join(["natf", *sys.argv[1:]])
