"""Mutation for the fuzz tests of both cores."""

from __future__ import annotations

import random


def mutated(rng: random.Random, data: bytes) -> bytes:
    """`data` itself, or with some bytes changed, cut off, doubled, or all of them random."""
    dice = rng.random()
    if dice < 0.3 or not data:
        return data
    spoilt = bytearray(data)
    size = len(spoilt)
    if dice < 0.75:
        for _ in range(1 + int(rng.random() * 3)):
            spoilt[int(rng.random() * size)] = int(rng.random() * 256)
    elif dice < 0.87:
        del spoilt[int(rng.random() * size) :]
    elif dice < 0.95:
        at = int(rng.random() * size)
        spoilt[at:at] = spoilt[at : at + 16]
    else:
        return rng.randbytes(int(rng.random() * 120))
    return bytes(spoilt)
