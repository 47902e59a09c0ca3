"""Running the system's own programs: firewall, interface and routing tools."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from typing import IO, NamedTuple, Protocol, TypeAlias

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


class Process(Protocol):
    """One that runs while the loop goes on."""

    def ended(self) -> Completed | None:
        """None while it runs."""

    def wait(self, seconds: float) -> Completed | None:
        """None if it runs longer than that."""

    def kill(self) -> None:
        """It may still be there for a moment, or for as long as the kernel does not let go of it."""


Start: TypeAlias = Callable[[tuple[str, ...], str | None], Process]
"""As `Run`, and does not wait."""


def start_process(argv: tuple[str, ...], stdin: str | None) -> Process:
    """The real `Start`. Its input is no file, which a full disk would not take; its output is for a few lines."""
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        return _NoChild(Completed(127, "", f"{error.filename}: not found"))
    except OSError as error:
        return _NoChild(Completed(126, "", f"{argv[0]}: {error.strerror}"))
    return _Child(child, (stdin or "").encode())


class _Child:
    """Whenever it is looked at its pipe takes what it can of `text`: communicate() loses the rest at a timeout."""

    def __init__(self, child: subprocess.Popen[str], text: bytes) -> None:
        self._child = child
        self._input: IO[str] | None = child.stdin
        self._rest = text
        child.stdin = None
        self._feed()

    def ended(self) -> Completed | None:
        self._feed()
        return None if self._child.poll() is None else self._completed()

    def wait(self, seconds: float) -> Completed | None:
        until = time.monotonic() + seconds
        while self._input is not None and select.select((), (self._input,), (), max(0.0, until - time.monotonic()))[1]:
            self._feed()
        try:
            return self._completed(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _feed(self) -> None:
        if self._input is None:
            return
        os.set_blocking(self._input.fileno(), False)
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._input.fileno(), self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has read enough, or is gone
            pass
        self._input.close()
        self._input = None

    def _completed(self, timeout: float | None = None) -> Completed:
        stdout, stderr = self._child.communicate(timeout=timeout)
        return Completed(self._child.returncode, stdout, stderr)


class _NoChild:
    def __init__(self, done: Completed) -> None:
        self._done = done

    def ended(self) -> Completed:
        return self._done

    def wait(self, seconds: float) -> Completed:
        return self._done

    def kill(self) -> None:
        return


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
            encoding="utf-8",
            errors="replace",  # a site's comments in its rules, in whatever encoding, are passed over by us
            env=environment,
            check=False,
            start_new_session=True,
            timeout=TIME_LIMIT,
        )
    except FileNotFoundError:
        return Completed(127, "", f"{argv[0]}: not found")
    except OSError as error:  # not executable, no program, no process to be had
        return Completed(126, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Completed(TIMED_OUT, "", f"did not end within {TIME_LIMIT:g} s")
    return Completed(done.returncode, done.stdout, done.stderr)
