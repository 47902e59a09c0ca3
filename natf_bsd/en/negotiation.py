"""One flow's negotiation with a router, from its first held packet to a mapping or a refusal [3.2 step 3-6].

All its states and all that may happen in them stand in TRANSITIONS; an event that has no row there is a fault in
this package, never something a packet can cause. Nothing here knows of packets being held or of tables: en/core.py
acts on the state reached.

    IDLE --START--> REQUESTING --RESPONSE--> MAPPED        the router made a mapping
                       |  ^  |---MIRROR----> DIRECT        an ordinary host answered the echo: no NAT-f router
                       |  |  |---REFUSAL---> REFUSED       the router said no
                       +--+  '---EXHAUSTED-> SILENT        four seconds of tries, no answer
                RETRY, CHALLENGE
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from natf_bsd.errors import WireError
from natf_bsd.keys import Key
from natf_bsd.types import Address, Endpoint, Flow, Name
from natf_bsd.wire import auth, icmp, message

TRIES = 5
GIVE_UP_AFTER = 4.0
"""Seconds from the first request until a router counts as silent (DESIGN.md section 5: 5 tries within 4 s)."""

FURTHER = 1.0
"""Seconds between tries after the fifth, while those four last. To a router near by five tries are over in a third of a
second; where each way loses a tenth of all packets, one negotiation in five thousand gets no answer to them, and one
in a million to eight.
"""

MINIMUM_LIFETIME = 10
MAXIMUM_LIFETIME = 86400
"""Seconds within which a lifetime is believed: a shorter one would make every packet a request, none is longer."""

MAXIMUM_CHALLENGES = 2
"""Cookies answered in one negotiation: one is usual, a second if the router's time slot turned over meanwhile; more
is someone playing.
"""


class State(enum.Enum):
    IDLE = "idle"
    REQUESTING = "requesting"
    MAPPED = "mapped"
    DIRECT = "direct"
    REFUSED = "refused"
    SILENT = "silent"


class Event(enum.Enum):
    START = "start"
    RETRY = "retry"
    CHALLENGE = "challenge"
    RESPONSE = "response"
    MIRROR = "mirror"
    REFUSAL = "refusal"
    EXHAUSTED = "exhausted"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.IDLE: {Event.START: State.REQUESTING},
    State.REQUESTING: {
        Event.RETRY: State.REQUESTING,
        Event.CHALLENGE: State.REQUESTING,
        Event.RESPONSE: State.MAPPED,
        Event.MIRROR: State.DIRECT,
        Event.REFUSAL: State.REFUSED,
        Event.EXHAUSTED: State.SILENT,
    },
    State.MAPPED: {},
    State.DIRECT: {},
    State.REFUSED: {},
    State.SILENT: {},
}


class IllegalTransition(RuntimeError):
    """A fault in this package: an event in a state that has no row for it."""


@dataclass(slots=True, eq=False)
class Negotiation:
    """Sans-IO: `start`, `retry` and `challenged` return the ICMP message to send; the rest only move the state.

    `rto` is the wait before the first retransmission in seconds, `ident` the ICMP identifier. The ICMP sequence
    number is the number of the request, so that a late answer still gives a true round trip (RFC 6298 section 3
    without its ambiguity).
    """

    flow: Flow
    name: Name
    router: Address
    transaction: bytes
    ident: int
    rto: float
    key: Key | None = None
    renewal: bool = False
    established: bool = False
    alternatives: tuple[Address, ...] = ()
    state: State = State.IDLE
    due: float = 0.0
    mapped: Endpoint | None = None
    lifetime: int = 0
    refusal: message.Refused | None = None
    _cookie: bytes = b""
    _challenges: int = 0
    _tries: int = 0
    _sent_at: list[float] = field(default_factory=list)
    _started: float = 0.0

    def start(self, now: float, epoch_ms: int) -> bytes:
        self._move(Event.START)
        self._started = now
        return self._send(now, epoch_ms)

    def retry(self, now: float, epoch_ms: int) -> bytes | None:
        """The next request when `due` has come; None, and SILENT, when this router has had all its tries."""
        if now >= self._started + GIVE_UP_AFTER:
            self._move(Event.EXHAUSTED)
            return None
        self._move(Event.RETRY)
        return self._send(now, epoch_ms)

    def challenged(self, cookie: bytes, now: float, epoch_ms: int) -> bytes | None:
        """The request again with the router's cookie in it, at once and with new tries; None for a cookie already
        sent (an answer repeated, or to an earlier try) and for one too many.
        """
        if cookie == self._cookie or self._challenges >= MAXIMUM_CHALLENGES:
            return None
        self._move(Event.CHALLENGE)
        self._challenges += 1
        self._cookie = cookie
        self._tries = 0
        return self._send(now, epoch_ms)

    def responded(self, response: message.Response) -> None:
        self._move(Event.RESPONSE)
        self.mapped = Endpoint(self.router, response.mapped.port)  # the same address, and one object for all flows
        self.lifetime = min(max(response.lifetime, MINIMUM_LIFETIME), MAXIMUM_LIFETIME)

    def mirrored(self) -> None:
        """An ordinary host answered the echo."""
        self._move(Event.MIRROR)

    def refused(self, refusal: message.Refused) -> None:
        self._move(Event.REFUSAL)
        self.refusal = refusal

    def round_trip(self, sequence: int, now: float) -> float | None:
        """Seconds since the request with this `sequence` was sent; None for a number we have not used."""
        return now - self._sent_at[sequence] if sequence < len(self._sent_at) else None

    def authentic(self, data: bytes, epoch_ms: int) -> bool:
        """Whether a reply carries the MAC it must carry: always true without a key."""
        if self.key is None:
            return True
        try:
            auth.verify(data, {self.key.ident: self.key.secret}, epoch_ms)
        except WireError:  # another version's message can't even be looked through for its MAC
            return False
        return True

    def _send(self, now: float, epoch_ms: int) -> bytes:
        sequence = len(self._sent_at)
        self._sent_at.append(now)
        self._tries += 1
        wait = self.rto * 2 ** (min(self._tries, TRIES) - 1)
        self.due = min(now + (wait if self._tries < TRIES else max(wait, FURTHER)), self._started + GIVE_UP_AFTER)
        data = message.encode(message.Request(self.transaction, self.flow, self.name, self._cookie, self.established))
        if self.key:
            data = auth.sign(data, self.key.ident, self.key.secret, epoch_ms)
        return icmp.encode_echo(icmp.Echo(icmp.ECHO_REQUEST, self.ident, sequence, message.pad(data)))

    def _move(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalTransition(f"{event.name} in state {self.state.name} of {self.flow}") from None
