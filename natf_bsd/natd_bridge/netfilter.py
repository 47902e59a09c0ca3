"""Bridge to Linux netfilter: a TUN device turns pseudo-packets round through its NAT (DESIGN.md section 7).

`firewall.linux.router_rules` makes the rules and the route that belong to it. The device lives as long as the bridge:
after a crash nothing is left that could send a packet anywhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Final

from natf_bsd.errors import NatfError
from natf_bsd.natd_bridge.pseudo import NETFILTER_STYLE, PSEUDO_IDENT, PseudoStyle
from natf_bsd.types import Protocol

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h: _IOW('T', 202, int)
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000  # bare IP packets, without a header of the device's own
_NAME_SIZE: Final = 16  # IFNAMSIZ, linux/if.h
_REQUEST: Final = struct.Struct(f"{_NAME_SIZE}sH22x")  # struct ifreq
_LARGEST: Final = 0xFFFF
_BATCH: Final = 64
_FIRST_AND_IDENT: Final = struct.Struct("!B3xH")

_SETTINGS: Final = Path("/proc/sys/net/netfilter")
# The announced lifetime is the paper's [4], or conntrack's own if that is shorter. Mappings of ours live by
# tcp_timeout_max_retrans (see `firewall.linux.router_sysctls`). The numbers are conntrack's defaults
# (Documentation/networking/nf_conntrack-sysctl.rst), for a kernel that has not loaded it yet.
_LIFETIMES: Final = {
    int(Protocol.UDP): (60, {"nf_conntrack_udp_timeout": 30}),
    int(Protocol.TCP): (
        86_400,
        {"nf_conntrack_tcp_timeout_established": 432_000, "nf_conntrack_tcp_timeout_max_retrans": 300},
    ),
}

_OPEN_ERRORS: Final = {
    errno.ENOENT: "the kernel has no TUN device: load the module tun",
    errno.ENODEV: "the kernel has no TUN device: load the module tun",
    errno.EACCES: "this user may not open it (root may; udev gives it mode 0666)",
    errno.EPERM: "not permitted: root or CAP_NET_ADMIN is needed",
    errno.EBUSY: "another process holds the device",
    errno.EINVAL: "an interface of this name exists and is no TUN, or the name is not valid",
}


class NetfilterBridge:
    """The TUN device `tun`, made by opening and gone with `close()`. Raises NatfError when it can't be had."""

    name = "netfilter"
    style: PseudoStyle = NETFILTER_STYLE

    def __init__(self, tun: str = "natf0") -> None:
        self._tun = tun
        self._counters: Counter[str] = Counter(dict.fromkeys(("written", "refused", "captured", "foreign"), 0))
        self._lifetimes: dict[int, int] = {}
        self._descriptor = _open(tun)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes) -> None:
        try:
            os.write(self._descriptor, data)
        except OSError as error:
            self._removed(error)
            if error.errno not in (errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN):
                raise
            self._counters["refused"] += 1  # EIO: the interface is down
        else:
            self._counters["written"] += 1

    def read_batch(self) -> list[bytes]:
        found: list[bytes] = []
        for _ in range(_BATCH):
            try:
                data = os.read(self._descriptor, _LARGEST)
            except BlockingIOError:
                break
            except OSError as error:
                self._removed(error)
                raise
            if len(data) >= _FIRST_AND_IDENT.size and _is_candidate(data):
                found.append(data)
            else:
                # The host itself speaks on any interface: IPv6 router solicitations, IGMP, mDNS.
                self._counters["foreign"] += 1
        self._counters["captured"] += len(found)
        return found

    def _removed(self, error: OSError) -> None:
        """NatfError if the device is gone for good; it can't come back under this descriptor."""
        if error.errno in (errno.EBADFD, errno.EBADF):
            raise NatfError(f"{self._tun} was removed; no mapping can be made without it") from None

    def lifetime(self, protocol: int) -> int:
        """Read from conntrack once; whoever changes its timeouts restarts the router."""
        if protocol not in self._lifetimes:
            announced, settings = _LIFETIMES[protocol]
            self._lifetimes[protocol] = min(announced, *(_setting(*setting) for setting in settings.items()))
        return self._lifetimes[protocol]

    def next_deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        return

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def counters(self) -> dict[str, int]:
        """`written`, `refused` (interface down, no memory), `captured`, `foreign` (other packets on the device)."""
        return dict(self._counters)


def unavailable() -> str | None:
    """Why no TUN device can be had by this process, None if one can."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_DEVICE}: {_OPEN_ERRORS.get(error.errno or 0, error.strerror)}"
    return None


def _is_candidate(data: bytes) -> bool:
    first, ident = _FIRST_AND_IDENT.unpack_from(data)
    return bool(first >> 4 == 4 and ident == PSEUDO_IDENT)


def _open(tun: str) -> int:
    name = tun.encode("ascii", "replace")
    if not 0 < len(name) < _NAME_SIZE:
        raise NatfError(f"{tun!r} is not a name for an interface: 1 to {_NAME_SIZE - 1} characters")
    descriptor = -1
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(name, _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        reason = _OPEN_ERRORS.get(error.errno or 0, error.strerror)
        raise NatfError(f"{_DEVICE}, interface {tun}: {reason}") from None
    return descriptor


def _setting(name: str, default: int) -> int:
    try:
        return int((_SETTINGS / name).read_text())
    except FileNotFoundError:
        return default
