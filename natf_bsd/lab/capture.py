"""What passed an interface, written by a process of our own in the interface's network: no tcpdump needed.

The file is a pcap that Wireshark reads too: nanoseconds, and Linux "cooked" headers (LINKTYPE_LINUX_SLL), because
those tell outgoing from incoming. Packets are as the kernel holds them: those of a local sender may be larger than the
MTU and have only half a TCP or UDP checksum.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

_ETH_P_ALL = 3
_ETH_P_IP = 0x0800
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

_FILE_HEADER = struct.Struct("=IHHiIII")
_RECORD_HEADER = struct.Struct("=IIII")
_SLL = struct.Struct("!HHH8sH")
_MAGIC_NANOSECONDS = 0xA1B23C4D
_LINKTYPE_LINUX_SLL = 113

_FLUSH = 0.05
"""Seconds without a packet after which all up to now has been written: the kernel hands over within a millisecond."""


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One IPv4 packet, from its first header byte, that passed at `time` (s since 1970)."""

    time: float
    outgoing: bool
    data: bytes


class Capture:
    """A capture into `path`, running or over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running = True

    def packets(self) -> list[CapturedPacket]:
        """All so far, in order. While it runs this first waits until no more come in."""
        size = -1
        while self.running and size != (size := self.size()):
            time.sleep(_FLUSH)
        return read(self.path)

    def size(self) -> int:
        """Of the file; above 0 from the moment on when packets are caught."""
        return self.path.stat().st_size if self.path.exists() else 0


def read(path: Path) -> list[CapturedPacket]:
    """The IPv4 packets of a file written by `write`; a last record cut short is left out."""
    data = path.read_bytes()
    packets = []
    offset = _FILE_HEADER.size
    while offset + _RECORD_HEADER.size <= len(data):
        seconds, nanoseconds, length, _ = _RECORD_HEADER.unpack_from(data, offset)
        offset += _RECORD_HEADER.size
        record = data[offset : offset + length]
        offset += length
        if len(record) < length:
            break
        kind, _, _, _, protocol = _SLL.unpack_from(record)
        if protocol == _ETH_P_IP:
            packets.append(
                CapturedPacket(seconds + nanoseconds / 1e9, kind == socket.PACKET_OUTGOING, record[_SLL.size :])
            )
    return packets


def write(interface: str, path: Path) -> None:
    """Capture on `interface` into `path` until SIGTERM. Ends with an error when packets were lost on the way here."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with _open(interface) as source, path.open("wb", buffering=0) as file:
        file.write(_FILE_HEADER.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, 65535, _LINKTYPE_LINUX_SLL))
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
    source.bind((interface, _ETH_P_ALL))
    source.setblocking(False)
    return source


def _drain(source: socket.socket, file: FileIO) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            data, control, _, (_, protocol, kind, _, _) = source.recvmsg(1 << 16, _CONTROL_SIZE)
            seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
            header = _SLL.pack(kind, 1, 0, b"", protocol)
            length = len(header) + len(data)
            file.write(_RECORD_HEADER.pack(seconds, nanoseconds, length, length) + header + data)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
