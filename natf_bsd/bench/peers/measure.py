"""What each peer costs, beside the port forward and NAT-f in alternating turns. A new flow begins after the same pause
by all of them: programs that have just run are faster than those that slept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar

from natf_bsd.bench.bed import Bed, made
from natf_bsd.bench.load import BETWEEN_FLOWS
from natf_bsd.bench.measure import Effort, Say, speed
from natf_bsd.bench.peers import Peer, Reach, direct, ice, igd, sshuttle, tunnels, turn
from natf_bsd.bench.quantiles import quantiles
from natf_bsd.errors import NatfError

T = TypeVar("T")
_Measure: TypeAlias = Callable[[Bed, Reach, Effort], dict[str, Any]]

ALL: Final = (direct.PEER, igd.PCP, igd.UPNP, turn.PEER, ice.PEER, tunnels.WIREGUARD, sshuttle.PEER, tunnels.IPIP)

_STREAMS: Final = (
    ("tcp", "put", 1472),
    ("tcp", "get", 1472),
    ("udp", "put", 64),
    ("udp", "put", 1472),
    ("udp", "get", 1472),
)
"""Of the streams of `measure.throughput` those that tell peers apart."""

_WARM: Final = 20
"""Connections before the first that counts."""

_REASON: Final = 300  # characters of why a peer did not run

_FEWER: Final = 10
"""Peers whose flows take milliseconds get a tenth of the rounds."""


DISTANCE: Final = 0.01
"""Seconds from the public segment to the router, for `distance`."""

_AT_A_DISTANCE: Final = (igd.PCP, igd.UPNP, turn.PEER, ice.PEER, tunnels.WIREGUARD, sshuttle.PEER)


def peers(bed: Bed, effort: Effort, say: Say) -> list[dict[str, Any]]:
    """Of each peer: the time of a new flow until its first byte, what that adds to the port forward, round trips and
    streams; or why it does not run here."""
    return [_natf(bed, effort, say, _measured), *(_row(bed, peer, effort, say, _measured) for peer in ALL)]


def distance(effort: Effort, say: Say) -> dict[str, Any]:
    """The time of a new flow again where the home is not on the same segment: there, round trips are most of it."""
    fewer = replace(effort, rounds=max(5, effort.rounds // _FEWER))
    with made(distance=DISTANCE) as bed:
        rows = [_natf(bed, fewer, say, _set_up), *(_row(bed, peer, fewer, say, _set_up) for peer in _AT_A_DISTANCE)]
    return {"one_way": DISTANCE, "rows": rows}


def _row(bed: Bed, peer: Peer, effort: Effort, say: Say, measure: _Measure) -> dict[str, Any]:
    say(f"peers: {peer.name}")
    row: dict[str, Any] = {"name": peer.name, "gives": peer.gives, "asks": peer.asks, "counted": peer.counted}
    try:
        with peer.run(bed) as reach:
            _fresh(bed)
            row |= measure(bed, reach, effort)
    except NatfError as error:
        row["not_run"] = _in_a_line(str(error))
    return row


def _in_a_line(text: str) -> str:
    """The end of what a program said, which mostly has the reason."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[-_REASON:]


def _fresh(bed: Bed) -> None:
    """An external node as new as every peer is: what was measured before leaves it thousands of flows to see to."""
    bed.restart_en()
    bed.client("setup", _WARM, bed.natf.target)


def _natf(bed: Bed, effort: Effort, say: Say, measure: _Measure) -> dict[str, Any]:
    say("peers: NAT-f")
    _fresh(bed)
    return {
        "name": "NAT-f",
        "gives": "nothing; names for inside hosts, and access control",
        "asks": "of the external node and the router a daemon each",
        "counted": "negotiation within connect()",
        **measure(bed, Reach(bed.natf.target, ("tcp", "udp")), effort),
    }


def _measured(bed: Bed, reach: Reach, effort: Effort) -> dict[str, Any]:
    row = _set_up(bed, reach, effort)
    if "udp" in reach.protocols:
        trips = bed.client("echo", effort.rounds, bed.forward.target, reach.target)
        row["round_trip"] = quantiles([trip[1] for trip in trips])
    streams = [stream for stream in _STREAMS if stream[0] in reach.protocols]
    row["streams"] = [_stream(bed, reach.target, effort, *stream) for stream in streams]
    if reach.first is not None:
        row["first"] = statistics.median(reach.first() for _ in range(effort.fresh))
    return row


def _set_up(bed: Bed, reach: Reach, effort: Effort) -> dict[str, Any]:
    return _by_target(bed, reach, effort) if reach.target else _by_flows(bed, reach.flow, effort)


def _by_target(bed: Bed, reach: Reach, effort: Effort) -> dict[str, Any]:
    """The load makers go by it as they are."""
    targets = (bed.forward.target, bed.natf.target, reach.target)
    added, natf, times, signalling = [], [], [], []
    for _ in range(effort.pairs):
        rounds = bed.client("setup", effort.rounds, *targets)
        before = _each(reach.signalling, max(5, effort.rounds // _FEWER)) if reach.signalling else [0.0]
        forward, beside, own = (statistics.median(row[way][1] for row in rounds) for way in range(3))
        added.append(statistics.median(before) + own - forward)
        natf.append(beside - forward)
        times += [row[2][1] for row in rounds]
        signalling += before
    return _compared(added, natf) | {"first_byte": quantiles(times), "signalling": quantiles(signalling)}


def _stream(bed: Bed, target: str, effort: Effort, protocol: str, direction: str, size: int) -> dict[str, Any]:
    rounds = bed.client(
        *("throughput", protocol, direction, size, "awake", effort.seconds, effort.turns),
        *(bed.forward.target, target),
    )
    pairs = [[speed(*run) for run in runs] for runs in rounds]
    return {
        "protocol": protocol,
        "direction": direction,
        "size": size,
        "speed": statistics.median(own for _, own in pairs),
        "ratio": statistics.median(own / forward for forward, own in pairs),
    }


def _each(one: Callable[[], T], times: int) -> list[T]:
    found = []
    for _ in range(times):
        time.sleep(BETWEEN_FLOWS)
        found.append(one())
    return found


def _compared(added: list[float], natf: list[float]) -> dict[str, Any]:
    """What a peer and NAT-f, beside it, added in each pair."""
    return {
        "added_by_pair": added,
        "added": statistics.median(added),
        "natf_by_pair": natf,
        "natf_to_own": statistics.median(by_natf / own for by_natf, own in zip(natf, added, strict=True)),
    }


def _by_flows(bed: Bed, flow: Callable[[], list[float]] | None, effort: Effort) -> dict[str, Any]:
    """It has a program of its own at both ends."""
    if flow is None:
        raise TypeError("a peer has a target or flows")
    added, natf, signalling, trips = [], [], [], []
    for _ in range(effort.pairs):
        connections = bed.client("setup", effort.rounds, bed.forward.target, bed.natf.target)
        by_forward, by_natf = (statistics.median(row[way][1] for row in connections) for way in range(2))
        natf.append(by_natf - by_forward)
        forward = statistics.median(row[0] for row in bed.client("echo", effort.rounds, bed.forward.target))
        found = _each(flow, max(3, effort.rounds // _FEWER))
        added.append(statistics.median(before + trip for before, trip in found) - forward)
        signalling += [before for before, _ in found]
        trips += [trip for _, trip in found]
    return _compared(added, natf) | {
        "first_byte": quantiles([before + trip for before, trip in zip(signalling, trips, strict=True)]),
        "signalling": quantiles(signalling),
        "round_trip": quantiles(trips),
    }
