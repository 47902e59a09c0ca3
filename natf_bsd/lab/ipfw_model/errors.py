"""The two ways the model refuses: as ipfw(8) does, and because it does not know."""

from __future__ import annotations

# sysexits.h, as ipfw(8) uses them.
EX_USAGE = 64
EX_DATAERR = 65
EX_NOHOST = 68
EX_UNAVAILABLE = 69
EX_OSERR = 71


class CommandError(Exception):
    """What makes ipfw(8) end: exit status, and the line it prints behind its name (and `Line N`, in a batch)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class NotModelledError(Exception):
    """Something FreeBSD has and the model has not. To go on would be to guess, so that a test shall fail here."""
