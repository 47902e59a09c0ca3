"""A stand-in for the system calls of a FreeBSD kernel; test_fake_kernel.py holds it against the recordings in data/."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass, field

AF_INET, AF_DIVERT, SOCK_RAW, IPPROTO_DIVERT = 2, 44, 3, 258
SOL_SOCKET, SO_SNDBUF, SO_RCVBUF, SO_RERROR = 0xFFFF, 0x1001, 0x1002, 0x20000
NOBODY = bytes(4)


def failure(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


@dataclass
class Socket:
    """A pair of real sockets holds one byte for each packet that waits, so that poll() works."""

    port: int = -1
    options: dict[int, int] = field(default_factory=lambda: {SO_RCVBUF: 65636, SO_SNDBUF: 65636})
    waiting: deque[tuple[bytes, bytes] | OSError] = field(default_factory=deque)
    ends: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)


class FakeKernel:
    """The router of the recordings: its interfaces, one MTU, no route to 100.64.0.0/10 and 240.0.0.0/4."""

    def __init__(
        self, *, release: int = 14, is_root: bool = True, has_module: bool = True, largest_buffer: int = 1_864_135
    ) -> None:
        self.release, self.is_root, self.has_module, self.largest_buffer = release, is_root, has_module, largest_buffer
        self.sockets: dict[int, Socket] = {}
        self.created: list[tuple[int, int, int]] = []
        self.written: list[tuple[bytes, bytes]] = []
        self.answers: deque[str] = deque()  # names of errors for the next writes, before anything else is looked at
        self.mtu = 1500
        self.denied_udp_port = 9130
        self.interfaces = {
            b"lo0": bytes([127, 0, 0, 1]),
            b"epair0b": bytes([203, 0, 113, 1]),
            b"epair1a": bytes([192, 168, 0, 1]),
            b"epair2b": NOBODY,
            b"wanport0": bytes([198, 51, 100, 1]),
            b"wanport": bytes([198, 51, 101, 1]),
        }

    def deliver(self, port: int, data: bytes | bytearray, address: bytes) -> None:
        self._put(port, (bytes(data), address))

    def overrun(self, port: int) -> None:
        """Packets were lost for want of room, and the socket was asked to say so."""
        if self._bound(port).options.get(SO_RERROR):
            self._put(port, failure("ENOBUFS"))

    def socket(self, domain: int, kind: int, protocol: int, /) -> int:
        self.created.append((domain, kind, protocol))
        self._check_creation(domain, kind, protocol)
        if not self.is_root:
            raise failure("EPERM")
        made = Socket()
        descriptor = made.ends[0].fileno()
        self.sockets[descriptor] = made
        return descriptor

    def _check_creation(self, domain: int, kind: int, protocol: int) -> None:
        is_old = (domain, kind, protocol) == (AF_INET, SOCK_RAW, IPPROTO_DIVERT)
        is_new = domain == AF_DIVERT and self.release >= 14
        if domain == AF_INET and (not is_old or (self.release < 14 and not self.has_module)):
            raise failure("EPROTONOSUPPORT")
        if not (is_old or is_new) or not self.has_module:
            raise failure("EAFNOSUPPORT")
        if kind != SOCK_RAW:
            raise failure("EPROTOTYPE")

    def bind(self, descriptor: int, address: bytes, /) -> None:
        if len(address) != 16:
            raise failure("EINVAL")
        if address[1] != AF_INET:
            raise failure("EAFNOSUPPORT")
        port = int.from_bytes(address[2:4], "big")
        if port in [other.port for other in self.sockets.values()]:
            raise failure("EADDRINUSE")
        self.sockets[descriptor].port = port

    def recvfrom(self, descriptor: int, size: int, /) -> tuple[bytes, bytes]:
        found = self.sockets[descriptor]
        if not found.waiting:
            raise failure("EAGAIN")
        found.ends[0].recv(1)
        item = found.waiting.popleft()
        if isinstance(item, OSError):
            raise item
        return item[0][:size], item[1]

    def sendto(self, descriptor: int, data: bytes, address: bytes, /) -> int:
        assert descriptor in self.sockets
        if self.answers:
            raise failure(self.answers.popleft())
        self._check_form(data, address)
        if address[4:8] == NOBODY:
            self._check_way_out(data)
        else:
            self._check_way_in(address)
        self.written.append((data, address))
        return len(data)

    def _check_form(self, data: bytes, address: bytes) -> None:
        if not address:
            raise failure("EDESTADDRREQ")
        if len(data) > 65636:
            raise failure("EMSGSIZE")
        if len(address) != 16:
            raise failure("EINVAL")
        if address[1] != AF_INET:
            raise failure("EAFNOSUPPORT")
        if len(data) < 20:
            raise failure("EINVAL")
        if data[0] >> 4 != 4:
            raise failure("EAFNOSUPPORT")
        if int.from_bytes(data[2:4], "big") > len(data):
            raise failure("EINVAL")

    def _check_way_out(self, data: bytes) -> None:
        if data[16] == 240 or (data[16] == 100 and data[17] & 0xC0 == 64):
            raise failure("EHOSTUNREACH")
        if data[9] == 17 and int.from_bytes(data[22:24], "big") == self.denied_udp_port:
            raise failure("EACCES")
        if data[6] & 0x40 and len(data) > self.mtu:
            raise failure("EMSGSIZE")

    def _check_way_in(self, address: bytes) -> None:
        name, end, _ = address[8:].partition(b"\0")
        if not (end and name in self.interfaces) and address[4:8] not in self.interfaces.values():
            raise failure("EADDRNOTAVAIL")

    def setsockopt(self, descriptor: int, level: int, option: int, value: int, /) -> None:
        assert level == SOL_SOCKET
        if option in (SO_RCVBUF, SO_SNDBUF) and value > self.largest_buffer:
            raise failure("ENOBUFS")
        if option == SO_RERROR and self.release < 13:
            raise failure("ENOPROTOOPT")
        self.sockets[descriptor].options[option] = value

    def getsockopt(self, descriptor: int, level: int, option: int, /) -> int:
        assert level == SOL_SOCKET
        return self.sockets[descriptor].options[option]

    def close(self, descriptor: int, /) -> None:
        for end in self.sockets.pop(descriptor).ends:
            end.close()

    def _bound(self, port: int) -> Socket:
        (found,) = (one for one in self.sockets.values() if one.port == port)
        return found

    def _put(self, port: int, item: tuple[bytes, bytes] | OSError) -> None:
        found = self._bound(port)
        found.waiting.append(item)
        with contextlib.suppress(BlockingIOError):
            found.ends[1].send(b"x")


def sockaddr(rule: int, address: bytes = NOBODY, name: bytes = b"") -> bytes:
    """Written out again here, so that the product's own packing is not its own witness."""
    return bytes([16, AF_INET]) + struct.pack("=H", rule) + address + name[:7].ljust(8, b"\0")
