"""Labs on the FreeBSD machines of vagrant/, by ssh: for the end-to-end tests (`vagrant/e2e`).

The machines are there, with their interfaces, addresses, NAT, name server and the inside hosts' servers; `up` only
looks whether they answer. Several hosts of a topology may be addresses of one machine (machines.json).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.lab import relay
from natf_bsd.lab.platform import FIRST_INSTANCE, HostProcess
from natf_bsd.lab.topology import Topology

DIRECTORY = Path(__file__).resolve().parents[2] / "vagrant"
MACHINES = DIRECTORY / "machines.json"
SSH_CONFIG = DIRECTORY / "ssh-config"
"""What `vagrant ssh-config` writes."""

_LONGEST_CONNECT = 10
"""Seconds, for the first connection to a machine."""


class VagrantPlatform:
    """One lab instance on the machines; a second one at the same time would disturb the first."""

    def __init__(self, instance: str = FIRST_INSTANCE) -> None:
        # A short path: a socket of ssh's lies in it, and it is the same one there and here.
        self.run_dir = Path(f"/tmp/natf-lab-vagrant-{os.getuid()}") / instance

    has_servers = True
    """The machines' own; a lab need not start its topology's."""

    def is_supported(self) -> str | None:
        if not shutil.which("ssh"):
            return "missing: ssh"
        if not SSH_CONFIG.exists():
            return f"{SSH_CONFIG} does not exist; vagrant/e2e makes it when the machines are up"
        return None

    def lacks_for_daemons(self) -> str:
        """What the demo would need; the daemons miss nothing."""
        return "packets cannot be watched over ssh as they pass; vagrant/e2e is what tries the machines"

    def description(self) -> str:
        return "FreeBSD machines of vagrant/, ipfw and natd, by ssh"

    def up(self, topology: Topology) -> None:
        for name in self._names(topology):
            self._connect(name)
            self._machine(name).ask("end")

    def down(self, topology: Topology) -> None:
        if self.is_supported() is None:
            for name in self._names(topology):
                self._machine(name).ask("end")
                self._control(name, "exit")

    def is_up(self, topology: Topology) -> bool:
        return all(self._socket(name).is_socket() for name in self._names(topology))

    def location(self, host: str) -> str:
        return f"vagrant {_machine_of(host)}"

    def name_servers(self, topology: Topology) -> Mapping[str, Sequence[str]]:
        """None to be started: ddns has a real one."""
        return {}

    def exec_argv(self, host: str, argv: Sequence[str], cwd: Path) -> list[str]:
        machine = self._machine(_machine_of(host))
        program = machine.python if argv[0] == sys.executable else argv[0]
        return relay.argv(machine, host, cwd, [program, *argv[1:]])

    def processes(self) -> list[HostProcess]:
        """By the process ids of their relays: it is those one waits for and signals."""
        return [HostProcess(host, int(token), command) for host, token, _, command in self._running()]

    def daemon_at(self, host: str, socket: Path) -> int | None:
        """The relay of the daemon on `host` that answers at `socket`."""
        machine = self._machine(_machine_of(host))
        pid = json.loads(machine.ask("daemon", socket=str(socket)))
        return next((int(token) for _, token, there, _ in _processes(machine) if there == pid), None)

    def machine(self) -> list[str]:
        return []

    def _running(self) -> Iterator[tuple[str, str, int, str]]:
        for name in sorted(path.name.removeprefix("ssh-") for path in self.run_dir.glob("ssh-*")):
            yield from _processes(self._machine(name))

    def _names(self, topology: Topology) -> list[str]:
        return list(dict.fromkeys(_machine_of(host.name) for host in topology.hosts))

    def _machine(self, name: str) -> relay.Machine:
        python = f"/usr/local/bin/python{_facts()['python']}"
        return relay.Machine((*self._ssh(name), "-T", name), python, self.run_dir)

    def _ssh(self, name: str) -> tuple[str, ...]:
        return ("ssh", "-F", str(SSH_CONFIG), "-o", "BatchMode=yes", "-o", f"ControlPath={self._socket(name)}")

    def _socket(self, name: str) -> Path:
        """Of the one connection that all of ssh's to a machine share."""
        return self.run_dir / f"ssh-{name}"

    def _connect(self, name: str) -> None:
        # In the background, and on nobody's standard error: else who reads that would wait for it to close.
        options = ("-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-o", f"ConnectTimeout={_LONGEST_CONNECT}")
        log = self.run_dir / "log" / f"{name}-ssh.log"
        with log.open("ab") as output:
            done = subprocess.run(
                (*self._ssh(name), *options, "-f", "-N", name), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        if done.returncode:
            raise NatfError(f"{name} does not answer: {log.read_text().strip()}; vagrant up {name}")

    def _control(self, name: str, command: str) -> None:
        done = subprocess.run((*self._ssh(name), "-O", command, name), capture_output=True, text=True, check=False)
        if done.returncode and self._socket(name).is_socket():
            raise NatfError(f"{name}: {done.stderr.strip()}")


def _processes(machine: relay.Machine) -> Iterator[tuple[str, str, int, str]]:
    """Host, token, process id there, command."""
    for token, host, pid, command in json.loads(machine.ask("processes")):
        yield host, token, pid, command


def _facts() -> dict[str, Any]:
    return dict(json.loads(MACHINES.read_text()))


def _machine_of(host: str) -> str:
    """The machine that plays `host`."""
    return str(_facts()["hosts"].get(host, host))
