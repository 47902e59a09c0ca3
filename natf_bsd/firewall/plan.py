"""All that is set up for a role on this host, in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from natf_bsd.firewall.command import Check, Command, Sysctl


@dataclass(frozen=True, slots=True)
class Plan:
    """What to look at first, what to do, and how to undo it whatever came of it."""

    role: str
    checks: list[Check]
    set_up: list[Command]
    sysctls: list[Sysctl]
    undo: list[Command]
    look: tuple[str, ...] = ()
    """The process that lists what is in force of it, for `guard`."""
    stay: list[Command] | None = None
    """What leaves the stand-in in force while a daemon is restarted; None: the rules themselves do."""
    notes: tuple[str, ...] = ()
    """What no command here does and belongs to it, in words."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What a daemon of a role that was killed may have left here, by our marks alone: `undo` removes it.

    `in_use` tells whether its rules have a daemon that lives after all, one with another run_dir. `forget` removes what
    no command does; OSError with the kernel's reason.
    """

    undo: list[Command]
    in_use: Check
    forget: Callable[[], None] | None = None
