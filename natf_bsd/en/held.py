"""Packets that wait for their flow's negotiation: bounded per flow and in all (DESIGN.md section 4)."""

from __future__ import annotations

from natf_bsd.types import Packet
from natf_bsd.wire import packet as wire

PER_FLOW = 8
IN_ALL = 8192
"""Half of what the kernel queue behind the handle holds, so that translated packets always find room in it."""


class HeldPackets:
    """First packets by flow key, in order of arrival."""

    def __init__(self) -> None:
        self._flows: dict[bytes, list[Packet]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def flows(self) -> list[bytes]:
        """The keys of the flows that wait."""
        return list(self._flows)

    def way(self, key: bytes) -> object:
        """The handle that the flow's packets came from; None if it holds none."""
        held = self._flows.get(key)
        return held[0].handle if held else None

    def hold(self, key: bytes, packet: Packet) -> Packet | None:
        """Keep `packet`; returns the earlier transmission it replaces, or `packet` itself when there is no room."""
        held = self._flows.setdefault(key, [])
        for place, earlier in enumerate(held):
            if _same_transmission(earlier, packet):
                held[place] = packet
                return earlier
        if len(held) >= PER_FLOW or self._count >= IN_ALL:
            if not held:
                del self._flows[key]
            return packet
        held.append(packet)
        self._count += 1
        return None

    def take(self, key: bytes) -> list[Packet]:
        packets = self._flows.pop(key, [])
        self._count -= len(packets)
        return packets

    def take_all(self) -> list[Packet]:
        packets = [packet for held in self._flows.values() for packet in held]
        self._flows.clear()
        self._count = 0
        return packets


def _same_transmission(earlier: Packet, later: Packet) -> bool:
    """Whether TCP sent the same segment again; two equal UDP datagrams are two datagrams."""
    return (
        wire.protocol(later.data) == 6
        and wire.tcp_sequence(earlier.data) == wire.tcp_sequence(later.data)
        and wire.tcp_flags(earlier.data) == wire.tcp_flags(later.data)
    )
