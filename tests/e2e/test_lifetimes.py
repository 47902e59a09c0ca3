"""What lives how long (DESIGN.md section 4), with real timers: the router's NAT forgets UDP after ten seconds here."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.tables.vat import TCP_CLOSING
from tests.e2e.steps import SOME, Talk, connect, kill, status
from tests.lab_platform import resolve

pytestmark = [pytest.mark.lab, pytest.mark.linux("conntrack's timers are shortened, and its table is emptied")]

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "lifetimes.md"

LIFETIME = 10.0
"""Seconds of the NAT's UDP mappings, and so of ours: the least an external node believes."""

FORGET = """
import struct
from natf_bsd.divert import netlink
connection = netlink.NetlinkSocket(netlink.NETLINK_NETFILTER)
connection.request(1 << 8 | 2, struct.pack("!BBH", 2, 0, 0))  # all IPv4 entries of conntrack (nfnetlink_conntrack.h)
"""

UDP_FLOW = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(float(sys.argv[2]))
    s.connect((sys.argv[1], 5000))
    for line in sys.stdin:
        try:
            s.send(line.encode())
            answer = s.recv(100).decode().strip()
        except OSError as error:
            answer = type(error).__name__
        print(s.getsockname()[1], answer, flush=True)
"""

TCP_FLOW = """
import socket, struct, sys
name, port, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.settimeout(10)
    s.bind(("203.0.113.10", port))
    s.connect((name, 80))
    if end == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        while s.recv(4096):
            pass
print("done")
"""


class UdpFlow:
    """A UDP socket of the external node, connected to port 5000 of `name`, with one port as long as it lives. It waits
    `patience` seconds for an answer.
    """

    def __init__(self, lab: Figure1Lab, name: str, patience: float = SOME) -> None:
        argv = ["python3", "-c", UDP_FLOW, name, str(patience)]
        self._process: LabProcess = lab.spawn("en", argv, name="udp", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = ""

    def send(self) -> str:
        """What came of one datagram: the answer, or the name of an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("hello\n")
        self._process.stdin.flush()
        self.port, answer = self._process.stdout.readline().rstrip().split(" ", 1)
        return answer


def tcp(lab: Figure1Lab, port: int, end: str) -> str:
    """One connection to alice from `port`, ended by "close" or "reset"."""
    done = lab.exec("en", ["python3", "-c", TCP_FLOW, "alice.home.example.net", str(port), end])
    return done.stdout.strip() or done.stderr


def flow(lab: Figure1Lab, port: int | str) -> dict[str, Any] | None:
    """The VAT entry of the flow with this local port."""
    found = [entry for entry in status(lab, "en")["flows"] if entry["source"].endswith(f":{port}")]
    return found[0] if found else None


def until(condition: Callable[[], bool], limit: float) -> float:
    """Wait for `condition`, and return how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit
        time.sleep(0.1)
    return time.monotonic() - began


def lose_the_table(lab: Figure1Lab) -> None:
    """What a router's restart does to its NAT, and to our daemon."""
    kill(lab.router)
    assert lab.natf("router", "cleanup", "router").returncode == 0
    lab.exec("router", [sys.executable, "-c", FORGET], check=True)
    lab.start_router()


@pytest.fixture(scope="module")
def lab(unreachable: Figure1Lab) -> Iterator[Figure1Lab]:
    """Daemons for the whole file."""
    for timer in "nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream":
        unreachable.exec("router", ["sysctl", "-qw", f"net.netfilter.{timer}={LIFETIME:.0f}"], check=True)
    unreachable.start_router()
    unreachable.start_en()
    yield unreachable
    for process in (unreachable.en, unreachable.router):
        assert process is not None
        assert process.stop() == 0


def test_what_is_idle_or_closed_goes_and_what_is_used_stays(lab: Figure1Lab) -> None:
    """The flow in use is renewed before the NAT could forget it."""
    used, idle = UdpFlow(lab, "alice.home.example.net"), UdpFlow(lab, "bob.home.example.net")
    assert (used.send(), idle.send()) == ("alice: hello", "bob: hello")
    first = flow(lab, used.port)
    assert first is not None
    assert first["lifetime"] == LIFETIME
    assert tcp(lab, 41001, "close") == "done"
    closed = flow(lab, 41001)
    assert closed is not None
    assert closed["state"] == "closing"
    renewals = status(lab, "en")["counters"]["negotiation.renewals"]
    began = time.monotonic()
    while time.monotonic() - began < max(LIFETIME, TCP_CLOSING) + 1.5:
        assert used.send() == "alice: hello"
        time.sleep(0.5)
    assert flow(lab, idle.port) is None
    assert flow(lab, 41001) is None
    still = flow(lab, used.port)
    assert still is not None
    assert still["mapped"] == first["mapped"]
    renewed = status(lab, "en")["counters"]["negotiation.renewals"] - renewals
    assert renewed >= 1
    started = status(lab, "en")["counters"]["negotiation.started"]
    assert idle.send() == "bob: hello", "the next datagram makes a new mapping"
    assert status(lab, "en")["counters"]["negotiation.started"] == started + 1


def test_a_reset_connection_is_forgotten_in_a_second(lab: Figure1Lab) -> None:
    """Or a little later on a busy machine; not after the ten of one that was closed."""
    assert tcp(lab, 41002, "reset") == "done"
    assert until(lambda: flow(lab, 41002) is None, SOME) < TCP_CLOSING


@pytest.mark.parametrize("end", ["close", "reset"])
def test_the_same_ports_may_be_used_again_at_once(lab: Figure1Lab, end: str) -> None:
    """Every connection asks anew: the NAT may have closed the old one's mapping."""
    started = status(lab, "en")["counters"]["negotiation.started"]
    assert [tcp(lab, 41003, end) for _ in range(3)] == ["done"] * 3
    assert status(lab, "en")["counters"]["negotiation.started"] == started + 3


def test_after_the_router_lost_its_table_udp_flows_recover_within_a_renewal(lab: Figure1Lab) -> None:
    """By another port of the router, which no program notices."""
    used = UdpFlow(lab, "alice.home.example.net", 0.5)
    assert used.send() == "alice: hello"
    port, before = used.port, flow(lab, used.port)
    lose_the_table(lab)
    assert connect(lab, "alice.home.example.net")[0] == "connected", "new connections work at once"
    assert until(lambda: used.send() == "alice: hello", SOME) < LIFETIME
    after = flow(lab, used.port)
    assert before is not None
    assert after is not None
    assert (used.port, after["virtual"]) == (port, before["virtual"])
    assert after["mapped"] != before["mapped"]
    assert status(lab, "en")["counters"]["mapping.changed"] >= 1


@contextmanager
def says_nothing_of_closed_ports(lab: Figure1Lab) -> Iterator[None]:
    """As home routers do; one that says so ends connections by that."""
    rule = ["INPUT", "-i", "wan", "-p", "tcp", "-j", "DROP"]
    lab.exec("router", ["iptables", "-A", *rule], check=True)
    yield
    lab.exec("router", ["iptables", "-D", *rule], check=True)


def test_an_open_connection_outlives_the_routers_table(lab: Figure1Lab) -> None:
    """When five seconds have brought no answer, the mapping is asked for again; TCP's next repetition takes it."""
    talk = Talk(lab, "en", "alice.home.example.net")
    before = talk.request()
    mapped = flow(lab, before[0])
    with says_nothing_of_closed_ports(lab):
        lose_the_table(lab)
        assert talk.request() == before
    after = flow(lab, before[0])
    assert mapped is not None
    assert after is not None
    assert after["mapped"] != mapped["mapped"]


def test_a_syn_on_its_way_when_the_router_lost_its_table_is_answered_after_its_second_repetition(
    lab: Figure1Lab,
) -> None:
    """TCP sends it again after one and three seconds; with the first of these the mapping is asked for anew."""
    lost = ["PREROUTING", "-i", "wan", "-p", "tcp", "-j", "DROP"]
    program = "import socket, sys, time; b = time.monotonic(); socket.create_connection((sys.argv[1], 80), 20); "
    argv = ["python3", "-c", program + "print(time.monotonic() - b)", "alice.home.example.net"]
    lab.exec("router", ["iptables", "-t", "mangle", "-I", *lost], check=True)
    with says_nothing_of_closed_ports(lab):
        client = lab.spawn("en", argv, name="syn")
        until(lambda: any(entry["state"] == "opening" for entry in status(lab, "en")["flows"]), SOME)
        lose_the_table(lab)
        lab.exec("router", ["iptables", "-t", "mangle", "-D", *lost], check=True)
        assert client.wait(SOME) == 0, client.output()
    assert float(client.output()) > 2


def test_a_connection_outlives_its_names_time_and_keeps_the_name(lab: Figure1Lab) -> None:
    """Other names go a second after their use here."""
    assert lab.en is not None
    assert lab.en.stop() == 0
    lab.start_en(minimum_ttl=1, maximum_ttl=1, quarantine=1)
    talk = Talk(lab, "en", "alice.home.example.net")
    before = talk.request()
    address = resolve(lab, "alice.home.example.net")
    resolve(lab, "nobody.home.example.net")

    def names() -> set[str]:
        return {row["name"] for row in status(lab, "en")["names"]}

    assert "nobody.home.example.net" in names()
    until(lambda: "nobody.home.example.net" not in names(), SOME)
    assert "alice.home.example.net" in names()
    assert talk.request() == before
    assert resolve(lab, "alice.home.example.net") == address


def test_the_documentation_names_these_tests() -> None:
    tests = {name for name in globals() if name.startswith("test_") and "documentation" not in name}
    assert set(re.findall(r"`(test_\w+)`", DOCUMENTATION.read_text())) == tests
