"""Keeps libalias's clock going, which looks at the time only every so many packets (FREEBSD.md 4.5 and 13).

From FreeBSD 13 on, natd and `ipfw nat` sample the time at every packet_limit-th packet, 1000 at first and then a third
of the packets between two samples. On a quiet router the clock stands still; when it then jumps by more than a link's
timeout, the links in use die with the idle ones. What helps is packets: enough of them to force a sample.

How many are enough is not known, only bounded: the counter of the NAT's rule tells how many packets passed between two
looks at it. Let L be the bound on packet_limit at a look. If L packets pass after it, one of them is a packet_limit-th,
and it samples unless the last sample was in the same second: the clock is then less than a second behind that look. And
between two samples lie at most the packets of one second and packet_limit more.

In the kernel all instances of `ipfw nat`, those of other jails too, have one clock and one packet_limit: the bounds
hold if the instances that are not counted are quiet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from natf_bsd.natd_bridge.pseudo import CAPTURED_TTL, PSEUDO_IDENT
from natf_bsd.types import Address, Protocol
from natf_bsd.wire import build
from natf_bsd.wire.checksum import checksum

FIRST_LIMIT: Final = 1000
"""packet_limit of a NAT that has just started (alias_db.c:HouseKeeping)."""

LATEST: Final = 22.0
"""Seconds the clock may be behind at a look before a sample is forced: two quiet intervals, a second for which a sample
may be late, one to spare. It is never further behind than this, the time to the next look (10 s) and that of the
writing: 32 s in quiet. A UDP link lives for 60, so one that is used every 28 s is safe."""

QUIET_INTERVAL: Final = 10.0
BUSY_INTERVAL: Final = 2.0
"""Seconds between looks. All that is known of the packets between two is that they may have come in one second, so few
looks in traffic mean many packets written: where web pages are read three for four of others at 10 s, one for ten at
2 s."""

_BUSY: Final = 60.0
"""Seconds after traffic in which it may well come back."""

SILENCE: Final = 15.0
"""Seconds without a look at the counter after which a sample is forced on suspicion; with a fresh natd it was enough
(natd-time.jsonl)."""

BURST: Final = 64
"""Packets written at once. On the slowest machine seen, at 0.7 ms each, a request waits 45 ms behind them, of the 200
ms it has; and they leave room in natd's socket, which holds 863 (FREEBSD.md 1.3)."""

PATIENCE: Final = 1.0
"""Seconds for the NAT to pass `BURST` packets; then it does not run, or has lost some."""

REST: Final = 3
"""The next burst waits this many times as long as one took: three quarters of the time the NAT is for others."""

_BEFORE: Final = 40_000
"""The most packets supposed in one second before the first look: natd passed 39,577 (load.jsonl)."""

_SECOND: Final = 1.0
_MOST_LOOKS: Final = 16
_UNASSIGNED_TYPE: Final = 44  # libalias lets types it does not know pass as they are
_MESSAGE: Final = struct.Struct("!BBHI")
_CHECKSUM: Final = 10  # where it begins in an IPv4 header, and where it ends
_BEHIND: Final = 12


def needs_keep_alive(osreldate: int) -> bool:
    """Whether libalias of the release with this `kern.osreldate` samples its clock: 12 asks for every packet."""
    return osreldate >= 1_300_000


@dataclass(frozen=True, slots=True)
class _Look:
    """The counter at one look. Bounds: `packets` of the NAT since the look before, `made` on any packet_limit set since
    then, `limit` on packet_limit now.
    """

    at: float
    total: int
    packets: int
    made: int
    limit: int


class KeepAlive:
    """Decides how many marked packets the NAT must be given, and when. `now` is monotonic time.

    The packets go from `source` to `destination`, the NAT's outer address and one that is routed through the NAT: they
    look like pseudo-packets to the capture rule, and the NAT leaves them as they are.
    """

    def __init__(self, source: Address, destination: Address, now: float) -> None:
        blank = _MESSAGE.pack(_UNASSIGNED_TYPE, 0, 0, PSEUDO_IDENT)
        message = _MESSAGE.pack(_UNASSIGNED_TYPE, 0, checksum(blank), PSEUDO_IDENT)
        self.packet = bytes(
            build.ipv4(Protocol.ICMP, source, destination, message, ttl=CAPTURED_TTL, ident=PSEUDO_IDENT)
        )
        self.forced = 0
        """How often as many packets were passed by the NAT as force a sample."""
        self._looks: list[_Look] = []
        self._sampled_at = self._busy_at = -float("inf")
        self._silent_at = now + SILENCE
        self._anew = False
        self._left = 0
        self._flying = 0
        self._burst_at: float | None = None
        self._ready_at = now

    @property
    def limit(self) -> int:
        """The largest that packet_limit may be, as far as is known."""
        return self._looks[-1].limit if self._looks else FIRST_LIMIT

    def is_ours(self, data: bytes | bytearray) -> bool:
        """Whether captured `data` is a keep-alive packet; its header checksum is the kernel's."""
        return data[:_CHECKSUM] == self.packet[:_CHECKSUM] and data[_BEHIND:] == self.packet[_BEHIND:]

    def note_packets(self, total: int, now: float) -> None:
        """At `now` the counters of the NAT's rules (all of them, if several lead to it) add up to `total` packets.

        A look sooner than a second after the one before is not taken: the bounds think in seconds.
        """
        if self._looks and now - self._looks[-1].at < _SECOND:
            return
        if not self._looks:
            # The NAT may be older than we are. A third of what one second held and packet_limit more is the next
            # packet_limit: so it is never above its first value and above half of what a second held.
            known = min(total, _BEFORE)
            limit = max(FIRST_LIMIT, known // 2)
            self._looks.append(_Look(now, total, known, limit, limit))
        else:
            self._look(total, now)
        self._silent_at = now + SILENCE
        if self._looks[-1].packets > BURST:
            self._busy_at = now
        if now - self._sampled_at > LATEST:
            self._force()

    def next_look(self) -> float:
        """When `note_packets` should be called next."""
        if not self._looks:
            return self._ready_at
        at = self._looks[-1].at
        return at + (BUSY_INTERVAL if at - self._busy_at < _BUSY else QUIET_INTERVAL)

    def note_restart(self) -> None:
        """natd is another process since the last look: its clock is right, and its packet_limit the first one."""
        if self._looks:
            last = self._looks[-1]
            self._looks = [_Look(last.at, last.total, 0, FIRST_LIMIT, FIRST_LIMIT)]
            self._anew = True

    def note_captured(self, number: int) -> None:
        """`number` keep-alive packets came back."""
        self._flying = max(0, self._flying - number)

    def take(self, now: float) -> int:
        """How many packets are to be written now; they count as written."""
        if now >= self._silent_at:
            self._silent_at = now + SILENCE
            self._force()
        if self._burst_at is not None and not self._ended(self._burst_at, now):
            return 0
        if not self._left or now < self._ready_at:
            return 0
        self._flying = min(self._left, BURST)
        self._left -= self._flying
        self._burst_at = now
        return self._flying

    def next_deadline(self) -> float:
        """When `take` has something to do."""
        if self._burst_at is not None:
            return self._burst_at + (PATIENCE if self._flying else 0.0)
        return self._ready_at if self._left else self._silent_at

    def _force(self) -> None:
        if self._burst_at is None and not self._left:
            self._left = self.limit

    def _ended(self, began: float, now: float) -> bool:
        """Whether the last burst is over: all of it came back, or too much time has passed."""
        if self._flying and now < began + PATIENCE:
            return False
        if self._flying:
            # What the rule counts the NAT may not have seen. No use in more of it now.
            self._anew = True
            self._left = self._flying = 0
        elif not self._left:
            self.forced += 1
        self._ready_at = now + REST * (now - began)
        self._burst_at = None
        return True

    def _look(self, total: int, now: float) -> None:
        last = self._looks[-1]
        packets = total - last.total if total >= last.total else total  # less: the counter began anew
        # Most packets of one second, which may lie in two windows; that of the last sample lies in those kept. From
        # there to the next sample pass these and packet_limit more, from any later one in this window fewer.
        busiest = max(map(sum, pairwise([*(look.packets for look in self._looks), packets])))
        made = max(1, (busiest + last.limit) // 3)
        look = _Look(now, total, packets, made, max(last.limit, made))
        if self._anew:
            # What was counted so far proves nothing, but keeps the bounds as large as it made them.
            self._anew = False
            self._looks = [replace(look, packets=busiest, made=look.limit)]
        else:
            self._looks.append(look)
            self._settle()

    def _settle(self) -> None:
        """Find the latest look since which a sample is certain: what was before it plays no part any more."""
        looks = self._looks
        newest = looks[-1]
        for at in reversed(range(len(looks) - 1)):
            if newest.total - looks[at].total >= looks[at].limit:
                del looks[:at]
                # The last sample may be from the second before that look, and so be in its window.
                looks[-1] = replace(newest, limit=max(look.made for look in looks))
                self._sampled_at = looks[0].at - _SECOND
                break
        if len(looks) > _MOST_LOOKS:
            first, second = looks[:2]
            looks[:2] = [replace(second, packets=first.packets + second.packets)]
