"""The reverse look-up of a virtual address (RFC 1035 section 3.5), answered here: no server in the world knows one, and
none has to learn which of them this host uses.
"""

from __future__ import annotations

import struct

from natf_bsd.dns.question import AA, CD, CLASS_IN, HEADER, QR, RA, RD, Question
from natf_bsd.dns.records import POINTER_TO_QUESTION, PTR, RECORD_HEAD
from natf_bsd.names import folded
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Address, Name

_ZONE = ["in-addr", "arpa"]
_NXDOMAIN = 3
_OPT_BEGINS = b"\0\0\x29"  # owner the root, type 41 (RFC 6891 section 6.1.2)
_OPT = _OPT_BEGINS + struct.pack("!HIH", 1232, 0, 0)  # 1232: what passes every path unfragmented


def virtual_address(question: Question, virtual: VirtualAddresses) -> Address | None:
    """The virtual address whose reverse name the question is about; None if it is about anything else."""
    labels = (folded(question.name) or "").split(".")
    if question.klass != CLASS_IN or len(labels) != 6 or labels[4:] != _ZONE:
        return None
    octets = [_octet(label) for label in reversed(labels[:4])]
    address = bytes(octet for octet in octets if octet is not None)
    return address if len(address) == 4 and virtual.contains(address) else None


def answer(query: bytes, question: Question, name: Name | None, ttl: int) -> bytes:
    """The answer to `query`, whose question that is: `name` for `ttl` seconds, or that there is no such address."""
    (asked,) = struct.unpack_from("!H", query, 2)
    flags = asked & (RD | CD) | QR | AA | RA
    record = b""
    if name is None:
        flags |= _NXDOMAIN
    elif question.type == PTR:
        target = b"".join(bytes([len(label)]) + label.encode("ascii") for label in str(name).split(".")) + b"\0"
        record = POINTER_TO_QUESTION + RECORD_HEAD.pack(PTR, CLASS_IN, ttl, len(target)) + target
    opt = _OPT if query[question.end :].startswith(_OPT_BEGINS) else b""
    header = HEADER.pack(question.ident, flags, 1, bool(record), 0, bool(opt))
    return header + query[HEADER.size : question.end] + record + opt


def _octet(label: str) -> int | None:
    """Decimal, without leading zeros."""
    value = int(label) if label.isdecimal() and len(label) <= 3 else 256
    return value if value <= 255 and str(value) == label else None
