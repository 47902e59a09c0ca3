"""The question of a DNS message (RFC 1035 section 4.1.2): all that has to be read of a message about somebody else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEADER = struct.Struct("!HHHHHH")
QR, OPCODE, AA, TC, RD, RA, AD, CD, RCODE = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010, 0x000F
"""The header's flags and fields (RFC 1035 section 4.1.1; AD and CD RFC 4035 section 3.2)."""
CLASS_IN = 1
LABEL_MAXIMUM, NAME_MAXIMUM = 63, 255  # RFC 1035 section 2.3.4

_TAIL = struct.Struct("!HH")  # type, class
_LENGTH = struct.Struct("!H")
_ROOMY = b"\0" + struct.pack("!HHIH", 41, 4096, 0, 0)  # an OPT record (RFC 6891 6.1.2, 6.2.5), its DO bit not set


@dataclass(frozen=True, slots=True)
class Question:
    """The only question of a message with the id `ident`; `end` is the offset behind it."""

    ident: int
    name: str
    type: int
    klass: int
    end: int


def questions_of_stream(data: bytes) -> Iterator[Question]:
    """The questions of the queries in a TCP segment to a DNS server, each behind its length (RFC 1035 section 4.2.2).

    Who sends that length by itself begins the next segment with the message. A query whose question is cut in two is
    not found: at 100 bytes or less nobody has a reason to.
    """
    bare = read_question(data, answer=False)
    if bare is not None:
        yield bare
    at = 0
    while at + _LENGTH.size < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        found = read_question(data[at : at + length], answer=False)
        if found is not None:
            yield found
        at += length


def longer_answer_wanted(answer: bytes, question: Question) -> bytes:
    """The query whose answer was `answer`, truncated: with room for a longer one, and without DNSSEC to fill it."""
    (flags,) = struct.unpack_from("!H", answer, 2)
    header = HEADER.pack(question.ident, flags & (RD | CD), 1, 0, 0, 1)
    return header + answer[HEADER.size : question.end] + _ROOMY


def read_question(data: bytes, *, answer: bool) -> Question | None:
    """The one question of a query, or of an answer; None for anything else, and for names no home domain can have."""
    if len(data) < HEADER.size:
        return None
    ident, flags, questions, _, _, _ = HEADER.unpack_from(data)
    if questions != 1 or flags & (QR | OPCODE) != (QR if answer else 0):
        return None
    labels = []
    offset = HEADER.size
    while offset < len(data) and 0 < (length := data[offset]) <= LABEL_MAXIMUM:
        labels.append(data[offset + 1 : offset + 1 + length])
        offset += 1 + length
    offset += 1
    if offset - HEADER.size > NAME_MAXIMUM or offset + _TAIL.size > len(data) or data[offset - 1] != 0:
        return None
    if any(b"." in label for label in labels):
        return None
    kind, klass = _TAIL.unpack_from(data, offset)
    return Question(ident, b".".join(labels).decode("latin-1"), kind, klass, offset + _TAIL.size)
