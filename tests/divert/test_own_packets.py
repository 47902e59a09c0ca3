"""FreeBSD: packets of our own making go on at the rule meant, and the control channel keeps what is NAT-f's only."""

from __future__ import annotations

import errno
import os

import pytest

from natf_bsd.divert import Direction
from natf_bsd.divert.divert4 import DivertBackend, DivertWriter
from natf_bsd.divert.own import DivertedControl, OwnPackets, is_ours
from natf_bsd.errors import NatfError
from natf_bsd.types import Endpoint, Packet, parse_address
from natf_bsd.wire import build, icmp, message
from natf_bsd.wire import packet as wire
from tests.divert.fake_kernel import FakeKernel, sockaddr

G1, G2, V1 = (parse_address(text) for text in ("203.0.113.1", "203.0.113.10", "240.0.1.1"))
REPLIES = 8714
EXT = b"em0"


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.interfaces[EXT] = G1
    return made


def written(kernel: FakeKernel) -> list[tuple[bytes, bytes]]:
    return [(bytes(data), address) for data, address in kernel.written]


def test_an_outgoing_packet_goes_on_behind_its_rule(kernel: FakeKernel) -> None:
    own = OwnPackets(DivertWriter(calls=kernel), Direction.OUT, after_rule=51)
    data = bytes(build.udp(Endpoint(G2, 1), Endpoint(G1, 2), b"x"))
    own.send(data)
    assert written(kernel) == [(data, sockaddr(51))]
    assert own.counters["sent"] == 1


def test_an_incoming_packet_comes_in_by_its_interface(kernel: FakeKernel) -> None:
    own = OwnPackets(
        DivertWriter(calls=kernel), Direction.IN, after_rule=38, interface=EXT.decode(), address=lambda: G1
    )
    own.send(bytes(build.udp(Endpoint(V1, 1), Endpoint(G1, 2), b"x")))
    ((_, address),) = written(kernel)
    assert address == sockaddr(38, G1, EXT)


def test_where_the_name_is_too_long_the_address_tells(kernel: FakeKernel) -> None:
    """A name cut to seven characters could be another interface's."""
    own = OwnPackets(DivertWriter(calls=kernel), Direction.IN, after_rule=38, interface="vlan1000", address=lambda: G1)
    own.send(bytes(build.udp(Endpoint(V1, 1), Endpoint(G1, 2), b"x")))
    ((_, address),) = written(kernel)
    assert address == sockaddr(38, G1)


@pytest.mark.parametrize(
    ("number", "counter"), [(errno.EACCES, "not_permitted"), (errno.EHOSTUNREACH, "unreachable"), (errno.EIO, "other")]
)
def test_what_the_kernel_will_not_take_is_counted(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, number: int, counter: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernel, "sendto", refuse)
    own = OwnPackets(DivertWriter(calls=kernel), Direction.OUT, after_rule=51)
    own.send(bytes(build.udp(Endpoint(G2, 1), Endpoint(G1, 2), b"x")))
    assert {name: count for name, count in own.counters.items() if count} == {counter: 1}


def test_a_writer_needs_the_same_privilege_as_a_port() -> None:
    with pytest.raises(NatfError, match="divert socket: not permitted"):
        DivertWriter(calls=FakeKernel(is_root=False))


def test_a_closed_writer_is_gone(kernel: FakeKernel) -> None:
    writer = DivertWriter(calls=kernel)
    OwnPackets(writer, Direction.OUT, after_rule=51).close()
    writer.close()
    assert not kernel.sockets


def control(kernel: FakeKernel) -> DivertedControl:
    replies = DivertBackend(REPLIES, Direction.IN, calls=kernel)
    return DivertedControl(replies, OwnPackets(DivertWriter(calls=kernel), Direction.OUT, after_rule=35), lambda: G1)


def reply(payload: bytes) -> bytearray:
    return build.icmp_echo(G2, G1, reply=True, ident=7, sequence=1, payload=payload)


ANSWER = message.encode(message.Refused(bytes(8), message.Status.DENIED, ""))


def test_a_request_leaves_from_our_address_behind_the_rule(kernel: FakeKernel) -> None:
    channel = control(kernel)
    asked = icmp.encode_echo(icmp.Echo(icmp.ECHO_REQUEST, 7, 1, message.pad(b"NATf")))
    channel.send(G2, asked)
    ((data, address),) = written(kernel)
    assert (wire.source(data), wire.destination(data), data[20:]) == (G1, G2, asked)
    assert address == sockaddr(35)


def test_the_answer_of_a_router_is_ours_and_goes_no_further(kernel: FakeKernel) -> None:
    channel = control(kernel)
    data = reply(ANSWER)
    kernel.deliver(REPLIES, data, sockaddr(34, G1, EXT))
    assert list(channel.waiting()) == [(G2, bytes(data[20:]))]
    assert written(kernel) == []
    assert channel.counters["received"] == 1


@pytest.mark.parametrize("data", [reply(b"ping"), reply(b""), reply(b"NAT")], ids=["ping", "empty", "short"])
def test_an_answer_to_somebodys_ping_goes_on_as_it_came(kernel: FakeKernel, data: bytearray) -> None:
    channel = control(kernel)
    address = sockaddr(34, G1, EXT)
    kernel.deliver(REPLIES, data, address)
    assert list(channel.waiting()) == []
    assert written(kernel) == [(bytes(data), address)]
    assert channel.counters["passed"] == 1


def test_only_an_echo_reply_with_the_magic_is_ours() -> None:
    def ours(data: bytearray) -> bool:
        return is_ours(Packet(data, Direction.IN))

    assert ours(reply(ANSWER))
    request = build.icmp_echo(G2, G1, reply=False, ident=7, sequence=1, payload=ANSWER)
    assert not ours(request)
    assert not ours(build.udp(Endpoint(G2, 1), Endpoint(G1, 2), ANSWER))
    fragment = reply(ANSWER)
    fragment[7] = 1
    assert not ours(fragment)
