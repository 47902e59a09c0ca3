"""A FreeBSD made of stand-ins, on which the rc.d scripts run under this system's /bin/sh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
ROLES = ("en", "router")
RELEASES = ("13", "14", "15")
"""Of FreeBSD whose daemon(8) differ; 12 is as 13."""

_PATIENCE = 60.0
"""Seconds until a process has done what takes milliseconds."""


class Machine:
    """Has both roles enabled, modules loaded, and nothing running; `state` holds what the stand-ins go by."""

    def __init__(self, directory: Path, release: str = "14") -> None:
        self.state = directory / "state"
        self.run_dir = directory / "run" / "natf"
        self._prefix = directory / "prefix"
        self._bin = directory / "bin"
        for folder in (self.state / "titles", self._prefix / "bin", self._prefix / "libexec" / "natf", self._bin):
            folder.mkdir(parents=True)
        (directory / "run").mkdir()
        self.config = self._prefix / "etc" / "natf.toml"
        self.config.parent.mkdir()
        self.config.write_text("[en]\n[router]\n")
        for name in ("alive", "daemon", "pwait", "ps", "kldstat", "kldload", "sysctl", "kenv"):
            shutil.copy(STAND_INS / name, self._bin)
        shutil.copy(STAND_INS / "natf", self._prefix / "bin")
        shutil.copy(STAND_INS / "rc.subr", directory / "rc.subr")
        self._paths = {
            "/etc/rc.subr\n": f"{directory}/rc.subr\n",
            "%%PREFIX%%": str(self._prefix),
            "/usr/sbin/daemon": f"{self._bin}/daemon",
            '"/var/run/${name}.pid"': f'"{directory}/run/${{name}}.pid"',
            "/var/run/natf}": f"{self.run_dir}}}",
        }
        self._install(ROOT / "rc.d" / "natf.subr", self._prefix / "libexec" / "natf" / "natf.subr", 3)
        for role in (*ROLES, "ddns"):
            self._install(ROOT / "rc.d" / f"natf_{role}", self._bin / f"natf_{role}", 2)
        self.tell(
            release=release,
            delay="0.2",
            modules="ipfw\nipdivert\nipfw_nat\n",
            calls="",
            processes="",
            run_dir=str(self.run_dir),
            **{
                "security.jail.jailed": "0\n",
                "rc.conf": "natf_en_enable=YES\nnatf_router_enable=YES\nnatf_ddns_enable=YES\n",
            },
        )

    def _install(self, source: Path, target: Path, least: int) -> None:
        """With the stand-ins' paths in the place of the system's; at least so many of them must be in `source`."""
        text = source.read_text()
        assert sum(path in text for path in self._paths) >= least
        for path, ours in self._paths.items():
            text = text.replace(path, ours)
        target.write_text(text)
        target.chmod(0o555)

    def tell(self, **files: str) -> None:
        for name, text in files.items():
            (self.state / name).write_text(text)

    def forget(self, name: str) -> None:
        (self.state / name).unlink()

    def rc_conf(self, line: str) -> None:
        with (self.state / "rc.conf").open("a") as file:
            file.write(f"{line}\n")

    def called_by(self, command: str) -> None:
        """From now on the scripts' parent seems to be this command."""
        self.tell(**{f"titles/{os.getpid()}": command})

    def service(self, role: str, verb: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.shell(f'"{self.script(role)}" {verb}', **environment)

    def shell(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`exec`: so that a single command's parent is this process."""
        return subprocess.run(
            ["/bin/sh", "-c", command if "|" in command else f"exec {command}"],
            env={
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                "STATE": str(self.state),
                "REAL_PS": shutil.which("ps") or "ps",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def script(self, role: str) -> Path:
        return self._bin / f"natf_{role}"

    def calls(self, program: str = "") -> list[str]:
        lines = (self.state / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(program)]

    def natf(self, role: str, verb: str) -> str:
        """How a call of natf(8) looks in `calls`."""
        words = f"cleanup {role}" if verb == "cleanup" else f"{role} {verb}"
        return f"natf --config {self.config} {words}"

    def daemon(self, role: str) -> int | None:
        """The process in the lock, if it lives."""
        try:
            text = (self.run_dir / f"{role}.lock").read_text().strip()
        except FileNotFoundError:
            return None
        return int(text) if text and _lives(int(text)) else None

    def pidfile(self, role: str) -> Path:
        return self.run_dir.parent / f"natf_{role}.pid"

    def supervisor(self, role: str) -> int | None:
        try:
            process = int(self.pidfile(role).read_text())
        except FileNotFoundError:
            return None
        return process if _lives(process) else None

    def has_rules(self, role: str) -> bool:
        return (self.state / f"rules.{role}").exists()

    def start(self, role: str) -> tuple[int, int]:
        """Start it and wait until it works: supervisor and daemon."""
        done = self.service(role, "start")
        assert done.returncode == 0, done.stderr
        return self.processes(role)

    def processes(self, role: str) -> tuple[int, int]:
        """Supervisor and daemon, once both are there."""
        wait_for(lambda: self.daemon(role) is not None)
        supervisor, daemon = self.supervisor(role), self.daemon(role)
        assert supervisor is not None and daemon is not None
        return supervisor, daemon

    def kill(self, *processes: int) -> None:
        for process in processes:
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: not any(map(_lives, processes)))

    def end(self) -> None:
        """Ends every process the stand-ins have started, as far as they are theirs still."""
        for process in map(int, (self.state / "processes").read_text().split()):
            if str(self._prefix.parent) in _command(process):
                self.kill(process)

    def left(self) -> list[int]:
        """Processes started that still live."""
        started = map(int, (self.state / "processes").read_text().split())
        return [process for process in started if _lives(process)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def _ps(process: int, column: str) -> str:
    done = subprocess.run(
        ["ps", "-ww", "-o", f"{column}=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _lives(process: int) -> bool:
    return _ps(process, "stat")[:1] not in ("", "Z")


def _command(process: int) -> str:
    return _ps(process, "command")
