"""What the labs of the figures have in common: hosts that run daemons of ours, with a configuration file each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tomlkit

from natf_bsd.lab.lab import Lab, LabProcess


class DaemonLab(Lab):
    """See Lab. A host has one configuration file, with a section for each role ("en", "router") it has."""

    under: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Arguments of the interpreter that runs the daemon of a role: `-m cProfile`, say."""

    @property
    def resolvers(self) -> list[str]:
        """The addresses under which programs of the lab ask its DNS servers, whatever name servers the host has."""
        served = self.platform.name_servers(self.topology).values()
        return sorted({self.topology.nameserver, *(address for addresses in served for address in addresses)})

    def config(self, host: str) -> Path:
        """The configuration file of `host`."""
        return self.run_dir / f"{host}.toml"

    def natf(self, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `natf` on `host` with its configuration: natf("en", "status", "--json")."""
        return self.exec(host, self._natf(host, *arguments))

    def _write_config(self, host: str, sections: dict[str, dict[str, object]]) -> None:
        self.config(host).write_text(tomlkit.dumps(sections))

    def _start(self, host: str, role: str, name: str) -> LabProcess:
        """Start a daemon, with a log of this `name`, and return when it is ready.

        NatfError with its output when it ends or takes more than a minute.
        """
        interpreter, *arguments = self._natf(host, role, "run")
        process = self.spawn(host, [interpreter, *self.under.get(role, ()), *arguments], name=name)
        self.wait_until(lambda: self._pid(host, role) == process.pid, process)
        return process

    def _pid(self, host: str, role: str) -> int | None:
        """The daemon of `role` on `host` that answers, whoever started it."""
        return self.platform.daemon_at(host, self._daemon_dir(host) / f"{role}.sock")

    def _natf(self, host: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "natf_bsd.cli", "--config", str(self.config(host)), *arguments]

    def _daemon_dir(self, host: str) -> Path:
        """The run_dir of the daemons on `host`; those of both roles share it, as on a host with the defaults."""
        return self.run_dir / host

    def _router_settings(self, host: str, act: Path) -> dict[str, object]:
        """The section [router] of `host`, with the access control table `act`."""
        return {"interface": "wan", "act": str(act), "run_dir": str(self._daemon_dir(host))}

    def _en_settings(self, host: str, interface: str, domains: Sequence[str]) -> dict[str, object]:
        """The section [en] of `host`, for the home domains `domains`; with `resolvers` where programs of the lab ask
        others than the topology's name server.
        """
        run_dir = str(self._daemon_dir(host))
        settings: dict[str, object] = {"interface": interface, "home_domains": list(domains)}
        settings |= {"run_dir": run_dir, "state_dir": f"{run_dir}/state"}
        asked = self.resolvers
        return settings | ({"resolvers": asked} if asked != [self.topology.nameserver] else {})
