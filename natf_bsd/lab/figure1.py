"""The paper's figure 1, with the daemons of its external node and its router: for tests, the demo and curious people.

Usage::

    with Figure1Lab() as lab:
        lab.start_router()
        lab.start_en()
        lab.exec("en", ["curl", "-s", "http://alice.home.example.net/"]).stdout
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tomlkit

from natf_bsd.lab.lab import Lab, LabProcess
from natf_bsd.lab.platform import FIRST_INSTANCE
from natf_bsd.lab.topology import FIGURE1

ACT = """\
# name   address      action
alice    192.168.0.2  allow
bob      192.168.0.3  allow
eve      192.168.0.4  deny
"""
"""The router's access control table. Nobody is called mallory: an unknown name."""


class Figure1Lab(Lab):
    """See Lab. `en` and `router` are the daemons that this object started last, None before."""

    def __init__(self, instance: str = FIRST_INSTANCE) -> None:
        super().__init__(FIGURE1, instance)
        self.en: LabProcess | None = None
        self.router: LabProcess | None = None

    def __enter__(self) -> Figure1Lab:
        self.up()
        return self

    @property
    def resolvers(self) -> list[str]:
        """The addresses under which programs of the lab ask its DNS servers, whatever name servers the host has."""
        served = self.platform.name_servers(self.topology).values()
        return sorted({self.topology.nameserver, *(address for addresses in served for address in addresses)})

    @property
    def act(self) -> Path:
        """The router's access control table, to be edited while it runs."""
        return self.run_dir / "natf.act"

    def config(self, role: str) -> Path:
        """The configuration file of `role`, "en" or "router"."""
        return self.run_dir / f"{role}.toml"

    def write_files(self) -> None:
        self.act.write_text(ACT)
        self.configure("en")
        self.configure("router")

    def configure(self, role: str, **settings: object) -> None:
        """Write the configuration file of `role` with `settings` beside the lab's own, for its next start."""
        self.config(role).write_text(tomlkit.dumps({role: self._settings(role) | settings}))

    def start_en(self, **settings: object) -> LabProcess:
        """Start the external node's daemon, with `settings` if any are given, and return when it is ready.

        NatfError with its output when it ends or takes more than a minute.
        """
        self.en = self._start("en", settings)
        return self.en

    def start_router(self, **settings: object) -> LabProcess:
        """As `start_en`, the router's."""
        self.router = self._start("router", settings)
        return self.router

    def is_running(self, role: str) -> bool:
        """Whether the daemon of `role` answers, whoever started it."""
        return self._pid(role) is not None

    def natf(self, role: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `natf` on the host of `role` with its configuration: natf("en", "status", "--json")."""
        return self.exec(role, self._natf(role, *arguments))

    def _start(self, role: str, settings: dict[str, object]) -> LabProcess:
        if settings:
            self.configure(role, **settings)
        process = self.spawn(role, self._natf(role, role, "run"), name="natf")
        self.wait_until(lambda: self._pid(role) == process.pid, process)
        return process

    def _pid(self, role: str) -> int | None:
        return self.platform.daemon_at(role, self.run_dir / role / f"{role}.sock")

    def _natf(self, role: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "natf_bsd.cli", "--config", str(self.config(role)), *arguments]

    def _settings(self, role: str) -> dict[str, object]:
        run_dir = str(self.run_dir / role)
        if role == "router":
            return {"interface": "wan", "act": str(self.act), "run_dir": run_dir}
        domains = list(self.topology.zone.domains)
        settings: dict[str, object] = {"interface": "eth0", "home_domains": domains}
        settings |= {"run_dir": run_dir, "state_dir": f"{run_dir}/state"}
        asked = self.resolvers
        return settings | ({"resolvers": asked} if asked != [self.topology.nameserver] else {})
