"""Port mappings that the inside host asks its router for: UPnP IGD and PCP, both answered by miniupnpd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

from natf_bsd.bench import load
from natf_bsd.bench.bed import ALICE, INSIDE, ROUTER, Bed
from natf_bsd.bench.peers import Peer, Reach, need, undo

# miniupnpd refuses to work behind an address that no home router can have, as the lab's is. This is what it tells its
# clients; nothing is ever sent there.
_TOLD = "11.0.0.1"
_CONFIGURATION = f"""\
ext_ifname=wan
ext_ip={_TOLD}
listening_ip=lan
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
force_igd_desc_v1=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 {INSIDE} 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
_CHAINS = """\
table inet filter {
    chain miniupnpd {
    }
    chain prerouting_miniupnpd {
    }
    chain postrouting_miniupnpd {
    }
    chain forward {
        type filter hook forward priority 0
        jump miniupnpd
    }
    chain prerouting {
        type nat hook prerouting priority -100
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100
        jump postrouting_miniupnpd
    }
}
"""
_next = count(20_000).__next__
"""Ports, each asked for once and given back: miniupnpd takes the longer the more it has."""


@contextmanager
def _run(kind: str, bed: Bed) -> Iterator[Reach]:
    need(("miniupnpd", "miniupnpd"), ("nft", "nftables"))
    configuration, chains = bed.folder / "miniupnpd.conf", bed.folder / "miniupnpd.nft"
    configuration.write_text(_CONFIGURATION)
    chains.write_text(_CHAINS)
    bed.run("router", "nft", "-f", str(chains))
    pid = bed.folder / "miniupnpd.pid"
    daemon = bed.spawn("router", "miniupnpd", "-d", "-f", str(configuration), "-P", str(pid))
    try:
        bed.wait_for(daemon, "listening on port")
        with bed.talking("alice", f"natf_bsd.bench.peers.{kind}", "192.168.0.1", ALICE) as asker:
            asker.ask(-load.OTHERS)
            yield Reach(f"{ROUTER}:{load.OTHERS}", ("tcp",), lambda: asker.ask(_next()))
    finally:
        daemon.stop()
        undo(bed, "router", ["nft delete table inet filter"])


_ASKS = "of the router a daemon that opens ports for whoever asks inside; of the inside host a client of it"

UPNP = Peer(
    "UPnP IGD", "nothing", _ASKS, "AddPortMapping by HTTP (the router is known), then connect()", partial(_run, "upnp")
)
PCP = Peer("PCP", "nothing", _ASKS, "one MAP request, then connect()", partial(_run, "pcp"))
