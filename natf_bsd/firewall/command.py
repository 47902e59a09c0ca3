"""What is to be done to a firewall, as values: commands, kernel settings, checks. Nothing here runs anything."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Command:
    """One process to run.

    `unless`: run `argv` only if this command fails, that is, if what `argv` makes is not there yet. `may_fail`: exit
    statuses that mean there was nothing to do. `repeated`: run it until it fails, for what may be there more than once.
    """

    argv: tuple[str, ...]
    stdin: str | None = None
    unless: tuple[str, ...] | None = None
    may_fail: tuple[int, ...] = ()
    repeated: bool = False

    def shell(self) -> str:
        """The same for a person to read or to paste into a POSIX shell."""
        text = shlex.join(self.argv)
        if self.unless:
            text = f"{shlex.join(self.unless)} 2>/dev/null || {text}"
        if self.may_fail:
            text = f"{text} || true"
        if self.stdin is not None:
            text = f"{text} <<'END'\n{self.stdin.rstrip()}\nEND"
        return text


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting; on Linux by its path under /proc/sys ("net/ipv4/ip_forward"), which sysctl(8) takes too.

    `optional`: a kernel without it needs no setting (no IPv6, for instance).
    """

    name: str
    value: str
    optional: bool = False

    def shell(self) -> str:
        return shlex.join(["sysctl", f"{self.name}={self.value}"])


Judge: TypeAlias = Callable[[int, str], str | None]
"""From exit status and output of a check's command to what is wrong, or None."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at before rules are set: a command that changes nothing, and what its outcome means."""

    command: Command
    judge: Judge


def shell(steps: list[Command]) -> str:
    """The commands as shell text, one after the other: for `--dry-run` and for documents."""
    return "".join(f"{step.shell()}\n" for step in steps)
