"""The Internet checksum and its incremental update, against dpkt and the examples of the RFCs."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.wire.checksum import add, checksum, delta, ones_sum, update

words = st.integers(0, 0xFFFF)


def word(value: int) -> bytes:
    return value.to_bytes(2, "big")


def test_sum_of_the_rfc_1071_example() -> None:
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def test_odd_last_byte_is_padded_with_zero() -> None:
    assert ones_sum(b"\x01\x02\x03") == 0x0102 + 0x0300


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_summed(kind: type) -> None:
    assert ones_sum(kind(b"\x12\x34\x56")) == 0x1234 + 0x5600


def test_only_zero_bytes_sum_to_zero() -> None:
    assert ones_sum(b"") == ones_sum(bytes(40)) == 0
    assert ones_sum(b"\xff\xff") == 0xFFFF
    assert ones_sum(bytes.fromhex("fffe0001")) == 0xFFFF


@given(st.binary(max_size=200))
def test_checksum_is_that_of_dpkt(data: bytes) -> None:
    assert checksum(data) == dpkt.in_cksum(data)


def test_update_of_the_rfc_1624_example_gives_zero_and_not_ffff() -> None:
    """RFC 1624 section 4: the older equation of RFC 1141 comes to 0xffff here."""
    assert update(0xDD2F, delta(b"\x55\x55", b"\x32\x85")) == 0x0000


@given(st.binary(max_size=40), words, words, words)
def test_update_is_the_checksum_made_anew(rest: bytes, old: int, new: int, other: int) -> None:
    """`other` is never zero alone: a header with nothing but zeros has no meaning."""
    before = checksum(word(old) + word(other | 1) + rest)
    after = checksum(word(new) + word(other | 1) + rest)
    assert update(before, delta(word(old), word(new))) == after


@given(st.binary(min_size=1, max_size=16), st.data())
def test_delta_is_never_zero(old: bytes, data: st.DataObject) -> None:
    new = data.draw(st.binary(min_size=len(old), max_size=len(old)))
    assert 1 <= delta(old, new) <= 0xFFFF


def test_delta_of_ones_to_zeros_keeps_update_right() -> None:
    """Old 0xffff and new 0 are the same number; a delta of 0 would let a sum of 0 through."""
    assert delta(b"\xff\xff", b"\x00\x00") == 0xFFFF
    assert update(checksum(b"\xff\xff\x00\x00"), delta(b"\xff\xff", b"\x00\x00")) == 0


@given(words, words, words, words, words)
def test_deltas_of_two_fields_add_up(value: int, old: int, new: int, old_other: int, new_other: int) -> None:
    one = delta(word(old), word(new))
    other = delta(word(old_other), word(new_other))
    assert update(value, add(one, other)) == update(update(value, one), other)


@given(words)
def test_no_change_leaves_a_checksum_as_it_is(value: int) -> None:
    assert update(value, delta(b"", b"")) == (0 if value == 0xFFFF else value)
