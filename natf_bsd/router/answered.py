"""Mappings answered a moment ago, for requests that come once more: late, doubled on the way, or because the answer
was lost. They get the same answer, and the NAT no second pseudo-packet.

Over a bad link a copy arrives when its connection is over, or half over. A pseudo-packet is a SYN, and conntrack takes
a SYN on a connection it has seen end for the beginning of the next: it forgets the mapping while data and the last FIN
are still on their way (seen on Linux 6.18), and the inside host's packets leave untranslated.
"""

from __future__ import annotations

from typing import Final

from natf_bsd.types import Address, Endpoint, Flow

_GENERATION: Final = 5.0
"""Seconds. An answer is known for one to two generations: an external node repeats a request for four seconds."""

_MAXIMUM: Final = 16_384  # answers of a generation, about 600 bytes each; what is more is not remembered


class Answered:
    """By source and transaction: the flow as the NAT's inside has it, and what it was mapped to."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._young: dict[tuple[Address, bytes], tuple[Flow, Endpoint]] = {}
        self._old: dict[tuple[Address, bytes], tuple[Flow, Endpoint]] = {}

    def remember(self, source: Address, transaction: bytes, inside: Flow, mapped: Endpoint, now: float) -> None:
        self._age(now)
        if len(self._young) < _MAXIMUM:
            self._young[source, transaction] = inside, mapped

    def get(self, source: Address, transaction: bytes, inside: Flow, now: float) -> Endpoint | None:
        """What was answered; None if nothing was, or for another flow."""
        self._age(now)
        key = source, transaction
        found = self._young.get(key) or self._old.get(key)
        return found[1] if found is not None and found[0] == inside else None

    def _age(self, now: float) -> None:
        age = now - self._begun
        if age >= _GENERATION:
            self._old = self._young if age < 2 * _GENERATION else {}
            self._young = {}
            self._begun = now
