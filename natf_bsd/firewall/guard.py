"""Sees to it that what a daemon set up stays in force: others flush tables, take devices down, change addresses.

A child process lists the state of the kernel while the loop goes on; only a repair, which is rare, is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from natf_bsd.errors import NatfError, RestartNeeded
from natf_bsd.firewall.installed import Installed
from natf_bsd.firewall.plan import Plan
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.loop import Loop, monotonic
from natf_bsd.ops.process import run_process
from natf_bsd.types import Address, parse_address

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks: each lists all rules of the host, some 10 ms on an ordinary one."""

SOON = 1.0
"""Seconds between two looks at the least, however often an alarm asks for one: strangers can set it off."""

Listing: TypeAlias = Mapping[str, tuple[str, ...]]
"""Lines of `Plan.look` by section."""

_SECTIONS = {
    "rules": "firewall rules of natf",
    "first": "which rule comes first in mangle OUTPUT",
    "nft": "natf's table of nftables, or conntrack's settings",
    "policy": "ip rule",
    "route": "route of the TUN device",
    "settings": "kernel settings",
    "device": "TUN device",
    "pf": "pf, which is now active on the outer interface (set skip on it, or packets go round for ever)",
}
_OTHERS = "others"
"""The section that tells one state of the rules that are not ours from another."""
_INET = re.compile(r"\binet (\d+\.\d+\.\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """`changed`: what is not as it was set up, in words. `address`: the outer interface's, None if it has none.
    `surroundings`: whether the rules that are not ours have changed."""

    changed: tuple[str, ...]
    address: Address | None
    surroundings: bool = False


def read(output: str) -> Listing:
    """The output of `Plan.look`: sections that start with a line "# name"."""
    sections: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in output.splitlines():
        if line.startswith("# "):
            name = line[2:]
            sections[name] = ()
        elif name and line.strip():
            sections[name] += (line.strip(),)
    return sections


def judge(expected: Listing, found: Listing, address: Address) -> Finding:
    """Compare two looks. An address that is still there among others has not changed."""
    changed = tuple(text for name, text in _SECTIONS.items() if expected.get(name, ()) != found.get(name, ()))
    there = [parse_address(match[1]) for line in found.get("address", ()) if (match := _INET.search(line))]
    surroundings = expected.get(_OTHERS, ()) != found.get(_OTHERS, ())
    return Finding(changed, address if address in there else next(iter(there), None), surroundings)


class Guarded(Protocol):
    """What is set up, as far as the guard needs it; see `platforms`."""

    interface: Interface

    def outer(self) -> Interface:
        """The outer interface as it is found now; NatfError if there is none."""

    def plan(self, interface: Interface) -> Plan:
        """For the interface as it is then. RestartNeeded: there is none with what has been opened."""

    def looked(self, found: Listing, now: float) -> None:
        """RestartNeeded as `plan`."""

    def next_look(self) -> float | None:
        """When it would have the next look at the latest, if it has a wish of its own."""


class Guard:
    """Looks every `interval` seconds, and `SOON` after the count `alarm` grew; applies the plan again when what it
    finds differs from what it found at first, right after the set-up. When only the rules of others differ, it asks
    whether ours still have their place. `moved` is called when the address was another one. NatfError if the first look
    fails.

    RestartNeeded is raised by `tick` or a reader once it was the answer twice: a firewall that is just being loaded has
    half of its rules.
    """

    def __init__(
        self,
        installed: Installed,
        side: Guarded,
        loop: Loop,
        *,
        alarm: Callable[[], int] = lambda: 0,
        moved: Callable[[], None] = lambda: None,
        interval: float = INTERVAL,
    ) -> None:
        self.interface = side.interface
        """The outer interface with the address it has now."""
        self._installed = installed
        self._side = side
        self._argv = side.plan(side.interface).look
        self._loop = loop
        self._alarm = alarm
        self._alarms = alarm()
        self._moved = moved
        self._interval = interval
        self._due = self._looked = 0.0
        self._without_address = False
        self._doubt: RestartNeeded | None = None
        self._failure = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._output = bytearray()
        self._counts: Counter[str] = Counter(dict.fromkeys(("looked", "healed", "failed"), 0))
        self._expected = self._look()

    @property
    def counters(self) -> dict[str, int]:
        """`looked`; `healed`: set-ups that somebody had changed, made again; `failed`: looks or repairs."""
        return dict(self._counts)

    def next_deadline(self) -> float:
        wish = self._side.next_look()
        if wish is None or wish <= self._looked:  # a look that did not give it what it wanted is no reason for more
            return self._due
        return min(self._due, max(wish, self._looked + SOON))

    def tick(self, now: float) -> None:
        if (alarms := self._alarm()) != self._alarms:
            self._alarms = alarms
            self._due = min(self._due, self._looked + SOON)
        if now >= self.next_deadline():
            self._due = now + self._interval
            self._looked = now
            self._start()

    def look_now(self) -> bool:
        """Look, and wait for what is found; whether anything had to be set up again. NatfError if it can't be seen or
        could not be, or if the daemon will end for it."""
        healed, failed = self._counts["healed"], self._counts["failed"]
        self.close()  # what a look under way has seen may be old by the time it is read
        self._see(self._look())
        if self._doubt is not None:
            raise NatfError(f"{self._doubt}; if it stays so, the daemon ends, for its supervisor to start it again")
        if self._counts["failed"] > failed:
            raise NatfError(self._failure)
        return self._counts["healed"] > healed

    def close(self) -> None:
        if (child := self._forget()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # a session of its own: what it started goes with it
            child.wait()

    def _look(self) -> Listing:
        done = run_process(self._argv, None)
        if done.status:
            raise NatfError(f"what is set up cannot be listed (status {done.status}): {done.stderr.strip()}")
        return read(done.stdout)

    def _start(self) -> None:
        if self._child is not None:
            self._fail("the look at the firewall did not end within %g s", self._interval)
            self.close()
        try:
            self._child = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            self._fail("no look at the firewall: %s", error.strerror)
            return
        self._output.clear()
        self._loop.add_reader(_stdout(self._child), self._read)

    def _read(self) -> None:
        """Called when there is something: a read that does not wait. Empty: the child has ended."""
        child = self._child
        if child is None:
            return
        if data := os.read(_stdout(child), 65536):
            self._output += data
            return
        self._forget()
        self._counts["looked"] += 1
        if status := child.wait():
            self._fail("what is set up cannot be listed (status %d)", status)
        else:
            self._see(read(self._output.decode(errors="replace")))

    def _forget(self) -> subprocess.Popen[bytes] | None:
        """Stop reading; returns the child, still to be waited for."""
        child, self._child = self._child, None
        if child is not None and child.stdout is not None:
            self._loop.remove_reader(child.stdout.fileno())
            child.stdout.close()
        return child

    def _see(self, found: Listing) -> None:
        try:
            self._side.looked(found, monotonic())
            self._compare(found)
        except RestartNeeded as error:
            if self._doubt is not None:
                raise
            self._doubt = error
            self._due = self._looked + SOON
            log.warning("%s; looking once more", error)
        else:
            self._doubt = None

    def _compare(self, found: Listing) -> None:
        finding = judge(self._expected, found, self.interface.address)
        if finding.address is None:
            self._ask_for_another()
        if finding.address is None and not self._without_address:
            log.warning("%s has no IPv4 address any more; waiting for one", self.interface.name)
        self._without_address = finding.address is None
        now = Interface(self.interface.name, finding.address or self.interface.address)
        causes = [f"changed by somebody: {', '.join(finding.changed)}"] if finding.changed else []
        if now != self.interface:
            causes.append(f"the address of {self.interface} is another one: {now}")
        if causes:
            self._heal(now, "; ".join(causes))
        elif finding.surroundings:
            self._fit(found)

    def _fit(self, found: Listing) -> None:
        """The rules of others have changed. Ours need not, if they would be put where they are."""
        try:
            self._side.plan(self.interface)
        except RestartNeeded:
            raise
        except NatfError as error:
            self._fail("the rules of others have changed: %s", error)
            return
        self._expected = {**self._expected, _OTHERS: found.get(_OTHERS, ())}

    def _ask_for_another(self) -> None:
        """A link that was dialled anew may come back by another name, if none is configured."""
        try:
            found = self._side.outer()
        except NatfError:
            return
        if found.name != self.interface.name:
            raise RestartNeeded(f"the outer interface is {found} now, no longer {self.interface.name}")

    def _heal(self, interface: Interface, why: str) -> None:
        moved = interface != self.interface
        try:
            self._installed.renew(self._side.plan(interface))
            found = self._look()
        except RestartNeeded:
            raise
        except NatfError as error:
            self._fail("%s; not set up again: %s", why, error)
            return
        if not moved and judge(self._expected, found, interface.address).changed:
            self._fail("%s; set up again, and changed again at once", why)
            return
        self.interface, self._expected = interface, found
        self._counts["healed"] += 1
        log.warning("%s; set up again", why)
        if moved:
            self._moved()

    def _fail(self, text: str, *arguments: object) -> None:
        self._counts["failed"] += 1
        self._failure = text % arguments
        log.error("%s", self._failure)


def _stdout(child: subprocess.Popen[bytes]) -> int:
    if child.stdout is None:
        raise TypeError("the child was made with a pipe")
    return child.stdout.fileno()
