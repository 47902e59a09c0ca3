"""A plan in force for as long as a daemon runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from natf_bsd.errors import NatfError
from natf_bsd.firewall import runner
from natf_bsd.firewall.plan import Plan, Remains
from natf_bsd.ops.runtime import RoleLock

log = logging.getLogger(__name__)


def sysctl_journal(run_dir: Path, role: str, kernel: runner.KernelSettings) -> runner.SysctlJournal:
    """Where the kernel settings from before us are written down, until they are back."""
    return runner.SysctlJournal(run_dir / f"{role}.sysctl", kernel)


class Installed:
    """Checks, sets up, and undoes at exit; what failed half way is undone at once. NatfError says what is in the way.

    with Installed(plan, run_dir, kernel):
        loop.run()
    """

    def __init__(self, plan: Plan, run_dir: Path, kernel: runner.KernelSettings) -> None:
        self._plan = plan
        self._journal = sysctl_journal(run_dir, plan.role, kernel)
        self._stays = False

    def stay(self) -> None:
        """Leave everything in force at exit, or the stand-in, for a daemon that is started again; `clean_up` can still
        undo it. CommandFailed, and then it is undone at exit after all.
        """
        runner.apply(self._plan.stay or ())
        self._stays = True

    def renew(self, plan: Plan) -> None:
        """Apply `plan` once more, over whatever others have left of the first; what it sets must be undone by the same
        steps. Raises NatfError; what was done is undone at exit."""
        self._plan = plan
        runner.apply(plan.set_up)
        self._journal.apply(plan.sysctls)

    def __enter__(self) -> Installed:
        problems = runner.check(self._plan.checks)
        if problems:
            raise NatfError("; ".join(problems))
        try:
            self.renew(self._plan)
        except BaseException:  # also KeyboardInterrupt: __exit__ is not called for what fails here
            self._undo()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._stays:
            self._undo()

    def _undo(self) -> None:
        for failure in runner.undo(self._plan.undo):
            log.error("not undone: %s", failure)
        for text in _restore(self._journal):
            log.error("not undone: %s", text)


def clean_up(remains: Mapping[str, Remains], run_dirs: Mapping[str, Path], kernel: runner.KernelSettings) -> list[str]:
    """Undo whatever daemons that were killed have left, by our marks alone; returns what could not be undone.

    `remains` and `run_dirs` by role. NatfError if a daemon is alive: taking its rules away would cut its users off.
    None can start meanwhile: whoever supervises a daemon that was killed may be about to start it again.
    """
    for role, run_dir in run_dirs.items():
        if (process := RoleLock.holder(run_dir, role)) is not None:
            who = f"process {process}" if process else "just started"
            raise NatfError(f"natf {role} is running ({who}); stop it first, it then leaves nothing behind")
    if others := runner.check([left.in_use for left in remains.values()]):
        raise NatfError("; ".join(others))
    with ExitStack() as locks:
        for role, run_dir in run_dirs.items():
            locks.enter_context(RoleLock(run_dir, role))
        failures = [str(failure) for left in remains.values() for failure in runner.undo(left.undo)]
        failures += [failure for left in remains.values() for failure in _forget(left)]
        for role, run_dir in run_dirs.items():
            failures += _restore(sysctl_journal(run_dir, role, kernel))
            (run_dir / f"{role}.sock").unlink(missing_ok=True)
    return failures


def _forget(left: Remains) -> list[str]:
    try:
        if left.forget is not None:
            left.forget()
    except OSError as error:
        return [f"what the kernel has of flows: {error.strerror}"]
    return []


def _restore(journal: runner.SysctlJournal) -> list[str]:
    """A journal that cannot be read must not block the steps after it."""
    try:
        return journal.restore()
    except NatfError as error:
        return [str(error)]
