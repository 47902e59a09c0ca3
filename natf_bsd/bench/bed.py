"""The lab of figure 1 as a bed for measurements: both daemons, a static port forward beside them, a server on alice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from natf_bsd.bench import load
from natf_bsd.errors import NatfError
from natf_bsd.lab.figure1 import BadLinkLab, Figure1Lab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.link import Link

_INSTANCE = "bench"
ALICE, INSIDE = "192.168.0.2", "192.168.0.0/24"
_FORWARDED = 9100
NAME, DOMAIN, ROUTER, EN = "alice", "home.example.net", "203.0.113.1", "203.0.113.10"

_FORWARD = f"""\
*nat
-A PREROUTING -i wan -p tcp --dport {_FORWARDED} -j DNAT --to-destination {ALICE}:{load.OTHERS}
-A PREROUTING -i wan -p udp --dport {_FORWARDED} -j DNAT --to-destination {ALICE}:{load.OTHERS}
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


class Talk:
    """Lines to and from a program; NatfError with its complaint when it has ended."""

    def __init__(self, process: LabProcess) -> None:
        self._process = process

    def tell(self, line: str) -> None:
        if self._process.stdin is None:
            raise TypeError("the program was started with a pipe")
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        if self._process.stdout is None:
            raise TypeError("the program was started with a pipe")
        if not (line := self._process.stdout.readline()):
            self._process.wait()
            raise NatfError(f"{self._process.log.stem}: {self._process.output().strip()[-300:] or 'it has ended'}")
        return str(line).strip()

    def say(self, line: str) -> str:
        self.tell(line)
        return self.hear()

    def ask(self, number: int) -> float:
        return float(self.say(str(number)))


class Bed:
    """`forward` first, then `natf`. Both daemons run; `restart_en` gives a fresh external node."""

    def __init__(self, lab: Figure1Lab) -> None:
        self._lab = lab
        self.forward = Way("port forward", f"{ROUTER}:{_FORWARDED}")
        self.natf = Way("NAT-f", f"{self._resolve()}:{load.PORT}")

    @property
    def ways(self) -> tuple[Way, Way]:
        return self.forward, self.natf

    @property
    def folder(self) -> Path:
        """For files of whoever runs here; gone with the lab."""
        return self._lab.run_dir

    def run(self, host: str, *argv: str) -> str:
        """What a command on `host` wrote; NatfError with its complaint if it failed."""
        done = self._lab.exec(host, argv, capture_output=True, timeout=60)
        if done.returncode:
            raise NatfError(f"{' '.join(argv)}: {done.stderr.strip() or f'status {done.returncode}'}")
        return done.stdout

    def has(self, host: str, *argv: str) -> bool:
        """Whether a command on `host` succeeds."""
        return self._lab.exec(host, argv, capture_output=True, timeout=60).returncode == 0

    def spawn(self, host: str, *argv: str) -> LabProcess:
        return self._lab.spawn(host, argv)

    def wait_until(self, condition: Callable[[], bool], process: LabProcess) -> None:
        """NatfError with what `process` wrote if it ends before, or if a minute does."""
        self._lab.wait_until(condition, process)

    def wait_for(self, process: LabProcess, text: str) -> None:
        """Until `process` has written `text`; as `wait_until`."""
        self.wait_until(lambda: text in process.output(), process)

    @contextmanager
    def talking(self, host: str, module: str, *arguments: str) -> Iterator[Talk]:
        """A program of ours on `host` that answers line by line."""
        argv = [sys.executable, "-m", module, *arguments]
        name = module.rpartition(".")[2]
        process = self._lab.spawn(host, argv, name=name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield Talk(process)
        finally:
            process.stop()

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

    def restart_en(self, **settings: object) -> None:
        """A fresh external node, that has never heard of the router; with these settings from then on, if any."""
        self._stop("en")
        for file in (self._lab.run_dir / "en" / "state").glob("en.journal*"):
            file.unlink()
        self._lab.start_en(**settings)
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
def made(
    under: Mapping[str, Sequence[str]] = MappingProxyType({}), instance: str = _INSTANCE, distance: float = 0.0
) -> Iterator[Bed]:
    """A bed, gone afterwards; a role's daemon with the interpreter's arguments in `under`. What else has the same
    `instance` is ended. `distance`: seconds that packets take from the public segment to the router, and back.
    NatfError where there can be none."""
    if sys.platform != "linux":
        raise NatfError("natf bench needs Linux: the port forward it compares with is one of netfilter")
    lab = BadLinkLab(instance) if distance else Figure1Lab(instance)
    lab.under = under
    lab.down()  # of a run that was killed; two at once would not measure anything
    with lab, ExitStack() as stack:
        if isinstance(lab, BadLinkLab):
            stack.enter_context(lab.linked(Link(minimum_delay=distance, maximum_delay=distance)))
        lab.exec("router", ["iptables-restore", "-w", "--noflush"], input=_FORWARD, check=True)
        server = lab.spawn("alice", [sys.executable, "-m", "natf_bsd.bench.load", "serve"], name="load")
        lab.wait_until(lambda: load.READY in server.output(), server)
        # One source asks for everything here.
        lab.start_router(source_rate=0, cookies="never")
        lab.start_en()
        yield Bed(lab)
