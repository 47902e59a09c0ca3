"""The two programs: what leaves the outer interface for a virtual address, and what enters it from a mapped router.

    vat_out   G1:s -> V1:d   becomes   G1:s -> G2:m
    vat_in    G2:m -> G1:s   becomes   V1:d -> G1:s, and carries our mark

A flow's key is `Flow.key` as the packet has it, filled up with zeros; what it becomes is an address, a port, and what
that makes of the header's checksum. The kernel's functions are called as seldom as can be: each takes as long as all
the instructions round it. Nothing leaves for a virtual address that no flow leads to, and nothing enters that says it
comes from one.

Of a datagram in fragments only the first has ports. Outward they come one after the other, and the first one's way is
remembered for those behind it. Inward they may come in any order, so that they are left to the kernel's reassembly; the
mark tells that the datagram is a flow's, and so it does of an ICMP error about one: the daemon translates both.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from natf_bsd.datapath.ebpf import assembly
from natf_bsd.datapath.ebpf.assembly import BYTE, DOUBLE, FRAME, HALF, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, WORD
from natf_bsd.types import Address, Endpoint, Flow, Protocol

KEY_SIZE: Final = 16
_FILLING: Final = 3
VALUE_SIZE: Final = 8
FRAGMENT_KEY_SIZE: Final = 12
"""What is kept of a fragment is the flow's value."""

NO_FLOW, FORGED, FAILED = range(3)
"""Places in the map of counters, of 64 bits each: packets dropped because they had no flow, came from a virtual
address, or could not be changed."""
COUNTERS: Final = 3

_VALUE: Final = struct.Struct("!4sH2s")
_KEY_FIELDS: Final = struct.Struct("!4s4sHHB3x")
_HALVES: Final = struct.Struct("=HH")

# linux/pkt_cls.h: as if we were not there; drop.
_GO_ON: Final = -1
_DROP: Final = 2

# Functions of the kernel, linux/bpf.h.
_LOOK_UP: Final = 1
_UPDATE: Final = 2
_STORE_BYTES: Final = 9
_REPLACE_IN_L4_SUM: Final = 11
_LOAD_BYTES: Final = 26
_PSEUDO_HEADER: Final = 0x10
_ZERO_IS_NONE: Final = 0x20  # BPF_F_MARK_MANGLED_0: a UDP checksum of 0 is none, and none becomes 0

# Fields of struct __sk_buff; the VLAN's are those of a tag that is no longer among the bytes.
_MARK_OF_PACKET: Final = 8
_ETHERTYPE: Final = 16
_HAS_VLAN: Final = 20
_VLAN: Final = 24
_IPV4: Final = socket.htons(0x0800)
_VLAN_NUMBER: Final = 0x0FFF

# An IPv4 header and the first four bytes behind it, where they are read to, and some of their fields.
_READ: Final = 24
_HEADER: Final = -24
_FRAGMENT: Final = _HEADER + 6
_IDENTIFIER: Final = _HEADER + 4
_PROTOCOL: Final = _HEADER + 9
_CHECKSUM: Final = _HEADER + 10
_SOURCE: Final = _HEADER + 12
_DESTINATION: Final = _HEADER + 16
_PORTS: Final = _HEADER + 20
# Other places in the frame.
_KEY: Final = -48
_SUM_AT: Final = -56
_SUM_FLAGS: Final = -64
_FRAGMENT_KEY: Final = -80
_COUNTER_KEY: Final = -88
# An ICMP error: its own 8 bytes, the header it quotes, and that one's ports.
_ERROR: Final = -120
_ERROR_SIZE: Final = 32
_QUOTED: Final = _ERROR + 8
_ERROR_TYPES: Final = (3, 11, 12)  # destination unreachable, time exceeded, parameter problem

_PLAIN_HEADER: Final = 20
_ADDRESSES: Final = 10  # bytes of the checksum and both addresses; the ports follow if there are no options
_MORE_OR_OFFSET: Final = socket.htons(0x3FFF)
_OFFSET: Final = socket.htons(0x1FFF)
_WITHOUT_OPTIONS: Final = 0x45


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Of the maps."""

    out: int
    inward: int
    fragments: int
    counters: int


def key_of(flow_key: bytes) -> bytes:
    return flow_key + bytes(_FILLING)


def flow_key_of(key: bytes) -> bytes:
    """Undoes `key_of`."""
    return key[: KEY_SIZE - _FILLING]


def key_of_answers(flow: Flow, mapped: Endpoint) -> bytes:
    """Of what comes back to `flow`."""
    here = flow.source
    return _KEY_FIELDS.pack(mapped.address, here.address, mapped.port, here.port, flow.protocol)


def value_of(endpoint: Endpoint, instead_of: Address) -> bytes:
    """What a packet gets: `endpoint`, whose address takes the place of `instead_of`."""
    return _VALUE.pack(endpoint.address, endpoint.port, _change_of_sum(instead_of, endpoint.address))


@lru_cache(maxsize=4096)
def _change_of_sum(old: Address, new: Address) -> bytes:
    # RFC 1624, as the machine reads halves of words: the sum does not depend on their order.
    change: int = sum(half ^ 0xFFFF for half in _HALVES.unpack(old)) + sum(_HALVES.unpack(new))
    while change > 0xFFFF:
        change = (change & 0xFFFF) + (change >> 16)
    return change.to_bytes(2, sys.byteorder)


def endpoint_of(value: bytes) -> Endpoint:
    return Endpoint(*_VALUE.unpack(value)[:2])


def vat_out(maps: Descriptors, *, prefix: int, link_header: int) -> bytes:
    """`prefix`: the first byte of virtual addresses; `link_header`: bytes before the IPv4 header."""
    a = assembly.Assembly()
    _read_header(a, link_header)
    a.load(BYTE, R2, FRAME, _DESTINATION)
    a.if_unequal(R2, prefix, "go on")
    a.load(HALF, R8, FRAME, _FRAGMENT)
    a.both(R8, _MORE_OR_OFFSET)
    a.move(R2, R8)
    a.both(R2, _OFFSET)
    a.if_unequal(R2, 0, "later fragment")
    _find_ports(a, link_header, otherwise="no flow")
    _flow_key(a)
    _look_up(a, maps.out, _KEY, otherwise="no flow")
    a.if_equal(R8, 0, "whole")
    _fragment_key(a)
    a.load_map(R1, maps.fragments)
    _place(a, R2, _FRAGMENT_KEY)
    a.move(R3, R9)
    a.set(R4, 0)
    a.call(_UPDATE)
    a.label("whole")
    _translate(a, link_header, _DESTINATION, otherwise="failed")
    a.jump("go on")
    a.label("later fragment")
    _fragment_key(a)
    _look_up(a, maps.fragments, _FRAGMENT_KEY, otherwise="no flow")
    _change_address(a, _DESTINATION)
    a.set(R2, link_header + _CHECKSUM - _HEADER)
    _store(a, _CHECKSUM, _ADDRESSES, otherwise="failed")
    a.label("go on")
    a.leave(_GO_ON)
    a.label("no flow")
    _count_and_drop(a, maps, NO_FLOW)
    a.label("failed")
    _count_and_drop(a, maps, FAILED)
    return a.code()


def vat_in(maps: Descriptors, *, prefix: int, link_header: int, mark: int, mask: int) -> bytes:
    """As `vat_out`; the packet's mark becomes `mark` within `mask`."""
    a = assembly.Assembly()
    _read_header(a, link_header)
    a.load(BYTE, R2, FRAME, _SOURCE)
    a.if_equal(R2, prefix, "forged")
    a.load(HALF, R8, FRAME, _FRAGMENT)
    a.both(R8, _MORE_OR_OFFSET)
    a.move(R2, R8)
    a.both(R2, _OFFSET)
    a.if_unequal(R2, 0, "go on")
    _find_ports(a, link_header, otherwise="go on")
    a.load(BYTE, R2, FRAME, _PROTOCOL)
    a.if_equal(R2, Protocol.ICMP, "error")
    _flow_key(a)
    _look_up(a, maps.inward, _KEY, otherwise="go on")
    a.if_unequal(R8, 0, "mark")
    _translate(a, link_header, _SOURCE, otherwise="failed")
    a.jump("mark")
    a.label("error")
    a.if_unequal(R8, 0, "go on")
    _quoted_key(a)
    _look_up(a, maps.inward, _KEY, otherwise="go on")
    a.label("mark")
    a.load(WORD, R2, R6, _MARK_OF_PACKET)
    a.both_word(R2, 0xFFFFFFFF ^ mask)
    a.either_word(R2, mark)
    a.store(WORD, R6, _MARK_OF_PACKET, R2)
    a.label("go on")
    a.leave(_GO_ON)
    a.label("forged")
    _count_and_drop(a, maps, FORGED)
    a.label("failed")
    _count_and_drop(a, maps, FAILED)
    return a.code()


# Parts of both. R6 is the packet, R7 where its ports are, R8 whether it is a fragment, R9 what was found.


def _read_header(a: assembly.Assembly, link_header: int) -> None:
    """The last fragment of a datagram may have fewer bytes behind it than ports would take.

    A tag of VLAN 0 has a priority only: its packet is the interface's own. Others are of VLAN devices."""
    a.move(R6, R1)
    a.load(WORD, R2, R6, _ETHERTYPE)
    a.if_unequal(R2, _IPV4, "go on")
    a.load(WORD, R2, R6, _HAS_VLAN)
    a.if_equal(R2, 0, "own")
    a.load(WORD, R2, R6, _VLAN)
    a.both(R2, _VLAN_NUMBER)
    a.if_unequal(R2, 0, "go on")
    a.label("own")
    _load_bytes(a, link_header, _HEADER, _READ)
    a.if_equal(R0, 0, "read")
    a.store_number(WORD, FRAME, _PORTS, 0)
    a.move(R1, R6)
    _load_bytes(a, link_header, _HEADER, _PLAIN_HEADER)
    a.if_unequal(R0, 0, "go on")
    a.label("read")


def _load_bytes(a: assembly.Assembly, link_header: int, frame: int, size: int) -> None:
    """Of the packet at R1."""
    a.set(R2, link_header)
    _place(a, R3, frame)
    a.set(R4, size)
    a.call(_LOAD_BYTES)


def _find_ports(a: assembly.Assembly, link_header: int, *, otherwise: str) -> None:
    """Behind the options, if there are any."""
    a.load(BYTE, R7, FRAME, _HEADER)
    a.both(R7, 0x0F)
    a.shift_left(R7, 2)
    a.add(R7, link_header)
    a.if_equal(R7, link_header + _PLAIN_HEADER, "ports")
    a.move(R1, R6)
    a.move(R2, R7)
    _place(a, R3, _PORTS)
    a.set(R4, 4)
    a.call(_LOAD_BYTES)
    a.if_unequal(R0, 0, otherwise)
    a.label("ports")


def _flow_key(a: assembly.Assembly) -> None:
    for offset, field in enumerate((_SOURCE, _DESTINATION, _PORTS)):
        a.load(WORD, R2, FRAME, field)
        a.store(WORD, FRAME, _KEY + 4 * offset, R2)
    _protocol_of_key(a, _PROTOCOL)


def _protocol_of_key(a: assembly.Assembly, field: int) -> None:
    a.store_number(WORD, FRAME, _KEY + 12, 0)
    a.load(BYTE, R2, FRAME, field)
    a.store(BYTE, FRAME, _KEY + 12, R2)


def _quoted_key(a: assembly.Assembly) -> None:
    """Of the flow whose packet an ICMP error quotes, in the direction in which its answers come."""
    a.move(R1, R6)
    a.move(R2, R7)
    _place(a, R3, _ERROR)
    a.set(R4, _ERROR_SIZE)
    a.call(_LOAD_BYTES)
    a.if_unequal(R0, 0, "go on")
    a.load(BYTE, R2, FRAME, _ERROR)
    for number in _ERROR_TYPES:
        a.if_equal(R2, number, "quoted")
    a.jump("go on")
    a.label("quoted")
    a.load(BYTE, R2, FRAME, _QUOTED)
    a.if_unequal(R2, _WITHOUT_OPTIONS, "go on")
    a.load(HALF, R2, FRAME, _QUOTED + 6)
    a.both(R2, _OFFSET)
    a.if_unequal(R2, 0, "go on")
    for size, field, place in ((WORD, 16, 0), (WORD, 12, 4), (HALF, 22, 8), (HALF, 20, 10)):
        a.load(size, R2, FRAME, _QUOTED + field)
        a.store(size, FRAME, _KEY + place, R2)
    _protocol_of_key(a, _QUOTED + 9)


def _fragment_key(a: assembly.Assembly) -> None:
    for offset, field in enumerate((_SOURCE, _DESTINATION)):
        a.load(WORD, R2, FRAME, field)
        a.store(WORD, FRAME, _FRAGMENT_KEY + 4 * offset, R2)
    a.load(HALF, R2, FRAME, _IDENTIFIER)
    a.store(HALF, FRAME, _FRAGMENT_KEY + 8, R2)
    a.store_number(HALF, FRAME, _FRAGMENT_KEY + 10, 0)
    a.load(BYTE, R2, FRAME, _PROTOCOL)
    a.store(BYTE, FRAME, _FRAGMENT_KEY + 10, R2)


def _look_up(a: assembly.Assembly, descriptor: int, key: int, *, otherwise: str) -> None:
    a.load_map(R1, descriptor)
    _place(a, R2, key)
    a.call(_LOOK_UP)
    a.if_equal(R0, 0, otherwise)
    a.move(R9, R0)


def _translate(a: assembly.Assembly, link_header: int, address: int, *, otherwise: str) -> None:
    """`address`: where in the frame the one is that changes, with its port. The kernel knows whether a checksum is
    still to be completed by the device."""
    port = _PORTS if address == _SOURCE else _PORTS + 2
    a.move(R2, R7)
    a.add(R2, 16)
    a.set(R3, 0)
    a.load(BYTE, R4, FRAME, _PROTOCOL)
    a.if_equal(R4, Protocol.TCP, "sum")
    a.add(R2, 6 - 16)
    a.set(R3, _ZERO_IS_NONE)
    a.label("sum")
    a.store(DOUBLE, FRAME, _SUM_AT, R2)
    a.store(DOUBLE, FRAME, _SUM_FLAGS, R3)
    for size, old, new, flags in ((WORD, address, 0, _PSEUDO_HEADER | 4), (HALF, port, 4, 2)):
        a.move(R1, R6)
        a.load(DOUBLE, R2, FRAME, _SUM_AT)
        a.load(size, R3, FRAME, old)
        a.load(size, R4, R9, new)
        a.load(DOUBLE, R5, FRAME, _SUM_FLAGS)
        a.either(R5, flags)
        a.call(_REPLACE_IN_L4_SUM)
        a.if_unequal(R0, 0, otherwise)
    _change_address(a, address)
    a.load(HALF, R2, R9, 4)
    a.store(HALF, FRAME, port, R2)
    a.if_unequal(R7, link_header + _PLAIN_HEADER, "options")
    a.set(R2, link_header + _CHECKSUM - _HEADER)
    _store(a, _CHECKSUM, _ADDRESSES + 4, otherwise=otherwise)
    a.jump("stored")
    a.label("options")
    a.set(R2, link_header + _CHECKSUM - _HEADER)
    _store(a, _CHECKSUM, _ADDRESSES, otherwise=otherwise)
    a.move(R2, R7)
    _store(a, _PORTS, 4, otherwise=otherwise)
    a.label("stored")


def _change_address(a: assembly.Assembly, address: int) -> None:
    """In the frame, with the header's checksum (RFC 1624)."""
    a.load(WORD, R2, R9, 0)
    a.store(WORD, FRAME, address, R2)
    a.load(HALF, R2, FRAME, _CHECKSUM)
    a.differ(R2, 0xFFFF)
    a.load(HALF, R3, R9, 6)
    a.add_register(R2, R3)
    a.move(R3, R2)
    a.shift_right(R3, 16)
    a.both(R2, 0xFFFF)
    a.add_register(R2, R3)
    a.differ(R2, 0xFFFF)
    a.store(HALF, FRAME, _CHECKSUM, R2)


def _count_and_drop(a: assembly.Assembly, maps: Descriptors, counter: int) -> None:
    a.store_number(WORD, FRAME, _COUNTER_KEY, counter)
    a.load_map(R1, maps.counters)
    _place(a, R2, _COUNTER_KEY)
    a.call(_LOOK_UP)
    a.if_equal(R0, 0, f"drop {counter}")
    a.set(R1, 1)
    a.add_to_memory(R0, 0, R1)
    a.label(f"drop {counter}")
    a.leave(_DROP)


def _store(a: assembly.Assembly, frame: int, size: int, *, otherwise: str) -> None:
    """From the frame into the packet at R2. The kernel may have no memory for a copy it can change."""
    a.move(R1, R6)
    _place(a, R3, frame)
    a.set(R4, size)
    a.set(R5, 0)
    a.call(_STORE_BYTES)
    a.if_unequal(R0, 0, otherwise)


def _place(a: assembly.Assembly, register: int, offset: int) -> None:
    """An address in the frame."""
    a.move(register, FRAME)
    a.add(register, offset)
