"""A bad link in a lab of Linux namespaces, which have no netem everywhere: a host with two interfaces that carries
frames from each to the other, and does to IPv4 packets what a `Link` says.

    python -m natf_bsd.lab.bad_link NEAR FAR '{"loss": 0.1}'

Address resolution is left alone: a lost ARP reply is not what a link beyond the next router does. Checksums that a
sender left to its interface, and segments it left uncut, go over as they are (PACKET_VNET_HDR); one that is lost is
lost whole. On SIGTERM it writes what it did, by direction, as a line of JSON.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import json
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any, Final

from natf_bsd.lab.link import Link

READY: Final = "ready"
"""What it writes when it carries frames."""

_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263  # packet(7), linux/if_packet.h
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1
_PACKET_VNET_HDR: Final = 15
_PACKET_OUTGOING: Final = 4
_VNET_HEADER: Final = 10  # bytes before each frame, struct virtio_net_hdr
_TYPE_AT: Final = slice(_VNET_HEADER + 12, _VNET_HEADER + 14)
_IPV4: Final = b"\x08\x00"
_LARGEST: Final = (1 << 16) + 64


class BadLink:
    """Between `interfaces`, two names. `counters` by direction ("near to far") and by what became of the packets."""

    def __init__(self, interfaces: tuple[str, str], link: Link, seed: int) -> None:
        self.counters = {"near to far": Counter[str](), "far to near": Counter[str]()}
        near, far = map(_open, interfaces)
        self._ways = {near: (far, self.counters["near to far"]), far: (near, self.counters["far to near"])}
        self._link = link
        self._chance = random.Random(seed)
        self._waiting: list[tuple[float, int, socket.socket, bytes, Counter[str]]] = []
        self._number = itertools.count()

    def run(self, stop: socket.socket) -> None:
        """Until `stop` is readable."""
        while True:
            timeout = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            ready, _, _ = select.select([stop, *self._ways], [], [], timeout)
            if stop in ready:
                return
            for source in ready:
                self._take(source)
            self._deliver()

    def _take(self, source: socket.socket) -> None:
        target, counters = self._ways[source]
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, *_) = source.recvfrom(_LARGEST)
                if kind == _PACKET_OUTGOING:
                    continue
                if frame[_TYPE_AT] == _IPV4:
                    self._judge(frame, target, counters)
                else:
                    _send(target, frame, counters)

    def _judge(self, frame: bytes, target: socket.socket, counters: Counter[str]) -> None:
        delays = self._link.delays(self._chance)
        counters["packets"] += 1
        counters["lost"] += not delays
        counters["duplicated"] += len(delays) > 1
        counters["late"] += any(delay > self._link.minimum_delay for delay in delays)
        now = time.monotonic()
        for delay in delays:
            heapq.heappush(self._waiting, (now + delay, next(self._number), target, frame, counters))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, frame, counters = heapq.heappop(self._waiting)
            _send(target, frame, counters)


def _send(target: socket.socket, frame: bytes, counters: Counter[str]) -> None:
    try:
        target.send(frame)
    except OSError as error:
        counters[f"not sent: {errno.errorcode.get(error.errno or 0, 'unknown')}"] += 1


def _open(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    request = struct.pack("iHH8x", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0)
    opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
    opened.bind((interface, _ETH_P_ALL))
    opened.setblocking(False)
    return opened


def main() -> None:
    near, far, text = sys.argv[1:]
    settings: dict[str, Any] = json.loads(text)
    stop, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    link = BadLink((near, far), Link(**settings), seed=1)
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    link.run(stop)
    sys.stdout.write(f"{json.dumps(link.counters)}\n")


if __name__ == "__main__":
    main()
