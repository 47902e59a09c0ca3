"""What passed an interface, written by a process in the interface's network: `python -m natf_bsd.lab.capture IF FILE`.

The files are pcap, which Wireshark reads too. On Linux `packet_socket` writes them, with "cooked" headers that tell
outgoing from incoming; on FreeBSD tcpdump(1), with Ethernet headers: what the interface itself sent is outgoing, and
its address stands in a file beside. Packets are as the kernel holds them: those of a local sender may be larger than
the MTU and have only half a TCP or UDP checksum.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

FILE_HEADER = struct.Struct("=IHHiIII")
RECORD_HEADER = struct.Struct("=IIII")
SLL = struct.Struct("!HHH8sH")
MAGIC_NANOSECONDS = 0xA1B23C4D
MAGIC_MICROSECONDS = 0xA1B2C3D4
LINKTYPE_ETHERNET = 1
LINKTYPE_LINUX_SLL = 113

_ETHERNET = struct.Struct("!6s6sH")
_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4
"""linux/if_packet.h; its value is in the file format too."""

_UNITS = {MAGIC_NANOSECONDS: 1e9, MAGIC_MICROSECONDS: 1e6}
"""Parts of a second that times are counted in."""

_FLUSH = 0.2
"""Seconds without a packet after which all up to now has been written: the kernel hands over within a millisecond, but
on an emulated machine the writer waits for the processor."""


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


def ether_file(path: Path) -> Path:
    """Where the Ethernet address ("02:42:ab:16:ff:0a") of a capture's interface stands, if its headers are Ethernet."""
    return path.with_suffix(".ether")


_Split: TypeAlias = Callable[[bytes], tuple[int, bool, bytes]]
"""From a record to its Ethernet type, whether it went out, and the packet behind its link header."""


def read(path: Path) -> list[CapturedPacket]:
    """The IPv4 packets of a capture's file; a last record cut short is left out."""
    data = path.read_bytes()
    magic, _, _, _, _, _, link_type = FILE_HEADER.unpack_from(data)
    split = _split_cooked if link_type == LINKTYPE_LINUX_SLL else _split_ethernet(ether_file(path).read_text())
    packets = []
    for seconds, parts, record in _records(data):
        protocol, outgoing, packet = split(record)
        if protocol == _ETH_P_IP:
            packets.append(CapturedPacket(seconds + parts / _UNITS[magic], outgoing, packet))
    return packets


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = FILE_HEADER.size
    while offset + RECORD_HEADER.size <= len(data):
        seconds, parts, length, _ = RECORD_HEADER.unpack_from(data, offset)
        offset += RECORD_HEADER.size
        record = data[offset : offset + length]
        offset += length
        if len(record) == length:
            yield seconds, parts, record


def _split_cooked(record: bytes) -> tuple[int, bool, bytes]:
    kind, _, _, _, protocol = SLL.unpack_from(record)
    return protocol, kind == _PACKET_OUTGOING, record[SLL.size :]


def _split_ethernet(own: str) -> _Split:
    address = bytes.fromhex(own.strip().replace(":", ""))

    def split(record: bytes) -> tuple[int, bool, bytes]:
        _, source, protocol = _ETHERNET.unpack_from(record)
        return protocol, source == address, record[_ETHERNET.size :]

    return split


def write(interface: str, path: Path) -> None:
    """Capture on `interface` into `path` until SIGTERM. Ends with an error when packets were lost on the way here."""
    if sys.platform.startswith("freebsd"):
        from natf_bsd.lab import tcpdump

        tcpdump.write(interface, path)
    else:
        from natf_bsd.lab import packet_socket

        packet_socket.write(interface, path)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
