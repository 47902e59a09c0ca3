"""What a core asks of the shell round it. A core never calls out: it returns a list of these, performed in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from natf_bsd.types import Address, Packet


@dataclass(frozen=True, slots=True)
class Send:
    """Put the packet back where it was, with its bytes as they are now."""

    packet: Packet


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the packet. The core has counted why."""

    packet: Packet


@dataclass(frozen=True, slots=True)
class Inject:
    """Send an IPv4 packet of our own making, complete from its header: an error to an application, a reply to an
    external node."""

    data: bytes
    transaction: bytes | None = None


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send an ICMP message (from its type byte, checksum included) to a router. `transaction` ties trace points
    together."""

    router: Address
    data: bytes
    transaction: bytes


@dataclass(frozen=True, slots=True)
class Resumed:
    """Trace point: the negotiation `transaction` is over; its held packets follow in the list."""

    transaction: bytes


@dataclass(frozen=True, slots=True)
class WritePseudo:
    """Pass a pseudo-packet through the NAT; what comes out is the core's `handle_captured`. `transaction` as in
    SendControl."""

    data: bytes
    transaction: bytes


@dataclass(frozen=True, slots=True)
class Save:
    """Append one record to the journal that survives a restart."""

    record: dict[str, object]


Effect: TypeAlias = Send | Drop | Inject | SendControl | Resumed | WritePseudo | Save
