"""FreeBSD: packets of our own making, written to a divert socket so that they go on at a rule of our choice.

A raw socket's packets would meet every rule, natd's among them (FREEBSD.md 3); these meet those behind `after_rule`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from natf_bsd.divert.divert4 import DivertBackend, DivertWriter, own_packet
from natf_bsd.divert.sockaddr import NAME_MAXIMUM, NO_ADDRESS
from natf_bsd.types import Address, Direction, Packet, Protocol
from natf_bsd.wire import build, message
from natf_bsd.wire import packet as wire

_DNS: Final = 53
_ECHO_REPLY: Final = 0
_ICMP_HEADER: Final = 8


class OwnPackets:
    """Writes whole packets in one direction. Incoming ones come in by the interface with this name and address: where
    the name is too long for the kernel, the address tells."""

    def __init__(
        self,
        writer: DivertWriter,
        direction: Direction,
        *,
        after_rule: int,
        interface: str = "",
        address: Callable[[], Address] = lambda: NO_ADDRESS,
    ) -> None:
        self._writer = writer
        self._direction = direction
        self._after_rule = after_rule
        self._interface = interface if len(interface) <= NAME_MAXIMUM else ""
        self._address = address

    def send(self, data: bytes) -> None:
        address = NO_ADDRESS if self._direction is Direction.OUT else self._address()
        self._writer.send(
            own_packet(data, self._direction, after_rule=self._after_rule, interface=self._interface, address=address)
        )

    def close(self) -> None:
        self._writer.close()

    @property
    def counters(self) -> dict[str, int]:
        return self._writer.counters


class ProgramPackets:
    """To this host's own programs: `errors` come in as if from outside, answers of DNS servers by the loopback
    interface. The queries did not get as far as the site's rule that would have opened its firewall for an answer; on
    lo0 all firewalls let pass what there is.
    """

    def __init__(self, errors: OwnPackets, answers: OwnPackets) -> None:
        self._errors = errors
        self._answers = answers

    def send(self, data: bytes) -> None:
        flow = wire.flow_of(data)
        is_answer = flow is not None and flow.protocol == Protocol.UDP and flow.source.port == _DNS
        (self._answers if is_answer else self._errors).send(data)

    @property
    def counters(self) -> dict[str, int]:
        return self._errors.counters


class DivertedControl:
    """The external node's end of the control channel: requests written behind the NAT's rule, echo replies diverted
    before it (FREEBSD.md 11, private to private). Replies that are not NAT-f's go on to the kernel as they came.

    `address` is G1, the source of requests.
    """

    def __init__(self, replies: DivertBackend, out: OwnPackets, address: Callable[[], Address]) -> None:
        self._replies = replies
        self._out = out
        self._address = address
        self._counters = Counter({"received": 0, "passed": 0})

    def fileno(self) -> int:
        return self._replies.fileno()

    def send(self, router: Address, message: bytes) -> None:
        """Send `message`, from its ICMP type byte and with its checksum. Refusals are counted, not raised."""
        self._out.send(bytes(build.ipv4(Protocol.ICMP, self._address(), router, message)))

    def waiting(self, limit: int = 64) -> Iterator[tuple[Address, bytes]]:
        """Source address and ICMP message of NAT-f's replies that wait, at most `limit`. Never blocks."""
        for packet in self._replies.receive(limit):
            if is_ours(packet):
                self._replies.drop(packet)
                self._counters["received"] += 1
                yield wire.source(packet.data), bytes(packet.data[wire.header_length(packet.data) :])
            else:
                self._replies.send(packet)
                self._counters["passed"] += 1

    @property
    def counters(self) -> dict[str, int]:
        """`received`: NAT-f's replies, `passed`: others, handed back; and what was written."""
        return dict(self._counters) | self._out.counters


def is_ours(packet: Packet) -> bool:
    """Whether it is an echo reply that carries NAT-f's magic: an answer, or the mirror of a request of ours."""
    data = packet.data
    at = wire.header_length(data)
    if (
        wire.protocol(data) != Protocol.ICMP
        or wire.is_later_fragment(data)
        or data[at : at + 1] != bytes([_ECHO_REPLY])
    ):
        return False
    return message.is_natf(data[at + _ICMP_HEADER :])
