"""What a core asks of the shell round it. A core never calls out: it returns a list of these, performed in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from natf_bsd.types import Address, Endpoint, Flow, Packet


@dataclass(frozen=True, slots=True)
class Send:
    """Put the packet back where it was, with its bytes as they are now."""

    packet: Packet


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let the kernel translate `flow`, G1:s -> V1:d, to `mapped`, G2:m, from now on, and its answers back. It begins
    with `packets`, which go on as they are. `not_handed_over` gets what the kernel does not take. Without packets it
    may take a while.
    """

    flow: Flow
    mapped: Endpoint
    packets: tuple[Packet, ...]


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Let the kernel translate `flow` no longer. `at_once`: before anything else is done; otherwise it may take a
    while. It may not have the flow."""

    flow: Flow
    at_once: bool = True


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the packet. The core has counted why."""

    packet: Packet


@dataclass(frozen=True, slots=True)
class Inject:
    """Send a whole IPv4 packet of our own making: an error to an application, a reply to an external node.

    `about` is the application's packet that an error is about: it goes back the way that one came.
    `outward`: it takes the way of what this host's programs send, over the loopback interface or to a DNS server.
    """

    data: bytes
    transaction: bytes | None = None
    about: Packet | None = None
    outward: bool = False


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send an ICMP message, from type byte to data, to a router. `transaction` ties trace points together."""

    router: Address
    data: bytes
    transaction: bytes


@dataclass(frozen=True, slots=True)
class Resumed:
    """Trace point: the negotiation `transaction` is over; its held packets follow in the list."""

    transaction: bytes


@dataclass(frozen=True, slots=True)
class WritePseudo:
    """Pass a pseudo-packet through the NAT; `handle_captured` gets what comes out. `transaction`: see SendControl."""

    data: bytes
    transaction: bytes


@dataclass(frozen=True, slots=True)
class ForgetMapping:
    """Let the NAT forget what it has for `inside`, where it can be told to; but not if this host still has `address`,
    where the mapping is: then it is somebody's by another way out, or a port that was forwarded.
    """

    inside: Flow
    address: Address


@dataclass(frozen=True, slots=True)
class Save:
    """Append one record to the journal that survives a restart."""

    record: dict[str, object]


@dataclass(frozen=True, slots=True)
class Admit:
    """From now on packets of these routers are ours to see: one of them is about to get a mapping."""

    routers: tuple[Address, ...]


Effect: TypeAlias = (
    Send | HandOver | TakeBack | Drop | Inject | SendControl | Resumed | WritePseudo | ForgetMapping | Save | Admit
)
