"""The AUTH option: a message proves that its sender has a key (DESIGN.md section 5).

The MAC covers the message from its magic to its end, its own 16 bytes as zeros; padding is no part of the message.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping

from natf_bsd.errors import AuthError
from natf_bsd.wire.message import AUTH_CODE, HEADER, message_length, walk_options

_AUTH = struct.Struct("!BB8sQ16s")  # option type, length of value, key id, time in ms since 1970, MAC
_VALUE = struct.Struct("!8sQ16s")
_MAC_SIZE = 16
_LENGTH_AT = 6

AUTH_SIZE = _AUTH.size
"""Bytes that `sign` adds to a message."""


def sign(message: bytes, key_id: bytes, key: bytes, time_ms: int) -> bytes:
    """`message` (padding is cut off) with an AUTH option as its last, the length in its header corrected.

    `key_id` has 8 bytes, `time_ms` counts from 1970. ValueError for another key id or a message that has AUTH already.
    """
    if len(key_id) != 8:
        raise ValueError(f"key id of {len(key_id)} bytes, expected 8")
    if _find(message) is not None:
        raise ValueError("the message is signed already")
    end = message_length(message)
    blank = bytearray(message[:end] + _AUTH.pack(AUTH_CODE, _VALUE.size, key_id, time_ms, bytes(_MAC_SIZE)))
    struct.pack_into("!H", blank, _LENGTH_AT, len(blank))
    return bytes(blank[:-_MAC_SIZE]) + _mac(blank, key)


def epoch_ms(now: float, epoch_offset: float) -> int:
    """The time AUTH carries, in ms since 1970: `now` in monotonic seconds, `epoch_offset` what it lacks to 1970."""
    return int((now + epoch_offset) * 1000)


def is_signed(message: bytes) -> bool:
    """Whether `message` has an AUTH option. AuthError when that is not the last, or not of its size."""
    return _find(message) is not None


def verify(message: bytes, keys: Mapping[bytes, bytes], now_ms: int, window_ms: int = 60_000) -> bytes:
    """The id of the key, out of `keys` (id to key), that `message` was signed with at most `window_ms` from `now_ms`.

    Raises `AuthError`, `missing` set if there is no AUTH option. A repetition within the window is not noticed, and
    need not be: the same request gives the same mapping.
    """
    at = _find(message)
    if at is None:
        raise AuthError("no AUTH option", missing=True)
    end = message_length(message)
    _, _, key_id, time_ms, mac = _AUTH.unpack_from(message, at)
    key = keys.get(key_id)
    if key is None:
        raise AuthError(f"unknown key id {key_id.hex()}")
    blank = message[: end - _MAC_SIZE] + bytes(_MAC_SIZE)
    if not hmac.compare_digest(mac, _mac(blank, key)):
        raise AuthError(f"wrong MAC under key id {key_id.hex()}")
    if abs(now_ms - time_ms) > window_ms:
        raise AuthError(f"signed {abs(now_ms - time_ms)} ms away from our clock, at most {window_ms} allowed")
    return bytes(key_id)


def _find(message: bytes) -> int | None:
    """Offset of the AUTH option, None without one; AuthError when it is not the last, or not of its size."""
    end = message_length(message)
    if message.find(AUTH_CODE, HEADER.size, end) < 0:
        return None  # as most: no byte of its type at all
    at = next((at for at, code, _ in walk_options(message) if code == AUTH_CODE), None)
    if at is not None and at + AUTH_SIZE != end:
        raise AuthError(f"the AUTH option at {at} is not the last {AUTH_SIZE} bytes of the message")
    return at


def _mac(blank: bytes | bytearray, key: bytes) -> bytes:
    return hmac.digest(key, blank, "sha256")[:_MAC_SIZE]
