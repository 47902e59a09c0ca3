import math
from dataclasses import dataclass

import pytest

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import COMPACTION_MINIMUM, DuplicateKey, Table


@dataclass(eq=False)
class Item:
    number: int
    colour: str
    deadline: float = 10.0


def table(maximum: int = 100, removed: list[Item] | None = None) -> Table[Item]:
    indexes = {"number": lambda item: item.number, "colour": lambda item: item.colour}
    return Table(maximum, indexes, removed.append if removed is not None else None)


def test_a_record_is_found_by_each_index():
    items = table()
    red = Item(1, "red")
    items.insert(red)
    assert items.get("number", 1) is red
    assert items.get("colour", "red") is red
    assert items.index("colour")["red"] is red
    assert items.get("number", 2) is None
    assert list(items) == [red]


def test_a_full_table_refuses_and_counts():
    items = table(maximum=1)
    items.insert(Item(1, "red"))
    with pytest.raises(TableFull):
        items.insert(Item(2, "blue"))
    assert items.refused == 1
    assert len(items) == 1
    assert items.get("number", 2) is None


@pytest.mark.parametrize(("number", "colour", "index"), [(1, "blue", "number"), (2, "red", "colour")])
def test_a_taken_key_leaves_the_table_as_it_was(number, colour, index):
    items = table()
    red = Item(1, "red")
    items.insert(red)
    with pytest.raises(DuplicateKey) as caught:
        items.insert(Item(number, colour))
    assert caught.value.index == index
    assert list(items) == [red]
    assert items.get("number", 2) is None
    assert items.get("colour", "blue") is None


def test_the_same_record_is_not_taken_twice_even_under_other_keys():
    items = table()
    item = Item(1, "red")
    items.insert(item)
    number, colour = item.number, item.colour
    item.number, item.colour = 2, "blue"
    with pytest.raises(DuplicateKey):
        items.insert(item)
    item.number, item.colour = number, colour
    items.remove(item)
    assert items.get("number", 1) is None


def test_remove_frees_every_key_and_is_told_once():
    removed: list[Item] = []
    items = table(removed=removed)
    red = Item(1, "red")
    items.insert(red)
    items.remove(red)
    with pytest.raises(KeyError):
        items.remove(red)
    assert items.expire(100.0) == []
    assert removed == [red]
    items.insert(Item(1, "red"))


def test_on_remove_may_remove_others():
    items = Table[Item](10, {"number": lambda item: item.number}, lambda item: cascade(item))
    gone = []

    def cascade(item: Item) -> None:
        gone.append(item.number)
        follower = items.get("number", item.number + 1)
        if follower is not None:
            items.remove(follower)

    for number in range(4):
        items.insert(Item(number, ""))
    assert [item.number for item in items.expire(10.0)] == [0]
    assert gone == [0, 1, 2, 3]
    assert items.next_deadline() is None


def test_expiry_comes_at_the_deadline_and_not_before():
    items = table()
    red, blue = Item(1, "red", 10.0), Item(2, "blue", 20.0)
    items.insert(blue)
    items.insert(red)
    assert items.next_deadline() == 10.0
    assert items.expire(9.999) == []
    assert items.expire(10.0) == [red]
    assert items.next_deadline() == 20.0


def test_a_deadline_that_moved_on_is_honoured_without_a_call():
    items = table()
    red = Item(1, "red", 10.0)
    items.insert(red)
    red.deadline = 15.0
    assert items.expire(10.0) == []
    assert items.next_deadline() == 15.0
    assert items.expire(15.0) == [red]


def test_an_earlier_deadline_is_honoured_after_reschedule():
    items = table()
    red = Item(1, "red", 100.0)
    items.insert(red)
    red.deadline = 5.0
    items.reschedule(red)
    assert items.next_deadline() == 5.0
    assert items.expire(5.0) == [red]
    assert items.expire(100.0) == []


def test_a_record_without_an_end_waits_for_none():
    items = table()
    red = Item(1, "red", math.inf)
    items.insert(red)
    assert items.next_deadline() is None
    assert items.expire(1e12) == []
    red.deadline = 5.0
    items.reschedule(red)
    assert items.next_deadline() == 5.0


def test_a_sweep_looks_at_no_more_than_its_limit():
    items = table()
    for number in range(10):
        items.insert(Item(number, str(number)))
    assert len(items.expire(10.0, limit=4)) == 4
    assert items.next_deadline() == 10.0
    assert len(items.expire(10.0, limit=100)) == 6


def test_a_rekeyed_record_is_found_under_the_new_key_only():
    items = table()
    red = Item(1, "red")
    items.insert(red)
    items.rekey(red, "number", 7)
    red.number = 7
    assert items.get("number", 1) is None
    assert items.get("number", 7) is red
    assert items.get("colour", "red") is red
    items.rekey(red, "number", 7)
    items.remove(red)
    assert items.get("number", 7) is None


def test_rekey_refuses_a_taken_key_and_an_absent_record():
    items = table()
    red, blue = Item(1, "red"), Item(2, "blue")
    items.insert(red)
    items.insert(blue)
    with pytest.raises(DuplicateKey):
        items.rekey(red, "number", 2)
    assert items.get("number", 1) is red
    assert items.get("number", 2) is blue
    with pytest.raises(KeyError):
        items.rekey(Item(3, "green"), "number", 3)
    with pytest.raises(KeyError):
        items.reschedule(Item(3, "green"))


def test_the_heap_does_not_grow_with_what_was_removed_or_rescheduled():
    items = table()
    keeper = Item(-1, "keeper", 1000.0)
    items.insert(keeper)
    for number in range(20 * COMPACTION_MINIMUM):
        item = Item(number, str(number))
        items.insert(item)
        items.remove(item)
        items.reschedule(keeper)
    assert len(items._heap) <= COMPACTION_MINIMUM + 1
    assert items.next_deadline() == 1000.0
