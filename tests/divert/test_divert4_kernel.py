"""Divert sockets of the running FreeBSD kernel, in a vnet jail of its own; only loopback, only base tools.

Rules: UDP to port 7000 is diverted at 100 on its way out, to 7130 denied at 130; 65000 allows the rest. lo0 has an MTU
of 1500.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from natf_bsd.divert import Direction, Divert, Packet
from natf_bsd.divert.divert4 import own_packet
from natf_bsd.divert.host import interface_names, route_mtu
from natf_bsd.errors import NatfError
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build
from tests.divert import jails

pytestmark = [
    pytest.mark.freebsd,
    pytest.mark.skipif(jails.unsupported() is not None, reason=str(jails.unsupported())),
]

HERE = parse_address("127.0.0.1")
DIVERTED, PLAIN, DENIED = 7000, 7001, 7130
OUT, ELSEWHERE = 8711, 8712


class Host:
    def __init__(self) -> None:
        self.divert = Divert(OUT, direction=Direction.OUT)
        jails.command(f"ipfw -q add 100 divert {OUT} udp from any to any {DIVERTED} out via lo0")
        jails.command(f"ipfw -q add 130 deny udp from any to any {DENIED}")
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver = self.bound(DIVERTED)

    def bound(self, port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", port))
        return made

    def taken(self, payload: bytes) -> Packet:
        self.sender.sendto(payload, ("127.0.0.1", DIVERTED))
        (item,) = self.divert.recv_batch()
        return item


def in_jail(body: Callable[[Host], None]) -> Callable[[], None]:
    def test() -> None:
        jails.isolated(lambda: body(Host()))()

    test.__name__ = body.__name__
    return test


def udp(port: int, size: int = 3) -> bytearray:
    return build.udp(Endpoint(HERE, 5000), Endpoint(HERE, port), bytes(size))


@in_jail
def test_a_packet_is_held_and_goes_on_behind_its_rule(host: Host) -> None:
    item = host.taken(b"hello")
    assert (item.direction, item.interface) == (Direction.OUT, "")
    assert jails.heard(host.receiver) == []
    host.divert.send(item)
    assert jails.heard(host.receiver) == [b"hello"]
    assert host.divert.recv_batch() == []


@in_jail
def test_the_rule_number_of_an_own_packet_says_where_it_goes_on(host: Host) -> None:
    host.divert.send(own_packet(udp(DIVERTED), Direction.OUT, after_rule=100))
    assert jails.heard(host.receiver) == [bytes(3)]
    host.divert.send(own_packet(udp(DIVERTED), Direction.OUT, after_rule=99))
    assert jails.heard(host.receiver) == []
    assert len(host.divert.recv_batch()) == 1


@in_jail
def test_an_own_packet_comes_in_by_the_interface_named_or_addressed(host: Host) -> None:
    host.divert.send(own_packet(udp(DIVERTED), Direction.IN, interface="lo0"))
    host.divert.send(own_packet(udp(DIVERTED), Direction.IN, address=HERE))
    assert jails.heard(host.receiver) == [bytes(3)] * 2
    host.divert.send(own_packet(udp(DIVERTED), Direction.IN, address=parse_address("192.0.2.1")))
    assert host.divert.counters["unreachable"] == 1


@in_jail
def test_an_incoming_packet_tells_its_interface(host: Host) -> None:
    jails.command(f"ipfw -q add 101 divert {ELSEWHERE} udp from any to any {DIVERTED} in recv lo0")
    with Divert(ELSEWHERE, direction=Direction.IN) as inward:
        host.divert.send(own_packet(udp(DIVERTED), Direction.IN, interface="lo0"))
        jails.heard(host.receiver)  # incoming writes are queued
        (item,) = inward.recv_batch()
        assert (item.direction, item.interface) == (Direction.IN, "lo0")
        inward.send(item)
        assert jails.heard(host.receiver) == [bytes(3)]


@in_jail
def test_what_the_kernel_refuses_is_counted(host: Host) -> None:
    host.divert.send(own_packet(udp(DENIED), Direction.OUT))
    far = build.udp(Endpoint(HERE, 5000), Endpoint(parse_address("192.0.2.1"), 9), b"")
    host.divert.send(own_packet(far, Direction.OUT))
    host.divert.send(own_packet(b"short", Direction.OUT))
    counters = host.divert.counters
    assert (counters["not_permitted"], counters["unreachable"], counters["invalid"]) == (1, 1, 1)


@in_jail
def test_a_packet_too_big_is_answered_with_the_routes_mtu(host: Host) -> None:
    jails.command(f"ipfw -q add 10 divert {ELSEWHERE} icmp from any to any in icmptypes 3")
    with Divert(ELSEWHERE, direction=Direction.IN) as errors:
        data = udp(PLAIN, 2000)
        data[6] |= 0x40
        host.divert.send(own_packet(data, Direction.OUT))
        jails.heard(host.receiver)
        assert (host.divert.counters["too_big"], host.divert.counters["need_fragment"]) == (1, 1)
        (error,) = errors.recv_batch()
    assert error.data[20:22] == bytes([3, 4])
    assert int.from_bytes(error.data[26:28], "big") == route_mtu(HERE) == 1500
    assert error.data[28:] == data[:68]


@in_jail
def test_a_taken_port_names_this_process(host: Host) -> None:
    with pytest.raises(NatfError, match=rf"divert port {OUT}: held by .*process {os.getpid()} of root"):
        Divert(OUT, direction=Direction.OUT)


@in_jail
def test_a_burst_waits_in_the_receive_buffer(host: Host) -> None:
    for _ in range(300):  # the default buffer holds 43 of them
        host.sender.sendto(bytes(1400), ("127.0.0.1", DIVERTED))
    assert len(host.divert.recv_batch(1000)) == 300
    assert host.divert.counters["buffer_full"] == 0


@in_jail
def test_an_open_handle_works_without_privilege_and_no_new_one_is_made(host: Host) -> None:
    os.setuid(65534)
    host.divert.send(host.taken(b"hello"))
    assert jails.heard(host.receiver) == [b"hello"]
    with pytest.raises(NatfError, match="root is needed"):
        Divert(ELSEWHERE, direction=Direction.IN)


@in_jail
def test_the_host_tells_its_interfaces_and_routes(host: Host) -> None:
    assert "lo0" in interface_names()
    assert route_mtu(HERE) == 1500
    assert route_mtu(parse_address("192.0.2.1")) == 0
