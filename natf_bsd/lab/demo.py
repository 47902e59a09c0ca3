"""The whole story of figure 1 on this machine: real kernels, stock programs, each step with its time, and nothing
left behind.

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
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from natf_bsd.lab import services
from natf_bsd.lab.capture import Capture, CapturedPacket
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.natd_bridge.pseudo import PSEUDO_IDENT
from natf_bsd.ops import render
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import packet

_INSTANCE = "demo"
_CURL = ("curl", "-sS", "--max-time", "15", "--connect-timeout", "8")
_CURL_CONNECT, _CURL_TIMEOUT = 7, 28
"""Exit statuses of curl(1)."""

_AT_ONCE = 1.0
"""Seconds a program may wait for a refusal: curl's exit status is the same when a router stayed silent for four."""

_DIG = "import socket, sys; print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET)}))"
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

_HOPS = (("en", "eth0"), ("router", "wan"), ("router", "lan"), ("alice", "eth0"))


class Demo:
    """One telling; `say` takes each line. `run` returns the steps that failed."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._lab = Figure1Lab(_INSTANCE)
        self._began = time.monotonic()
        self._failed: list[str] = []

    def run(self) -> list[str]:
        self._say(
            "NAT-f on one machine: an external node, a router with an ordinary NAT, and alice, bob and eve behind it."
        )
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

    def _tell(self) -> None:
        self._step("the lab is up", True, self._lab.platform.description())
        self._without_natf()
        self._lab.start_router()
        self._step("natf router runs beside the router's own NAT", True)
        self._lab.start_en()
        self._step("natf en runs on the external node", True)
        self._names()
        self._pages()
        self._datagrams()
        self._file()
        self._refusal()
        self._fallback()
        self._one_packet()
        self._breakdown()
        self._tables()

    # The steps.

    def _without_natf(self) -> None:
        done = self._fetch("http://alice.home.example.net/")
        refused_or_silent = done.returncode in (_CURL_CONNECT, _CURL_TIMEOUT)  # and not a name that does not resolve
        self._step("without NAT-f alice cannot be reached", refused_or_silent, done.stderr)

    def _names(self) -> None:
        seen = [self._resolve(f"{host}.home.example.net") for host in ("alice", "bob")]
        good = len(set(seen)) == 2 and all(address.startswith("240.") for address in seen)
        self._step("alice and bob resolve to virtual addresses of their own", good, " and ".join(seen))
        elsewhere = self._resolve("www.elsewhere.example.net")
        self._step("a name of somebody else resolves as ever", elsewhere == "203.0.113.80", elsewhere)

    def _pages(self) -> None:
        names = ("alice", "bob")
        client = "stock curl" if shutil.which("curl") else "a stand-in for curl, which is not installed"
        fetches = [
            self._lab.spawn(
                "en", [*_CURL, f"http://{name}.home.example.net/"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for name in names
        ]
        pages = [fetch.communicate(timeout=30) for fetch in fetches]
        for name, (page, error) in zip(names, pages, strict=True):
            self._step(f"a page from {name}, both at the same time, with {client}", name in page, page or error)

    def _datagrams(self) -> None:
        done = self._python(_UDP, "bob.home.example.net", "5000", "one", "two", "three")
        answers = done.stdout.split("\n")[:-1]
        good = len(answers) == 3 and all("bob" in answer for answer in answers)
        self._step("UDP datagrams to bob and back", good, ", ".join(answers) or done.stderr)

    def _file(self) -> None:
        copy = self._lab.run_dir / "big"
        began = time.monotonic()
        done = self._lab.exec("en", [*_CURL, "--max-time", "55", "-o", str(copy), "http://alice.home.example.net/big"])
        seconds = time.monotonic() - began
        good = done.returncode == 0 and digest(copy) == services.big_digest("alice")
        size = copy.stat().st_size if copy.exists() else 0
        self._step("a 20 MB file from alice, the same bytes", good, f"{size} bytes in {seconds:.2f} s {done.stderr}")

    def _refusal(self) -> None:
        for host, what in (
            ("eve", "eve, whom the table denies, is refused at once"),
            ("nobody", "so is a host the table does not know"),
        ):
            done = self._fetch(f"http://{host}.home.example.net/", "-w", "%{time_total}")
            good = done.returncode == _CURL_CONNECT and float(done.stdout) < _AT_ONCE
            self._step(what, good, done.stderr)

    def _fallback(self) -> None:
        done = self._fetch("http://www.plain.example.net/")
        self._step(
            "a plain host without NAT-f is reached by the fallback", "plain" in done.stdout, done.stdout or done.stderr
        )

    def _one_packet(self) -> None:
        """One new connection, watched at every hop."""
        with ExitStack() as stack:
            captures = {hop: stack.enter_context(self._lab.capture(*hop)) for hop in _HOPS}
            done = self._lab.exec(
                "en", [*_CURL, "-o", "/dev/null", "-w", "%{local_port} %{remote_ip}", "http://alice.home.example.net/"]
            )
            self._lab.exec("en", ["true"])
            seen = {hop: _port_packets(capture, done.stdout) for hop, capture in captures.items()}
        if done.returncode != 0:
            self._step("one connection, watched", False, done.stderr)
            return
        port, virtual = done.stdout.split()
        self._say("")
        self._say("The way of one SYN to alice:")
        program = Flow(
            Protocol.TCP, Endpoint(parse_address("203.0.113.10"), int(port)), Endpoint(parse_address(virtual), 80)
        )
        self._say(f"  {'en, program':<14} {program}")
        for (host, interface), packets in seen.items():
            syn = next((captured for captured in packets if _kind(captured.data) == "SYN"), None)
            self._say(f"  {host + ', ' + interface:<14} {packet.flow_of(syn.data) if syn else 'not seen'}")
        self._at_the_outer_side(seen["router", "wan"])

    def _at_the_outer_side(self, packets: Iterable[CapturedPacket]) -> None:
        kinds = [_kind(captured.data) for captured in packets]
        first = kinds[: kinds.index("SYN") + 1] if "SYN" in kinds else kinds
        good = (
            first == ["echo request", "echo reply", "SYN"] and kinds.count("SYN") == 1 and "pseudo-packet" not in kinds
        )
        self._step(
            "at the router's outer side: one echo request, one echo reply, then the SYN, once",
            good,
            ", ".join(kinds[:5]) + " ...",
        )

    def _tables(self) -> None:
        console = Console(width=132, highlight=False)
        status = {role: self._status(role) for role in ("router", "en")}
        for table in (
            render.act_table(status["router"]),
            render.names_table(status["en"]),
            render.flows_table(status["en"]),
        ):
            with console.capture() as captured:
                console.print(table)
            self._say("")
            self._say(captured.get().rstrip())

    def _breakdown(self) -> None:
        """The added delay of the SYN just watched, and the median of all, in the parts of the paper's figure 7."""
        status = self._status("en")
        en, router = status["trace"], self._status("router")["trace"]
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

    # What the steps use.

    def _step(self, what: str, good: bool, seen: str = "") -> None:
        text = " ".join(seen.split())
        mark = "ok " if good else "BAD"
        self._say(f"{time.monotonic() - self._began:6.2f} s  {mark}  {what}{f': {text}' if text else ''}")
        if not good:
            self._failed.append(what)

    def _fetch(self, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self._lab.exec("en", [*_CURL, *options, url])

    def _python(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._lab.exec("en", ["python3", "-c", program, *arguments])

    def _resolve(self, name: str) -> str:
        done = self._python(_DIG, name)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    def _status(self, role: str) -> dict[str, Any]:
        return dict(json.loads(self._lab.natf(role, "status", role, "--json").stdout)[role])


def _row(name: str, seconds: Sequence[float]) -> str:
    """The newest and the median."""
    return f"  {name:<32} {seconds[-1] * 1e6:7.0f} us {statistics.median(seconds) * 1e6:7.0f} us"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"


def _port_packets(capture: Capture, written: str) -> list[CapturedPacket]:
    """Of what was captured: the connection from the local port curl wrote, and all ICMP."""
    port = int(written.split()[0]) if written.split() else -1
    found = []
    for captured in capture.packets():
        data = captured.data
        flow = packet.flow_of(data)
        ours = flow is not None and flow.protocol == Protocol.TCP and port in (flow.source.port, flow.destination.port)
        if ours or packet.protocol(data) == Protocol.ICMP:
            found.append(captured)
    return found


def _kind(data: bytes) -> str:
    if int.from_bytes(data[4:6], "big") == PSEUDO_IDENT:
        return "pseudo-packet"
    if packet.protocol(data) == Protocol.ICMP:
        kind = data[packet.header_length(data)]
        return {8: "echo request", 0: "echo reply"}.get(kind, f"ICMP type {kind}")
    flags = packet.tcp_flags(data)
    names = (("SYN", packet.TCP_SYN), ("FIN", packet.TCP_FIN), ("RST", packet.TCP_RST), ("ACK", packet.TCP_ACK))
    return "+".join(name for name, bit in names if flags & bit)
