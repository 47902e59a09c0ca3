"""The far end of a lab on machines reached by ssh: what `relay` and the platform ask of a machine.

`python -m natf_bsd.lab.far_end REQUEST` does one thing, as root. REQUEST is JSON in URL-safe base64: no shell on the
way, whichever it is, finds anything to expand in it. Answers are JSON on standard output.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.ops import control

SEARCH_PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
"""Where FreeBSD and its packages keep commands; sudo(8) may have left only a part of it."""

DONE = "done"
"""What the lifeline says when its process has ended by itself."""

_PATIENCE = 10.0
"""Seconds the lifeline waits for its process to be there: both start at the same time."""

_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL at the lab's end."""

_POLL = 0.01


def encoded(request: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(request).encode()).decode()


def run(run_dir: Path, token: str, host: str, cwd: str, argv: list[str]) -> None:
    """Become `argv`, known from now on by `token`. A process group of its own: its children end with it."""
    os.setpgid(0, 0)
    _processes(run_dir).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # a directory of the near end only
        os.chdir(cwd)
    (_processes(run_dir) / token).write_text(f"{os.getpid()} {host}")
    try:
        os.execvpe(argv[0], argv, {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SEARCH_PATH}"})
    except OSError as error:
        (_processes(run_dir) / token).unlink()
        sys.exit(f"{argv[0]}: {error.strerror}")


def lifeline(run_dir: Path, token: str) -> None:
    """Send the process of `token` the signals named on standard input, a line each.

    When that ends without DONE, the near end was killed: then the process is killed too.
    """
    record = _processes(run_dir) / token
    for line in sys.stdin:
        if line.strip() == DONE:
            break
        if process := _wait_for(record):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.Signals[line.strip()])
    else:
        if process := _wait_for(record):
            _kill_group(process, signal.SIGKILL)
    record.unlink(missing_ok=True)


def put(run_dir: Path, removed: list[str]) -> None:
    """Write the files of standard input, name to (mode, base64), into `run_dir`, and remove those of `removed`."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, (mode, data) in json.load(sys.stdin).items():
        path = run_dir / name
        path.write_bytes(base64.b64decode(data))
        path.chmod(mode)
    for name in removed:
        (run_dir / name).unlink(missing_ok=True)


def get(run_dir: Path, known: list[str]) -> None:
    """The files in `run_dir` itself that are not `known`, as `put` takes them."""
    found = {}
    for path in run_dir.iterdir() if run_dir.is_dir() else ():
        if path.is_file() and path.name not in known:
            found[path.name] = (path.stat().st_mode & 0o777, base64.b64encode(path.read_bytes()).decode())
    json.dump(found, sys.stdout)


def processes(run_dir: Path) -> None:
    """Token, host, process id and command of what runs."""
    json.dump([[*found, _command(found[2])] for found in _running(run_dir)], sys.stdout)


def daemon(run_dir: Path, socket: str) -> None:
    """The process id of the daemon that answers at a control socket; null if there is none."""
    try:
        json.dump(int(control.ask(Path(socket), "status")["process"]), sys.stdout)
    except NatfError:
        json.dump(None, sys.stdout)


def end(run_dir: Path) -> None:
    """End every process and remove `run_dir`."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        for _, _, process in _running(run_dir):
            _kill_group(process, number)
        deadline = time.monotonic() + patience
        while any(_running(run_dir)) and time.monotonic() < deadline:
            time.sleep(_POLL)
    shutil.rmtree(run_dir, ignore_errors=True)


def _processes(run_dir: Path) -> Path:
    return run_dir / "process"


def _wait_for(record: Path) -> int | None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(record.read_text().split()[0])
        time.sleep(_POLL)
    return None


def _running(run_dir: Path) -> Iterator[tuple[str, str, int]]:
    directory = _processes(run_dir)
    for record in sorted(directory.iterdir()) if directory.is_dir() else ():
        process, host = record.read_text().split()
        if _lives(int(process)):
            yield record.name, host, int(process)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in _ps(process, "stat")


def _command(process: int) -> str:
    return _ps(process, "command")


def _ps(process: int, column: str) -> str:
    look = ["ps", "-o", f"{column}=", "-p", str(process)]
    return subprocess.run(look, capture_output=True, text=True, check=False).stdout.strip()


def _kill_group(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)


_ACTIONS: dict[str, Callable[..., None]] = {
    action.__name__: action for action in (run, lifeline, put, get, processes, daemon, end)
}


def main() -> None:
    request = json.loads(base64.urlsafe_b64decode(sys.argv[1]))
    action = _ACTIONS[request.pop("action")]
    action(Path(request.pop("run_dir")), **request)


if __name__ == "__main__":
    main()
