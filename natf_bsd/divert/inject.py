"""Packets of our own making: whole IPv4 packets through a raw socket, and the control channel's ICMP messages."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Final

from natf_bsd.errors import NatfError
from natf_bsd.types import Address, format_address

# What a network may answer to one packet; the sender can only go on (send(2), ip(7), raw(7)).
_REFUSALS: Final = {
    errno.EPERM: "not_permitted",  # a local firewall rule
    errno.EACCES: "not_permitted",  # the same on FreeBSD, or a broadcast address
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EHOSTDOWN: "unreachable",  # FreeBSD: nobody answers ARP
    errno.EADDRNOTAVAIL: "unreachable",
    errno.ENOBUFS: "no_buffers",
    errno.EAGAIN: "no_buffers",
    errno.EMSGSIZE: "too_big",
    errno.EINVAL: "invalid",  # shorter than a header, or an address that can't be a destination
    errno.EAFNOSUPPORT: "invalid",  # divert(4): an IP version the kernel does not write
}
REFUSALS: Final = frozenset((*_REFUSALS.values(), "other"))
"""What `refusal` may say."""
# Our own faults. Everything else is the network's answer: whatever a device's driver returns comes out of sendto
# (WireGuard: ENOKEY, EDESTADDRREQ), and who sends to us chooses the device of our answer.
_FAULTS: Final = frozenset((errno.EBADF, errno.ENOTSOCK, errno.EFAULT))
_ICMP_FILTER: Final = 1  # linux/icmp.h, level SOL_RAW
_SOL_RAW: Final = 255  # linux/socket.h
_ECHO_REPLY: Final = 0
_LARGEST: Final = 0xFFFF
_RECEIVE_BUFFER: Final = 1 << 20  # some 1,200 waiting replies of 128 bytes (each costs 0.8 KB)


def refusal(error: OSError) -> str:
    """The counter for what a network answered to a packet. Raises `error` if that is a fault of ours."""
    if error.errno in _FAULTS:
        raise error
    return _REFUSALS.get(error.errno or 0, "other")


class _RawSocket:
    """A non-blocking raw socket that counts what the network refuses instead of raising."""

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        except PermissionError:
            raise NatfError("raw socket: not permitted, root or CAP_NET_RAW is needed") from None
        self._socket.setblocking(False)
        self._counters: Counter[str] = Counter(dict.fromkeys(["sent", *REFUSALS], 0))

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def counters(self) -> dict[str, int]:
        """Messages `sent`, and those refused by reason (not_permitted, unreachable, no_buffers, too_big,
        invalid, other)."""
        return dict(self._counters)

    def close(self) -> None:
        self._socket.close()

    def _send_to(self, destination: Address, data: bytes | bytearray) -> None:
        try:
            self._socket.sendto(data, (format_address(destination), 0))
        except OSError as error:
            self._counters[refusal(error)] += 1
        else:
            self._counters["sent"] += 1


class Injector(_RawSocket):
    """Sends IPv4 packets as they are, from any source address, to other hosts or to this one.

    `mark` (Linux) goes on each, so that our own firewall rules let them pass. The kernel fills in the header checksum
    and, where it is zero, the identification. Raises NatfError without CAP_NET_RAW (and CAP_NET_ADMIN for a mark).
    """

    def __init__(self, mark: int = 0) -> None:
        super().__init__(socket.IPPROTO_RAW)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        if mark:
            self._set_mark(mark)

    def send(self, data: bytes | bytearray) -> None:
        """Send one packet, complete from its IPv4 header. What the network refuses is counted, not raised."""
        self._send_to(bytes(data[16:20]), data)

    def _set_mark(self, mark: int) -> None:
        if sys.platform != "linux":
            raise NatfError(f"packet marks are not there on {sys.platform}")
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        except PermissionError:
            self.close()
            raise NatfError("packet mark: not permitted, root or CAP_NET_ADMIN is needed") from None


class ControlSocket(_RawSocket):
    """The external node's end of the control channel: ICMP messages out, echo replies in (DESIGN.md section 5)."""

    def __init__(self) -> None:
        super().__init__(socket.IPPROTO_ICMP)
        self._buffer = memoryview(bytearray(_LARGEST))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if sys.platform == "linux":
            # A set bit keeps a type away: a flood of other ICMP never reaches Python.
            self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF ^ 1 << _ECHO_REPLY))

    def send(self, router: Address, icmp: bytes) -> None:
        """Send `icmp`, from its type byte and with its checksum, to `router`. Refusals are counted, not raised."""
        self._send_to(router, icmp)

    def waiting(self, limit: int = 64) -> Iterator[tuple[Address, bytes]]:
        """Source address and ICMP message of those that wait, at most `limit`, one by one. Never blocks."""
        for _ in range(limit):
            try:
                length = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            packet = bytes(self._buffer[:length])
            # The kernel has checked the header and gives whole packets, reassembled.
            yield packet[12:16], packet[(packet[0] & 0x0F) * 4 :]
