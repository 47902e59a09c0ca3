"""What every backend does, whatever lies under it: the same tests over memory, over NFQUEUE in a namespace, and over
divert(4), with a stand-in kernel and with a real one in a jail.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from typing import Protocol

import pytest

from natf_bsd.divert import Direction, Divert, Packet
from natf_bsd.divert.divert4 import DivertBackend
from natf_bsd.divert.memory import MemoryBackend
from natf_bsd.errors import NatfError
from natf_bsd.types import Endpoint
from natf_bsd.wire import build, packet
from tests import spaces
from tests.divert import jails
from tests.divert.fake_kernel import FakeKernel, sockaddr

HERE = bytes([127, 0, 0, 1])
PORT = 7000


class Rig(Protocol):
    """One open handle, and the world on both sides of it."""

    divert: Divert
    place: tuple[Direction, str]
    """The direction and the interface its packets have."""

    def feed(self, payload: bytes) -> None:
        """Send a UDP datagram into the handle."""

    def delivered(self) -> list[bytes]:
        """The UDP payloads that came out behind the handle since the last call."""


class MemoryRig:
    place = (Direction.IN, "lo")

    def __init__(self) -> None:
        self._backend = MemoryBackend()
        self.divert = Divert(8710, direction=Direction.IN, backend=self._backend)
        self._seen = 0

    def feed(self, payload: bytes) -> None:
        self._backend.feed(build.udp(Endpoint(HERE, 5000), Endpoint(HERE, PORT), payload), Direction.IN, "lo")

    def delivered(self) -> list[bytes]:
        fresh = self._backend.sent[self._seen :]
        self._seen += len(fresh)
        return [payload_of(item) for item in fresh]


class NfqueueRig:
    """Loopback UDP, held at mangle INPUT."""

    place = (Direction.IN, "lo")

    def __init__(self) -> None:
        self._space = spaces.Space()
        self._space.run(f"iptables -t mangle -A INPUT -p udp --dport {PORT} -j NFQUEUE --queue-num 8710")
        with self._space:
            self.divert = Divert(8710, direction=Direction.IN)
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._receiver.bind(("127.0.0.1", PORT))
            self._receiver.setblocking(False)

    def feed(self, payload: bytes) -> None:
        self._sender.sendto(payload, ("127.0.0.1", PORT))

    def delivered(self) -> list[bytes]:
        # Over loopback a datagram is there when the verdict's system call returns.
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._receiver.recv(65535))
        return found


class FakeKernelRig:
    place = (Direction.IN, "lo0")

    def __init__(self) -> None:
        self._kernel = FakeKernel()
        self.divert = Divert(
            8710, direction=Direction.IN, backend=DivertBackend(8710, Direction.IN, calls=self._kernel)
        )

    def feed(self, payload: bytes) -> None:
        data = build.udp(Endpoint(HERE, 5000), Endpoint(HERE, PORT), payload)
        self._kernel.deliver(8710, data, sockaddr(100, HERE, b"lo0"))

    def delivered(self) -> list[bytes]:
        fresh, self._kernel.written = self._kernel.written, []
        return [data[packet.header_length(data) + 8 :] for data, _ in fresh]


class DivertRig:
    """Loopback UDP, held on its way out: on its way in its checksum is not made yet (FREEBSD.md 1.6)."""

    place = (Direction.OUT, "")

    def __init__(self) -> None:
        self.divert = Divert(8710, direction=Direction.OUT)
        jails.command(f"ipfw -q add 100 divert 8710 udp from any to any {PORT} out via lo0")
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.bind(("127.0.0.1", PORT))

    def feed(self, payload: bytes) -> None:
        self._sender.sendto(payload, ("127.0.0.1", PORT))

    def delivered(self) -> list[bytes]:
        return jails.heard(self._receiver)


Contract = Callable[[Rig], None]
CONTRACT: list[Contract] = []


def contract(function: Contract) -> Contract:
    CONTRACT.append(function)
    return function


def payload_of(item: Packet) -> bytes:
    return bytes(item.data[packet.header_length(item.data) + 8 :])


def readable(divert: Divert) -> bool:
    return bool(select.select([divert], [], [], 0)[0])


def only(divert: Divert) -> Packet:
    (item,) = divert.recv_batch()
    return item


@contract
def nothing_waiting_is_an_empty_batch(rig: Rig) -> None:
    assert not readable(rig.divert)
    assert rig.divert.recv_batch() == []


@contract
def a_packet_carries_its_bytes_direction_and_interface(rig: Rig) -> None:
    rig.feed(b"hello")
    item = only(rig.divert)
    packet.check_ipv4(item.data)
    flow = packet.flow_of(item.data)
    assert flow is not None
    assert flow.destination == Endpoint(HERE, PORT)
    assert payload_of(item) == b"hello"
    assert (item.direction, item.interface) == rig.place


@contract
def readable_while_packets_wait_and_not_after(rig: Rig) -> None:
    rig.feed(b"1")
    rig.feed(b"2")
    assert readable(rig.divert)
    rig.divert.recv_batch(1)
    assert readable(rig.divert)
    rig.divert.recv_batch(1)
    assert not readable(rig.divert)


@contract
def a_batch_keeps_order_and_limit(rig: Rig) -> None:
    payloads = [b"%d" % number for number in range(10)]
    for payload in payloads:
        rig.feed(payload)
    batches = [rig.divert.recv_batch(4) for _ in range(4)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 0]
    assert [payload_of(item) for batch in batches for item in batch] == payloads


@contract
def a_held_packet_stays_until_it_is_sent(rig: Rig) -> None:
    rig.feed(b"held")
    item = only(rig.divert)
    assert rig.delivered() == []
    rig.divert.send(item)
    assert rig.delivered() == [b"held"]


@contract
def packets_go_on_in_the_order_they_are_sent(rig: Rig) -> None:
    rig.feed(b"first")
    rig.feed(b"second")
    first, second = rig.divert.recv_batch()
    rig.divert.send(second)
    rig.divert.send(first)
    assert rig.delivered() == [b"second", b"first"]


@contract
def changed_bytes_go_on_changed(rig: Rig) -> None:
    rig.feed(b"before")
    item = only(rig.divert)
    flow = packet.flow_of(item.data)
    assert flow is not None
    item.data = build.udp(flow.source, flow.destination, b"quite another thing")
    rig.divert.send(item)
    assert rig.delivered() == [b"quite another thing"]


@contract
def a_dropped_packet_is_gone(rig: Rig) -> None:
    rig.feed(b"dropped")
    rig.feed(b"sent")
    dropped, sent = rig.divert.recv_batch()
    rig.divert.drop(dropped)
    rig.divert.send(sent)
    assert rig.delivered() == [b"sent"]


@contract
def a_packet_is_sent_or_dropped_once(rig: Rig) -> None:
    rig.feed(b"1")
    rig.feed(b"2")
    sent, dropped = rig.divert.recv_batch()
    rig.divert.send(sent)
    rig.divert.drop(dropped)
    for item in sent, dropped:
        for act in rig.divert.send, rig.divert.drop:
            with pytest.raises(NatfError, match="not held"):
                act(item)
    assert rig.delivered() == [b"1"]


@contract
def a_packet_of_our_own_making_is_refused(rig: Rig) -> None:
    own = Packet(build.udp(Endpoint(HERE, 1), Endpoint(HERE, PORT), b"own"), Direction.OUT)
    with pytest.raises(NatfError, match=r"divert\.inject"):
        rig.divert.send(own)


@contract
def iteration_ends_when_its_body_closes_the_handle(rig: Rig) -> None:
    for payload in b"a", b"b":
        rig.feed(payload)
    seen = []
    for item in rig.divert:
        seen.append(payload_of(item))
        rig.divert.send(item)
        if len(seen) == 2:
            rig.divert.close()
    assert seen == [b"a", b"b"]
    assert rig.delivered() == [b"a", b"b"]


@contract
def leaving_the_loop_leaves_the_rest_waiting(rig: Rig) -> None:
    for payload in b"a", b"b":
        rig.feed(payload)
    for item in rig.divert:
        rig.divert.drop(item)
        break
    assert payload_of(only(rig.divert)) == b"b"


@contract
def counters_tell_received_sent_and_dropped(rig: Rig) -> None:
    for payload in b"a", b"b", b"c":
        rig.feed(payload)
    first, second, _held = rig.divert.recv_batch()
    rig.divert.send(first)
    rig.divert.drop(second)
    counters = rig.divert.counters
    assert (counters["received"], counters["sent"], counters["dropped"]) == (3, 1, 1)


@contract
def closing_twice_is_harmless_and_with_closes(rig: Rig) -> None:
    with rig.divert as divert:
        assert divert is rig.divert
    assert "closed" in repr(divert)
    divert.close()


@pytest.fixture(params=CONTRACT, ids=lambda function: function.__name__)
def clause(request: pytest.FixtureRequest) -> Contract:
    function: Contract = request.param
    return function


def test_memory_keeps_the_contract(clause: Contract) -> None:
    clause(MemoryRig())


def test_divert_sockets_keep_the_contract_over_a_stand_in_kernel(clause: Contract) -> None:
    clause(FakeKernelRig())


@pytest.mark.freebsd
@pytest.mark.skipif(jails.unsupported() is not None, reason=str(jails.unsupported()))
def test_divert_sockets_keep_the_contract(clause: Contract) -> None:
    jails.isolated(lambda: clause(DivertRig()))()


@pytest.mark.lab
@spaces.LINUX
@pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported()))
def test_nfqueue_keeps_the_contract(clause: Contract) -> None:
    spaces.isolated(lambda: clause(NfqueueRig()))()
