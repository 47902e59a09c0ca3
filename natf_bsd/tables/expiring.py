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
    """What a table can hold, told from others by identity. Its keys must not change while it is in a table, but right
    after `Table.rekey`.
    """

    @property
    def deadline(self) -> float:
        """Monotonic seconds; infinite while nothing may end the record."""


R = TypeVar("R", bound=Record)


class DuplicateKey(KeyError):
    """A key of the record is taken by another one; `index` names where."""

    def __init__(self, index: str, key: Hashable) -> None:
        super().__init__(f"index {index}: {key!r} is taken")
        self.index = index


class Table(Generic[R]):
    """Records under several unique indexes, each name of `indexes` with the function that gives a record's key.

    `on_remove` is called exactly once for each record that leaves, whoever removes it, after it has left.
    `refused` counts the records a full table did not take. A record costs about 250 bytes here beside its own size.
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
        self._serials: dict[R, int] = {}
        """Of each record the serial number of its one valid heap entry, in order of insertion."""
        self._heap: list[tuple[float, int, R]] = []
        self._stale = 0
        self._serial = 0

    def __len__(self) -> int:
        return len(self._serials)

    def __iter__(self) -> Iterator[R]:
        """Records in order of insertion, as they were when the iteration began."""
        return iter(list(self._serials))

    def insert(self, record: R) -> None:
        """Take `record` in. TableFull or DuplicateKey leave the table as it was."""
        if len(self._serials) >= self.maximum:
            self.refused += 1
            raise TableFull(f"all {self.maximum} entries are in use")
        if record in self._serials:
            raise DuplicateKey("identity", id(record))
        keys = [key_of(record) for key_of in self._key_of.values()]
        for (name, index), key in zip(self._indexes.items(), keys, strict=True):
            if key in index:
                raise DuplicateKey(name, key)
        for index, key in zip(self._indexes.values(), keys, strict=True):
            index[key] = record
        self._push(record, record.deadline)

    def get(self, index: str, key: Hashable) -> R | None:
        return self._indexes[index].get(key)

    def index(self, name: str) -> Mapping[Hashable, R]:
        """The live index itself, for look-ups at every packet. Read it only."""
        return self._indexes[name]

    def remove(self, record: R) -> None:
        """Take `record` out; KeyError when it is not in the table."""
        self._check(record)
        self._stale += 1
        self._forget(record)
        self._compact()

    def rekey(self, record: R, index: str, key: Hashable) -> None:
        """File `record` under `key` in `index` from now on; the caller changes the record accordingly. DuplicateKey
        leaves the table as it was.
        """
        self._check(record)
        records = self._indexes[index]
        if records.get(key, record) is not record:
            raise DuplicateKey(index, key)
        del records[self._key_of[index](record)]
        records[key] = record

    def reschedule(self, record: R) -> None:
        """To be called when the deadline of `record` became *earlier*; a later one needs none. KeyError if absent."""
        self._check(record)
        self._stale += 1
        self._push(record, record.deadline)
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
            _, serial, record = heapq.heappop(self._heap)
            if self._serials.get(record) != serial:
                self._stale -= 1
            elif (deadline := record.deadline) > now:
                self._push(record, deadline)
            else:
                self._forget(record)
                removed.append(record)
        return removed

    def next_deadline(self) -> float | None:
        """When `expire` is next worth calling: perhaps early, never late. None when nothing can expire as it is."""
        while self._heap and self._serials.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
            self._stale -= 1
        if not self._heap or self._heap[0][0] == math.inf:
            return None
        return self._heap[0][0]

    def _check(self, record: R) -> None:
        if record not in self._serials:
            raise KeyError(f"not in the table: {record!r}")

    def _push(self, record: R, deadline: float) -> None:
        self._serial += 1
        self._serials[record] = self._serial
        heapq.heappush(self._heap, (deadline, self._serial, record))

    def _forget(self, record: R) -> None:
        del self._serials[record]
        for name, key_of in self._key_of.items():
            del self._indexes[name][key_of(record)]
        if self._on_remove is not None:
            self._on_remove(record)

    def _compact(self) -> None:
        """Rebuild the heap once most of it is entries without meaning: O(1) amortised over the calls that made them."""
        if self._stale * 2 > len(self._heap) > COMPACTION_MINIMUM:
            self._heap = [entry for entry in self._heap if self._serials.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
            self._stale = 0
