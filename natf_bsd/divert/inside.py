"""Linux: the two ends of an external node's way for inside hosts (private to private), as backends of `Divert`.

The host's own NAT stands between the inside host and us: what leaves by the TUN device has its source translated, what
we write to it gets the inside host's address back.

    inside host P1:s -> V1:d   SNAT   G1:s -> V1:d   TUN, `FromInside`   G1:s -> G2:m   raw socket -> wire
    inside host P1:s <- V1:d   NAT    G1:s <- V1:d   TUN, `ToInside`     G1:s <- G2:m   NFQUEUE    <- wire

The rules that lead packets here are `firewall.linux_gateway`'s; `platforms.linux` joins both. No byte is added to a
packet: the device is a way to meet NAT first, not a tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

from natf_bsd.divert.fragments import Fragments
from natf_bsd.divert.handle import Backend
from natf_bsd.divert.inject import Injector
from natf_bsd.divert.tun import TunDevice
from natf_bsd.types import Address, Direction, Packet, Protocol
from natf_bsd.wire import build
from natf_bsd.wire import packet as wire

_IPV4: Final = 4
_HEADER: Final = 20
_HOST_PROHIBITED: Final = 10  # RFC 1122 section 3.2.2.1; code 1 Linux does not tell UDP sockets
_BEHIND: Final = 8 << 20
"""Bytes of later fragments that may wait with the first ones: those are counted by number, as if they were all."""


class TunInjector:
    """Errors to inside hosts: whole packets from a virtual address, which the NAT passes on to where they belong."""

    def __init__(self, tun: TunDevice) -> None:
        self._tun = tun
        self._sent = self._refused = 0

    def send(self, data: bytes | bytearray) -> None:
        if self._tun.write(data):
            self._sent += 1
        else:
            self._refused += 1

    @property
    def counters(self) -> dict[str, int]:
        """`sent`, and `refused` (interface down, no memory)."""
        return {"sent": self._sent, "refused": self._refused}


class FromInside:
    """A backend: packets to the /8 of the octet `prefix` come out of `tun`, whose name is `interface`, and go on by the
    raw socket `out`, whose mark tells the answers. Closes both.

    `source` is what the NAT makes of every source. Another one was not translated: somebody has flushed the NAT's
    rules, and conntrack then lets such a flow through as it is for as long as it lasts. It must not leave the host, and
    is answered with an error.

    The kernel cuts a large datagram for the device. Its first fragment is the packet; the others follow it.
    """

    def __init__(self, tun: TunDevice, interface: str, prefix: int, out: Injector, source: Address) -> None:
        self.source = source
        self._tun = tun
        self._interface = interface
        self._prefix = prefix
        self._out = out
        self._fragments = Fragments()
        self._behind = 0
        self._received = self._dropped = self._foreign = self._untranslated = self._no_room = 0

    def fileno(self) -> int:
        return self._tun.fileno()

    def receive(self, limit: int) -> list[Packet]:
        read = list(self._tun.waiting(limit))
        ours = [data for data in read if self._is_ours(data)]
        self._foreign += len(read) - len(ours)
        translated = [data for data in ours if self._is_translated(data)]
        whole = [parts for parts in map(self._fragments.take, translated) if parts]
        found = [self._packet(parts) for parts in whole if self._has_room(parts)]
        self._received += len(found)
        return found

    def _is_translated(self, data: bytes) -> bool:
        """Counts what is not, and tells its sender."""
        if wire.source(data) == self.source:
            return True
        self._untranslated += 1
        if data[9] != Protocol.ICMP and not wire.is_later_fragment(data):
            self._tun.write(build.unreachable_for(data, code=_HOST_PROHIBITED, source=wire.destination(data)))
        return False

    def _has_room(self, parts: list[bytes]) -> bool:
        behind = self._behind + sum(map(len, parts[1:]))
        if behind > _BEHIND:
            self._no_room += 1
            return False
        self._behind = behind
        return True

    def _packet(self, parts: list[bytes]) -> Packet:
        return Packet(bytearray(parts[0]), Direction.OUT, self._interface, token=parts[1:])

    def send(self, packet: Packet) -> None:
        self._out.send(packet.data)
        for part in self._let_go(packet):
            # The raw socket makes the header's checksum.
            self._out.send(part[:12] + packet.data[12:20] + part[20:])

    def drop(self, packet: Packet) -> None:
        self._let_go(packet)
        self._dropped += 1

    def _let_go(self, packet: Packet) -> list[bytes]:
        """The later fragments."""
        parts = cast("list[bytes]", packet.token)
        self._behind -= sum(map(len, parts))
        return parts

    def close(self) -> None:
        self._tun.close()
        self._out.close()

    @property
    def counters(self) -> dict[str, int]:
        """`received`, `dropped` by us, `foreign` (what the host itself says on any interface), `untranslated` (from
        another source), `incomplete` (datagrams whose fragments did not all come, or too many), `no_room` (for
        their later fragments); of the raw socket, `sent` and what the network refused."""
        own = {"received": self._received, "dropped": self._dropped, "foreign": self._foreign}
        own |= {"untranslated": self._untranslated, "incomplete": self._fragments.lost, "no_room": self._no_room}
        return own | self._out.counters

    def _is_ours(self, data: bytes) -> bool:
        return len(data) >= _HEADER and data[0] >> 4 == _IPV4 and data[16] == self._prefix


class ToInside:
    """A backend: takes packets from `queue`, and gives them back to `tun` in its place."""

    def __init__(self, queue: Backend, tun: TunInjector) -> None:
        self._queue = queue
        self._tun = tun

    def fileno(self) -> int:
        return self._queue.fileno()

    def receive(self, limit: int) -> Iterable[Packet]:
        return self._queue.receive(limit)

    def send(self, packet: Packet) -> None:
        self._queue.drop(packet)
        self._tun.send(packet.data)

    def drop(self, packet: Packet) -> None:
        self._queue.drop(packet)

    def close(self) -> None:
        self._queue.close()

    @property
    def counters(self) -> dict[str, int]:
        """Those of the queue, where `dropped` is all; of these were `sent` by the device, or `refused` by it."""
        return self._queue.counters | self._tun.counters
