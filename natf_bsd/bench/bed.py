"""The lab of figure 1 as a bed for measurements: both daemons, a static port forward beside them, a server on alice."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from natf_bsd.bench import load
from natf_bsd.errors import NatfError
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import LabProcess

_INSTANCE = "bench"
_ALICE = "192.168.0.2"
_FORWARDED = 9100
NAME, DOMAIN, ROUTER, EN = "alice", "home.example.net", "203.0.113.1", "203.0.113.10"

_FORWARD = f"""\
*nat
-A PREROUTING -i wan -p tcp --dport {_FORWARDED} -j DNAT --to-destination {_ALICE}:{load.PORT}
-A PREROUTING -i wan -p udp --dport {_FORWARDED} -j DNAT --to-destination {_ALICE}:{load.PORT}
COMMIT
*filter
-I FORWARD -m conntrack --ctstate DNAT -j ACCEPT
COMMIT
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How alice's server is reached from the external node: `target` is ADDRESS:PORT."""

    name: str
    target: str


class Bed:
    """`forward` first, then `natf`. Both daemons run; `restart_en` gives a fresh external node."""

    def __init__(self, lab: Figure1Lab) -> None:
        self._lab = lab
        self.forward = Way("port forward", f"{ROUTER}:{_FORWARDED}")
        self.natf = Way("NAT-f", f"{self._resolve()}:{load.PORT}")

    @property
    def ways(self) -> tuple[Way, Way]:
        return self.forward, self.natf

    def client(self, *arguments: object) -> Any:
        """What a load maker on the external node measured."""
        argv = [sys.executable, "-m", "natf_bsd.bench.load", *map(str, arguments)]
        done = self._lab.exec("en", argv, capture_output=True, timeout=300)
        if done.returncode:
            raise NatfError(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def trace(self, role: str) -> dict[str, Any]:
        """The trace points of the daemon of `role`."""
        return dict(json.loads(self._lab.natf(role, "status", "--json").stdout)[role]["trace"])

    def processor_seconds(self, role: str) -> float:
        """What the daemon of `role` has used of a processor so far (proc(5), utime and stime)."""
        process: LabProcess | None = getattr(self._lab, role)
        if process is None:
            raise NatfError(f"no daemon of role {role}")
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def restart_en(self) -> None:
        """A fresh external node, that has never heard of the router."""
        self._stop("en")
        for file in (self._lab.run_dir / "en" / "state").glob("en.journal*"):
            file.unlink()
        self._lab.start_en()
        self.natf = Way("NAT-f", f"{self._resolve()}:{load.PORT}")

    def stop(self) -> None:
        """End both daemons."""
        for role in "en", "router":
            self._stop(role)

    def _stop(self, role: str) -> None:
        process: LabProcess | None = getattr(self._lab, role)
        if process is not None and process.stop():
            raise NatfError(process.output())

    def _resolve(self) -> str:
        program = f"import socket; print(socket.gethostbyname('{NAME}.{DOMAIN}'))"
        return self._lab.exec("en", [sys.executable, "-c", program], check=True).stdout.strip()


@contextmanager
def made(under: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Iterator[Bed]:
    """A bed, gone afterwards; a role's daemon with the interpreter's arguments in `under`. NatfError where there can be
    none."""
    if sys.platform != "linux":
        raise NatfError("natf bench needs Linux: the port forward it compares with is one of netfilter")
    lab = Figure1Lab(_INSTANCE)
    lab.under = under
    with lab:
        lab.exec("router", ["iptables-restore", "-w", "--noflush"], input=_FORWARD, check=True)
        server = lab.spawn("alice", [sys.executable, "-m", "natf_bsd.bench.load", "serve"], name="load")
        lab.wait_until(lambda: load.READY in server.output(), server)
        # One source asks for everything here.
        lab.start_router(source_rate=0, cookies="never")
        lab.start_en()
        yield Bed(lab)
