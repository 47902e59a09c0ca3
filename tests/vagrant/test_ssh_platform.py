"""Processes on machines behind ssh are like children here: output, status, signals, death, files. `data/ssh` stands in
for ssh: it gives each machine a file system of its own at the lab's run_dir."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.lab import vagrant
from natf_bsd.lab.topology import FIGURE1
from natf_bsd.lab.vagrant import VagrantPlatform
from tests.vagrant.machines import LAB, MACHINES, ROOT

DATA = Path(__file__).parent / "data"
SOON = 10.0  # s; on a busy machine


def has_user_namespaces() -> bool:
    probe = ["unshare", "-rm", "true"]
    return bool(shutil.which("unshare")) and not subprocess.run(probe, capture_output=True, check=False).returncode


@pytest.fixture(autouse=True, scope="module")
def _needs_user_namespaces() -> None:
    if not has_user_namespaces():
        pytest.skip("no user namespaces here (Linux only)")


LOOP = "while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the machines have at run_dir."""
    return tmp_path_factory.mktemp("far")


@pytest.fixture(scope="module")
def platform(far: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VagrantPlatform]:
    path = tmp_path_factory.mktemp("near")
    for name in ("ssh", "sudo"):
        (path / name).symlink_to(DATA / name)
    config = path / "ssh-config"
    config.touch()
    # A short path, for the names of sockets.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as run_dir:
        patch.setattr(vagrant, "SSH_CONFIG", config)
        for name, value in {
            "PATH": f"{path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHON": sys.executable,
            "RUN_DIR": run_dir,
            "FAR": str(far),
        }.items():
            patch.setenv(name, value)
        platform = VagrantPlatform("test")
        platform.run_dir = Path(run_dir)
        (platform.run_dir / "log").mkdir()
        platform.up(FIGURE1)
        yield platform
        platform.down(FIGURE1)


def start(platform: VagrantPlatform, host: str, *argv: str) -> subprocess.Popen[str]:
    command = platform.exec_argv(host, argv, Path("/"))
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(platform: VagrantPlatform, host: str, *argv: str, stdin: str = "") -> tuple[int, str, str]:
    process = start(platform, host, *argv)
    output, error = process.communicate(stdin, timeout=SOON)
    return process.returncode, output, error


def started(platform: VagrantPlatform, host: str, script: str) -> subprocess.Popen[str]:
    """`script`, as soon as it has said "ready"."""
    process = start(platform, host, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def group(number: int) -> list[str]:
    """The states of a process group's members, but for those that only wait to be collected."""
    lines = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [state for own, state in map(str.split, lines) if int(own) == number and "Z" not in state]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_output_input_and_status_pass(platform: VagrantPlatform) -> None:
    assert ran(platform, "en", "sh", "-c", "cat; echo oh >&2; exit 7", stdin="hello") == (7, "hello", "oh\n")


def test_arguments_arrive_as_they_are(platform: VagrantPlatform) -> None:
    odd = ["two words", "new\nline", 'it\'s "quoted"', "$HOME `id` *!", "", "-n"]
    assert ran(platform, "en", "printf", "<%s>", *odd)[1] == "".join(f"<{word}>" for word in odd)


def test_our_interpreter_is_the_machines(platform: VagrantPlatform) -> None:
    argv = platform.exec_argv("en", [sys.executable, "-m", "natf_bsd.cli"], Path("/"))
    assert f'["/usr/local/bin/python{LAB["python"]}", "-m", "natf_bsd.cli"]' in argv[-1]


def test_a_command_that_is_not_there_is_said_to_be(platform: VagrantPlatform) -> None:
    assert ran(platform, "en", "nosuch", "command") == (1, "", "nosuch: No such file or directory\n")


@pytest.mark.parametrize(("host", "machine"), [("plain", "ddns"), ("eve", "bob"), ("alice", "alice")])
def test_hosts_are_on_their_machines(platform: VagrantPlatform, far: Path, host: str, machine: str) -> None:
    process = started(platform, host, f"echo ready; {LOOP}")
    assert [path.name for path in (far / machine / "process").iterdir()] == [str(process.pid)]
    assert platform.location(host) == f"vagrant {machine}"
    process.kill()
    process.communicate()


def test_signals_reach_the_process(platform: VagrantPlatform) -> None:
    script = f"trap 'echo again' USR1; trap 'echo bye; exit 3' TERM; echo ready; {LOOP}"
    process = started(platform, "router", script)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "again\n"
    process.terminate()
    assert process.communicate(timeout=SOON)[0] == "bye\n"
    assert process.returncode == 3


def test_a_process_that_a_signal_ends_ends_the_same_way_here(platform: VagrantPlatform) -> None:
    process = started(platform, "router", "echo ready; exec sleep 1000")
    process.terminate()
    process.communicate(timeout=SOON)
    # ssh says 255 of a process that was killed; the stand-in's shell 128 + 15.
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_who_is_killed_here_is_killed_there_with_its_children(platform: VagrantPlatform, far: Path) -> None:
    process = started(platform, "en", f"sleep 1000 & echo ready; trap '' TERM; {LOOP}")
    [(_, token, pid, _)] = platform._running()
    process.kill()
    process.wait()
    assert token == str(process.pid)
    assert eventually(lambda: not platform.processes())
    assert eventually(lambda: not group(pid))


def test_what_runs_is_known_by_its_process_here(platform: VagrantPlatform) -> None:
    process = started(platform, "alice", "echo ready; exec sleep 1000")
    [found] = platform.processes()
    assert (found.host, found.pid, found.command) == ("alice", process.pid, "sleep 1000")
    process.kill()
    process.communicate()


DAEMON = """
import os, pathlib, sys
from natf_bsd.ops.control import ControlServer
from natf_bsd.ops.loop import Loop
loop = Loop(lambda: None, lambda now: None)
server = ControlServer(pathlib.Path(sys.argv[1]), loop, {"status": lambda request: {"process": os.getpid()}})
print("ready", flush=True)
loop.run()
"""


def test_a_daemon_is_known_by_its_process_here(platform: VagrantPlatform) -> None:
    socket = platform.run_dir / "router.sock"
    assert platform.daemon_at("router", socket) is None
    process = started(platform, "router", f"exec {sys.executable} -c '{DAEMON}' {socket}")
    assert platform.daemon_at("router", socket) == process.pid
    process.kill()
    process.communicate()


def test_files_are_there_before_the_process_is(platform: VagrantPlatform) -> None:
    path = platform.run_dir / "natf.act"
    path.write_text("alice 192.168.0.2 allow\n")
    path.chmod(0o600)
    assert ran(platform, "router", "cat", str(path))[1] == "alice 192.168.0.2 allow\n"
    assert ran(platform, "router", "ls", "-l", str(path))[1].startswith("-rw------- ")


def test_changes_follow_while_it_runs(platform: VagrantPlatform, far: Path) -> None:
    table = platform.run_dir / "natf.act"
    table.write_text("one\n")
    process = started(platform, "router", f"echo ready; {LOOP}")
    there = far / "router" / "natf.act"
    table.write_text("another\n")
    assert eventually(lambda: there.read_text() == "another\n")
    table.unlink()
    assert eventually(lambda: not there.exists())
    process.kill()
    process.communicate()


def test_what_a_process_changed_there_is_not_undone(platform: VagrantPlatform) -> None:
    table = platform.run_dir / "natf.act"
    table.write_text("before\n")
    assert ran(platform, "router", "sh", "-c", f"echo after >{table}")[0] == 0
    assert ran(platform, "router", "cat", str(table))[1] == "after\n"
    table.write_text("reset\n")
    assert ran(platform, "router", "cat", str(table))[1] == "reset\n"


def test_what_a_process_made_comes_back_and_goes_where_it_is_needed(platform: VagrantPlatform) -> None:
    key = platform.run_dir / "key"
    ran(platform, "router", "sh", "-c", f"umask 077; echo secret >{key}; mkdir {platform.run_dir}/state")
    assert key.read_text() == "secret\n"
    assert key.stat().st_mode & 0o777 == 0o600
    assert not (platform.run_dir / "state").exists(), "a daemon's own folders stay there"
    assert ran(platform, "en", "cat", str(key))[1] == "secret\n"


def test_down_ends_what_runs_and_forgets_the_machines(platform: VagrantPlatform, far: Path) -> None:
    process = started(platform, "bob", f"trap '' TERM; echo ready; {LOOP}")
    assert platform.is_up(FIGURE1)
    platform.down(FIGURE1)
    process.communicate(timeout=SOON)
    assert process.returncode != 0
    assert not platform.is_up(FIGURE1)
    assert platform.processes() == []
    assert list((far / "bob").iterdir()) == []
    platform.up(FIGURE1)


def test_a_machine_that_does_not_answer_is_named(platform: VagrantPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNREACHABLE", "bob")
    with pytest.raises(NatfError, match="bob does not answer: Connection refused; vagrant up bob"):
        platform.up(FIGURE1)


def test_without_machines_it_says_what_makes_them(platform: VagrantPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.is_supported() is None
    monkeypatch.setattr(vagrant, "SSH_CONFIG", Path("/nosuch"))
    assert platform.is_supported() == "/nosuch does not exist; vagrant/e2e makes it when the machines are up"


def test_every_host_of_figure_1_has_a_machine() -> None:
    assert {vagrant._machine_of(host.name) for host in FIGURE1.hosts} <= set(MACHINES)
