"""VAT table: an entry a flow, G1:s <-> V1:d means G1:s <-> G2:m (paper 3.2; DESIGN.md section 4)."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field

from natf_bsd.tables.expiring import Table
from natf_bsd.tables.nrt import NameRelation
from natf_bsd.types import Endpoint, Flow, Protocol
from natf_bsd.wire.packet import TCP_FIN, TCP_RST, TCP_SYN, Rewrite

MAXIMUM = 131072  # flows; about 1 kB each (natf bench scale)

TCP_OPENING = 300.0  # s; router's lifetime before a connection is established (paper 4; libalias, FREEBSD.md 4.2)
TCP_HALF_CLOSED = 240.0  # s; RFC 5382 REQ-5, transitory connections. NATs forget sooner (libalias 90, netfilter 120)
TCP_CLOSING = 10.0  # s; last ACKs still pass; as long as libalias keeps a closed link (FREEBSD.md 4.2)
TCP_RESET = 1.0  # s, one slow round trip: what was in flight beside the RST still finds the entry
UDP_RENEWAL = 30.0  # s; DESIGN.md section 4, FREEBSD.md 4.5
SILENCE_PACKETS = 3  # outgoing packets without an answer, so that one loss is no reason to renegotiate
SILENCE_SECONDS = 5.0  # several round trips, and longer than a delayed answer of an application mostly takes
SILENCE_GAP = 10.0  # s; after such a pause the count begins anew: the last ACK before it never gets an answer

_FIN_OUT, _FIN_IN = 1, 2
_EVENTFUL = TCP_SYN | TCP_FIN | TCP_RST


class TcpState(enum.Enum):
    """What the flags seen in both directions say. As in libalias, sequence numbers are not looked at."""

    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class VatEntry:
    """One flow. `flow` is G1:s -> V1:d as the application has it, `mapped` is G2:m, `lifetime` the router's answer (s).

    `direct`: the other side does not speak NAT-f and m = d. `state` is None for UDP. `suspect`: something hints at a
    lost mapping. `waits`: data of the application's are unacknowledged, says the kernel. `renew_not_before` is for the
    core: when a renewal failed, the next may start no sooner. So is `way`: the handle its packets come from; None until
    the first, as after a restart. `syn_sequence`: of the SYN that opened it. `in_kernel`: the kernel translates it.
    """

    flow: Flow
    mapped: Endpoint
    relation: NameRelation
    lifetime: float
    created: InitVar[float]
    direct: bool = False
    last_out: float = field(init=False)
    last_in: float = field(init=False)
    mapped_at: float = field(init=False)
    renew_not_before: float = field(init=False, default=-math.inf)
    way: object = field(init=False, repr=False, default=None)
    in_kernel: bool = field(init=False, default=False)
    syn_sequence: int | None = field(init=False, repr=False, default=None)
    state: TcpState | None = field(init=False)
    suspect: bool = field(init=False, default=False)
    waits: bool = field(init=False, default=False)
    unanswered: int = field(init=False, default=0)
    unanswered_since: float = field(init=False, default=0.0)
    _out_rewrite: Rewrite | None = field(init=False, repr=False, default=None)
    _in_rewrite: Rewrite | None = field(init=False, repr=False, default=None)
    _syns: int = field(init=False, repr=False, default=0)
    _fins: int = field(init=False, repr=False, default=0)
    _idle_limit: float = field(init=False, repr=False)
    _reschedule: Callable[[VatEntry], None] | None = field(init=False, repr=False, default=None)

    def __post_init__(self, created: float) -> None:
        self.last_out = self.last_in = created
        self.state = TcpState.OPENING if self.flow.protocol == Protocol.TCP else None
        self._map(self.mapped, self.lifetime, created)
        self._idle_limit = self._limit()

    @property
    def out_key(self) -> bytes:
        return self.flow.key

    @property
    def in_key(self) -> bytes:
        return _in_key(self.flow, self.mapped)

    @property
    def out_rewrite(self) -> Rewrite:
        """Made when first asked for: of what the kernel carries it never is."""
        if self._out_rewrite is None:
            self._out_rewrite = Rewrite(destination=(self.flow.destination, self.mapped))
        return self._out_rewrite

    @property
    def in_rewrite(self) -> Rewrite:
        """As `out_rewrite`."""
        if self._in_rewrite is None:
            self._in_rewrite = Rewrite(source=(self.mapped, self.flow.destination))
        return self._in_rewrite

    @property
    def last_use(self) -> float:
        return max(self.last_out, self.last_in)

    @property
    def deadline(self) -> float:
        return self.last_use + self._idle_limit

    def is_opened_by(self, sequence: int) -> bool:
        """Whether a SYN with this sequence number is the one that opened the connection, sent again. What became of a
        connection since is seen late where the kernel carries it; a new one on its ports has another number (RFC 6528).
        """
        return self.state is TcpState.OPENING and self.syn_sequence in (None, sequence)

    def note_out(self, flags: int, now: float) -> None:
        """The application sent a packet, the released one included; `flags` are its TCP flags, 0 for UDP."""
        if not self.unanswered or now - self.last_out > SILENCE_GAP:
            self.unanswered = 0
            self.unanswered_since = now
        self.unanswered += 1
        self.last_out = now
        if flags & _EVENTFUL and self.state is not None:
            self._tcp_out(flags)

    def note_in(self, flags: int, now: float) -> None:
        """A packet came from the other side; `flags` as in `note_out`."""
        self.last_in = now
        self.unanswered = 0
        self.suspect = False
        if self.state is TcpState.OPENING or (flags & _EVENTFUL and self.state is not None):
            self._tcp_in(flags)

    def note_carried(
        self,
        out: int,
        inward: int,
        fins: int,
        *,
        reset: bool,
        since: float,
        now: float,
        unacknowledged: bool | None = None,
    ) -> None:
        """The kernel has translated so many packets since `since`, and has seen so many FINs in all, or a RST.
        `unacknowledged`: whether the application waits for an acknowledgement; None: the kernel does not say.
        """
        self.waits = unacknowledged is True
        if out:
            if not self.unanswered or (since - self.last_out > SILENCE_GAP and not self.waits):
                self.unanswered = 0
                self.unanswered_since = now  # nobody knows when, but not later
            self.unanswered += out
            self.last_out = max(self.last_out, since)
        if inward:
            self.note_in(0, max(self.last_in, since))
            if out:  # the last of these may have come after the last answer
                self.unanswered = 1
                self.unanswered_since = now
        if unacknowledged is False and self.state is TcpState.ESTABLISHED:
            self.unanswered = 0
        if self.state is None:
            return
        if reset:
            self._tcp_in(TCP_RST)
        elif fins:
            self._fin(_FIN_OUT if fins == 1 else _FIN_OUT | _FIN_IN)

    def note_back(self) -> None:
        """The kernel has it no longer, and nobody knows what it carried last."""
        self.unanswered = 0

    def renew_due(self, now: float, *, passed: bool = True) -> bool:
        """Whether the flow should be negotiated again, asked when one of its packets passed (DESIGN.md section 4).
        Where they are only counted from time to time: whether some have `passed` since the last time. If not, those
        before may still wait for an answer: TCP repeats itself after ever longer pauses.
        """
        if self.direct or now < self.renew_not_before or self.state in (TcpState.CLOSING, TcpState.CLOSED):
            return False
        if not passed:
            return self._silent(now) and (self.waits or now - self.last_out <= SILENCE_GAP)
        return self.suspect or self._silent(now) or self._udp_due(now)

    def _silent(self, now: float) -> bool:
        return self.unanswered >= SILENCE_PACKETS and now - self.unanswered_since >= SILENCE_SECONDS

    @property
    def renewal_at(self) -> float:
        """When the mapping of a datagram flow in use is to be renewed, with the next packet."""
        return self.mapped_at + min(UDP_RENEWAL, self.lifetime / 2)

    def _udp_due(self, now: float) -> bool:
        return self.state is None and self.last_use > self.mapped_at and now >= self.renewal_at

    def _map(self, mapped: Endpoint, lifetime: float, now: float) -> None:
        self.mapped = mapped
        self.lifetime = lifetime
        self.mapped_at = now
        self.suspect = False
        self.unanswered = 0
        self._out_rewrite = self._in_rewrite = None

    def _tcp_out(self, flags: int) -> None:
        if flags & TCP_RST:
            self._enter(TcpState.CLOSED)
        elif flags & TCP_SYN:
            self._syn_out()
        else:
            self._fin(_FIN_OUT)

    def _tcp_in(self, flags: int) -> None:
        """Any answer opens a connection, not the SYN+ACK alone: after a restart the entry may begin in mid-stream."""
        if flags & TCP_RST:
            self._enter(TcpState.CLOSED)
            return
        if self.state is TcpState.OPENING:
            self._enter(TcpState.ESTABLISHED)
        if flags & TCP_FIN:
            self._fin(_FIN_IN)

    def _syn_out(self) -> None:
        """A new connection, on an old 4-tuple perhaps; or the same SYN once more, because nobody answered."""
        self._fins = 0
        self._syns = self._syns + 1 if self.state is TcpState.OPENING else 1
        if self._syns > 1:
            self.suspect = True
        self._enter(TcpState.OPENING)

    def _fin(self, side: int) -> None:
        if self.state is TcpState.CLOSED:
            return
        self._fins |= side
        both = self._fins == _FIN_OUT | _FIN_IN
        self._enter(TcpState.CLOSING if both else self.state)

    def _enter(self, state: TcpState | None) -> None:
        self.state = state
        before, self._idle_limit = self._idle_limit, self._limit()
        if self._idle_limit < before and self._reschedule is not None:
            self._reschedule(self)

    def _limit(self) -> float:
        if self.state is TcpState.OPENING:
            return min(self.lifetime, TCP_OPENING)
        if self.state is TcpState.CLOSING:
            return TCP_CLOSING
        if self.state is TcpState.CLOSED:
            return TCP_RESET
        return min(self.lifetime, TCP_HALF_CLOSED) if self._fins else self.lifetime


def _in_key(flow: Flow, mapped: Endpoint) -> bytes:
    return Flow(flow.protocol, mapped, flow.source).key


class VatTable:
    """Entries by the key of an outgoing packet (G1:s -> V1:d) and of an incoming one (G2:m -> G1:s).

    The router is the authority for its ports: when it gives G2:m <-> G1:s to one flow, an entry that had it for another
    flow is out of date (the router was restarted). That one is removed and counted in `superseded`; its next packet
    negotiates again.
    """

    def __init__(self, maximum: int = MAXIMUM, on_remove: Callable[[VatEntry], None] | None = None) -> None:
        self.superseded = 0
        self._on_remove = on_remove
        self._table: Table[VatEntry] = Table(
            maximum, {"out": lambda entry: entry.out_key, "in": lambda entry: entry.in_key}, self._removed
        )
        self._reschedule = self._table.reschedule  # one bound method for all
        self.by_out: Callable[[bytes], VatEntry | None] = self._table.index("out").get
        self.by_in: Callable[[bytes], VatEntry | None] = self._table.index("in").get

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[VatEntry]:
        return iter(self._table)

    @property
    def refused(self) -> int:
        """Flows a full table did not take."""
        return self._table.refused

    @property
    def maximum(self) -> int:
        return self._table.maximum

    def insert(
        self,
        flow: Flow,
        mapped: Endpoint,
        relation: NameRelation,
        lifetime: float,
        now: float,
        *,
        direct: bool = False,
    ) -> VatEntry:
        """Make the entry of `flow`. TableFull; DuplicateKey when it has one. The caller acquires `relation`."""
        entry = VatEntry(flow, mapped, relation, lifetime, now, direct)
        if self.by_out(entry.out_key) is None and len(self) < self.maximum:
            self._supersede(entry.in_key)
        self._table.insert(entry)
        entry._reschedule = self._reschedule
        return entry

    def remap(self, entry: VatEntry, mapped: Endpoint, lifetime: float, now: float) -> None:
        """The router answered again, with the same m or another. KeyError when `entry` is not in the table."""
        if self.by_out(entry.out_key) is not entry:
            raise KeyError(f"not in the table: {entry.flow}")
        key = _in_key(entry.flow, mapped)
        if self.by_in(key) is not entry:
            self._supersede(key)
        self._table.rekey(entry, "in", key)
        entry._map(mapped, lifetime, now)
        entry._enter(entry.state)

    def remove(self, entry: VatEntry) -> None:
        """KeyError when `entry` is not in the table."""
        self._table.remove(entry)

    def expire(self, now: float, limit: int = 256) -> list[VatEntry]:
        return self._table.expire(now, limit)

    def next_deadline(self) -> float | None:
        return self._table.next_deadline()

    def _supersede(self, in_key: bytes) -> None:
        other = self.by_in(in_key)
        if other is not None:
            self.superseded += 1
            self._table.remove(other)

    def _removed(self, entry: VatEntry) -> None:
        entry._reschedule = None
        if self._on_remove is not None:
            self._on_remove(entry)
