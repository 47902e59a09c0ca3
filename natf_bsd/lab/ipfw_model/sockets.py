"""Divert sockets as the kernel keeps them: creation, ports, receive buffers, the sockaddr_in of a packet."""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from natf_bsd.types import Address, Direction

AF_INET = 2
AF_DIVERT = 44
SOCK_RAW = 3
IPPROTO_DIVERT = 258
SOL_SOCKET = 0xFFFF
SO_RCVBUF = 0x1002
SO_SNDBUF = 0x1001
SO_REUSEADDR = 0x0004
SO_REUSEPORT = 0x0200
SO_RERROR = 0x00020000

_ANY = bytes(4)
_NAME_SIZE = 8
_SOCKADDR_SIZE = 16
# DIVRCVQ, DIVSNDQ (FREEBSD.md 1.3)
DEFAULT_BUFFER = 65536 + 100
_MAX_SOCKBUF = 2 * 1024 * 1024
# uipc_sockbuf.c:sbreserve_locked: a request is scaled by cluster / (cluster + mbuf).
_CLUSTER = 2048
_MBUF = 256
# Packets up to here lie in the mbuf itself; 60 bytes were seen there, 100 in a cluster (load.jsonl, errors.jsonl).
_IN_MBUF = 60


@dataclass(frozen=True, slots=True)
class DivertAddress:
    """The fields of a sockaddr_in that mean something: FREEBSD.md 1.4 and 1.5."""

    rule: int
    address: Address = _ANY
    name: str = ""

    @property
    def direction(self) -> Direction:
        return Direction.OUT if self.address == _ANY else Direction.IN

    def pack(self) -> bytes:
        """16 bytes: the rule number in *host* order (amd64: little-endian), the name cut to seven characters."""
        name = self.name.encode()[: _NAME_SIZE - 1].ljust(_NAME_SIZE, b"\0")
        return bytes([_SOCKADDR_SIZE, AF_INET]) + struct.pack("<H", self.rule) + self.address + name

    @classmethod
    def unpack(cls, sockaddr: bytes) -> DivertAddress:
        """What div_send reads; a name without NUL in its eight bytes is none. OSError as the system call gives it."""
        if not sockaddr:
            raise _error(errno.EDESTADDRREQ)
        if len(sockaddr) != _SOCKADDR_SIZE:
            raise _error(errno.EINVAL)
        if sockaddr[1] != AF_INET:
            raise _error(errno.EAFNOSUPPORT)
        (rule,) = struct.unpack_from("<H", sockaddr, 2)
        name, end, _ = sockaddr[8:].partition(b"\0")
        return cls(rule, bytes(sockaddr[4:8]), name.decode("latin-1") if end else "")


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass(slots=True, eq=False)
class _Socket:
    port: int | None = None
    limit: int = DEFAULT_BUFFER
    records: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    used: int = 0
    memory: int = 0
    reports_overflow: bool = False
    overflowed: bool = False

    def append(self, data: bytes, sockaddr: bytes) -> bool:
        """False when the record does not fit: the smaller of bytes and mbuf space decides (FREEBSD.md 1.3)."""
        size = len(data) + len(sockaddr)
        memory_limit = min(8 * self.limit, _MAX_SOCKBUF)
        if size > min(self.limit - self.used, memory_limit - self.memory):
            self.overflowed = True
            return False
        self.records.append((data, sockaddr))
        self.used += size
        self.memory += _memory(data)
        return True

    def pop(self) -> tuple[bytes, bytes]:
        data, sockaddr = self.records.popleft()
        self.used -= len(data) + len(sockaddr)
        self.memory -= _memory(data)
        return data, sockaddr


def _memory(data: bytes) -> int:
    clusters = 0 if len(data) <= _IN_MBUF else -(-len(data) // _CLUSTER)
    return 2 * _MBUF + clusters * _CLUSTER


class DivertSockets:
    """The system calls on divert sockets of one host (or vnet): the surface that FreeBSD code runs on in tests.

    `write` is the kernel's div_send. Nothing blocks: `recvfrom` raises BlockingIOError when there is nothing.
    `counters` are those of `netstat -s -p divert`: diverted, noport, outbound, inbound; and overflow, which FreeBSD
    does not count.
    """

    def __init__(
        self, write: Callable[[bytes, DivertAddress], None], *, release: int, is_root: bool, is_loaded: bool
    ) -> None:
        self._write = write
        self._release = release
        self._is_root = is_root
        self._is_loaded = is_loaded
        self._sockets: dict[int, _Socket] = {}
        self._next_descriptor = 3
        self.counters: Counter[str] = Counter()
        self.kernel_messages: list[str] = []

    def socket(self, domain: int, type: int, protocol: int) -> int:
        """See FREEBSD.md 1.1; errors.jsonl has the errors."""
        self._check_creation(domain, type, protocol)
        if not self._is_root:
            raise _error(errno.EPERM)
        descriptor = self._next_descriptor
        self._next_descriptor += 1
        self._sockets[descriptor] = _Socket()
        return descriptor

    def _check_creation(self, domain: int, type: int, protocol: int) -> None:
        old_form = (domain, type, protocol) == (AF_INET, SOCK_RAW, IPPROTO_DIVERT)
        new = self._release >= 14
        if domain == AF_INET and not old_form:
            raise _error(errno.EPROTONOSUPPORT)
        if old_form and new:
            self.kernel_messages.append("python3 uses obsolete way to create divert(4) socket")
        if not self._is_loaded:
            raise _error(errno.EAFNOSUPPORT if new or domain == AF_DIVERT else errno.EPROTONOSUPPORT)
        if not old_form and not (new and domain == AF_DIVERT):
            raise _error(errno.EAFNOSUPPORT)
        if type != SOCK_RAW:
            raise _error(errno.EPROTOTYPE)

    def bind(self, descriptor: int, sockaddr: bytes) -> None:
        """The port is in network order here, unlike a rule number."""
        found = self._get(descriptor)
        if len(sockaddr) != _SOCKADDR_SIZE:
            raise _error(errno.EINVAL)
        if sockaddr[1] != AF_INET:
            raise _error(errno.EAFNOSUPPORT)
        (port,) = struct.unpack_from("!H", sockaddr, 2)
        if any(other.port == port for other in self._sockets.values() if other is not found):
            raise _error(errno.EADDRINUSE)
        if self._release < 14 and found.port is not None:
            raise _error(errno.EINVAL)
        found.port = port

    def recvfrom(self, descriptor: int, size: int) -> tuple[bytes, bytes]:
        """A packet, cut to `size` bytes, and its sockaddr_in."""
        found = self._get(descriptor)
        if found.records:
            data, sockaddr = found.pop()
            return data[:size], sockaddr
        if found.reports_overflow and found.overflowed:
            found.overflowed = False
            raise _error(errno.ENOBUFS)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def sendto(self, descriptor: int, data: bytes, sockaddr: bytes) -> int:
        """What came of an outgoing packet is known at once; an incoming one is only queued (FREEBSD.md 1.5)."""
        self._get(descriptor)
        if len(data) > DEFAULT_BUFFER:
            raise _error(errno.EMSGSIZE)
        address = DivertAddress.unpack(sockaddr)
        self._write(bytes(data), address)
        self.counters["outbound" if address.direction is Direction.OUT else "inbound"] += 1
        return len(data)

    def setsockopt(self, descriptor: int, level: int, option: int, value: int) -> None:
        found = self._get(descriptor)
        if level != SOL_SOCKET:
            raise _error(errno.ENOPROTOOPT)
        if option in (SO_RCVBUF, SO_SNDBUF) and value > _MAX_SOCKBUF * _CLUSTER // (_CLUSTER + _MBUF):
            raise _error(errno.ENOBUFS)
        if option == SO_RCVBUF:
            found.limit = value
        elif option == SO_RERROR:
            if self._release < 13:
                raise _error(errno.ENOPROTOOPT)
            found.reports_overflow = bool(value)
        elif option not in (SO_SNDBUF, SO_REUSEADDR, SO_REUSEPORT):
            raise _error(errno.ENOPROTOOPT)

    def getsockopt(self, descriptor: int, level: int, option: int) -> int:
        found = self._get(descriptor)
        if (level, option) != (SOL_SOCKET, SO_RCVBUF):
            raise _error(errno.ENOPROTOOPT)
        return found.limit

    def close(self, descriptor: int) -> None:
        self._get(descriptor)
        del self._sockets[descriptor]

    def is_readable(self, descriptor: int) -> bool:
        """What poll(2) says."""
        found = self._get(descriptor)
        return bool(found.records) or (found.reports_overflow and found.overflowed)

    def deliver(self, port: int, data: bytes, address: DivertAddress) -> None:
        """A packet for whoever holds `port`: dropped, and no one told, if nobody does or the buffer is full."""
        found = next((one for one in self._sockets.values() if one.port == port), None)
        if found is None:
            self.counters["noport"] += 1
        elif found.append(data, address.pack()):
            self.counters["diverted"] += 1
        else:
            self.counters["overflow"] += 1

    def _get(self, descriptor: int) -> _Socket:
        found = self._sockets.get(descriptor)
        if found is None:
            raise _error(errno.EBADF)
        return found
