"""Netlink by hand: message headers, attributes, errors (linux/netlink.h; RFC 3549).

Numbers in netlink headers are in host order; what subsystems put into attributes is their own affair.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

NETLINK_ROUTE: Final = 0  # linux/netlink.h
NETLINK_XFRM: Final = 6
NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270  # linux/socket.h
NETLINK_NO_ENOBUFS: Final = 5  # linux/netlink.h

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

HEADER: Final = struct.Struct("=IHHII")  # length with header, type, flags, sequence, port id
ATTRIBUTE: Final = struct.Struct("=HH")  # length with header, type
NESTED: Final = 1 << 15
KIND: Final = 0x3FFF
"""Of the bits of an attribute's kind: it has attributes in it; all others but the order of bytes."""
_ERRNO: Final = struct.Struct("=i")
_ERROR_SIZE: Final = HEADER.size + _ERRNO.size


def align(length: int) -> int:
    """`length` rounded up to netlink's alignment of 4."""
    return (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(align(length) - length)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message: header and `body`; port id 0 lets the kernel fill in ours."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def error_of(data: bytes | bytearray) -> int | None:
    """The errno in a datagram that is an NLMSG_ERROR message (0: an acknowledgement), None for any other datagram."""
    if len(data) < HEADER.size + _ERRNO.size or HEADER.unpack_from(data)[1] != NLMSG_ERROR:
        return None
    status: int = _ERRNO.unpack_from(data, HEADER.size)[0]
    return -status


def sequence_of(data: bytes | bytearray) -> int:
    """Of the request that a datagram answers."""
    sequence: int = HEADER.unpack_from(data)[3]
    return sequence


def sender_of(data: bytes) -> int:
    """The netlink port on whose request a notification was made, 0 if on the kernel's own."""
    port: int = HEADER.unpack_from(data)[4]
    return port


def status_of(data: bytes | bytearray, offset: int) -> int:
    """The errno in the NLMSG_DONE message at `offset`, 0 if all went well."""
    status: int = _ERRNO.unpack_from(data, offset + HEADER.size)[0]
    return -status


def messages(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, sequence, and where the body begins and ends, of each message in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
        yield kind, sequence, offset + HEADER.size, offset + length
        offset += max(align(length), HEADER.size)


def attributes(data: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Where the values of the attributes in this part of `data` begin and end, by their kinds."""
    found: dict[int, tuple[int, int]] = {}
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        found[kind & KIND] = (start + ATTRIBUTE.size, start + length)
        start += max(align(length), ATTRIBUTE.size)
    return found


class NetlinkSocket:
    """A netlink socket whose requests raise what the kernel answers. `groups`: bits of the multicast groups it
    hears."""

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self.socket.bind((0, groups))
        except OSError:
            self.socket.close()
            raise

    @property
    def port(self) -> int:
        """Our own number, which the kernel has chosen."""
        return int(self.socket.getsockname()[0])

    def request(self, kind: int, body: bytes) -> None:
        """Send a request; OSError with the kernel's errno if it was refused.

        No acknowledgement is asked for: the kernel works a request off within the call that sends it and always reports
        an error, so an error is the first datagram now or there is none. A datagram that is something else (a packet of
        the queue just bound) stays where it is. Only for a socket on which nothing else has been left unread.
        """
        self.socket.send(message(kind, NLM_F_REQUEST, 0, body))
        try:
            status = error_of(self.socket.recv(_ERROR_SIZE, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except BlockingIOError:
            return
        if status is not None:
            self.socket.recv(_ERROR_SIZE)
            raise OSError(status, os.strerror(status))

    def grow_receive_buffer(self, size: int) -> None:
        """Ask for `size` bytes past the system's limit (CAP_NET_ADMIN), else up to it."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def close(self) -> None:
        self.socket.close()


class Requests:
    """Questions to the kernel's `protocol`, one after the other, and its answers. OSError with the kernel's errno."""

    def __init__(self, protocol: int) -> None:
        self._netlink = NetlinkSocket(protocol)
        self._netlink.socket.settimeout(_PATIENCE)
        self._sequence = 0

    @property
    def port(self) -> int:
        """The number that changes are made by."""
        return self._netlink.port

    def ask(self, kind: int, flags: int, body: bytes) -> bytes:
        """The answer, or the acknowledgement if `flags` want one."""
        self._send(kind, flags, body)
        while True:
            answer = self._netlink.socket.recv(_LARGEST)
            if sequence_of(answer) == self._sequence:
                break
        if status := error_of(answer):
            raise OSError(status, os.strerror(status))
        return answer

    def dump(self, kind: int, body: bytes) -> list[tuple[bytes, int, int]]:
        """Where the bodies of the answer's messages begin and end; none if the kernel has nothing of the sort."""
        self._send(kind, NLM_F_DUMP, body)
        found: list[tuple[bytes, int, int]] = []
        while True:
            data = self._netlink.socket.recv(_LARGEST)
            for what, sequence, start, end in messages(data):
                if sequence != self._sequence:
                    continue
                if what in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found.append((data, start, end))

    def close(self) -> None:
        self._netlink.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._netlink.socket.send(message(kind, NLM_F_REQUEST | flags, self._sequence, body))


_PATIENCE: Final = 1.0  # s; the kernel answers within the call
_LARGEST: Final = 1 << 16
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; CPython has no name for it
