"""Bridge to Linux netfilter: a TUN device turns pseudo-packets round through its NAT (DESIGN.md section 7).

`firewall.linux.router_rules` makes the rules and the route that belong to it. The device lives as long as the bridge:
after a crash nothing is left that could send a packet anywhere.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from natf_bsd.divert.tun import TunDevice
from natf_bsd.natd_bridge.conntrack import Conntrack
from natf_bsd.natd_bridge.pseudo import NETFILTER_STYLE, PSEUDO_IDENT, PseudoStyle
from natf_bsd.types import Flow, Protocol
from natf_bsd.wire import packet

_BATCH: Final = 64
_FIRST_AND_IDENT: Final = struct.Struct("!B3xH")

_SETTINGS: Final = Path("/proc/sys/net/netfilter")
# The announced lifetime is the paper's [4], or conntrack's own if that is shorter. Mappings of ours live by
# tcp_timeout_max_retrans (see `firewall.linux.router_sysctls`). The numbers are conntrack's defaults
# (Documentation/networking/nf_conntrack-sysctl.rst), for a kernel that has not loaded it yet.
_LIFETIMES: Final = {
    int(Protocol.UDP): (60, {"nf_conntrack_udp_timeout": 30}),
    int(Protocol.TCP): (
        86_400,
        {"nf_conntrack_tcp_timeout_established": 432_000, "nf_conntrack_tcp_timeout_max_retrans": 300},
    ),
}


class NetfilterBridge:
    """The TUN device `tun`, made by opening and gone with `close()`. Raises NatfError when it can't be had."""

    name = "netfilter"
    style: PseudoStyle = NETFILTER_STYLE

    def __init__(self, tun: str = "natf0") -> None:
        names = ("written", "refused", "captured", "foreign", "reopened", "not_looked_up")
        self._counters: Counter[str] = Counter(dict.fromkeys(names, 0))
        self._lifetimes: dict[int, int] = {}
        self._tun = TunDevice(tun, "no mapping can be made without it")
        self._conntrack = Conntrack()

    def fileno(self) -> int:
        return self._tun.fileno()

    def write(self, data: bytes) -> None:
        """Of a connection that its external node ended by a RST, conntrack keeps an entry for ten seconds that no SYN
        opens again, though it translates them (seen on 6.18): it goes first.
        """
        flow = packet.flow_of(bytearray(data))
        if flow is not None and flow.protocol == Protocol.TCP:
            try:
                self._counters["reopened"] += self._conntrack.forget_closed(flow)
            except OSError:
                self._counters["not_looked_up"] += 1
        self._counters["written" if self._tun.write(data) else "refused"] += 1

    def captured(self) -> Iterator[bytes]:
        for data in self._tun.waiting(_BATCH):
            if len(data) >= _FIRST_AND_IDENT.size and _is_candidate(data):
                self._counters["captured"] += 1
                yield data
            else:  # the host itself speaks on any interface: IPv6 router solicitations, IGMP, mDNS
                self._counters["foreign"] += 1

    def forget(self, inside: Flow) -> None:
        try:
            self._conntrack.forget(inside)
        except OSError:
            self._counters["not_looked_up"] += 1

    def lifetime(self, protocol: int) -> int:
        """Read from conntrack once; whoever changes its timeouts restarts the router."""
        if protocol not in self._lifetimes:
            announced, settings = _LIFETIMES[protocol]
            self._lifetimes[protocol] = min(announced, *(_setting(*setting) for setting in settings.items()))
        return self._lifetimes[protocol]

    def next_deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        return

    def close(self) -> None:
        self._conntrack.close()
        self._tun.close()

    @property
    def counters(self) -> dict[str, int]:
        """`written`, `refused` (interface down, no memory), `captured`, `foreign` (other packets on the device),
        `reopened` (connections whose closed entry was deleted), `not_looked_up` (conntrack did not say).
        """
        return dict(self._counters)


def _is_candidate(data: bytes) -> bool:
    first, ident = _FIRST_AND_IDENT.unpack_from(data)
    return bool(first >> 4 == 4 and ident == PSEUDO_IDENT)


def _setting(name: str, default: int) -> int:
    try:
        return int((_SETTINGS / name).read_text())
    except FileNotFoundError:
        return default
