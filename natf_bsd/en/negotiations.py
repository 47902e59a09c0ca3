"""The negotiations under way with routers: asking, hearing, asking again [3.2 steps 3 to 6]. Sans-IO.

What follows from the end of one (packets released or refused, tables changed) is en/core.py's part: it gets every
ended negotiation back in a `Step`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from natf_bsd.counters import Counters
from natf_bsd.effects import Effect, Save, SendControl
from natf_bsd.en import saved
from natf_bsd.en.negotiation import Negotiation, State
from natf_bsd.en.peers import Peers
from natf_bsd.errors import UnsupportedVersion, WireError
from natf_bsd.keys import Key
from natf_bsd.types import Address, Flow, Name
from natf_bsd.wire import auth, icmp, message

MAXIMUM_NEGOTIATIONS = 4096
"""Negotiations under way at once, about 1 kB each: bounds the requests in flight. The bound on held packets is the
larger one.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What an answer or the time led to: the negotiation that ended by it, and then `effects`."""

    ended: Negotiation | None = None
    effects: list[Effect] = field(default_factory=list)


class Negotiations:
    """By transaction id, as answers name them, and by flow key, one a flow.

    `keys` are by home domain, `token` makes random bytes, `epoch_offset` tells the seconds from `now` to the time since
    1970. Counted in `counters`: negotiation, request and control.
    """

    def __init__(
        self,
        keys: Mapping[str, Key],
        counters: Counters,
        token: Callable[[int], bytes],
        epoch_offset: Callable[[], float],
    ) -> None:
        self.peers = Peers()
        self._keys = keys
        self._counters = counters
        self._token = token
        self._epoch_offset = epoch_offset
        self._by_transaction: dict[bytes, Negotiation] = {}
        self._by_flow: dict[bytes, Negotiation] = {}
        self._put_off: dict[bytes, Negotiation] = {}
        self._alarms: list[tuple[float, int, Negotiation]] = []
        self._alarm_number = count()

    def __iter__(self) -> Iterator[Negotiation]:
        return iter(self._by_flow.values())

    def __len__(self) -> int:
        return len(self._by_flow)

    def active(self, key: bytes) -> bool:
        """Whether the flow with this key is being negotiated."""
        return key in self._by_flow

    @property
    def full(self) -> bool:
        return len(self._by_flow) >= MAXIMUM_NEGOTIATIONS

    def idle(self) -> bool:
        """Whether nothing at all is kept, not even an alarm that went out of use."""
        return not (self._by_flow or self._by_transaction or self._alarms)

    def start(
        self,
        flow: Flow,
        name: Name,
        routers: tuple[Address, ...],
        now: float,
        *,
        renewal: bool = False,
        established: bool = False,
    ) -> list[Effect]:
        """Ask `routers[0]`; the others are for `ask_next`. `established`: the flow is a TCP connection in use. The
        caller sees to `full` and `active`.
        """
        self._counters.add("negotiation.renewals" if renewal else "negotiation.started")
        return self._ask(self._new(flow, name, routers, renewal=renewal, established=established), now)

    def renew_soon(self, flow: Flow, name: Name, routers: tuple[Address, ...], now: float) -> None:
        """Ask when the flow's last packet has had time to be answered, unless it is `called_off` till then."""
        self._counters.add("negotiation.renewals")
        negotiation = self._new(flow, name, routers, renewal=True)
        negotiation.due = now + negotiation.rto
        self._put_off[flow.key] = negotiation
        self._alarm(negotiation)

    def put_off(self, now: float) -> list[Flow]:
        """Flows of `renew_soon` whose time has come."""
        return [negotiation.flow for negotiation in self._put_off.values() if negotiation.due <= now]

    def in_use(self, key: bytes, *, established: bool) -> None:
        """Whether the flow with this key is a TCP connection in use, should it be in `renew_soon`."""
        negotiation = self._put_off.get(key)
        if negotiation is not None:
            negotiation.established = established

    def called_off(self, key: bytes) -> None:
        """The flow with this key needs no new mapping after all."""
        negotiation = self._by_flow.get(key)
        if negotiation is not None:
            self._counters.add("negotiation.called_off")
            self._end(negotiation)

    def ask_next(self, silent: Negotiation, now: float) -> list[Effect]:
        """The question `silent` got no answer to, put to the name's next router; nothing if there is none."""
        if not silent.alternatives:
            return []
        flow, name, routers = silent.flow, silent.name, silent.alternatives
        again = self._new(flow, name, routers, renewal=silent.renewal, established=silent.established)
        return self._ask(again, now)

    def _ask(self, negotiation: Negotiation, now: float) -> list[Effect]:
        self._put_off.pop(negotiation.flow.key, None)
        return [self._request(negotiation, negotiation.start(now, self._epoch_ms(now)))]

    def _new(
        self, flow: Flow, name: Name, routers: tuple[Address, ...], *, renewal: bool, established: bool = False
    ) -> Negotiation:
        negotiation = Negotiation(
            flow,
            name,
            routers[0],
            self._token(8),
            int.from_bytes(self._token(2), "big"),
            self.peers.rto(routers[0]),
            self._keys.get(name.domain),
            renewal,
            established,
            routers[1:],
        )
        self._by_transaction[negotiation.transaction] = negotiation
        self._by_flow[flow.key] = negotiation
        return negotiation

    def _request(self, negotiation: Negotiation, data: bytes) -> Effect:
        self._counters.add("request.sent")
        self._alarm(negotiation)
        return SendControl(negotiation.router, data, negotiation.transaction)

    def _alarm(self, negotiation: Negotiation) -> None:
        heapq.heappush(self._alarms, (negotiation.due, next(self._alarm_number), negotiation))

    def heard(self, source: Address, data: bytes, now: float) -> Step:
        """Read an ICMP message from `source`: the answer of a router, or an answer to somebody's ping."""
        self._counters.add("control.received")
        try:
            echo = icmp.decode_echo(data)
        except WireError:
            return self._ignore("malformed")
        if echo.type != icmp.ECHO_REPLY or not message.is_natf(echo.data):
            return self._ignore("not_natf")
        try:
            answer = message.decode(echo.data)
        except UnsupportedVersion as error:
            answer = message.Refused(error.transaction, message.Status.UNSUPPORTED, str(error))
        except WireError:
            return self._ignore("malformed")
        negotiation = self._by_transaction.get(answer.transaction)
        if negotiation is None:
            return self._ignore("unknown")
        if source != negotiation.router or echo.ident != negotiation.ident:
            return self._ignore("wrong_source")
        if not negotiation.authentic(echo.data, self._epoch_ms(now)):
            return self._ignore("unauthenticated")
        return self._believed(negotiation, echo.sequence, answer, now)

    def _believed(self, negotiation: Negotiation, sequence: int, answer: message.Message, now: float) -> Step:
        if isinstance(answer, message.Request):
            return self._mirrored(negotiation)
        round_trip = negotiation.round_trip(sequence, now)
        news = self.peers.answered(negotiation.router, round_trip, now) if round_trip is not None else None
        step = self._answered(negotiation, answer, now)
        if news is not None:
            step.effects.append(Save(saved.router_record(news, self._epoch_offset())))
        return step

    def _mirrored(self, negotiation: Negotiation) -> Step:
        if not self.may_be_plain(negotiation):
            return self._ignore("mirror_of_peer")
        self._counters.add("control.used.mirror")
        negotiation.mirrored()
        return self._end(negotiation)

    def _answered(
        self,
        negotiation: Negotiation,
        answer: message.Response | message.CookieChallenge | message.Refused,
        now: float,
    ) -> Step:
        """A mapping at another address than the router's own is not taken: it would let a router point our programs at
        hosts of our own network.
        """
        if isinstance(answer, message.CookieChallenge):
            return self._challenged(negotiation, answer.cookie, now)
        if isinstance(answer, message.Response):
            if answer.mapped.address != negotiation.router:
                return self._ignore("foreign_mapping")
            self._counters.add("control.used.response")
            negotiation.responded(answer)
        else:
            self._counters.add("control.used.refusal")
            negotiation.refused(answer)
        return self._end(negotiation)

    def _challenged(self, negotiation: Negotiation, cookie: bytes, now: float) -> Step:
        request = negotiation.challenged(cookie, now, self._epoch_ms(now))
        if request is None:
            return self._ignore("challenges")
        self._counters.add("control.used.challenge")
        return Step(effects=[self._request(negotiation, request)])

    def _ignore(self, why: str) -> Step:
        self._counters.add(f"control.ignored.{why}")
        return Step()

    def _end(self, negotiation: Negotiation) -> Step:
        del self._by_transaction[negotiation.transaction]
        del self._by_flow[negotiation.flow.key]
        self._put_off.pop(negotiation.flow.key, None)
        return Step(negotiation)

    def may_be_plain(self, negotiation: Negotiation) -> bool:
        """Whether its router can be an ordinary host: not if it spoke NAT-f before, gave the flow its mapping, or has
        to prove itself by key (a mirrored request carries our own MAC, and an attacker can mirror).
        """
        known = negotiation.renewal or self.peers.speaks_natf(negotiation.router)
        return negotiation.key is None and not known

    def due(self, now: float) -> Iterator[Step]:
        """Requests that were put off, retransmissions and give-ups whose time has come. New ones may be started between
        two steps.
        """
        while self._alarms and self._alarms[0][0] <= now:
            due, _, negotiation = heapq.heappop(self._alarms)
            if self._by_transaction.get(negotiation.transaction) is not negotiation or negotiation.due != due:
                continue
            if negotiation.state is State.IDLE:
                yield Step(effects=self._ask(negotiation, now))
                continue
            request = negotiation.retry(now, self._epoch_ms(now))
            if request is None:
                self._counters.add("negotiation.silent")
                yield self._end(negotiation)
            else:
                self._counters.add("request.retransmitted")
                yield Step(effects=[self._request(negotiation, request)])

    def next_deadline(self) -> float | None:
        """When `due` has something next (monotonic seconds); earlier than true after an answer."""
        return self._alarms[0][0] if self._alarms else None

    def _epoch_ms(self, now: float) -> int:
        return auth.epoch_ms(now, self._epoch_offset())
