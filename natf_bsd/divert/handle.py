"""`Divert`, the handle everything above divert/ works with, and the protocol its backends keep."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from natf_bsd.errors import NatfError
from natf_bsd.types import Direction, Packet


class Backend(Protocol):
    """A platform's way to take packets out of the kernel and put them back. An instance is open until `close()`."""

    def fileno(self) -> int:
        """A descriptor that polls readable while packets wait."""

    def receive(self, limit: int) -> Iterable[Packet]:
        """At most `limit` waiting packets, each with a token; never blocks. They may be read one by one, each when the
        one before has been dealt with."""

    def send(self, packet: Packet) -> None:
        """Put `packet` back where it was, with its bytes as they are now."""

    def drop(self, packet: Packet) -> None:
        """Let the kernel forget `packet`."""

    def close(self) -> None:
        """Give up the port; idempotent. What is still held is lost."""

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far, the kernel's own losses included."""


def open_backend(port: int, direction: Direction, *, mark: int = 0, mask: int = 0) -> Backend:
    """The backend of this platform, opened on `port`.

    `mark` and `mask` go on every packet sent, where the platform has packet marks (FreeBSD has none: there a rule tells
    by `diverted`): (old & ~mask) | mark. NatfError if the platform has no backend, another process holds the port, or
    privileges or kernel modules are missing.
    """
    if sys.platform == "linux":
        from natf_bsd.divert.nfqueue import NfqueueBackend

        return NfqueueBackend(port, direction, mark=mark, mask=mask)
    if sys.platform.startswith("freebsd"):
        from natf_bsd.divert.divert4 import DivertBackend

        return DivertBackend(port, direction)
    raise NatfError(f"no packet diversion for {sys.platform}: only divert(4) of FreeBSD and NFQUEUE of Linux")


class Divert:
    """An open port on which the kernel hands over packets. Each is held until it is sent or dropped.

    Usage, as with pydivert::

        with Divert(8711, direction=Direction.OUT) as divert:
            for packet in divert:
                divert.send(packet)

    `port` is a divert(4) port or an NFQUEUE number. `direction` is what the firewall rules of this port select; it is
    believed where the kernel can't tell (FREEBSD.md 1.4: packets on an interface without address look outgoing).
    `mark` and `mask` see `open_backend`; a `backend` given brings its own. NatfError when the port can't be opened.

    On FreeBSD the C calls are::

        int fd = socket(PF_DIVERT, SOCK_RAW, 0);
        bind(fd, (struct sockaddr *)&sin, sizeof(sin));        /* sin.sin_port = htons(port) */

    and the rule is `ipfw add N divert PORT ...`, with `in` or `out` as `direction` says. The socket comes first: what
    a rule diverts to a port that nobody holds is dropped.
    """

    def __init__(
        self,
        port: int,
        *,
        direction: Direction = Direction.IN,
        backend: Backend | None = None,
        mark: int = 0,
        mask: int = 0,
    ) -> None:
        self.port = port
        self.direction = direction
        self._backend = backend or open_backend(port, direction, mark=mark, mask=mask)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Packet]:
        """Wait for packets and yield them one by one, until the handle is closed by the loop's body.

        The C call that waits is `poll()`; `recv_batch` reads.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while not self._closed:
            poll.poll()
            # One at a time: a packet fetched but not yet yielded would be lost if the loop is left.
            yield from self.recv_batch(1)

    def __repr__(self) -> str:
        return f"<Divert port={self.port} {self.direction.value}{' closed' if self._closed else ''}>"

    def recv_batch(self, limit: int = 64) -> list[Packet]:
        """The packets that wait now, at most `limit`; an empty list when there is none. Never blocks.

        Each knows the handle it is from: `held_by`.

        On FreeBSD the C call is, for each packet::

            n = recvfrom(fd, data, 65535, 0, (struct sockaddr *)&sin, &len);      /* until EAGAIN */

        `sin` (rule number, direction, receive interface) becomes the packet's token.
        """
        return list(self.waiting(limit))

    def waiting(self, limit: int = 64) -> Iterator[Packet]:
        """As `recv_batch`, one by one: the first is there before anybody has looked whether there is a second."""
        for packet in self._backend.receive(limit):
            packet.handle = self
            yield packet

    def send(self, packet: Packet) -> None:
        """Put `packet` back where it was taken out, with its bytes as they are now; checksums are the caller's work.

        It goes on behind the rule that diverted it. What the network answers (a rule denies it, no route, too big) is
        counted, not raised. Raises NatfError for a packet that this handle does not hold: one of our own making (those
        go through `divert.inject`, or on FreeBSD through `divert.divert4.own_packet`), or one already sent or dropped.
        On FreeBSD the C call is::

            sendto(fd, data, n, 0, (struct sockaddr *)&sin, sizeof(sin));         /* sin as it was received */
        """
        if packet.token is None:
            raise NatfError(_NOT_HELD)
        self._backend.send(packet)
        packet.token = None

    def drop(self, packet: Packet) -> None:
        """Let the kernel forget `packet`. Raises NatfError for a packet this handle does not hold.

        On FreeBSD there is no C call: the packet left the kernel when it was read.
        """
        if packet.token is None:
            raise NatfError(_NOT_HELD)
        self._backend.drop(packet)
        packet.token = None

    def fileno(self) -> int:
        """For select and poll: readable while packets wait."""
        return self._backend.fileno()

    def close(self) -> None:
        """Give up the port. Packets still held are lost. May be called again. The C call is `close(fd)`."""
        self._closed = True
        self._backend.close()

    @property
    def counters(self) -> dict[str, int]:
        """Packets received, sent and dropped, and every loss the backend knows of; names differ by backend."""
        return self._backend.counters


def held_by(packet: Packet) -> Divert:
    """The handle `packet` was read from, to send or drop it by; NatfError for one of our own making."""
    if not isinstance(packet.handle, Divert):
        raise NatfError(_NOT_HELD)
    return packet.handle


_NOT_HELD = "the packet is not held: it was sent or dropped already, or is of our own making (see divert.inject)"
