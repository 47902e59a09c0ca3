"""A plan in force for as long as a daemon runs."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

from natf_bsd.errors import NatfError
from natf_bsd.firewall import runner
from natf_bsd.firewall.plan import Plan

log = logging.getLogger(__name__)


def sysctl_journal(run_dir: Path, role: str) -> runner.SysctlJournal:
    """Where the kernel settings from before us are written down, until they are back."""
    return runner.SysctlJournal(run_dir / f"{role}.sysctl")


class Installed:
    """Checks, sets up, and undoes at exit; what failed half way is undone at once. NatfError says what stands in the way.

        with Installed(plan, run_dir):
            loop.run()
    """

    def __init__(self, plan: Plan, run_dir: Path) -> None:
        self._plan = plan
        self._journal = sysctl_journal(run_dir, plan.role)

    def __enter__(self) -> Installed:
        problems = runner.check(self._plan.checks)
        if problems:
            raise NatfError("; ".join(problems))
        try:
            runner.apply(self._plan.set_up)
            self._journal.apply(self._plan.sysctls)
        except NatfError:
            self._undo()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()

    def _undo(self) -> None:
        for failure in runner.undo(self._plan.undo):
            log.error("not undone: %s", failure)
        for text in self._journal.restore():
            log.error("not undone: %s", text)
