"""Walking over the records of a DNS message (RFC 1035 section 4.1.3, names 4.1.4).

The walker is our own because the bytes round a patch have to stay as they are, letter case, compression and unknown
records included. It raises MalformedError, which no module outside dns/ gets to see, and whatever the bytes are no
other; a message shorter than its header is the caller's to refuse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from natf_bsd.dns.question import HEADER, LABEL_MAXIMUM, NAME_MAXIMUM

A, CNAME, PTR, AAAA, OPT, SVCB, HTTPS, ANY = 1, 5, 12, 28, 41, 64, 65, 255

# Type, class, TTL (s; below zero means zero, RFC 2181 section 8), length of data.
RECORD_HEAD = struct.Struct("!HHiH")
POINTER_TO_QUESTION = b"\xc0\x0c"
"""The question's name, as the owner of a record."""

_QUESTION_TAIL_SIZE = 4  # type, class
_POINTER = 0xC0  # RFC 1035 section 4.1.4
_POINTERS_MAXIMUM = 8  # in a row; encoders make one. A message of 8000 in a chain would cost half a second else


class MalformedError(Exception):
    """The message is not what its counts and lengths say."""


Labels: TypeAlias = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A resource record: offsets into the message of its first byte (`start`), its `data`, and the byte behind it
    (`end`); `ttl` in seconds, as it stands there."""

    start: int
    type: int
    klass: int
    ttl: int
    data: int
    end: int


def without_options(message: bytes) -> bytes:
    """The message without the OPT record at its end, if there is one: for a client that does not know EDNS (RFC 6891
    section 7)."""
    try:
        ident, flags, questions, *counts = HEADER.unpack_from(message)
        end = end_of_questions(message)
        *_, last = records_of(message, end, sum(counts))
    except (MalformedError, struct.error, ValueError):
        return message
    if last.type != OPT or not counts[2]:
        return message
    return HEADER.pack(ident, flags, questions, *counts[:2], counts[2] - 1) + message[HEADER.size : last.start]


def end_of_questions(data: bytes) -> int:
    """The offset behind the last question, however many there are."""
    _, _, questions, _, _, _ = HEADER.unpack_from(data)
    end = HEADER.size
    for _ in range(questions):
        end = skip_name(data, end) + _QUESTION_TAIL_SIZE
    return end


def records_of(data: bytes, offset: int, count: int) -> Iterator[Record]:
    """The `count` records from `offset` on, of whatever section."""
    for _ in range(count):
        start = offset
        offset = skip_name(data, offset) + RECORD_HEAD.size
        if offset > len(data):
            raise MalformedError
        kind, klass, ttl, length = RECORD_HEAD.unpack_from(data, offset - RECORD_HEAD.size)
        if offset + length > len(data):
            raise MalformedError
        yield Record(start, kind, klass, ttl, offset, offset + length)
        offset += length


def skip_name(data: bytes, offset: int) -> int:
    """The offset behind the name at `offset`, pointers not followed."""
    while offset < len(data):
        length = data[offset]
        if length >= _POINTER:
            return offset + 2
        if length > LABEL_MAXIMUM:
            break
        offset += 1 + length
        if length == 0:
            return offset
    raise MalformedError


def expand_name(data: bytes, offset: int) -> tuple[Labels, int]:
    """The labels of the name at `offset` in lower case, and the offset behind it.

    Pointers must lead backwards (RFC 1035 section 4.1.4, "a prior occurrence"), so the walk ends.
    """
    end = skip_name(data, offset)
    labels: list[bytes] = []
    total, barrier = 1, offset
    while True:
        offset, length = _follow(data, offset, barrier)
        barrier = min(barrier, offset)
        if length == 0:
            return tuple(labels), end
        total += 1 + length
        if total > NAME_MAXIMUM or offset + 1 + length > len(data):
            raise MalformedError
        labels.append(data[offset + 1 : offset + 1 + length].lower())
        offset += 1 + length


def _follow(data: bytes, offset: int, barrier: int) -> tuple[int, int]:
    """Where the label at `offset` really is, and its length. Every jump must go to before `barrier`."""
    for _ in range(_POINTERS_MAXIMUM):
        if offset >= len(data):
            break
        length = data[offset]
        if length <= LABEL_MAXIMUM:
            return offset, length
        if length < _POINTER or offset + 2 > len(data):
            break
        offset = int.from_bytes(data[offset : offset + 2], "big") & 0x3FFF
        if offset >= barrier:
            break
        barrier = offset
    raise MalformedError
