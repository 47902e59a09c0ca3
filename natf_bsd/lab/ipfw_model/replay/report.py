"""What the replays have in common: the report, the recorded router, packets that were cut."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from natf_bsd.lab.ipfw_model.fragments import set_header_sum
from natf_bsd.lab.ipfw_model.host import Host, interface, pseudo_sum
from natf_bsd.lab.ipfw_model.sockets import AF_DIVERT, SOCK_RAW
from natf_bsd.types import Protocol
from natf_bsd.wire import packet
from natf_bsd.wire.checksum import checksum

Event = dict[str, Any]
"""One line of a recording."""

_LARGEST = 65535
_SUM_AT = {int(Protocol.TCP): 16, int(Protocol.UDP): 6, int(Protocol.ICMP): 2}


@dataclass(slots=True)
class Report:
    """Which events came out the same. `left_out` counts those not compared, by reason."""

    events: int = 0
    same: int = 0
    differences: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def compare(self, what: str, found: object, recorded: object) -> None:
        """One event; `found` is the model's, equal or not."""
        self.events += 1
        if found == recorded:
            self.same += 1
        else:
            self.differences.append(f"{what}\n  recorded {recorded}\n  model    {found}")

    def leave_out(self, reason: str) -> None:
        self.events += 1
        self.left_out[reason] += 1


class Drawn(random.Random):
    """Draws what the recorded libalias drew, so that random ports can be compared."""

    value = 0

    def randint(self, a: int, b: int) -> int:
        return self.value


def recorded_router(*, forwarding: bool = True) -> Host:
    """The router of en/router/alice, with the additional links of divert-addresses."""
    return Host(
        [
            interface("epair0b", "203.0.113.1"),
            interface("epair1a", "192.168.0.1"),
            interface("epair2b"),
            interface("wanport0", "198.51.100.1"),
            interface("wanport", "198.51.101.1"),
        ],
        forwarding=forwarding,
    )


def divert_socket(host: Host, port: int | None = None) -> int:
    """A descriptor; bound if a port is given."""
    descriptor = host.sockets.socket(AF_DIVERT, SOCK_RAW, 0)
    if port is not None:
        host.sockets.bind(descriptor, bytes([16, 2]) + port.to_bytes(2, "big") + bytes(12))
    return descriptor


def read_all(host: Host, descriptor: int) -> Iterator[tuple[bytes, bytes]]:
    """All packets that wait, with their sockaddr_in."""
    while True:
        try:
            yield host.sockets.recvfrom(descriptor, _LARGEST)
        except BlockingIOError:
            return


def configure(host: Host, *lines: str) -> None:
    """Run `ipfw -q` with each line; ValueError if it does not accept one."""
    for line in lines:
        status, _, stderr = host.ipfw(["ipfw", "-q", *line.split()])
        if status:
            raise ValueError(f"{line}: {stderr}")


def with_header_sum(data: bytes | bytearray) -> bytes:
    """The packet as a wire carries it."""
    changed = bytearray(data)
    set_header_sum(changed)
    return bytes(changed)


def delayed(data: bytes | bytearray) -> tuple[bytearray, bool]:
    """A local packet as it was before its L4 checksum was computed, and whether there was one to compute."""
    changed = bytearray(data)
    at = _sum_at(changed)
    if at is None or changed[9] == Protocol.ICMP:
        return changed, False
    struct.pack_into("!H", changed, at, pseudo_sum(changed))
    return changed, True


def completed(packet_hex: str, length: int | None, tail: bytes = b"") -> bytes:
    """A packet that the recorder cut, made up to `length` with its last byte, and one word that makes its L4 checksum
    right. What lay at its end may be given as `tail`."""
    data = bytearray.fromhex(packet_hex)
    size = len(data)
    if length is None or length <= size:
        return bytes(data)
    data += data[-1:] * (length - size - len(tail)) + tail
    at = _sum_at(data)
    if at is None or data[6] & 0x20 or length - size < 4:
        return bytes(data)
    start = packet.header_length(data)
    hole = size + (size - start) % 2
    struct.pack_into("!H", data, hole, 0)
    changed = bytearray(data)
    wanted = int.from_bytes(changed[at : at + 2], "big")
    is_icmp = changed[9] == Protocol.ICMP
    struct.pack_into("!H", changed, at, 0 if is_icmp else pseudo_sum(changed))
    # With one word still zero the sum lacks just that word.
    missing = checksum(changed[start:]) + (wanted ^ 0xFFFF)
    struct.pack_into("!H", data, hole, (missing & 0xFFFF) + (missing >> 16))
    return bytes(data)


def _sum_at(data: bytearray) -> int | None:
    offset = _SUM_AT.get(data[9])
    if offset is None or packet.is_later_fragment(data):
        return None
    at = packet.header_length(data) + offset
    return at if at + 2 <= len(data) else None


def fixed_ident(idents: list[int]) -> Callable[[], int]:
    """IP ids for packets of the kernel's own: those that were recorded, in order."""
    left = iter(idents)
    return lambda: next(left, 0)
