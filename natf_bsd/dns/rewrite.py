"""Rewriting one DNS answer, bytes to bytes (paper 3.2 step 2; DESIGN.md section 3, phase 1).

An answer that is not about a private host comes back as the very same object, unless it has a virtual address: those
are ours alone to give (else any web page could reach inside hosts by DNS rebinding). One that is, but can't be
understood, becomes SERVFAIL: the true address must never slip through.
"""

from __future__ import annotations

import contextlib
import enum
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from natf_bsd.dns.names import HomeDomains
from natf_bsd.dns.question import AA, AD, CLASS_IN, HEADER, OPCODE, QR, RCODE, TC, Question, read_question
from natf_bsd.dns.records import (
    AAAA,
    ANY,
    CNAME,
    HTTPS,
    OPT,
    POINTER_TO_QUESTION,
    RECORD_HEAD,
    SVCB,
    A,
    Labels,
    MalformedError,
    Record,
    end_of_questions,
    expand_name,
    records_of,
    skip_name,
)
from natf_bsd.tables.nrt import MAXIMUM_TTL
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Address, Name

Relate: TypeAlias = Callable[[Name, Sequence[Address], int], "Address | None"]
"""Name, true addresses, TTL (s) to the virtual address; None when there is none to be had."""

Asked: TypeAlias = Callable[[Question], bool]
"""Whether that question was put to the server the answer is from, by whom the answer is for."""

MAXIMUM_RECORDS = 256  # in one answer; a UDP answer of the usual 4096 bytes (RFC 6891 6.2.5) holds no more A records

_SERVFAIL = 2
_IPV4HINT, _IPV6HINT = 4, 6  # RFC 9460 section 14.3.2
_PARAMETER = struct.Struct("!HH")  # key, length
_IS_HINTING = re.compile(rb"\x00[\x40\x41]\x00\x01", re.DOTALL)  # type SVCB or HTTPS, class IN
_EMPTIED_TYPES = frozenset((AAAA, SVCB, HTTPS, ANY))  # each would lead an application past the A record
ADDRESS_TYPES = frozenset((A, *_EMPTIED_TYPES))
"""What programs ask for to get addresses."""

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


class _Terms(NamedTuple):
    """On what terms the private host `name` gets its virtual address; see `rewrite`."""

    name: Name
    relate: Relate
    virtual: VirtualAddresses
    maximum_ttl: int
    local: bool


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
    terms = _Terms(name, relate, virtual, maximum_ttl, local)
    if flags & TC:
        return _truncated(answer, terms)
    if flags & RCODE or not answers:
        return Rewritten(data, Outcome.UNCHANGED)
    try:
        answer.read()
        if question.type != A:
            return _without_bypass(answer)
        return _with_virtual_address(answer, terms)
    except MalformedError:
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
        end = end_of_questions(data)
        if not any(_is_virtual(data, record, virtual) for record in records_of(data, end, sum(counts))):
            return Rewritten(data, Outcome.NOT_OURS)
    except (MalformedError, struct.error):
        return Rewritten(data, Outcome.NOT_OURS)
    header = HEADER.pack(ident, _failed(flags), questions, 0, 0, 0)
    return Rewritten(header + data[HEADER.size : end], Outcome.REBINDING)


def _is_virtual(data: bytes, record: Record, virtual: VirtualAddresses) -> bool:
    return any(len(address) == 4 and virtual.contains(address) for address in _addresses(data, record))


def _addresses(data: bytes, record: Record) -> Iterator[bytes]:
    """The IPv4 addresses a program could take from the record."""
    value = data[record.data : record.end]
    if record.type == A:
        yield value
    elif record.type == AAAA:
        yield from _unmapped(value)
    elif record.type in (SVCB, HTTPS):
        at = skip_name(data, record.data + 2)  # priority, target name; then parameters (RFC 9460 section 2.2)
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
    return flags & ~(AA | TC | AD | RCODE) | _SERVFAIL


def _can_be_router(address: Address) -> bool:
    """False for this network, this host, this link, multicast and beyond (RFC 6890): no NAT has such a G2."""
    return address[0] not in (0, 127) and address[0] < 224 and address[:2] != b"\xa9\xfe"


def _truncated(answer: _Answer, terms: _Terms) -> Rewritten:
    """Nobody must ask again over TCP, where the true address would be had: what has come is enough, or it is not.

    The cut may be anywhere: RFC 2181 section 9 lets no program use what is before it, but one address will do for us.
    """
    found: list[Record] = []
    with contextlib.suppress(MalformedError):
        answer.read()
        found, _ = answer.chain()
    if answer.question.type != A:
        return Rewritten(answer.rebuilt(b""), Outcome.EMPTIED)
    if not found:
        return Rewritten(answer.servfail(), Outcome.TRUNCATED)
    return _with_virtual_address(answer, terms)


def _without_bypass(answer: _Answer) -> Rewritten:
    if not any(record.type in ADDRESS_TYPES for record in answer.answers):
        return Rewritten(answer.message, Outcome.UNCHANGED)
    return Rewritten(answer.rebuilt(b""), Outcome.EMPTIED)


def _with_virtual_address(answer: _Answer, terms: _Terms) -> Rewritten:
    """The A answer with the address of `terms` in place of those it has. MalformedError where its records are odd."""
    records, ttl = answer.chain()
    if not records:
        return Rewritten(answer.message, Outcome.UNCHANGED)
    addresses = [answer.message[record.data : record.end] for record in records]
    if terms.local and all(map(terms.virtual.contains, addresses)):
        return Rewritten(answer.message, Outcome.ALREADY)
    routers = [address for address in addresses if _can_be_router(address) and not terms.virtual.contains(address)]
    ttl = min(ttl, terms.maximum_ttl)
    address = terms.relate(terms.name, routers, ttl) if routers else None
    if address is None:
        return Rewritten(answer.servfail(), Outcome.FAILED)
    if len(answer.answers) == 1 and not answer.is_truncated:
        return Rewritten(answer.patched(records[0], address, ttl), Outcome.REWRITTEN)
    record = POINTER_TO_QUESTION + RECORD_HEAD.pack(A, CLASS_IN, ttl, len(address)) + address
    return Rewritten(answer.rebuilt(record), Outcome.REWRITTEN)


class _Answer:
    """A message about a private host, and the messages that can be made of it."""

    def __init__(self, message: bytes, question: Question) -> None:
        self.message = message
        self.question = question
        self.answers: list[Record] = []
        self._opt: Record | None = None

    def read(self) -> None:
        """Walk over all records. MalformedError when one does not fit, or what we would rely on is odd."""
        *_, answers, authorities, additionals = HEADER.unpack_from(self.message)
        if answers + authorities + additionals > MAXIMUM_RECORDS:
            raise MalformedError
        records = list(records_of(self.message, self.question.end, answers + authorities + additionals))
        self.answers = records[:answers]
        options = [record for record in records[answers + authorities :] if record.type == OPT]
        if len(options) > 1 or any(self.message[option.start] != 0 for option in options):  # RFC 6891 6.1.1, 6.1.2
            raise MalformedError
        self._opt = options[0] if options else None

    def chain(self) -> tuple[list[Record], int]:
        """The A records the question's name leads to over any CNAMEs, and the smallest TTL on the way.

        None at all is an empty list; A records the question does not lead to are odd.
        """
        owned = [(expand_name(self.message, record.start)[0], record) for record in self.answers]
        cnames = {owner: record for owner, record in reversed(owned) if record.type == CNAME}
        hosts = {owner for owner, record in owned if record.type == A}
        name, passed = expand_name(self.message, HEADER.size)[0], []
        while name in cnames and name not in hosts:
            step = cnames.pop(name)  # popped: a loop ends where it would close
            passed.append(step)
            name = self._target(step)
        found = [record for owner, record in owned if record.type == A and owner == name]
        every = [record for record in self.answers if record.type == A]
        if (every and not found) or any(r.klass != CLASS_IN or r.end - r.data != 4 for r in every):
            raise MalformedError
        return found, min((max(record.ttl, 0) for record in [*passed, *found]), default=0)

    def patched(self, record: Record, address: Address, ttl: int) -> bytes:
        """The message with data and TTL of its only answer replaced in place, and no longer called authentic."""
        result = bytearray(self.message)
        struct.pack_into("!H", result, 2, self._flags & ~AD)
        RECORD_HEAD.pack_into(result, record.data - RECORD_HEAD.size, A, CLASS_IN, ttl, len(address))
        result[record.data : record.end] = address
        return bytes(result)

    def rebuilt(self, record: bytes) -> bytes:
        """Header, question, `record` if any, EDNS. The rest could show the true address, or a signature now false."""
        return self._compose(self._flags & ~(AD | TC), record)

    def servfail(self) -> bytes:
        return self._compose(_failed(self._flags), b"")

    @property
    def is_truncated(self) -> bool:
        return bool(self._flags & TC)

    @property
    def _flags(self) -> int:
        return int.from_bytes(self.message[2:4], "big")

    def _compose(self, flags: int, record: bytes) -> bytes:
        opt = self.message[self._opt.start : self._opt.end] if self._opt is not None else b""
        header = HEADER.pack(int.from_bytes(self.message[:2], "big"), flags, 1, bool(record), 0, bool(opt))
        return header + self.message[HEADER.size : self.question.end] + record + opt

    def _target(self, cname: Record) -> Labels:
        target, end = expand_name(self.message, cname.data)
        if end != cname.end:
            raise MalformedError
        return target
