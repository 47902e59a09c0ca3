"""A capture written by tcpdump(1) of FreeBSD's base system, and the Ethernet address that tells its directions."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from natf_bsd.lab.capture import ether_file


def write(interface: str, path: Path) -> None:
    """See `capture.write`. Times are in microseconds."""
    known = subprocess.run(["ifconfig", interface], capture_output=True, text=True, check=False)
    address = own_address(known.stdout)
    if address is None:
        sys.exit(
            f"{interface}: No such device with an Ethernet address: {known.stderr.strip() or known.stdout.strip()}"
        )
    ether_file(path).write_text(address)
    with subprocess.Popen(command(interface, path), stderr=subprocess.PIPE, text=True) as tcpdump:
        signal.signal(signal.SIGTERM, lambda number, frame: tcpdump.terminate())
        _, report = tcpdump.communicate()
    if fault := verdict(tcpdump.returncode, report):
        sys.exit(fault)


def command(interface: str, path: Path) -> list[str]:
    """Every packet whole (-s 0), handed over at once and written at once (-U)."""
    return ["tcpdump", "-n", "-i", interface, "-s", "0", "-U", "--immediate-mode", "-w", str(path)]


def own_address(ifconfig: str) -> str | None:
    """The address in what `ifconfig IF` prints; None if there is none."""
    found = re.search(r"^\s*ether ([0-9a-f:]{17})", ifconfig, re.MULTILINE)
    return found[1] if found else None


def verdict(status: int, report: str) -> str | None:
    """What went wrong by tcpdump's exit status and standard error; None if every packet was written."""
    if status:
        return report.strip() or f"tcpdump ended with status {status}"
    lost = re.search(r"^(\d+) packets? dropped by kernel", report, re.MULTILINE)
    if lost is None:
        return f"tcpdump did not say how many packets it lost: {report.strip()}"
    return f"{lost[1]} packets lost" if int(lost[1]) else None
