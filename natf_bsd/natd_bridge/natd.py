"""Bridge to natd and to in-kernel `ipfw nat` on FreeBSD: pseudo-packets by divert(4) (FREEBSD.md 3.1 to 3.3).

Written just before the NAT's rule, they are routed out by its interface, meet the NAT, and are taken out again by the
capture rule behind it: what the router's ipfw rules are for. The same way go the packets that keep the NAT's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from natf_bsd.divert.divert4 import DivertBackend, own_packet
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.clock import BURST, KeepAlive
from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE, PseudoStyle
from natf_bsd.types import Direction, Flow, Packet, Protocol

_BATCH: Final = BURST
"""Packets read at once: a burst of keep-alive packets is over in one reading."""

# alias_db.h, the same in all releases (FREEBSD.md 4.2), and the paper's [4]. TCP has 86,400 s from the real SYN on.
_LIFETIMES: Final = {int(Protocol.UDP): 60, int(Protocol.TCP): 86_400}


class NatdBridge:
    """A NAT between our writes and the capture rule.

    `capture` is open on the port of that rule, for outgoing packets, and closed with the bridge. `pseudo_after` is the
    number before that of the NAT's rule, `received_on` the interface it asks for by `recv`, if it does. `kind` is
    "natd" or "ipfw nat". `keep_alive` None: this NAT asks for the time itself. `precise` is a clock for durations.
    """

    style: PseudoStyle = LIBALIAS_STYLE

    def __init__(
        self,
        capture: DivertBackend,
        pseudo_after: int,
        received_on: str | None,
        kind: str,
        keep_alive: KeepAlive | None,
        precise: Callable[[], float],
    ) -> None:
        self.name = kind
        self._capture = capture
        self._after = pseudo_after
        self._received_on = received_on or ""
        self._keep_alive = keep_alive
        self._precise = precise
        self._spent = 0.0
        names = ("written", "captured", "foreign", "keep_alive_written", "keep_alive_captured")
        self._counters: Counter[str] = Counter(dict.fromkeys(names, 0))

    def fileno(self) -> int:
        return self._capture.fileno()

    def write(self, data: bytes) -> None:
        self._capture.send(self._own(data))
        self._counters["written"] += 1

    def captured(self) -> list[bytes]:
        found: list[bytes] = []
        for packet in self._read_others():
            if pseudo.parse_captured(packet.data) is None:
                # Somebody else's packet with the marks by chance: it goes on as if nothing had been.
                self._capture.send(packet)
                self._counters["foreign"] += 1
            else:
                self._capture.drop(packet)
                found.append(bytes(packet.data))
        self._counters["captured"] += len(found)
        return found

    def forget(self, inside: Flow) -> None:
        return

    def lifetime(self, protocol: int) -> int:
        """libalias's own timeouts, which nobody can change."""
        return _LIFETIMES[protocol]

    def next_deadline(self) -> float | None:
        return None if self._keep_alive is None else self._keep_alive.next_deadline()

    def tick(self, now: float) -> None:
        keep_alive = self._keep_alive
        number = 0 if keep_alive is None else keep_alive.take(now)
        if keep_alive is None or not number:
            return
        began = self._precise()
        packet = self._own(keep_alive.packet)
        for _ in range(number):
            self._capture.send(packet)
        self._counters["keep_alive_written"] += number
        self._spent += self._precise() - began

    def close(self) -> None:
        self._capture.close()

    @property
    def counters(self) -> dict[str, int]:
        """`written` to the NAT; `captured` behind it; `foreign`: packets of others that bear the marks by chance, put
        back. `keep_alive_written`, `keep_alive_captured`, the `keep_alive_ms` they took of this process, and
        `samples_forced` of the NAT's clock. The rest is the divert socket's, what the kernel refused included.
        """
        samples = 0 if self._keep_alive is None else self._keep_alive.forced
        own = {**self._counters, "keep_alive_ms": round(self._spent * 1000), "samples_forced": samples}
        return {**self._capture.counters, **own}

    def _own(self, data: bytes) -> Packet:
        return own_packet(data, Direction.OUT, after_rule=self._after, interface=self._received_on)

    def _read_others(self) -> list[Packet]:
        """What waits on the capture socket, without keep-alive packets: those are counted and dropped."""
        keep_alive = self._keep_alive
        began = self._precise()
        packets = list(self._capture.receive(_BATCH))
        if keep_alive is None or not packets:
            return packets
        others = []
        for packet in packets:
            if keep_alive.is_ours(packet.data):
                self._capture.drop(packet)
            else:
                others.append(packet)
        number = len(packets) - len(others)
        keep_alive.note_captured(number)
        self._counters["keep_alive_captured"] += number
        self._spent += (self._precise() - began) * number / len(packets)
        return others
