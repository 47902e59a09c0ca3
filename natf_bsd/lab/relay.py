"""A process on a machine reached by ssh, as if it were a child here: `python -m natf_bsd.lab.relay TASK`.

Standard input, output and exit status are ssh's. Signals sent to the relay reach the process by a second connection,
the lifeline; when the relay is killed the lifeline breaks, and the process is killed. Files of the lab's run_dir are
carried: there before the process starts and whenever they change, back, if they are new, after it has ended.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.lab import far_end

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_TICK = 0.05
"""Seconds between two looks at the files: an edited table is obeyed within a second (router/daemon)."""

_LARGEST = 1 << 20
"""Bytes of a file that is carried there: configuration, tables, keys. What is larger was made by a process."""

_SSH_FAILED = 255
"""ssh(1): also its exit status when the command was ended by a signal."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How to have `far_end` done there. `ssh`: the command up to the machine's name, with it."""

    ssh: tuple[str, ...]
    python: str
    run_dir: Path

    def command(self, action: str, **request: Any) -> list[str]:
        text = far_end.encoded({"action": action, "run_dir": str(self.run_dir), **request})
        return [*self.ssh, "sudo", "-n", self.python, "-m", "natf_bsd.lab.far_end", text]

    def ask(self, action: str, stdin: str = "", **request: Any) -> str:
        """What `action` wrote; NatfError, with its error output, when it or ssh failed."""
        done = subprocess.run(self.command(action, **request), input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NatfError(f"{self.ssh[-1]}, {action}: {done.stderr.strip() or f'status {done.returncode}'}")
        return done.stdout


class Carrier:
    """Carries the files in a machine's run_dir itself, not those of its folders. What was carried is kept in a file:
    several relays serve one machine, and a file that a process changed there is not overwritten by what it was."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._directory = machine.run_dir
        self._record = machine.run_dir / "carried" / machine.ssh[-1]

    def there(self) -> None:
        """Files that are new or changed here, and the removal of those that are gone."""
        if self._changes(self._known()) == ({}, []):
            return
        with self._locked():
            known = self._known()
            changed, removed = self._changes(known)
            files = {name: _packed(self._directory / name) for name in changed}
            self._machine.ask("put", json.dumps(files), removed=removed)
            kept = {name: stamp for name, stamp in known.items() if name not in removed}
            self._record.write_text(json.dumps(kept | changed))

    def back(self) -> None:
        """Files that are there and not here."""
        with self._locked():
            here = [path.name for path in self._directory.iterdir()]
            files = json.loads(self._machine.ask("get", known=here))
            for name, (mode, data) in files.items():
                path = self._directory / name
                path.write_bytes(base64.b64decode(data))
                path.chmod(mode)
            stamps = {name: _stamp(self._directory / name) for name in files}
            self._record.write_text(json.dumps(self._known() | stamps))

    def _changes(self, known: dict[str, list[int]]) -> tuple[dict[str, list[int]], list[str]]:
        """Stamps of the new and changed, taken before they are read: what changes after that is carried once more."""
        here = {path.name: _stamp(path) for path in self._directory.iterdir() if path.is_file()}
        changed = {name: stamp for name, stamp in here.items() if stamp[1] <= _LARGEST and known.get(name) != stamp}
        return changed, [name for name in known if name not in here]

    def _known(self) -> dict[str, list[int]]:
        try:
            return dict(json.loads(self._record.read_text()))
        except (OSError, ValueError):
            return {}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._record.parent.mkdir(exist_ok=True)
        with self._record.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_mtime_ns, found.st_size]


def _packed(path: Path) -> tuple[int, str]:
    return path.stat().st_mode & 0o777, base64.b64encode(path.read_bytes()).decode()


class Relay:
    """One process there. `play` returns how it ended, as subprocess does: negative for a signal."""

    def __init__(self, machine: Machine, host: str, cwd: str, argv: list[str]) -> None:
        self._machine = machine
        self._carrier = Carrier(machine)
        self._token = str(os.getpid())
        self._command = machine.command("run", token=self._token, host=host, cwd=cwd, argv=argv)
        self._last_signal = 0
        self._lifeline = -1

    def play(self) -> int:
        self._carrier.there()
        end, self._lifeline = os.pipe()
        lifeline = subprocess.Popen(
            self._machine.command("lifeline", token=self._token),
            stdin=end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(end)
        process = subprocess.Popen(self._command, start_new_session=True)
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        while (status := _ended(process)) is None:
            with contextlib.suppress(FileNotFoundError):  # the lab's end removes the directory
                self._carrier.there()
        self._say(far_end.DONE)
        lifeline.wait()
        with contextlib.suppress(FileNotFoundError):
            self._carrier.back()
        return -self._last_signal if status == _SSH_FAILED and self._last_signal else status

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._last_signal = number
        self._say(signal.Signals(number).name)

    def _say(self, word: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, f"{word}\n".encode())


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_TICK)
    return None


def argv(machine: Machine, host: str, cwd: Path, argv: list[str]) -> list[str]:
    """The command line of a relay."""
    task = {"machine": asdict(machine) | {"run_dir": str(machine.run_dir)}, "host": host, "cwd": str(cwd), "argv": argv}
    return [sys.executable, "-m", "natf_bsd.lab.relay", json.dumps(task)]


def main() -> None:
    task = json.loads(sys.argv[1])
    machine = task.pop("machine")
    relay = Relay(Machine(tuple(machine["ssh"]), machine["python"], Path(machine["run_dir"])), **task)
    try:
        status = relay.play()
    except NatfError as error:
        sys.exit(str(error))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
