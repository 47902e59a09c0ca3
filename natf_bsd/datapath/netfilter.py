"""Linux: a connection tracked and translated by netfilter for each flow (DESIGN.md section 7).

The held packet is of a connection conntrack has just seen begin, G1:s -> V1:d. When it is released it meets the rule
`firewall.linux` has put into the NAT's output hook, which looks for its destination in a map. The connection keeps what
the map said; the element ends by itself. So this very packet goes on, with its socket and all the host's own rules go
by, and soon nothing is left that could translate what we do not know of.

Where the flow leaves by an interface at which our programs are, they rewrite it (datapath/ebpf), and there is no
element: the connection stays G1:s -> V1:d.

Adding an element takes 8 us, 40 with cold caches; an entry made through ctnetlink, which takes as long, would want the
held packet to be sent anew by a socket of ours. Removing it is one more transaction, and what that leaves for the
kernel to do later is in the way of the next flow.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Final

from natf_bsd.datapath import Carried, Gone, Report
from natf_bsd.datapath.ebpf.vat import InterfaceVat
from natf_bsd.divert import netlink
from natf_bsd.firewall.linux import NFT_MAP, NFT_TABLE
from natf_bsd.natd_bridge import conntrack
from natf_bsd.ops.loop import monotonic
from natf_bsd.types import Endpoint, Flow
from natf_bsd.wire.packet import flow_of_key

INTERVAL: Final = 2.5
"""Seconds between two looks at the least: half of what a flow is unanswered before it is asked for again
(`tables.vat.SILENCE_SECONDS`)."""

_GIVEN_UP: Final = 10 * INTERVAL  # s after which a look that does not end is no longer waited for
_LISTINGS: Final = 3  # at most: the kernel's table may change its size while it is listed
_SHARE: Final = 1 / 33  # of a processor that looks may take: with many flows there are fewer
_TOGETHER: Final = 128  # flows that are ended before packets have their turn

_COUNTERS: Final = ("handed_over", "at_interface", "refused", "taken_back", "gone", "looks", "failed")

# linux/netfilter/nfnetlink.h, nf_tables.h
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
_NFTABLES: Final = 10
_NEW_ELEMENT: Final = _NFTABLES << 8 | 12
_DELETE_ELEMENT: Final = _NFTABLES << 8 | 14
_ACKNOWLEDGED: Final = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
_CREATE: Final = _ACKNOWLEDGED | 0x400
_NESTED: Final = 1 << 15
_IN_TABLE: Final = struct.pack("!BBH", socket.AF_INET, 0, 0) + b"".join(
    netlink.attribute(kind, f"{name}\0".encode()) for kind, name in ((1, NFT_TABLE), (2, NFT_MAP))
)
_OF_BATCH: Final = struct.pack("!BBH", 0, 0, _NFTABLES)
# Each part of a key and of its data takes whole words.
_KEY: Final = struct.Struct("!4sB3xH2x4sH2x")
_DATA: Final = struct.Struct("!4sH2x")
# When an element ends, in ms: far above what the packet needs that is let go right after it was added.
_ENDS: Final = netlink.attribute(4, struct.pack("!Q", 2000))
_LARGEST_ERROR: Final = 4096


class NetfilterPath:
    """`mark` (within `mask`) is the connection mark that the rule gives to what it translates, `prefix` begins the
    virtual addresses: who else uses the mark is let alone. `interface`: where flows are rewritten that leave there,
    without the NAT. OSError when the kernel has no netlink for it.
    """

    def __init__(self, mark: int, mask: int, prefix: bytes, interface: InterfaceVat | None = None) -> None:
        self._counters = Counter(dict.fromkeys(_COUNTERS, 0))
        self._interface = interface
        self._prefix = prefix
        self._sequence = 0
        self._netlink = netlink.NetlinkSocket(netlink.NETLINK_NETFILTER)
        self._netlink.socket.setblocking(False)
        self._conntrack = conntrack.Conntrack()
        self._dump = conntrack.Dump(mark, mask)
        self._known: dict[bytes, _Known] = {}
        self._astray: dict[bytes, Flow] = {}
        self._gone: list[Gone] = []
        self._news = select.epoll()
        for source in (self._dump, *(() if interface is None else (interface,))):
            self._news.register(source, select.EPOLLIN)
        self._began = self._due = self._spent = 0.0

    @property
    def room(self) -> None:
        return None

    def hand_over(self, flow: Flow, mapped: Endpoint, leaves: str = "") -> bool:
        known = self._known.get(flow.key)
        if known is None or known.at_interface is not None:
            if self._taken_at_interface(flow, mapped, leaves):
                return True
            if known is not None:
                # No NAT begins in the middle of a connection: this packet is lost, and the next one makes a new one.
                self._end_one(flow)
                self._counters["refused"] += 1
                return False
        element = _element(flow, mapped)
        if not (self._change((_NEW_ELEMENT, element)) or self._replace(element)):
            self._counters["refused"] += 1
            return False
        self._known.setdefault(flow.key, _Known(monotonic()))
        self._counters["handed_over"] += 1
        return True

    def take_back(self, flow: Flow, *, at_once: bool = True) -> None:
        self._counters["taken_back"] += 1
        self._end_one(flow)

    def next_deadline(self) -> float:
        at_once = self._astray or (self._interface is not None and self._interface.has_doubts)
        return 0.0 if at_once else self._due

    def tick(self, now: float) -> None:
        self._look_at_interface(now)
        if now >= self._due:
            self._due = now + max(INTERVAL, self._spent / _SHARE)
            if not self._dump.under_way or now - self._began > _GIVEN_UP:
                self._begin(now)

    def fileno(self) -> int:
        return self._news.fileno()

    def receive(self) -> list[Report]:
        began = monotonic()
        self._look_at_interface(began)
        reports: list[Report] = [*self._gone]
        self._gone.clear()
        if not self._dump.under_way:
            self._dump.receive()  # of one that was given up
            return reports
        reports += [self._carried(entry, self._began) for entry in self._ours(self._dump.receive())]
        if not self._dump.under_way:
            reports += self._end()
        self._spent += monotonic() - began
        return reports

    def look_at(self, flow: Flow) -> list[Report]:
        try:
            entry = self._conntrack.get(flow)
        except OSError:
            self._counters["failed"] += 1
            return []
        return [] if entry is None else [self._carried(entry, monotonic())]

    def look(self) -> list[Report]:
        reports: list[Report] = []
        if not self._dump.under_way:
            self._begin(monotonic())
        while self._dump.under_way:
            self._dump.wait()
            reports += self.receive()
        return reports

    def take_over(self) -> list[Report]:
        reports = self.look()
        if self._interface is not None:
            for key in self._interface:
                if key not in self._known:  # conntrack has forgotten it, so nobody would see its end
                    self._interface.drop(flow_of_key(key))
        return reports

    def forget(self) -> None:
        self._known.clear()
        self._astray.clear()
        for _ in range(_LISTINGS):
            for entry in self._ours(self._dump.listed()):
                self._conntrack.forget(flow_of_key(entry.key))
            if self._dump.whole:
                break
        if self._interface is not None:
            self._interface.remove()
        if not self._dump.whole:
            raise OSError(errno.EAGAIN, "conntrack could not be listed as a whole")

    def close(self) -> None:
        self._netlink.close()
        self._conntrack.close()
        self._news.close()
        self._dump.close()
        if self._interface is not None:
            self._interface.close()

    @property
    def counters(self) -> dict[str, int]:
        """`handed_over` (flows that were forgotten and came again included; of these `at_interface`), `refused`,
        `taken_back`, `gone` (the kernel had forgotten them, or they leave by another way now), `looks`, `failed`
        (changes and looks the kernel did not take). With `interface.`: see `InterfaceVat.counters`.
        """
        interface = {} if self._interface is None else self._interface.counters
        return self._counters | {f"interface.{name}": count for name, count in interface.items()}

    def _taken_at_interface(self, flow: Flow, mapped: Endpoint, leaves: str) -> bool:
        interface, known = self._interface, self._known.get(flow.key)
        if interface is None or leaves not in ("", interface.interface):
            return False
        try:
            if known is not None and known.at_interface != mapped:
                interface.drop(flow)
            if not interface.take(flow, mapped):
                return False
        except OSError:
            self._counters["failed"] += 1
            return False
        self._known.setdefault(flow.key, _Known(monotonic())).at_interface = mapped
        self._astray.pop(flow.key, None)
        self._counters["handed_over"] += 1
        self._counters["at_interface"] += 1
        return True

    def _look_at_interface(self, now: float) -> None:
        """What no longer leaves there begins again, by the NAT; not all at once."""
        interface = self._interface
        if interface is None:
            return
        try:
            self._astray |= {flow.key: flow for flow in (interface.tick(now) if now >= self._due else interface.heed())}
        except OSError:
            self._counters["failed"] += 1
        for flow in list(islice(self._astray.values(), _TOGETHER)):
            self._end_one(flow)
            self._gone.append(Gone(flow.key))
            self._counters["gone"] += 1

    def _end_one(self, flow: Flow) -> None:
        """In this order: what conntrack does not know is shown to the daemon, and leaves nowhere."""
        self._known.pop(flow.key, None)
        self._astray.pop(flow.key, None)
        self._try(self._conntrack.forget, flow)
        if self._interface is not None:
            self._try(self._interface.drop, flow)

    def _try(self, end: Callable[[Flow], None], flow: Flow) -> None:
        try:
            end(flow)
        except OSError:
            self._counters["failed"] += 1

    def _ours(self, entries: list[conntrack.Tracked]) -> list[conntrack.Tracked]:
        length, prefix = len(self._prefix), self._prefix
        return [entry for entry in entries if entry.key[4 : 4 + length] == prefix]

    def _begin(self, now: float) -> None:
        self._began = now
        self._spent = 0.0
        try:
            self._dump.begin()
        except OSError:
            self._counters["failed"] += 1

    def _carried(self, entry: conntrack.Tracked, now: float) -> Carried:
        known = self._known.get(entry.key)
        if known is None:
            known = self._known[entry.key] = _Known(now)
        # An idle flow may end early, by this much, but none that is used long before its time.
        since = max(known.at, now - INTERVAL)
        out, inward = entry.out - known.out, entry.inward - known.inward
        if out < 0 or inward < 0:  # forgotten and made again: the kernel counts from nought
            out, inward = entry.out, entry.inward
        known.at, known.out, known.inward = now, entry.out, entry.inward
        mapped = entry.mapped
        if self._interface is not None and mapped.address.startswith(self._prefix):  # no NAT has to do with it
            if known.at_interface is None:  # of an earlier run
                known.at_interface = self._interface.mapped(entry.key)
            mapped = known.at_interface or mapped
        return Carried(entry.key, mapped, since, out, inward, entry.fins, entry.reset, entry.unacknowledged)

    def _end(self) -> list[Report]:
        """What has not been seen, though it was there when the look began."""
        self._counters["looks"] += 1
        if not self._dump.whole:
            self._counters["failed"] += 1
            return []
        gone = [key for key, known in self._known.items() if known.at < self._began]
        for key in gone:
            if self._known.pop(key).at_interface is not None and self._interface is not None:
                self._interface.drop(flow_of_key(key))
        self._counters["gone"] += len(gone)
        return [Gone(key) for key in gone]

    def _replace(self, element: bytes) -> bool:
        """The flow was mapped to something else a moment ago."""
        return self._change((_DELETE_ELEMENT, element), (_NEW_ELEMENT, element))

    def _change(self, *changes: tuple[int, bytes]) -> bool:
        """One transaction of nf_tables; whether the kernel took it."""
        first = self._sequence + 1
        self._sequence = first + len(changes)
        batch = b"".join(
            (
                netlink.message(_BATCH_BEGIN, netlink.NLM_F_REQUEST, first - 1, _OF_BATCH),
                *(
                    netlink.message(kind, _CREATE, number, _IN_TABLE + netlink.attribute(_NESTED | 3, element))
                    for number, (kind, element) in enumerate(changes, first)
                ),
                netlink.message(_BATCH_END, netlink.NLM_F_REQUEST, first + len(changes), _OF_BATCH),
            )
        )
        connection = self._netlink.socket
        try:
            connection.send(batch)
            # Worked off and acknowledged within the call, each change by itself.
            answers: list[int | None] = []
            while len(answers) < len(changes):
                answer = connection.recv(_LARGEST_ERROR)
                if netlink.sequence_of(answer) >= first:  # else a second word about an earlier one
                    answers.append(netlink.error_of(answer))
        except OSError:
            return False
        return not any(answers)


class _Known:
    """What was last seen of a flow: when, and how many packets each way since the kernel has it; and where it goes if
    it is rewritten at the interface."""

    __slots__ = ("at", "at_interface", "inward", "out")

    def __init__(self, at: float) -> None:
        self.at = at
        self.out = self.inward = 0
        self.at_interface: Endpoint | None = None


def _element(flow: Flow, mapped: Endpoint) -> bytes:
    """nf_tables' list element: key and data of the map."""
    key = _KEY.pack(
        flow.source.address, flow.protocol, flow.source.port, flow.destination.address, flow.destination.port
    )
    data = _DATA.pack(mapped.address, mapped.port)
    attribute = netlink.attribute
    parts = attribute(_NESTED | 1, attribute(1, key)) + attribute(_NESTED | 2, attribute(1, data)) + _ENDS
    return attribute(_NESTED | 1, parts)
