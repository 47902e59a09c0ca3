"""Packets rewritten at an interface by our eBPF programs, on the running kernel: a host and the router it talks to."""

from __future__ import annotations

import errno
import functools
import json
import select
import socket
import struct
import time
from collections.abc import Collection
from ipaddress import IPv4Network

import pytest

from natf_bsd.datapath.ebpf import assembly, kernel, vat
from natf_bsd.datapath.ebpf.interface import INWARD, OUT, Filters
from natf_bsd.datapath.ebpf.programs import endpoint_of, flow_key_of, key_of, value_of
from natf_bsd.datapath.ebpf.vat import InterfaceVat
from natf_bsd.types import Address, Endpoint, Flow, Protocol, format_address, parse_address
from natf_bsd.wire import build
from tests import spaces

MARK, MASK = 0x4E000000, 0xFF000000
G1, V1, G2 = parse_address("203.0.113.10"), parse_address("240.0.1.1"), parse_address("203.0.113.1")
MAPPED = Endpoint(G2, 61000)
FAR = parse_address("198.51.100.7")
ETH_IP, ETH_VLAN = 0x0800, 0x8100


@functools.cache
def unable() -> str | None:
    """Why there are no such programs here, or None."""
    if reason := spaces.unsupported():
        return reason
    try:
        kernel.lift_limit()
        kernel.Map.create("natf_probe", kernel.ARRAY, 4, 8, 1).close()
    except OSError as error:
        return f"no eBPF here: {error.strerror}"
    return None


pytestmark = [
    pytest.mark.lab,
    spaces.LINUX,
    pytest.mark.skipif(unable() is not None, reason=str(unable())),
]


def flow_of(protocol: Protocol, source: int, destination: int = 80, virtual: Address = V1) -> Flow:
    return Flow(protocol, Endpoint(G1, source), Endpoint(virtual, destination))


class Host:
    """The virtual addresses are reached by the default route, whose next hop is the router."""

    def __init__(self, *, default: str = "203.0.113.1") -> None:
        self.en, self.router = spaces.Space(), spaces.Space()
        self.en.cable("eth0", "203.0.113.10/24", self.router, "wan", "203.0.113.1/24")
        self.en.run(f"ip route add default via {default}")
        self.vat = self.at("eth0")

    def at(self, interface: str, flows: int = 100) -> InterfaceVat:
        with self.en:
            return InterfaceVat(interface, prefix=240, mark=MARK, mask=MASK, flows=flows)

    def program(self, kind: socket.SocketKind, source: int) -> socket.socket:
        with self.en:
            program = socket.socket(socket.AF_INET, kind)
        program.settimeout(5)
        program.bind(("203.0.113.10", source))
        return program

    def server(self, kind: socket.SocketKind) -> socket.socket:
        with self.router:
            server = socket.socket(socket.AF_INET, kind)
        server.bind(("203.0.113.1", MAPPED.port))
        server.settimeout(5)
        if kind is socket.SOCK_STREAM:
            server.listen()
        return server

    def wire(self) -> socket.socket:
        """What arrives at the router, from the IPv4 header."""
        with self.router:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_IP))
        wire.settimeout(0.3)
        return wire

    def send_raw(self, packet: bytes) -> None:
        """From the router to the host, as it is."""
        with self.router, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
            s.sendto(packet, ("203.0.113.10", 0))

    def send_tagged(self, packet: bytes, *, tag: int) -> None:
        """As `send_raw`, in a frame with a VLAN tag."""
        there = json.loads(self.en.run("ip -j link show dev eth0"))[0]["address"]
        with self.router, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.bind(("wan", ETH_VLAN))
            here = s.getsockname()[4]
            s.send(bytes.fromhex(there.replace(":", "")) + here + struct.pack("!HHH", ETH_VLAN, tag, ETH_IP) + packet)

    def heed(self) -> list[Flow]:
        with self.en:
            return self.vat.heed()

    def heed_rules(self, refusal: str | None, denied: Collection[IPv4Network]) -> None:
        with self.en:
            self.vat.heed_rules(refusal, denied)

    def take(self, flow: Flow, mapped: Endpoint) -> bool:
        with self.en:
            return self.vat.take(flow, mapped)

    def tick(self, now: float) -> list[Flow]:
        with self.en:
            return self.vat.tick(now)

    def remove(self) -> None:
        with self.en:
            self.vat.remove()

    def drops(self) -> tuple[int, int]:
        counters = self.vat.counters
        return counters["drop.no_flow"], counters["drop.forged"]


@spaces.isolated
def test_datagrams_are_translated_both_ways() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40000)
    assert host.take(flow_of(Protocol.UDP, 40000), MAPPED)
    program.connect(("240.0.1.1", 80))
    for size in (0, 1, 2, 33, 1472):
        program.send(bytes(size))
        data, source = server.recvfrom(2000)
        assert (data, source) == (bytes(size), ("203.0.113.10", 40000))
        server.sendto(data, source)
        assert program.recv(2000) == data
    assert host.drops() == (0, 0)


@spaces.isolated
def test_a_connection_carries_much_both_ways() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_STREAM), host.program(socket.SOCK_STREAM, 40001)
    assert host.take(flow_of(Protocol.TCP, 40001), MAPPED)
    program.connect(("240.0.1.1", 80))
    connection, source = server.accept()
    assert source == ("203.0.113.10", 40001)
    blob = bytes(range(256)) * 1500
    program.sendall(blob)
    assert received(connection, len(blob)) == blob
    connection.sendall(blob)
    assert received(program, len(blob)) == blob
    assert program.getpeername() == ("240.0.1.1", 80)


def received(s: socket.socket, size: int) -> bytes:
    return s.makefile("rb").read(size)


@spaces.isolated
def test_what_has_no_flow_does_not_leave_and_what_is_forged_does_not_enter() -> None:
    host = Host()
    wire, program = host.wire(), host.program(socket.SOCK_DGRAM, 40002)
    program.sendto(b"nobody knows it", ("240.0.1.1", 80))
    with pytest.raises(TimeoutError):
        wire.recv(2000)
    assert host.drops() == (1, 0)
    host.send_raw(build.udp(Endpoint(V1, 80), Endpoint(G1, 40002), b"forged"))
    program.settimeout(0.2)
    with pytest.raises(TimeoutError):
        program.recv(100)
    assert host.drops() == (1, 1)


@spaces.isolated
def test_what_is_of_others_passes() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40003)
    assert host.take(flow_of(Protocol.UDP, 40003), MAPPED)
    program.sendto(b"to the router itself", ("203.0.113.1", MAPPED.port))
    other = host.program(socket.SOCK_DGRAM, 40004)
    other.sendto(b"another program", ("203.0.113.1", MAPPED.port))
    heard = {server.recvfrom(100) for _ in range(2)}
    assert {data for data, _ in heard} == {b"to the router itself", b"another program"}
    server.sendto(b"back", ("203.0.113.10", 40004))
    assert other.recvfrom(100) == (b"back", ("203.0.113.1", MAPPED.port))


@spaces.isolated
def test_ip_options_are_passed_over() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40005)
    assert host.take(flow_of(Protocol.UDP, 40005), MAPPED)
    program.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([148, 4, 0, 0]))  # router alert
    program.connect(("240.0.1.1", 80))
    program.send(b"with options")
    data, source = server.recvfrom(100)
    assert (data, source) == (b"with options", ("203.0.113.10", 40005))
    server.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([148, 4, 0, 0]))
    server.sendto(b"so have I", source)
    assert program.recv(100) == b"so have I"


@spaces.isolated
def test_a_datagram_without_a_checksum_stays_without() -> None:
    host = Host()
    wire, program = host.wire(), host.program(socket.SOCK_DGRAM, 40006)
    assert host.take(flow_of(Protocol.UDP, 40006), MAPPED)
    program.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
    program.sendto(b"bare", ("240.0.1.1", 80))
    packet = wire.recv(2000)
    assert packet[16:20] == G2
    assert packet[26:28] == b"\0\0"


@spaces.isolated
def test_a_datagram_in_fragments_goes_out_as_one() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40007)
    assert host.take(flow_of(Protocol.UDP, 40007), MAPPED)
    for size in (1473, 4000, 60_000):
        program.sendto(bytes(size), ("240.0.1.1", 80))
        assert len(server.recv(65535)) == size
    assert host.drops() == (0, 0)


@spaces.isolated
def test_a_packet_too_short_for_ports_does_not_leave() -> None:
    host = Host()
    wire = host.wire()
    short = bytes(build.udp(Endpoint(G1, 40008), Endpoint(V1, 80), b""))[:22]
    with host.en, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(short[:2] + len(short).to_bytes(2, "big") + short[4:], ("240.0.1.1", 0))
    with pytest.raises(TimeoutError):
        wire.recv(2000)
    assert host.drops() == (1, 0)


@spaces.isolated
def test_fragments_that_come_are_marked_and_left_to_reassembly() -> None:
    """In whatever order; the daemon translates the datagram."""
    host = Host()
    assert host.take(flow_of(Protocol.UDP, 40008), MAPPED)
    host.en.run("iptables -t mangle -A INPUT -m mark --mark 0x4e000000/0xff000000 -j ACCEPT")
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40008)
    server.sendto(bytes(4000), ("203.0.113.10", 40008))
    data, source = program.recvfrom(65535)
    assert (len(data), source) == (4000, ("203.0.113.1", MAPPED.port))
    whole = bytes(build.udp(MAPPED, Endpoint(G1, 40008), bytes(2000)))
    for part in reversed(fragments(whole, 1480)):
        host.send_raw(part)
    assert len(program.recv(65535)) == 2000
    assert marked(host) == 2


def fragments(packet: bytes, size: int) -> list[bytes]:
    header, data = packet[:20], packet[20:]
    parts = []
    for offset in range(0, len(data), size):
        more = 0x2000 if offset + size < len(data) else 0
        fields = struct.pack("!HHH", 20 + len(data[offset : offset + size]), 77, more | offset // 8)
        parts.append(header[:2] + fields + header[8:10] + b"\0\0" + header[12:] + data[offset : offset + size])
    return parts


def marked(host: Host) -> int:
    counted = host.en.run("iptables -t mangle -L INPUT -v -x -n").splitlines()
    return sum(int(line.split()[0]) for line in counted if "mark match" in line)


@spaces.isolated
def test_errors_about_a_flow_are_marked_and_no_others() -> None:
    host = Host()
    assert host.take(flow_of(Protocol.UDP, 40009), MAPPED)
    host.en.run("iptables -t mangle -A INPUT -p icmp -m mark --mark 0x4e000000/0xff000000 -j ACCEPT")
    seen = build.udp(Endpoint(G1, 40009), MAPPED, b"hello")
    other = build.udp(Endpoint(G1, 40010), MAPPED, b"hello")
    host.send_raw(bytes(build.unreachable_for(other, code=3, source=G2)))
    assert marked(host) == 0
    host.send_raw(bytes(build.unreachable_for(seen, code=3, source=G2)))
    host.send_raw(bytes(build.time_exceeded_for(seen, source=FAR)))
    time.sleep(0.05)
    assert marked(host) == 2


@spaces.isolated
def test_what_is_dropped_from_the_table_is_translated_no_longer() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40011)
    flow = flow_of(Protocol.UDP, 40011)
    assert host.take(flow, MAPPED)
    assert (list(host.vat), host.vat.mapped(flow.key)) == ([flow.key], MAPPED)
    host.vat.drop(flow)
    host.vat.drop(flow)
    assert (list(host.vat), host.vat.mapped(flow.key)) == ([], None)
    program.sendto(b"late", ("240.0.1.1", 80))
    assert host.drops() == (1, 0)
    server.sendto(b"late too", ("203.0.113.10", 40011))
    assert program.recvfrom(100) == (b"late too", ("203.0.113.1", MAPPED.port))


@spaces.isolated
def test_a_full_table_refuses_and_leaves_nothing_half_done() -> None:
    host = Host()
    host.remove()
    host.vat.close()
    host.vat = host.at("eth0", flows=4)
    taken = [host.take(flow_of(Protocol.UDP, 41000 + n), Endpoint(G2, 62000 + n)) for n in range(200)]
    assert not all(taken)
    assert len(list(host.vat)) == sum(taken)
    assert host.vat.counters["refused"] == 200 - sum(taken)
    for n, was in enumerate(taken):
        if was:
            host.vat.drop(flow_of(Protocol.UDP, 41000 + n))
    assert host.take(flow_of(Protocol.UDP, 40012), MAPPED)


@spaces.isolated
def test_flows_outlive_a_daemon_and_the_next_one_has_them() -> None:
    host = Host()
    server, program = host.server(socket.SOCK_STREAM), host.program(socket.SOCK_STREAM, 40013)
    flow = flow_of(Protocol.TCP, 40013)
    assert host.take(flow, MAPPED)
    program.connect(("240.0.1.1", 80))
    connection, _ = server.accept()
    host.vat.close()
    program.sendall(b"nobody is there")
    assert connection.recv(100) == b"nobody is there"
    host.vat = host.at("eth0")
    assert (list(host.vat), host.vat.mapped(flow.key)) == ([flow.key], MAPPED)
    program.sendall(b"somebody is")
    assert connection.recv(100) == b"somebody is"
    host.vat.drop(flow)
    assert list(host.vat) == []


@spaces.isolated
def test_with_another_size_the_flows_begin_again() -> None:
    host = Host()
    assert host.take(flow_of(Protocol.TCP, 40014), MAPPED)
    host.vat.close()
    host.vat = host.at("eth0", flows=50)
    assert list(host.vat) == []


@spaces.isolated
def test_routes_that_an_earlier_run_made_are_taken_over() -> None:
    host = Host(default="203.0.113.254")
    other = parse_address("240.0.1.2")
    assert host.take(flow_of(Protocol.UDP, 40038), MAPPED)
    assert host.take(flow_of(Protocol.UDP, 40038, virtual=other), MAPPED)
    host.vat.drop(flow_of(Protocol.UDP, 40038, virtual=other))
    host.vat.close()  # as by a kill
    host.vat = host.at("eth0")
    host.tick(time.monotonic() + 61)
    routes = host.en.run("ip route show proto 78")
    assert "240.0.1.1 " in routes
    assert "240.0.1.2 " not in routes
    host.vat.drop(flow_of(Protocol.UDP, 40038))
    host.tick(time.monotonic() + 61)
    assert host.en.run("ip route show proto 78") == ""


@spaces.isolated
def test_nothing_is_left_when_it_is_removed_nor_after_a_kill() -> None:
    host = Host()
    before = host.en.run("tc qdisc show"), host.en.run("ip route show table all")
    host.remove()
    clean = host.en.run("tc qdisc show")
    assert "clsact" in before[0]
    assert "clsact" not in clean
    host.vat.close()
    host.vat = host.at("eth0")
    assert host.take(flow_of(Protocol.UDP, 40015), MAPPED)
    host.vat.close()  # as by a kill
    with host.en:
        vat.remove()
    assert (host.en.run("tc qdisc show"), host.en.run("ip route show table all")) == (clean, before[1])


@spaces.isolated
def test_filters_of_others_stay() -> None:
    host = Host()
    host.en.run("tc filter add dev eth0 egress pref 8000 protocol ip u32 match u32 0 0")
    assert host.take(flow_of(Protocol.UDP, 40030), MAPPED), "it comes behind ours"
    host.remove()
    assert "pref 8000 u32" in host.en.run("tc filter show dev eth0 egress")
    assert "clsact" in host.en.run("tc qdisc show dev eth0")
    assert "natf" not in host.en.run("tc filter show dev eth0 ingress")


@spaces.isolated
def test_a_discipline_that_others_made_stays() -> None:
    host = Host()
    host.remove()
    host.vat.close()
    host.en.run("tc qdisc add dev eth0 clsact")
    host.vat = host.at("eth0")
    host.remove()
    assert "clsact" in host.en.run("tc qdisc show dev eth0")
    assert "natf" not in host.en.run("tc filter show dev eth0 egress")


@spaces.isolated
def test_the_discipline_goes_with_the_programs_even_if_they_were_attached_anew() -> None:
    host = Host()
    host.vat.close()
    host.vat = host.at("eth0")
    host.remove()
    assert "clsact" not in host.en.run("tc qdisc show dev eth0")


@spaces.isolated
def test_where_the_older_discipline_is_there_is_no_place() -> None:
    """Its filters see what enters only: ours for what leaves would be among them."""
    host = Host()
    host.remove()
    host.vat.close()
    host.en.run("tc qdisc add dev eth0 ingress")
    with pytest.raises(OSError, match="discipline ingress instead of clsact"):
        host.at("eth0")
    assert host.en.run("tc filter show dev eth0 ingress") == ""


@spaces.isolated
def test_flows_go_to_the_nat_while_the_programs_cannot_be_attached() -> None:
    host = Host()
    flow = flow_of(Protocol.UDP, 40031)
    assert host.take(flow, MAPPED)
    host.en.run("tc qdisc del dev eth0 clsact")
    host.en.run("tc qdisc add dev eth0 ingress")
    assert host.heed() == [flow]
    assert not host.take(flow, MAPPED)
    host.vat.drop(flow)
    host.en.run("tc qdisc del dev eth0 ingress")
    assert host.heed() == []
    assert host.take(flow, MAPPED)
    assert host.vat.counters["attached_again"] == 1


@spaces.isolated
def test_flows_go_to_the_nat_while_somebody_sees_their_packets_first() -> None:
    host = Host()
    flow = flow_of(Protocol.UDP, 40032)
    assert host.take(flow, MAPPED)
    for place in ("egress", "ingress"):
        host.en.run(f"tc filter add dev eth0 {place} pref 5 protocol ip u32 match u32 0 0")
        assert host.heed() == [flow]
        assert not host.take(flow, MAPPED)
        host.en.run(f"tc filter del dev eth0 {place} pref 5")
        assert host.heed() == []
        assert host.take(flow, MAPPED)


@spaces.isolated
def test_programs_at_the_newer_place_come_first_too() -> None:
    host = Host()
    assert host.take(flow_of(Protocol.UDP, 40033), MAPPED)
    with host.en:
        index = socket.if_nametoindex("eth0")
        passes = assembly.Assembly()
        passes.leave(0)
        program = kernel.load("passes", passes.code())
        try:
            attach_to_tcx(index, program)
        except OSError as error:
            if error.errno == errno.EINVAL:  # before 6.6; nothing is there either
                assert kernel.attached(index, TCX_OUT) == 0
                return
            raise
    assert len(host.tick(0.0)) == 1
    assert not host.take(flow_of(Protocol.UDP, 40033), MAPPED)


TCX_OUT = 47


def attach_to_tcx(index: int, program: int) -> None:
    attributes = struct.pack("=IIII48x", index, program, TCX_OUT, 0)
    kernel._bpf(8, kernel._buffer(attributes))


@spaces.isolated
def test_what_others_change_is_news_and_what_we_change_is_not() -> None:
    host = Host()
    host.heed()
    assert not readable(host.vat)
    assert host.take(flow_of(Protocol.UDP, 40034), Endpoint(FAR, 61000))
    for change in (
        "ip route add 198.51.100.0/24 via 203.0.113.5",
        "ip rule add from 192.0.2.1 lookup 7",
        "ip link set eth0 mtu 1400",
        "ip address add 203.0.113.44/24 dev eth0",
        "tc qdisc del dev eth0 clsact",
        "ip xfrm policy add src 0.0.0.0/0 dst 203.0.113.1/32 dir out tmpl proto esp mode transport",
    ):
        host.en.run(change)
        assert readable(host.vat), change
        host.heed()
        host.heed()  # chains of filters are told of on nobody's behalf
        assert not readable(host.vat), f"our own answer to it: {change}"


def readable(vat: InterfaceVat) -> bool:
    return bool(select.select([vat], [], [], 0.02)[0])


@spaces.isolated
def test_the_own_rules_of_the_host_keep_flows_out() -> None:
    host = Host()
    flow = flow_of(Protocol.UDP, 40035)
    assert host.take(flow, MAPPED)
    for refusal, denied in (("it drops all", ()), (None, (IPv4Network("203.0.113.0/24"),))):
        host.heed_rules(refusal, denied)
        assert host.heed() == [flow]
        assert not host.take(flow, MAPPED)
        host.heed_rules(None, ())
        assert host.heed() == []
        assert host.take(flow, MAPPED)
    host.heed_rules(None, (IPv4Network("192.0.2.0/24"),))
    assert host.take(flow, MAPPED)


@spaces.isolated
def test_a_priority_tag_makes_no_difference_and_a_vlan_does() -> None:
    host = Host()
    program = host.program(socket.SOCK_DGRAM, 40036)
    assert host.take(flow_of(Protocol.UDP, 40036), MAPPED)
    program.connect(("240.0.1.1", 80))
    host.send_tagged(build.udp(MAPPED, Endpoint(G1, 40036), b"with a priority"), tag=0xA000)
    assert program.recv(100) == b"with a priority"
    forged = build.udp(Endpoint(V1, 80), Endpoint(G1, 40036), b"forged")
    for tag, drops in ((5, 0), (0, 1), (0xE005, 1), (0xE000, 2)):
        host.send_tagged(forged, tag=tag)
        time.sleep(0.02)
        assert host.drops() == (0, drops)


@spaces.isolated
def test_many_ways_are_not_looked_at_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    flows = [flow_of(Protocol.UDP, 40037, virtual=Address(bytes([240, 0, 2, n]))) for n in range(1, 30)]
    assert all(host.take(each, MAPPED) for each in flows)
    host.heed()
    clock = iter(range(10**6))
    monkeypatch.setattr(vat, "monotonic", lambda: next(clock) / 10)  # each look at the clock finds it later
    monkeypatch.setattr(vat, "_SLICE", 0.55)
    host.en.run("ip route replace default via 203.0.113.77")
    host.en.run("ip route add 203.0.113.1/32 via 203.0.113.78")
    found = host.heed()
    assert 0 < len(found) < len(flows)
    while host.vat.has_doubts:
        found += host.heed()
    assert set(found) == set(flows)


@spaces.isolated
def test_what_somebody_takes_away_comes_back() -> None:
    host = Host()
    assert host.take(flow_of(Protocol.UDP, 40016), MAPPED)
    assert host.tick(0.0) == []
    assert host.vat.counters["attached_again"] == 0
    host.en.run("tc qdisc del dev eth0 clsact")
    assert host.tick(0.0) == []
    assert host.vat.counters["attached_again"] == 1
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40016)
    program.sendto(b"again", ("240.0.1.1", 80))
    assert server.recv(100) == b"again"


@spaces.isolated
def test_an_interface_that_went_away_is_followed_when_it_is_there_again() -> None:
    host = Host()
    host.en.run("ip link del eth0")
    assert host.tick(0.0) == []
    host.en.cable("eth0", "203.0.113.10/24", host.router, "wan", "203.0.113.1/24")
    host.en.run("ip route add default via 203.0.113.1")
    host.tick(2.5)
    assert host.vat.counters["attached_again"] == 1
    assert host.take(flow_of(Protocol.UDP, 40017), MAPPED)


@spaces.isolated
def test_a_virtual_address_gets_a_route_where_its_router_is_reached_by_another_one() -> None:
    host = Host(default="203.0.113.254")
    server, program = host.server(socket.SOCK_DGRAM), host.program(socket.SOCK_DGRAM, 40018)
    flow = flow_of(Protocol.UDP, 40018)
    assert host.take(flow, MAPPED)
    assert "240.0.1.1 via 203.0.113.1 dev eth0 proto 78" in host.en.run("ip route show")
    program.sendto(b"by its route", ("240.0.1.1", 80))
    assert server.recv(100) == b"by its route"
    assert host.tick(0.0) == [], "its own change is none to be afraid of"
    host.vat.drop(flow)
    host.tick(time.monotonic() + 59)
    assert "240.0.1.1" in host.en.run("ip route show")
    host.tick(time.monotonic() + 61)
    assert "240.0.1.1" not in host.en.run("ip route show")


@spaces.isolated
def test_two_routers_of_one_name_by_two_ways_are_one_too_many() -> None:
    host = Host(default="203.0.113.254")
    host.en.run("ip route add 198.51.100.0/24 via 203.0.113.5")
    assert host.take(flow_of(Protocol.UDP, 40019), MAPPED)
    assert not host.take(flow_of(Protocol.UDP, 40020), Endpoint(FAR, 61000))
    other = parse_address("240.0.1.2")
    assert host.take(flow_of(Protocol.UDP, 40020, virtual=other), Endpoint(FAR, 61000))
    assert "240.0.1.2 via 203.0.113.5" in host.en.run("ip route show")


@spaces.isolated
def test_somebody_elses_route_to_a_virtual_address_is_let_alone() -> None:
    host = Host()
    host.en.run("ip route add 240.0.1.1 via 203.0.113.77")
    assert not host.take(flow_of(Protocol.UDP, 40021), MAPPED)
    assert not host.take(flow_of(Protocol.UDP, 40021), MAPPED)
    assert "240.0.1.1 via 203.0.113.77" in host.en.run("ip route show")


@spaces.isolated
def test_flows_whose_way_has_changed_are_told() -> None:
    host = Host()
    other = spaces.Space()
    host.en.cable("eth1", "192.0.2.10/24", other, "wan", "192.0.2.1/24")
    flows = [flow_of(Protocol.UDP, port) for port in (40022, 40023)]
    assert host.take(flows[0], MAPPED)
    assert host.take(flows[1], Endpoint(FAR, 61000))
    assert host.tick(0.0) == []
    host.en.run("ip route add 198.51.100.0/24 via 192.0.2.1")
    assert host.tick(0.0) == [flows[1]]
    host.en.run("ip route replace default via 192.0.2.1")
    assert set(host.tick(0.0)) == set(flows)
    host.vat.drop(flows[0])
    assert host.take(flows[0], MAPPED), "by a route of our own"
    assert not host.take(flows[1], Endpoint(FAR, 61000)), "by the other interface"


@spaces.isolated
def test_it_can_go_to_another_interface() -> None:
    host = Host()
    other = spaces.Space()
    host.en.cable("eth1", "192.0.2.10/24", other, "wan", "192.0.2.1/24")
    with host.en:
        host.vat.follow("eth1")
        filters = Filters()
        places = [
            [filters.program(socket.if_nametoindex(name), place) is not None for place in (OUT, INWARD)]
            for name in ("eth0", "eth1")
        ]
    assert places == [[False, False], [True, True]]


@pytest.mark.parametrize("direction", ["dst 203.0.113.1/32 dir out", "src 203.0.113.1/32 dir in"])
@spaces.isolated
def test_a_policy_to_encrypt_keeps_flows_out(direction: str) -> None:
    """It goes by G2, which only the NAT's packets show."""
    host = Host()
    flow = flow_of(Protocol.UDP, 40024)
    assert host.take(flow, MAPPED)
    host.en.run(f"ip xfrm policy add {direction} tmpl proto esp mode transport")
    assert host.heed() == [flow]
    assert not host.take(flow, MAPPED)
    with host.en, pytest.raises(OSError, match="IPsec"):
        InterfaceVat("eth0", prefix=240, mark=MARK, mask=MASK, flows=100)


@spaces.isolated
def test_an_interface_of_an_unknown_kind_is_refused_with_a_reason() -> None:
    host = Host()
    with host.en, pytest.raises(OSError, match="lo is of a kind"):
        InterfaceVat("lo", prefix=240, mark=MARK, mask=MASK, flows=100)
    with host.en, pytest.raises(OSError, match="nowhere"):
        InterfaceVat("nowhere", prefix=240, mark=MARK, mask=MASK, flows=100)


@spaces.isolated
def test_whether_it_can_be_had_is_told_without_a_change() -> None:
    host = Host()
    host.remove()
    before = host.en.run("tc qdisc show"), host.en.run("tc filter show dev eth0 egress")

    def obstacle(interface: str) -> str:
        with host.en:
            return str(vat.obstacle(interface, prefix=240, mark=MARK, mask=MASK))

    assert obstacle("eth0") == "None"
    assert "lo is of a kind" in obstacle("lo")
    assert obstacle("nowhere") == "there is no interface nowhere"
    assert (host.en.run("tc qdisc show"), host.en.run("tc filter show dev eth0 egress")) == before
    host.en.run("tc qdisc add dev eth0 ingress")
    assert "ingress instead of clsact" in obstacle("eth0")


@spaces.isolated
def test_a_device_without_link_headers_is_served_too() -> None:
    host = Host()
    host.en.run("ip tuntap add dev tun7 mode tun")
    host.en.run("ip address add 203.0.113.99/32 dev tun7")
    host.en.run("ip link set tun7 up")
    with host.en:
        host.vat.follow("tun7")
    assert host.vat.interface == "tun7"


def test_keys_and_values_are_what_packets_have() -> None:
    flow = flow_of(Protocol.UDP, 40025)
    assert flow_key_of(key_of(flow.key)) == flow.key
    assert endpoint_of(value_of(MAPPED, V1)) == MAPPED
    assert format_address(value_of(MAPPED, V1)[:4]) == "203.0.113.1"


def test_what_the_kernel_has_against_a_program_is_told() -> None:
    with pytest.raises(OSError, match="bad"):
        kernel.load("bad", bytes.fromhex("9500000000000000"))
