"""How an application is told no: at once, by an error its socket understands (DESIGN.md section 3)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import Table
from natf_bsd.types import Protocol
from natf_bsd.wire import build, message, packet

REMEMBERED_FOR = 2.0
"""Seconds a flow is refused without asking again: a program that sends on must not become a stream of requests."""

_HOST_UNREACHABLE = 1
_PORT_UNREACHABLE = 3
_HOST_PROHIBITED = 10
"""ICMP type 3 codes, RFC 792 and RFC 1122 section 3.2.2.1."""


class Reaction(enum.Enum):
    """What the application gets: "connection refused" or "no route to host"."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"


_REFUSALS = {
    message.Status.DENIED,
    message.Status.NO_SUCH_HOST,
    message.Status.KEY_REQUIRED,
    message.Status.BAD_KEY,
}


def reaction_to(refusal: message.Refused | None) -> Reaction:
    """A decision of the router refuses; a router that cannot is unreachable."""
    return Reaction.REFUSED if refusal is not None and refusal.status in _REFUSALS else Reaction.UNREACHABLE


def answer(data: bytearray, reaction: Reaction, *, heeds_unreachable: bool = True) -> bytes | None:
    """The packet that tells the sender of `data`; None where no error may answer (a RST; an ICMP error or a later
    fragment: RFC 1122 section 3.2.2).

    It comes from the virtual address, so that it fits the program's socket. On Linux UDP never gets code 1, which it
    does not report to UDP sockets. `heeds_unreachable` False: the TCP of this host goes on connecting when it is told
    "host unreachable" (FreeBSD: tcp_ctlinput notes it and tries again); time exceeded means the same errno, and ends
    it. Its UDP takes code 10 for a refusal (icmp_errmap), and code 1 for what it says.
    """
    protocol = packet.protocol(data)
    if protocol == Protocol.TCP and reaction is Reaction.REFUSED:
        reset = build.reset_for(data)
        return bytes(reset) if reset is not None else None
    if packet.is_later_fragment(data) or (protocol == Protocol.ICMP and not _is_echo(data)):
        return None
    source = packet.destination(data)
    if protocol == Protocol.TCP and not heeds_unreachable:
        return bytes(build.time_exceeded_for(data, source=source))
    if reaction is Reaction.REFUSED:
        code = _PORT_UNREACHABLE  # TCP was answered above
    elif protocol == Protocol.TCP or (protocol == Protocol.UDP and not heeds_unreachable):
        code = _HOST_UNREACHABLE
    else:
        code = _HOST_PROHIBITED
    return bytes(build.unreachable_for(data, code=code, source=source))


def _is_echo(data: bytearray) -> bool:
    return data[packet.header_length(data) :].startswith((b"\x00", b"\x08"))


@dataclass(slots=True, eq=False)
class _Refusal:
    key: bytes
    reaction: Reaction
    deadline: float


class Refusals:
    """Flows refused lately, about 600 bytes each."""

    def __init__(self, maximum: int = 16384) -> None:
        self._table: Table[_Refusal] = Table(maximum, {"flow": lambda refusal: refusal.key})

    @property
    def refused(self) -> int:
        """Refusals a full table did not take."""
        return self._table.refused

    def get(self, key: bytes) -> Reaction | None:
        refusal = self._table.get("flow", key)
        return refusal.reaction if refusal else None

    def remember(self, key: bytes, reaction: Reaction, now: float) -> None:
        """Without room the flow is simply asked for again next time."""
        if self._table.get("flow", key) is None:
            try:
                self._table.insert(_Refusal(key, reaction, now + REMEMBERED_FOR))
            except TableFull:
                return

    def expire(self, now: float) -> None:
        self._table.expire(now)

    def next_deadline(self) -> float | None:
        return self._table.next_deadline()
