"""Rules and their order: numbers, sets, counters, and how ipfw(8) prints them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from natf_bsd.types import Address

DEFAULT_RULE = 65535
# Survives flush and cannot be disabled (FREEBSD.md 2.4).
DEFAULT_SET = 31
# net.inet.ip.fw.autoinc_step
_STEP = 100


@dataclass(frozen=True, slots=True)
class AddressMatch:
    """One address of a rule: `any`, `me`, a network or a table. `text` is how ipfw(8) prints it."""

    text: str
    network: tuple[int, int] | None = None
    table: str | None = None

    @property
    def is_any(self) -> bool:
        return self.text == "any"


@dataclass(frozen=True, slots=True)
class End:
    """Source or destination of a rule: any of the addresses, and any of the port ranges if there are some."""

    addresses: tuple[AddressMatch, ...]
    ports: tuple[tuple[int, int], ...] = ()
    ports_text: str = ""
    negated: bool = False

    @property
    def text(self) -> str:
        addresses = ",".join(address.text for address in self.addresses)
        return " ".join(part for part in ("not" if self.negated else "", addresses, self.ports_text) if part)

    @property
    def is_any(self) -> bool:
        return not self.negated and not self.ports_text and all(address.is_any for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Option:
    """One condition behind the addresses. `value` is what the test of this `name` in `walk` wants."""

    name: str
    text: str
    value: object = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """What a rule says, apart from its number and set. `argument` None for an action that has none or a tablearg."""

    action: str
    argument: int | None
    action_text: str
    protocols: tuple[int | None, ...]
    protocols_text: str
    source: End
    destination: End
    options: tuple[Option, ...] = ()
    comment: str = ""

    def text(self, *, compact: bool = False) -> str:
        """As `ipfw list` prints it; with `compact` as `ipfw -c list` does."""
        ends = f"from {self.source.text} to {self.destination.text}"
        if compact and self.source.is_any and self.destination.is_any:
            ends = ""
        comment = f"// {self.comment}" if self.comment else ""
        parts = (self.action_text, self.protocols_text, ends, *(option.text for option in self.options), comment)
        return " ".join(part for part in parts if part)

    def tables(self) -> Iterator[tuple[str, str]]:
        """Names and types of the tables this rule refers to."""
        for end in (self.source, self.destination):
            yield from ((address.table, "addr") for address in end.addresses if address.table is not None)
        yield from ((str(option.value), "flow") for option in self.options if option.name == "flow")


@dataclass(slots=True, eq=False)
class Rule:
    """A rule in its place. `stamp` is the ctime(3) of its last match; the model has no wall clock, so that whoever
    wants to see one sets it."""

    number: int
    set: int
    body: Body
    packets: int = 0
    bytes: int = 0
    stamp: str = ""

    def count(self, size: int) -> None:
        self.packets += 1
        self.bytes += size


@dataclass(slots=True)
class RuleSet:
    """All rules, by number; rules of one number in the order they came."""

    default: Rule
    rules: list[Rule] = field(default_factory=list)
    disabled: frozenset[int] = frozenset()

    def add(self, number: int, set_number: int, body: Body) -> Rule:
        """Insert behind all rules of its number; without a number it gets the last one plus 100."""
        rule = Rule(number or self._next_number(), set_number, body)
        at = bisect.bisect_right([other.number for other in self.rules], rule.number)
        self.rules.insert(at, rule)
        return rule

    def _next_number(self) -> int:
        last = self.rules[-1].number if self.rules else 0
        return last + _STEP if last + _STEP < DEFAULT_RULE else last

    def is_enabled(self, rule: Rule) -> bool:
        return rule.set not in self.disabled

    def all(self) -> list[Rule]:
        return [*self.rules, self.default]

    def first_from(self, number: int) -> int:
        """The slot of the first rule with this number or a higher one; that of the default rule if there is none.

        A disabled rule still has its slot: the number decides, and a walk passes it by (ipfw_find_rule).
        """
        return bisect.bisect_left([rule.number for rule in self.rules], min(number, DEFAULT_RULE))

    def delete(self, numbers: Iterable[int]) -> int:
        """Remove all rules with these numbers; returns how many."""
        wanted = frozenset(numbers)
        return self._remove(lambda rule: rule.number in wanted)

    def delete_set(self, set_number: int) -> int:
        return self._remove(lambda rule: rule.set == set_number)

    def flush(self) -> None:
        self._remove(lambda rule: rule.set != DEFAULT_SET)

    def _remove(self, unwanted: Callable[[Rule], bool]) -> int:
        kept = [rule for rule in self.rules if not unwanted(rule)]
        removed = len(self.rules) - len(kept)
        self.rules = kept
        return removed

    def move(self, old: int, new: int) -> None:
        for rule in self.rules:
            rule.set = new if rule.set == old else rule.set

    def swap(self, one: int, other: int) -> None:
        exchanged = {one: other, other: one}
        for rule in self.rules:
            rule.set = exchanged.get(rule.set, rule.set)

    def switch(self, enable: frozenset[int], disable: frozenset[int]) -> None:
        """Enable and disable sets in one step; set 31 stays enabled."""
        self.disabled = (self.disabled | disable) - enable - {DEFAULT_SET}


def in_network(address: Address, network: tuple[int, int]) -> bool:
    number, mask = network
    return int.from_bytes(address, "big") & mask == number
