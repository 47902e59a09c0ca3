"""Running the system's own programs: firewall, interface and routing tools."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

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
