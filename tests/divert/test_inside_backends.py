"""The way for inside hosts: out of the device and on by a raw socket, out of the queue and on by the device."""

from __future__ import annotations

import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.divert import Divert, held_by
from natf_bsd.divert.fragments import Fragments
from natf_bsd.divert.inject import Injector
from natf_bsd.divert.inside import FromInside, ToInside, TunInjector
from natf_bsd.divert.memory import MemoryBackend
from natf_bsd.divert.tun import TunDevice
from natf_bsd.errors import NatfError
from natf_bsd.types import Direction, Endpoint, Flow, Packet, Protocol, parse_address
from natf_bsd.wire import build
from natf_bsd.wire import packet as wire

G1, G2, V1 = (parse_address(text) for text in ("203.0.113.1", "203.0.113.2", "240.0.51.82"))
OUT = bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), b"hello"))


class Device:
    """A TUN device and the raw socket beside it: what waits to be read, what was written, what was sent."""

    def __init__(self) -> None:
        self.there: list[bytes] = []
        self.written: list[bytes] = []
        self.sent: list[bytes] = []
        self.up = True
        self.closed = 0

    def fileno(self) -> int:
        return -1

    def waiting(self, limit: int) -> list[bytes]:
        found, self.there = self.there[:limit], self.there[limit:]
        return found

    def write(self, data: bytearray) -> bool:
        if self.up:
            self.written.append(bytes(data))
        return self.up

    def send(self, data: bytearray) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed += 1

    @property
    def counters(self) -> dict[str, int]:
        return {"sent": len(self.sent)}


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def out(device: Device) -> Divert:
    backend = FromInside(cast(TunDevice, device), "natf1", 240, cast(Injector, device), G1)
    return Divert(0, direction=Direction.OUT, backend=backend)


def test_only_packets_to_virtual_addresses_come_out_of_the_device(device: Device, out: Divert) -> None:
    elsewhere = bytes(build.udp(Endpoint(G1, 2000), Endpoint(G2, 5000), b"hello"))
    device.there = [b"\x60" + bytes(47), elsewhere, OUT, b"\x45"]
    [packet] = out.recv_batch()
    assert (bytes(packet.data), packet.direction, packet.interface) == (OUT, Direction.OUT, "natf1")
    assert {name: count for name, count in out.counters.items() if count} == {"received": 1, "foreign": 3}


def test_what_came_out_of_the_device_goes_on_by_the_raw_socket_once(device: Device, out: Divert) -> None:
    device.there = [OUT, OUT]
    first, second = out.recv_batch()
    first.data[16:20] = G2
    held_by(first).send(first)
    held_by(second).drop(second)
    assert [data[16:20] for data in device.sent] == [G2]
    assert device.written == []
    for packet in (first, second):
        with pytest.raises(NatfError, match="is not held"):
            out.send(packet)


@pytest.mark.parametrize("fragment", [0, 1], ids=["its first fragment", "a later one"])
def test_what_no_nat_has_translated_does_not_leave_the_host(device: Device, out: Divert, fragment: int) -> None:
    """`iptables -t nat -F`, and conntrack lets the flow go through as it is even when the rules are back."""
    alice, carol = Endpoint(parse_address("192.168.0.2"), 2000), Endpoint(V1, 5000)
    device.there = [cut(bytes(build.udp(alice, carol, bytes(2000))))[fragment]]
    assert out.recv_batch() == []
    assert (device.sent, out.counters["untranslated"]) == ([], 1)
    if fragment == 0:
        [error] = device.written
        assert (error[12:16], error[16:20]) == (V1, alice.address)
        assert wire.quoted_flow(error) == Flow(Protocol.UDP, alice, carol)
    else:
        assert device.written == [], "RFC 1122 section 3.2.2"


def test_later_fragments_that_wait_have_bounded_room(device: Device, out: Divert) -> None:
    """A flow's first packets are held by number: eight thousand of 64 KB would be half a gigabyte."""
    held: list[Packet] = []
    for number in range(200):
        datagram = bytearray(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), bytes(60000)))
        datagram[4:6] = number.to_bytes(2, "big")
        device.there = cut(bytes(datagram))
        held += out.recv_batch()
    assert len(held) + out.counters["no_room"] == 200
    assert len(held) * 60000 < 9 << 20
    out.drop(held.pop())
    out.send(held.pop())
    device.there = cut(bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), bytes(60000)))) * 3
    assert len(out.recv_batch(1000)) == 2


def test_the_fragments_of_a_large_datagram_go_where_the_first_one_goes(device: Device, out: Divert) -> None:
    device.there = cut(bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), b"hello" * 600)))
    pieces = list(device.there)
    [packet] = out.recv_batch()
    assert bytes(packet.data) == pieces[0]
    packet.data[16:20] = G2
    out.send(packet)
    assert device.sent == [piece[:16] + G2 + piece[20:] for piece in pieces]
    assert len(pieces) == 3


def cut(data: bytes, size: int = 1480) -> list[bytes]:
    """Fragments of a packet with a plain header, as a kernel makes them."""
    payload = data[20:]
    pieces = []
    for offset in range(0, len(payload), size):
        part = payload[offset : offset + size]
        flags = offset // 8 | (0x2000 if offset + size < len(payload) else 0)
        head = data[:2] + (20 + len(part)).to_bytes(2, "big") + data[4:6] + flags.to_bytes(2, "big") + data[8:20]
        pieces.append(head + part)
    return pieces


@given(st.permutations(range(4)), st.integers(8, 480))
def test_fragments_in_any_order_are_all_given_with_the_last_that_comes(order: list[int], rest: int) -> None:
    pieces = cut(bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), bytes(3 * 504 + rest))), 504)
    fragments = Fragments()
    taken = [fragments.take(pieces[number]) for number in order]
    assert taken == [[], [], [], pieces]
    assert fragments.take(pieces[0]) == [], "nothing was kept"


def test_datagrams_that_stay_incomplete_do_not_pile_up() -> None:
    fragments = Fragments(maximum=2)
    for number in range(5):
        datagram = bytearray(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), bytes(2000)))
        datagram[4:6] = number.to_bytes(2, "big")
        first, second = cut(bytes(datagram))
        assert fragments.take(first) == []
    assert fragments.lost == 3
    assert fragments.take(second) == [first, second]


def test_what_never_became_whole_is_no_part_of_a_later_datagram() -> None:
    """Both have the same number, which is given out again after 65,536 others."""
    old, new = (cut(bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), text * 4000))) for text in (b"o", b"n"))
    fragments = Fragments()
    assert [fragments.take(piece) for piece in (*old[:2], *new[:2])] == [[], [], [], []]
    assert fragments.take(new[2]) == new
    assert fragments.lost == 1


def test_fragments_that_overlap_are_given_up() -> None:
    data = bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), bytes(2000)))
    fragments = Fragments()
    assert [fragments.take(piece) for piece in (cut(data, 1488)[0], cut(data, 1480)[1])] == [[], []]
    assert fragments.lost == 1


def test_who_sends_tiny_fragments_gets_neither_time_nor_room() -> None:
    """Linux cuts a datagram again as small as it came: 8 bytes, and 8,000 of them in one datagram."""
    pieces = cut(bytes(build.udp(Endpoint(G1, 2000), Endpoint(V1, 5000), bytes(60000))), 8)
    fragments = Fragments()
    began = time.process_time()
    assert not any(fragments.take(piece) for piece in pieces)
    assert time.process_time() - began < 1.0, "it was ten seconds when each fragment was compared with all before it"
    assert fragments.lost == len(pieces) // 256
    assert fragments.take(OUT) == [OUT]


def test_an_answer_is_taken_from_the_queue_and_written_to_the_device(device: Device) -> None:
    queue = MemoryBackend()
    inward = Divert(0, backend=ToInside(queue, TunInjector(cast(TunDevice, device))))
    for text in (b"one", b"two"):
        queue.feed(build.udp(Endpoint(G2, 61000), Endpoint(G1, 2000), text), Direction.IN)
    first, second = inward.recv_batch()
    first.data[12:16] = V1
    held_by(first).send(first)
    device.up = False
    held_by(second).send(second)
    assert (queue.sent, queue.dropped) == ([], [first, second])
    assert [data[12:16] for data in device.written] == [V1]
    assert {name: inward.counters[name] for name in ("sent", "refused")} == {"sent": 1, "refused": 1}
    inward.close()
    assert device.closed == 0, "it is the other handle's"


def test_closing_gives_up_the_device_and_the_socket(device: Device, out: Divert) -> None:
    out.close()
    assert device.closed == 2


def test_a_packet_of_our_own_making_is_nobodys(device: Device) -> None:
    with pytest.raises(NatfError, match="of our own making"):
        held_by(Packet(bytearray(OUT), Direction.OUT))
