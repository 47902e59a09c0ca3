"""What the external node remembers of each router: its round trip, and that it speaks NAT-f."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import Table
from natf_bsd.types import Address

INITIAL_RTO = 0.25
MINIMUM_RTO = 0.02
MAXIMUM_RTO = 1.0
"""Seconds to the first retransmission: DESIGN.md section 5."""

_SMOOTHING = 1 / 8
"""RFC 6298 section 2.3, alpha."""

_MEMORY = 7 * 86400.0
"""Seconds a router is remembered after its last answer. As long as it is, it is never taken for an inside host."""

_NEWS = 86400.0
"""Seconds after which its answer is worth saving again."""


@dataclass(slots=True, eq=False)
class Peer:
    """One router that has answered in NAT-f's own words (never a mere mirror)."""

    address: Address
    smoothed_rtt: float
    deadline: float
    saved: float

    @property
    def rto(self) -> float:
        return min(max(2 * self.smoothed_rtt, MINIMUM_RTO), MAXIMUM_RTO)


class Peers:
    """Routers by address, about 600 bytes each. Bounded; when full a new router is not remembered; it may then be taken
    for a host without NAT-f while its daemon is away.
    """

    def __init__(self, maximum: int = 4096) -> None:
        self._table: Table[Peer] = Table(maximum, {"address": lambda peer: peer.address})

    @property
    def refused(self) -> int:
        """Routers a full table did not take."""
        return self._table.refused

    def rto(self, router: Address) -> float:
        peer = self._table.get("address", router)
        return peer.rto if peer else INITIAL_RTO

    def speaks_natf(self, router: Address) -> bool:
        """Whether it has answered us before: if it mirrors an echo, its daemon is away; it is no plain host."""
        return self._table.get("address", router) is not None

    def answered(self, router: Address, rtt: float, now: float) -> Peer | None:
        """It spoke NAT-f, `rtt` seconds after it was asked; returns what is worth saving of that."""
        peer = self._table.get("address", router)
        if peer is None:
            return self._insert(Peer(router, rtt, now + _MEMORY, now))
        peer.smoothed_rtt += _SMOOTHING * (rtt - peer.smoothed_rtt)
        peer.deadline = now + _MEMORY
        if now < peer.saved + _NEWS:
            return None
        peer.saved = now
        return peer

    def restore(self, router: Address, deadline: float, now: float) -> None:
        """A router that spoke NAT-f before our restart, remembered till `deadline`; its round trip is forgotten."""
        if not self.speaks_natf(router):
            self._insert(Peer(router, INITIAL_RTO / 2, min(deadline, now + _MEMORY), now))

    def _insert(self, peer: Peer) -> Peer | None:
        try:
            self._table.insert(peer)
        except TableFull:
            return None
        return peer

    def expire(self, now: float) -> list[Peer]:
        return self._table.expire(now)

    def next_deadline(self) -> float | None:
        return self._table.next_deadline()

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._table)
