"""Netlink by hand: message headers, attributes, errors (linux/netlink.h; RFC 3549).

Numbers in netlink headers are in host order; what subsystems put into attributes is their own affair.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

NETLINK_NETFILTER: Final = 12  # linux/netlink.h
SOL_NETLINK: Final = 270  # linux/socket.h
NETLINK_NO_ENOBUFS: Final = 5  # linux/netlink.h

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300

HEADER: Final = struct.Struct("=IHHII")  # length with header, type, flags, sequence, port id
ATTRIBUTE: Final = struct.Struct("=HH")  # length with header, type
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


def status_of(data: bytes | bytearray, offset: int) -> int:
    """The errno in the NLMSG_DONE message at `offset`, 0 if all went well."""
    status: int = _ERRNO.unpack_from(data, offset + HEADER.size)[0]
    return -status


class NetlinkSocket:
    """A netlink socket whose requests raise what the kernel answers."""

    def __init__(self, protocol: int) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self.socket.bind((0, 0))
        except OSError:
            self.socket.close()
            raise

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


_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; CPython has no name for it
