"""What becomes of many connections over a bad link, and how long each takes: run by a test, and printed by

    python -m tests.e2e.bad_link

The router of the paper's figure 1 is behind a link that does the same to both directions (`natf_bsd.lab.bad_link`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from natf_bsd.errors import WireError
from natf_bsd.lab.capture import CapturedPacket
from natf_bsd.lab.figure1 import BadLinkLab, Figure1Lab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.link import GOOD, Link
from natf_bsd.wire import icmp, message
from tests.lab_platform import own_lab

BAD = Link(loss=0.1, duplication=0.1, reordering=0.1, minimum_delay=0.001, maximum_delay=0.05)

TCP_FLOWS = 200
UDP_FLOWS = 100
_AT_ONCE = 60
"""Programs at work at the same time: whoever waits for a lost SYN, a second at least, keeps nobody else waiting."""

PROGRAM = """
import json, socket, sys, time
from concurrent.futures import ThreadPoolExecutor
tcp_flows, udp_flows, at_once = map(int, sys.argv[1:])
address = {name: socket.gethostbyname(f"{name}.home.example.net") for name in ("alice", "bob")}
def tcp(name):
    with socket.socket() as s:
        s.settimeout(60)
        s.bind(("203.0.113.10", 0))
        try:
            return tcp_exchange(name, s)
        except Exception as error:
            raise RuntimeError(f"port {s.getsockname()[1]}: {error!r}")
def tcp_exchange(name, s):
    began = time.monotonic()
    s.connect((address[name], 80))
    took = time.monotonic() - began
    s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    data = b""
    while chunk := s.recv(4096):
        data += chunk
    assert f"{name}'s page".encode() in data, data
    return took
def udp(name):
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((address[name], 5000))
        for wait in (0.5, 1, 2, 4, 4, 4, 4, 4):  # as SIP does (RFC 3261, 17.1.2.2)
            s.settimeout(wait)
            s.send(b"x")
            try:
                data = s.recv(100)
            except TimeoutError:
                continue
            assert data == f"{name}: x".encode(), data
            return time.monotonic() - began
    raise TimeoutError("no answer")
def run(job):
    kind, name = job
    try:
        return kind, {"tcp": tcp, "udp": udp}[kind](name), None
    except Exception as error:
        return kind, None, repr(error)
jobs = [
    (kind, name)
    for kind, flows in (("tcp", tcp_flows), ("udp", udp_flows))
    for name in ("alice", "bob") * (flows // 2)
]
with ThreadPoolExecutor(at_once) as pool:
    print(json.dumps(list(pool.map(run, jobs))))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one run. Times in seconds: of a TCP connection until connect() returned, of a UDP flow until its first answer,
    of a negotiation from the first request to the first answer, on the external node's wire. `requests` of each
    negotiation; `link`: see `BadLink.counters`."""

    tcp: list[float]
    udp: list[float]
    failures: list[str]
    negotiations: list[float]
    requests: list[int]
    link: dict[str, dict[str, int]]


def counted(process: LabProcess) -> dict[str, dict[str, int]]:
    """What a link that has ended did."""
    return dict(json.loads(process.output().splitlines()[-1]))


def connections(lab: BadLinkLab, link: Link) -> Found:
    """Many at once from the external node, whose daemon runs as the router's does, to alice and bob."""
    with lab.linked(link) as process, lab.capture("en", "eth0") as capture:
        argv = ["python3", "-c", PROGRAM, *map(str, (TCP_FLOWS, UDP_FLOWS, _AT_ONCE))]
        done = lab.exec("en", argv, capture_output=True, timeout=200)
        packets = capture.packets()
    results = json.loads(done.stdout or f'[["all", null, {json.dumps(done.stderr)}]]')
    durations, requests = negotiations(packets)
    return Found(
        tcp=[took for kind, took, _ in results if kind == "tcp" and took is not None],
        udp=[took for kind, took, _ in results if kind == "udp" and took is not None],
        failures=[f"{kind}: {error}" for kind, _, error in results if error is not None],
        negotiations=durations,
        requests=requests,
        link=counted(process),
    )


def negotiations(packets: Sequence[CapturedPacket]) -> tuple[list[float], list[int]]:
    """Seconds to its answer, and number of requests, of each negotiation with an answer on the wire."""
    began: dict[bytes, float] = {}
    answered: dict[bytes, float] = {}
    asked = Counter[bytes]()
    for captured in packets:
        try:
            _, _, echo = icmp.decode_echo_packet(captured.data)
            heard = message.decode(echo.data)
        except WireError:
            continue
        if captured.outgoing:
            began.setdefault(heard.transaction, captured.time)
            asked[heard.transaction] += 1
        else:
            answered.setdefault(heard.transaction, captured.time)
    whole = [transaction for transaction in began if transaction in answered]
    return [answered[each] - began[each] for each in whole], [asked[each] for each in whole]


_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_WIDTH = 50
"""Characters of the longest bar."""


def histogram(title: str, rows: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Lines of text; a row without anything is left out."""
    yield f"{title}\n"
    largest = max((count for _, count in rows), default=0)
    for label, count in rows:
        if count:
            yield f"{label:>12} {count:>5} {'#' * max(1, round(_WIDTH * count / largest))}\n"


def of_times(times: Sequence[float]) -> list[tuple[str, int]]:
    """How many took at most each bound."""
    rows = []
    below = 0.0
    for bound in _BOUNDS:
        label = f"<= {bound * 1000:.0f} ms" if bound < 1 else f"<= {bound:.0f} s"
        rows.append((label, sum(below < took <= bound for took in times)))
        below = bound
    rows.append((f"> {below:.0f} s", sum(took > below for took in times)))
    return rows


def report(link: Link, found: Found) -> Iterator[str]:
    yield f"link: {link}\n"
    for way, counters in found.link.items():
        yield f"  {way}: {', '.join(f'{count} {what}' for what, count in counters.items())}\n"
    yield f"failed: {len(found.failures)} of {TCP_FLOWS + UDP_FLOWS}\n"
    yield from (f"  {failure}\n" for failure in found.failures)
    yield from histogram(f"\n{len(found.tcp)} TCP connections, until connect() returned", of_times(found.tcp))
    yield from histogram(f"\n{len(found.udp)} UDP flows, until the first answer", of_times(found.udp))
    title = f"\n{len(found.negotiations)} negotiations, from first request to first answer"
    yield from histogram(title, of_times(found.negotiations))
    requests = Counter(found.requests)
    rows = [(f"{number}", requests[number]) for number in sorted(requests)]
    yield from histogram(f"\n{len(found.requests)} negotiations, requests sent in each", rows)


def main() -> None:
    if reason := Figure1Lab.is_supported():
        sys.exit(reason)
    for link in GOOD, BAD:
        with own_lab(BadLinkLab) as lab, lab:
            lab.start_router()
            lab.start_en()
            sys.stdout.writelines([*report(link, connections(lab, link)), "\n"])


if __name__ == "__main__":
    main()
