"""No NAT at all: the inside network is routed. What the way itself takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from natf_bsd.bench import load
from natf_bsd.bench.bed import ALICE, INSIDE, ROUTER, Bed
from natf_bsd.bench.peers import Peer, Reach, undo

_ACCEPT = "FORWARD -i wan -d 192.168.0.0/24 -j ACCEPT"


@contextmanager
def _run(bed: Bed) -> Iterator[Reach]:
    bed.run("en", "ip", "route", "add", INSIDE, "via", ROUTER)
    bed.run("router", "sh", "-c", f"iptables -I {_ACCEPT}")
    try:
        yield Reach(f"{ALICE}:{load.OTHERS}", ("tcp", "udp"))
    finally:
        undo(bed, "en", [f"ip route del {INSIDE}"])
        undo(bed, "router", [f"iptables -D {_ACCEPT}"])


PEER = Peer("no NAT", "nothing", "public addresses for all, no firewall", "connect()", _run)
