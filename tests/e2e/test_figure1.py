"""Figure 1 on real kernels: stock programs reach alice and bob by name, and get their error where they must not."""

from __future__ import annotations

import re

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.ops import control
from natf_bsd.types import Protocol, parse_address
from natf_bsd.wire import packet
from tests.e2e.steps import SOME, connect, curl, kind, status, udp
from tests.lab_platform import resolve

pytestmark = pytest.mark.lab

WAN = parse_address("203.0.113.1")


def test_alice_and_bob_have_different_virtual_addresses_and_their_own_pages(natf: Figure1Lab) -> None:
    addresses = {resolve(natf, f"{name}.home.example.net") for name in ("alice", "bob")}
    assert len(addresses) == 2
    assert all(address.startswith("240.") for address in addresses)
    for name in ("alice", "bob"):
        assert f"{name}'s page" in curl(natf, f"http://{name}.home.example.net/").stdout


def test_a_name_of_somebody_else_is_left_alone(natf: Figure1Lab) -> None:
    assert resolve(natf, "www.elsewhere.example.net") == "203.0.113.80"
    assert status(natf, "en")["counters"]["dns.sent.not_ours"] > 0


def test_datagrams_go_there_and_back(natf: Figure1Lab) -> None:
    assert udp(natf, "alice.home.example.net") == "alice: hello"
    assert udp(natf, "bob.home.example.net") == "bob: hello"


def test_one_connection_is_one_request_one_reply_then_the_syn_on_the_wire(natf: Figure1Lab) -> None:
    resolve(natf, "alice.home.example.net")
    with natf.capture("router", "wan") as capture:
        assert curl(natf, "http://alice.home.example.net/").returncode == 0
        kinds = [kind(p) for p in capture.packets() if packet.protocol(p.data) in (Protocol.ICMP, Protocol.TCP)]
    assert kinds[:3] == ["request", "reply", "SYN"]
    assert kinds[3:] == ["TCP"] * len(kinds[3:]), "no second SYN, no pseudo-packet, no other ICMP"


def test_the_added_delay_is_traced_in_the_parts_of_figure_7(natf: Figure1Lab) -> None:
    """Against an independent witness: what the wire saw between request and answer lies within the traced parts."""
    resolve(natf, "alice.home.example.net")
    with natf.capture("en", "eth0") as capture:
        curl(natf, "http://alice.home.example.net/")
        times = {kind(p): p.time for p in reversed(capture.packets())}
    en, router = status(natf, "en")["trace"], status(natf, "router")["trace"]
    assert len(en["answer_rewriting"]) >= 1
    entry = en["negotiations"][-1]
    [part] = [row["router"] for row in router["negotiations"] if row["transaction"] == entry["transaction"]]
    assert 0 < part < entry["answer_wait"]
    assert times["reply"] - times["request"] <= entry["answer_wait"]
    assert part < times["reply"] - times["request"]
    assert entry["total"] >= times["reply"] - times["request"]


@pytest.mark.parametrize("name", ["eve", "mallory"])
def test_who_is_denied_or_unknown_is_refused_at_once(natf: Figure1Lab, name: str) -> None:
    refused = status(natf, "en")["counters"]["out.drop.refused"]
    assert connect(natf, f"{name}.home.example.net")[0] == "ECONNREFUSED"
    assert status(natf, "en")["counters"]["out.drop.refused"] == refused + 1, "one answer, no SYN after it"
    assert udp(natf, f"{name}.home.example.net") == "ConnectionRefusedError"


def test_the_table_is_obeyed_without_a_restart(natf: Figure1Lab) -> None:
    assert connect(natf, "alice.home.example.net")[0] == "connected"
    assert natf.natf("router", "act", "deny", "alice").returncode == 0
    assert connect(natf, "alice.home.example.net")[0] == "ECONNREFUSED"
    assert natf.natf("router", "act", "allow", "alice").returncode == 0
    assert natf.natf("router", "act", "remove", "eve").returncode == 0
    assert natf.natf("router", "act", "add", "eve", "192.168.0.4", "tcp/80").returncode == 0
    assert connect(natf, "alice.home.example.net")[0] == "connected"
    assert connect(natf, "eve.home.example.net")[0] == "connected"
    assert udp(natf, "eve.home.example.net") == "ConnectionRefusedError", "eve's table line names tcp/80 only"


def test_a_table_that_is_removed_denies_everybody(natf: Figure1Lab) -> None:
    assert connect(natf, "alice.home.example.net")[0] == "connected"
    table = natf.act.read_text()
    natf.act.unlink()
    assert natf.router is not None
    natf.wait_until(lambda: "is gone" in natf.router.output(), natf.router)
    assert connect(natf, "alice.home.example.net")[0] == "ECONNREFUSED"
    natf.act.write_text(table)
    natf.wait_until(lambda: "3 hosts in force" in natf.router.output(), natf.router)
    assert connect(natf, "bob.home.example.net")[0] == "connected"


def test_a_table_that_is_gone_when_the_router_is_told_denies_everybody_too(natf: Figure1Lab) -> None:
    natf.act.unlink()
    with pytest.raises(NatfError, match="is gone; every request is denied"):
        control.ask(natf.run_dir / "router" / "router.sock", "reload")
    assert connect(natf, "alice.home.example.net")[0] == "ECONNREFUSED"


def test_a_table_with_a_fault_leaves_the_one_in_force(natf: Figure1Lab) -> None:
    natf.act.write_text("alice 192.168.0.2 perhaps\n")
    assert natf.router is not None
    natf.wait_until(lambda: "stays in force" in natf.router.output(), natf.router)
    assert "natf.act:1:" in natf.router.output()
    assert connect(natf, "alice.home.example.net")[0] == "connected"


def test_cookies_always_cost_one_round_trip_and_nothing_else(natf: Figure1Lab) -> None:
    assert natf.router is not None
    natf.router.stop()
    natf.start_router(cookies="always")
    assert connect(natf, "alice.home.example.net")[0] == "connected"
    counters = status(natf, "en")["counters"]
    assert (counters["control.used.challenge"], counters["control.used.response"]) == (1, 1)


def test_with_required_keys_only_their_holder_gets_in(natf: Figure1Lab) -> None:
    assert natf.router is not None
    assert natf.en is not None
    natf.router.stop()
    key = natf.run_dir / "key"
    assert natf.natf("router", "key", str(key)).returncode == 0
    natf.start_router(require_key=True, keys=[str(key)])
    assert connect(natf, "alice.home.example.net")[0] == "ECONNREFUSED"
    natf.en.stop()
    natf.start_en(keys={"home.example.net": str(key)})
    assert connect(natf, "alice.home.example.net")[0] == "connected"


def test_two_hundred_connections_at_once_all_succeed(natf: Figure1Lab) -> None:
    """At once: every one is open before the first one speaks."""
    program = """
import socket, threading
together = threading.Barrier(200)
good = []
def tcp(name):
    with socket.create_connection((f"{name}.home.example.net", 80), 30) as s:
        together.wait(60)
        s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        data = b""
        while chunk := s.recv(4096):
            data += chunk
        good.append(f"{name}'s page".encode() in data)
def udp(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(30)
        s.connect((f"{name}.home.example.net", 5000))
        s.send(b"x")
        together.wait(60)
        good.append(s.recv(100) == f"{name}: x".encode())
jobs = [(do, name) for do in (tcp, udp) for name in ("alice", "bob")] * 50
threads = [threading.Thread(target=do, args=(name,)) for do, name in jobs]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(good.count(True), len(good))
"""
    done = natf.exec("en", ["python3", "-c", program], capture_output=True, timeout=100)
    assert done.stdout.split() == ["200", "200"], done.stderr
    counters = status(natf, "en")["counters"]
    assert counters["negotiation.started"] >= 200
    assert counters["out.sent.handed_over"] >= 200


def test_ping_to_a_virtual_address_is_answered_with_an_error_at_once(natf: Figure1Lab) -> None:
    program = """
import socket, struct, sys, time
address = socket.gethostbyname("alice.home.example.net")
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(5)
s.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0), (address, 0))
while True:
    data, (sender, _) = s.recvfrom(2048)
    if data[20] == 3:
        print(sender == address, data[21])
        break
"""
    done = natf.exec("en", ["python3", "-c", program])
    assert done.stdout.split() == ["True", "10"], done.stderr


def test_status_shows_the_tables_as_text(natf: Figure1Lab) -> None:
    curl(natf, "http://alice.home.example.net/")
    en = natf.natf("en", "status").stdout
    assert "alice.home.example.net" in en
    assert "240." in en
    assert re.search(r"203\.0\.113\.1:\d+", en)
    router = natf.natf("router", "status").stdout
    assert "192.168.0.4" in router
    assert "deny" in router


def test_a_class_e_source_from_the_network_is_dropped(natf: Figure1Lab) -> None:
    """Otherwise anybody could speak to the external node as alice."""
    virtual = resolve(natf, "alice.home.example.net")
    listen = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 7777))
s.settimeout(3)
print("ready", flush=True)
print(s.recv(10))
"""
    forge = f"""
import socket
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
s.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
for source in ("{virtual}", "203.0.113.80"):
    there = Endpoint(parse_address("203.0.113.10"), 7777)
    s.sendto(build.udp(Endpoint(parse_address(source), 9), there, source.encode()[:3]), ("203.0.113.10", 0))
"""
    listener = natf.spawn("en", ["python3", "-c", listen], name="listener")
    natf.wait_until(lambda: "ready" in listener.output(), listener)
    natf.exec("plain", ["python3", "-c", forge], check=True)
    listener.wait(SOME)
    assert listener.output().split() == ["ready", "b'203'"], (
        "the honest packet arrived, the forged one before it did not"
    )
