"""NAT-f messages, wire format version 1 (DESIGN.md section 5).

A message is a header of 16 bytes and options. `encode` makes the message alone; signing, `pad` and the ICMP
carrier come after. A value that can't be written is our own mistake (ValueError); bytes that can't be read are
somebody else's (WireError).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias

from natf_bsd.errors import UnsupportedVersion, WireError
from natf_bsd.names import is_domain, is_label
from natf_bsd.types import Endpoint, Flow, Name

MAGIC = b"NATf"
VERSION = 1
HEADER = struct.Struct("!4sBBH8s")  # magic, version, message type, length, transaction id
REQUEST_MINIMUM = 128
"""Bytes of ICMP data a request is padded to, so that no reply is longer than its request (DESIGN.md section 5)."""

IGNORABLE = 128
"""Option types from here on may be ignored by who does not know them."""

_FLOW = struct.Struct("!BB4sHH4s")  # protocol, zero, G1, s, d, V1
_MAPPING = struct.Struct("!4sHHI")  # G2, m, zero, lifetime
_AUTH_VALUE = 32  # key id, time, MAC


class MessageType(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    COOKIE = 3
    REFUSED = 4


class Status(enum.IntEnum):
    """Why a request was refused."""

    DENIED = 1
    NO_SUCH_HOST = 2
    UNSUPPORTED = 3
    OUT_OF_RESOURCES = 4
    MALFORMED = 5
    KEY_REQUIRED = 6
    BAD_KEY = 7


@dataclass(frozen=True, slots=True)
class Request:
    """EN to router: a mapping for `flow` (G1:s -> V1:d) to the inside node called `name`, please. `established`: it is
    a TCP connection in use, whose mapping may be lost. A router that does not know that option ignores it.
    """

    transaction: bytes
    flow: Flow
    name: Name
    cookie: bytes = b""
    established: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """Router to EN: send to `mapped` (G2:m); the mapping lives `lifetime` seconds without traffic."""

    transaction: bytes
    mapped: Endpoint
    lifetime: int


@dataclass(frozen=True, slots=True)
class CookieChallenge:
    """Router to EN: ask again with this cookie."""

    transaction: bytes
    cookie: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Router to EN: no."""

    transaction: bytes
    status: Status
    text: str = ""


Message: TypeAlias = Request | Response | CookieChallenge | Refused


def valid_name(name: Name) -> bool:
    """Whether a request can carry this name: lower-case letters, digits, hyphens and underscores in DNS's lengths."""
    return is_label(name.host) and is_domain(name.domain)


@lru_cache(1024)
def _checked(text: str, good: Callable[[str], bool], what: str) -> str:
    if not good(text):
        raise ValueError(f"{text!r} is not a {what}")
    return text


def _unpack_exactly(layout: struct.Struct, value: bytes) -> tuple[Any, ...]:
    if len(value) != layout.size:
        raise ValueError(f"{len(value)} bytes, expected {layout.size}")
    return layout.unpack(value)


def _pack_flow(flow: Flow) -> bytes:
    source, destination = flow.source, flow.destination
    return _FLOW.pack(flow.protocol, 0, source.address, source.port, destination.port, destination.address)


def _unpack_flow(value: bytes) -> Flow:
    protocol, zero, source, source_port, destination_port, destination = _unpack_exactly(_FLOW, value)
    if zero:
        raise ValueError("the byte behind the protocol is not zero")
    return Flow(protocol, Endpoint(source, source_port), Endpoint(destination, destination_port))


def _pack_host(host: str) -> bytes:
    return _checked(host, is_label, "host name").encode("ascii")


def _unpack_host(value: bytes) -> str:
    return _checked(value.decode("ascii"), is_label, "host name")


def _pack_domain(domain: str) -> bytes:
    return _checked(domain, is_domain, "domain").encode("ascii")


def _unpack_domain(value: bytes) -> str:
    return _checked(value.decode("ascii"), is_domain, "domain")


def _cookie(value: bytes) -> bytes:
    if not 1 <= len(value) <= 32:
        raise ValueError(f"{len(value)} bytes, expected 1 to 32")
    return value


def _pack_mapping(mapping: tuple[Endpoint, int]) -> bytes:
    mapped, lifetime = mapping
    return _MAPPING.pack(mapped.address, mapped.port, 0, lifetime)


def _unpack_mapping(value: bytes) -> tuple[Endpoint, int]:
    address, port, zero, lifetime = _unpack_exactly(_MAPPING, value)
    if zero:
        raise ValueError("the bytes behind the port are not zero")
    return Endpoint(address, port), lifetime


def _pack_status(refusal: tuple[Status, str]) -> bytes:
    status, text = refusal
    return bytes([status]) + text.encode()


def _unpack_status(value: bytes) -> tuple[Status, str]:
    if not value:
        raise ValueError("no status code")
    return Status(value[0]), value[1:].decode()


def _pack_mark(value: bool) -> bytes:
    """An option that says something by being there."""
    return b""


def _unpack_mark(value: bytes) -> bool:
    if value:
        raise ValueError(f"{len(value)} bytes, expected none")
    return True


def _auth(value: bytes) -> bytes:
    if len(value) != _AUTH_VALUE:
        raise ValueError(f"{len(value)} bytes, expected {_AUTH_VALUE}")
    return value


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the wire format. `pack` and `unpack` raise ValueError for a value that breaks its rules."""

    code: int
    name: str
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


OPTIONS = (
    Option(1, "FLOW", _pack_flow, _unpack_flow),
    Option(2, "HOST", _pack_host, _unpack_host),
    Option(3, "DOMAIN", _pack_domain, _unpack_domain),
    Option(4, "COOKIE", _cookie, _cookie),
    Option(5, "MAPPING", _pack_mapping, _unpack_mapping),
    Option(6, "STATUS", _pack_status, _unpack_status),
    Option(7, "AUTH", _auth, _auth),
    Option(IGNORABLE, "ESTABLISHED", _pack_mark, _unpack_mark),
)
_BY_CODE = {option.code: option for option in OPTIONS}
_BY_NAME = {option.name: option for option in OPTIONS}
AUTH_CODE = _BY_NAME["AUTH"].code

_Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a message type consists of: its options, and how their values make the message. AUTH may end any message."""

    required: frozenset[str]
    build: Callable[[bytes, _Values], Message]
    optional: frozenset[str] = frozenset()
    allowed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed", self.required | self.optional | {"AUTH"})


_SHAPES: Mapping[MessageType, _Shape] = {
    MessageType.REQUEST: _Shape(
        frozenset({"FLOW", "HOST", "DOMAIN"}),
        lambda transaction, values: Request(
            transaction,
            values["FLOW"],
            Name(values["HOST"], values["DOMAIN"]),
            values.get("COOKIE", b""),
            values.get("ESTABLISHED", False),
        ),
        optional=frozenset({"COOKIE", "ESTABLISHED"}),
    ),
    MessageType.RESPONSE: _Shape(
        frozenset({"MAPPING"}), lambda transaction, values: Response(transaction, *values["MAPPING"])
    ),
    MessageType.COOKIE: _Shape(
        frozenset({"COOKIE"}), lambda transaction, values: CookieChallenge(transaction, values["COOKIE"])
    ),
    MessageType.REFUSED: _Shape(
        frozenset({"STATUS"}), lambda transaction, values: Refused(transaction, *values["STATUS"])
    ),
}


def encode(message: Message) -> bytes:
    """The bytes of `message` without padding, unsigned; ValueError for a value its option can't hold."""
    if len(message.transaction) != 8:
        raise ValueError(f"transaction id of {len(message.transaction)} bytes, expected 8")
    match message:
        case Request(_, flow, name, cookie, established):
            number, options = MessageType.REQUEST, _pack("FLOW", flow)
            options += _pack("HOST", name.host) + _pack("DOMAIN", name.domain)
            options += (_pack("COOKIE", cookie) if cookie else b"") + (
                _pack("ESTABLISHED", True) if established else b""
            )
        case Response(_, mapped, lifetime):
            number, options = MessageType.RESPONSE, _pack("MAPPING", (mapped, lifetime))
        case CookieChallenge(_, cookie):
            number, options = MessageType.COOKIE, _pack("COOKIE", cookie)
        case Refused(_, status, text):
            number, options = MessageType.REFUSED, _pack("STATUS", (status, text))
    return HEADER.pack(MAGIC, VERSION, number, HEADER.size + len(options), message.transaction) + options


def _pack(name: str, value: object) -> bytes:
    option = _BY_NAME[name]
    try:
        packed = option.pack(value)
        return bytes((option.code, len(packed))) + packed
    except (ValueError, struct.error) as error:
        raise ValueError(f"option {name}: {error}") from None


def pad(data: bytes, minimum: int = REQUEST_MINIMUM) -> bytes:
    """`data` with zero bytes behind it up to `minimum`."""
    return data.ljust(minimum, b"\0")


def is_natf(data: bytes | bytearray) -> bool:
    """Whether ICMP data claims to be a NAT-f message, of whatever version."""
    return data[:4] == MAGIC


def message_length(data: bytes | bytearray) -> int:
    """Length of the message at the start of `data` by its header, padding excluded; WireError if that can't be."""
    if len(data) < HEADER.size:
        raise WireError(f"{len(data)} bytes are less than a NAT-f header")
    magic, version, _, length, transaction = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"magic {magic.hex()} is not NAT-f's")
    if version != VERSION:
        raise UnsupportedVersion(version, transaction)
    if not HEADER.size <= length <= len(data):
        raise WireError(f"message length {length} in {len(data)} bytes of data")
    return int(length)


def walk_options(data: bytes | bytearray) -> Iterator[tuple[int, int, bytes]]:
    """(offset, type, value) of each option of the message in `data`; WireError where one runs over the end."""
    at, end = HEADER.size, message_length(data)
    while at < end:
        if at + 2 > end or at + 2 + data[at + 1] > end:
            raise WireError(f"option at {at} runs over the message's end at {end}")
        code, size = data[at], data[at + 1]
        yield at, code, bytes(data[at + 2 : at + 2 + size])
        at += 2 + size


def decode(data: bytes | bytearray) -> Message:
    """The message at the start of `data`, padding ignored. Of AUTH only place and size are checked: see `wire.auth`.

    Raises `UnsupportedVersion` for another protocol version, `WireError` for anything else that DESIGN.md section 5
    does not allow.
    """
    message_length(data)
    _, _, number, _, transaction = HEADER.unpack_from(data)
    try:
        shape = _SHAPES[MessageType(number)]
    except ValueError:
        raise WireError(f"unknown message type {number}") from None
    values = _decode_options(data)
    if not shape.required <= values.keys() <= shape.allowed:
        _misshapen(shape, values.keys() - {"AUTH"}, MessageType(number).name)
    return shape.build(transaction, values)


def _decode_options(data: bytes | bytearray) -> _Values:
    """`walk_options` written out: a request is waited for."""
    values: _Values = {}
    at, end = HEADER.size, message_length(data)
    while at < end:
        if at + 2 > end or at + 2 + data[at + 1] > end:
            raise WireError(f"option at {at} runs over the message's end at {end}")
        if "AUTH" in values:
            raise WireError(f"option at {at} stands behind AUTH")
        code, behind = data[at], at + 2 + data[at + 1]
        option = _BY_CODE.get(code)
        if option is None:
            if code < IGNORABLE:
                raise WireError(f"unknown option {code} at {at}")
        elif option.name in values:
            raise WireError(f"second option {option.name} at {at}")
        else:
            values[option.name] = _unpack_option(option, at, bytes(data[at + 2 : behind]))
        at = behind
    return values


def _unpack_option(option: Option, at: int, value: bytes) -> object:
    try:
        return option.unpack(value)
    except ValueError as error:
        raise WireError(f"option {option.name} at {at}: {error}") from None


def _misshapen(shape: _Shape, names: set[str], message: str) -> NoReturn:
    if missing := shape.required - names:
        raise WireError(f"{message} without option {', '.join(sorted(missing))}")
    raise WireError(f"{message} with option {', '.join(sorted(names - shape.allowed))}")
