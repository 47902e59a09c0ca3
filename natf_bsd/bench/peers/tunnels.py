"""Tunnels between the external node and the home's router: WireGuard in user space, and IP in IP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from natf_bsd.bench import load
from natf_bsd.bench.bed import ALICE, EN, INSIDE, ROUTER, Bed
from natf_bsd.bench.peers import Peer, Reach, need, undo

_PORT = 51820
_ENDS = {"en": ("wgen", "10.9.0.2"), "router": ("wgrouter", "10.9.0.1")}
_ACCEPT = "FORWARD -i wgrouter -j ACCEPT"


@contextmanager
def _wireguard(bed: Bed) -> Iterator[Reach]:
    need(("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools"))
    daemons = []
    public = {}
    try:
        for host, (device, address) in _ENDS.items():
            daemons.append(bed.spawn(host, "wireguard-go", "-f", device))
            bed.wait_until(partial(bed.has, host, "wg", "show", device), daemons[-1])
            key = bed.folder / f"{device}.key"
            key.write_text(bed.run(host, "wg", "genkey"))
            public[host] = bed.run(host, "sh", "-c", f"wg pubkey < {key}").strip()
            bed.run(host, "wg", "set", device, "listen-port", str(_PORT), "private-key", str(key))
            bed.run(host, "ip", "address", "add", f"{address}/24", "dev", device)
            bed.run(host, "ip", "link", "set", device, "up")
        bed.run("router", "sh", "-c", f"iptables -I {_ACCEPT}")
        bed.run("en", "ip", "route", "add", INSIDE, "dev", "wgen")

        def shake_hands() -> None:
            """Both forget their session: the next packet makes a new one."""
            for host, other, networks in (("en", "router", f"10.9.0.1/32,{INSIDE}"), ("router", "en", "10.9.0.2/32")):
                device, peer = _ENDS[host][0], public[other]
                endpoint = f"{ROUTER if other == 'router' else EN}:{_PORT}"
                bed.run(host, "wg", "set", device, "peer", peer, "remove")
                bed.run(host, "wg", "set", device, "peer", peer, "endpoint", endpoint, "allowed-ips", networks)
            bed.run("en", "ip", "route", "replace", INSIDE, "dev", "wgen")

        def first() -> float:
            shake_hands()
            return float(bed.client("setup", 1, target)[0][0][0])

        target = f"{ALICE}:{load.OTHERS}"
        shake_hands()
        yield Reach(target, ("tcp", "udp"), first=first)
    finally:
        for daemon in daemons:
            daemon.stop()
        undo(bed, "router", [f"iptables -D {_ACCEPT}"])
        undo(bed, "en", [f"ip route del {INSIDE}"])


@contextmanager
def _ipip(bed: Bed) -> Iterator[Reach]:
    """A kernel's own; it asks for the module ipip."""
    bed.run("router", "ip", "link", "add", "ipr", "type", "ipip", "local", ROUTER, "remote", EN)
    try:
        bed.run("en", "ip", "link", "add", "ipe", "type", "ipip", "local", EN, "remote", ROUTER)
        for host, device, address in (("en", "ipe", "10.8.0.2"), ("router", "ipr", "10.8.0.1")):
            bed.run(host, "ip", "address", "add", f"{address}/24", "dev", device)
            bed.run(host, "ip", "link", "set", device, "up")
        bed.run("router", "sh", "-c", "iptables -I FORWARD -i ipr -j ACCEPT")
        bed.run("en", "ip", "route", "add", INSIDE, "dev", "ipe")
        yield Reach(f"{ALICE}:{load.OTHERS}", ("tcp", "udp"))
    finally:
        undo(bed, "en", [f"ip route del {INSIDE}", "ip link del ipe"])
        undo(bed, "router", ["iptables -D FORWARD -i ipr -j ACCEPT", "ip link del ipr"])


WIREGUARD = Peer(
    "wireguard-go",
    "encryption; both ends are who they claim; the whole home network",
    "of the router a tunnel for each external node, with keys exchanged beforehand",
    "connect() through a tunnel that is up",
    _wireguard,
)
IPIP = Peer("IP in IP", "the whole home network", "of the router a tunnel for each external node", "connect()", _ipip)
