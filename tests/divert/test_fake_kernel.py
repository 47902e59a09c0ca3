"""The stand-in kernel answers as FreeBSD 14.2 did, or the tests over it would prove nothing."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.divert.fake_kernel import FakeKernel

DATA = Path(__file__).with_name("data")
OPTIONS = {"SO_RCVBUF": 0x1002, "SO_SNDBUF": 0x1001, "SO_REUSEPORT": 0x200, "SO_REUSEADDR": 4, "SO_RERROR": 0x20000}
CALL = re.compile(r"(\w+)(?:\((.*?)\))?")
# What they are about is not in the stand-in: loss of privilege, another vnet, the cut of a short read, filling
# buffers; the packets of the last three are not in the recording, their kind is in the writes below.
LEFT_OUT = (
    "privilege dropped",
    "capability",
    "other calls",
    "same port in another",
    "recvfrom with",
    "receive buffer",
    "oversize",
    "DF and longer",
    "send out",
    "send in",
)


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"freebsd_14_2_{name}.jsonl").read_text().splitlines()]


def outcome(action: Any, *args: Any) -> tuple[Any, str | None]:
    try:
        return action(*args), None
    except OSError as error:
        return -1, errno.errorcode[error.errno or 0]


@pytest.mark.parametrize(
    "record", [one for one in lines("errors") if not one["case"].startswith(LEFT_OUT)], ids=lambda one: one["case"]
)
def test_calls_end_as_recorded(record: dict[str, Any]) -> None:
    kernel = FakeKernel(is_root="user" not in record)
    descriptor = -1
    for step in record["steps"]:
        returned, error = play(kernel, descriptor, step["call"])
        assert error == step["errno"], step["call"]
        if step["returned"] == "fd":
            descriptor = returned
        elif step["call"].startswith("getsockopt"):
            assert returned == int(step["call"].split()[-1])


def play(kernel: FakeKernel, descriptor: int, call: str) -> tuple[Any, str | None]:
    match = CALL.match(call)
    assert match
    name, text = match.groups()
    if name == "socket":
        return outcome(kernel.socket, *map(int, text.split(",")))
    if name == "bind":
        address, size = text.split(", salen=")
        return outcome(kernel.bind, descriptor, bytes.fromhex(address)[: int(size)])
    if name == "sendto":
        return outcome(kernel.sendto, descriptor, *sent(text))
    if name == "setsockopt":
        option, _, value = text.partition(", ")
        return outcome(kernel.setsockopt, descriptor, 0xFFFF, OPTIONS[option], int(value or 1))
    if name == "getsockname":
        return -1, "ENOTSUP"  # nobody here calls it
    return outcome(kernel.getsockopt, descriptor, 0xFFFF, OPTIONS[text])


def sent(text: str) -> tuple[bytes, bytes]:
    """ "32 bytes, sockaddr=1002..., salen=16" as data and address."""
    size, address, length = re.split(r" bytes, sockaddr=|, salen=", text)
    data = bytes.fromhex("4500002000000000401102becb007101cb00710a").ljust(int(size), b"\0")
    raw = b"" if address == "None" else bytes.fromhex(address)
    return data, raw[: int(length)].ljust(int(length), b"\0")


@pytest.mark.parametrize(
    "record", [one for one in lines("divert_addresses") if one["kind"] == "write"], ids=lambda one: one["case"]
)
def test_writes_end_as_recorded(record: dict[str, Any]) -> None:
    kernel = FakeKernel()
    data = bytes.fromhex(record["written"]).ljust(record["written_length"], b"\0")
    descriptor = kernel.socket(44, 3, 0)
    assert outcome(kernel.sendto, descriptor, data, bytes.fromhex(record["sockaddr"]["raw"])) == (
        record["returned"],
        record["errno"],
    )
