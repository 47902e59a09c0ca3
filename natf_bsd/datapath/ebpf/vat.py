"""The flows that are rewritten at the outer interface, as the programs there know them.

Conntrack and the host's own rules see such a flow as the program does, G1:s <-> V1:d, and no NAT has to do with it.
That costs less per packet than netfilter's NAT does, which routes each one again (docs/kernel-path.md).
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from natf_bsd.datapath.ebpf import kernel, programs
from natf_bsd.datapath.ebpf.interface import INWARD, NAMES, OUT, Filters, link_header
from natf_bsd.datapath.ebpf.routes import NextHop, Routes, encrypts
from natf_bsd.ops.loop import monotonic
from natf_bsd.types import Address, Endpoint, Flow, format_address
from natf_bsd.wire.packet import flow_of_key

log = logging.getLogger(__name__)

_HEEDS_CHANGES: Final = 0.05  # s after which a change of routes is asked for again
_KEEPS_ROUTE: Final = 60.0  # s; names are mostly used again
_FRAGMENTS: Final = 1024  # datagrams of which some fragments are still to be sent; one is sent as a whole
_MOST_WAYS: Final = 4096
_INDEX: Final = struct.Struct("=I")
_COUNT: Final = struct.Struct("=Q")


def _shapes(flows: int) -> dict[str, tuple[int, int, int, int]]:
    """Of the maps: kind, sizes of key and value, entries. A version or a configuration with others makes its own, and
    the flows begin again."""
    return {
        "natf_out": (kernel.HASH, programs.KEY_SIZE, programs.VALUE_SIZE, flows),
        "natf_in": (kernel.HASH, programs.KEY_SIZE, programs.VALUE_SIZE, flows),
        "natf_fragments": (kernel.LRU_HASH, programs.FRAGMENT_KEY_SIZE, programs.VALUE_SIZE, _FRAGMENTS),
        "natf_counters": (kernel.ARRAY, _INDEX.size, _COUNT.size, programs.COUNTERS),
    }


@dataclass(slots=True)
class _Virtual:
    """A virtual address: the keys of its flows here, whether it has a route of ours, and since when it has no flow."""

    flows: set[bytes] = field(default_factory=set)
    ours: bool = False
    idle_since: float = 0.0


class InterfaceVat:
    """`prefix` is the first byte of virtual addresses; `mark` within `mask` is what translated packets carry inward,
    `flows` how many there may be.

    OSError, with a reason one can read, if this kernel or `interface` can have none. Flows of an earlier run are taken
    over. Open until `close`, which leaves all in force; `remove` takes it back.
    """

    def __init__(self, interface: str, *, prefix: int, mark: int, mask: int, flows: int) -> None:
        self.interface = interface
        self._prefix, self._mark, self._mask = prefix, mark, mask
        self._index = 0
        self._attached: dict[str, int] = {}
        self._counters: Counter[str] = Counter()
        self._failing = self._changed = False
        self._asked = -math.inf
        self._virtual: dict[Address, _Virtual] = {}
        # Kept until something changes: asking is in the way of a flow's first packet.
        self._ways: dict[tuple[Address, Address], NextHop | None] = {}
        self._unreachable: set[tuple[Address, Address]] = set()
        self._filters = Filters()
        self._routes = Routes()
        self._maps: dict[str, kernel.Map] = {}
        try:
            kernel.lift_limit()
            shapes = _shapes(flows)
            self._maps = self._adopted(shapes) or {name: kernel.Map.create(name, *shapes[name]) for name in shapes}
            self.follow(interface)
            self._adopt_flows()
        except BaseException:
            self.close()
            raise

    def follow(self, interface: str) -> None:
        """Be at `interface`, and no longer at another one. OSError as for the class."""
        try:
            index = socket.if_nametoindex(interface)
        except OSError:
            raise OSError(errno.ENODEV, f"there is no interface {interface}") from None
        header = link_header(interface)
        if encrypts():
            raise OSError(errno.ENOTSUP, "this host encrypts what it sends to some addresses (IPsec)")
        maps = programs.Descriptors(
            *(self._maps[name].descriptor for name in ("natf_out", "natf_in", "natf_fragments", "natf_counters"))
        )
        code = {
            INWARD: programs.vat_in(maps, prefix=self._prefix, link_header=header, mark=self._mark, mask=self._mask),
            OUT: programs.vat_out(maps, prefix=self._prefix, link_header=header),
        }
        for place, instructions in code.items():
            program = kernel.load(NAMES[place], instructions)
            try:
                self._filters.attach(index, place, program)
            finally:
                os.close(program)
            attached = self._filters.program(index, place)
            if attached is None:
                raise OSError(errno.EIO, f"a filter that was set on {interface} is not there")
            self._attached[place] = attached
        self.interface, self._index = interface, index
        self._leave_others()

    def take(self, flow: Flow, mapped: Endpoint) -> bool:
        """Translate `flow` from its next packet on; false if it does not leave where we are, or there is no room."""
        if not self._leaves_here(flow, mapped):
            return False
        answers, key = programs.key_of_answers(flow, mapped), flow.key
        try:
            # Inward first: an answer may come before this returns.
            self._maps["natf_in"].set(answers, programs.value_of(flow.destination, mapped.address))
            self._maps["natf_out"].set(programs.key_of(key), programs.value_of(mapped, flow.destination.address))
        except OSError:
            self._counters["refused"] += 1
            self._maps["natf_in"].delete(answers)
            return False
        self._virtual.setdefault(flow.destination.address, _Virtual()).flows.add(key)
        return True

    def mapped(self, flow_key: bytes) -> Endpoint | None:
        """Where the flow with this `Flow.key` goes; None if it is not here."""
        value = self._maps["natf_out"].get(programs.key_of(flow_key))
        return None if value is None else programs.endpoint_of(value)

    def drop(self, flow: Flow) -> None:
        """Translate `flow` no longer, if it is here."""
        mapped = self.mapped(flow.key)
        if mapped is None:
            return
        self._maps["natf_out"].delete(programs.key_of(flow.key))
        self._maps["natf_in"].delete(programs.key_of_answers(flow, mapped))
        virtual = self._virtual.get(flow.destination.address)
        if virtual is not None:
            virtual.flows.discard(flow.key)
            virtual.idle_since = monotonic()

    def tick(self, now: float) -> list[Flow]:
        """See to it that the programs are in force. Returns the flows whose packets do not go where they should any
        more, because routes have changed; they are here still."""
        self._stay_attached()
        for address in [a for a, v in self._virtual.items() if not v.flows and now - v.idle_since > _KEEPS_ROUTE]:
            self._forget_virtual(address)
        self._asked = -math.inf
        self._note_changes(now)
        if not self._changed:
            return []
        self._changed = False
        known = [flow_of_key(key) for virtual in self._virtual.values() for key in virtual.flows]
        encrypting = encrypts()
        return [flow for flow in known if encrypting or not self._still_leaves_here(flow)]

    def __iter__(self) -> Iterator[bytes]:
        """`Flow.key` of all flows that are here."""
        for key in list(self._maps["natf_out"].keys()):
            yield programs.flow_key_of(key)

    def remove(self) -> None:
        """All of it, of earlier runs too."""
        for address in list(self._virtual):
            self._forget_virtual(address)
        detach_everywhere(self._filters)

    def close(self) -> None:
        for table in self._maps.values():
            table.close()
        self._filters.close()
        self._routes.close()

    @property
    def counters(self) -> dict[str, int]:
        """`refused`: the tables had no room; `attached_again`; and packets dropped at the interface: `drop.no_flow`,
        `drop.forged` (a virtual address as their source)."""
        counters = self._maps["natf_counters"]

        def dropped(place: int) -> int:
            value = counters.get(_INDEX.pack(place))
            return 0 if value is None else int(_COUNT.unpack(value)[0])

        return {
            "refused": self._counters["refused"],
            "attached_again": self._counters["attached_again"],
            "drop.no_flow": dropped(programs.NO_FLOW),
            "drop.forged": dropped(programs.FORGED),
        }

    def _leaves_here(self, flow: Flow, mapped: Endpoint) -> bool:
        """Whether what goes to V1 goes the way of G2, by our interface; sees to it where it can be had by a route."""
        self._note_changes(monotonic())
        virtual, source = flow.destination.address, flow.source.address
        wanted = self._way(mapped.address, source)
        if wanted is None or wanted.interface != self._index:
            return False
        if _same(self._way(virtual, source), wanted):
            return True
        if (virtual, source) in self._unreachable:
            return False
        known = self._virtual.setdefault(virtual, _Virtual(idle_since=monotonic()))
        if known.ours and known.flows:  # to another router of this name, which is reached by another way
            return False
        try:
            self._routes.remove(virtual)
            self._routes.add(virtual, wanted)
            known.ours = True
        except OSError as error:
            log.debug("no route of our own to %s: %s", format_address(virtual), error.strerror)
        self._ways.pop((virtual, source), None)
        if _same(self._way(virtual, source), wanted):
            return True
        self._unreachable.add((virtual, source))
        return False

    def _still_leaves_here(self, flow: Flow) -> bool:
        mapped, source = self.mapped(flow.key), flow.source.address
        if mapped is None:
            return False
        wanted = self._way(mapped.address, source)
        there = self._way(flow.destination.address, source)
        return wanted is not None and wanted.interface == self._index and _same(there, wanted)

    def _note_changes(self, now: float) -> None:
        """Not for every one of many flows that begin together."""
        if now < self._asked + _HEEDS_CHANGES:
            return
        self._asked = now
        if self._routes.changed():
            self._changed = True
            self._ways.clear()
            self._unreachable.clear()

    def _way(self, destination: Address, source: Address) -> NextHop | None:
        key = destination, source
        if key not in self._ways:
            if len(self._ways) >= _MOST_WAYS:
                self._ways.clear()
            self._ways[key] = self._routes.way(destination, source)
        return self._ways[key]

    def _forget_virtual(self, address: Address) -> None:
        if self._virtual.pop(address).ours:
            try:
                self._routes.remove(address)
            except OSError as error:
                log.warning("the route to %s stays: %s", format_address(address), error.strerror)

    def _adopted(self, shapes: Mapping[str, tuple[int, int, int, int]]) -> dict[str, kernel.Map] | None:
        """The maps of an earlier run's programs, wherever they are, if they are as ours would be."""
        for index, _ in socket.if_nameindex():
            attached = [self._filters.program(index, place) for place in (OUT, INWARD)]
            found = kernel.maps_of([program for program in attached if program is not None])
            wanted = {name: found.pop(name) for name in shapes if name in found and found[name].is_like(*shapes[name])}
            whole = len(wanted) == len(shapes)
            for table in [*found.values(), *(() if whole else wanted.values())]:
                table.close()
            if whole:
                return wanted
        return None

    def _adopt_flows(self) -> None:
        """An earlier run's routes are as good as ours."""
        for key in self:
            flow = flow_of_key(key)
            self._virtual.setdefault(flow.destination.address, _Virtual(ours=True)).flows.add(key)

    def _stay_attached(self) -> None:
        """Somebody may have cleared the interface, or it was away."""
        try:
            index = socket.if_nametoindex(self.interface)
            if index == self._index and all(
                self._filters.program(index, place) == program for place, program in self._attached.items()
            ):
                return
            self.follow(self.interface)
            self._counters["attached_again"] += 1
        except OSError as error:
            if not self._failing:
                log.warning("flows of virtual addresses stop at %s: %s", self.interface, error)
            self._failing = True
        else:
            self._failing = False

    def _leave_others(self) -> None:
        for index, _ in socket.if_nameindex():
            if index != self._index:
                self._filters.detach(index)


def remove() -> None:
    """What a daemon that was killed has left at interfaces. OSError if some may be left."""
    filters = Filters()
    try:
        detach_everywhere(filters)
    finally:
        filters.close()


def detach_everywhere(filters: Filters) -> None:
    for index, _ in socket.if_nameindex():
        filters.detach(index)


def _same(one: NextHop | None, other: NextHop | None) -> bool:
    """Whether two ways are one, whatever source a program's packet would get."""
    return one is not None and other is not None and one[:2] == other[:2]
