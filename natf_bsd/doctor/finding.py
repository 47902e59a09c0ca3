"""What the doctor says."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


class Severity(enum.Enum):
    OK = "ok"
    NOTE = "note"
    """Worth knowing; also what could not be seen for want of privilege."""
    WARNING = "warning"
    """Works, but not always or not for long."""
    ERROR = "error"
    """Does not work."""


_EXIT_STATUS: Final = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy`: what to do about it, commands and lines for files; empty if nothing need be done."""

    severity: Severity
    title: str
    found: str
    remedy: str = ""

    def plain(self) -> dict[str, str]:
        """For JSON."""
        return {"severity": self.severity.value, "title": self.title, "found": self.found, "remedy": self.remedy}

    def text(self) -> str:
        """For a person: one line, and below it what to do."""
        remedy = f"\n{'':9}do: {self.remedy}" if self.remedy else ""
        return f"{self.severity.value:9}{self.title}: {self.found}{remedy}"


def exit_status(findings: Iterable[Finding]) -> int:
    """0: nothing but good news and notes, 1: warnings, 2: errors."""
    return max((_EXIT_STATUS[finding.severity] for finding in findings), default=0)


def summary(findings: Iterable[Finding]) -> str:
    """How many of each kind that asks for something, in one line."""
    severities = [finding.severity for finding in findings]
    counts = [
        f"{number} {severity.value}{'s' if number > 1 else ''}"
        for severity in (Severity.ERROR, Severity.WARNING, Severity.NOTE)
        if (number := severities.count(severity))
    ]
    return ", ".join(counts) or "nothing to do"
