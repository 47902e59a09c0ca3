"""What differs between systems, behind one interface: where packets are taken out and put back, by which rules, and
the way through the NAT.

`this_platform` chooses. `linux` and `freebsd` join the parts of divert/, natd_bridge/ and firewall/ of their system;
the daemons know neither.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.datapath import KernelPath
from natf_bsd.divert import Divert
from natf_bsd.errors import NatfError
from natf_bsd.firewall.guard import Listing
from natf_bsd.firewall.plan import Plan, Remains
from natf_bsd.firewall.runner import KernelSettings
from natf_bsd.natd_bridge.bridge import NatBridge
from natf_bsd.ops.interfaces import Interface
from natf_bsd.types import Address


class Injector(Protocol):
    """Sends whole packets of our own making to where the role's go: an external node's to its own programs, a router's
    to external nodes. What the network refuses is counted, not raised."""

    def send(self, data: bytes) -> None: ...

    @property
    def counters(self) -> dict[str, int]: ...


class ControlChannel(Protocol):
    """The external node's end of the control channel: ICMP messages from their type byte."""

    def fileno(self) -> int: ...

    def send(self, router: Address, message: bytes) -> None:
        """What the network refuses is counted, not raised."""

    def waiting(self, limit: int = ...) -> Iterable[tuple[Address, bytes]]:
        """Source address and message of the echo replies that wait, at most `limit`; never blocks. They may be read one
        by one, each when the one before has been dealt with."""

    @property
    def counters(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Way:
    """To and from those who use virtual addresses. `out`: what they send there; `inward`: what comes for them from
    routers that have mappings; `injector`: packets of ours to them."""

    out: Divert
    inward: Divert
    injector: Injector
    kernel: KernelPath | None = None
    """Where the kernel translates flows once they are handed over."""


@dataclass(frozen=True, slots=True)
class EnPorts:
    """An external node's ways to the kernel. `dns`: look-ups, queries and answers; `own`: this host's programs, and
    whoever else is not told apart from them; `outward`: packets of ours that take the way of programs' own; `inside`:
    the hosts behind this one, where that is a way of its own."""

    dns: tuple[Divert, ...]
    own: Way
    outward: Injector
    control: ControlChannel
    inside: Way | None = None

    @property
    def ways(self) -> tuple[Way, ...]:
        return (self.own,) if self.inside is None else (self.own, self.inside)


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """A router's ways to the kernel: `control` has the echo requests for it, `bridge` leads through its NAT."""

    control: Divert
    injector: Injector
    bridge: NatBridge


class EnSide(Protocol):
    """An external node on this system. `inbound_exact`, `heeds_unreachable`: see `EnCore`."""

    interface: Interface
    """The outer one, as it was found."""
    inbound_exact: bool
    heeds_unreachable: bool

    def outer(self) -> Interface:
        """The outer interface as it is found now; NatfError if there is none."""

    def open(self, stack: ExitStack) -> EnPorts:
        """Take the ports; they are given up when `stack` ends. NatfError says who holds one or what is missing."""

    def plan(self, interface: Interface) -> Plan:
        """What is to be in force with the outer interface as it is now. RestartNeeded: not with the ports opened."""

    def admit(self, routers: Collection[Address]) -> None:
        """See to it that packets of these routers come to `inward` from now on."""

    def keep(self, routers: Collection[Address]) -> None:
        """As `admit`, and no others any more."""

    def forget_rewritten(self, routers: Collection[Address]) -> None:
        """Let the kernel forget flows with these routers that the daemon has rewritten itself: they would be in the way
        of those that the kernel translates. OSError if some may be left."""

    def looked(self, found: Listing, now: float) -> None:
        """What `Plan.look` has found in force."""

    def next_look(self) -> float | None:
        """When there should be another look at the latest; None: as often as there is one anyway."""


class RouterSide(Protocol):
    """A NAT-f router on this system."""

    interface: Interface
    """The outer one, as it was found."""
    proof: tuple[Address, Address]
    """From where to where the pseudo-packet that proves the NAT pretends to go: from an address the NAT translates, and
    by the outer interface, were it let out."""
    hint: str
    """What to look at when the NAT does not give a pseudo-packet back."""

    def outer(self) -> Interface:
        """As `EnSide.outer`."""

    def open(self, stack: ExitStack) -> RouterPorts:
        """As `EnSide.open`."""

    def plan(self, interface: Interface) -> Plan:
        """As `EnSide.plan`."""

    def looked(self, found: Listing, now: float) -> None:
        """As `EnSide.looked`."""

    def next_look(self) -> float | None:
        """As `EnSide.next_look`."""


class Platform(Protocol):
    """One system."""

    @property
    def settings(self) -> KernelSettings: ...

    def external_node(self, config: EnConfig) -> EnSide:
        """NatfError says why there can be none here."""

    def router(self, config: RouterConfig) -> RouterSide:
        """NatfError says why there can be none here."""

    def remains(self, role: str, config: Config) -> Remains:
        """What a killed daemon of `role` ("en", "router") may have left."""


def this_platform() -> Platform:
    """The platform of the system we run on; NatfError on any other than FreeBSD and Linux."""
    if sys.platform == "linux":
        from natf_bsd.platforms.linux import Linux

        return Linux()
    if sys.platform.startswith("freebsd"):
        from natf_bsd.platforms.freebsd import FreeBsd

        return FreeBsd()
    raise NatfError(f"natf runs on FreeBSD and Linux, not on {sys.platform}")
