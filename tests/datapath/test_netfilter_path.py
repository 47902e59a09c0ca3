"""What the kernel path on Linux relies on, proved on the running kernel: a host and the router it talks to."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import time
from dataclasses import replace

import pytest

from natf_bsd.datapath import Carried, Gone, Report
from natf_bsd.datapath.ebpf.vat import InterfaceVat
from natf_bsd.datapath.netfilter import NetfilterPath
from natf_bsd.divert import Direction, Divert
from natf_bsd.firewall import linux, runner
from natf_bsd.natd_bridge.conntrack import Conntrack, Dump, problem
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from tests import spaces
from tests.datapath.test_interface_vat import unable

pytestmark = [
    pytest.mark.lab,
    spaces.LINUX,
    pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported())),
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (Debian package nftables)"),
]

MARK, MASK = 0x4E000000, 0xFF000000
OUT = 8711
RULES = linux.EnFirewall(
    "240.0.0.0/8", dns_queue=8710, out_queue=OUT, in_queue=8712, mark=MARK, mask=MASK, kernel_path=True
)
BY_NAT, AT_INTERFACE = "by the NAT", "at the interface"
both_ways = pytest.mark.parametrize(
    "way", [BY_NAT, pytest.param(AT_INTERFACE, marks=pytest.mark.skipif(unable() is not None, reason=str(unable())))]
)
G1, V1, G2 = parse_address("203.0.113.10"), parse_address("240.0.1.1"), parse_address("203.0.113.1")
MAPPED = Endpoint(G2, 61000)


class Host:
    def __init__(self, way: str = BY_NAT) -> None:
        rules = RULES if way == BY_NAT else replace(RULES, rewritten_at="eth0")
        self.en, self.router = spaces.Space(), spaces.Space()
        self.en.cable("eth0", "203.0.113.10/24", self.router, "wan", "203.0.113.1/24")
        self.en.run("ip route add default via 203.0.113.1")
        with self.en:
            runner.apply(linux.en_rules(rules))
            for setting in linux.en_sysctls(rules):
                self.en.run(f"sysctl -qw {setting.name.replace('/', '.')}={setting.value}")
            self.out = Divert(OUT, direction=Direction.OUT, mark=MARK, mask=MASK)
            at_interface = way == AT_INTERFACE
            interface = InterfaceVat("eth0", prefix=240, mark=MARK, mask=MASK, flows=100) if at_interface else None
            self.path = NetfilterPath(MARK, MASK, V1[:1], interface)

    def begin(self, kind: socket.SocketKind, *, source: int, destination: int = 80) -> tuple[socket.socket, Flow]:
        """A program's socket whose first packet is held, and its flow."""
        with self.en:
            program = socket.socket(socket.AF_INET, kind)
        program.settimeout(5)
        program.bind(("203.0.113.10", source))
        protocol = Protocol.TCP if kind is socket.SOCK_STREAM else Protocol.UDP
        if protocol == Protocol.TCP:
            program.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                program.connect(("240.0.1.1", destination))
            program.settimeout(5)
        else:
            program.connect(("240.0.1.1", destination))
            program.send(b"hello")
        return program, Flow(protocol, Endpoint(G1, source), Endpoint(V1, destination))

    def hand_over(self, flow: Flow, mapped: Endpoint, leaves: str = "") -> bool:
        with self.en:
            return self.path.hand_over(flow, mapped, leaves)

    def look(self) -> list[Report]:
        with self.en:
            return self.path.look()

    def let_go(self, flow: Flow, mapped: Endpoint = MAPPED) -> int:
        """Hand `flow` over and release what waits; how many packets."""
        packets = self.waiting()
        assert self.hand_over(flow, mapped)
        for packet in packets:
            self.out.send(packet)
        return len(packets)

    def waiting(self) -> list:
        time.sleep(0.05)
        with self.en:
            return self.out.recv_batch()

    def server(self, kind: socket.SocketKind) -> socket.socket:
        with self.router:
            server = socket.socket(socket.AF_INET, kind)
        server.bind(("203.0.113.1", MAPPED.port))
        server.settimeout(5)
        if kind is socket.SOCK_STREAM:
            server.listen()
        return server

    def elements(self) -> str:
        return self.en.run("nft list map ip natf_en vat").partition("elements")[2]


@both_ways
@spaces.isolated
def test_a_datagram_and_its_answer_go_by_the_kernel_alone(way: str) -> None:
    host = Host(way)
    server = host.server(socket.SOCK_DGRAM)
    program, flow = host.begin(socket.SOCK_DGRAM, source=40000)
    assert host.let_go(flow) == 1
    data, source = server.recvfrom(100)
    assert (data, source) == (b"hello", ("203.0.113.10", 40000))
    server.sendto(b"yes", source)
    assert program.recv(100) == b"yes", "from V1: the socket is connected to it"
    program.send(b"again")
    assert server.recv(100) == b"again"
    assert host.waiting() == []
    time.sleep(3.5)  # the kernel clears away once a second what has ended
    assert host.elements() == "", "nothing is left that could translate what we do not know of"


@both_ways
@spaces.isolated
def test_a_connection_is_made_used_and_closed(way: str) -> None:
    host = Host(way)
    server = host.server(socket.SOCK_STREAM)
    program, flow = host.begin(socket.SOCK_STREAM, source=40001)
    assert host.let_go(flow) == 1
    connection, source = server.accept()
    assert source == ("203.0.113.10", 40001)
    program.sendall(b"x" * 500_000)
    assert len(connection.recv(500_000, socket.MSG_WAITALL)) == 500_000
    (seen,) = host.look()
    assert isinstance(seen, Carried)
    assert (seen.key, seen.mapped, seen.fins, seen.reset) == (flow.key, MAPPED, 0, False)
    assert min(seen.out, seen.inward) > 2
    assert seen.unacknowledged is False
    host.router.run("iptables -A OUTPUT -p tcp -j DROP")
    program.send(b"and who hears that")
    (seen,) = host.look()
    assert isinstance(seen, Carried)
    assert seen.unacknowledged is True
    host.router.run("iptables -F OUTPUT")
    assert connection.recv(100) == b"and who hears that"
    connection.close()
    program.close()
    time.sleep(0.1)
    (seen,) = host.look()
    assert (seen.fins, seen.reset) == (2, False)
    assert 0 < seen.out < 5, "since the last look"
    assert host.waiting() == []


@both_ways
@spaces.isolated
def test_of_a_connection_that_was_picked_up_midway_nothing_is_said_of_waiting_data(way: str) -> None:
    host = Host(way)
    server = host.server(socket.SOCK_STREAM)
    program, flow = host.begin(socket.SOCK_STREAM, source=40019)
    assert host.let_go(flow) == 1
    connection, _ = server.accept()
    with host.en:
        Conntrack().forget(flow)
    program.send(b"on its way")
    assert host.let_go(flow) == 1
    assert connection.recv(100) == b"on its way"
    (seen,) = host.look()
    assert isinstance(seen, Carried)
    assert seen.unacknowledged is None


@both_ways
@spaces.isolated
def test_a_syn_is_always_shown_first(way: str) -> None:
    """Its ports may be those of a flow the kernel has."""
    host = Host(way)
    host.router.run("iptables -A INPUT -p tcp -j DROP")
    program, flow = host.begin(socket.SOCK_STREAM, source=40002)
    assert host.let_go(flow) == 1
    time.sleep(1.2)  # TCP sends it again after a second
    assert host.let_go(flow) == 1
    program.close()


@both_ways
@spaces.isolated
def test_nothing_leaves_that_was_not_handed_over(way: str) -> None:
    """A packet let go without its flow, as when somebody has flushed the table."""
    host = Host(way)
    with host.router:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    host.begin(socket.SOCK_DGRAM, source=40003)
    for packet in host.waiting():
        host.out.send(packet)
    if way == BY_NAT:
        host.en.run("nft delete table ip natf_en")
        _, flow = host.begin(socket.SOCK_DGRAM, source=40004)
        assert not host.hand_over(flow, MAPPED)
        assert host.path.counters["refused"] == 1
        for packet in host.waiting():
            host.out.send(packet)
    else:
        assert host.path.counters["interface.drop.no_flow"] == 1
    time.sleep(0.05)
    wire.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.recv(2000)


@both_ways
@spaces.isolated
def test_what_is_taken_back_or_forgotten_is_shown_again(way: str) -> None:
    host = Host(way)
    server = host.server(socket.SOCK_DGRAM)
    programs = [host.begin(socket.SOCK_DGRAM, source=port) for port in (40005, 40006, 40007)]
    packets = host.waiting()
    for (_, flow), packet in zip(programs, packets, strict=True):
        assert host.hand_over(flow, MAPPED)
        host.out.send(packet)
    assert {report.key for report in host.look()} == {flow.key for _, flow in programs}
    host.path.take_back(programs[0][1])
    programs[0][0].send(b"shown")
    assert [bytes(packet.data[28:]) for packet in host.waiting()] == [b"shown"]
    with host.en:
        conntrack = Conntrack()
    conntrack.forget(programs[1][1])  # somebody else's doing
    gone = [report for report in host.look() if isinstance(report, Gone)]
    assert gone == [Gone(programs[1][1].key)]
    host.path.forget()
    assert host.look() == []
    programs[2][0].send(b"shown too")
    assert [bytes(packet.data[28:]) for packet in host.waiting()] == [b"shown too"]
    assert len([server.recv(100) for _ in programs]) == 3


@both_ways
@spaces.isolated
def test_the_next_mapping_is_taken_once_the_flow_was_taken_back(way: str) -> None:
    host = Host(way)
    first = host.server(socket.SOCK_DGRAM)
    program, flow = host.begin(socket.SOCK_DGRAM, source=40008)
    host.let_go(flow)
    assert first.recv(100) == b"hello"
    host.path.take_back(flow)
    program.send(b"elsewhere")
    with host.router:
        second = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    second.bind(("203.0.113.1", 61001))
    second.settimeout(5)
    host.let_go(flow, Endpoint(G2, 61001))
    assert second.recv(100) == b"elsewhere"


@both_ways
@spaces.isolated
def test_the_mark_of_others_in_the_rest_of_the_connection_mark_stays(way: str) -> None:
    host = Host(way)
    host.server(socket.SOCK_DGRAM)
    host.en.run("iptables -t mangle -I OUTPUT -p udp -j CONNMARK --set-xmark 0x12/0xff")
    _, flow = host.begin(socket.SOCK_DGRAM, source=40009)
    host.let_go(flow)
    host.en.run("iptables -t mangle -I OUTPUT -m connmark --mark 0x4e000012 -j ACCEPT")
    assert len(host.look()) == 1


@both_ways
@spaces.isolated
def test_connections_of_others_who_use_our_mark_are_let_alone(way: str) -> None:
    host = Host(way)
    server = host.server(socket.SOCK_DGRAM)
    host.en.run("iptables -t mangle -I OUTPUT -d 203.0.113.1 -j CONNMARK --set-mark 0x4e000000")
    with host.en:
        conntrack = Conntrack()
        program = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    program.bind(("203.0.113.10", 40010))
    program.sendto(b"not ours", ("203.0.113.1", MAPPED.port))
    assert server.recv(100) == b"not ours"
    _, ours = host.begin(socket.SOCK_DGRAM, source=40011)
    host.let_go(ours)
    assert [report.key for report in host.look()] == [ours.key]
    host.path.forget()
    assert conntrack.get(ours) is None
    assert conntrack.get(Flow(Protocol.UDP, Endpoint(G1, 40010), MAPPED)) is not None


@both_ways
@spaces.isolated
def test_what_is_left_of_a_look_that_was_given_up_is_not_taken_for_the_next_ones(way: str) -> None:
    host = Host(way)
    host.server(socket.SOCK_DGRAM)
    _, flow = host.begin(socket.SOCK_DGRAM, source=40012)
    host.let_go(flow)
    with host.en:
        dump, conntrack = Dump(MARK, MASK), Conntrack()
    dump.begin()
    conntrack.forget(flow)
    assert (dump.listed(), dump.whole) == ([], True)


@both_ways
@spaces.isolated
def test_what_may_be_left_because_the_table_was_never_listed_whole_is_told(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(way)
    monkeypatch.setattr(Dump, "listed", lambda dump: setattr(dump, "whole", False) or [])
    with pytest.raises(OSError, match="could not be listed"):
        host.path.forget()


@spaces.isolated
def test_whether_it_can_be_had_is_found_out_without_a_change() -> None:
    space = spaces.Space()
    with space:
        assert runner.check([linux.kernel_path_works(RULES)]) == []
        assert problem() is None
        assert space.run("nft list ruleset") == ""


class TwoWays(Host):
    """With a second outer interface, by which nothing is rewritten."""

    def __init__(self) -> None:
        super().__init__(AT_INTERFACE)
        self.other = spaces.Space()
        self.en.cable("eth1", "192.0.2.10/24", self.other, "wan", "192.0.2.1/24")
        self.en.run("ip route add default via 192.0.2.1 table 7")
        with self.other:
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.wire.settimeout(0.3)

    def by_the_other(self, flow: Flow) -> None:
        """Packets of `flow` leave there from now on, as nothing but their ports tells."""
        protocol = Protocol(flow.protocol).name.lower()
        self.en.run(f"ip rule add ipproto {protocol} sport {flow.source.port} lookup 7")

    def destinations(self) -> list[tuple[str, int]]:
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                packet = self.wire.recv(2000)
                found.append((socket.inet_ntoa(packet[16:20]), int.from_bytes(packet[22:24], "big")))
        return found


at_the_interface = pytest.mark.skipif(unable() is not None, reason=str(unable()))


@at_the_interface
@spaces.isolated
def test_a_flow_that_leaves_by_another_interface_is_the_nats() -> None:
    host = TwoWays()
    host.by_the_other(Flow(Protocol.UDP, Endpoint(G1, 40013), Endpoint(V1, 80)))
    program, flow = host.begin(socket.SOCK_DGRAM, source=40013)
    (packet,) = host.waiting()
    assert packet.interface == "eth1"
    assert host.hand_over(flow, MAPPED, packet.interface)
    host.out.send(packet)
    program.send(b"again")
    assert host.destinations() == [("203.0.113.1", 61000)] * 2
    assert host.path.counters["at_interface"] == 0


@at_the_interface
@spaces.isolated
def test_a_flow_whose_packets_begin_to_leave_by_another_interface_becomes_the_nats() -> None:
    """Of that no next hop that is asked for tells: the packet itself does."""
    host = TwoWays()
    server = host.server(socket.SOCK_DGRAM)
    program, flow = host.begin(socket.SOCK_DGRAM, source=40014)
    assert host.let_go(flow) == 1
    assert server.recv(100) == b"hello"
    host.by_the_other(flow)
    program.send(b"is shown")
    (packet,) = host.waiting()
    assert not host.hand_over(flow, MAPPED, packet.interface)
    host.out.drop(packet)
    program.send(b"goes on")
    (packet,) = host.waiting()
    assert host.hand_over(flow, MAPPED, packet.interface)
    host.out.send(packet)
    program.send(b"and on")
    assert host.destinations() == [("203.0.113.1", 61000)] * 2
    assert host.waiting() == []


@at_the_interface
@spaces.isolated
def test_nothing_leaves_by_a_new_device_of_the_same_name() -> None:
    """Nor while nobody is there who would attach the programs to it."""
    host = TwoWays()
    program, flow = host.begin(socket.SOCK_DGRAM, source=40015)
    assert host.let_go(flow) == 1
    host.en.run("ip link del eth0")
    host.en.cable("eth0", "203.0.113.10/24", host.router, "wan", "203.0.113.1/24")
    host.en.run("ip route add default via 203.0.113.1")
    with host.router:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    wire.settimeout(0.3)
    program.send(b"where to")
    assert len(host.waiting()) == 1
    host.out.close()  # as by a kill
    with pytest.raises(PermissionError):
        program.send(b"and now")
    with pytest.raises(TimeoutError):
        wire.recv(2000)


@at_the_interface
@spaces.isolated
def test_flows_go_to_the_nat_when_the_interface_is_no_place_for_them_any_more() -> None:
    host = Host(AT_INTERFACE)
    server = host.server(socket.SOCK_DGRAM)
    programs = [host.begin(socket.SOCK_DGRAM, source=port) for port in (40016, 40017)]
    for (_, flow), packet in zip(programs, host.waiting(), strict=True):
        assert host.hand_over(flow, MAPPED)
        host.out.send(packet)
    assert [server.recv(100) for _ in programs] == [b"hello"] * 2
    host.en.run("ip xfrm policy add src 0.0.0.0/0 dst 198.51.100.7/32 dir out tmpl proto esp mode transport")
    assert select.select([host.path], [], [], 1)[0], "it is told at once"
    with host.en:
        gone = host.path.receive()
    assert {report.key for report in gone} == {flow.key for _, flow in programs}
    for program, flow in programs:
        program.send(b"by the NAT")
        assert host.let_go(flow) == 1
        data, source = server.recvfrom(100)
        assert data == b"by the NAT"
        server.sendto(b"yes", source)
        assert program.recv(100) == b"yes"
    assert host.path.counters["at_interface"] == 2
    assert {report.key for report in host.look()} == {flow.key for _, flow in programs}


@at_the_interface
@spaces.isolated
def test_a_flow_of_the_nat_stays_there_while_it_lives() -> None:
    host = Host(AT_INTERFACE)
    policy = "src 0.0.0.0/0 dst 198.51.100.7/32 dir out"
    host.en.run(f"ip xfrm policy add {policy} tmpl proto esp mode transport")
    host.router.run("iptables -A INPUT -p tcp -j DROP")
    program, flow = host.begin(socket.SOCK_STREAM, source=40018)
    assert host.let_go(flow) == 1
    host.en.run(f"ip xfrm policy delete {policy}")
    with host.en:
        host.path.receive()
    time.sleep(1.2)  # TCP sends its SYN again after a second
    assert host.let_go(flow) == 1
    assert host.path.counters["at_interface"] == 0
    program.close()
