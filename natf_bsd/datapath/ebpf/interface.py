"""Our programs at an interface: filters of the queueing discipline clsact, by rtnetlink (linux/pkt_sched.h, pkt_cls.h).

They carry our name, go on when the daemon is killed, and go when they are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from natf_bsd.divert import netlink

OUT, INWARD = "out", "in"
PLACES: Final = {OUT: 0xFFFFFFF3, INWARD: 0xFFFFFFF2}
"""clsact's two."""
NAMES: Final = {OUT: "natf_out", INWARD: "natf_in"}

_PREFERENCE: Final = 7800
_HANDLE: Final = 1
_CLSACT: Final = 0xFFFFFFF1
_CLSACT_HANDLE: Final = 0xFFFF0000
_INFORMATION: Final = _PREFERENCE << 16 | socket.htons(0x0800)

_NEW_DISCIPLINE: Final = 36
_DELETE_DISCIPLINE: Final = 37
_NEW_FILTER: Final = 44
_DELETE_FILTER: Final = 45
_GET_FILTER: Final = 46

_HEADER: Final = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, information
_KIND: Final = 1
_OPTIONS: Final = 2
_DESCRIPTOR: Final = 6
_NAME: Final = 7
_FLAGS: Final = 8
_IDENTITY: Final = 11
_DIRECT: Final = 1  # the program says itself what becomes of a packet
_WORD: Final = struct.Struct("=I")

_PATIENCE: Final = 1.0  # s; the kernel answers within the call
_LARGEST: Final = 1 << 16

# What the kernel says where there is no such filter, discipline or interface.
_NOTHING_THERE: Final = (errno.ENOENT, errno.EINVAL, errno.ENODEV)

_HARDWARE_ADDRESS: Final = 0x8927  # linux/sockios.h, SIOCGIFHWADDR
_IFREQ: Final = struct.Struct("=16sH22x")
# linux/if_arp.h: Ethernet, and devices that carry IP packets as they are.
_LINK_HEADERS: Final = {1: 14, 512: 0, 65534: 0}


class Filters:
    """Of this network namespace. OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._netlink = netlink.NetlinkSocket(netlink.NETLINK_ROUTE)
        self._netlink.socket.settimeout(_PATIENCE)
        self._sequence = 0

    def attach(self, index: int, place: str, program: int) -> None:
        """Let `program` see what passes, in place of one of ours that did."""
        discipline = _HEADER.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + netlink.attribute(_KIND, b"clsact\0")
        with contextlib.suppress(FileExistsError):  # ours, or somebody else's: many may use one
            self._change(_NEW_DISCIPLINE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, discipline)
        options = (
            netlink.attribute(_DESCRIPTOR, _WORD.pack(program))
            + netlink.attribute(_NAME, f"{NAMES[place]}\0".encode())
            + netlink.attribute(_FLAGS, _WORD.pack(_DIRECT))
        )
        body = netlink.attribute(_KIND, b"bpf\0") + netlink.attribute(netlink.NESTED | _OPTIONS, options)
        self._change(
            _NEW_FILTER, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, self._ours(index, place, _HANDLE) + body
        )

    def program(self, index: int, place: str) -> int | None:
        """The id of the program of ours that is attached."""
        return next((found for name, found in self._listed(index, place) if name == NAMES[place]), None)

    def detach(self, index: int) -> None:
        """Nothing of ours is left there, nor a discipline nobody uses."""
        for place in PLACES:
            if self.program(index, place) is not None:
                self._remove(_DELETE_FILTER, self._ours(index, place, _HANDLE) + netlink.attribute(_KIND, b"bpf\0"))
                if not any(self._listed(index, each) for each in PLACES):
                    kind = netlink.attribute(_KIND, b"clsact\0")
                    self._remove(_DELETE_DISCIPLINE, _HEADER.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + kind)

    def close(self) -> None:
        self._netlink.close()

    @staticmethod
    def _ours(index: int, place: str, handle: int) -> bytes:
        return _HEADER.pack(0, index, handle, PLACES[place], _INFORMATION)

    def _remove(self, kind: int, body: bytes) -> None:
        try:
            self._change(kind, 0, body)
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise

    def _change(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        connection = self._netlink.socket
        connection.send(netlink.message(kind, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | flags, self._sequence, body))
        while True:
            answer = connection.recv(_LARGEST)
            if netlink.sequence_of(answer) == self._sequence:
                break
        if status := netlink.error_of(answer):
            raise OSError(status, os.strerror(status))

    def _listed(self, index: int, place: str) -> list[tuple[str, int]]:
        """Names and programs of the filters there, whosesoever; those without a program have 0."""
        self._sequence += 1
        asked = _HEADER.pack(0, index, 0, PLACES[place], 0)
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
        self._netlink.socket.send(netlink.message(_GET_FILTER, flags, self._sequence, asked))
        found: list[tuple[str, int]] = []
        while True:
            data = self._netlink.socket.recv(_LARGEST)
            for kind, sequence, start, end in netlink.messages(data):
                if sequence != self._sequence:
                    continue
                if kind in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
                    return found
                _, _, handle, _, _ = _HEADER.unpack_from(data, start)
                if handle:  # others are only the list they are in
                    found.append(_read(data, start + _HEADER.size, end))


def link_header(name: str) -> int:
    """Bytes before the IPv4 header of packets on the interface. OSError for kinds we do not know."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        kind = _IFREQ.unpack(fcntl.ioctl(any_socket, _HARDWARE_ADDRESS, _IFREQ.pack(name.encode(), 0)))[1]
    if kind not in _LINK_HEADERS:
        raise OSError(errno.ENOTSUP, f"{name} is of a kind (ARP hardware type {kind}) whose headers are not known here")
    return _LINK_HEADERS[kind]


def _read(data: bytes, start: int, end: int) -> tuple[str, int]:
    options = netlink.attributes(data, start, end).get(_OPTIONS)
    inner = netlink.attributes(data, *options) if options else {}
    name = data[slice(*inner[_NAME])].rstrip(b"\0").decode(errors="replace") if _NAME in inner else ""
    return name, _WORD.unpack_from(data, inner[_IDENTITY][0])[0] if _IDENTITY in inner else 0
