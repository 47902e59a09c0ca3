"""A table against a model that is a list: indexes, expiry, `on_remove` and `next_deadline` always agree with it."""

import math
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import DuplicateKey, Table

MAXIMUM = 6
KEYS = st.integers(0, 7)
DELAYS = st.one_of(st.integers(0, 20).map(float), st.just(math.inf))


@dataclass(eq=False)
class Item:
    left: int
    right: int
    deadline: float


class TableMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.removed: list[Item] = []
        self.expected_removed: list[Item] = []
        self.refused = 0
        self.model: list[Item] = []
        self.table: Table[Item] = Table(
            MAXIMUM, {"left": lambda item: item.left, "right": lambda item: item.right}, self.removed.append
        )

    @rule(left=KEYS, right=KEYS, delay=DELAYS)
    def insert(self, left, right, delay):
        item = Item(left, right, self.now + delay)
        taken = any(other.left == left or other.right == right for other in self.model)
        try:
            self.table.insert(item)
        except TableFull:
            assert len(self.model) == MAXIMUM
            self.refused += 1
        except DuplicateKey:
            assert taken
        else:
            assert not taken
            self.model.append(item)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        item = data.draw(st.sampled_from(self.model))
        self.table.remove(item)
        self.model.remove(item)
        self.expected_removed.append(item)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), delay=DELAYS)
    def later(self, data, delay):
        item = data.draw(st.sampled_from(self.model))
        item.deadline = max(item.deadline, self.now + delay)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), delay=DELAYS)
    def earlier(self, data, delay):
        item = data.draw(st.sampled_from(self.model))
        item.deadline = min(item.deadline, self.now + delay)
        self.table.reschedule(item)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), key=KEYS)
    def rekey(self, data, key):
        item = data.draw(st.sampled_from(self.model))
        taken = any(other.right == key for other in self.model if other is not item)
        try:
            self.table.rekey(item, "right", key)
        except DuplicateKey:
            assert taken
        else:
            assert not taken
            item.right = key

    @rule(seconds=st.integers(0, 10), limit=st.integers(1, 4))
    def expire(self, seconds, limit):
        self.now += seconds
        due = [item for item in self.model if item.deadline <= self.now]
        gone: list[Item] = []
        while (deadline := self.table.next_deadline()) is not None and deadline <= self.now:
            gone += self.table.expire(self.now, limit)
        assert sorted(map(id, gone)) == sorted(map(id, due))
        self.model = [item for item in self.model if item not in due]
        self.expected_removed += gone

    @invariant()
    def indexes_agree_with_the_model(self):
        assert list(self.table.index("left").items()) == [(item.left, item) for item in self.table]
        assert dict(self.table.index("right")) == {item.right: item for item in self.model}
        assert set(self.table) == set(self.model)
        assert len(self.table) == len(self.model)
        assert self.table.refused == self.refused

    @invariant()
    def every_removal_was_told_once(self):
        assert self.removed == self.expected_removed

    @invariant()
    def next_deadline_is_never_late(self):
        promised = self.table.next_deadline()
        true = min((item.deadline for item in self.model), default=math.inf)
        assert (math.inf if promised is None else promised) <= true


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
