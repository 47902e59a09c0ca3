"""What is asked of the system, and what it said: texts by short names, so that recordings can stand in for a host."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.process import Run

MISSING: Final = 127
"""Status of a program or a file that is not there."""

_UNREADABLE: Final = 126

Question: TypeAlias = tuple[str, ...] | Path
"""A command to run, or a file to read."""

Read: TypeAlias = Callable[[Path], str]
"""The text of a file; OSError says why not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question. `status`: of the command, 0 for a file that was read."""

    asked: str
    status: int
    text: str
    error: str = ""

    @property
    def known(self) -> bool:
        return self.status == 0

    @property
    def missing(self) -> bool:
        return self.status == MISSING

    @property
    def why(self) -> str:
        """What kept it from being known, in one line."""
        said = "; ".join(self.error.strip().splitlines())
        return f"{self.asked}: {said or f'exit status {self.status}'}"


Facts: TypeAlias = Mapping[str, Answer]


@dataclass(frozen=True, slots=True)
class Role:
    """One of the two programs that are to run on this host.

    `interface`: the outer one as it was found; None, and then `trouble` says why. `process`: the daemon that holds the
    role's lock, 0 if it does not say its number, None if there is none; `unseen` if the lock cannot be looked at.
    """

    name: str
    run_dir: Path
    interface: Interface | None = None
    trouble: str = ""
    process: int | None = None
    unseen: str = ""

    @property
    def is_away(self) -> bool:
        """Surely no daemon is alive."""
        return self.process is None and not self.unseen


@dataclass(frozen=True, slots=True)
class Host:
    """Whom the facts are about. `en` and `router`: the settings of the roles that are looked at."""

    root: bool
    roles: tuple[Role, ...]
    en: EnConfig | None = None
    router: RouterConfig | None = None
    configuration: Path | None = None
    """The file the settings are from; None: they are defaults."""

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The outer ones, mostly one for both roles."""
        return tuple(dict.fromkeys(role.interface for role in self.roles if role.interface is not None))

    def role(self, name: str) -> Role | None:
        return next((role for role in self.roles if role.name == name), None)


Topic: TypeAlias = Callable[[Host, Facts], list[Finding]]
"""Judges one thing; asks nothing more."""


def gather(questions: Mapping[str, Question], run: Run, read: Read) -> dict[str, Answer]:
    """Ask all. Whatever fails is an answer too."""
    return {name: _ask(question, run, read) for name, question in questions.items()}


def _ask(question: Question, run: Run, read: Read) -> Answer:
    asked = str(question) if isinstance(question, Path) else shlex.join(question)
    try:
        if isinstance(question, Path):
            return Answer(asked, 0, read(question))
        done = run(question, None)
    except FileNotFoundError as error:
        return Answer(asked, MISSING, "", error.strerror or str(error))
    except (OSError, ValueError) as error:
        return Answer(asked, _UNREADABLE, "", getattr(error, "strerror", None) or str(error))
    return Answer(asked, done.status, done.stdout, done.stderr)


def unseen(host: Host, title: str, answer: Answer) -> Finding:
    """That something could not be looked at. Without root that is to be expected."""
    if host.root:
        return Finding(Severity.WARNING, title, f"not seen: {answer.why}")
    return Finding(Severity.NOTE, title, f"not seen: {answer.why}", "run natf doctor as root")


def settings(facts: Facts) -> dict[str, str]:
    """The kernel settings this system has, by their names, from sysctl(8)."""
    pairs = (line.partition(": ") for line in facts["sysctl"].text.splitlines())
    return {name: value.strip() for name, separator, value in pairs if separator}


def release(facts: Facts) -> int:
    """kern.osreldate of FreeBSD, such as 1402000 for 14.2; 0 if it is not known."""
    text = settings(facts).get("kern.osreldate", "")
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class Process:
    number: int
    parent: int
    words: tuple[str, ...]
    """Its command line."""


def processes(facts: Facts) -> list[Process]:
    """Those of this host or jail, from `ps -o jid,pid,ppid,args`; those of other jails have a jail number."""
    found = []
    for line in facts["processes"].text.splitlines():
        words = line.split()
        if len(words) > 3 and words[0] == "0" and words[1].isdecimal() and words[2].isdecimal():
            found.append(Process(int(words[1]), int(words[2]), tuple(words[3:])))
    return found
