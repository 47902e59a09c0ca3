"""Packets of our own making on the running kernel: they reach local programs from virtual addresses, and routers."""

from __future__ import annotations

import errno
import socket
import threading
import time

import pytest

from natf_bsd.divert import Direction, Divert, Packet
from natf_bsd.divert.inject import ControlSocket, Injector
from natf_bsd.errors import NatfError
from natf_bsd.firewall import linux, runner
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build
from natf_bsd.wire.icmp import ECHO_REPLY, ECHO_REQUEST, Echo, decode_echo, encode_echo
from tests import spaces

pytestmark = [
    pytest.mark.lab,
    spaces.LINUX,
    pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported())),
]

MARK, MASK = 0x4E000000, 0xFF000000
OUT = 8711
EN_RULES = linux.EnFirewall("240.0.0.0/8", dns_queue=8710, out_queue=OUT, in_queue=8712, mark=MARK, mask=MASK)
VIRTUAL = "240.0.1.1"
EN, ROUTER = parse_address("203.0.113.10"), parse_address("203.0.113.1")


class Hosts:
    """The external node with its rules, and a router it is cabled to."""

    def __init__(self) -> None:
        self.en, self.router = spaces.Space(), spaces.Space()
        self.en.cable("eth0", "203.0.113.10/24", self.router, "wan", "203.0.113.1/24")
        self.en.run("ip route add default via 203.0.113.1")
        with self.en:
            runner.apply(linux.en_rules(EN_RULES))
            self.out = Divert(OUT, direction=Direction.OUT, mark=MARK, mask=MASK)
            self.injector = Injector(MARK)

    def held(self) -> Packet:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if found := self.out.recv_batch(1):
                return found[0]
            time.sleep(0.001)
        raise AssertionError("nothing came to the OUT queue")

    def program(self, kind: socket.SocketKind) -> socket.socket:
        with self.en:
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(10)
        return made


@spaces.isolated
def test_a_reset_for_a_held_syn_refuses_the_connection_at_once() -> None:
    hosts = Hosts()
    program = hosts.program(socket.SOCK_STREAM)
    outcome: list[int] = []
    thread = threading.Thread(target=lambda: outcome.append(program.connect_ex((VIRTUAL, 80))))
    begin = time.monotonic()
    thread.start()
    held = hosts.held()
    reset = build.reset_for(held.data)
    assert reset is not None
    hosts.injector.send(reset)
    hosts.out.drop(held)
    thread.join()
    assert outcome == [errno.ECONNREFUSED]
    assert time.monotonic() - begin < 0.9  # the SYN would be sent again after 1 s


@pytest.mark.parametrize(
    ("code", "expected"), [(3, errno.ECONNREFUSED), (1, errno.EHOSTUNREACH), (13, errno.EHOSTUNREACH)]
)
def test_an_unreachable_for_a_held_packet_reaches_its_program(code: int, expected: int) -> None:
    unreachable_reaches(code, expected)


@spaces.isolated
def unreachable_reaches(code: int, expected: int) -> None:
    hosts = Hosts()
    program = hosts.program(socket.SOCK_DGRAM)
    program.connect((VIRTUAL, 5000))
    # A connected datagram socket takes any error only if asked to; a refused port it always takes.
    program.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    program.send(b"x")
    held = hosts.held()
    hosts.injector.send(build.unreachable_for(held.data, code=code, source=parse_address(VIRTUAL)))
    hosts.out.drop(held)
    with pytest.raises(OSError, match=r".") as raised:
        program.recv(100)
    assert raised.value.errno == expected


@spaces.isolated
def test_injected_packets_are_no_business_of_conntrack_or_of_our_own_queues() -> None:
    hosts = Hosts()
    hosts.en.run("iptables -t mangle -A OUTPUT -m conntrack --ctstate UNTRACKED")
    with hosts.router:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("", 5000))
    receiver.settimeout(5)
    hosts.injector.send(build.udp(Endpoint(EN, 4000), Endpoint(ROUTER, 5000), b"own"))
    assert receiver.recvfrom(100) == (b"own", ("203.0.113.10", 4000))
    assert hosts.out.recv_batch() == []
    assert hosts.en.run("iptables -t mangle -nvxL OUTPUT").splitlines()[-1].split()[0] == "1"


@spaces.isolated
def test_the_kernel_leaves_identification_and_ttl_and_completes_the_header_checksum() -> None:
    hosts = Hosts()
    with hosts.router:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sniffer.settimeout(5)
    data = build.udp(Endpoint(EN, 4000), Endpoint(ROUTER, 5000), b"own", ttl=3, ident=20039)
    spoiled = bytearray(data)
    spoiled[10:12] = b"\0\0"
    hosts.injector.send(spoiled)
    assert sniffer.recv(2000) == data


@spaces.isolated
def test_what_the_network_refuses_is_counted_and_not_raised() -> None:
    space = spaces.Space()
    with space:
        injector, control = Injector(), ControlSocket()
    packet_to_nowhere = build.udp(Endpoint(EN, 1), Endpoint(parse_address("192.0.2.1"), 2))
    injector.send(packet_to_nowhere)
    control.send(parse_address("192.0.2.1"), bytes(8))
    assert (injector.counters["unreachable"], control.counters["unreachable"]) == (1, 1)
    space.run("ip route add default dev lo")
    injector.send(build.udp(Endpoint(EN, 1), Endpoint(parse_address("192.0.2.1"), 2), bytes(65_507)))
    space.run("ip link set lo mtu 1500")
    injector.send(build.udp(Endpoint(EN, 1), Endpoint(parse_address("192.0.2.1"), 2), bytes(1600)))
    space.run("iptables -A OUTPUT -j DROP")
    injector.send(packet_to_nowhere)
    assert injector.counters == {
        "sent": 1, "not_permitted": 1, "unreachable": 1, "no_buffers": 0, "too_big": 1, "invalid": 0, "other": 0,
    }  # fmt: skip


@spaces.isolated
def test_control_messages_go_out_and_only_echo_replies_come_in() -> None:
    hosts = Hosts()
    with hosts.en:
        control = ControlSocket()
    with hosts.router:
        other_end = ControlSocket()
    assert list(control.waiting()) == []
    # An error, a request and a reply from the router's side: the first two must not arrive.
    refused = build.udp(Endpoint(EN, 1), Endpoint(ROUTER, 9))
    other_end.send(EN, bytes(build.unreachable_for(refused, code=3, source=ROUTER)[20:]))
    other_end.send(EN, encode_echo(Echo(ECHO_REQUEST, 1, 1, b"not for raw sockets")))
    reply = Echo(ECHO_REPLY, 7, 8, b"mapping")
    other_end.send(EN, encode_echo(reply))
    ((source, message),) = received(control)
    assert (source, decode_echo(message)) == (ROUTER, reply)

    # The router's kernel mirrors a request: that is what a router without NAT-f answers.
    control.send(ROUTER, encode_echo(Echo(ECHO_REQUEST, 9, 1, b"request")))
    ((source, message),) = received(control)
    assert (source, decode_echo(message)) == (ROUTER, Echo(ECHO_REPLY, 9, 1, b"request"))
    assert control.counters["sent"] == 1


def received(control: ControlSocket) -> list[tuple[bytes, bytes]]:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if found := list(control.waiting()):
            return found
        time.sleep(0.001)
    raise AssertionError("no reply")


@spaces.isolated
def test_a_batch_of_replies_has_a_limit() -> None:
    hosts = Hosts()
    with hosts.en:
        control = ControlSocket()
        for number in range(5):
            control.send(parse_address("127.0.0.1"), encode_echo(Echo(ECHO_REPLY, 1, number, b"")))
    batches = [list(control.waiting(3)), list(control.waiting(3))]
    assert [[decode_echo(message).sequence for _, message in batch] for batch in batches] == [[0, 1, 2], [3, 4]]


@spaces.isolated
def test_without_privilege_the_error_names_what_is_needed() -> None:
    import ctypes
    import struct

    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(header, nothing) == 0
    for make in Injector, ControlSocket:
        with pytest.raises(NatfError, match="CAP_NET_RAW"):
            make()


class DeviceSocket:
    """A raw socket whose packets go to a device that refuses them, as a driver's transmit function may."""

    def __init__(self, number: int) -> None:
        self.number = number

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        raise OSError(self.number, "from the driver")


@spaces.isolated
def test_whatever_a_device_answers_is_counted() -> None:
    """A stranger chooses the destination of our answer, and so the device: WireGuard says ENOKEY to an address of no
    peer, EDESTADDRREQ of a peer that has not spoken yet."""
    injector, control = Injector(), ControlSocket()
    for number in errno.ENOKEY, errno.EDESTADDRREQ, errno.EPROTONOSUPPORT:
        injector._socket = control._socket = DeviceSocket(number)
        injector.send(build.udp(Endpoint(EN, 1), Endpoint(ROUTER, 2)))
        control.send(ROUTER, bytes(8))
    assert injector.counters["other"] == control.counters["other"] == 3
    injector._socket = DeviceSocket(errno.EBADF)
    with pytest.raises(OSError, match="driver"):
        injector.send(build.udp(Endpoint(EN, 1), Endpoint(ROUTER, 2)))
