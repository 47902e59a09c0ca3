"""NRT, the name relation table: V1 := (alice, home.example.net, G2) (paper 3.2; DESIGN.md section 4)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import Table
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Address, Name, format_address

MAXIMUM = 65536  # names; about 0.9 kB each (natf bench scale)
MINIMUM_TTL = 60.0  # s; providers of dynamic DNS go down to 0, while an application uses its answer for a while
MAXIMUM_TTL = 86400.0  # s; RFC 8767 section 4 and RFC 2308 section 5 suggest days; a router's address changes sooner
QUARANTINE = 3600.0  # s; applications keep an address longer than its TTL; nobody else gets it meanwhile
_SPARE = 64  # entries without meaning that are not worth a clean-up
MAXIMUM_ROUTERS = 16  # of one name, each in the firewall's table on FreeBSD; nobody waits for that many to be silent


@dataclass(slots=True, eq=False)
class NameRelation:
    """One private host as this external node knows it. `routers` are the G2s its domain has; the first one is used.

    `expires` is the end of the DNS TTL, or of the last flow if that was later; `quarantine` seconds follow in which the
    relation is still good for those who kept the address. `flows` counts the VAT entries that refer to it. `unused`: no
    packet has made use of it; past its TTL it may give way to another name.
    """

    name: Name
    virtual: Address
    routers: tuple[Address, ...]
    expires: float
    flows: int = 0
    quarantine: float = QUARANTINE
    unused: bool = False

    @property
    def deadline(self) -> float:
        return math.inf if self.flows else self.expires + self.quarantine


class NameTable:
    """Names and their virtual addresses, each found by the other. Times in seconds.

    When there is no room for a name, one that is past its TTL and that nobody ever sent a packet to gives way, the
    first to expire first, and `on_give_way` is told: else whoever can make this host look names up could fill the table
    for the whole quarantine. DESIGN.md section 4 forbids it while an application may still have the address; one that
    obeys the DNS has not, one that used the address is no candidate, nor is a name from before a restart.
    """

    def __init__(
        self,
        virtual: VirtualAddresses,
        *,
        maximum: int = MAXIMUM,
        minimum_ttl: float = MINIMUM_TTL,
        maximum_ttl: float = MAXIMUM_TTL,
        quarantine: float = QUARANTINE,
        on_give_way: Callable[[NameRelation], None] | None = None,
    ) -> None:
        self.virtual = virtual
        self.minimum_ttl = minimum_ttl
        self.maximum_ttl = maximum_ttl
        self.quarantine = quarantine
        self._collided = 0
        self._on_give_way = on_give_way
        self._table: Table[NameRelation] = Table(
            maximum,
            {"name": lambda relation: relation.name, "virtual": lambda relation: relation.virtual},
            self.note_use,
        )
        # Heap of unused relations by the time at which they expired when they were put there. That of any other is
        # passed over when its turn comes.
        self._unused: list[tuple[float, int, NameRelation]] = []
        self._number = count()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[NameRelation]:
        return iter(self._table)

    @property
    def refused(self) -> int:
        """Names that got no address, because the table was full or all addresses of their hash were taken."""
        return self._table.refused + self._collided

    @property
    def maximum(self) -> int:
        return self._table.maximum

    def by_name(self, name: Name) -> NameRelation | None:
        return self._table.get("name", name)

    def by_virtual(self, address: Address) -> NameRelation | None:
        return self._table.get("virtual", address)

    def learn(self, name: Name, routers: Sequence[Address], ttl: float, now: float) -> NameRelation:
        """Take or make the relation of `name`, as a DNS answer with `routers` and `ttl` (s) says.

        The router in use stays first while the answer has it: round-robin DNS must not make running flows change their
        router. TableFull when the table, or every address `name` may have, is taken; ValueError without a router.
        """
        if not routers:
            raise ValueError(f"{name}: an answer without an address")
        expires = now + min(max(ttl, self.minimum_ttl), self.maximum_ttl)
        relation = self.by_name(name)
        if relation is not None:
            _refresh(relation, routers, expires)
            return relation
        if len(self) >= self.maximum:
            self._make_room(now)
        relation = self._insert(name, self._free_address(name, now), tuple(routers[:MAXIMUM_ROUTERS]), expires)
        relation.unused = True
        self._offer(relation)
        return relation

    def note_use(self, relation: NameRelation) -> None:
        """Somebody sends packets to its address, or it has left the table: no candidate to give way any more."""
        relation.unused = False

    def restore(self, name: Name, virtual: Address, routers: Sequence[Address], expires: float) -> NameRelation:
        """Put back a relation from before a restart, with the address applications still hold.

        A later record of the same name and address replaces the earlier one. ValueError when the address is not one
        `name` can have, or the name or the address is in use otherwise; TableFull as in `learn`.
        """
        if not routers or virtual not in self.virtual.candidates(name):
            raise ValueError(f"{name} can't have the virtual address {virtual.hex('.')} and {len(routers)} routers")
        relation = self.by_name(name)
        if relation is not self.by_virtual(virtual):
            raise ValueError(f"{name} or its virtual address {format_address(virtual)} is in use already")
        if relation is None:
            return self._insert(name, virtual, tuple(routers), expires)
        relation.routers = tuple(routers)
        relation.expires = expires
        self._table.reschedule(relation)
        return relation

    def acquire(self, relation: NameRelation) -> None:
        """A flow refers to `relation` from now on; it can't expire meanwhile."""
        self.note_use(relation)
        relation.flows += 1

    def release(self, relation: NameRelation, now: float) -> None:
        """A flow has ended. The quarantine begins now at the earliest: the flow's application knows the address."""
        if relation.flows <= 0:
            raise ValueError(f"{relation.name}: more flows released than acquired")
        relation.flows -= 1
        if not relation.flows:
            relation.expires = max(relation.expires, now)
            self._table.reschedule(relation)

    def expire(self, now: float, limit: int = 256) -> list[NameRelation]:
        return self._table.expire(now, limit)

    def next_deadline(self) -> float | None:
        return self._table.next_deadline()

    def _insert(self, name: Name, virtual: Address, routers: tuple[Address, ...], expires: float) -> NameRelation:
        relation = NameRelation(name, virtual, routers, expires, quarantine=self.quarantine)
        self._table.insert(relation)
        return relation

    def _free_address(self, name: Name, now: float) -> Address:
        taken: list[NameRelation] = []
        for address in self.virtual.candidates(name):
            relation = self.by_virtual(address)
            if relation is None:
                return address
            taken.append(relation)
        spare = [relation for relation in taken if relation.expires <= now and relation.unused]
        if not spare:
            self._collided += 1
            raise TableFull(f"all virtual addresses {name} can have are in use")
        relation = min(spare, key=lambda relation: relation.expires)
        self._give_way(relation)
        return relation.virtual

    def _make_room(self, now: float) -> None:
        """Of the whole table; for nothing when no relation may give way."""
        while self._unused and self._unused[0][0] <= now:
            _, _, relation = heapq.heappop(self._unused)
            if relation.unused and relation.expires > now:
                self._offer(relation)
            elif relation.unused:
                self._give_way(relation)
                return

    def _offer(self, relation: NameRelation) -> None:
        if len(self._unused) > 2 * len(self) + _SPARE:
            self._unused = [entry for entry in self._unused if entry[2].unused]
            heapq.heapify(self._unused)
        heapq.heappush(self._unused, (relation.expires, next(self._number), relation))

    def _give_way(self, relation: NameRelation) -> None:
        self._table.remove(relation)
        if self._on_give_way is not None:
            self._on_give_way(relation)


def _refresh(relation: NameRelation, routers: Sequence[Address], expires: float) -> None:
    """Only ever later: an application may still hold the earlier answer with its longer TTL."""
    current = relation.routers[0]
    if current in routers:
        routers = [current, *(router for router in routers if router != current)]
    relation.routers = tuple(routers[:MAXIMUM_ROUTERS])
    relation.expires = max(relation.expires, expires)
