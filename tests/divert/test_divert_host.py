"""What a divert socket asks the host: messages of the routing socket, sockstat(1), and libc itself."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import sys

import pytest

from natf_bsd.divert import host
from natf_bsd.divert.syscalls import Libc
from natf_bsd.types import parse_address

IS_FREEBSD = sys.platform.startswith("freebsd")


class Metrics(ctypes.Structure):
    _fields_ = [(f"rmx_{index}", ctypes.c_ulong) for index in range(14)]


class RouteMessage(ctypes.Structure):
    """net/route.h, laid out by ctypes: the second opinion on the product's offsets."""

    _fields_ = [
        ("msglen", ctypes.c_ushort),
        ("version", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("index", ctypes.c_ushort),
        ("spare", ctypes.c_ushort),
        *[(name, ctypes.c_int) for name in ("flags", "addrs", "pid", "seq", "errno", "fmask")],
        ("inits", ctypes.c_ulong),
        ("metrics", Metrics),
    ]


def answer(mtu: int, **fields: int) -> bytes:
    message = RouteMessage(version=5, type=4, pid=77, **fields)
    message.metrics.rmx_0, message.metrics.rmx_1, message.metrics.rmx_2 = 0xAAAA, mtu, 0xBBBB
    return bytes(message) + bytes(16)


def test_the_mtu_is_read_from_the_answer() -> None:
    assert host.mtu_of(answer(1492), 77) == 1492


@pytest.mark.parametrize("message", [b"", bytes(20), answer(1492)[:100]])
def test_short_messages_tell_nothing(message: bytes) -> None:
    assert host.mtu_of(message, 77) == 0


def test_messages_about_other_things_tell_nothing() -> None:
    assert host.mtu_of(answer(1492), 78) == 0
    other = bytearray(answer(1492))
    other[3] = 1  # RTM_ADD
    assert host.mtu_of(bytes(other), 77) == 0


def test_the_question_has_the_kernels_layout() -> None:
    asked = host.route_request(bytes(16), 77)
    read = RouteMessage.from_buffer_copy(asked)
    assert (read.msglen, read.version, read.type, read.addrs, read.pid) == (len(asked), 5, 4, 1, 77)
    assert len(asked) == ctypes.sizeof(RouteMessage) + 16


@pytest.mark.skipif(IS_FREEBSD, reason="has such a routing socket")
def test_no_routing_socket_is_no_mtu() -> None:
    assert host.route_mtu(parse_address("127.0.0.1")) == 0


def test_sockstat_that_cannot_be_run_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert host.divert_sockets() == ""


def test_this_host_has_interfaces() -> None:
    assert any(name.startswith("lo") for name in host.interface_names())


# ctypes, by UDP over loopback: the calls are the same on every system, only the sockaddr differs.


def loopback(port: int) -> bytes:
    family = bytes([16, socket.AF_INET]) if IS_FREEBSD else struct.pack("=H", socket.AF_INET)
    return family + struct.pack("!H4s8x", port, parse_address("127.0.0.1"))


def arrived(calls: Libc, descriptor: int, size: int) -> tuple[bytes, bytes]:
    """FreeBSD queues what goes over loopback to another thread of its kernel."""
    assert select.select([descriptor], [], [], 10)[0]
    return calls.recvfrom(descriptor, size)


def test_libc_sends_and_reads_with_whole_addresses() -> None:
    calls = Libc()
    there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there.bind(("127.0.0.1", 0))
    here = calls.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
    try:
        calls.bind(here, loopback(0))
        address = loopback(there.getsockname()[1])
        data = bytes(range(256)) * 4  # zero bytes inside
        assert calls.sendto(here, data, address) == len(data)
        received, sender = there.recvfrom(2048)
        assert received == data
        for answered in b"first", b"", b"third":
            there.sendto(answered, sender)
        assert [arrived(calls, here, 2048) for _ in range(2)] == [(b"first", address), (b"", address)]
        assert arrived(calls, here, 3) == (b"thi", address)
    finally:
        calls.close(here)
        there.close()


def test_libc_never_blocks_and_raises_what_errno_says() -> None:
    calls = Libc()
    here = calls.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
    try:
        assert not os.get_blocking(here)
        assert not os.get_inheritable(here)
        with pytest.raises(BlockingIOError):
            calls.recvfrom(here, 100)
        calls.setsockopt(here, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        assert calls.getsockopt(here, socket.SOL_SOCKET, socket.SO_REUSEADDR)
        with pytest.raises(OSError) as caught:
            calls.setsockopt(here, socket.SOL_SOCKET, 0x7FFF, 1)
        assert caught.value.errno == errno.ENOPROTOOPT
    finally:
        calls.close(here)
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.bind(here, loopback(0))
    with pytest.raises(OSError) as caught:
        calls.socket(12345, socket.SOCK_RAW, 0)
    assert caught.value.errno == errno.EAFNOSUPPORT
