"""What a kind of machine must be able to do to carry a lab, and the choice of the one for this system."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from natf_bsd.errors import NatfError
from natf_bsd.lab.topology import Topology
from natf_bsd.ops import control

FIRST_INSTANCE = "figure1"
"""The instance of `natf lab`; tests and the demo have others beside it."""


@dataclass(frozen=True, slots=True)
class HostProcess:
    """A process that runs on a host of a lab."""

    host: str
    pid: int
    command: str


class LabPlatform(Protocol):
    """Makes the hosts and segments of one lab instance, and removes them. Instances do not see each other."""

    run_dir: Path
    """Where this instance keeps its files; the lab's hosts see it under the same path."""

    has_servers: bool
    """Its hosts have the servers of their topology already: a lab starts none."""

    def is_supported(self) -> str | None:
        """Why labs are impossible here, and what to do about it; None when they are possible."""

    def lacks_for_daemons(self) -> str | None:
        """What the router's daemon would miss where a lab is possible; None when it would miss nothing."""

    def description(self) -> str:
        """What this instance is made of, in a line; when it is not up, what it would be made of."""

    def up(self, topology: Topology) -> None:
        """Make everything; `run_dir` exists. NatfError when that fails; what was made till then is for `down`."""

    def down(self, topology: Topology) -> None:
        """End every process on the hosts and remove everything but `run_dir`.

        Needs no memory of `up`: whoever called that may have been killed.
        """

    def is_up(self, topology: Topology) -> bool:
        """Whether every host exists. Says nothing about what runs on them."""

    def location(self, host: str) -> str:
        """What a person calls the host on this system: a namespace, a jail."""

    def name_servers(self, topology: Topology) -> Mapping[str, Sequence[str]]:
        """By host, the addresses it must serve DNS under, so that a program on any host is answered by the lab;
        a host of a home hands on what it is asked."""

    def exec_argv(self, host: str, argv: Sequence[str], cwd: Path) -> list[str]:
        """The command that runs `argv` on `host` in directory `cwd`. The process it starts becomes `argv`: same pid."""

    def processes(self) -> list[HostProcess]:
        """What was started by `exec_argv` and runs, wherever it was started from."""

    def daemon_at(self, host: str, socket: Path) -> int | None:
        """The daemon on `host` that answers at its control socket, by the process id of what `exec_argv` started."""

    def machine(self) -> list[str]:
        """This machine's own hosts of labs, interfaces and mounts, as far as we may look: no lab changes them. What by
        its name is somebody else's is left out where that can be told: others go on working meanwhile."""


def daemon_here(socket: Path) -> int | None:
    """`LabPlatform.daemon_at` where hosts share this machine's files and processes."""
    try:
        return int(control.ask(socket, "status")["process"])
    except NatfError:
        return None


def lab_platform(instance: str) -> LabPlatform:
    """The platform of this system, or with NATF_LAB=vagrant that of vagrant/. NatfError where there is none."""
    if os.environ.get("NATF_LAB") == "vagrant":
        from natf_bsd.lab.vagrant import VagrantPlatform

        return VagrantPlatform(instance)
    if sys.platform.startswith("freebsd"):
        from natf_bsd.lab.jails import JailPlatform

        return JailPlatform(instance)
    if sys.platform == "linux":
        from natf_bsd.lab.netns import NetnsPlatform

        return NetnsPlatform(instance)
    raise NatfError(f"no lab on {sys.platform}: only network namespaces of Linux and vnet jails of FreeBSD")
