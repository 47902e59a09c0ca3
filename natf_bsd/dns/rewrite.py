"""Rewriting one DNS answer, bytes to bytes (paper 3.2 step 2; DESIGN.md section 3, phase 1).

An answer that is not about a private host comes back as the very same object, unless it has a virtual address: those
are ours alone to give (else any web page could reach inside hosts by DNS rebinding). One that is, but can't be
understood, becomes SERVFAIL: the true address must never slip through. The walker is our own because the bytes around
a patch have to stay as they are, letter case, compression and unknown records included.
"""

from __future__ import annotations

import contextlib
import enum
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from natf_bsd.dns.names import HomeDomains
from natf_bsd.dns.question import CLASS_IN, HEADER, LABEL_MAXIMUM, NAME_MAXIMUM, OPCODE, QR, Question, read_question
from natf_bsd.tables.nrt import MAXIMUM_TTL
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Address, Name

Relate: TypeAlias = Callable[[Name, Sequence[Address], int], "Address | None"]
"""Name, true addresses, TTL (s) to the virtual address; None when there is none to be had."""

Asked: TypeAlias = Callable[[Question], bool]
"""Whether this host put that question to the server the answer is from."""

MAXIMUM_RECORDS = 256  # in one answer; a UDP answer of the usual 4096 bytes (RFC 6891 6.2.5) holds no more A records

_QUESTION_TAIL_SIZE = 4  # type, class
_RECORD_HEAD = struct.Struct(
    "!HHiH"
)  # type, class, TTL, length of data; a TTL below zero means zero (RFC 2181 section 8)
_POINTER_TO_QUESTION = b"\xc0\x0c"

_AA, _TC, _AD, _RCODE = 0x0400, 0x0200, 0x0020, 0x000F
_SERVFAIL = 2
_A, _CNAME, _AAAA, _OPT, _SVCB, _HTTPS, _ANY = 1, 5, 28, 41, 64, 65, 255
_IPV4HINT, _IPV6HINT = 4, 6  # RFC 9460 section 14.3.2
_PARAMETER = struct.Struct("!HH")  # key, length
_IS_HINTING = re.compile(rb"\x00[\x40\x41]\x00\x01", re.DOTALL)  # type SVCB or HTTPS, class IN
_EMPTIED_TYPES = frozenset((_AAAA, _SVCB, _HTTPS, _ANY))  # each would lead an application past the A record
ADDRESS_TYPES = frozenset((_A, *_EMPTIED_TYPES))
"""What programs ask for to get addresses."""

_POINTER = 0xC0  # RFC 1035 section 4.1.4
_POINTERS_MAXIMUM = 8  # in a row; encoders make one. A message of 8000 in a chain would cost half a second else
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:240.1.2.3 is the IPv4 address to a socket as well (RFC 4291 2.5.5.2)


class Outcome(enum.Enum):
    """What became of the answer."""

    NOT_OURS = "not about a private host"
    UNCHANGED = "about a private host, without an address to hide"
    ALREADY = "had its virtual address already"
    REWRITTEN = "true address replaced by the virtual one"
    EMPTIED = "answer of a type that bypasses the A record removed"
    FAILED = "no virtual address to be had, no possible router, or not a sound DNS message: SERVFAIL"
    REBINDING = "not about a private host, with a virtual address nevertheless: SERVFAIL"
    TRUNCATED = "about a private host, without the address for want of room: SERVFAIL, if nobody asks for a longer one"
    UNASKED = "about a private host, but nobody asked: not to be passed on"


class Rewritten(NamedTuple):
    """The DNS message to pass on; the same object that came in when nothing was to be done."""

    data: bytes
    outcome: Outcome


class _MalformedError(Exception):
    """Internal: the message is not what its counts and lengths say."""


_Labels: TypeAlias = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    """A resource record: offsets into the message of its first byte, its data, and the byte behind it."""

    start: int
    type: int
    klass: int
    ttl: int
    data: int
    end: int


def rewrite(
    data: bytes,
    homes: HomeDomains,
    relate: Relate,
    virtual: VirtualAddresses,
    *,
    maximum_ttl: int = int(MAXIMUM_TTL),
    local: bool = False,
    asked: Asked = lambda question: True,
) -> Rewritten:
    """The answer an application may see instead of `data`, the payload of a UDP packet from a DNS server.

    An A answer comes back with one A record, the address `relate` gave, its TTL the smallest on the way there and at
    most `maximum_ttl` (s; the name relation must outlive what caches keep). `local`: it came from a resolver on this
    host, which may have got virtual addresses from us. The result is never longer than `data`. Raises nothing whatever
    the bytes.
    """
    question = read_question(data, answer=True)
    name = homes.split(question.name) if question is not None and question.klass == CLASS_IN else None
    if question is None or name is None:
        return _somebody_elses(data, virtual)
    if not asked(question):
        return Rewritten(data, Outcome.UNASKED)
    _, flags, _, answers, _, _ = HEADER.unpack_from(data)
    if question.type not in ADDRESS_TYPES:
        return Rewritten(data, Outcome.UNCHANGED)
    answer = _Answer(data, question)
    if flags & _TC:
        return _truncated(answer, name, relate, virtual, maximum_ttl, local)
    if flags & _RCODE or not answers:
        return Rewritten(data, Outcome.UNCHANGED)
    try:
        answer.read()
        if question.type != _A:
            return _without_bypass(answer)
        return _with_virtual_address(answer, name, relate, virtual, maximum_ttl, local)
    except _MalformedError:
        return Rewritten(answer.servfail(), Outcome.FAILED)


def _somebody_elses(data: bytes, virtual: VirtualAddresses) -> Rewritten:
    """Three searches for bytes are all that an ordinary answer costs. One that can't be read stays as it is, unless a
    virtual address comes before the fault: some programs read no further than that."""
    octet = bytes((virtual.first_octet,))
    plain = b"\0\4" + octet in data or b"\xff\xff" + octet in data
    if not plain and not (octet in data and _IS_HINTING.search(data)):
        return Rewritten(data, Outcome.NOT_OURS)
    try:
        ident, flags, questions, *counts = HEADER.unpack_from(data)
        if flags & (QR | OPCODE) != QR:
            return Rewritten(data, Outcome.NOT_OURS)
        end = HEADER.size
        for _ in range(questions):
            end = _skip(data, end) + _QUESTION_TAIL_SIZE
        if not any(_is_virtual(data, record, virtual) for record in _records(data, end, sum(counts))):
            return Rewritten(data, Outcome.NOT_OURS)
    except (_MalformedError, struct.error):
        return Rewritten(data, Outcome.NOT_OURS)
    header = HEADER.pack(ident, _failed(flags), questions, 0, 0, 0)
    return Rewritten(header + data[HEADER.size : end], Outcome.REBINDING)


def _is_virtual(data: bytes, record: _Record, virtual: VirtualAddresses) -> bool:
    return any(len(address) == 4 and virtual.contains(address) for address in _addresses(data, record))


def _addresses(data: bytes, record: _Record) -> Iterator[bytes]:
    """The IPv4 addresses a program could take from the record."""
    value = data[record.data : record.end]
    if record.type == _A:
        yield value
    elif record.type == _AAAA:
        yield from _unmapped(value)
    elif record.type in (_SVCB, _HTTPS):
        at = _skip(data, record.data + 2)  # priority, target name; then parameters (RFC 9460 section 2.2)
        while at + _PARAMETER.size <= record.end:
            key, length = _PARAMETER.unpack_from(data, at)
            at += _PARAMETER.size
            hint = data[at : min(at + length, record.end)]
            at += length
            if key == _IPV4HINT:
                yield from (hint[i : i + 4] for i in range(0, len(hint), 4))
            elif key == _IPV6HINT:
                for i in range(0, len(hint), 16):
                    yield from _unmapped(hint[i : i + 16])


def _unmapped(address: bytes) -> Iterator[bytes]:
    if address.startswith(_MAPPED):
        yield address[len(_MAPPED) :]


def _failed(flags: int) -> int:
    return flags & ~(_AA | _TC | _AD | _RCODE) | _SERVFAIL


def _can_be_router(address: Address) -> bool:
    """False for this network, this host, this link, multicast and beyond (RFC 6890): no NAT has such a G2."""
    return address[0] not in (0, 127) and address[0] < 224 and address[:2] != b"\xa9\xfe"


def _truncated(
    answer: _Answer, name: Name, relate: Relate, virtual: VirtualAddresses, maximum_ttl: int, local: bool
) -> Rewritten:
    """Nobody must ask again over TCP, where the true address would be had: what has come is enough, or it is not.

    The cut may be anywhere: RFC 2181 section 9 lets no program use what is before it, but one address will do for us.
    """
    found: list[_Record] = []
    with contextlib.suppress(_MalformedError):
        answer.read()
        found, _ = answer.chain()
    if answer.question.type != _A:
        return Rewritten(answer.rebuilt(b""), Outcome.EMPTIED)
    if not found:
        return Rewritten(answer.servfail(), Outcome.TRUNCATED)
    return _with_virtual_address(answer, name, relate, virtual, maximum_ttl, local)


def without_options(message: bytes) -> bytes:
    """The message without the OPT record at its end, if there is one: for a client that does not know EDNS (RFC 6891
    section 7)."""
    try:
        ident, flags, questions, *counts = HEADER.unpack_from(message)
        end = HEADER.size
        for _ in range(questions):
            end = _skip(message, end) + _QUESTION_TAIL_SIZE
        *_, last = _records(message, end, sum(counts))
    except (_MalformedError, struct.error, ValueError):
        return message
    if last.type != _OPT or not counts[2]:
        return message
    return HEADER.pack(ident, flags, questions, *counts[:2], counts[2] - 1) + message[HEADER.size : last.start]


def _without_bypass(answer: _Answer) -> Rewritten:
    if not any(record.type in ADDRESS_TYPES for record in answer.answers):
        return Rewritten(answer.message, Outcome.UNCHANGED)
    return Rewritten(answer.rebuilt(b""), Outcome.EMPTIED)


def _with_virtual_address(
    answer: _Answer, name: Name, relate: Relate, virtual: VirtualAddresses, maximum_ttl: int, local: bool
) -> Rewritten:
    records, ttl = answer.chain()
    if not records:
        return Rewritten(answer.message, Outcome.UNCHANGED)
    addresses = [answer.message[record.data : record.end] for record in records]
    if local and all(map(virtual.contains, addresses)):
        return Rewritten(answer.message, Outcome.ALREADY)
    routers = [address for address in addresses if _can_be_router(address) and not virtual.contains(address)]
    ttl = min(ttl, maximum_ttl)
    address = relate(name, routers, ttl) if routers else None
    if address is None:
        return Rewritten(answer.servfail(), Outcome.FAILED)
    if len(answer.answers) == 1 and not answer.is_truncated:
        return Rewritten(answer.patched(records[0], address, ttl), Outcome.REWRITTEN)
    record = _POINTER_TO_QUESTION + _RECORD_HEAD.pack(_A, CLASS_IN, ttl, len(address)) + address
    return Rewritten(answer.rebuilt(record), Outcome.REWRITTEN)


class _Answer:
    """A message about a private host, and the messages that can be made of it."""

    def __init__(self, message: bytes, question: Question) -> None:
        self.message = message
        self.question = question
        self.answers: list[_Record] = []
        self._opt: _Record | None = None

    def read(self) -> None:
        """Walk over all records. _MalformedError when one does not fit, or what we would rely on is odd."""
        *_, answers, authorities, additionals = HEADER.unpack_from(self.message)
        if answers + authorities + additionals > MAXIMUM_RECORDS:
            raise _MalformedError
        records = list(_records(self.message, self.question.end, answers + authorities + additionals))
        self.answers = records[:answers]
        options = [record for record in records[answers + authorities :] if record.type == _OPT]
        if len(options) > 1 or any(self.message[option.start] != 0 for option in options):  # RFC 6891 6.1.1, 6.1.2
            raise _MalformedError
        self._opt = options[0] if options else None

    def chain(self) -> tuple[list[_Record], int]:
        """The A records the question's name leads to over any CNAMEs, and the smallest TTL on the way.

        None at all is an empty list; A records the question does not lead to are odd.
        """
        owned = [(_expand(self.message, record.start)[0], record) for record in self.answers]
        cnames = {owner: record for owner, record in reversed(owned) if record.type == _CNAME}
        hosts = {owner for owner, record in owned if record.type == _A}
        name, passed = _expand(self.message, HEADER.size)[0], []
        while name in cnames and name not in hosts:
            step = cnames.pop(name)  # popped: a loop ends where it would close
            passed.append(step)
            name = self._target(step)
        found = [record for owner, record in owned if record.type == _A and owner == name]
        every = [record for record in self.answers if record.type == _A]
        if (every and not found) or any(r.klass != CLASS_IN or r.end - r.data != 4 for r in every):
            raise _MalformedError
        return found, min((max(record.ttl, 0) for record in [*passed, *found]), default=0)

    def patched(self, record: _Record, address: Address, ttl: int) -> bytes:
        """The message with data and TTL of its only answer replaced in place, and no longer called authentic."""
        result = bytearray(self.message)
        struct.pack_into("!H", result, 2, self._flags & ~_AD)
        _RECORD_HEAD.pack_into(result, record.data - _RECORD_HEAD.size, _A, CLASS_IN, ttl, len(address))
        result[record.data : record.end] = address
        return bytes(result)

    def rebuilt(self, record: bytes) -> bytes:
        """Header, question, `record` if any, EDNS. The rest could show the true address, or a signature now false."""
        return self._compose(self._flags & ~(_AD | _TC), record)

    def servfail(self) -> bytes:
        return self._compose(_failed(self._flags), b"")

    @property
    def is_truncated(self) -> bool:
        return bool(self._flags & _TC)

    @property
    def _flags(self) -> int:
        return int.from_bytes(self.message[2:4], "big")

    def _compose(self, flags: int, record: bytes) -> bytes:
        opt = self.message[self._opt.start : self._opt.end] if self._opt is not None else b""
        header = HEADER.pack(int.from_bytes(self.message[:2], "big"), flags, 1, bool(record), 0, bool(opt))
        return header + self.message[HEADER.size : self.question.end] + record + opt

    def _target(self, cname: _Record) -> _Labels:
        target, end = _expand(self.message, cname.data)
        if end != cname.end:
            raise _MalformedError
        return target


def _records(data: bytes, offset: int, count: int) -> Iterator[_Record]:
    for _ in range(count):
        start = offset
        offset = _skip(data, offset) + _RECORD_HEAD.size
        if offset > len(data):
            raise _MalformedError
        kind, klass, ttl, length = _RECORD_HEAD.unpack_from(data, offset - _RECORD_HEAD.size)
        if offset + length > len(data):
            raise _MalformedError
        yield _Record(start, kind, klass, ttl, offset, offset + length)
        offset += length


def _skip(data: bytes, offset: int) -> int:
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
    raise _MalformedError


def _expand(data: bytes, offset: int) -> tuple[_Labels, int]:
    """The labels of the name at `offset` in lower case, and the offset behind it.

    Pointers must lead backwards (RFC 1035 section 4.1.4, "a prior occurrence"), so the walk ends.
    """
    end = _skip(data, offset)
    labels: list[bytes] = []
    total, barrier = 1, offset
    while True:
        offset, length = _follow(data, offset, barrier)
        barrier = min(barrier, offset)
        if length == 0:
            return tuple(labels), end
        total += 1 + length
        if total > NAME_MAXIMUM or offset + 1 + length > len(data):
            raise _MalformedError
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
    raise _MalformedError
