"""ICE (RFC 8445): both ends run aioice, with a STUN server, and a channel of the bench's to tell each other candidates.

python -m natf_bsd.bench.peers.ice controlling|controlled
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from natf_bsd.bench.bed import Bed
from natf_bsd.bench.peers import Peer, Reach, stun
from natf_bsd.bench.peers.turn import need_aioice

_ROUND_TRIPS = 9


@contextmanager
def _run(bed: Bed) -> Iterator[Reach]:
    need_aioice()
    with (
        stun.server(bed),
        bed.talking("en", "natf_bsd.bench.peers.ice", "controlling") as en,
        bed.talking("alice", "natf_bsd.bench.peers.ice", "controlled") as alice,
    ):

        def flow() -> list[float]:
            began = time.perf_counter()
            en.tell("gather")
            alice.tell("gather")
            offer, answer = en.hear(), alice.hear()
            alice.tell(offer)
            en.tell(answer)
            connected, round_trip = json.loads(en.hear())
            alice.hear()
            return [connected - began, round_trip]

        yield Reach(flow=flow)


async def _serve(controlling: bool) -> None:
    import aioice

    loop = asyncio.get_running_loop()

    async def heard() -> str:
        line: str = await loop.run_in_executor(None, sys.stdin.readline)
        return line.strip()

    while await heard():
        connection = aioice.Connection(
            ice_controlling=controlling, stun_server=(stun.ADDRESS, stun.PORT), use_ipv6=False
        )
        await connection.gather_candidates()
        own = [candidate.to_sdp() for candidate in connection.local_candidates]
        _tell([connection.local_username, connection.local_password, own])
        connection.remote_username, connection.remote_password, candidates = json.loads(await heard())
        for candidate in candidates:
            await connection.add_remote_candidate(aioice.Candidate.from_sdp(candidate))
        await connection.add_remote_candidate(None)
        await connection.connect()
        connected = time.perf_counter()
        _tell([connected, await _round_trip(connection, controlling)])
        await connection.close()


async def _round_trip(connection: Any, controlling: bool) -> float:
    """The median of some, where the controlling side measures."""
    trips = []
    for _ in range(_ROUND_TRIPS):
        sent = time.perf_counter()
        if controlling:
            await connection.send(b"echo")
            await connection.recv()
        else:
            await connection.send(await connection.recv())
        trips.append(time.perf_counter() - sent)
    return sorted(trips)[_ROUND_TRIPS // 2]


def _tell(what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


PEER = Peer(
    "ICE",
    "nothing",
    "of both ends programs that speak ICE; of third parties a STUN server and a channel for candidates",
    "gathering, candidates to the other side, checks (aioice both, coturn for STUN)",
    _run,
)

if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1] == "controlling"))
