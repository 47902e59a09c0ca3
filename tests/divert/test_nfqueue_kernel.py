"""What the external node's data path relies on, proved on the running kernel in namespaces of its own.

Three hosts: `en` 203.0.113.10 with two links, `gateway` 203.0.113.254 where the default route leads, and
`peer` 198.51.100.1, which plays the router G2 and is reached by the other link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from natf_bsd.divert import Direction, Divert, Packet
from natf_bsd.errors import NatfError
from natf_bsd.firewall import linux, runner
from natf_bsd.types import Endpoint, Protocol, parse_address
from natf_bsd.wire import packet
from natf_bsd.wire.checksum import checksum
from natf_bsd.wire.packet import QuotedRewrite, Rewrite
from tests import spaces

pytestmark = [
    pytest.mark.lab,
    spaces.LINUX,
    pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported())),
]

MARK, MASK = 0x4E000000, 0xFF000000
DNS, OUT, IN = 8710, 8711, 8712
EN_RULES = linux.EnFirewall("240.0.0.0/8", dns_queue=DNS, out_queue=OUT, in_queue=IN, mark=MARK, mask=MASK)
VIRTUAL = "240.0.1.1"
PEER = "198.51.100.1"
PORT = 7000
V1 = Endpoint(parse_address(VIRTUAL), PORT)
G2 = Endpoint(parse_address(PEER), 7777)


class Hosts:
    def __init__(self, *, rules: bool = True) -> None:
        self.en, self.gateway, self.peer = spaces.Space(), spaces.Space(), spaces.Space()
        self.en.cable("eth0", "203.0.113.10/24", self.gateway, "lan", "203.0.113.254/24")
        self.en.cable("eth1", "198.51.100.10/24", self.peer, "eth0", "198.51.100.1/24")
        self.peer.run("ip route add default via 198.51.100.10")
        self.en.run("ip route add default via 203.0.113.254")
        if rules:
            with self.en:
                runner.apply(linux.en_rules(EN_RULES))

    def divert_out(self) -> Divert:
        with self.en:
            return Divert(OUT, direction=Direction.OUT, mark=MARK, mask=MASK)

    def divert_in(self) -> Divert:
        with self.en:
            return Divert(IN, direction=Direction.IN)


def udp(space: spaces.Space, address: str = "", port: int = 0) -> socket.socket:
    with space:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(5)
    return made


def tcp(space: spaces.Space) -> socket.socket:
    with space:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(10)
    return made


def listener(space: spaces.Space, port: int) -> socket.socket:
    made = tcp(space)
    made.bind(("", port))
    made.listen()
    return made


def wait(divert: Divert) -> Packet:
    """The next packet, within a time that only a failure uses up. The interface's name needs its space entered."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if found := divert.recv_batch(1):
            return found[0]
        time.sleep(0.001)
    raise AssertionError(f"nothing came to {divert}")


def quiet(divert: Divert) -> bool:
    time.sleep(0.1)
    return divert.recv_batch() == []


def to_peer(item: Packet) -> None:
    Rewrite(destination=(V1, G2)).apply(item.data)


def to_virtual(item: Packet) -> None:
    Rewrite(source=(G2, V1)).apply(item.data)


@contextlib.contextmanager
def translating(out: Divert, back: Divert) -> Iterator[list[Packet]]:
    """A loop in a thread that plays the data path of one flow; yields what it saw."""
    stop = threading.Event()
    seen: list[Packet] = []

    def run() -> None:
        while not stop.is_set():
            batch = [(item, out, to_peer) for item in out.recv_batch()]
            batch += [(item, back, to_virtual) for item in back.recv_batch()]
            for item, divert, rewrite in batch:
                rewrite(item)
                seen.append(item)
                divert.send(item)
            if not batch:
                time.sleep(0.0005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@spaces.isolated
def test_a_held_syn_waits_without_retransmission_and_its_connection_opens_when_released() -> None:
    hosts = Hosts(rules=False)
    hosts.en.run(f"iptables -t raw -A OUTPUT -d {PEER} -j NFQUEUE --queue-num {OUT}")
    out = hosts.divert_out()
    server = listener(hosts.peer, PORT)
    client = tcp(hosts.en)
    thread = threading.Thread(target=client.connect, args=((PEER, PORT),))
    thread.start()
    with hosts.en:
        held = wait(out)
    assert packet.tcp_flags(held.data) == packet.TCP_SYN
    assert (held.direction, held.interface) == (Direction.OUT, "eth1")
    time.sleep(0.3)  # below the first retransmission, after 1 s
    out.send(held)
    out.send(wait(out))  # the ACK
    thread.join()
    server.accept()
    assert retransmitted(hosts.en) == 0


def retransmitted(space: spaces.Space) -> int:
    with space:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["RetransSegs"])


@spaces.isolated
def test_a_rewritten_destination_takes_its_own_route() -> None:
    hosts = Hosts()
    out = hosts.divert_out()
    receiver = udp(hosts.peer, port=G2.port)
    with hosts.gateway:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sniffer.setblocking(False)
    sender = udp(hosts.en)
    sender.sendto(b"to V1", (VIRTUAL, PORT))
    with hosts.en:
        item = wait(out)
    assert item.interface == "eth0"  # by the default route, as V1 would go
    to_peer(item)
    out.send(item)
    data, source = receiver.recvfrom(100)
    assert (data, source[1]) == (b"to V1", sender.getsockname()[1])
    with pytest.raises(BlockingIOError):
        sniffer.recv(2000)


@spaces.isolated
def test_a_packet_that_is_forwarded_tells_where_it_came_in_and_where_it_goes_on() -> None:
    hosts = Hosts(rules=False)
    hosts.gateway.run("ip route add 198.51.100.0/24 via 203.0.113.10")
    hosts.en.run("sysctl -qw net.ipv4.ip_forward=1")
    hosts.en.run(f"iptables -t mangle -A FORWARD -p udp --dport {PORT} -j NFQUEUE --queue-num {OUT}")
    out = hosts.divert_out()
    udp(hosts.gateway).sendto(b"forwarded", (PEER, PORT))
    with hosts.en:
        held = wait(out)
    assert (held.interface, held.leaves) == ("eth0", "eth1")


@spaces.isolated
def test_the_mark_of_the_verdict_brings_exactly_the_replies_to_the_in_queue() -> None:
    hosts = Hosts()
    out, back = hosts.divert_out(), hosts.divert_in()
    receiver, stranger = udp(hosts.peer, port=G2.port), udp(hosts.peer, port=G2.port + 1)
    sender = udp(hosts.en)
    sender.sendto(b"request", (VIRTUAL, PORT))
    item = wait(out)
    to_peer(item)
    out.send(item)
    _, en = receiver.recvfrom(100)

    stranger.sendto(b"not a reply", en)
    assert sender.recvfrom(100)[0] == b"not a reply"
    receiver.sendto(b"reply", en)
    with hosts.en:
        reply = wait(back)
    assert (reply.direction, reply.interface) == (Direction.IN, "eth1")
    assert quiet(back)
    to_virtual(reply)
    back.send(reply)
    assert sender.recvfrom(100) == (b"reply", (VIRTUAL, PORT))


@spaces.isolated
def test_other_bits_of_a_mark_and_other_traffic_stay_as_they_were() -> None:
    hosts = Hosts()
    out, back = hosts.divert_out(), hosts.divert_in()
    receiver = udp(hosts.peer, port=G2.port)
    sender = udp(hosts.en)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xAB00CD)
    hosts.en.run("iptables -t mangle -A OUTPUT -m mark --mark 0x4eab00cd")
    hosts.en.run("iptables -t mangle -A OUTPUT -m mark --mark 0x00ab00cd")
    sender.sendto(b"to V1", (VIRTUAL, PORT))
    item = wait(out)
    to_peer(item)
    out.send(item)
    _, en = receiver.recvfrom(100)
    other = udp(hosts.en)
    other.sendto(b"plain", (PEER, G2.port))
    _, plain = receiver.recvfrom(100)
    receiver.sendto(b"plain reply", plain)
    assert other.recvfrom(100) == (b"plain reply", (PEER, G2.port))
    assert quiet(out)
    assert quiet(back)
    counts = [int(line.split()[0]) for line in hosts.en.run("iptables -t mangle -nvxL OUTPUT").splitlines()[3:]]
    assert counts == [1, 0], en


@spaces.isolated
def test_icmp_errors_about_a_marked_flow_come_to_the_in_queue_and_reach_the_program_rewritten() -> None:
    hosts = Hosts()
    out, back = hosts.divert_out(), hosts.divert_in()
    sender = udp(hosts.en)
    sender.connect((VIRTUAL, PORT))
    sender.send(b"nobody listens")
    item = wait(out)
    to_peer(item)
    out.send(item)
    error = wait(back)
    quoted = packet.quoted_flow(error.data)
    assert quoted is not None
    assert (quoted.protocol, quoted.destination) == (Protocol.UDP, G2)
    QuotedRewrite(outer_source=(G2.address, V1.address), quoted_destination=(G2, V1)).apply(error.data)
    back.send(error)
    with pytest.raises(ConnectionRefusedError):
        sender.recv(100)


@spaces.isolated
def test_without_a_daemon_a_reply_to_a_live_connection_dies_instead_of_being_answered_with_a_reset() -> None:
    hosts = Hosts()
    out, back = hosts.divert_out(), hosts.divert_in()
    server = listener(hosts.peer, G2.port)
    client = tcp(hosts.en)
    with translating(out, back):
        client.connect((VIRTUAL, PORT))
        accepted = server.accept()[0]
        accepted.settimeout(10)
    out.close()
    back.close()
    accepted.send(b"while the daemon is away")
    with pytest.raises(TimeoutError):
        client.settimeout(0.1)
        client.recv(100)
    out, back = hosts.divert_out(), hosts.divert_in()
    client.settimeout(10)
    with translating(out, back):
        assert client.recv(100) == b"while the daemon is away"
        client.send(b"alive")
        assert accepted.recv(100) == b"alive"


@spaces.isolated
def test_a_long_tcp_transfer_goes_through_in_whole_segments_with_right_checksums() -> None:
    hosts = Hosts()
    out, back = hosts.divert_out(), hosts.divert_in()
    server = listener(hosts.peer, G2.port)
    client = tcp(hosts.en)
    data = os.urandom(1 << 20)
    with translating(out, back) as seen:
        client.connect((VIRTUAL, PORT))
        accepted = server.accept()[0]
        writer = threading.Thread(target=send_all, args=(client, data))
        writer.start()
        with accepted.makefile("rb") as stream:
            assert stream.read() == data
        writer.join()
    assert max(len(item.data) for item in seen) == 1500
    assert all(right_checksums(item.data) for item in seen)
    assert out.counters["rewritten"] == out.counters["sent"] > 700
    assert (out.counters["refused"], out.counters["buffer_full"], out.counters["queue_full"]) == (0, 0, 0)


@spaces.isolated
def test_packets_that_wait_together_all_go_on_in_their_order() -> None:
    """Their verdicts share system calls; messages of odd lengths must not run into each other."""
    hosts = Hosts()
    out = hosts.divert_out()
    server, client = udp(hosts.peer, port=G2.port), udp(hosts.en)
    sent = [bytes([number]) * (number + 1) for number in range(40)]
    for data in sent:
        client.sendto(data, (VIRTUAL, PORT))
    for item in out.waiting():
        to_peer(item)
        out.send(item)
    assert [server.recv(100) for _ in sent] == sent
    assert (out.counters["sent"], out.counters["refused"]) == (40, 0)


@spaces.isolated
def test_a_verdict_that_the_kernel_refuses_takes_no_other_with_it() -> None:
    hosts = Hosts()
    out = hosts.divert_out()
    server, client = udp(hosts.peer, port=G2.port), udp(hosts.en)
    for data in (b"one", b"two", b"three"):
        client.sendto(data, (VIRTUAL, PORT))
    for item in out.waiting():
        to_peer(item)
        token = item.token
        out.send(item)
        if b"two" in item.data:
            item.token = token  # of a packet that the kernel holds no longer
            out.send(item)
    assert [server.recv(100) for _ in range(3)] == [b"one", b"two", b"three"]
    assert quiet(out)
    assert out.counters["refused"] == 1


@spaces.isolated
def test_what_was_sent_goes_on_though_the_reader_fails() -> None:
    hosts = Hosts()
    out = hosts.divert_out()
    server, client = udp(hosts.peer, port=G2.port), udp(hosts.en)
    for data in (b"one", b"two", b"three"):
        client.sendto(data, (VIRTUAL, PORT))

    def read() -> None:
        for item in out.waiting():
            if b"three" in item.data:
                raise RuntimeError("a fault")
            to_peer(item)
            out.send(item)

    with pytest.raises(RuntimeError):
        read()
    assert [server.recv(100) for _ in range(2)] == [b"one", b"two"]


def send_all(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def right_checksums(data: bytearray) -> bool:
    at = packet.header_length(data)
    pseudo = bytes(data[12:20]) + bytes([0, data[9]]) + (len(data) - at).to_bytes(2, "big")
    return checksum(data[:at]) == 0 and checksum(pseudo + bytes(data[at:])) == 0


@spaces.isolated
def test_datagrams_longer_than_the_mtu_are_seen_whole_both_ways() -> None:
    hosts = Hosts()
    out, back = hosts.divert_out(), hosts.divert_in()
    receiver = udp(hosts.peer, port=G2.port)
    sender = udp(hosts.en)
    data = os.urandom(9000)
    with translating(out, back) as seen:
        sender.sendto(data, (VIRTUAL, PORT))
        received, en = receiver.recvfrom(65535)
        receiver.sendto(received, en)
        assert sender.recvfrom(65535) == (data, (VIRTUAL, PORT))
    assert [len(item.data) for item in seen] == [9028, 9028]


@spaces.isolated
def test_dns_answers_come_to_their_queue_also_over_loopback_and_pass_when_nobody_holds_it() -> None:
    hosts = Hosts()
    far, near = udp(hosts.peer, port=53), udp(hosts.en, "127.0.0.1", 53)
    for server, address in (far, PEER), (near, "127.0.0.1"):
        client = udp(hosts.en)
        client.sendto(b"query", (address, 53))
        _, asker = server.recvfrom(100)
        server.sendto(b"passes", asker)
        assert client.recvfrom(100)[0] == b"passes"
        with hosts.en, Divert(DNS, direction=Direction.IN) as dns:
            server.sendto(b"answer", asker)
            item = wait(dns)
            assert right_checksums(item.data)
            dns.send(item)
            assert client.recvfrom(100)[0] == b"answer"


@spaces.isolated
def test_without_a_daemon_programs_are_refused_at_once_and_nothing_leaves() -> None:
    hosts = Hosts()
    with hosts.gateway:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sniffer.setblocking(False)
    begin = time.monotonic()
    client = tcp(hosts.en)
    with pytest.raises(OSError, match="No route to host") as refused:
        client.connect((VIRTUAL, PORT))
    assert refused.value.errno == errno.EHOSTUNREACH
    assert time.monotonic() - begin < 0.9  # the first retransmission comes after 1 s
    with pytest.raises(PermissionError):
        udp(hosts.en).sendto(b"x", (VIRTUAL, PORT))
    with pytest.raises(BlockingIOError):
        sniffer.recv(2000)


@spaces.isolated
def test_class_e_sources_from_a_wire_are_dropped() -> None:
    hosts = Hosts()
    hosts.peer.run(f"ip address add {VIRTUAL}/32 dev eth0")
    receiver = udp(hosts.en, port=PORT)
    forger, honest = udp(hosts.peer, VIRTUAL), udp(hosts.peer, PEER)
    hosts.en.set("net/ipv4/conf/all/rp_filter", "0")
    hosts.en.set("net/ipv4/conf/eth1/rp_filter", "0")
    forger.sendto(b"forged", ("198.51.100.10", PORT))
    honest.sendto(b"honest", ("198.51.100.10", PORT))
    assert receiver.recvfrom(100)[0] == b"honest"


@spaces.isolated
def test_a_queue_that_is_taken_says_so() -> None:
    with Divert(OUT, direction=Direction.OUT), pytest.raises(NatfError, match="held by another program"):
        Divert(OUT, direction=Direction.OUT)


@spaces.isolated
def test_a_closed_queue_can_be_bound_again_and_what_it_held_is_dropped() -> None:
    hosts = Hosts()
    receiver = udp(hosts.peer, port=G2.port)
    sender = udp(hosts.en)
    with hosts.divert_out() as out:
        sender.sendto(b"held", (VIRTUAL, PORT))
        wait(out)
    with hosts.divert_out() as out:
        sender.sendto(b"second", (VIRTUAL, PORT))
        item = wait(out)
        to_peer(item)
        out.send(item)
    assert receiver.recv(100) == b"second"


@spaces.isolated
def test_without_privilege_the_error_names_what_is_needed() -> None:
    drop_privileges()
    with pytest.raises(NatfError, match="CAP_NET_ADMIN"):
        Divert(OUT, direction=Direction.OUT)


def drop_privileges() -> None:
    """An empty effective capability set for this process (capset(2), version 3)."""
    import ctypes
    import struct

    header, data = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(header, data) == 0


@spaces.isolated
def test_packets_lost_for_want_of_a_reader_are_counted() -> None:
    hosts = Hosts()
    out = hosts.divert_out()
    sent = 0
    # What waits in the queue fills the sender's own send buffer, so that no single program can fill the queue.
    while sent < 20_000:
        sender = udp(hosts.en)
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sent < 20_000:
                sender.sendto(b"x", (VIRTUAL, PORT))
                sent += 1
    received = sum(iter(lambda: len(out.recv_batch(1000)), 0))
    counters = out.counters
    lost = counters["queue_full"] + counters["buffer_full"]
    assert 0 < received < sent
    assert received + lost == sent
    out.close()
    assert out.counters == counters, "the losses are still known after closing"
