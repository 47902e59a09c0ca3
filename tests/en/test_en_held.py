"""Held packets: bounded per flow and in all; a retransmission replaces what it repeats (DESIGN.md section 4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.en.held import IN_ALL, PER_FLOW, HeldPackets
from natf_bsd.types import Direction, Endpoint, Packet, parse_address
from natf_bsd.wire import build, packet

SOURCE = Endpoint(parse_address("203.0.113.10"), 40000)
VIRTUAL = Endpoint(parse_address("240.0.1.2"), 80)


def segment(sequence: int, flags: int = packet.TCP_ACK, payload: bytes = b"") -> Packet:
    return Packet(build.tcp(SOURCE, VIRTUAL, flags=flags, sequence=sequence, payload=payload), Direction.OUT)


def datagram(payload: bytes = b"x") -> Packet:
    return Packet(build.udp(SOURCE, VIRTUAL, payload), Direction.OUT)


def test_packets_come_back_in_their_order_and_once() -> None:
    held = HeldPackets()
    packets = [segment(number) for number in range(3)]
    assert [held.hold(b"flow", one) for one in packets] == [None] * 3
    assert held.take(b"flow") == packets
    assert held.take(b"flow") == []
    assert len(held) == 0


def test_retransmission_takes_the_place_of_the_segment_it_repeats() -> None:
    held = HeldPackets()
    first, second, again = segment(1), segment(2), segment(1, payload=b"and more")
    held.hold(b"flow", first)
    held.hold(b"flow", second)
    assert held.hold(b"flow", again) is first
    assert len(held) == 2
    assert held.take(b"flow") == [again, second]


def test_same_sequence_with_other_flags_is_another_segment() -> None:
    held = HeldPackets()
    held.hold(b"flow", segment(1, packet.TCP_ACK))
    assert held.hold(b"flow", segment(1, packet.TCP_ACK | packet.TCP_FIN)) is None
    assert len(held) == 2


def test_equal_datagrams_are_two_datagrams() -> None:
    held = HeldPackets()
    held.hold(b"flow", datagram())
    assert held.hold(b"flow", datagram()) is None
    assert len(held.take(b"flow")) == 2


def test_a_flow_has_its_limit_and_a_retransmission_still_fits() -> None:
    held = HeldPackets()
    for number in range(PER_FLOW):
        held.hold(b"flow", segment(number))
    late = segment(PER_FLOW)
    assert held.hold(b"flow", late) is late
    repeated = segment(0)
    assert held.hold(b"flow", repeated) is not repeated
    assert held.hold(b"other", late) is None
    assert len(held) == PER_FLOW + 1


def test_all_flows_together_have_their_limit() -> None:
    held = HeldPackets()
    one = datagram()
    for number in range(IN_ALL):
        assert held.hold(number.to_bytes(4, "big"), one) is None
    assert held.hold(b"one more", one) is one
    assert b"one more" not in held._flows, "a stranger's key is kept for nothing"
    held.take(bytes(4))
    assert held.hold(b"one more", one) is None
    assert len(held.take_all()) == IN_ALL
    assert len(held) == 0
    assert held.take(b"one more") == []


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 12), st.booleans()), max_size=80))
def test_what_is_held_is_what_was_neither_displaced_refused_nor_taken(steps: list[tuple[bytes, int, bool]]) -> None:
    held = HeldPackets()
    inside: set[int] = set()
    made: list[Packet] = []  # alive to the end, so that no id is used twice
    for key, sequence, take in steps:
        if take:
            inside -= {id(one) for one in held.take(key)}
        else:
            one = segment(sequence)
            made.append(one)
            displaced = held.hold(key, one)
            inside.add(id(one))
            inside.discard(id(displaced))
        assert len(held) == len(inside)
    assert {id(one) for one in held.take_all()} == inside
