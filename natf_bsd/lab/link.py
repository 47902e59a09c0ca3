"""A bad link, as probabilities: what it does to a packet. The wire in memory and the one between namespaces obey it."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """Probabilities, and delays in seconds. A packet takes `minimum_delay`; with the probability `reordering` it takes
    up to `maximum_delay` (uniform), and those behind it overtake it."""

    loss: float = 0.0
    duplication: float = 0.0
    minimum_delay: float = 0.001
    maximum_delay: float = 0.001
    reordering: float = 1.0

    def delays(self, chance: random.Random) -> list[float]:
        """Of each copy of one packet that arrives: none, one or two."""
        copies = 1 + (chance.random() < self.duplication)
        return [self._delay(chance) for _ in range(copies) if chance.random() >= self.loss]

    def _delay(self, chance: random.Random) -> float:
        late = self.reordering >= 1 or chance.random() < self.reordering
        return chance.uniform(self.minimum_delay, self.maximum_delay) if late else self.minimum_delay


GOOD = Link()
"""Loses nothing, and takes a millisecond."""
