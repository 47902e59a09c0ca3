"""Named counters with one sentence each; what a daemon did with every packet can be added up from them."""

from __future__ import annotations

from collections.abc import Mapping


class Counters:
    """Counts by name. Only the names it was made with exist, so a name an outsider chooses can never become one."""

    __slots__ = ("_values", "descriptions")

    def __init__(self, descriptions: Mapping[str, str]) -> None:
        self.descriptions = dict(descriptions)
        self._values = dict.fromkeys(descriptions, 0)

    def add(self, name: str, amount: int = 1) -> None:
        self._values[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def total(self, prefix: str) -> int:
        """The sum of all counters whose name starts with `prefix`."""
        return sum(value for name, value in self._values.items() if name.startswith(prefix))

    def snapshot(self) -> dict[str, int]:
        return dict(self._values)
