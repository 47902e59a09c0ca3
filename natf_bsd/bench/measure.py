"""The measurements: each asks a `Bed`, in alternating pairs, and returns plain values for the report (s, bytes)."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from natf_bsd.bench.bed import DOMAIN, EN, NAME, ROUTER, Bed
from natf_bsd.bench.load import BETWEEN_FLOWS
from natf_bsd.bench.quantiles import quantiles
from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.en.core import EnCore
from natf_bsd.natd_bridge.pseudo import NETFILTER_STYLE
from natf_bsd.router.core import RouterCore
from natf_bsd.tables import act
from natf_bsd.tables.nrt import NameRelation
from natf_bsd.types import Direction, Endpoint, Flow, Name, Packet, Protocol, parse_address
from natf_bsd.wire import build, message

SIZES: Final = (64, 128, 256, 512, 1024, 1472)
"""Bytes of a message: the paper's table 5."""

_ASKED: Final = 300
_BY_ITSELF: Final = 512
"""Bytes of the messages by which the port forward is measured beside itself."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of each: `pairs` of alternating measurements, `rounds` of connections in each, `turns` of a stream for
    `seconds` each, `fresh` external nodes for cold connections, `entries` of the largest table."""

    pairs: int
    rounds: int
    turns: int
    seconds: float
    fresh: int
    entries: int


WHOLE: Final = Effort(pairs=5, rounds=200, turns=15, seconds=0.25, fresh=5, entries=100_000)
QUICK: Final = Effort(pairs=5, rounds=40, turns=5, seconds=0.1, fresh=2, entries=10_000)


def out_of_sleep() -> str:
    """How much slower a daemon's code runs that has slept as long as those here do between two flows. It depends on who
    else uses the processor's caches, and on what is below this kernel."""
    config = RouterConfig(source_rate=0, cookies="never")
    core = RouterCore(config, act.parse("alice 192.168.0.2 allow\n", "act"), NETFILTER_STYLE, lambda protocol: 60)
    here, there, name = Endpoint(parse_address("203.0.113.10"), 1024), parse_address("203.0.113.1"), Name("alice", "x")

    def asking(pause: float) -> float:
        taken = []
        for number in range(_ASKED):
            flow = Flow(Protocol.UDP, here._replace(port=1024 + number), Endpoint(parse_address("240.0.1.2"), 80))
            request = message.pad(message.encode(message.Request(os.urandom(8), flow, name)))
            data = build.icmp_echo(here.address, there, reply=False, ident=1, sequence=number, payload=request)
            time.sleep(pause)
            began = time.perf_counter()
            core.handle_request(Packet(data, Direction.IN), began)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    asking(0)
    awake, asleep = asking(0), asking(BETWEEN_FLOWS)
    times = f"{asleep / awake:.1f} times as slow"
    return f"{times} (a request takes the router's core {asleep * 1e6:.0f} us after 2 ms, {awake * 1e6:.0f} at once)"


def setup(bed: Bed, effort: Effort, say: Say) -> dict[str, Any]:
    """From connect() to established and to the first byte, cold and warm, and what NAT-f adds to a port forward."""
    say("setup: a first connection through fresh external nodes")
    cold = []
    for _ in range(effort.fresh):
        bed.restart_en()
        cold.append(bed.client("setup", 1, *(way.target for way in bed.ways))[0])
    bed.client("setup", 20, *(way.target for way in bed.ways))  # caches of both
    warm, added = [], []
    for pair in range(effort.pairs):
        say(f"setup: {effort.rounds} connections each way, pair {pair + 1} of {effort.pairs}")
        rounds = bed.client("setup", effort.rounds, *(way.target for way in bed.ways))
        warm += rounds
        added.append(_median_of(rounds, 1, 0) - _median_of(rounds, 0, 0))
    parts = _breakdown(bed, rounds)
    accounted = sum(parts[name] for name in parts if name != "answer_rewriting") / added[-1]
    return {
        "cold": {way.name: _connections([row[number] for row in cold]) for number, way in enumerate(bed.ways)},
        "warm": {way.name: _connections([row[number] for row in warm]) for number, way in enumerate(bed.ways)},
        "added_by_pair": added,
        "added": statistics.median(added),
        "breakdown": parts,
        "breakdown_to_added": accounted,
    }


def _median_of(rounds: list[list[list[float]]], way: int, what: int) -> float:
    return statistics.median(row[way][what] for row in rounds)


def _connections(rows: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    return {"established": quantiles([row[0] for row in rows]), "first_byte": quantiles([row[1] for row in rows])}


def _breakdown(bed: Bed, rounds: list[list[list[float]]]) -> dict[str, float]:
    """Medians of the parts of the paper's figure 7, by the trace points of both daemons, and of what lies before and
    behind them by the clock of the client that made `rounds` just now; in the order in which they follow each other.
    The last one is what the other way took as a whole, to be taken off.
    """
    en, router = bed.trace("en"), bed.trace("router")
    of_router = {row["transaction"]: row["router"] for row in router["negotiations"]}
    rows = [row for row in en["negotiations"] if row["transaction"] in of_router]
    pairs = [(own, row) for _, own in rounds for row in rows if own[2] <= row["arrived"] <= own[2] + own[0]]
    found = {"answer_rewriting": statistics.median(en["answer_rewriting"])} if en["answer_rewriting"] else {}

    def part(of: Callable[[list[float], dict[str, Any]], float]) -> float:
        return statistics.median(of(own, row) for own, row in pairs)

    return found | {
        "to_the_daemon": part(lambda own, row: row["arrived"] - own[2]),
        "negotiation_start": part(lambda own, row: row["negotiation_start"]),
        "way_there_and_back": part(lambda own, row: row["answer_wait"] - of_router[row["transaction"]]),
        "router": part(lambda own, row: of_router[row["transaction"]]),
        "resume": part(lambda own, row: row["resume"]),
        "release_to_established": part(lambda own, row: own[2] + own[0] - row["arrived"] - row["total"]),
        "less_the_port_forward": -statistics.median(forward[0] for forward, _ in rounds),
    }


_TURNS: Final = {"tcp": 3, "udp": 1}
"""Times as many: what TCP carries in a quarter of a second differs by a tenth from one turn to the next."""
_DIRECTIONS: Final = {"put": "from the external node", "get": "to the external node"}


def throughput(bed: Bed, effort: Effort, say: Say) -> list[dict[str, Any]]:
    """Delivered bits a second of one flow, and the median ratio of NAT-f to the port forward; with one size also that
    of the port forward to itself, which differs from 1 by chance alone."""
    rows = _streams(bed, effort, say, "throughput", SIZES)
    for protocol, direction in product(("tcp", "udp"), _DIRECTIONS):
        say(f"throughput: {protocol}, {_BY_ITSELF} bytes, {_DIRECTIONS[direction]}, the port forward beside itself")
        pairs = _pairs(bed, effort, (protocol, direction, _BY_ITSELF, "awake"), [bed.forward.target] * 2)
        stream = (protocol, _DIRECTIONS[direction], _BY_ITSELF)
        row = next(row for row in rows if (row["protocol"], row["direction"], row["size"]) == stream)
        row["itself"] = _median_ratio(pairs)
    return rows


def user_space(bed: Bed, effort: Effort, say: Say) -> list[dict[str, Any]]:
    """As `throughput`, with every packet rewritten by the daemon: what hosts without the kernel's way have, and those
    behind a gateway. The shortest and the longest messages only.
    """
    bed.restart_en(kernel_path=False)
    # Who receives datagrams sleeps in between: the daemon wants a processor, and there may be two.
    rows = _streams(bed, effort, say, "user space", (SIZES[0], SIZES[-1]), receiver="asleep")
    bed.restart_en(kernel_path=True)
    return rows


def _streams(
    bed: Bed, effort: Effort, say: Say, part: str, sizes: Sequence[int], *, receiver: str = "awake"
) -> list[dict[str, Any]]:
    rows = []
    for protocol, direction, size in product(("tcp", "udp"), _DIRECTIONS, sizes):
        say(f"{part}: {protocol}, {size} bytes, {_DIRECTIONS[direction]}")
        pairs = _pairs(bed, effort, (protocol, direction, size, receiver), [way.target for way in bed.ways])
        rows.append(
            {
                "protocol": protocol,
                "direction": _DIRECTIONS[direction],
                "size": size,
                **{way.name: statistics.median(pair[place] for pair in pairs) for place, way in enumerate(bed.ways)},
                "ratio": _median_ratio(pairs),
            }
        )
    return rows


def _pairs(
    bed: Bed, effort: Effort, stream: tuple[str, str, int, str], targets: Sequence[str]
) -> list[tuple[float, float]]:
    """Speeds by two targets in turns; `stream` is protocol, direction, bytes of a message, how its receiver waits."""
    turns = effort.turns * _TURNS[stream[0]]
    rounds = bed.client("throughput", *stream, effort.seconds, turns, *targets)
    return [(speed(*first), speed(*second)) for first, second in rounds]


def _median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(second / first for first, second in pairs)


def speed(count: float, took: float) -> float:
    """Bits a second."""
    return 8 * count / took if took else 0.0


def latency(bed: Bed, effort: Effort, say: Say) -> dict[str, Any]:
    """Round trips of small datagrams on open flows."""
    say("latency: round trips of datagrams")
    rounds = [
        row
        for _ in range(effort.pairs)
        for row in bed.client("echo", 10 * effort.rounds, *(way.target for way in bed.ways))
    ]
    found = {way.name: quantiles([row[number] for row in rounds]) for number, way in enumerate(bed.ways)}
    return found | {"added": found["NAT-f"]["median"] - found["port forward"]["median"]}


def rate(bed: Bed, effort: Effort, say: Say) -> dict[str, float]:
    """Mapping requests of new flows that one router answers in a second (RFC 9693's connection rate)."""
    say("rate: mapping requests")
    before = bed.processor_seconds("router")
    answered, took = bed.client("ask", max(2.0, 4 * effort.seconds), EN, ROUTER, NAME, DOMAIN)
    used = bed.processor_seconds("router") - before
    return {
        "a_second": answered / took,
        "a_second_of_processor": answered / used if used else 0.0,
        "answered": answered,
    }


def scale(effort: Effort, say: Say) -> dict[str, Any]:
    """Of an external node's core alone: memory of an entry, time of a packet, the longest sweep of expiry."""
    rows = []
    for count in (10, 1000, effort.entries):
        say(f"scale: {count} names and flows")
        rows.append(_scale_in_child(count))
    say("scale: start of natf --help")
    starts = []
    for _ in range(effort.pairs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "natf_bsd.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        starts.append(time.perf_counter() - began)
    return {"tables": rows, "start_of_help": statistics.median(starts)}


def _scale_in_child(count: int) -> dict[str, float]:
    """In a process of its own: what one has taken it does not give back."""
    program = f"import json; from natf_bsd.bench import measure; print(json.dumps(measure.fill({count})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def fill(count: int) -> dict[str, float]:
    """`count` names with a UDP flow each, then a packet each way of some, then all of them expire at once."""
    # Four, since one has 254 x 256 virtual addresses (DESIGN.md section 4).
    homes = tuple(f"home{number}.example.net" for number in range(4))
    core = EnCore(EnConfig(homes, maximum_names=2 * count + 10, maximum_flows=2 * count + 10))
    router = [parse_address(ROUTER)]
    before = _resident()
    relations = [core.names.learn(Name(f"host{n}", homes[n % 4]), router, 60, 0.0) for n in range(count)]
    names = _resident() - before
    before = _resident()
    flows = [_enter(core, number, relation) for number, relation in enumerate(relations)]
    entries = _resident() - before
    step = max(1, count // 1000)
    packets = [
        Packet(bytearray(build.udp(flow.source, flow.destination, b"x" * 36)), Direction.OUT) for flow in flows[::step]
    ]
    began = time.perf_counter()
    for packet in packets:
        core.handle_outbound(packet, 1.0)
    each = (time.perf_counter() - began) / len(packets)
    longest, now = 0.0, 1e6
    while (due := core.next_deadline()) is not None and due <= now:
        began = time.perf_counter()
        core.handle_timer(now)
        longest = max(longest, time.perf_counter() - began)
    return {
        "entries": count,
        "bytes_of_a_name": names / count,
        "bytes_of_a_flow": entries / count,
        "seconds_of_a_packet": each,
        "longest_sweep": longest,
    }


def _enter(core: EnCore, number: int, relation: NameRelation) -> Flow:
    flow = Flow(Protocol.UDP, Endpoint(parse_address(EN), 1024 + number % 60_000), Endpoint(relation.virtual, 5000))
    mapped = Endpoint(relation.routers[0], 1024 + number // 60_000)
    core.vat.insert(flow, mapped, relation, lifetime=60, now=0.0)
    core.names.acquire(relation)
    return flow


def _resident() -> int:
    """Bytes of this process in memory; the largest so far where that is all there is."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
