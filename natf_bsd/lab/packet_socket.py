"""A capture written through a packet(7) socket of Linux: no tcpdump needed."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import sys
from io import FileIO
from pathlib import Path

from natf_bsd.lab.capture import FILE_HEADER, LINKTYPE_LINUX_SLL, MAGIC_NANOSECONDS, RECORD_HEADER, SLL

_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
"""SO_TIMESTAMPNS_OLD (asm-generic/socket.h): the kernel's own time of arrival, a struct timespec of CLOCK_REALTIME."""
_TIMESPEC = struct.Struct("@ll")
_CONTROL_SIZE = socket.CMSG_SPACE(_TIMESPEC.size)
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
"""packet(7): received and dropped since the last look."""
_SO_RCVBUFFORCE = 33
_BUFFER = 32 << 20
"""Bytes: a second of 200 Mbit/s, while the writer waits for the processor."""


def write(interface: str, path: Path) -> None:
    """See `capture.write`. Times are in nanoseconds."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with _open(interface) as source, path.open("wb", buffering=0) as file:
        file.write(FILE_HEADER.pack(MAGIC_NANOSECONDS, 2, 4, 0, 0, 65535, LINKTYPE_LINUX_SLL))
        ready: list[socket.socket] = []
        while woken not in ready:
            ready, _, _ = select.select([source, woken], [], [])
            _drain(source, file)
        _, lost = struct.unpack("II", source.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    if lost:
        sys.exit(f"{lost} packets lost")


def _open(interface: str) -> socket.socket:
    source = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    source.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    # Forcing needs privileges that a user namespace does not give.
    with contextlib.suppress(PermissionError):
        source.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    try:
        source.bind((interface, _ETH_P_ALL))
    except OSError as error:
        sys.exit(f"{interface}: {error.strerror}")
    source.setblocking(False)
    return source


def _drain(source: socket.socket, file: FileIO) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            data, control, _, (_, protocol, kind, _, _) = source.recvmsg(1 << 16, _CONTROL_SIZE)
            seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
            header = SLL.pack(kind, 1, 0, b"", protocol)
            length = len(header) + len(data)
            file.write(RECORD_HEADER.pack(seconds, nanoseconds, length, length) + header + data)
