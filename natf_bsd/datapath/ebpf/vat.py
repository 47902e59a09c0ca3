"""The flows that are rewritten at the outer interface, as the programs there know them.

Conntrack and the host's own rules see such a flow as the program does, G1:s <-> V1:d, and no NAT has to do with it.
That costs less per packet than netfilter's NAT does, which routes each one again (docs/kernel-path.md).

Whatever keeps a packet from the programs lets it leave as it is. So flows are here only while the programs are known
to be in force, and go to the NAT when that ends.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import struct
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final, TypeAlias

from natf_bsd.datapath.ebpf import kernel, programs
from natf_bsd.datapath.ebpf.changes import Changes, encrypts
from natf_bsd.datapath.ebpf.interface import INWARD, OUT, Filters
from natf_bsd.datapath.ebpf.place import Place
from natf_bsd.datapath.ebpf.routes import NextHop, Routes
from natf_bsd.ops.loop import monotonic
from natf_bsd.types import Address, Endpoint, Flow, format_address
from natf_bsd.wire.packet import flow_of_key

log = logging.getLogger(__name__)

_HEEDS_CHANGES: Final = 0.05  # s after which a change of routes is asked for again
_KEEPS_ROUTE: Final = 60.0  # s; names are mostly used again
_SLICE: Final = 0.005  # s in which ways are looked at again; packets wait meanwhile
_FRAGMENTS: Final = 1024  # datagrams of which some fragments are still to be sent; one is sent as a whole
_MOST_WAYS: Final = 4096
_IPSEC: Final = "this host encrypts what it sends to some addresses (IPsec)"
_INDEX: Final = struct.Struct("=I")
_COUNT: Final = struct.Struct("=Q")

_Way: TypeAlias = tuple[Address, Address]
"""Of some flows to a virtual address: the address it is mapped to, and their source."""


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
    """A virtual address: the keys of its flows here by their ways, whether it has a route of ours, and since when it
    has no flow."""

    flows: dict[_Way, set[bytes]] = field(default_factory=dict)
    ours: bool = False
    idle_since: float = 0.0


class InterfaceVat:
    """`prefix` is the first byte of virtual addresses; `mark` within `mask` is what translated packets carry inward,
    `flows` how many there may be.

    OSError, with a reason one can read, if this kernel or `interface` can have none; programs may be attached then.
    Flows of an earlier run are taken over. Open until `close`, which leaves all in force; `remove` takes it back.
    """

    def __init__(self, interface: str, *, prefix: int, mark: int, mask: int, flows: int) -> None:
        self.interface = interface
        self._prefix = prefix
        self._counters: Counter[str] = Counter()
        self._asked = -math.inf
        self._virtual: dict[Address, _Virtual] = {}
        # Kept until something changes: asking is in the way of a flow's first packet.
        self._ways: dict[tuple[Address, Address], NextHop | None] = {}
        self._unreachable: set[tuple[Address, Address]] = set()
        self._doubted: deque[tuple[Address, _Way]] = deque()
        self._refusal: str | None = None
        self._denied: tuple[IPv4Network, ...] = ()
        self._filters = Filters()
        self._routes = Routes()
        self._changes = Changes((self._filters.port, self._routes.port))
        self._maps: dict[str, kernel.Map] = {}
        try:
            kernel.lift_limit()
            shapes = _shapes(flows)
            self._maps = self._adopted(shapes) or _made(shapes)
            self._place = Place(self._filters, _descriptors(self._maps), prefix=prefix, mark=mark, mask=mask)
            self._obstacle = self._find_obstacle()
            if self._obstacle is not None:
                raise OSError(errno.ENOTSUP, self._obstacle)
            self._adopt_flows()
        except BaseException:
            self.close()
            raise

    def follow(self, interface: str) -> None:
        """Be at `interface`, and no longer at another one."""
        self.interface = interface
        self._look_again()

    def heed_rules(self, refusal: str | None, denied: Collection[IPv4Network]) -> None:
        """What the host's own rules say: why they allow of no flow here, if they don't, and to which addresses they
        deny packets. They see virtual ones here."""
        if (refusal, tuple(denied)) != (self._refusal, self._denied):
            self._refusal, self._denied = refusal, tuple(denied)
            self._look_again()

    def take(self, flow: Flow, mapped: Endpoint) -> bool:
        """Translate `flow` from its next packet on; false if it does not leave where we are, or there is no room."""
        self._note_changes(monotonic())
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
        self._note(key, flow, mapped)
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
        if virtual is None:
            return
        way = mapped.address, flow.source.address
        keys = virtual.flows.get(way, set())
        keys.discard(flow.key)
        if not keys:
            virtual.flows.pop(way, None)
            virtual.idle_since = monotonic()

    def tick(self, now: float) -> list[Flow]:
        """See to it that the programs are in force. Returns as `heed`."""
        for address in [a for a, v in self._virtual.items() if not v.flows and now - v.idle_since > _KEEPS_ROUTE]:
            self._forget_virtual(address)
        if self._changes.heard() or self._find_obstacle() != self._obstacle:
            self._look_again()
        return self._judge()

    def heed(self) -> list[Flow]:
        """Take note of what has changed, as soon as `fileno` is readable. Returns flows whose packets do not go where
        they should any more; they are here still."""
        if self._changes.heard():
            self._look_again()
        return self._judge()

    @property
    def has_doubts(self) -> bool:
        """Whether `heed` has more to look at."""
        return bool(self._doubted)

    def fileno(self) -> int:
        return self._changes.fileno()

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
        self._changes.close()

    @property
    def counters(self) -> dict[str, int]:
        """`refused`: the tables had no room; `attached_again`; and packets dropped at the interface: `drop.no_flow`,
        `drop.forged` (a virtual address as their source), `drop.failed` (the kernel could not change them)."""
        counters = self._maps["natf_counters"]

        def dropped(place: int) -> int:
            value = counters.get(_INDEX.pack(place))
            return 0 if value is None else int(_COUNT.unpack(value)[0])

        return {
            "refused": self._counters["refused"],
            "attached_again": self._place.attached_again,
            "drop.no_flow": dropped(programs.NO_FLOW),
            "drop.forged": dropped(programs.FORGED),
            "drop.failed": dropped(programs.FAILED),
        }

    def _note(self, key: bytes, flow: Flow, mapped: Endpoint) -> None:
        virtual = self._virtual.setdefault(flow.destination.address, _Virtual())
        virtual.flows.setdefault((mapped.address, flow.source.address), set()).add(key)

    def _leaves_here(self, flow: Flow, mapped: Endpoint) -> bool:
        """Whether what goes to V1 goes the way of G2, by our interface; sees to it where it can be had by a route."""
        virtual, source = flow.destination.address, flow.source.address
        wanted = self._wanted(mapped.address, source)
        if wanted is None:
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

    def _wanted(self, mapped: Address, source: Address) -> NextHop | None:
        """The way that a flow must take to be here; None: none does."""
        if self._obstacle is not None or self._is_denied(mapped):
            return None
        way = self._way(mapped, source)
        return way if way is not None and way.interface == self._place.index else None

    def _is_denied(self, mapped: Address) -> bool:
        return bool(self._denied) and any(IPv4Address(mapped) in network for network in self._denied)

    def _note_changes(self, now: float) -> None:
        """Not for every one of many flows that begin together."""
        if now < self._asked + _HEEDS_CHANGES:
            return
        self._asked = now
        if self._changes.heard():
            self._look_again()

    def _look_again(self) -> None:
        """Nothing is as sure as it was."""
        obstacle = self._find_obstacle()
        if obstacle is not None and self._obstacle is None:
            log.warning("flows are not translated at %s but by netfilter's NAT: %s", self.interface, obstacle)
        elif obstacle is None and self._obstacle is not None:
            log.info("flows are translated at %s again", self.interface)
        self._obstacle = obstacle
        self._ways.clear()
        self._unreachable.clear()
        self._doubted = deque((address, way) for address, virtual in self._virtual.items() for way in virtual.flows)

    def _find_obstacle(self) -> str | None:
        """Why no flow can be here now. What somebody took away is put back first."""
        found = self._place.settle(self.interface)
        return _IPSEC if encrypts() else found or self._refusal

    def _judge(self) -> list[Flow]:
        """The flows that are astray, of those it has the time for."""
        until = monotonic() + _SLICE
        astray: list[Flow] = []
        while self._doubted and monotonic() < until:
            address, way = self._doubted.popleft()
            virtual = self._virtual.get(address)
            flows = virtual.flows.get(way) if virtual else None
            if not flows:
                continue
            wanted = self._wanted(*way)
            if wanted is None or not _same(self._way(address, way[1]), wanted):
                astray += map(flow_of_key, flows)
        return astray

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
        """And routes."""
        now = monotonic()
        for address in self._routes.ours(self._prefix):
            self._virtual[address] = _Virtual(ours=True, idle_since=now)
        for key in self:
            if (mapped := self.mapped(key)) is not None:
                self._note(key, flow_of_key(key), mapped)


def obstacle(interface: str, *, prefix: int, mark: int, mask: int) -> str | None:
    """Why an `InterfaceVat` could not be had, None if it could. Changes nothing."""
    filters = Filters()
    maps: dict[str, kernel.Map] = {}
    try:
        kernel.lift_limit()
        maps = _made(_shapes(flows=1))
        place = Place(filters, _descriptors(maps), prefix=prefix, mark=mark, mask=mask)
        return _IPSEC if encrypts() else place.unfit(interface)
    except OSError as error:
        return error.strerror
    finally:
        filters.close()
        for table in maps.values():
            table.close()


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


def _made(shapes: Mapping[str, tuple[int, int, int, int]]) -> dict[str, kernel.Map]:
    return {name: kernel.Map.create(name, *shape) for name, shape in shapes.items()}


def _descriptors(maps: Mapping[str, kernel.Map]) -> programs.Descriptors:
    names = ("natf_out", "natf_in", "natf_fragments", "natf_counters")
    return programs.Descriptors(*(maps[name].descriptor for name in names))


def _same(one: NextHop | None, other: NextHop | None) -> bool:
    """Whether two ways are one, whatever source a program's packet would get."""
    return one is not None and other is not None and one[:2] == other[:2]
