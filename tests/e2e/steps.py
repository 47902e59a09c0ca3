"""What the tests on labs have in common."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from natf_bsd.lab.capture import CapturedPacket
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import Lab, LabProcess
from natf_bsd.natd_bridge.pseudo import PSEUDO_IDENT
from natf_bsd.types import Protocol
from natf_bsd.wire import packet

SOME = 20.0  # s; for a test's own programs, far above anything documented
LATE = 4.0  # s; look-up and start of a program, on a busy machine or an emulated one

UDP = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[2]))
s.connect((sys.argv[1], 5000))
try:
    s.send(b"hello")
    print(s.recv(2048).decode())
except OSError as error:
    print(type(error).__name__)
"""

CONNECT = """
import socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], 80), 15).close()
    print("connected", time.monotonic() - began)
except OSError as error:
    print(error.errno and __import__("errno").errorcode[error.errno], time.monotonic() - began)
"""


def curl(lab: Figure1Lab, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return lab.exec("en", ["curl", "-sS", "--max-time", str(SOME), *options, url])


def udp(lab: Figure1Lab, name: str, wait: float = 5.0) -> str:
    return lab.exec("en", ["python3", "-c", UDP, name, str(wait)]).stdout.strip()


def connect(lab: Figure1Lab, name: str) -> tuple[str, float]:
    """What connect() to port 80 of `name` said, and after how many seconds."""
    word, seconds = lab.exec("en", ["python3", "-c", CONNECT, name]).stdout.split()
    return word, float(seconds)


def status(lab: Figure1Lab, role: str) -> dict[str, Any]:
    return dict(json.loads(lab.natf(role, "status", "--json").stdout)[role])


TALK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=20)
for line in sys.stdin:
    connection.request("GET", "/")
    print(connection.sock.getsockname()[1], connection.getresponse().read().split()[2].decode(), flush=True)
"""


@contextmanager
def only_by_the_nat(lab: Figure1Lab) -> Iterator[None]:
    """A firewall that lets nothing out it has no rule for: a daemon that starts leaves flows to netfilter's NAT."""
    lab.exec("en", ["iptables", "-A", "OUTPUT", "-j", "ACCEPT"], check=True)
    lab.exec("en", ["iptables", "-P", "OUTPUT", "DROP"], check=True)
    yield
    lab.exec("en", ["iptables", "-P", "OUTPUT", "ACCEPT"], check=True)
    lab.exec("en", ["iptables", "-D", "OUTPUT", "-j", "ACCEPT"], check=True)


class Talk:
    """One HTTP connection from `host` to `name` that stays open between requests."""

    def __init__(self, lab: Lab, host: str, name: str) -> None:
        self._process: LabProcess = lab.spawn(
            host, ["python3", "-c", TALK, name], name="talk", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def request(self) -> tuple[str, str]:
        """Local port, and the host that answered."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        port, host = self._process.stdout.readline().split()
        return port, host


def kill(process: LabProcess | None) -> None:
    assert process is not None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def kind(captured: CapturedPacket) -> str:
    """One of "pseudo" (which no wire may see), "request", "reply", "other ICMP", "SYN", "TCP"."""
    data = captured.data
    if int.from_bytes(data[4:6], "big") == PSEUDO_IDENT:
        return "pseudo"
    if packet.protocol(data) == Protocol.ICMP:
        return {8: "request", 0: "reply"}.get(data[packet.header_length(data)], "other ICMP")
    return "SYN" if packet.tcp_flags(data) == packet.TCP_SYN else "TCP"


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What came (+) and went (-), for the message of a failing comparison."""
    return [
        f"{mark}{kind}: {line}"
        for kind in before
        for mark, these, those in (("-", before, after), ("+", after, before))
        for line in these[kind]
        if line not in those[kind]
    ]
