"""NAT-f messages, wire format version 1: golden vectors, rules of the options, arbitrary bytes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import UnsupportedVersion, WireError
from natf_bsd.types import Endpoint, Flow, Name, Protocol, parse_address
from natf_bsd.wire import message as wire
from natf_bsd.wire.auth import sign
from natf_bsd.wire.message import (
    CookieChallenge,
    Message,
    Refused,
    Request,
    Response,
    Status,
    decode,
    encode,
    is_natf,
    message_length,
    pad,
    valid_name,
)

TRANSACTION = bytes(range(8))
G1, G2, V1 = (parse_address(text) for text in ("203.0.113.10", "203.0.113.1", "240.0.1.1"))
ALICE = Name("alice", "home.example.net")


def asks(transaction: str, protocol: int, source_port: int, destination_port: int, cookie: bytes = b"") -> Request:
    flow = Flow(protocol, Endpoint(G1, source_port), Endpoint(V1, destination_port))
    return Request(bytes.fromhex(transaction), flow, ALICE, cookie)


def answers(transaction: str, port: int, lifetime: int) -> Response:
    return Response(bytes.fromhex(transaction), Endpoint(G2, port), lifetime)


ALICE_OPTIONS = "0205616c6963650310686f6d652e6578616d706c652e6e6574"

# By hand from DESIGN.md section 5.
BY_HAND: list[tuple[Message, str]] = [
    (
        asks("0001020304050607", Protocol.TCP, 0x3E2E, 80, cookie=b"\xc0\xc1\xc2\xc3"),
        "4e4154660101003f0001020304050607010e0600cb00710a3e2e0050f0000101" + ALICE_OPTIONS + "0404c0c1c2c3",
    ),
    (
        replace(asks("0001020304050607", Protocol.TCP, 0x3E2E, 80), established=True),
        "4e4154660101003b0001020304050607010e0600cb00710a3e2e0050f0000101" + ALICE_OPTIONS + "8000",
    ),
    (
        answers("0001020304050607", 0xD249, 86400),
        "4e4154660102001e0001020304050607050ccb007101d249000000015180",
    ),
    (
        CookieChallenge(TRANSACTION, bytes(range(0x10, 0x20))),
        "4e4154660103002200010203040506070410101112131415161718191a1b1c1d1e1f",
    ),
    (Refused(TRANSACTION, Status.DENIED), "4e415466010400130001020304050607060101"),
    (
        Refused(TRANSACTION, Status.UNSUPPORTED, "nöt now"),
        "4e4154660104001b00010203040506070609036ec3b674206e6f77",
    ),
]
# freebsd-14.2/flows.jsonl, router.8701 control: what two programs on FreeBSD said to each other (padding taken off).
RECORDED: list[tuple[Message, str]] = [
    (
        asks("6b6597cb8d95d474", Protocol.TCP, 15918, 80),
        "4e415466010100396b6597cb8d95d474010e0600cb00710a3e2e0050f0000101" + ALICE_OPTIONS,
    ),
    (answers("6b6597cb8d95d474", 80, 300), "4e4154660102001e6b6597cb8d95d474050ccb007101005000000000012c"),
    (
        asks("ec5f5f8cb0d38d5a", Protocol.UDP, 22526, 5000),
        "4e41546601010039ec5f5f8cb0d38d5a010e1100cb00710a57fe1388f0000101" + ALICE_OPTIONS,
    ),
    (answers("ec5f5f8cb0d38d5a", 5000, 60), "4e4154660102001eec5f5f8cb0d38d5a050ccb007101138800000000003c"),
    (
        asks("fd69ac2427527219", Protocol.UDP, 0xD39C, 5002),
        "4e41546601010039fd69ac2427527219010e1100cb00710ad39c138af0000101" + ALICE_OPTIONS,
    ),
    (answers("fd69ac2427527219", 5002, 60), "4e4154660102001efd69ac2427527219050ccb007101138a00000000003c"),
    (answers("55ec65402a0cb659", 0xD260, 300), "4e4154660102001e55ec65402a0cb659050ccb007101d26000000000012c"),
]
VECTORS = [(message, bytes.fromhex(text)) for message, text in BY_HAND + RECORDED]


@pytest.mark.parametrize(("message", "data"), VECTORS)
def test_golden_vectors_in_both_directions(message: Message, data: bytes) -> None:
    assert encode(message) == data
    assert decode(data) == message
    assert decode(bytearray(data)) == message
    assert message_length(data) == len(data)


@pytest.mark.parametrize("data", [data for _, data in VECTORS])
def test_every_proper_prefix_is_refused(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:size])


@pytest.mark.parametrize(("message", "data"), VECTORS)
def test_padding_is_ignored_whatever_it_holds(message: Message, data: bytes) -> None:
    assert decode(data + bytes(70)) == message
    assert decode(data + b"\x01\x02garbage") == message
    assert message_length(data + bytes(70)) == len(data)


def test_requests_are_padded_to_the_minimum() -> None:
    data = encode(RECORDED[0][0])
    assert pad(data) == data + bytes(128 - 57)
    assert pad(data, 60) == data + bytes(3)
    assert pad(bytes(200)) == bytes(200)


def test_no_reply_is_longer_than_the_shortest_request() -> None:
    """Signed too, with the longest cookie; a refusal's text is cut by who sends it."""
    replies: list[Message] = [answers("0001020304050607", 1, 1), CookieChallenge(TRANSACTION, bytes(32))]
    for reply in replies:
        assert len(sign(encode(reply), bytes(8), b"key", 0)) <= wire.REQUEST_MINIMUM


def test_messages_are_told_from_pings_by_their_magic() -> None:
    assert is_natf(VECTORS[0][1])
    assert is_natf(b"NATf\x07")
    assert not any(is_natf(data) for data in (b"", b"NAT", b"NATF" + bytes(60), bytes(56)))


transactions = st.binary(min_size=8, max_size=8)
addresses = st.binary(min_size=4, max_size=4)
ports = st.integers(0, 0xFFFF)
endpoints = st.builds(Endpoint, addresses, ports)
labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
domains = st.lists(labels, min_size=1, max_size=8).map(lambda parts: ".".join(parts)[:253].rstrip("."))
requests = st.builds(
    Request,
    transactions,
    st.builds(Flow, st.integers(0, 255), endpoints, endpoints),
    st.builds(Name, labels, domains),
    st.binary(max_size=32),
)
texts = st.text(max_size=60)
messages: st.SearchStrategy[Message] = st.one_of(
    requests,
    st.builds(Response, transactions, endpoints, st.integers(0, 2**32 - 1)),
    st.builds(CookieChallenge, transactions, st.binary(min_size=1, max_size=32)),
    st.builds(Refused, transactions, st.sampled_from(Status), texts),
)


@given(messages)
def test_every_message_survives_encoding_and_decoding(message: Message) -> None:
    assert decode(encode(message)) == message
    assert decode(pad(encode(message))) == message
    assert decode(sign(encode(message), bytes(8), b"key", 1)) == message


# (type, value) of good options
FLOW = (1, bytes.fromhex("0600cb00710a3e2e0050f0000101"))
HOST = (2, b"alice")
DOMAIN = (3, b"home.example.net")
COOKIE = (4, b"cookie")
MAPPING = (5, bytes.fromhex("cb007101005000000000012c"))
STATUS = (6, b"\x01")
AUTH = (7, bytes(32))


def raw(type_: int, *options: tuple[int, bytes], version: int = 1) -> bytes:
    """Any message, right or wrong."""
    body = b"".join(bytes([code, len(value)]) + value for code, value in options)
    return b"NATf" + bytes([version, type_]) + (16 + len(body)).to_bytes(2, "big") + TRANSACTION + body


@pytest.mark.parametrize("order", list(itertools.permutations([FLOW, HOST, DOMAIN, COOKIE])))
def test_options_may_come_in_any_order(order: tuple[tuple[int, bytes], ...]) -> None:
    assert decode(raw(1, *order)) == asks("0001020304050607", Protocol.TCP, 0x3E2E, 80, cookie=b"cookie")


@pytest.mark.parametrize("type_", [129, 200, 255])
def test_ignorable_options_are_ignored_even_twice(type_: int) -> None:
    unknown = (type_, b"later")
    assert decode(raw(4, unknown, STATUS, unknown, (type_, b""))) == Refused(TRANSACTION, Status.DENIED)


@pytest.mark.parametrize("type_", [0, 8, 127])
def test_unknown_options_make_a_message_malformed(type_: int) -> None:
    with pytest.raises(WireError, match=f"unknown option {type_} at 19"):
        decode(raw(4, STATUS, (type_, b"")))


@pytest.mark.parametrize(
    ("type_", "options"),
    [
        (1, [FLOW, HOST, DOMAIN, HOST]),
        (1, [FLOW, HOST, DOMAIN, COOKIE, COOKIE]),
        (2, [MAPPING, MAPPING]),
        (3, [COOKIE, COOKIE]),
        (4, [STATUS, STATUS]),
    ],
)
def test_second_option_of_a_kind_is_refused(type_: int, options: list[tuple[int, bytes]]) -> None:
    with pytest.raises(WireError, match="second option"):
        decode(raw(type_, *options))


@pytest.mark.parametrize(
    ("type_", "options", "text"),
    [
        (1, [HOST, DOMAIN], "REQUEST without option FLOW"),
        (1, [FLOW, DOMAIN], "REQUEST without option HOST"),
        (1, [FLOW, HOST], "REQUEST without option DOMAIN"),
        (1, [], "REQUEST without option DOMAIN, FLOW, HOST"),
        (2, [], "RESPONSE without option MAPPING"),
        (2, [AUTH], "RESPONSE without option MAPPING"),
        (3, [], "COOKIE without option COOKIE"),
        (4, [], "REFUSED without option STATUS"),
        (1, [FLOW, HOST, DOMAIN, STATUS], "REQUEST with option STATUS"),
        (1, [FLOW, HOST, DOMAIN, MAPPING], "REQUEST with option MAPPING"),
        (2, [MAPPING, COOKIE], "RESPONSE with option COOKIE"),
        (3, [COOKIE, MAPPING], "COOKIE with option MAPPING"),
        (4, [STATUS, HOST], "REFUSED with option HOST"),
    ],
)
def test_each_message_type_has_its_own_options(type_: int, options: list[tuple[int, bytes]], text: str) -> None:
    with pytest.raises(WireError, match=text):
        decode(raw(type_, *options))


@pytest.mark.parametrize(
    ("type_", "options"), [(1, [FLOW, HOST, DOMAIN]), (2, [MAPPING]), (3, [COOKIE]), (4, [STATUS])]
)
def test_auth_may_end_every_message_and_nothing_may_follow_it(type_: int, options: list[tuple[int, bytes]]) -> None:
    assert decode(raw(type_, *options, AUTH)) == decode(raw(type_, *options))
    for last in (options[-1], AUTH, (129, b"")):
        with pytest.raises(WireError, match="stands behind AUTH"):
            decode(raw(type_, *options[:-1], AUTH, last))


@pytest.mark.parametrize(
    "bad",
    [
        (1, FLOW[1][:-1]),
        (1, FLOW[1] + b"\0"),
        (1, FLOW[1][:1] + b"\x01" + FLOW[1][2:]),
        (2, b""),
        (2, b"a" * 64),
        (2, b"Alice"),
        (2, b"alice.bob"),
        (2, b"al ice"),
        (2, b"alice\n"),
        (2, b"alic\xe9"),
        (2, "älice".encode()),
        (3, b""),
        (3, b"."),
        (3, b"home.example.net."),
        (3, b"home..net"),
        (3, b"Home.example.net"),
        (3, b"home.example.net\n"),
        (3, b"a" * 64 + b".net"),
        (3, b".".join([b"a" * 49] * 5) + b".info"),
        (4, b""),
        (4, bytes(33)),
    ],
)
def test_bad_values_in_a_request_are_refused(bad: tuple[int, bytes]) -> None:
    good = [FLOW, HOST, DOMAIN, COOKIE]
    options = [bad if option[0] == bad[0] else option for option in good]
    with pytest.raises(WireError, match=r"option (FLOW|HOST|DOMAIN|COOKIE) at"):
        decode(raw(1, *options))


@pytest.mark.parametrize(
    ("type_", "bad"),
    [
        (2, (5, MAPPING[1][:-1])),
        (2, (5, MAPPING[1][:6] + b"\0\x01" + MAPPING[1][8:])),
        (3, (4, b"")),
        (4, (6, b"")),
        (4, (6, b"\x00")),
        (4, (6, b"\x08")),
        (4, (6, b"\x01\xff\xfe")),
        (4, (6, b"\x01\xed\xa0\x80")),
    ],
)
def test_bad_values_in_a_reply_are_refused(type_: int, bad: tuple[int, bytes]) -> None:
    with pytest.raises(WireError, match=r"option (MAPPING|COOKIE|STATUS) at 16"):
        decode(raw(type_, bad))


def test_auth_of_another_size_is_refused() -> None:
    with pytest.raises(WireError, match="option AUTH at 19: 31 bytes, expected 32"):
        decode(raw(4, STATUS, (7, bytes(31))))


def test_longest_names_are_carried() -> None:
    domain = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(domain) == 253
    name = Name("e" * 63, domain)
    request = Request(TRANSACTION, asks("00" * 8, 6, 1, 2).flow, name)
    assert valid_name(name)
    assert decode(encode(request)) == request
    assert not valid_name(Name("e" * 63, domain + "d"))
    assert not valid_name(Name("e" * 64, "net"))
    assert not valid_name(Name("", "net"))


@pytest.mark.parametrize("version", [0, 2, 255])
@pytest.mark.parametrize(
    "data", [raw(4, STATUS), raw(9, (0, b"?")), raw(1)[:16], raw(1)[:6] + b"\xff\xff" + TRANSACTION]
)
def test_another_version_is_told_with_its_transaction(version: int, data: bytes) -> None:
    """Of another version only magic, version and transaction id are where version 1 has them."""
    other = bytearray(data)
    other[4] = version
    with pytest.raises(UnsupportedVersion) as caught:
        decode(other)
    assert (caught.value.version, caught.value.transaction) == (version, TRANSACTION)


@pytest.mark.parametrize("type_", [0, 5, 255])
def test_unknown_message_types_are_refused(type_: int) -> None:
    with pytest.raises(WireError, match=f"unknown message type {type_}"):
        decode(raw(type_, STATUS))


@pytest.mark.parametrize("length", [0, 15, 20, 0xFFFF])
def test_impossible_lengths_are_refused(length: int) -> None:
    data = raw(4, STATUS)
    with pytest.raises(WireError, match=f"message length {length} in 19 bytes"):
        decode(data[:6] + length.to_bytes(2, "big") + data[8:])


@pytest.mark.parametrize("length", [17, 18])
@pytest.mark.parametrize("padding", [b"", bytes(20)])
def test_option_that_runs_over_the_message_is_refused(length: int, padding: bytes) -> None:
    data = raw(4, STATUS)
    with pytest.raises(WireError, match=f"option at 16 runs over the message's end at {length}"):
        decode(data[:6] + length.to_bytes(2, "big") + data[8:length] + padding)


@pytest.mark.parametrize("data", [b"", b"NATf", b"NATf\x02", bytes(64), b"XATf" + raw(4, STATUS)[4:]])
def test_what_is_no_message_has_no_length(data: bytes) -> None:
    with pytest.raises(WireError):
        message_length(data)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Refused(b"short", Status.DENIED), "transaction id of 5 bytes"),
        (Request(TRANSACTION, asks("00" * 8, 6, 1, 2).flow, Name("Alice", "net")), "option HOST: 'Alice'"),
        (Request(TRANSACTION, asks("00" * 8, 6, 1, 2).flow, Name("alice", "")), "option DOMAIN: ''"),
        (asks("00" * 8, 6, 65536, 2), "option FLOW"),
        (asks("00" * 8, 6, 1, 2, cookie=bytes(33)), "option COOKIE: 33 bytes"),
        (CookieChallenge(TRANSACTION, b""), "option COOKIE: 0 bytes"),
        (Response(TRANSACTION, Endpoint(G2, 1), 2**32), "option MAPPING"),
        (Refused(TRANSACTION, Status.DENIED, "x" * 255), "option STATUS"),
        (Refused(TRANSACTION, Status.DENIED, "\ud800"), "option STATUS"),
    ],
)
def test_what_cannot_be_written_is_a_value_error(message: Message, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        encode(message)


def decoded(data: bytes) -> Message | None:
    try:
        return decode(data)
    except WireError:
        return None


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_message_or_a_wire_error(data: bytes, with_magic: bool) -> None:
    message = decoded(b"NATf\x01" + data if with_magic else data)
    assert message is None or decode(encode(message)) == message


@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 9) | st.just(128), st.binary(max_size=40)), max_size=5))
def test_any_options_give_a_message_or_a_wire_error(type_: int, options: list[tuple[int, bytes]]) -> None:
    message = decoded(raw(type_, *options))
    assert message is None or decode(encode(message)) == message


@given(st.sampled_from(VECTORS), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4))
def test_damaged_messages_give_a_message_or_a_wire_error(
    vector: tuple[Message, bytes], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(vector[1])
    for at, value in changes:
        data[at % len(data)] = value
    message = decoded(bytes(data))
    assert message is None or decode(encode(message)) == message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.DENIED, 1),
        (Status.NO_SUCH_HOST, 2),
        (Status.UNSUPPORTED, 3),
        (Status.OUT_OF_RESOURCES, 4),
        (Status.MALFORMED, 5),
        (Status.KEY_REQUIRED, 6),
        (Status.BAD_KEY, 7),
    ],
)
def test_status_codes_are_those_of_the_wire_format(status: Status, code: int) -> None:
    assert encode(Refused(TRANSACTION, status)) == raw(4, (6, bytes([code])))
