"""Figure 3 on real kernels: hosts of two homes with the same private addresses reach each other by name, with nothing
of ours on any of them."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from natf_bsd.lab import services
from natf_bsd.lab.figure3 import HOMES, Figure3Lab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.story import CURL_CONNECT, CURL_TIMEOUT, digest
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import packet
from tests.e2e.steps import Talk, differences, kill, kind
from tests.lab_platform import HERE, resolve

pytestmark = pytest.mark.lab

CURL = ("curl", "-sS", "--max-time", "20")
NAMES = {
    "alice": "alice.home.example.net",
    "bob": "bob.home.example.net",
    "carol": "carol.home2.example.net",
    "dave": "dave.home2.example.net",
}
ROUTER_OF = {"alice": "203.0.113.1", "bob": "203.0.113.1", "carol": "203.0.113.2", "dave": "203.0.113.2"}
CALLS = [("alice", "carol"), ("carol", "alice"), ("bob", "dave"), ("dave", "bob"), ("alice", "dave"), ("carol", "bob")]

UDP = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.bind(("", int(sys.argv[3])))
s.connect((sys.argv[1], int(sys.argv[2])))
try:
    for text in b"one", b"two":
        s.send(text)
        print(s.recv(2048).decode())
except OSError as error:
    print(type(error).__name__)
"""

FROM_ONE_PORT = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 10, ("", int(sys.argv[2])))
s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
data = b""
while chunk := s.recv(4096):
    data += chunk
print(data.split(b"\\r\\n\\r\\n")[1].decode())
"""


@pytest.fixture(scope="module")
def unreachable(figure3: Figure3Lab) -> Figure3Lab:
    """The lab without NAT-f, proved to need it: neither home is reached from the other."""
    for caller, called in CALLS[:2]:
        without = figure3.exec(caller, ["curl", "-sS", "--max-time", "3", f"http://{NAMES[called]}/"])
        # Refused, or by a NAT that denies what nobody inside asked for: silence.
        assert without.returncode in (CURL_CONNECT, CURL_TIMEOUT), f"reached without NAT-f: {without.stdout}"
    return figure3


@pytest.fixture
def natf(unreachable: Figure3Lab) -> Iterator[Figure3Lab]:
    """The lab with all four daemons; stopped, and whatever a test ended cleaned up, afterwards."""
    lab = unreachable
    lab.start()
    yield lab
    for (host, role), process in lab.daemons.items():
        if process.poll() is None:
            assert process.stop() == 0, process.output()
        else:
            assert lab.natf(host, "cleanup", role).returncode == 0


def spawn(lab: Figure3Lab, host: str, *argv: str) -> LabProcess:
    return lab.spawn(host, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def curl(lab: Figure3Lab, host: str, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return lab.exec(host, [*CURL, *options, url])


def counters(lab: Figure3Lab, host: str) -> dict[str, int]:
    return dict(status(lab, host)["counters"])


def status(lab: Figure3Lab, host: str) -> dict[str, Any]:
    """Of the external node's part."""
    return dict(json.loads(lab.natf(host, "status", "en", "--json").stdout)["en"])


def test_names_of_the_other_home_are_virtual_addresses_to_inside_hosts(natf: Figure3Lab) -> None:
    seen = {(host, name): resolve(natf, NAMES[name], host) for host in ("alice", "bob") for name in ("carol", "dave")}
    assert all(address.startswith("240.") for address in seen.values())
    assert seen["alice", "carol"] == seen["bob", "carol"] != seen["alice", "dave"]
    assert resolve(natf, NAMES["alice"], "carol").startswith("240.")


OTHER_LOOKUPS = """
import socket, sys
import dns.message, dns.query
address = socket.gethostbyname(sys.argv[1])
print(socket.gethostbyaddr(address)[0])
try:
    print(dns.query.tcp(dns.message.make_query(sys.argv[1], "A"), sys.argv[2], timeout=5))
except OSError as error:
    print(type(error).__name__)
"""


def test_inside_hosts_find_names_of_virtual_addresses_and_get_no_true_one_by_tcp(natf: Figure3Lab) -> None:
    done = natf.exec("alice", [sys.executable, "-c", OTHER_LOOKUPS, NAMES["carol"], natf.topology.nameserver])
    assert done.stdout.split() == [NAMES["carol"], "ConnectionResetError"], done.stderr


def test_several_hosts_of_both_homes_call_each_other_at_the_same_time(natf: Figure3Lab) -> None:
    fetches = [spawn(natf, caller, *CURL, f"http://{NAMES[called]}/") for caller, called in CALLS]
    for (caller, called), fetch in zip(CALLS, fetches, strict=True):
        page, error = fetch.communicate(timeout=30)
        assert f"This is {called}'s page.\nYou are {ROUTER_OF[caller]}:" in page, error


def test_datagrams_go_there_and_back_both_ways_at_once(natf: Figure3Lab) -> None:
    talks = [spawn(natf, caller, "python3", "-c", UDP, NAMES[called], "5000", "0") for caller, called in CALLS]
    for (_, called), talk in zip(CALLS, talks, strict=True):
        output, error = talk.communicate(timeout=30)
        assert output.splitlines() == [f"{called}: one", f"{called}: two"], error


def test_two_inside_hosts_may_have_the_same_source_port(natf: Figure3Lab) -> None:
    """And the router's own program beside them, with one of the ports Linux gives to programs: 5555 lies where the
    gateway's NAT takes its own from (docs/configuration.md), and would be the same flow to the external node.
    """
    for port in ("5555", "45555"):
        for program, arguments in ((UDP, ("5000", port)), (FROM_ONE_PORT, (port,))):
            callers = ("alice", "bob", "router") if port == "45555" else ("alice", "bob")
            runs = [spawn(natf, host, "python3", "-c", program, NAMES["carol"], *arguments) for host in callers]
            for caller, run in zip(callers, runs, strict=True):
                output, error = run.communicate(timeout=30)
                assert "carol" in output, (caller, port, error)


@pytest.mark.linux("natd translates the gateway's own packets too, to another port")
def test_a_program_of_the_gateway_with_an_inside_hosts_ports_is_refused(natf: Figure3Lab) -> None:
    def asks(host: str) -> list[str]:
        return natf.exec(host, ["python3", "-c", UDP, NAMES["carol"], "5000", "7777"]).stdout.split("\n")[:-1]

    answers = ["carol: one", "carol: two"]
    assert asks("alice") == answers
    assert asks("router") == ["OSError"]
    assert counters(natf, "router")["out.drop.port_taken"] > 0
    assert asks("alice") == answers


def test_the_routers_own_programs_reach_the_other_home_too(natf: Figure3Lab) -> None:
    assert "carol's page" in curl(natf, "router", f"http://{NAMES['carol']}/").stdout
    assert "alice's page" in curl(natf, "router2", f"http://{NAMES['alice']}/").stdout


@pytest.mark.parametrize("name", ["eve", "mallory"])
def test_who_is_denied_or_unknown_is_refused_at_once(natf: Figure3Lab, name: str) -> None:
    refused = counters(natf, "router")["out.drop.refused"]
    done = curl(natf, "alice", f"http://{name}.home2.example.net/")
    assert done.returncode == CURL_CONNECT, done.stderr
    assert counters(natf, "router")["out.drop.refused"] == refused + 1, "one answer, no SYN after it"
    told = natf.exec("alice", ["python3", "-c", UDP, f"{name}.home2.example.net", "5000", "0"])
    assert told.stdout.split() == ["ConnectionRefusedError"], told.stderr


def test_a_closed_port_is_told_with_the_virtual_address_in_it(natf: Figure3Lab) -> None:
    virtual = resolve(natf, NAMES["carol"], "alice")
    with natf.capture("alice", "eth0") as capture:
        done = natf.exec("alice", ["python3", "-c", UDP, NAMES["carol"], "5001", "5551"])
        errors = [p.data for p in capture.packets() if packet.protocol(p.data) == Protocol.ICMP]
    assert done.stdout.split() == ["ConnectionRefusedError"], done.stderr
    alice, carol = Endpoint(parse_address("192.168.0.2"), 5551), Endpoint(parse_address(virtual), 5001)
    assert [packet.quoted_flow(data) for data in errors] == [Flow(Protocol.UDP, alice, carol)]
    assert [packet.source(data) for data in errors] == [carol.address]


PING = """
import socket, struct, sys
address = socket.gethostbyname(sys.argv[1])
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(5)
s.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0), (address, 0))
data, (sender, _) = s.recvfrom(2048)
print(sender == address, data[20])
"""


@pytest.mark.parametrize("host", ["alice", "router"])
def test_ping_to_a_virtual_address_is_answered_with_an_error_at_once(natf: Figure3Lab, host: str) -> None:
    done = natf.exec(host, ["python3", "-c", PING, NAMES["carol"]])
    assert done.stdout.split() == ["True", "3"], done.stderr


LARGE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 5000))
for size in 3000, 9000:
    s.send(b"x" * size)
    print(len(s.recv(10000)))
"""


def test_datagrams_in_fragments_go_there_and_back(natf: Figure3Lab) -> None:
    done = natf.exec("alice", ["python3", "-c", LARGE, NAMES["carol"]])
    assert done.stdout.split() == [str(len("carol: ") + size) for size in (3000, 9000)], done.stderr


UPLOAD = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 10)
s.sendall(b"GET / HTTP/1.0\\r\\nX-Long: " + b"x" * 60000 + b"\\r\\n\\r\\n")
print(s.recv(1000).split(b"\\r\\n\\r\\n")[0].split()[1].decode(), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
"""


@pytest.fixture
def small_outer_mtu(unreachable: Figure3Lab) -> Iterator[None]:
    for router in HOMES:
        unreachable.exec(router, ["ip", "link", "set", "wan", "mtu", "1400"], check=True)
    yield
    for router in HOMES:
        unreachable.exec(router, ["ip", "link", "set", "wan", "mtu", "1500"], check=True)


@pytest.mark.linux("ipfw has no device in between")
def test_an_inside_host_learns_of_a_smaller_outer_mtu(small_outer_mtu: None, natf: Figure3Lab) -> None:
    """The fixture comes first: the device gets its MTU when the daemon starts."""
    done = natf.exec("alice", ["python3", "-c", UPLOAD, NAMES["carol"]])
    status_code, segment = map(int, done.stdout.split())
    assert segment <= 1400 - 40, done.stderr
    assert status_code < 500, "the whole request got there"


def test_a_download_of_twenty_megabytes_is_the_same_bytes(natf: Figure3Lab) -> None:
    copy = natf.run_dir / "copy"
    done = curl(natf, "alice", f"http://{NAMES['carol']}/big", "--max-time", "55", "-o", str(copy))
    assert done.returncode == 0, done.stderr
    assert digest(copy) == services.big_digest("carol")


def test_on_the_wire_are_one_request_one_reply_then_the_syn_and_no_virtual_address(natf: Figure3Lab) -> None:
    resolve(natf, NAMES["carol"], "alice")
    with natf.capture("router", "wan") as capture:
        assert curl(natf, "alice", f"http://{NAMES['carol']}/").returncode == 0
        seen = [p for p in capture.packets() if packet.protocol(p.data) in (Protocol.ICMP, Protocol.TCP)]
    kinds = [kind(captured) for captured in seen]
    assert kinds[:3] == ["request", "reply", "SYN"]
    assert kinds[3:] == ["TCP"] * len(kinds[3:]), "no second SYN, no pseudo-packet, no other ICMP"
    ends = {address for p in seen for address in (packet.source(p.data), packet.destination(p.data))}
    assert ends == {parse_address("203.0.113.1"), parse_address("203.0.113.2")}


def test_an_open_connection_of_an_inside_host_outlives_a_kill_and_new_ones_work(natf: Figure3Lab) -> None:
    talk = Talk(natf, "alice", NAMES["carol"])
    before = talk.request()
    kill(natf.daemons["router", "en"])
    natf.start_one("router", "en")
    assert talk.request() == before, "the same connection"
    assert "dave's page" in curl(natf, "bob", f"http://{NAMES['dave']}/").stdout


@pytest.mark.linux("what is diverted to a port that nobody reads is lost without a word, and TCP heeds no unreachable")
def test_without_its_daemon_the_router_refuses_virtual_addresses_at_once(natf: Figure3Lab) -> None:
    virtual = resolve(natf, NAMES["carol"], "alice")
    assert curl(natf, "alice", f"http://{virtual}/").returncode == 0
    kill(natf.daemons["router", "en"])
    with natf.capture("router", "wan") as capture:
        done = curl(natf, "alice", f"http://{virtual}/")
        leaked = [p.data for p in capture.packets() if packet.destination(p.data)[0] == 240]
    assert done.returncode == CURL_CONNECT, "an error, not a time-out"
    assert leaked == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_without_its_daemon_nothing_for_virtual_addresses_leaves_the_router(
    natf: Figure3Lab, number: signal.Signals
) -> None:
    """SIGUSR1: for a restart."""
    virtual = resolve(natf, NAMES["carol"], "alice")
    process = natf.daemons["router", "en"]
    process.send_signal(number)
    process.wait()
    with natf.capture("router", "wan") as capture:
        for host in "alice", "router":
            done = curl(natf, host, f"http://{virtual}/", "--connect-timeout", "2")
            assert done.returncode in (CURL_CONNECT, CURL_TIMEOUT), done.stdout
        leaked = [p.data for p in capture.packets() if packet.destination(p.data)[0] == 240]
    assert leaked == []


@pytest.mark.linux("its names of routes")
def test_nobody_outside_can_use_the_homes_virtual_addresses(natf: Figure3Lab) -> None:
    virtual = resolve(natf, NAMES["carol"], "alice")
    started = counters(natf, "router")["negotiation.started"]
    route = ["240.0.0.0/8", "via", "203.0.113.1"]
    natf.exec("dns", ["ip", "route", "add", *route], check=True)
    done = curl(natf, "dns", f"http://{virtual}/", "--connect-timeout", "3")
    natf.exec("dns", ["ip", "route", "del", *route], check=True)
    assert done.returncode == CURL_CONNECT
    assert counters(natf, "router")["negotiation.started"] == started


def test_what_a_firewall_reload_took_away_is_set_again(natf: Figure3Lab) -> None:
    HERE.reload_firewall(natf, "router")
    assert "set again" in natf.natf("router", "en", "reload").stdout
    assert "carol's page" in curl(natf, "alice", f"http://{NAMES['carol']}/").stdout


ONE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 5000))
try:
    s.send(b"one")
    s.recv(100)
except OSError as error:
    print(error.errno)
"""


@pytest.mark.linux("its NAT's rules")
def test_without_rules_of_nat_no_inside_hosts_packet_leaves(natf: Figure3Lab) -> None:
    virtual = resolve(natf, NAMES["carol"], "alice")
    natf.exec("router", ["iptables", "-t", "nat", "-F", "NATF-EN-POSTROUTING"], check=True)
    with natf.capture("router", "wan") as capture:
        told = natf.exec("alice", ["python3", "-c", ONE, virtual])
        leaked = [p.data for p in capture.packets() if parse_address("192.168.0.2") in p.data]
    assert told.stdout.split() == [str(errno.EHOSTUNREACH)], told.stderr
    assert leaked == [], "neither the packet, nor a request that tells its address"
    assert "set again" in natf.natf("router", "en", "reload").stdout
    assert "carol's page" in curl(natf, "alice", f"http://{NAMES['carol']}/").stdout


@pytest.mark.linux("its device")
def test_a_device_that_was_removed_ends_the_daemon_and_virtual_addresses_stay_refused(natf: Figure3Lab) -> None:
    virtual = resolve(natf, NAMES["carol"], "alice")
    natf.exec("router", ["ip", "link", "del", "natf1"], check=True)
    daemon = natf.daemons["router", "en"]
    assert daemon.wait(10) == 1
    assert "natf1 was removed" in daemon.output()
    with natf.capture("router", "wan") as capture:
        told = natf.exec("alice", ["python3", "-c", ONE, virtual])
        leaked = [p.data for p in capture.packets() if packet.destination(p.data)[0] == 240]
    assert (told.stdout.split(), leaked) == ([str(errno.EHOSTUNREACH)], [])
    natf.start_one("router", "en")
    assert "carol's page" in curl(natf, "alice", f"http://{NAMES['carol']}/").stdout


def test_daemons_that_end_leave_both_routers_as_they_were(unreachable: Figure3Lab) -> None:
    lab = unreachable
    before = {host: HERE.state(lab, host) for host in HOMES}
    lab.start()
    assert curl(lab, "alice", f"http://{NAMES['carol']}/").returncode == 0
    running = {host: HERE.state(lab, host) for host in HOMES}
    assert all(running[host]["rules"] != before[host]["rules"] for host in HOMES), "else nothing would be undone"
    for process in lab.daemons.values():
        assert process.stop() == 0
    assert [differences(before[host], HERE.state(lab, host)) for host in HOMES] == [[], []]


def test_cleanup_after_a_kill_leaves_both_routers_as_they_were(unreachable: Figure3Lab) -> None:
    lab = unreachable
    before = {host: HERE.state(lab, host) for host in HOMES}
    lab.start()
    for process in lab.daemons.values():
        kill(process)
    killed = {host: HERE.state(lab, host) for host in HOMES}
    assert all(killed[host]["rules"] != before[host]["rules"] for host in HOMES), "else nothing would be cleaned up"
    for host in HOMES:
        done = lab.natf(host, "cleanup")
        assert done.returncode == 0, done.stderr
    assert [differences(before[host], HERE.state(lab, host)) for host in HOMES] == [[], []]
