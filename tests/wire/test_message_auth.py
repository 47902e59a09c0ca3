"""The AUTH option: signing, and what verification refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import AuthError, UnsupportedVersion, WireError
from natf_bsd.wire.auth import AUTH_SIZE, epoch_ms, sign, verify
from natf_bsd.wire.message import decode, message_length, pad

KEY_ID = bytes.fromhex("a1a2a3a4a5a6a7a8")
KEY = b"k" * 32
KEYS = {KEY_ID: KEY}
TIME = 0x18F_0000_0000

REQUEST = bytes.fromhex(
    "4e415466010100390001020304050607010e0600cb00710a3e2e0050f00001010205616c6963650310686f6d652e6578616d706c652e6e6574"
)
# The MAC was made with `openssl dgst -sha256 -mac HMAC` from the bytes before it and 16 zero bytes.
SIGNED = bytes.fromhex(
    "4e4154660101005b0001020304050607010e0600cb00710a3e2e0050f00001010205616c6963650310686f6d652e6578616d706c652e6e6574"
    "0720a1a2a3a4a5a6a7a80000018f000000000c1135bfe84545de1f0ff6f3e53aab58"
)


def test_golden_vector_in_both_directions() -> None:
    assert sign(REQUEST, KEY_ID, KEY, TIME) == SIGNED
    assert verify(SIGNED, KEYS, TIME) == KEY_ID
    assert len(SIGNED) == message_length(SIGNED) == len(REQUEST) + AUTH_SIZE
    assert decode(SIGNED) == decode(REQUEST)


def test_every_proper_prefix_is_refused() -> None:
    for size in range(len(SIGNED)):
        with pytest.raises(WireError):
            verify(SIGNED[:size], KEYS, TIME)


def test_padding_is_no_part_of_what_is_signed() -> None:
    assert sign(pad(REQUEST), KEY_ID, KEY, TIME) == SIGNED
    assert verify(pad(SIGNED, 200), KEYS, TIME) == KEY_ID
    assert verify(SIGNED + b"anything", KEYS, TIME) == KEY_ID


def test_what_is_no_message_cannot_be_looked_through() -> None:
    with pytest.raises(WireError):
        verify(b"no message", KEYS, TIME)


def test_the_time_it_carries_counts_milliseconds_since_1970() -> None:
    assert epoch_ms(100.25, 1_700_000_000.5) == 1_700_000_100_750


def test_message_without_auth_is_told_apart() -> None:
    with pytest.raises(AuthError) as caught:
        verify(REQUEST, KEYS, TIME)
    assert caught.value.missing


@pytest.mark.parametrize(
    ("keys", "now", "text"),
    [
        ({}, TIME, "unknown key id a1a2a3a4a5a6a7a8"),
        ({KEY_ID: b"another key"}, TIME, "wrong MAC"),
        (KEYS, TIME + 60_001, "60001 ms away"),
        (KEYS, TIME - 60_001, "60001 ms away"),
    ],
)
def test_bad_auth_is_refused_and_is_not_missing(keys: dict[bytes, bytes], now: int, text: str) -> None:
    with pytest.raises(AuthError, match=text) as caught:
        verify(SIGNED, keys, now)
    assert not caught.value.missing


def test_clocks_may_differ_by_the_window() -> None:
    for difference in (-60_000, 60_000):
        assert verify(SIGNED, KEYS, TIME + difference) == KEY_ID
    assert verify(SIGNED, KEYS, TIME + 5, window_ms=5) == KEY_ID
    with pytest.raises(AuthError):
        verify(SIGNED, KEYS, TIME + 6, window_ms=5)


def test_the_key_is_picked_by_its_id() -> None:
    keys = {bytes(8): b"first", KEY_ID: KEY, b"\xff" * 8: b"last"}
    assert verify(SIGNED, keys, TIME) == KEY_ID


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(len(SIGNED) * 8):
        damaged = bytearray(SIGNED)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            verify(bytes(damaged), KEYS, TIME)


def test_auth_that_is_not_last_is_refused() -> None:
    behind = bytearray(SIGNED + b"\x80\x00")
    behind[7] += 2
    with pytest.raises(AuthError, match="the AUTH option at 57 is not the last"):
        verify(bytes(behind), KEYS, TIME)


def test_auth_of_another_size_is_refused() -> None:
    short = bytearray(REQUEST + b"\x07\x08" + KEY_ID)
    short[7] += 10
    with pytest.raises(AuthError, match="not the last 34 bytes"):
        verify(bytes(short), KEYS, TIME)


def test_bytes_that_look_like_auth_inside_another_option_are_no_auth() -> None:
    inside = bytearray(REQUEST + b"\x80" + bytes([AUTH_SIZE]) + SIGNED[-AUTH_SIZE:])
    inside[7] += AUTH_SIZE + 2
    with pytest.raises(AuthError) as caught:
        verify(bytes(inside), KEYS, TIME)
    assert caught.value.missing


def test_signing_refuses_what_it_cannot_sign() -> None:
    with pytest.raises(ValueError, match="key id of 7 bytes"):
        sign(REQUEST, KEY_ID[:7], KEY, TIME)
    with pytest.raises(ValueError, match="signed already"):
        sign(SIGNED, KEY_ID, KEY, TIME)


def test_another_version_stays_an_unsupported_version() -> None:
    with pytest.raises(UnsupportedVersion):
        verify(b"NATf\x02" + SIGNED[5:], KEYS, TIME)


def test_the_key_is_in_no_error() -> None:
    with pytest.raises(AuthError) as caught:
        verify(SIGNED[:-1] + b"\0", {KEY_ID: b"secret"}, TIME)
    assert "secret" not in str(caught.value)
    assert b"secret".hex() not in str(caught.value)


@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_are_refused_with_a_wire_error(data: bytes, with_header: bool) -> None:
    message = SIGNED[:6] + data if with_header else data
    with pytest.raises(WireError):
        verify(message, KEYS, TIME)
