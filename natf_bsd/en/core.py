"""The external node's decisions, sans-IO: packets and `now` in, effects out.

A packet meets this file in the order of the paper's section 3.2: its name's DNS look-up (`handle_dns`), its flow's
first packet (`handle_outbound`, held), the router's answer (`handle_control`, released), then data both ways
(`handle_outbound`, `handle_inbound`). `handle_timer` does all that only time brings about.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from natf_bsd.config import EnConfig
from natf_bsd.counters import Counters
from natf_bsd.datapath import Carried, Gone, Report
from natf_bsd.effects import Drop, Effect, HandOver, Inject, Resumed, Save, Send, TakeBack
from natf_bsd.en import saved
from natf_bsd.en.busiest import Busiest
from natf_bsd.en.counts import COUNTERS
from natf_bsd.en.held import HeldPackets
from natf_bsd.en.lookups import Lookups
from natf_bsd.en.negotiation import Negotiation, State
from natf_bsd.en.negotiations import Negotiations, Step
from natf_bsd.en.refusals import Reaction, Refusals, answer, reaction_to
from natf_bsd.errors import TableFull, WireError
from natf_bsd.tables.nrt import NameRelation, NameTable
from natf_bsd.tables.vat import TcpState, VatEntry, VatTable
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Address, Endpoint, Flow, Packet, Protocol, format_address
from natf_bsd.wire import packet as wire

DIRECT_LIFETIME = {Protocol.TCP: 86400, Protocol.UDP: 300}
"""Seconds of idleness after which a direct flow is forgotten: nothing but our own table limits it."""

_SYN_ACK = wire.TCP_SYN | wire.TCP_ACK
_EVENTFUL = wire.TCP_SYN | wire.TCP_FIN | wire.TCP_RST

_HEARD = 16  # refusals kept for `natf status`: a screenful; routers choose how many come

DOUBT_AFTER = 5.0
"""Seconds after a negotiation before an ICMP error from the router may start another: the inside host's own closed
port says the same.
"""


class EnCore:
    """One external node.

    `inbound_exact` tells whether the platform hands over inbound packets of VAT flows only (Linux, by connection
    mark) or everything from mapped routers (FreeBSD, by address table); it decides what becomes of one that has no
    VAT entry. `heeds_unreachable`: see `refusals.answer`. `token` makes random bytes; `key` is the secret of the
    virtual addresses.
    """

    def __init__(
        self,
        config: EnConfig,
        *,
        inbound_exact: bool = True,
        heeds_unreachable: bool = True,
        token: Callable[[int], bytes] = secrets.token_bytes,
        key: bytes = b"",
    ) -> None:
        self.counters = Counters(COUNTERS)
        self.epoch_offset = 0.0
        """Seconds to add to `now` for the time since 1970 (AUTH, the journal); the shell keeps it right."""
        self._config = config
        self._inbound_exact = inbound_exact
        self._heeds_unreachable = heeds_unreachable
        self._displaced_names: list[NameRelation] = []
        self.names = NameTable(
            VirtualAddresses(config.virtual_prefix, key),
            maximum=config.maximum_names,
            minimum_ttl=config.minimum_ttl,
            maximum_ttl=config.maximum_ttl,
            quarantine=config.quarantine,
            on_give_way=self._displaced_names.append,
        )
        self.lookups = Lookups(config, self.names, self.counters, lambda: self.epoch_offset)
        self._removed_flows: list[VatEntry] = []
        self.vat = VatTable(config.maximum_flows, self._removed_flows.append)
        self.held = HeldPackets()
        self._negotiations = Negotiations(config.keys, self.counters, token, lambda: self.epoch_offset)
        self.peers = self._negotiations.peers
        self.refusals = Refusals()
        self.kernel_ways: tuple[object, ...] = ()
        """Handles whose flows the kernel translates once they have a mapping; the shell knows which."""
        self.busiest: Busiest | None = None
        """Where the kernel has room for some flows only: which. The shell knows how many."""
        self.heard: deque[str] = deque(maxlen=_HEARD)
        """The latest refusals in their routers' own words, the newest last."""
        self._unconfirmed: set[bytes] = set()
        self._left: set[Address] = set()

    # Phase 1: the name.

    def handle_dns(self, packet: Packet, now: float) -> list[Effect]:
        """A DNS query of a program here or on an inside host, or an answer on its way there."""
        return [*self.lookups.handle(packet, now), *self._gave_way()]

    def _gave_way(self) -> list[Effect]:
        effects: list[Effect] = [Save(saved.name_gone(relation)) for relation in self._displaced_names]
        self._displaced_names.clear()
        return effects

    # Phase 2 and 3, outward: hold and negotiate, or translate.

    def handle_outbound(self, packet: Packet, now: float) -> list[Effect]:
        """A packet of an application to a virtual address."""
        self.counters.add("out.received")
        data = packet.data
        key = wire.flow_key(data)
        if key is None:
            return self._outbound_other(packet)
        entry = self.vat.by_out(key)
        if entry is None:
            return self._first_packet(packet, key, now)
        if entry.way is not packet.handle:
            if entry.way is not None:
                return self._port_taken(packet)
            entry.way = packet.handle
        flags = wire.tcp_flags(data)
        if (flags & _SYN_ACK == wire.TCP_SYN and not entry.is_opened_by(wire.tcp_sequence(data))) or (
            key in self._unconfirmed and entry.state is not TcpState.ESTABLISHED
        ):
            return self._begin_again(entry, packet, key, now)
        effects = self._passes(entry, flags, now)
        entry.note_out(flags, now)
        if packet.handle in self.kernel_ways:  # the kernel has forgotten the flow, or it is a SYN sent again
            effects += self._hand_over(entry, [packet])
        else:
            entry.out_rewrite.apply(data)
            self.counters.add("out.sent.translated")
            effects.append(Send(packet))
        if key in self._unconfirmed or entry.renew_due(now):
            effects += self._renew(entry, key, now)
        return effects

    def _begin_again(self, entry: VatEntry, packet: Packet, key: bytes, now: float) -> list[Effect]:
        """The entry may speak of a mapping that is gone, and then G2:m is the router itself, not the inside host: ask
        before anything is sent. True of a new connection on an old 4-tuple, and of a datagram after a restart.
        """
        self.vat.remove(entry)
        self._negotiations.called_off(key)  # of the connection before
        return self._settle_removed(now) + self._first_packet(packet, key, now)

    def _port_taken(self, packet: Packet) -> list[Effect]:
        """A gateway's own programs and its inside hosts come by two handles, of which the NAT sees one: it may give an
        inside host the source port that a program has bound. On the wire the two flows would be one, and the answers
        of both go to the first.
        """
        return self._reject([packet], Reaction.UNREACHABLE, "out.drop.port_taken")

    def _outbound_other(self, packet: Packet) -> list[Effect]:
        """ICMP errors of this host are translated; all else (ping, fragments, other protocols) is refused aloud."""
        data = packet.data
        try:
            wire.check_ipv4(data)
        except WireError:
            return self._drop(packet, "out.drop.malformed")
        quoted = wire.quoted_flow(data)
        entry = self.vat.by_out(quoted.reversed().key) if quoted else None
        if entry is None:
            return self._reject([packet], Reaction.UNREACHABLE, "out.drop.unsupported")
        wire.QuotedRewrite(
            outer_destination=(entry.flow.destination.address, entry.mapped.address),
            quoted_source=(entry.flow.destination, entry.mapped),
        ).apply(data)
        self.counters.add("out.sent.error")
        return [Send(packet)]

    def _first_packet(self, packet: Packet, key: bytes, now: float) -> list[Effect]:
        flow = wire.flow_of(packet.data)
        if flow is None:
            return self._drop(packet, "out.drop.malformed")
        if wire.tcp_flags(packet.data) & wire.TCP_RST:
            return self._drop(packet, "out.drop.stray_reset")
        if flow.source.address in self._left:
            return self._drop(packet, "out.drop.left_address")
        relation = self.names.by_virtual(flow.destination.address)
        if relation is None:
            return self._reject([packet], Reaction.UNREACHABLE, "out.drop.no_such_address")
        self.names.note_use(relation)
        refusal = self.refusals.get(key)
        if refusal is not None:
            return self._reject([packet], refusal, "out.drop.refused")
        if self.held.way(key) not in (None, packet.handle):
            return self._port_taken(packet)
        active = self._negotiations.active(key)
        if not active and self._negotiations.full:
            return self._reject([packet], Reaction.UNREACHABLE, "out.drop.table_full")
        displaced = self.held.hold(key, packet)
        if displaced is packet and active:
            return self._drop(packet, "out.drop.no_room")  # the flow may yet get its mapping: no error
        if displaced is packet:
            return self._reject([packet], Reaction.UNREACHABLE, "out.drop.no_room")
        effects = self._drop(displaced, "out.drop.replaced") if displaced else []
        if not active:
            # Behind a SYN a router's NAT takes what an inside host sends in the middle of a connection for invalid.
            midway = flow.protocol == Protocol.TCP and not wire.tcp_flags(packet.data) & wire.TCP_SYN
            effects += self._negotiations.start(flow, relation.name, relation.routers, now, established=midway)
        return effects

    # Negotiation [3.2 step 3-6].

    def _renew(self, entry: VatEntry, key: bytes, now: float, *, looked_at: bool = False) -> list[Effect]:
        """Ask again for the mapping of a flow in use (DESIGN.md section 4); its packets go on meanwhile. `looked_at`:
        what the entry says is what the kernel has just said.

        The router that has the flow is asked and no other, which would have a NAT of its own; only when the name has
        left it for another address (dynamic DNS) is that one asked.
        """
        if entry.direct or self._negotiations.active(key):
            return []
        if self._negotiations.full:
            self.counters.add("negotiation.put_off")
            return []
        self._unconfirmed.discard(key)
        effects = self._bring_back(entry, now)
        routers = entry.relation.routers
        if entry.mapped.address in routers:
            routers = (entry.mapped.address,)
        if entry.suspect or (entry.in_kernel and not looked_at):
            # The SYN that was sent again may be answered: then a new mapping would come when the connection is in use.
            self._negotiations.renew_soon(entry.flow, entry.relation.name, routers, now)
            return effects
        name, in_use = entry.relation.name, entry.state is TcpState.ESTABLISHED
        return effects + self._negotiations.start(entry.flow, name, routers, now, renewal=True, established=in_use)

    def handle_control(self, source: Address, data: bytes, now: float) -> list[Effect]:
        """An ICMP message from `source`, from its type byte: the answer of a router, or to somebody's ping."""
        return self._follow(self._negotiations.heard(source, data, now), now)

    def _follow(self, step: Step, now: float) -> list[Effect]:
        return [*(self._finish(step.ended, now) if step.ended else ()), *step.effects]

    def _finish(self, negotiation: Negotiation, now: float) -> list[Effect]:
        """The negotiation reached a last state: release or refuse what waited for it."""
        key = negotiation.flow.key
        if negotiation.state is State.MAPPED and negotiation.mapped is not None:
            effects = self._mapped(negotiation.flow, negotiation.mapped, negotiation.lifetime, False, now)
        elif negotiation.state is State.DIRECT:
            effects = self._direct(negotiation, now)
        elif negotiation.state is State.REFUSED:
            effects = self._refused(negotiation, key, now)
        else:
            effects = self._silent(negotiation, key, now)
        # A flow that had to give way first: while the kernel has it, its mapping is not free for another one.
        return [Resumed(negotiation.transaction), *self._settle_removed(now), *effects]

    def _direct(self, negotiation: Negotiation, now: float) -> list[Effect]:
        """G2 is no NAT-f router [4]: G1:s <-> V1:d means G1:s <-> G2:d, and the application reaches G2 itself."""
        flow = negotiation.flow
        itself = Endpoint(negotiation.router, flow.destination.port)
        return self._mapped(flow, itself, DIRECT_LIFETIME[Protocol(flow.protocol)], True, now)

    def _mapped(self, flow: Flow, mapped: Endpoint, lifetime: float, direct: bool, now: float) -> list[Effect]:
        """Make or renew the flow's VAT entry and let its held packets go."""
        packets = self.held.take(flow.key)
        known = self.vat.by_out(flow.key)
        if not packets and known is None:
            return []  # the flow ended while it was being renewed
        changed = known is None or (known.mapped, known.lifetime, known.direct) != (mapped, lifetime, direct)
        effects = self._take_back(known) if known is not None and known.mapped != mapped else []
        try:
            entry = self._entry(flow, mapped, lifetime, direct, now)
        except (TableFull, KeyError):
            return effects + self._reject(packets, Reaction.UNREACHABLE, "out.drop.table_full")
        for packet in packets:
            entry.way = packet.handle
            flags = wire.tcp_flags(packet.data)
            entry.note_out(flags, now)
            if flags & wire.TCP_SYN:
                entry.syn_sequence = wire.tcp_sequence(packet.data)
        if entry.way in self.kernel_ways:
            effects += self._hand_over(entry, packets)
        else:
            for packet in packets:
                entry.out_rewrite.apply(packet.data)
                self.counters.add("out.sent.released")
                effects.append(Send(packet))
        if changed:
            effects.append(Save(saved.flow_record(entry)))
        return effects

    def _entry(self, flow: Flow, mapped: Endpoint, lifetime: float, direct: bool, now: float) -> VatEntry:
        """The flow's entry, made or brought up to date; TableFull, or KeyError if its name was forgotten meanwhile."""
        entry = self.vat.by_out(flow.key)
        if entry is not None:
            if entry.mapped != mapped:
                self.counters.add("mapping.changed")
            self.vat.remap(entry, mapped, lifetime, now)
            entry.direct = direct
            return entry
        relation = self.names.by_virtual(flow.destination.address)
        if relation is None:
            raise KeyError(flow.destination.address)
        entry = self.vat.insert(flow, mapped, relation, lifetime=lifetime, direct=direct, now=now)
        self.names.acquire(relation)
        return entry

    # The kernel's part: established flows.

    def _hand_over(self, entry: VatEntry, packets: Sequence[Packet]) -> list[Effect]:
        if not packets:
            return []
        entry.in_kernel = True
        self.counters.add("out.sent.handed_over", len(packets))
        return [HandOver(entry.flow, entry.mapped, tuple(packets))]

    def _take_back(self, entry: VatEntry) -> list[Effect]:
        """Its mapping is not to be used any longer."""
        if self.busiest is not None:
            self.busiest.remove(entry)  # the kernel may have it still that was brought back a moment ago
        elif not entry.in_kernel:
            return []
        entry.in_kernel = False
        return [TakeBack(entry.flow)]

    def _passes(self, entry: VatEntry, flags: int, now: float) -> list[Effect]:
        """One of its packets, either way, is translated here. The kernel leaves to us what begins or ends a TCP
        connection; other packets of a flow it has were on their way when it got it.
        """
        if self.busiest is None:
            return []
        if not entry.in_kernel:
            self.busiest.note(entry, now)
            return []
        return self._bring_back(entry, now) if flags & _EVENTFUL else []

    def _bring_back(self, entry: VatEntry, now: float) -> list[Effect]:
        """The flow goes on, and we need to see it."""
        if self.busiest is None or not entry.in_kernel:
            return []
        self._stays(entry, now)
        return [TakeBack(entry.flow, at_once=False)]

    def _stays(self, entry: VatEntry, now: float) -> None:
        entry.in_kernel = False
        if self.busiest is not None:
            self.busiest.back(entry, now)
            entry.note_back()

    def _choose(self, now: float) -> list[Effect]:
        """Bring back what the kernel has had for its time, and hand over the busiest."""
        if self.busiest is None:
            return []
        effects: list[Effect] = []
        for entry in self.busiest.due(now):
            effects += self._bring_back(entry, now)
        for entry in self.busiest.chosen(now, self._may_be_handed_over):
            entry.in_kernel = True
            effects.append(HandOver(entry.flow, entry.mapped, ()))
        return effects

    def _may_be_handed_over(self, entry: VatEntry) -> bool:
        key = entry.flow.key
        return (
            entry.state in (None, TcpState.ESTABLISHED)
            and not entry.suspect
            and key not in self._unconfirmed
            and not self._negotiations.active(key)
        )

    def not_handed_over(self, flow: Flow, packets: Sequence[Packet], now: float) -> list[Effect]:
        """The kernel did not take `flow` nor the packets it was to begin with."""
        entry = self.vat.by_out(flow.key)
        if entry is not None:
            self._stays(entry, now)
        self.counters.add("out.sent.handed_over", -len(packets))
        return self._reject(packets, Reaction.UNREACHABLE, "out.drop.kernel")

    def handle_report(self, report: Report, now: float) -> list[Effect]:
        """What the kernel says of a flow: that it is in use keeps its entry alive, as its packets would."""
        entry = self.vat.by_out(report.key)
        if isinstance(report, Gone):
            if entry is not None:
                self._stays(entry, now)
            return []
        if entry is None or entry.mapped != report.mapped or not self._may_be_in_kernel(entry):
            return [TakeBack(wire.flow_of_key(report.key))]  # of an earlier run, or of an earlier mapping
        entry.in_kernel = True
        if entry.way is None:  # taken over from an earlier run
            entry.way = next(iter(self.kernel_ways), None)
        return self._carried(entry, report, now)

    def _may_be_in_kernel(self, entry: VatEntry) -> bool:
        """Of a restored flow that is no open connection, the router is asked before another packet is sent."""
        return entry.out_key not in self._unconfirmed or entry.state is TcpState.ESTABLISHED

    def _carried(self, entry: VatEntry, report: Carried, now: float) -> list[Effect]:
        key = report.key
        if report.inward and entry.suspect:
            self._negotiations.called_off(key)
        entry.note_carried(
            *(report.out, report.inward, report.fins),
            reset=report.reset,
            since=report.since,
            now=now,
            unacknowledged=report.unacknowledged,
        )
        self._negotiations.in_use(key, established=entry.state is TcpState.ESTABLISHED)
        passed = bool(report.out or report.inward)
        if (passed and key in self._unconfirmed) or entry.renew_due(now, passed=passed):
            return self._renew(entry, key, now, looked_at=True)
        return []

    def doubtful(self, now: float) -> list[Flow]:
        """Flows that `handle_timer` would ask for again, which it should do by the kernel's latest word on them."""
        return [flow for flow in self._negotiations.put_off(now) if (e := self.vat.by_out(flow.key)) and e.in_kernel]

    def _refused(self, negotiation: Negotiation, key: bytes, now: float) -> list[Effect]:
        entry = self.vat.by_out(key)
        reaction = reaction_to(negotiation.refusal)
        if (said := negotiation.refusal) is not None:
            who = f"{negotiation.name} by {format_address(negotiation.router)}"
            self.heard.append(f"{who}: {said.status.name.lower()} {ascii(said.text) if said.text else ''}".rstrip())
        moved = entry is not None and entry.mapped.address not in entry.relation.routers
        if entry is not None and reaction is Reaction.UNREACHABLE and not moved:
            entry.renew_not_before = now + DOUBT_AFTER  # it can't just now; its mapping may well live
            return []
        if entry is not None:
            self.vat.remove(entry)
            reaction = Reaction.REFUSED  # what was open is over: an established connection heeds a RST only
        self.refusals.remember(key, reaction, now)
        return self._reject(self.held.take(key), reaction, "out.drop.refused")

    def _silent(self, negotiation: Negotiation, key: bytes, now: float) -> list[Effect]:
        """No answer: the name's next router, if it has one; then what the configuration says, never silence."""
        if self.names.by_virtual(negotiation.flow.destination.address) is not None:
            asked = self._negotiations.ask_next(negotiation, now)
            if asked:
                return asked
        entry = self.vat.by_out(key)
        if entry is not None:
            entry.renew_not_before = now + DOUBT_AFTER
            return []
        if self._may_go_direct(negotiation):
            return self._direct(negotiation, now)
        return self._reject(self.held.take(key), Reaction.UNREACHABLE, "out.drop.silent")

    def _may_go_direct(self, negotiation: Negotiation) -> bool:
        """Whether a silent router may be taken for the inside host itself."""
        return self._config.on_silence == "direct" and self._negotiations.may_be_plain(negotiation)

    # Phase 3, inward.

    def handle_inbound(self, packet: Packet, now: float) -> list[Effect]:
        """A packet from a mapped router: a flow's answer, or an ICMP error about a flow."""
        self.counters.add("in.received")
        data = packet.data
        key = wire.flow_key(data)
        if key is None:
            return self._inbound_error(packet, now)
        entry = self.vat.by_in(key)
        if entry is None:
            return self._inbound_unknown(packet)
        if entry.suspect:
            self._negotiations.called_off(entry.flow.key)
        flags = wire.tcp_flags(data)
        effects = self._passes(entry, flags, now)
        entry.note_in(flags, now)
        entry.in_rewrite.apply(data)
        self.counters.add("in.sent.translated")
        if entry.in_kernel and self.kernel_ways:  # it was in fragments, which the kernel does not translate everywhere
            effects += [Drop(packet), Inject(bytes(data))]
        else:
            effects.append(Send(packet))
        if entry.state is None and entry.renew_due(now):
            effects += self._renew(entry, entry.flow.key, now)  # UDP may flow one way only
        return effects

    def _inbound_error(self, packet: Packet, now: float) -> list[Effect]:
        """ICMP errors quote G1:s -> G2:m and must quote G1:s -> V1:d for a socket to know them (FREEBSD.md 13)."""
        data = packet.data
        try:
            wire.check_ipv4(data)
        except WireError:
            return self._drop(packet, "in.drop.malformed")
        quoted = wire.quoted_flow(data)
        entry = self.vat.by_in(quoted.reversed().key) if quoted else None
        if entry is None:
            return self._inbound_unknown(packet)
        # A packet that expired on the router never got to V1, and says nothing of the mapping: traceroute sees G2.
        for_inside = wire.source(data) == entry.mapped.address and not wire.is_expired_in_transit(data)
        translate = wire.QuotedRewrite(
            outer_source=(entry.mapped.address, entry.flow.destination.address) if for_inside else None,
            quoted_destination=(entry.mapped, entry.flow.destination),
        )
        translate.apply(data)
        effects: list[Effect] = [Send(packet)]
        if entry.in_kernel and self.kernel_ways:
            # A NAT's kernel would translate it again, whoever sent it; otherwise it is of no connection, and refused.
            effects = [Drop(packet), Inject(bytes(data))]
        self.counters.add("in.sent.error")
        if for_inside and now >= max(entry.mapped_at + DOUBT_AFTER, entry.renew_not_before):
            effects += self._renew(entry, entry.flow.key, now)
        return effects

    def _inbound_unknown(self, packet: Packet) -> list[Effect]:
        if self._inbound_exact:
            return self._drop(packet, "in.drop.no_flow")
        self.counters.add("in.sent.foreign")
        return [Send(packet)]

    # Time.

    def handle_timer(self, now: float) -> list[Effect]:
        """Retransmissions, give-ups, expiry. Call at `next_deadline()`; earlier or later does no harm."""
        effects: list[Effect] = []
        for step in self._negotiations.due(now):
            effects += self._follow(step, now)
        self.vat.expire(now)
        self.lookups.expire(now)
        effects += [Save(saved.name_gone(relation)) for relation in self.names.expire(now)]
        effects += [Save(saved.router_gone(peer)) for peer in self.peers.expire(now)]
        self.refusals.expire(now)
        return [*effects, *self._settle_removed(now), *self._choose(now)]

    def next_deadline(self) -> float | None:
        """When `handle_timer` has something to do next (monotonic seconds), None if never."""
        deadlines = (
            self._negotiations.next_deadline(),
            self.vat.next_deadline(),
            self.names.next_deadline(),
            self.lookups.next_deadline(),
            self.peers.next_deadline(),
            self.refusals.next_deadline(),
            self.busiest.next_deadline() if self.busiest is not None else None,
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def routers(self) -> frozenset[Address]:
        """Those whose packets may be a flow's, now or when a program uses a name it knows."""
        named = {router for relation in self.names for router in relation.routers}
        return frozenset(named | {entry.mapped.address for entry in self.vat})

    def addresses_changed(self, is_local: Callable[[Address], bool], now: float) -> list[Effect]:
        """This host has lost or got addresses. What was G1 and is no longer local ends: nothing can come back to it,
        and a router would be asked for somebody else. Its sockets live on and hear nothing, as of any other host; what
        they send is dropped.
        """
        known = {entry.flow.source.address for entry in self.vat}
        known |= {negotiation.flow.source.address for negotiation in self._negotiations}
        self._left = {address for address in known | self._left if not is_local(address)}
        effects: list[Effect] = []
        for negotiation in [n for n in self._negotiations if n.flow.source.address in self._left]:
            self._negotiations.called_off(negotiation.flow.key)
            for packet in self.held.take(negotiation.flow.key):
                effects += self._drop(packet, "out.drop.left_address")
        for entry in [entry for entry in self.vat if entry.flow.source.address in self._left]:
            self.vat.remove(entry)
            self.counters.add("flows.left_address")
        return effects + self._settle_removed(now)

    def negotiations(self) -> Iterator[Negotiation]:
        """Those under way."""
        return iter(self._negotiations)

    def idle(self) -> bool:
        """Whether no flow, no name and no negotiation is left, nor anything kept beside them."""
        kept = (self.held, self.vat, self.names, self._unconfirmed, self._removed_flows)
        return not any(kept) and self._negotiations.idle() and self.lookups.idle()

    def shutdown(self) -> list[Effect]:
        """Let go of what is held: the handle's end would lose it without a count."""
        effects: list[Effect] = []
        for packet in self.held.take_all():
            effects += self._drop(packet, "out.drop.shutdown")
        return effects

    def restore(self, records: list[saved.Record], now: float) -> list[str]:
        """Take over what the previous run saved; returns a sentence for every record that could not be used."""
        complaints: list[str] = []
        names, routers, flows = saved.by_kind(records)
        kinds = ((names, self._restore_name), (routers, self._restore_router), (flows, self._restore_flow))
        for found, restore in kinds:
            for record in found:
                try:
                    restore(record, now)
                except (ValueError, KeyError, TypeError, TableFull) as error:
                    complaints.append(f"{record.get('id')}: {error}")
        return complaints

    def _restore_name(self, record: saved.Record, now: float) -> None:
        self.names.restore(*saved.read_name(record, self.epoch_offset))

    def _restore_router(self, record: saved.Record, now: float) -> None:
        self.peers.restore(*saved.read_router(record, self.epoch_offset), now)

    def _restore_flow(self, record: saved.Record, now: float) -> None:
        """The entry as it was; its first packet outward asks the router whether it still holds."""
        flow, mapped, lifetime, direct = saved.read_flow(record)
        entry = self._entry(flow, mapped, lifetime, direct, now)
        entry.note_in(0, now)  # it was in use: an established connection may be idle for long
        if not direct:
            self._unconfirmed.add(flow.key)
        self.counters.add("flows.restored")

    # The last step of every way out.

    def _settle_removed(self, now: float) -> list[Effect]:
        """What follows from the removal of VAT entries, for whatever reason they went."""
        effects: list[Effect] = []
        for entry in self._removed_flows:
            effects += self._take_back(entry)
            self._unconfirmed.discard(entry.flow.key)
            self.names.release(entry.relation, now)
            effects.append(Save(saved.flow_gone(entry)))
        self._removed_flows.clear()
        return effects

    def _drop(self, packet: Packet, counter: str) -> list[Effect]:
        self.counters.add(counter)
        return [Drop(packet)]

    def _reject(self, packets: Sequence[Packet], reaction: Reaction, counter: str) -> list[Effect]:
        """Drop a flow's packets and tell its program, once."""
        effects: list[Effect] = [Drop(packet) for packet in packets]
        self.counters.add(counter, len(packets))
        heeds = self._heeds_unreachable
        error = answer(packets[-1].data, reaction, heeds_unreachable=heeds) if packets else None
        if error is not None:
            effects.append(Inject(error, about=packets[-1]))
        return effects
