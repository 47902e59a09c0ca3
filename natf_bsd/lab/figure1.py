"""The paper's figure 1, with the daemons of its external node and its router: for tests, the demo and curious people.

Usage::

    with Figure1Lab() as lab:
        lab.start_router()
        lab.start_en()
        lab.exec("en", ["curl", "-s", "http://alice.home.example.net/"]).stdout
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from natf_bsd.lab import bad_link
from natf_bsd.lab.daemons import DaemonLab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.link import Link
from natf_bsd.lab.platform import FIRST_INSTANCE
from natf_bsd.lab.topology import FIGURE1, Topology, with_bad_link

ACT = """\
# name   address      action
alice    192.168.0.2  allow
bob      192.168.0.3  allow
eve      192.168.0.4  deny
"""
"""The router's access control table. Nobody is called mallory: an unknown name."""


class Figure1Lab(DaemonLab):
    """See Lab. The hosts "en" and "router" have the daemons of these roles. `en` and `router` are those that this
    object started last, None before."""

    def __init__(self, instance: str = FIRST_INSTANCE, topology: Topology = FIGURE1) -> None:
        super().__init__(topology, instance)
        self.en: LabProcess | None = None
        self.router: LabProcess | None = None

    def __enter__(self) -> Figure1Lab:
        self.up()
        return self

    @property
    def act(self) -> Path:
        """The router's access control table, to be edited while it runs."""
        return self.run_dir / "natf.act"

    def write_files(self) -> None:
        self.act.write_text(ACT)
        self.configure("en")
        self.configure("router")

    def configure(self, role: str, **settings: object) -> None:
        """Write the configuration file of `role` with `settings` beside the lab's own, for its next start."""
        self._write_config(role, {role: self._settings(role) | settings})

    def start_en(self, **settings: object) -> LabProcess:
        """Start the external node's daemon, with `settings` if any are given, and return when it is ready.

        NatfError with its output when it ends or takes more than a minute.
        """
        self.en = self._start_with("en", settings)
        return self.en

    def start_router(self, **settings: object) -> LabProcess:
        """As `start_en`, the router's."""
        self.router = self._start_with("router", settings)
        return self.router

    def is_running(self, role: str) -> bool:
        """Whether the daemon of `role` answers, whoever started it."""
        return self._pid(role, role) is not None

    def _start_with(self, role: str, settings: dict[str, object]) -> LabProcess:
        if settings:
            self.configure(role, **settings)
        return self._start(role, role, "natf")

    def _settings(self, role: str) -> dict[str, object]:
        if role == "router":
            return self._router_settings(role, self.act)
        return self._en_settings(role, "eth0", list(self.topology.zone.domains))


class BadLinkLab(Figure1Lab):
    """Figure 1 with a host "link" between the router and the public segment, for `bad_link` to run on."""

    def __init__(self, instance: str) -> None:
        super().__init__(instance, with_bad_link(FIGURE1))

    @contextmanager
    def linked(self, link: Link) -> Iterator[LabProcess]:
        """Inside, the link carries frames as `link` says; it has written what it did afterwards."""
        argv = [sys.executable, "-m", bad_link.__name__, "near", "far", json.dumps(asdict(link))]
        process = self.spawn("link", argv, name="link")
        self.wait_until(lambda: bad_link.READY in process.output(), process)
        try:
            yield process
        finally:
            process.stop()
