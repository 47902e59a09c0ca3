"""The table the others are made of: one record, several indexes, a maximum, one way in and one way out.

A record says itself when it is over (`deadline`). Its use may move that on at every packet, so the heap of deadlines
holds only a lower bound: a record popped before its time is pushed back with the deadline it has by then.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from natf_bsd.errors import TableFull

COMPACTION_MINIMUM = 64  # below this many heap entries, rebuilding the heap saves nothing worth having


class Record(Protocol):
    """What a table can hold. A record's keys must not change while it is in a table, except through `Table.rekey`."""

    @property
    def deadline(self) -> float:
        """Monotonic seconds; infinite while nothing may end the record."""


R = TypeVar("R", bound=Record)


class DuplicateKey(KeyError):
    """A key of the record is taken by another one; `index` names where."""

    def __init__(self, index: str, key: Hashable) -> None:
        super().__init__(f"index {index}: {key!r} is taken")
        self.index = index


class _Slot(Generic[R]):
    """A record's place in the table: the keys it was filed under, and the serial number of its one valid heap entry."""

    __slots__ = ("keys", "record", "serial")

    def __init__(self, record: R, keys: dict[str, Hashable]) -> None:
        self.record = record
        self.keys = keys
        self.serial = 0


class Table(Generic[R]):
    """Records under several unique indexes, each name of `indexes` with the function that gives a record's key.

    `on_remove` is called exactly once for each record that leaves, whoever removes it, after it has left.
    `refused` counts the records a full table did not take. A record costs about 500 bytes here beside its own size.
    """

    def __init__(
        self,
        maximum: int,
        indexes: Mapping[str, Callable[[R], Hashable]],
        on_remove: Callable[[R], None] | None = None,
    ) -> None:
        self.maximum = maximum
        self.refused = 0
        self._key_of = dict(indexes)
        self._indexes: dict[str, dict[Hashable, R]] = {name: {} for name in indexes}
        self._on_remove = on_remove
        self._slots: dict[int, _Slot[R]] = {}
        self._heap: list[tuple[float, int, _Slot[R]]] = []
        self._stale = 0
        self._serial = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[R]:
        """Records in order of insertion, as they were when the iteration began."""
        return iter([slot.record for slot in self._slots.values()])

    def insert(self, record: R) -> None:
        """Take `record` in. TableFull or DuplicateKey leave the table as it was."""
        if len(self._slots) >= self.maximum:
            self.refused += 1
            raise TableFull(f"all {self.maximum} entries are in use")
        if id(record) in self._slots:
            raise DuplicateKey("identity", id(record))
        keys = {name: key_of(record) for name, key_of in self._key_of.items()}
        for name, key in keys.items():
            if key in self._indexes[name]:
                raise DuplicateKey(name, key)
        for name, key in keys.items():
            self._indexes[name][key] = record
        slot = self._slots[id(record)] = _Slot(record, keys)
        self._push(slot, record.deadline)

    def get(self, index: str, key: Hashable) -> R | None:
        return self._indexes[index].get(key)

    def index(self, name: str) -> Mapping[Hashable, R]:
        """The live index itself, for look-ups at every packet. Read it only."""
        return self._indexes[name]

    def remove(self, record: R) -> None:
        """Take `record` out; KeyError when it is not in the table."""
        slot = self._slot(record)
        self._stale += 1
        self._forget(slot)
        self._compact()

    def rekey(self, record: R, index: str, key: Hashable) -> None:
        """File `record` under `key` in `index` from now on. DuplicateKey leaves the table as it was."""
        slot = self._slot(record)
        records = self._indexes[index]
        if records.get(key, record) is not record:
            raise DuplicateKey(index, key)
        del records[slot.keys[index]]
        records[key] = record
        slot.keys[index] = key

    def reschedule(self, record: R) -> None:
        """To be called when the deadline of `record` became *earlier*; a later one needs none. KeyError if absent."""
        slot = self._slot(record)
        self._stale += 1
        self._push(slot, record.deadline)
        self._compact()

    def expire(self, now: float, limit: int = 256) -> list[R]:
        """Remove and return the records whose deadline is `now` or earlier.

        At most `limit` heap entries are looked at, so that a sweep stays short. While `next_deadline()` is not after
        `now` there may be more, even when the list returned is empty.
        """
        removed = []
        for _ in range(limit):
            if not self._heap or self._heap[0][0] > now:
                break
            _, serial, slot = heapq.heappop(self._heap)
            if slot.serial != serial:
                self._stale -= 1
            elif (deadline := slot.record.deadline) > now:
                self._push(slot, deadline)
            else:
                self._forget(slot)
                removed.append(slot.record)
        return removed

    def next_deadline(self) -> float | None:
        """When `expire` is next worth calling: perhaps early, never late. None when nothing can expire as it is."""
        while self._heap and self._heap[0][2].serial != self._heap[0][1]:
            heapq.heappop(self._heap)
            self._stale -= 1
        if not self._heap or self._heap[0][0] == math.inf:
            return None
        return self._heap[0][0]

    def _slot(self, record: R) -> _Slot[R]:
        slot = self._slots.get(id(record))
        if slot is None:
            raise KeyError(f"not in the table: {record!r}")
        return slot

    def _push(self, slot: _Slot[R], deadline: float) -> None:
        self._serial += 1
        slot.serial = self._serial
        heapq.heappush(self._heap, (deadline, self._serial, slot))

    def _forget(self, slot: _Slot[R]) -> None:
        slot.serial = 0
        del self._slots[id(slot.record)]
        for name, key in slot.keys.items():
            del self._indexes[name][key]
        if self._on_remove is not None:
            self._on_remove(slot.record)

    def _compact(self) -> None:
        """Rebuild the heap once most of it is entries without meaning: O(1) amortised over the calls that made them."""
        if self._stale * 2 > len(self._heap) > COMPACTION_MINIMUM:
            self._heap = [entry for entry in self._heap if entry[2].serial == entry[1]]
            heapq.heapify(self._heap)
            self._stale = 0
