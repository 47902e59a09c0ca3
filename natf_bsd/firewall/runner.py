"""Runs the commands of firewall/: set up, undo, check; and keeps kernel settings with their old values."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.firewall.command import Check, Command, Sysctl
from natf_bsd.ops.process import Run, run_process

_REPETITIONS: Final = 100
"""Copies of a rule that are removed at most."""


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
    for _ in range(_REPETITIONS if command.repeated else 0):
        if done.status:
            break
        done = run(command.argv, command.stdin)
    if done.status and done.status not in command.may_fail:
        raise CommandFailed(command.argv, done.status, done.stderr)


class KernelSettings(Protocol):
    """Where kernel settings are read and set, by the names of `Sysctl`. OSError says what the kernel said."""

    def read(self, name: str) -> str | None:
        """The value, None if this kernel does not have the setting."""

    def write(self, name: str, value: str) -> None: ...


class ProcSys:
    """Linux: files under /proc/sys."""

    def __init__(self, root: Path = Path("/proc/sys")) -> None:
        self._root = root

    def read(self, name: str) -> str | None:
        try:
            return (self._root / name).read_text().strip()
        except FileNotFoundError:
            return None

    def write(self, name: str, value: str) -> None:
        (self._root / name).write_text(value)


class SysctlProgram:
    """FreeBSD: sysctl(8)."""

    def __init__(self, run: Run = run_process) -> None:
        self._run = run

    def read(self, name: str) -> str | None:
        done = self._run(("sysctl", "-n", name), None)
        return done.stdout.strip() if done.status == 0 else None

    def write(self, name: str, value: str) -> None:
        done = self._run(("sysctl", f"{name}={value}"), None)
        if done.status:
            missing = _UNKNOWN in done.stderr
            raise OSError(errno.ENOENT if missing else errno.EPERM, "; ".join(done.stderr.strip().splitlines()))


_UNKNOWN: Final = "unknown oid"  # sysctl(8) of a setting that is not there


class SysctlJournal:
    """Sets kernel settings and remembers in the file `path` what they were.

    The old value is written down before the new one is set, and one already written down is kept: after a crash the
    file still holds the value from before us, never our own.
    """

    def __init__(self, path: Path, kernel: KernelSettings) -> None:
        self._path = path
        self._kernel = kernel

    def apply(self, settings: Iterable[Sysctl]) -> None:
        """Set all. Raises NatfError for one that is missing (unless optional) or refused."""
        for setting in settings:
            current = self._kernel.read(setting.name)
            if current is not None:
                self._set(setting, current)
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
                self._kernel.write(name, value)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENODEV):
                    continue
                kept[name] = value
                failures.append(f"{name}: cannot restore {value}: {error.strerror}")
        self._write(kept)
        return failures

    def _set(self, setting: Sysctl, current: str) -> None:
        if current == setting.value:
            return
        self._write({setting.name: current} | self._read())
        try:
            self._kernel.write(setting.name, setting.value)
        except OSError as error:
            raise NatfError(f"{setting.name}: cannot set {setting.value}: {error.strerror}") from None

    def _read(self) -> dict[str, str]:
        try:
            values = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise NatfError(f"{self._path}: {error.strerror}; kernel settings stay as they are") from None
        except ValueError:
            raise NatfError(f"{self._path}: not a record of kernel settings; restore by hand and delete it") from None
        return dict(values)

    def _write(self, values: dict[str, str]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.new")
        try:
            if not values:
                self._path.unlink(missing_ok=True)
                return
            temporary.write_text(json.dumps(values))
            temporary.replace(self._path)
        except OSError as error:
            raise NatfError(f"{self._path}: old kernel settings cannot be written down: {error.strerror}") from None


def _is_ours(name: str) -> bool:
    """Only network settings are ever set, so only those are set back, whatever a file says."""
    return name.startswith(("net/", "net.")) and ".." not in name.split("/") and "=" not in name
