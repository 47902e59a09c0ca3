"""The hairpin on a running kernel: a home router made of iptables, an inside network, and external nodes outside."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from natf_bsd.errors import NatfError, RestartNeeded
from natf_bsd.firewall import linux, runner
from natf_bsd.firewall.command import Command
from natf_bsd.firewall.runner import ProcSys, SysctlJournal
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.netfilter import NetfilterBridge
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from tests import spaces

pytestmark = [
    pytest.mark.lab,
    spaces.LINUX,
    pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported())),
]

G2 = parse_address("203.0.113.1")
ALICE, BOB = "192.168.0.2", "192.168.0.3"
EN = "203.0.113.10"
PORT, LOCAL = 7000, 40000
MAPPED = range(61000, 65536)

# What homes have: hide the inside, let nothing in that was not asked for.
HOME = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -i lan -o wan -j ACCEPT
-A FORWARD -i wan -o lan -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
"""


class Home:
    """alice and bob (one space, two addresses) - router - external node; the router's rules up, its bridge open."""

    def __init__(self) -> None:
        self.inside, self.router, self.outside = spaces.Space(), spaces.Space(), spaces.Space()
        self.router.cable("lan", "192.168.0.1/24", self.inside, "eth0", f"{ALICE}/24")
        self.router.cable("wan", "203.0.113.1/24", self.outside, "eth0", f"{EN}/24")
        self.inside.run(f"ip address add {BOB}/24 dev eth0")
        self.inside.run("ip route add default via 192.168.0.1")
        self.router.set("net/ipv4/ip_forward", "1")
        rules = linux.RouterFirewall(
            "wan", G2, control_queue=8701, mark=0x4E000000, mask=0xFF000000, tun="natf0", table=78
        )
        with self.router:
            runner.apply([Command(("iptables-restore", "-w", "--noflush"), stdin=HOME)])
            self.bridge = NetfilterBridge("natf0")
            runner.apply(linux.router_rules(rules))
            SysctlJournal(Path("/run/router.sysctl"), ProcSys()).apply(linux.router_sysctls(rules))
        self._cookie = 0

    def mapping(
        self,
        protocol: int,
        inside: str = ALICE,
        *,
        port: int = PORT,
        local: int = LOCAL,
        established: bool = False,
    ) -> int:
        """Ask the NAT for the mapping of one flow; returns m."""
        self._cookie += 1
        remote = Endpoint(parse_address(EN), local)
        flow = Flow(protocol, Endpoint(parse_address(inside), port), remote)
        self.bridge.write(pseudo.build(flow, self._cookie, self.bridge.style, established=established))
        captured = pseudo.parse_captured(self.next_captured())
        assert captured is not None
        assert (captured.cookie, captured.translated.destination) == (self._cookie, remote)
        assert captured.translated.source.address == G2
        return captured.translated.source.port

    def next_captured(self) -> bytes:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if found := list(self.bridge.captured()):
                (data,) = found
                return data
            time.sleep(0.0005)
        raise AssertionError("the pseudo-packet did not come back")

    def tcp(self, *, port: int = LOCAL) -> socket.socket:
        """A socket of the external node, bound to `port`."""
        with self.outside:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((EN, port))
        made.settimeout(10)
        return made

    def udp(self, *, port: int = LOCAL) -> socket.socket:
        with self.outside:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((EN, port))
        made.settimeout(10)
        return made

    def listener(self, address: str = ALICE) -> socket.socket:
        with self.inside:
            made = socket.create_server((address, PORT))
        made.settimeout(10)
        return made

    def udp_server(self, address: str = ALICE) -> socket.socket:
        with self.inside:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, PORT))
        made.settimeout(10)
        return made


def sniffer(space: spaces.Space) -> socket.socket:
    with space:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    made.setblocking(False)
    return made


@spaces.isolated
def test_without_a_mapping_nobody_gets_in() -> None:
    home = Home()
    home.listener()
    server = home.udp_server()
    with pytest.raises(ConnectionRefusedError):  # by the router itself
        home.tcp().connect(("203.0.113.1", PORT))
    home.udp().sendto(b"x", ("203.0.113.1", PORT))
    server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.recv(100)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_pseudo_packet_comes_back_translated_and_nothing_leaves_the_router(protocol: Protocol) -> None:
    comes_back(protocol)


@spaces.isolated
def comes_back(protocol: Protocol) -> None:
    home = Home()
    wires = [sniffer(home.outside), sniffer(home.inside)]
    outside = home.mapping(protocol)
    assert outside in MAPPED, "no port a service of the router listens on"
    assert home.mapping(protocol) == outside, "repeated before use"
    time.sleep(0.05)
    for wire in wires:
        with pytest.raises(BlockingIOError):
            wire.recv(2000)
    counters = home.bridge.counters
    assert (counters["written"], counters["captured"], counters["refused"]) == (2, 2, 0)


@spaces.isolated
def test_a_tcp_connection_comes_in_through_its_mapping_from_its_own_address() -> None:
    home = Home()
    server = home.listener()
    client = home.tcp()
    client.connect(("203.0.113.1", home.mapping(6)))
    accepted, address = server.accept()
    assert address == (EN, LOCAL)
    assert exchange(client, accepted, 300_000)


def exchange(client: socket.socket, server: socket.socket, size: int) -> bool:
    """`size` random bytes each way, and all of them arrive."""
    for sender, receiver in (client, server), (server, client):
        data = os.urandom(size)
        writer = threading.Thread(target=sender.sendall, args=(data,))
        writer.start()
        received = bytearray()
        while len(received) < size:
            received += receiver.recv(65536)
        writer.join()
        if received != data:
            return False
    return True


@spaces.isolated
def test_repeating_a_pseudo_packet_gives_the_same_mapping_and_does_not_harm_a_live_connection() -> None:
    home = Home()
    server = home.listener()
    client = home.tcp()
    outside = home.mapping(6)
    client.connect(("203.0.113.1", outside))
    accepted, _ = server.accept()
    assert home.mapping(6) == outside, "before any data"
    for _ in range(3):
        assert exchange(client, accepted, 100_000)
        assert home.mapping(6) == outside, "between data"
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    assert home.mapping(6) == outside, "half closed"
    accepted.sendall(b"last words")
    assert client.recv(100) == b"last words"
    accepted.close()
    assert client.recv(1) == b""


@spaces.isolated
def test_after_a_reset_the_same_ports_can_be_mapped_at_once() -> None:
    home = Home()
    server = home.listener()
    for number in range(3):
        client = home.tcp()
        client.connect(("203.0.113.1", home.mapping(6)))
        accepted, _ = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
        assert home.bridge.counters["reopened"] == number
    assert home.bridge.counters["not_looked_up"] == 0


@spaces.isolated
@pytest.mark.parametrize("established", [True, False])
def test_a_live_connection_goes_on_after_its_entry_is_gone_only_by_an_ack(established: bool) -> None:
    """Behind a SYN what the inside host sends next is invalid to conntrack, and leaves untranslated."""
    home = Home()
    server = home.listener()
    client = home.tcp()
    outside = home.mapping(6)
    client.connect(("203.0.113.1", outside))
    accepted, _ = server.accept()
    assert exchange(client, accepted, 1000)
    flow = Flow(6, Endpoint(parse_address(ALICE), PORT), Endpoint(parse_address(EN), LOCAL))
    home.bridge.forget(flow)
    home.bridge.forget(flow)  # once more does no harm
    with home.router:
        runner.apply([Command(("iptables", "-t", "nat", "-I", "NATF-RT-POSTROUTING", *to_port(outside)))])
    assert home.mapping(6, established=established) == outside
    client.settimeout(2)
    accepted.sendall(b"more")
    if established:
        assert client.recv(100) == b"more"
        assert exchange(client, accepted, 100_000)
    else:
        with pytest.raises(TimeoutError):
            client.recv(100)


def to_port(number: int) -> tuple[str, ...]:
    """A rule by which the NAT chooses the port that the client of these tests still talks to."""
    return ("-o", "natf0", "-p", "tcp", "-j", "SNAT", "--to-source", f"203.0.113.1:{number}")


@spaces.isolated
def test_a_pseudo_packet_does_not_shorten_the_life_of_an_established_connection() -> None:
    home = Home()
    home.router.set("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "1")
    home.router.set("net/netfilter/nf_conntrack_tcp_timeout_syn_recv", "1")
    server = home.listener()
    client = home.tcp()
    outside = home.mapping(6)
    client.connect(("203.0.113.1", outside))
    accepted, _ = server.accept()
    assert exchange(client, accepted, 10)
    assert home.mapping(6) == outside
    time.sleep(2.5)
    assert exchange(client, accepted, 10)


@spaces.isolated
def test_an_established_mapping_lives_by_the_setting_the_rules_raise_and_not_by_tcp_timeout_established() -> None:
    home = Home()
    server = home.listener()
    for limit, survives in ("2", False), ("86400", True):
        home.router.set("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", limit)
        client = home.tcp(port=LOCAL + int(limit) % 7)
        client.connect(("203.0.113.1", home.mapping(6, local=LOCAL + int(limit) % 7)))
        accepted, _ = server.accept()
        assert exchange(client, accepted, 10)
        time.sleep(3.5)
        if survives:
            assert exchange(client, accepted, 10)
        else:
            client.send(b"to a mapping that has gone")
            with pytest.raises(ConnectionResetError):  # by the router itself
                client.recv(10)


@spaces.isolated
def test_two_inside_hosts_are_told_apart_by_their_ports() -> None:
    home = Home()
    servers = {ALICE: home.udp_server(ALICE), BOB: home.udp_server(BOB)}
    client = home.udp()
    first, second = home.mapping(17, ALICE), home.mapping(17, BOB)
    assert first != second
    for port, address in (first, ALICE), (second, BOB):
        client.sendto(address.encode(), ("203.0.113.1", port))
        data, source = servers[address].recvfrom(100)
        assert (data, source) == (address.encode(), (EN, LOCAL))
        servers[address].sendto(b"answer", source)
        assert client.recvfrom(100) == (b"answer", ("203.0.113.1", port))


@spaces.isolated
def test_nobodys_connections_to_a_service_of_the_router_can_be_taken_by_a_request_in_its_name() -> None:
    home = Home()
    home.listener()
    with home.router:
        service = socket.create_server(("203.0.113.1", PORT))
    service.settimeout(5)
    home.mapping(6)  # as a forged request from EN:LOCAL for alice's port of the same number would
    home.tcp().connect(("203.0.113.1", PORT))
    assert service.accept()[1] == (EN, LOCAL)


@pytest.mark.parametrize("destination", [EN, BOB, "203.0.113.1"])
def test_without_its_ip_rule_a_pseudo_packet_goes_nowhere(destination: str) -> None:
    goes_nowhere(destination)


@spaces.isolated
def goes_nowhere(destination: str) -> None:
    home = Home()
    home.router.run("iptables -P FORWARD ACCEPT")
    home.router.run("ip rule del priority 78")
    for name in "all", "natf0":  # that stops it too where it is on
        home.router.set(f"net/ipv4/conf/{name}/rp_filter", "0")
    wires = [sniffer(home.outside), sniffer(home.inside)]
    with home.router:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("", LOCAL))
    wires.append(listener)
    listener.setblocking(False)
    flow = Flow(17, Endpoint(parse_address("192.168.0.9"), PORT), Endpoint(parse_address(destination), LOCAL))
    home.bridge.write(pseudo.build(flow, 1, home.bridge.style))
    time.sleep(0.05)
    for wire in wires:
        with pytest.raises(BlockingIOError):
            wire.recv(2000)
    assert list(home.bridge.captured()) == []


@spaces.isolated
def test_nothing_of_others_goes_into_the_device() -> None:
    home = Home()
    home.router.run("iptables -P FORWARD ACCEPT")
    home.router.run("ip route add 198.51.100.0/24 dev natf0")
    with home.inside:
        speaker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    time.sleep(0.05)
    list(home.bridge.captured())  # what IPv6 said before it was switched off
    before = home.bridge.counters["foreign"]
    speaker.sendto(b"astray", ("198.51.100.1", 9))
    time.sleep(0.05)
    assert list(home.bridge.captured()) == []
    assert home.bridge.counters["foreign"] == before


@spaces.isolated
def test_a_closed_port_inside_refuses_the_connection_and_the_datagram() -> None:
    home = Home()
    with pytest.raises(ConnectionRefusedError):
        home.tcp().connect(("203.0.113.1", home.mapping(6)))
    client = home.udp()
    client.connect(("203.0.113.1", home.mapping(17)))
    client.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)


@spaces.isolated
def test_a_stray_packet_that_came_first_costs_the_port_but_not_the_mapping() -> None:
    home = Home()
    port = MAPPED[100]  # within the range netfilter keeps the port if it can
    stray = home.udp()
    with home.inside:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((ALICE, port))
    server.settimeout(10)
    with home.router:  # somebody has to take it, else the kernel forgets it
        taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taker.bind(("", port))
    taker.settimeout(5)
    stray.sendto(b"stray", ("203.0.113.1", port))
    taker.recv(100)
    outside = home.mapping(17, port=port)
    assert outside != port
    stray.sendto(b"mapped", ("203.0.113.1", outside))
    assert server.recv(100) == b"mapped"


@spaces.isolated
def test_a_mapping_admits_nobody_else() -> None:
    home = Home()
    server = home.udp_server()
    outside = home.mapping(17)
    other, right = home.udp(port=LOCAL + 1), home.udp()
    other.sendto(b"other", ("203.0.113.1", outside))
    right.sendto(b"right", ("203.0.113.1", outside))
    assert server.recv(100) == b"right"
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(100)


@spaces.isolated
def test_many_mappings_written_at_once_all_come_back() -> None:
    home = Home()
    cookies = set(range(400))
    for cookie in cookies:
        flow = Flow(17, Endpoint(parse_address(ALICE), PORT), Endpoint(parse_address(EN), 10_000 + cookie))
        home.bridge.write(pseudo.build(flow, cookie, home.bridge.style))
    found: set[int] = set()
    end = time.monotonic() + 10
    while found != cookies and time.monotonic() < end:
        for data in list(home.bridge.captured()):
            captured = pseudo.parse_captured(data)
            assert captured is not None
            found.add(captured.cookie)
    assert found == cookies


@spaces.isolated
def test_other_packets_on_the_device_are_counted_and_kept_out() -> None:
    home = Home()
    list(home.bridge.captured())
    before = home.bridge.counters["foreign"]
    with home.router:
        speaker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    speaker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"natf0")
    speaker.sendto(b"mdns, say", ("192.0.2.1", 5353))
    deadline = time.monotonic() + 5
    while home.bridge.counters["foreign"] == before and time.monotonic() < deadline:
        assert list(home.bridge.captured()) == []
    assert home.bridge.counters["foreign"] == before + 1


@spaces.isolated
def test_a_write_to_a_device_that_is_down_is_counted_as_refused() -> None:
    home = Home()
    home.router.run("ip link set natf0 down")
    flow = Flow(17, Endpoint(parse_address(ALICE), PORT), Endpoint(parse_address(EN), LOCAL))
    home.bridge.write(pseudo.build(flow, 1, home.bridge.style))
    assert home.bridge.counters["refused"] == 1


@spaces.isolated
def test_a_device_somebody_removed_is_said_in_words() -> None:
    home = Home()
    home.router.run("ip link del natf0")
    with pytest.raises(RestartNeeded, match="natf0 was removed"):
        list(home.bridge.captured())
    with pytest.raises(RestartNeeded, match="natf0 was removed"):
        home.bridge.write(bytes(60))


@spaces.isolated
def test_the_announced_lifetime_is_never_longer_than_conntracks() -> None:
    home = Home()
    home.router.set("net/netfilter/nf_conntrack_udp_timeout", "30")
    home.router.set("net/netfilter/nf_conntrack_tcp_timeout_established", "432000")
    with home.router:
        assert (home.bridge.lifetime(17), home.bridge.lifetime(6)) == (30, 86_400)
    home.router.set("net/netfilter/nf_conntrack_udp_timeout", "100")
    home.router.set("net/netfilter/nf_conntrack_tcp_timeout_established", "3600")
    with home.router:
        other = NetfilterBridge("natf1")
        assert (other.lifetime(17), other.lifetime(6)) == (60, 3600)
    home.router.set("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "300")
    with home.router:
        assert NetfilterBridge("natf2").lifetime(6) == 300


@spaces.isolated
def test_the_device_lives_as_long_as_the_bridge() -> None:
    bridge = NetfilterBridge("natf0")
    assert "natf0" in dict(socket.if_nameindex()).values()
    with pytest.raises(NatfError, match="another process holds the device"):
        NetfilterBridge("natf0")
    bridge.close()
    bridge.close()
    assert "natf0" not in dict(socket.if_nameindex()).values()


@spaces.isolated
def test_what_can_not_be_opened_says_why() -> None:
    for name in "", "a" * 16:
        with pytest.raises(NatfError, match="1 to 15 characters"):
            NetfilterBridge(name)
    with pytest.raises(NatfError, match="is no TUN"):
        NetfilterBridge("lo")
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(header, nothing) == 0
    with pytest.raises(NatfError, match="CAP_NET_ADMIN"):
        NetfilterBridge("natf0")
