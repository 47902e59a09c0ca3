"""TURN (RFC 8656): alice's program gets an address on a relay, and the external node talks to that.

    python -m natf_bsd.bench.peers.turn alice|en

Both programs are aioice's or plain sockets; the relay is coturn.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from natf_bsd.bench.bed import EN, Bed
from natf_bsd.bench.peers import Peer, Reach, stun
from natf_bsd.errors import NatfError

_ROUND_TRIPS = 9
_TRIES = 3
_SERVER = (stun.ADDRESS, stun.PORT)


def need_aioice() -> None:
    if importlib.util.find_spec("aioice") is None:
        raise NatfError("not installed: aioice (PyPI); make bench-peers does that")


@contextmanager
def _run(bed: Bed) -> Iterator[Reach]:
    need_aioice()
    with (
        stun.server(bed),
        bed.talking("alice", "natf_bsd.bench.peers.turn", "alice") as alice,
        bed.talking("en", "natf_bsd.bench.peers.turn", "en") as en,
    ):
        port = int(en.ask(0))

        def flow() -> list[float]:
            began, relayed = json.loads(alice.say(str(port)))
            arrived, round_trip = json.loads(en.say(relayed))
            alice.say("close")
            return [arrived - began, round_trip]

        yield Reach(flow=flow)


class _Echo(asyncio.DatagramProtocol):
    """alice's application."""

    def connection_made(self, transport: Any) -> None:
        self._send = transport.sendto

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        self._send(data, source)


async def _allocated() -> Any:
    """An allocation. aioice repeats a request after 50 ms, which coturn may take for another (437); who meets that
    begins anew, in its own time.
    """
    from aioice import stun as protocol
    from aioice import turn

    allocate = partial(turn.create_turn_endpoint, _Echo, _SERVER, username=stun.USER, password=stun.PASSWORD)
    for _ in range(_TRIES - 1):
        with suppress(protocol.TransactionError):
            return (await allocate())[0]
    return (await allocate())[0]


async def _alice() -> None:
    loop = asyncio.get_running_loop()
    while port := await loop.run_in_executor(None, sys.stdin.readline):
        began = time.perf_counter()
        transport = await _allocated()
        # Sending opens the way for the peer's answers: a channel, and with it a permission.
        transport.sendto(b"hello", (EN, int(port)))
        host, relayed = transport.get_extra_info("sockname")
        _tell([began, f"{host}:{relayed}"])
        await loop.run_in_executor(None, sys.stdin.readline)
        transport.close()
        _tell("closed")


def _en() -> None:
    """The first datagram by the relay has arrived when the way is open; then round trips."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.bind((EN, 0))
        sys.stdin.readline()
        _tell(s.getsockname()[1])
        for line in sys.stdin:
            host, _, port = line.strip().partition(":")
            s.recv(100)
            arrived = time.perf_counter()
            trips = []
            for _ in range(_ROUND_TRIPS):
                sent = time.perf_counter()
                s.sendto(b"echo", (host, int(port)))
                s.recv(100)
                trips.append(time.perf_counter() - sent)
            _tell([arrived, sorted(trips)[_ROUND_TRIPS // 2]])


def _tell(what: object) -> None:
    sys.stdout.write(f"{what if isinstance(what, str) else json.dumps(what)}\n")
    sys.stdout.flush()


PEER = Peer(
    "TURN",
    "nothing; the relay sees all, and all goes by it",
    "of a third party a relay with its bandwidth; of the inside host a program that speaks TURN and tells its address",
    "Allocate with its challenge, ChannelBind, first datagram through the relay (aioice, coturn)",
    _run,
)

if __name__ == "__main__":
    if sys.argv[1] == "alice":
        asyncio.run(_alice())
    else:
        _en()
