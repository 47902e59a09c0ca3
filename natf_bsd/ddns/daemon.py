"""Follows the outer interface's address and keeps the home's records at it, until it is told to stop.

It changes nothing on this host, and the router needs nothing of it.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
from collections.abc import Callable
from typing import Final

from natf_bsd.config import DdnsConfig
from natf_bsd.ddns import update
from natf_bsd.ddns.update import UpdateFailed
from natf_bsd.errors import NatfError
from natf_bsd.ops import interfaces
from natf_bsd.ops.loop import Loop, monotonic
from natf_bsd.types import Address, format_address

log = logging.getLogger(__name__)

LOOK: Final = 10.0
"""Seconds between two looks at the interface."""

CONFIRM: Final = 900.0
"""Seconds after which the server is asked whether the records still are what they should be."""

LONGEST_PAUSE: Final = 600.0
"""Seconds between two tries at the most; the pause doubles from `LOOK`."""

_NOT_PUBLIC: Final = [
    ipaddress.IPv4Network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8")
]


def public_address(config: DdnsConfig, outer: Callable[[str | None], interfaces.Interface]) -> Address:
    """The address the records should have; NatfError where there is none, or it is of no use to anybody outside."""
    interface = outer(config.interface)
    found = ipaddress.IPv4Address(interface.address)
    if not config.allow_private and any(found in network for network in _NOT_PUBLIC):
        raise NatfError(
            f"{interface} is a private address: this router is behind another NAT, and nobody outside reaches it; "
            "expected a public one (allow_private = true in [ddns] for a network of your own)"
        )
    return interface.address


def bring_up_to_date(config: DdnsConfig, address: Address) -> bool:
    """Whether the server had other records, and was told. UpdateFailed."""
    wanted = [format_address(address)]
    if all(found == wanted for found in update.addresses(config).values()):
        return False
    update.put(config, address)
    return True


class DdnsDaemon:
    """Runs until SIGTERM or SIGINT. `outer` tells the outer interface."""

    def __init__(
        self,
        config: DdnsConfig,
        outer: Callable[[str | None], interfaces.Interface] = interfaces.outer_interface,
    ) -> None:
        self._config = config
        self._outer = outer
        self._due = monotonic()
        self._confirmed: tuple[Address, float] | None = None
        """What the server is known to have, and when it was asked."""
        self._failed: Address | None = None
        """What the server did not take, to be tried again at a time."""
        self._retry_at = self._pause = 0.0
        self._said = ""

    def run(self) -> None:
        loop = Loop(lambda: self._due, self.tick)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.on_signal(number, loop.stop)
        log.info("keeps %s at this router's address", ", ".join(self._config.names))
        try:
            loop.run()
        finally:
            loop.close()

    def tick(self, now: float) -> None:
        """One look, and what follows from it."""
        self._due = now + LOOK
        try:
            self._look(now)
        except NatfError as error:
            self._say(str(error))

    def _look(self, now: float) -> None:
        address = public_address(self._config, self._outer)
        known, asked = self._confirmed or (None, 0.0)
        if address == known and now < asked + CONFIRM:
            return
        if address == self._failed and now < self._retry_at:
            return
        try:
            changed = bring_up_to_date(self._config, address)
        except UpdateFailed:
            again = address == self._failed
            self._pause = min(2 * self._pause, LONGEST_PAUSE) if again else LOOK
            self._failed, self._retry_at = address, now + self._pause
            raise
        self._confirmed, self._failed, self._said = (address, now), None, ""
        if changed or known is None:
            done = "are now" if changed else "were already"
            log.info("%s %s %s", ", ".join(self._config.names), done, format_address(address))

    def _say(self, text: str) -> None:
        """Each trouble once, until it is over."""
        if text != self._said:
            log.error("%s", text)
            self._said = text
