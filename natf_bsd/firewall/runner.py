"""Runs the commands of firewall/: set up, undo, check; and keeps kernel settings with their old values."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.firewall.command import Check, Command, Sysctl

TIME_LIMIT = 30.0
"""Seconds a process may take: three times as long as iptables waits for its lock."""

TIMED_OUT = 124
"""Exit status of a process we ended for its time, as timeout(1) has it."""


class Completed(NamedTuple):
    """How a process ended; status 127: there is no such program, `TIMED_OUT`: it did not end."""

    status: int
    stdout: str
    stderr: str


Run: TypeAlias = Callable[[tuple[str, ...], str | None], Completed]
"""Runs argv with a text on standard input and waits for it."""


def run_process(argv: tuple[str, ...], stdin: str | None) -> Completed:
    """The real `Run`, with messages in the C locale; in a session of its own, which a second Ctrl-C at the terminal
    does not reach: it would cut off the undoing.
    """
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            input=stdin or "",
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            start_new_session=True,
            timeout=TIME_LIMIT,
        )
    except FileNotFoundError:
        return Completed(127, "", f"{argv[0]}: not found")
    except subprocess.TimeoutExpired:
        return Completed(TIMED_OUT, "", f"did not end within {TIME_LIMIT:g} s")
    return Completed(done.returncode, done.stdout, done.stderr)


def apply(commands: Iterable[Command], run: Run = run_process) -> None:
    """Run all in order. Raises CommandFailed at the first one that fails; what was done till then is for `undo`."""
    for command in commands:
        _perform(command, run)


def undo(commands: Iterable[Command], run: Run = run_process) -> list[CommandFailed]:
    """Run all in order, whatever fails. Returns the failures."""
    failures = []
    for command in commands:
        try:
            _perform(command, run)
        except CommandFailed as failure:
            failures.append(failure)
    return failures


def check(checks: Iterable[Check], run: Run = run_process) -> list[str]:
    """What is wrong, one text a failed check; empty when all is well."""
    problems = []
    for item in checks:
        done = run(item.command.argv, item.command.stdin)
        problem = item.judge(done.status, done.stdout if done.status == 0 else done.stderr)
        if problem is not None:
            problems.append(problem)
    return problems


def _perform(command: Command, run: Run) -> None:
    if command.unless is not None and run(command.unless, None).status == 0:
        return
    done = run(command.argv, command.stdin)
    if done.status and done.status not in command.may_fail:
        raise CommandFailed(command.argv, done.status, done.stderr)


class SysctlJournal:
    """Sets kernel settings and remembers in the file `path` what they were.

    The old value is written down before the new one is set, and one already written down is kept: after a crash the
    file still holds the value from before us, never our own.
    """

    def __init__(self, path: Path, root: Path = Path("/proc/sys")) -> None:
        self._path = path
        self._root = root

    def apply(self, settings: Iterable[Sysctl]) -> None:
        """Set all. Raises NatfError for one that is missing (unless optional) or refused."""
        for setting in settings:
            if (self._root / setting.name).exists():
                self._set(setting)
            elif not setting.optional:
                raise NatfError(f"{setting.name}: this kernel does not have the setting")

    def restore(self) -> list[str]:
        """Set all back and forget them. Returns what failed, which stays written down.

        A setting that no longer exists needs no restoring: the TUN's go with the TUN.
        """
        failures: list[str] = []
        kept: dict[str, str] = {}
        for name, value in self._read().items():
            if not _is_ours(name):
                failures.append(f"{name}: not a setting natf changes; look into {self._path} and delete it")
                kept[name] = value
                continue
            try:
                (self._root / name).write_text(value)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENODEV):
                    continue
                kept[name] = value
                failures.append(f"{name}: cannot restore {value}: {error.strerror}")
        self._write(kept)
        return failures

    def _set(self, setting: Sysctl) -> None:
        path = self._root / setting.name
        current = path.read_text().strip()
        if current == setting.value:
            return
        self._write({setting.name: current} | self._read())
        try:
            path.write_text(setting.value)
        except OSError as error:
            raise NatfError(f"{setting.name}: cannot set {setting.value}: {error.strerror}") from None

    def _read(self) -> dict[str, str]:
        try:
            values = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise NatfError(f"{self._path}: not a record of kernel settings; restore by hand and delete it") from None
        return dict(values)

    def _write(self, values: dict[str, str]) -> None:
        if not values:
            self._path.unlink(missing_ok=True)
            return
        temporary = self._path.with_name(f"{self._path.name}.new")
        temporary.write_text(json.dumps(values))
        temporary.replace(self._path)


def _is_ours(name: str) -> bool:
    """Only network settings are ever set, so only those are set back, whatever a file says."""
    return name.startswith("net/") and ".." not in name.split("/")
