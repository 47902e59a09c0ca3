"""Linux TUN devices (Documentation/networking/tuntap.rst): what the kernel routes into one is read here, what is
written here comes into the kernel by it. A device lives as long as its descriptor: after a crash nothing is left of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from natf_bsd.errors import NatfError, RestartNeeded

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h: _IOW('T', 202, int)
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000  # bare IP packets, without a header of the device's own
_NAME_SIZE: Final = 16  # IFNAMSIZ, linux/if.h
_REQUEST: Final = struct.Struct(f"{_NAME_SIZE}sH22x")  # struct ifreq
_LARGEST: Final = 0xFFFF

_OPEN_ERRORS: Final = {
    errno.ENOENT: "the kernel has no TUN device: load the module tun",
    errno.ENODEV: "the kernel has no TUN device: load the module tun",
    errno.EACCES: "this user may not open it (root may; udev gives it mode 0666)",
    errno.EPERM: "not permitted: root or CAP_NET_ADMIN is needed",
    errno.EBUSY: "another process holds the device",
    errno.EINVAL: "an interface of this name exists and is no TUN, or the name is not valid",
}


class TunDevice:
    """The device `name`, made by opening and gone with `close()`. `loss` says what cannot be done without it.

    NatfError when it can't be had; RestartNeeded when it is removed while it is in use: it can't come back under this
    descriptor.
    """

    def __init__(self, name: str, loss: str) -> None:
        self._name = name
        self._loss = loss
        self._descriptor = _open(name)
        self._buffer = memoryview(bytearray(_LARGEST))

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes | bytearray) -> bool:
        """Whether the kernel took the packet."""
        try:
            os.write(self._descriptor, data)
        except OSError as error:
            self._removed(error)
            # EIO: the interface is down.
            if error.errno not in (errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN):
                raise
            return False
        return True

    def waiting(self, limit: int) -> Iterator[bytes]:
        """The packets that wait, at most `limit`, one by one. Never blocks."""
        for _ in range(limit):
            try:
                length = os.readv(self._descriptor, (self._buffer,))
            except BlockingIOError:
                return
            except OSError as error:
                self._removed(error)
                raise
            yield bytes(self._buffer[:length])

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _removed(self, error: OSError) -> None:
        if error.errno in (errno.EBADFD, errno.EBADF):
            raise RestartNeeded(f"{self._name} was removed; {self._loss}") from None


def unavailable() -> str | None:
    """Why no TUN device can be had by this process, None if one can."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_DEVICE}: {_OPEN_ERRORS.get(error.errno or 0, error.strerror)}"
    return None


def _open(name: str) -> int:
    written = name.encode("ascii", "replace")
    if not 0 < len(written) < _NAME_SIZE:
        raise NatfError(f"{name!r} is not a name for an interface: 1 to {_NAME_SIZE - 1} characters")
    descriptor = -1
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(written, _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        reason = _OPEN_ERRORS.get(error.errno or 0, error.strerror)
        raise NatfError(f"{_DEVICE}, interface {name}: {reason}") from None
    return descriptor
