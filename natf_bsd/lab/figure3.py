"""The paper's figure 3: two homes with the same private addresses, whose routers do both parts of NAT-f.

Usage::

    with Figure3Lab() as lab:
        lab.start()
        lab.exec("alice", ["curl", "-s", "http://carol.home2.example.net/"]).stdout
"""

from __future__ import annotations

from pathlib import Path

from natf_bsd.lab.daemons import DaemonLab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.topology import FIGURE3

INSTANCE = "figure3"

HOMES = {"router": "home.example.net", "router2": "home2.example.net"}
"""Each router's home domain."""

ACTS = {
    "router": "alice 192.168.0.2 allow\nbob 192.168.0.3 allow\n",
    "router2": "carol 192.168.0.2 allow\ndave 192.168.0.3 allow\neve 192.168.0.4 deny\n",
}

ROLES = ("router", "en")


class Figure3Lab(DaemonLab):
    """See Lab. `daemons` are those that this object started last, by host and role."""

    def __init__(self, instance: str = INSTANCE) -> None:
        super().__init__(FIGURE3, instance)
        self.daemons: dict[tuple[str, str], LabProcess] = {}

    def __enter__(self) -> Figure3Lab:
        self.up()
        return self

    def write_files(self) -> None:
        for host, act in ACTS.items():
            self._act(host).write_text(act)
            self._write_config(host, self._sections(host))

    def start(self) -> None:
        """Start both daemons of both routers, and return when they are ready. NatfError with the output of one that
        ends or takes more than a minute."""
        for host in HOMES:
            for role in ROLES:
                self.start_one(host, role)

    def start_one(self, host: str, role: str) -> LabProcess:
        """As `start`, for one of them."""
        self.daemons[host, role] = process = self._start(host, role, f"natf-{role}")
        return process

    def _act(self, host: str) -> Path:
        return self.run_dir / f"{host}.act"

    def _sections(self, host: str) -> dict[str, dict[str, object]]:
        """An external node for the other home: inside hosts have each other without NAT-f."""
        others = [domain for router, domain in HOMES.items() if router != host]
        return {"router": self._router_settings(host, self._act(host)), "en": self._en_settings(host, "wan", others)}
