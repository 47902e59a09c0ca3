"""Phase 1, sans-IO: DNS queries, remembered, and their answers, rewritten (paper 3.2 step 1-2).

The queries are those of this host's programs and, where it is a gateway, of the inside hosts behind it [3.4].

Only an answer from a server in `resolvers` to a query that was put to it teaches the tables anything. Any program may
ask a server of its own, and anyone may send a packet from port 53; neither may say where a name's packets go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from natf_bsd.config import EnConfig
from natf_bsd.counters import Counters
from natf_bsd.dns import carrier, reverse
from natf_bsd.dns.names import HomeDomains
from natf_bsd.dns.queries import Queries, Query
from natf_bsd.dns.question import CLASS_IN, Question, longer_answer_wanted, questions_of_stream, read_question
from natf_bsd.dns.records import without_options
from natf_bsd.dns.rewrite import ADDRESS_TYPES, Outcome, rewrite
from natf_bsd.effects import Admit, Drop, Effect, Inject, Save, Send
from natf_bsd.en import saved
from natf_bsd.errors import TableFull
from natf_bsd.tables.nrt import NameRelation, NameTable
from natf_bsd.types import Address, Direction, Flow, Name, Packet, Protocol
from natf_bsd.wire import build
from natf_bsd.wire import packet as wire

_LOOPBACK = frozenset(("lo", "lo0"))  # Linux, FreeBSD
_LOOPBACK_NET = 127
_DNS = 53
_TRIES = 2
"""Times a truncated answer is asked for again: the second in case that the first was lost, and the program has asked
once more."""

_SENT = {
    Outcome.NOT_OURS: "dns.sent.not_ours",
    Outcome.REWRITTEN: "dns.sent.rewritten",
    Outcome.EMPTIED: "dns.sent.emptied",
    Outcome.ALREADY: "dns.sent.already",
    Outcome.UNCHANGED: "dns.sent.unchanged",
    Outcome.FAILED: "dns.sent.failed",
    Outcome.TRUNCATED: "dns.sent.truncated",
    Outcome.REBINDING: "dns.sent.rebinding",
}


class Lookups:
    """`resolvers` are the servers believed; the shell keeps them right. `epoch_offset` as `EnCore.epoch_offset`."""

    def __init__(
        self, config: EnConfig, names: NameTable, counters: Counters, epoch_offset: Callable[[], float]
    ) -> None:
        self.resolvers = frozenset(config.resolvers)
        self.follow: Callable[[], None] = lambda: None
        """Called when one of our names is asked of a server not believed: the shell may find that it is one by now."""
        self._homes = HomeDomains(config.home_domains)
        self._maximum_ttl = int(config.maximum_ttl)
        self._names = names
        self._counters = counters
        self._epoch_offset = epoch_offset
        self._queries = Queries()

    def handle(self, packet: Packet, now: float) -> list[Effect]:
        """A packet to a DNS server, or from one."""
        self._counters.add("dns.received")
        flow = wire.flow_of(packet.data)
        if flow is not None and flow.protocol == Protocol.TCP and flow.destination.port == _DNS:
            return self._segment(packet, flow)
        message = carrier.payload(packet.data)
        if flow is None or message is None:
            return self._pass(packet, "dns.sent.not_dns")
        if _is_query(packet, flow):
            return self._query(packet, flow, message, now)
        if flow.source.address not in self.resolvers:
            return self._pass(packet, "dns.sent.stranger")
        return self._answer(packet, flow, message, now)

    def expire(self, now: float) -> None:
        self._queries.expire(now)

    def next_deadline(self) -> float | None:
        return self._queries.next_deadline()

    def idle(self) -> bool:
        return not len(self._queries)

    def _query(self, packet: Packet, flow: Flow, message: bytes, now: float) -> list[Effect]:
        """Remembered if it is about our names, and passed on in any case but that of a virtual address's name."""
        question = read_question(message, answer=False)
        address = reverse.virtual_address(question, self._names.virtual) if question is not None else None
        if question is not None and address is not None:
            return self._reverse(packet, flow, message, question, address, now)
        if question is None or question.klass != CLASS_IN or self._homes.split(question.name) is None:
            return self._pass(packet, "dns.sent.query_not_ours")
        if flow.destination.address not in self.resolvers:
            self.follow()
        if flow.destination.address not in self.resolvers:
            return self._pass(packet, "dns.sent.query_to_stranger")
        plain = without_options(message) is message
        # Only a query that begins here can be made again: that of a host behind us has a way through NAT to go.
        tries = _TRIES if packet.direction is Direction.OUT else 0
        kept = self._queries.remember(
            flow.source, flow.destination, question, now, plain=plain, tries=tries, leaves=packet.leaves
        )
        return self._pass(packet, "dns.sent.query" if kept else "dns.sent.query_forgotten")

    def _segment(self, packet: Packet, flow: Flow) -> list[Effect]:
        """A TCP segment to a DNS server.

        Answers in a stream cannot be rewritten, so a query whose answer would tell the true address is answered by the
        end of its connection. Both sides are told: a server may wait for it, and serve nobody else. Truncated answers,
        the usual reason to use TCP, programs do not get to see.
        """
        server = flow.destination.address
        questions = [q for q in questions_of_stream(carrier.segment_payload(packet.data)) if self._is_for_address(q)]
        if not questions:
            return self._pass(packet, "dns.sent.tcp")
        if server not in self.resolvers:
            self.follow()
        reset = build.reset_for(packet.data) if server in self.resolvers else None
        if reset is None:
            return self._pass(packet, "dns.sent.query_to_stranger")
        sequence = wire.tcp_sequence(packet.data)
        packet.data = build.tcp(flow.source, flow.destination, flags=wire.TCP_RST, sequence=sequence, window=0)
        return [*self._pass(packet, "dns.sent.tcp_reset"), Inject(bytes(reset), outward=_is_within(flow))]

    def _is_for_address(self, question: Question) -> bool:
        is_ours = question.klass == CLASS_IN and self._homes.split(question.name) is not None
        return is_ours and question.type in ADDRESS_TYPES

    def _reverse(
        self, packet: Packet, flow: Flow, message: bytes, question: Question, address: Address, now: float
    ) -> list[Effect]:
        """The name of the virtual address `address` is asked for. Whichever server is asked: the query does not leave,
        and the answer comes as if from there.
        """
        relation = self._names.by_virtual(address)
        if relation is None:
            self._counters.add("dns.drop.reverse_unknown")
            answer = reverse.answer(message, question, None, 0)
        else:
            self._counters.add("dns.drop.reverse")
            ttl = min(max(int(relation.expires - now), 0), self._maximum_ttl)
            answer = reverse.answer(message, question, relation.name, ttl)
        reply = build.udp(flow.destination, flow.source, answer)
        # FreeBSD takes no packet from outside whose source is its own; out by lo0 it may go, and comes in.
        return [Drop(packet), Inject(bytes(reply), outward=_is_within(flow))]

    def _answer(self, packet: Packet, flow: Flow, message: bytes, now: float) -> list[Effect]:
        """Of a server believed: rewritten, asked for again with more room, or dropped for want of a query."""
        lesson = _Lesson(self._names, self._queries, flow, packet.interface, now)
        result = rewrite(
            message,
            self._homes,
            lesson.relate,
            self._names.virtual,
            maximum_ttl=self._maximum_ttl,
            # FreeBSD names no interface of what goes out by lo0.
            local=packet.interface in _LOOPBACK or _is_within(flow),
            asked=lesson.was_asked,
        )
        if result.outcome is Outcome.UNASKED:
            self._counters.add("dns.drop.unasked")
            return [Drop(packet)]
        query, question = lesson.query, lesson.question
        if result.outcome is Outcome.TRUNCATED and question is not None and query is not None and query.tries:
            query.tries -= 1
            return self._ask_again(packet, flow, message, question)
        seen = without_options(result.data) if query is not None and query.plain else result.data
        if seen is not message:
            packet.data = carrier.replace_payload(packet.data, seen)
        admits = [Admit(relation.routers) for relation in lesson.learned]
        saves = [Save(saved.name_record(relation, self._epoch_offset())) for relation in lesson.learned]
        return [*admits, *self._pass(packet, _SENT[result.outcome]), *saves]

    def _ask_again(self, packet: Packet, flow: Flow, message: bytes, question: Question) -> list[Effect]:
        """In the program's stead, which would do it over TCP: by the same ports, so that the answer finds it."""
        self._counters.add("dns.drop.truncated")
        longer = build.udp(flow.destination, flow.source, longer_answer_wanted(message, question))
        return [Drop(packet), Inject(bytes(longer), outward=True)]

    def _pass(self, packet: Packet, counter: str) -> list[Effect]:
        self._counters.add(counter)
        return [Send(packet)]


class _Lesson:
    """What one answer, on its way by `flow`, may teach the tables: `rewrite` asks `was_asked`, then perhaps `relate`.

    `came`: the interface it came in by. `question`: what it is about; `query`: who asked that, None if nobody did;
    `learned`: the relations made of it.
    """

    def __init__(self, names: NameTable, queries: Queries, flow: Flow, came: str, now: float) -> None:
        self.question: Question | None = None
        self.query: Query | None = None
        self.learned: list[NameRelation] = []
        self._names = names
        self._queries = queries
        self._flow = flow
        self._came = came
        self._now = now

    def was_asked(self, question: Question) -> bool:
        """See `rewrite.Asked`."""
        self.question = question
        flow = self._flow
        self.query = self._queries.find(flow.destination, flow.source, question, self._now, came=self._came)
        return self.query is not None

    def relate(self, name: Name, routers: Sequence[Address], ttl: int) -> Address | None:
        """See `rewrite.Relate`. A query teaches once: its next answer gets the same address and changes nothing."""
        known = self._names.by_name(name)
        if known is not None and self.query is not None and self.query.answered:
            return known.virtual
        try:
            relation = self._names.learn(name, routers, ttl, self._now)
        except TableFull:
            return None
        self.learned.append(relation)
        if self.query is not None:
            self.query.answered = True
        return relation.virtual


def _is_within(flow: Flow) -> bool:
    """Whether it does not leave this host: what goes to an address of one's own comes from that one."""
    source, destination = flow.source.address, flow.destination.address
    return source == destination or destination[0] == _LOOPBACK_NET


def _is_query(packet: Packet, flow: Flow) -> bool:
    """FreeBSD shows both ways of a look-up on loopback as it goes out: there the ports tell, elsewhere the direction
    (servers may ask each other from port 53)."""
    both = flow.source.port == flow.destination.port == _DNS
    return packet.direction is Direction.OUT if both else flow.destination.port == _DNS
