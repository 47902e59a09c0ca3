"""Reading captures: our own reader and dpkt's see the same."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import dpkt
import pytest

from natf_bsd.lab import capture, tcpdump
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


OWN = "02:42:ab:16:ff:0a"
OWN_BYTES, OTHER_BYTES = bytes.fromhex("0242ab16ff0a"), bytes.fromhex("0242ab16ff0b")


def ethernet(seconds: int, microseconds: int, source: bytes, protocol: int, data: bytes) -> bytes:
    frame = bytes(6) + source + struct.pack("!H", protocol) + data
    return struct.pack("=IIII", seconds, microseconds, len(frame), len(frame)) + frame


def test_what_tcpdump_wrote_reads_alike(file: Path) -> None:
    header = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    records = [
        ethernet(1700000000, 250_000, OTHER_BYTES, 0x0800, b"first"),
        ethernet(1700000001, 0, OWN_BYTES, 0x0806, b"an ARP request"),
        ethernet(1700000002, 500_000, OWN_BYTES, 0x0800, b"second"),
    ]
    file.write_bytes(header + b"".join(records))
    capture.ether_file(file).write_text(f"{OWN}\n")
    assert capture.read(file) == PACKETS


def test_a_file_that_has_its_header_only_holds_nothing(file: Path) -> None:
    file.write_bytes(HEADER)
    assert capture.read(file) == []


def test_tcpdump_writes_every_packet_whole_and_at_once() -> None:
    assert " ".join(tcpdump.command("wan", Path("/tmp/a.pcap"))) == (
        "tcpdump -n -i wan -s 0 -U --immediate-mode -w /tmp/a.pcap"
    )


def test_an_interfaces_own_address_is_read_from_ifconfig() -> None:
    printed = (
        f"wan: flags=1008843<UP,BROADCAST> metric 0 mtu 1500\n\toptions=8<VLAN_MTU>\n\tether {OWN}\n\tinet 203.0.113.1"
    )
    assert tcpdump.own_address(printed) == OWN
    assert tcpdump.own_address("lo0: flags=1008049<UP,LOOPBACK> metric 0 mtu 16384\n\tgroups: lo\n") is None


REPORT = (
    "tcpdump: listening on wan, link-type EN10MB (Ethernet), snapshot length 262144 bytes\n"
    "7 packets captured\n7 packets received by filter\n"
)


@pytest.mark.parametrize(
    ("status", "report", "fault"),
    [
        (0, f"{REPORT}0 packets dropped by kernel\n", None),
        (0, f"{REPORT}1 packet dropped by kernel\n", "1 packets lost"),
        (0, f"{REPORT}12 packets dropped by kernel\n", "12 packets lost"),
        (1, "tcpdump: wan: You don't have permission\n", "tcpdump: wan: You don't have permission"),
        (-9, "", "tcpdump ended with status -9"),
        (0, "tcpdump: listening\n", "tcpdump did not say how many packets it lost: tcpdump: listening"),
    ],
)
def test_lost_packets_are_a_fault(status: int, report: str, fault: str | None) -> None:
    assert tcpdump.verdict(status, report) == fault


IFCONFIG = f"""\
#!/bin/sh
[ "$1" = wan ] || {{ echo "ifconfig: interface $1 does not exist" >&2; exit 1; }}
printf '\\tether {OWN}\\n'
"""
TCPDUMP = """\
#!/bin/sh
trap 'echo "$DROPPED packets dropped by kernel" >&2; exit 0' TERM
eval "file=\\${$#}"
echo header >"$file"
while :; do sleep 0.01; done
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ifconfig and a tcpdump that do no more than is asked of them here."""
    for name, script in ("ifconfig", IFCONFIG), ("tcpdump", TCPDUMP):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def start(interface: str, file: Path) -> subprocess.Popen[str]:
    write = f"tcpdump.write({interface!r}, Path({str(file)!r}))"
    command = [sys.executable, "-c", f"from pathlib import Path; from natf_bsd.lab import tcpdump; {write}"]
    return subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("dropped", "status", "said"), [("0", 0, ""), ("3", 1, "3 packets lost\n")])
def test_a_capture_by_tcpdump_ends_in_order(
    tools: None, file: Path, monkeypatch: pytest.MonkeyPatch, dropped: str, status: int, said: str
) -> None:
    monkeypatch.setenv("DROPPED", dropped)
    writer = start("wan", file)
    while not file.exists() or not file.stat().st_size:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.terminate()
    _, errors = writer.communicate(timeout=20)
    assert (writer.returncode, errors) == (status, said)
    assert capture.ether_file(file).read_text() == OWN


def test_a_capture_by_tcpdump_of_no_interface_says_so(tools: None, file: Path) -> None:
    writer = start("eth7", file)
    _, errors = writer.communicate(timeout=20)
    assert writer.returncode == 1
    assert errors == "eth7: No such device with an Ethernet address: ifconfig: interface eth7 does not exist\n"


def test_dpkt_reads_the_same() -> None:
    reader = dpkt.pcap.UniversalReader(io.BytesIO(HEADER + b"".join(RECORDS)))
    seen = [(float(time), dpkt.sll.SLL(data)) for time, data in reader]
    assert [(time, packet.type == 4) for time, packet in seen if packet.ethtype == 0x0800] == [
        (packet.time, packet.outgoing) for packet in PACKETS
    ]
