"""What the programs on hosts share: a port comes in, it is mapped, the time that took goes out, it is given back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def serve(ask: Callable[[int], None], undo: Callable[[int], None]) -> None:
    """Time `ask` for each line of standard input. A negative number is a port that stays, for others to use."""
    for line in sys.stdin:
        port = int(line)
        began = time.perf_counter()
        ask(abs(port))
        sys.stdout.write(f"{time.perf_counter() - began}\n")
        sys.stdout.flush()
        if port > 0:
            undo(port)
