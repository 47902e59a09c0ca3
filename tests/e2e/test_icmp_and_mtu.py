"""ICMP errors, packets too large for a hop and traceroute, where an address is a virtual one: on the external node and
for an inside host of another home."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.figure3 import Figure3Lab
from natf_bsd.lab.services import big_blocks
from tests.e2e.steps import only_by_the_nat
from tests.lab_platform import resolve

pytestmark = pytest.mark.lab

HOP_MTU = 1280
HOST_UNREACHABLE, PORT_UNREACHABLE, TOO_LARGE, TTL_EXCEEDED = (3, 1), (3, 3), (3, 4), (11, 0)
"""ICMP types and codes, RFC 792."""

LARGE = """
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((sys.argv[1], 5000))
try:
    for size in map(int, sys.argv[2:]):
        data = os.urandom(size)
        s.send(data)
        print(s.recv(65535).endswith(data), end=" ")
except OSError as error:
    print(type(error).__name__)
"""

CLOSED = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 5001))
try:
    s.send(b"anybody?")
    s.recv(100)
except OSError as error:
    print(type(error).__name__, s.getpeername()[0])
"""

ERRORS = """
import select, socket, struct, sys
RECVERR, MTU, MTU_DISCOVER, DO, ERRQUEUE = 11, 14, 10, 2, 0x2000  # linux/in.h, linux/socket.h
address = socket.gethostbyname(sys.argv[1])

def udp(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, RECVERR, 1)
    s.settimeout(5)
    s.connect((address, port))
    return s

def error(s):
    "Waits for an error; prints ICMP type and code, MTU, who sent it, and about a packet to whom."
    poll = select.poll()
    poll.register(s, select.POLLERR)
    poll.poll(5000)
    _, control, _, about = s.recvmsg(100, 500, ERRQUEUE)
    _, _, kind, code, _, info, _ = struct.unpack_from("IBBBBII", control[0][2])
    print(kind, code, info, socket.inet_ntoa(control[0][2][20:24]), about[0], flush=True)
    return kind
"""
"""The start of a program: the error queue of a socket tells all of an error (ip(7), IP_RECVERR)."""

TRACE = (
    ERRORS
    + """
for ttl in range(1, 9):
    with udp(33434 + ttl) as s:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        s.send(b"traceroute")
        if error(s) == 3:
            break
"""
)

TOO_LONG = (
    ERRORS
    + """
s = udp(5000)
s.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DO)
s.send(bytes(1400))
error(s)
mtu = s.getsockopt(socket.IPPROTO_IP, MTU)
print(mtu)
s.send(bytes(mtu - 28 - len(b"alice: ")))  # the answer has as much before it
print(len(s.recv(2000)))
"""
)

NO_WAY = (
    ERRORS
    + """
s = udp(5000)
s.send(b"there")
print(s.recv(100).decode(), flush=True)
sys.stdin.readline()
s.send(b"and now?")
error(s)
"""
)

TRANSFER = """
import hashlib, socket, sys
s = socket.create_connection((sys.argv[1], 80), 10)
s.sendall(b"GET /big HTTP/1.0\\r\\nX-Long: " + b"x" * 60000 + b"\\r\\n\\r\\n")
file = s.makefile("rb")
print(file.readline().split()[1].decode())
while file.readline().strip():
    pass
print(hashlib.sha256(file.read(int(sys.argv[2]))).hexdigest())
print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
"""

LEFT_ALONE = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.bind(("", 5002))
print("ready", flush=True)
s.connect(s.recvfrom(100)[1])
try:
    for _ in range(50):
        s.send(b"still there?")
        time.sleep(0.1)
except OSError as error:
    print(type(error).__name__)
"""

HANG_UP = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"hello, and gone", (sys.argv[1], 5002))
"""


@dataclass(frozen=True)
class Way:
    """From `caller`, a host of `lab`, to an inside host `called`. `ends`: the hosts on the public network that speak
    for both, between which `hop` can be put; `first`: the addresses of what is before these."""

    lab: Figure1Lab | Figure3Lab
    caller: str
    called: str
    name: str
    ends: tuple[str, str]
    hop: str
    first: tuple[str, ...] = ()

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.lab.exec(self.caller, ["python3", "-c", program, self.name, *arguments])

    def address(self, host: str) -> str:
        return self.lab.topology.host(host).address

    def ip(self, host: str, *arguments: str) -> None:
        self.lab.exec(host, ["ip", *arguments], check=True)

    @property
    def virtual(self) -> str:
        address = resolve(self.lab, self.name, self.caller)
        assert address.startswith("240.")
        return address


def proved(way: Way) -> Way:
    """`way`, whose other end is not reached without NAT-f."""
    assert "True" not in way.run(LARGE, "100").stdout
    return way


@contextmanager
def from_external_node(lab: Figure1Lab) -> Iterator[Way]:
    way = proved(Way(lab, "en", "alice", "alice.home.example.net", ("en", "router"), "plain"))
    daemons = lab.start_router(), lab.start_en()
    yield way
    for process in daemons:
        assert process.stop() == 0, process.output()


@pytest.fixture(scope="module")
def from_inside_host(figure3: Figure3Lab) -> Iterator[Way]:
    lab = figure3
    ends = "router", "router2"
    way = proved(Way(lab, "alice", "carol", "carol.home2.example.net", ends, "dns", ("192.168.0.1",)))
    lab.start()
    yield way
    for process in lab.daemons.values():
        assert process.stop() == 0, process.output()


@pytest.fixture(
    scope="module",
    params=[
        "from_external_node",
        pytest.param("from_external_node_by_the_nat", marks=pytest.mark.linux("there the kernel has two ways")),
        "from_inside_host",
    ],
)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    if request.param == "from_inside_host":
        yield request.getfixturevalue("from_inside_host")
        return
    lab: Figure1Lab = request.getfixturevalue("figure1")
    by_nat = request.param == "from_external_node_by_the_nat"
    with only_by_the_nat(lab) if by_nat else nullcontext(), from_external_node(lab) as way:
        yield way


@pytest.fixture
def narrow(way: Way) -> Iterator[Way]:
    """With a hop of a smaller MTU: a neighbour that forwards, both ways."""
    settings = {"ip_forward": 1, "conf/all/send_redirects": 0, "conf/eth0/send_redirects": 0, "icmp_ratelimit": 0}
    script = "; ".join(f"echo {value} >/proc/sys/net/ipv4/{setting}" for setting, value in settings.items())
    way.lab.exec(way.hop, ["sh", "-ec", script], check=True)
    for here, there in (way.ends, way.ends[::-1]):
        way.ip(way.hop, "route", "add", way.address(there), "dev", "eth0", "mtu", "lock", str(HOP_MTU))
        way.ip(here, "route", "add", way.address(there), "via", way.address(way.hop))
    yield way
    for here, there in (way.ends, way.ends[::-1]):
        way.ip(here, "route", "del", way.address(there))
        way.ip(way.hop, "route", "del", way.address(there))
    way.lab.exec(way.hop, ["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"], check=True)


def test_a_closed_port_is_an_error_of_the_socket(way: Way) -> None:
    done = way.run(CLOSED)
    assert done.stdout.split() == ["ConnectionRefusedError", way.virtual], done.stderr


def test_datagrams_in_fragments_go_there_and_back(way: Way) -> None:
    done = way.run(LARGE, "1472", "1473", "4000", "9000")
    assert done.stdout.split() == ["True"] * 4, done.stderr


@pytest.mark.linux("FreeBSD has no error for a virtual address unless net.inet.ip.allow_net240 is set")
def test_an_inside_host_is_told_that_the_program_it_answers_is_gone(way: Way) -> None:
    server = way.lab.spawn(way.called, ["python3", "-c", LEFT_ALONE], name="left-alone")
    way.lab.wait_until(lambda: "ready" in server.output(), server)
    way.run(HANG_UP)
    assert server.wait(10) == 0
    assert server.output().split() == ["ready", "ConnectionRefusedError"]


@pytest.mark.linux("routes with an MTU; an error queue tells all of an error")
def test_traceroute_shows_every_hop_the_router_and_last_the_virtual_address(narrow: Way) -> None:
    done = narrow.run(TRACE)
    hops = [line.split() for line in done.stdout.splitlines()]
    between = *narrow.first, narrow.address(narrow.hop), narrow.address(narrow.ends[1])
    virtual = narrow.virtual
    assert [hop[3] for hop in hops] == [*between, virtual], done.stderr
    assert [(int(hop[0]), int(hop[1])) for hop in hops] == [*(TTL_EXCEEDED for _ in between), PORT_UNREACHABLE]
    assert {hop[4] for hop in hops} == {virtual}, "whom the packets were for"


@pytest.mark.linux("routes with an MTU; an error queue tells all of an error")
def test_a_datagram_too_large_for_a_hop_is_an_error_that_tells_what_fits(narrow: Way) -> None:
    done = narrow.run(TOO_LONG)
    *error, mtu, answered = done.stdout.split()
    assert error == [*map(str, TOO_LARGE), str(HOP_MTU), narrow.address(narrow.hop), narrow.virtual], done.stderr
    assert (int(mtu), int(answered)) == (HOP_MTU, HOP_MTU - 28)


@pytest.mark.linux("routes with an MTU")
def test_datagrams_in_fragments_go_through_a_smaller_hop(narrow: Way) -> None:
    done = narrow.run(LARGE, "1200", "4000", "9000")
    assert done.stdout.split() == ["True"] * 3, done.stderr


@pytest.mark.linux("routes with an MTU")
def test_a_connection_finds_the_segments_that_fit_a_smaller_hop_both_ways(narrow: Way) -> None:
    download = b"".join(big_blocks(narrow.called, 300_000))
    done = narrow.run(TRANSFER, str(len(download)))
    status, digest, segment = done.stdout.split()
    assert int(status) == 200, done.stderr
    assert digest == hashlib.sha256(download).hexdigest()
    assert int(segment) <= HOP_MTU - 40


@pytest.mark.linux("routes with an MTU; an error queue tells all of an error")
def test_a_hop_that_no_longer_knows_the_way_is_told_to_the_socket(narrow: Way) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    program = narrow.lab.spawn(narrow.caller, ["python3", "-c", NO_WAY, narrow.name], **pipes)
    assert program.stdout is not None
    assert program.stdout.readline() == f"{narrow.called}: there\n"
    rule = ["FORWARD", "-d", narrow.address(narrow.ends[1]), "-j", "REJECT", "--reject-with", "icmp-host-unreachable"]
    narrow.lab.exec(narrow.hop, ["iptables", "-A", *rule], check=True)
    told, error = program.communicate("go on\n", timeout=20)
    narrow.lab.exec(narrow.hop, ["iptables", "-D", *rule], check=True)
    assert told.split() == [*map(str, HOST_UNREACHABLE), "0", narrow.address(narrow.hop), narrow.virtual], error
