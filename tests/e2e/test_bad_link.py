"""A tenth of all packets between external node and router lost, a tenth doubled, a tenth late: nobody fails to connect.

`python -m tests.e2e.bad_link` prints the times as histograms, beside those of a clean link (docs/bad-link.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from natf_bsd.lab.figure1 import BadLinkLab, Figure1Lab
from natf_bsd.lab.link import Link
from natf_bsd.wire import packet
from tests.e2e.bad_link import BAD, TCP_FLOWS, UDP_FLOWS, Found, connections, counted
from tests.lab_platform import HERE, own_lab, remove_remains, resolve

pytestmark = [pytest.mark.lab, pytest.mark.linux("the bad link carries frames through packet(7) sockets")]

NUMBERED = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("", 5001))
    print("ready", flush=True)
    while data := s.recv(100):
        print(data.decode(), flush=True)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Figure1Lab]:
    remove_remains()
    with own_lab(BadLinkLab) as lab, lab:
        yield lab


@pytest.fixture(scope="module")
def found(lab: Figure1Lab) -> Found:
    """Of one run over the bad link, before which alice was proved to be out of reach without NAT-f."""
    with lab.linked(BAD):
        without = lab.exec("en", ["curl", "-sS", "--max-time", "5", "http://alice.home.example.net/"])
    assert without.returncode != 0
    lab.start_router()
    lab.start_en()
    return connections(lab, BAD)


def test_the_link_loses_doubles_and_delays_as_it_is_told(lab: Figure1Lab) -> None:
    """By who sends numbered datagrams and who receives them, the link's own counters apart."""
    sent = 1000
    send = f"""
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for number in range({sent}):
        s.sendto(b"%d" % number, ("203.0.113.10", 5001))
        time.sleep(0.001)
"""
    with lab.linked(BAD) as process:
        receiver = lab.spawn("en", ["python3", "-c", NUMBERED], name="numbered")
        lab.wait_until(lambda: "ready" in receiver.output(), receiver)
        lab.exec("router", ["python3", "-c", send], check=True)
        lab.exec("router", ["python3", "-c", "import time; time.sleep(0.2)"])
        receiver.stop()
    numbers = [int(line) for line in receiver.output().split()[1:]]
    different = set(numbers)
    counters = counted(process)["far to near"]
    assert counters["packets"] >= sent
    # Five standard deviations of the binomial distribution, and a copy may be lost too.
    assert 0.05 < 1 - len(different) / sent < 0.15
    assert 0.04 < (len(numbers) - len(different)) / sent < 0.15
    overtaken = sum(number < highest for number, highest in zip(numbers[1:], _highest(numbers), strict=False))
    assert overtaken > sent * 0.05


def _highest(numbers: list[int]) -> Iterator[int]:
    highest = -1
    for number in numbers:
        highest = max(highest, number)
        yield highest


def test_no_connection_fails(found: Found) -> None:
    assert found.failures == []
    assert (len(found.tcp), len(found.udp)) == (TCP_FLOWS, UDP_FLOWS)
    assert all(counters["lost"] > 0 for counters in found.link.values())


def test_a_lost_request_is_sent_again_and_a_mapping_comes_in_time(found: Found) -> None:
    assert max(found.requests) > 1
    assert max(found.negotiations) < 4.0


def test_a_connection_is_not_reset_because_its_syn_ack_was_lost(lab: Figure1Lab, found: Found) -> None:
    """Some of the 200 were; without the router's rule for packets that conntrack calls invalid each one ended so."""
    rules = lab.exec("router", ["iptables", "-vnxL", "NATF-RT-INPUT"], check=True).stdout.splitlines()
    [invalid] = [line for line in rules if "INVALID" in line]
    assert int(invalid.split()[0]) > 0
    assert not [line for line in HERE.own_rules(lab, "en") if "INVALID" in line]


OPEN = """
import socket, sys, time
port, address, remote, at = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
with socket.socket() as s:
    s.settimeout(20)
    s.bind(("", port))
    time.sleep(max(0, at - time.time()))
    s.connect((address, remote))
    s.sendall(b"from port %d" % port)
    print(s.recv(100).decode())
"""


def test_both_ends_may_open_a_connection_at_the_same_time(lab: Figure1Lab, found: Found) -> None:
    """Their SYNs cross on the way (RFC 9293, 3.5); nobody listens."""
    slow = Link(minimum_delay=0.1, maximum_delay=0.1)
    alice = resolve(lab, "alice.home.example.net")
    at = time.time() + 1.5
    with lab.linked(slow), lab.capture("en", "eth0") as capture:
        outer = lab.spawn("en", ["python3", "-c", OPEN, "42000", alice, "7000", f"{at}"])
        # A request and its answer are on the way for 0.2 s; then, for 0.1 s, the SYN.
        inner = lab.spawn("alice", ["python3", "-c", OPEN, "7000", "203.0.113.10", "42000", f"{at + 0.25}"])
        assert (outer.wait(30), inner.wait(30)) == (0, 0), outer.output() + inner.output()
        flows = ((p, packet.flow_of(bytearray(p.data))) for p in capture.packets())
        # Connections of the tests before may still be sending their FINs again.
        tcp = [p for p, flow in flows if flow and 42000 in (flow.source.port, flow.destination.port)]
    assert (outer.output().strip(), inner.output().strip()) == ("from port 7000", "from port 42000")
    assert [packet.tcp_flags(bytearray(p.data)) for p in tcp][:2] == [packet.TCP_SYN, packet.TCP_SYN]
    assert {p.outgoing for p in tcp[:2]} == {True, False}
