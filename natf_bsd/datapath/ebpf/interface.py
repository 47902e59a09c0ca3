"""Our programs at an interface: filters of the queueing discipline clsact, by rtnetlink (linux/pkt_sched.h, pkt_cls.h).

They carry our name, go on when the daemon is killed, and go when they are removed.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import Final, NamedTuple

from natf_bsd.datapath.ebpf import kernel
from natf_bsd.divert import netlink

OUT, INWARD = "out", "in"
PLACES: Final = {OUT: 0xFFFFFFF3, INWARD: 0xFFFFFFF2}
"""clsact's two."""
NAMES: Final = {OUT: "natf_out", INWARD: "natf_in"}

_PREFERENCE: Final = 7800
_HANDLE: Final = 1
_CLSACT: Final = 0xFFFFFFF1
_CLSACT_HANDLE: Final = 0xFFFF0000
# All protocols: a filter for IPv4 would not be asked about packets with a VLAN tag.
_INFORMATION: Final = _PREFERENCE << 16 | socket.htons(0x0003)
# Of ours when the discipline was made for it, and goes with it.
_WITH_DISCIPLINE: Final = "+clsact"
# linux/bpf.h, BPF_TCX_*: programs there come before all filters.
_BEFORE_FILTERS: Final = {INWARD: 46, OUT: 47}

_NEW_DISCIPLINE: Final = 36
_DELETE_DISCIPLINE: Final = 37
_GET_DISCIPLINE: Final = 38
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
_CREATE: Final = netlink.NLM_F_ACK | netlink.NLM_F_CREATE

# What the kernel says where there is no such filter, discipline or interface.
_NOTHING_THERE: Final = (errno.ENOENT, errno.EINVAL, errno.ENODEV)

_HARDWARE_ADDRESS: Final = 0x8927  # linux/sockios.h, SIOCGIFHWADDR
_IFREQ: Final = struct.Struct("=16sH22x")
# linux/if_arp.h: Ethernet, and devices that carry IP packets as they are.
_LINK_HEADERS: Final = {1: 14, 512: 0, 65534: 0}


class _Filter(NamedTuple):
    """`program`: its id, 0 without one. `preference`: the lowest comes first."""

    name: str
    program: int
    preference: int

    def is_ours(self, place: str) -> bool:
        return self.name.removesuffix(_WITH_DISCIPLINE) == NAMES[place]


class Filters:
    """Of this network namespace. OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._netlink = netlink.Requests(netlink.NETLINK_ROUTE)

    @property
    def port(self) -> int:
        """The netlink port that changes are made by."""
        return self._netlink.port

    def attach(self, index: int, place: str, program: int) -> None:
        """Let `program` see what passes, in place of one of ours that did. ENOTSUP, with a reason one can read, where
        the interface has no place for it."""
        name = NAMES[place]
        if self._make_discipline(index) or any(f.name.endswith(_WITH_DISCIPLINE) for f in self._ours(index)):
            name += _WITH_DISCIPLINE
        options = (
            netlink.attribute(_DESCRIPTOR, _WORD.pack(program))
            + netlink.attribute(_NAME, f"{name}\0".encode())
            + netlink.attribute(_FLAGS, _WORD.pack(_DIRECT))
        )
        body = netlink.attribute(_KIND, b"bpf\0") + netlink.attribute(netlink.NESTED | _OPTIONS, options)
        there = _HEADER.pack(0, index, _HANDLE, PLACES[place], _INFORMATION)
        self._netlink.ask(_NEW_FILTER, _CREATE | netlink.NLM_F_REPLACE, there + body)

    def program(self, index: int, place: str) -> int | None:
        """The id of the program of ours that is attached."""
        return next((found.program for found in self._listed(index, place) if found.is_ours(place)), None)

    def hidden_by(self, index: int, place: str) -> str | None:
        """What sees packets before ours does, and may keep them from it."""
        if kernel.attached(index, _BEFORE_FILTERS[place]):
            return "programs attached to tcx"
        first = min(self._listed(index, place), key=lambda found: found.preference, default=None)
        return None if first is None or first.is_ours(place) else f"a filter of tc with preference {first.preference}"

    def detach(self, index: int) -> None:
        """Nothing of ours is left there, nor the discipline if it was made for ours and nobody else uses it."""
        made = any(found.name.endswith(_WITH_DISCIPLINE) for found in self._ours(index))
        for place in PLACES:
            if self.program(index, place) is not None:
                # Whatever protocols it was for.
                header = _HEADER.pack(0, index, _HANDLE, PLACES[place], _PREFERENCE << 16)
                self._remove(_DELETE_FILTER, header + netlink.attribute(_KIND, b"bpf\0"))
        if made and not any(self._listed(index, place) for place in PLACES):
            kind = netlink.attribute(_KIND, b"clsact\0")
            self._remove(_DELETE_DISCIPLINE, _HEADER.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + kind)

    def need_discipline(self, index: int) -> None:
        """ENOTSUP if clsact is not there and cannot be made."""
        if (kind := self._discipline(index)) not in ("none", "clsact"):
            raise OSError(errno.ENOTSUP, f"it has the queueing discipline {kind} instead of clsact")

    def close(self) -> None:
        self._netlink.close()

    def _make_discipline(self, index: int) -> bool:
        """Whether it was not there. The older `ingress` takes the same place, and has nothing for what leaves."""
        request = _HEADER.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + netlink.attribute(_KIND, b"clsact\0")
        try:
            self._netlink.ask(_NEW_DISCIPLINE, _CREATE | netlink.NLM_F_EXCL, request)
        except FileExistsError:
            self.need_discipline(index)
            return False
        return True

    def _discipline(self, index: int) -> str:
        """The kind of the one in the place of clsact."""
        for data, start, end in self._netlink.dump(_GET_DISCIPLINE, _HEADER.pack(0, index, 0, 0, 0)):
            _, interface, _, parent, _ = _HEADER.unpack_from(data, start)
            if (interface, parent) == (index, _CLSACT):
                found = netlink.attributes(data, start + _HEADER.size, end)[_KIND]
                return data[slice(*found)].rstrip(b"\0").decode(errors="replace")
        return "none"

    def _ours(self, index: int) -> list[_Filter]:
        return [found for place in PLACES for found in self._listed(index, place) if found.is_ours(place)]

    def _remove(self, kind: int, body: bytes) -> None:
        try:
            self._netlink.ask(kind, netlink.NLM_F_ACK, body)
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise

    def _listed(self, index: int, place: str) -> list[_Filter]:
        """Whosesoever."""
        found: list[_Filter] = []
        for data, start, end in self._netlink.dump(_GET_FILTER, _HEADER.pack(0, index, 0, PLACES[place], 0)):
            _, _, handle, _, information = _HEADER.unpack_from(data, start)
            if handle:  # others are only the list they are in
                found.append(_read(data, start + _HEADER.size, end, information >> 16))
        return found


def link_header(name: str) -> int:
    """Bytes before the IPv4 header of packets on the interface. OSError for kinds we do not know."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        kind = _IFREQ.unpack(fcntl.ioctl(any_socket, _HARDWARE_ADDRESS, _IFREQ.pack(name.encode(), 0)))[1]
    if kind not in _LINK_HEADERS:
        raise OSError(errno.ENOTSUP, f"{name} is of a kind (ARP hardware type {kind}) whose headers are not known here")
    return _LINK_HEADERS[kind]


def _read(data: bytes, start: int, end: int, preference: int) -> _Filter:
    options = netlink.attributes(data, start, end).get(_OPTIONS)
    inner = netlink.attributes(data, *options) if options else {}
    name = data[slice(*inner[_NAME])].rstrip(b"\0").decode(errors="replace") if _NAME in inner else ""
    program = _WORD.unpack_from(data, inner[_IDENTITY][0])[0] if _IDENTITY in inner else 0
    return _Filter(name, program, preference)
