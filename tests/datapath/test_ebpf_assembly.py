"""Instructions of our eBPF programs; that the kernel takes the programs is tests/datapath/test_interface_vat.py's."""

from __future__ import annotations

import sys

import pytest

from natf_bsd.datapath.ebpf.assembly import FRAME, HALF, R0, R1, R2, WORD, Assembly

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the bytes here are those of little-endian machines")


def test_instructions_are_those_of_rfc_9669() -> None:
    a = Assembly()
    a.move(R1, FRAME)
    a.add(R1, -24)
    a.load(HALF, R2, R1, 4)
    a.store(WORD, FRAME, -8, R2)
    a.both_word(R2, 0xFF000000)
    a.load_map(R1, 7)
    a.call(26)
    a.leave(-1)
    assert a.code().hex(" ", 8) == (
        "bfa1000000000000 07010000e8ffffff 6912040000000000 632af8ff00000000 54020000000000ff "
        "1811000007000000 0000000000000000 850000001a000000 b7000000ffffffff 9500000000000000"
    )


def test_jumps_lead_to_their_labels() -> None:
    a = Assembly()
    a.if_equal(R0, 1, "end")
    a.set(R0, 5)
    a.jump("end")
    a.label("end")
    a.leave(2)
    words = a.code()
    assert [int.from_bytes(words[place + 2 : place + 4], "little") for place in (0, 16)] == [2, 0]


def test_a_jump_to_nowhere_or_backwards_is_an_error() -> None:
    a = Assembly()
    a.jump("nowhere")
    with pytest.raises(ValueError, match="no label nowhere"):
        a.code()
    a = Assembly()
    a.label("again")
    a.jump("again")
    with pytest.raises(ValueError, match="behind"):
        a.code()
    with pytest.raises(ValueError, match="twice"):
        a.label("again")
