"""What the figures' demos have in common: steps that are told with their times, stock programs on a lab's hosts, one
new connection watched at every hop, its delay in parts, tables.

Every step states what must hold and is said to have failed when it does not; the demo's exit status follows from
that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from natf_bsd.lab import services
from natf_bsd.lab.capture import CapturedPacket
from natf_bsd.lab.daemons import DaemonLab
from natf_bsd.natd_bridge.pseudo import PSEUDO_IDENT
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import packet

CURL = ("curl", "-sS", "--max-time", "15", "--connect-timeout", "8")
CURL_CONNECT, CURL_TIMEOUT = 7, 28
"""Exit statuses of curl(1)."""

_AT_ONCE = 1.0
"""Seconds a program may wait for a refusal: curl's exit status is the same when a router stayed silent for four."""

_ADDRESSES_OF = (
    "import socket, sys; print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}))"
)
_UDP = """\
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], int(sys.argv[2])))
for text in sys.argv[3:]:
    s.send(text.encode())
    print(s.recv(2048).decode())
"""

_PARTS = {
    "negotiation start": "negotiation_start",
    "way to the router and back": "way",
    "router, its NAT included": "router",
    "resume": "resume",
    "total": "total",
}


Hop: TypeAlias = tuple[str, str]
"""A host and an interface of it."""


class Story(ABC):
    """One telling; `say` takes each line. `run` returns the steps that failed."""

    def __init__(self, lab: DaemonLab, say: Callable[[str], object], about: str) -> None:
        self._say = say
        self._lab = lab
        self._about = about
        self._began = time.monotonic()
        self._failed: list[str] = []

    def run(self) -> list[str]:
        self._say(self._about)
        before = self._lab.platform.machine()
        with self._lab:
            self._tell()
        left = [line for line in self._lab.platform.machine() if line not in before]
        self._step("everything is removed", not left and not self._lab.run_dir.exists(), "; ".join(left))
        self._say("")
        self._say(
            "The demo failed." if self._failed else f"All of it worked, in {time.monotonic() - self._began:.1f} s."
        )
        return self._failed

    @abstractmethod
    def _tell(self) -> None:
        """All steps while the lab is up."""

    # Steps.

    def _step(self, what: str, good: bool, seen: str = "") -> None:
        text = " ".join(seen.split())
        mark = "ok " if good else "BAD"
        self._say(f"{time.monotonic() - self._began:6.2f} s  {mark}  {what}{f': {text}' if text else ''}")
        if not good:
            self._failed.append(what)

    def _unreachable(self, what: str, host: str, url: str) -> None:
        done = self._fetch(host, url)
        refused_or_silent = done.returncode in (CURL_CONNECT, CURL_TIMEOUT)  # and not a name that does not resolve
        self._step(what, refused_or_silent, done.stderr)

    def _pages(self, fetches: Iterable[tuple[str, str, str]]) -> None:
        """All at the same time: what each shows, on which host, from which URL of the host that it names."""
        started = [
            (what, url, self._lab.spawn(host, [*CURL, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            for what, host, url in fetches
        ]
        for what, url, fetch in started:
            page, error = fetch.communicate(timeout=30)
            self._step(what, _host_of(url.removeprefix("http://")) in page, page or error)

    def _datagrams(self, what: str, host: str, name: str) -> None:
        done = self._python(host, _UDP, name, "5000", "one", "two", "three")
        answers = done.stdout.split("\n")[:-1]
        good = len(answers) == 3 and all(_host_of(name) in answer for answer in answers)
        self._step(what, good, ", ".join(answers) or done.stderr)

    def _file(self, what: str, host: str, name: str) -> None:
        copy = self._lab.run_dir / "big"
        began = time.monotonic()
        done = self._lab.exec(host, [*CURL, "--max-time", "55", "-o", str(copy), f"http://{name}/big"])
        seconds = time.monotonic() - began
        good = done.returncode == 0 and digest(copy) == services.big_digest(_host_of(name))
        size = copy.stat().st_size if copy.exists() else 0
        self._step(what, good, f"{size} bytes in {seconds:.2f} s {done.stderr}")

    def _refused(self, what: str, host: str, url: str) -> None:
        done = self._fetch(host, url, "-w", "%{time_total}")
        good = done.returncode == CURL_CONNECT and float(done.stdout) < _AT_ONCE
        self._step(what, good, done.stderr)

    def _one_packet(self, host: str, name: str, hops: Sequence[Hop], outer: Hop) -> list[CapturedPacket]:
        """One new connection of a program on `host`, watched at the `hops` in their order, of which `outer` is a
        router's outer side. Returns all that passed there."""
        with ExitStack() as stack:
            captures = {hop: stack.enter_context(self._lab.capture(*hop)) for hop in hops}
            options = ("-o", "/dev/null", "-w", "%{local_port} %{remote_ip}")
            done = self._lab.exec(host, [*CURL, *options, f"http://{name}/"])
            self._lab.exec(host, ["true"])
            caught = {hop: capture.packets() for hop, capture in captures.items()}
        if done.returncode != 0:
            self._step("one connection, watched", False, done.stderr)
            return []
        port, virtual = done.stdout.split()
        source = Endpoint(parse_address(self._lab.topology.host(host).address), int(port))
        self._say("")
        self._say(f"The way of one SYN to {_host_of(name)}:")
        self._say(f"  {host + ', program':<14} {Flow(Protocol.TCP, source, Endpoint(parse_address(virtual), 80))}")
        sequence = next((packet.tcp_sequence(p.data) for p in caught[hops[0]] if _is_syn_from(p.data, int(port))), None)
        seen = {hop: _of_connection(packets, sequence) for hop, packets in caught.items()}
        for (place, interface), packets in seen.items():
            syn = next((captured for captured in packets if kind(captured.data) == "SYN"), None)
            self._say(f"  {place + ', ' + interface:<14} {packet.flow_of(syn.data) if syn else 'not seen'}")
        self._at_the_outer_side(outer[0], seen[outer])
        return caught[outer]

    def _at_the_outer_side(self, router: str, packets: Iterable[CapturedPacket]) -> None:
        kinds = [kind(captured.data) for captured in packets]
        first = kinds[: kinds.index("SYN") + 1] if "SYN" in kinds else kinds
        good = (
            first == ["echo request", "echo reply", "SYN"] and kinds.count("SYN") == 1 and "pseudo-packet" not in kinds
        )
        self._step(
            f"at the {router}'s outer side: one echo request, one echo reply, then the SYN, once",
            good,
            ", ".join(kinds[:5]) + " ...",
        )

    def _breakdown(self, caller: str, called: str) -> None:
        """The added delay of the SYN just watched, and the median of all, in the parts of the paper's figure 7.
        `caller` is the host of the external node, `called` that of the router."""
        status = self._status(caller, "en")
        en, router = status["trace"], self._status(called, "router")["trace"]
        inside = {entry["transaction"]: entry["router"] for entry in router["negotiations"]}
        rows = [
            entry | {"router": inside[entry["transaction"]]}
            for entry in en["negotiations"]
            if entry["transaction"] in inside
        ]
        got = status["counters"]["control.used.response"]
        traced = bool(len(rows) == got > 0 and en["answer_rewriting"])
        self._step("every mapping's time was traced on both sides", traced, f"{len(rows)} of {got} mappings")
        if not traced:
            return
        for row in rows:
            row["way"] = row["answer_wait"] - row["router"]
        self._say("")
        self._say(
            "The added delay of that SYN, as in the paper's figure 7 (650 us there), and the median of all mappings:"
        )
        for name, part in _PARTS.items():
            self._say(_row(name, [row[part] for row in rows]))
        self._say(_row("answer rewriting, once a name", en["answer_rewriting"]))

    def _tables(self, tables: Iterable[Table]) -> None:
        console = Console(width=132, highlight=False)
        for table in tables:
            with console.capture() as captured:
                console.print(table)
            self._say("")
            self._say(captured.get().rstrip())

    # What the steps use.

    def _fetch(self, host: str, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self._lab.exec(host, [*CURL, *options, url])

    def _python(self, host: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._lab.exec(host, ["python3", "-c", program, *arguments])

    def _resolve(self, host: str, name: str) -> str:
        done = self._python(host, _ADDRESSES_OF, name)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    def _status(self, host: str, role: str) -> dict[str, Any]:
        return dict(json.loads(self._lab.natf(host, "status", role, "--json").stdout)[role])


def client() -> str:
    return "stock curl" if shutil.which("curl") else "a stand-in for curl, which is not installed"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"


def kind(data: bytes) -> str:
    """What a packet is, in words."""
    if int.from_bytes(data[4:6], "big") == PSEUDO_IDENT:
        return "pseudo-packet"
    if packet.protocol(data) == Protocol.ICMP:
        number = data[packet.header_length(data)]
        return {8: "echo request", 0: "echo reply"}.get(number, f"ICMP type {number}")
    flags = packet.tcp_flags(data)
    names = (("SYN", packet.TCP_SYN), ("FIN", packet.TCP_FIN), ("RST", packet.TCP_RST), ("ACK", packet.TCP_ACK))
    return "+".join(name for name, bit in names if flags & bit)


def _host_of(name: str) -> str:
    return name.partition(".")[0]


def _row(name: str, seconds: Sequence[float]) -> str:
    """The newest and the median."""
    return f"  {name:<32} {seconds[-1] * 1e6:7.0f} us {statistics.median(seconds) * 1e6:7.0f} us"


def _is_syn_from(data: bytes, port: int) -> bool:
    flow = packet.flow_of(data)
    return flow is not None and flow.source.port == port and packet.tcp_flags(data) == packet.TCP_SYN


def _of_connection(packets: Iterable[CapturedPacket], sequence: int | None) -> list[CapturedPacket]:
    """Of what was captured: the connection whose SYN has this sequence number, which no NAT changes, and all ICMP."""
    packets = list(packets)
    syns = (p.data for p in packets if kind(p.data) == "SYN" and packet.tcp_sequence(p.data) == sequence)
    flow = next(map(packet.flow_of, syns), None)
    ways = (flow, flow.reversed()) if flow else ()
    return [p for p in packets if packet.protocol(p.data) == Protocol.ICMP or packet.flow_of(p.data) in ways]
