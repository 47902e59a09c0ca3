import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from natf_bsd.errors import TableFull
from natf_bsd.tables.nrt import MAXIMUM_TTL, MINIMUM_TTL, QUARANTINE, NameTable
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Name, parse_address

ALICE = Name("alice", "home.example.net")
BOB = Name("bob", "home.example.net")
G2 = parse_address("203.0.113.1")
G3 = parse_address("203.0.113.2")
G4 = parse_address("203.0.113.3")


def names(**options) -> NameTable:
    return NameTable(VirtualAddresses(), **options)


class OneAddress(VirtualAddresses):
    """Every name has the same only candidate."""

    def candidates(self, name):
        return iter([bytes([240, 0, 0, 1])])


class Colliding(VirtualAddresses):
    """Every name has the same hash."""

    def candidates(self, name):
        return (bytes([240, b, 1, 1]) for b in range(256))


def test_a_learned_name_is_found_both_ways():
    table = names()
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    assert table.by_name(ALICE) is relation
    assert table.by_virtual(relation.virtual) is relation
    assert relation.virtual == next(VirtualAddresses().candidates(ALICE))
    assert relation.routers == (G2,)
    assert list(table) == [relation]
    assert len(table) == 1


def test_the_same_name_keeps_its_address():
    table = names()
    first = table.learn(ALICE, [G2], 300, now=0.0)
    assert table.learn(ALICE, [G3], 300, now=10.0) is first
    assert first.routers == (G3,)
    assert first.expires == 310.0


@pytest.mark.parametrize(("ttl", "used"), [(0, MINIMUM_TTL), (300, 300.0), (1e9, MAXIMUM_TTL)])
def test_the_ttl_is_clamped(ttl, used):
    assert names().learn(ALICE, [G2], ttl, now=5.0).expires == 5.0 + used


def test_a_shorter_ttl_does_not_take_back_a_longer_one():
    table = names()
    relation = table.learn(ALICE, [G2], 3000, now=0.0)
    table.learn(ALICE, [G2], 60, now=1.0)
    assert relation.expires == 3000.0


def test_the_router_in_use_stays_first_while_dns_has_it():
    table = names()
    relation = table.learn(ALICE, [G2, G3], 300, now=0.0)
    table.learn(ALICE, [G3, G2, G4], 300, now=1.0)
    assert relation.routers == (G2, G3, G4)
    table.learn(ALICE, [G4, G3], 300, now=2.0)
    assert relation.routers == (G4, G3)


def test_an_answer_without_router_is_refused():
    with pytest.raises(ValueError, match="without an address"):
        names().learn(ALICE, [], 300, now=0.0)


def test_colliding_names_get_different_addresses_until_none_is_left():
    table = NameTable(Colliding())
    virtuals = {table.learn(Name(f"h{n}", "example.net"), [G2], 300, now=0.0).virtual for n in range(256)}
    assert virtuals == {bytes([240, b, 1, 1]) for b in range(256)}
    with pytest.raises(TableFull, match="one-more"):
        table.learn(Name("one-more", "example.net"), [G2], 300, now=0.0)
    assert table.refused == 1
    assert len(table) == 256


def test_a_full_table_refuses_new_names_and_serves_the_old():
    table = names(maximum=1)
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    with pytest.raises(TableFull):
        table.learn(BOB, [G2], 300, now=0.0)
    assert table.refused == 1
    assert table.learn(ALICE, [G2], 300, now=0.0) is relation


def test_an_address_is_not_reissued_before_its_quarantine_is_over():
    table = NameTable(OneAddress())
    table.note_use(table.learn(ALICE, [G2], 300, now=0.0))
    end = 300 + QUARANTINE
    assert table.expire(end - 0.001) == []
    with pytest.raises(TableFull):
        table.learn(BOB, [G2], 300, now=end - 0.001)
    assert [relation.name for relation in table.expire(end)] == [ALICE]
    assert table.learn(BOB, [G2], 300, now=end).virtual == bytes([240, 0, 0, 1])


def test_past_its_ttl_an_address_nobody_used_gives_way_to_a_name_that_has_no_other():
    given_way = []
    table = NameTable(OneAddress(), on_give_way=given_way.append)
    alice = table.learn(ALICE, [G2], 300, now=0.0)
    with pytest.raises(TableFull):
        table.learn(BOB, [G2], 300, now=299.0)
    assert table.refused == 1
    bob = table.learn(BOB, [G2], 300, now=300.0)
    assert bob.virtual == alice.virtual
    assert table.by_virtual(bob.virtual) is bob
    assert table.by_name(ALICE) is None
    assert given_way == [alice]


def test_of_the_addresses_nobody_used_the_one_that_expired_first_gives_way():
    table = NameTable(Colliding())
    for number in range(256):
        table.learn(Name(f"h{number}", "example.net"), [G2], 300 if number == 77 else 400, now=0.0)
    assert table.learn(ALICE, [G2], 300, now=1000.0).virtual == bytes([240, 77, 1, 1])
    table.acquire(table.learn(Name("h0", "example.net"), [G2], 60, now=1000.0))
    assert table.learn(BOB, [G2], 300, now=2000.0).virtual == bytes([240, 1, 1, 1])


def test_in_a_full_table_the_unused_name_that_expired_first_gives_way():
    given_way = []
    table = names(maximum=3, on_give_way=given_way.append)
    used = table.learn(Name("used", "example.net"), [G2], 60, now=0.0)
    table.note_use(used)
    renewed = table.learn(Name("renewed", "example.net"), [G2], 70, now=0.0)
    table.learn(ALICE, [G2], 80, now=0.0)
    table.learn(renewed.name, [G2], 300, now=10.0)
    with pytest.raises(TableFull):
        table.learn(BOB, [G2], 300, now=79.0)
    table.learn(BOB, [G2], 300, now=80.0)
    assert [relation.name for relation in given_way] == [ALICE]
    assert {relation.name for relation in table} == {used.name, renewed.name, BOB}


def test_a_name_from_before_a_restart_never_gives_way():
    table = names(maximum=1)
    table.restore(ALICE, next(VirtualAddresses().candidates(ALICE)), [G2], expires=10.0)
    with pytest.raises(TableFull):
        table.learn(BOB, [G2], 300, now=100.0)


def test_a_name_in_quarantine_is_still_good():
    table = names()
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    table.expire(400.0)
    assert table.by_virtual(relation.virtual) is relation
    assert table.learn(ALICE, [G2], 300, now=400.0) is relation
    assert table.expire(300 + QUARANTINE) == []


def test_a_flow_keeps_its_relation_for_as_long_as_it_lives():
    table = names()
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    table.acquire(relation)
    assert relation.deadline == math.inf
    assert table.expire(1e9) == []
    assert table.next_deadline() is None


def test_the_quarantine_begins_when_the_last_flow_ends():
    table = names()
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    table.acquire(relation)
    table.acquire(relation)
    table.release(relation, 5000.0)
    assert table.expire(1e9) == []
    table.release(relation, 9000.0)
    assert table.next_deadline() == 9000.0 + QUARANTINE
    assert table.expire(9000.0 + QUARANTINE) == [relation]


def test_a_flow_that_ends_within_the_ttl_does_not_shorten_it():
    table = names()
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    table.acquire(relation)
    table.release(relation, 10.0)
    assert relation.deadline == 300 + QUARANTINE


def test_more_releases_than_flows_are_an_error():
    table = names()
    relation = table.learn(ALICE, [G2], 300, now=0.0)
    with pytest.raises(ValueError, match="more flows released"):
        table.release(relation, 1.0)
    assert relation.flows == 0


def test_a_restored_name_has_its_old_address_even_if_another_would_be_first():
    second = list(VirtualAddresses().candidates(ALICE))[1]
    table = names()
    relation = table.restore(ALICE, second, [G2, G3], expires=77.0)
    assert table.learn(ALICE, [G3], 60, now=0.0) is relation
    assert relation.virtual == second
    assert table.by_virtual(second) is relation


def test_a_later_record_of_the_same_name_replaces_the_earlier():
    table = names()
    virtual = next(VirtualAddresses().candidates(ALICE))
    relation = table.restore(ALICE, virtual, [G2], expires=700.0)
    assert table.restore(ALICE, virtual, [G3], expires=500.0) is relation
    assert (relation.routers, relation.expires) == ((G3,), 500.0)
    assert table.next_deadline() == 500.0 + QUARANTINE


@pytest.mark.parametrize("virtual", [b"\xf0\0\0\0", b"\xc0\0\x02\x01", b"", b"\xf0\0\0\0\0"])
def test_an_address_the_name_cannot_have_is_not_restored(virtual):
    with pytest.raises(ValueError, match="can't have"):
        names().restore(ALICE, virtual, [G2], expires=0.0)


def test_a_name_without_router_is_not_restored():
    with pytest.raises(ValueError, match="can't have"):
        names().restore(ALICE, next(VirtualAddresses().candidates(ALICE)), [], expires=0.0)


def test_a_taken_address_is_not_restored_for_another_name():
    table = NameTable(OneAddress())
    table.restore(ALICE, bytes([240, 0, 0, 1]), [G2], expires=0.0)
    with pytest.raises(ValueError, match="in use already"):
        table.restore(BOB, bytes([240, 0, 0, 1]), [G2], expires=0.0)


def test_a_name_is_not_restored_under_a_second_address():
    table = names()
    first, second, *_ = VirtualAddresses().candidates(ALICE)
    table.restore(ALICE, first, [G2], expires=0.0)
    with pytest.raises(ValueError, match="in use already"):
        table.restore(ALICE, second, [G2], expires=0.0)
    assert table.by_virtual(second) is None


class NameMachine(RuleBasedStateMachine):
    """An address means one name from its first answer until an hour after its last TTL and its last flow.

    Unless the name never had a flow and its TTL is over: then, and only where there is no other room, it gives way.
    """

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.table = NameTable(Colliding(), maximum=8)
        self.promised: dict[bytes, tuple[Name, float]] = {}
        self.flows: list = []
        self.used: set[Name] = set()
        self.ttl_ends: dict[Name, float] = {}

    def may_give_way(self, name):
        return name not in self.used and self.ttl_ends[name] <= self.now

    @rule(number=st.integers(0, 12), ttl=st.integers(0, 100_000))
    def learn(self, number, ttl):
        name = Name(f"h{number}", "example.net")
        full = len(self.table) == 8
        try:
            relation = self.table.learn(name, [G2], ttl, self.now)
        except TableFull:
            assert full
            assert not any(self.may_give_way(keeper) for keeper, _ in self.promised.values())
            return
        for virtual, (keeper, _) in list(self.promised.items()):
            there = self.table.by_virtual(virtual)
            if there is None or there.name != keeper:
                assert full
                assert self.may_give_way(keeper)
                del self.promised[virtual]
                self.ttl_ends.pop(keeper)
        ttl_end = self.now + min(max(ttl, 60), 86400)
        self.ttl_ends[name] = max(self.ttl_ends.get(name, 0.0), ttl_end)
        self.promise(relation, ttl_end)

    def promise(self, relation, until):
        _, before = self.promised.get(relation.virtual, (relation.name, 0.0))
        self.promised[relation.virtual] = (relation.name, max(before, until + QUARANTINE))

    @precondition(lambda self: len(self.table))
    @rule(data=st.data())
    def flow_begins(self, data):
        relation = data.draw(st.sampled_from(list(self.table)))
        self.table.acquire(relation)
        self.flows.append(relation)
        self.used.add(relation.name)

    @precondition(lambda self: self.flows)
    @rule(data=st.data())
    def flow_ends(self, data):
        relation = self.flows.pop(data.draw(st.integers(0, len(self.flows) - 1)))
        self.table.release(relation, self.now)
        self.promise(relation, self.now)

    @rule(seconds=st.integers(0, 50_000))
    def time_passes(self, seconds):
        self.now += seconds
        while (deadline := self.table.next_deadline()) is not None and deadline <= self.now:
            self.table.expire(self.now, limit=2)
        live = {relation.virtual for relation in self.flows}
        self.promised = {v: p for v, p in self.promised.items() if p[1] > self.now or v in live}
        kept = {name for name, _ in self.promised.values()}
        self.used &= kept
        self.ttl_ends = {name: end for name, end in self.ttl_ends.items() if name in kept}

    @invariant()
    def promises_are_kept(self):
        for virtual, (name, _) in self.promised.items():
            relation = self.table.by_virtual(virtual)
            assert relation is not None
            assert relation.name == name
            assert self.table.by_name(name) is relation
        assert len(self.table) == len(self.promised)


TestNameMachine = NameMachine.TestCase
TestNameMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
