"""What the router's core needs of a NAT, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from natf_bsd.natd_bridge.pseudo import PseudoStyle
from natf_bsd.types import Flow


class NatBridge(Protocol):
    """Passes pseudo-packets through a NAT and gives back what comes out.

    The NAT is not asked: natd has no control channel, and whatever it decides shows in the packet [3.2]. A
    pseudo-packet that does not come back is the NAT's refusal; the core waits no longer than it likes and may repeat
    it, which gives the same mapping. Nothing that is written or read here ever leaves the host.
    """

    @property
    def name(self) -> str:
        """For status and logs: "netfilter", "natd", ..."""

    @property
    def style(self) -> PseudoStyle:
        """How pseudo-packets for this NAT are to be built."""

    def fileno(self) -> int | None:
        """A descriptor that polls readable while `captured` has something; None if it has after `write` only."""

    def write(self, data: bytes) -> None:
        """Hand a pseudo-packet to the NAT. What the system refuses is counted, not raised: the core tries again."""

    def captured(self) -> Iterable[bytes]:
        """Packets that came out of the NAT; for `pseudo.parse_captured`. Never blocks. They may be read one by one."""

    def forget(self, inside: Flow) -> None:
        """Let the NAT forget its mapping of `inside` (P1:d -> G1:s), where it can be told to: it is at an address that
        this router had before. natd does so by itself when its address changes (-dynamic).
        """

    def lifetime(self, protocol: int) -> int:
        """Seconds an unused mapping of an established flow is good for, as announced to external nodes."""

    def next_deadline(self) -> float | None:
        """When `tick` has something to do (monotonic seconds), None if never."""

    def tick(self, now: float) -> None:
        """What the NAT needs from time to time to work as it should."""

    def close(self) -> None:
        """Let go of the NAT; its mappings stay. Idempotent."""

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far."""
