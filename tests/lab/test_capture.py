"""Reading captures: our own reader and dpkt's see the same."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import dpkt
import pytest

from natf_bsd.lab import capture
from natf_bsd.lab.capture import CapturedPacket

HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 113)


def record(seconds: int, nanoseconds: int, kind: int, protocol: int, data: bytes) -> bytes:
    sll = struct.pack("!HHH8sH", kind, 1, 6, b"\1\2\3\4\5\6", protocol)
    return struct.pack("=IIII", seconds, nanoseconds, len(sll + data), len(sll + data)) + sll + data


RECORDS = [
    record(1700000000, 250_000_000, 0, 0x0800, b"first"),
    record(1700000001, 0, 1, 0x0806, b"an ARP request"),
    record(1700000002, 500_000_000, 4, 0x0800, b"second"),
]
PACKETS = [CapturedPacket(1700000000.25, False, b"first"), CapturedPacket(1700000002.5, True, b"second")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.pcap"


def test_ipv4_packets_with_time_and_direction(file: Path) -> None:
    file.write_bytes(HEADER + b"".join(RECORDS))
    assert capture.read(file) == PACKETS


def test_a_record_still_being_written_is_left_out(file: Path) -> None:
    whole = HEADER + RECORDS[0]
    for length in range(len(RECORDS[2])):
        file.write_bytes(whole + RECORDS[2][:length])
        assert capture.read(file) == PACKETS[:1]


def test_dpkt_reads_the_same() -> None:
    reader = dpkt.pcap.UniversalReader(io.BytesIO(HEADER + b"".join(RECORDS)))
    seen = [(float(time), dpkt.sll.SLL(data)) for time, data in reader]
    assert [(time, packet.type == 4) for time, packet in seen if packet.ethtype == 0x0800] == [
        (packet.time, packet.outgoing) for packet in PACKETS
    ]
