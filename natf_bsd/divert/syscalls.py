"""The system calls a divert socket needs. Python's socket module loses sin_zero and swaps the rule number's bytes, and
before 3.12 it can't bind in family 44 (FREEBSD.md 1.1); ctypes reaches them in every version.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final, Protocol

LARGEST: Final = 0xFFFF
"""Bytes of the largest IPv4 packet, and so of the largest read."""

_SOCKADDR_SIZE: Final = 16


class SystemCalls(Protocol):
    """A kernel: the real one is `Libc`. Socket addresses are the 16 bytes of a sockaddr_in.

    Each raises OSError with the kernel's errno; no call blocks.
    """

    def socket(self, domain: int, kind: int, protocol: int, /) -> int:
        """A descriptor, non-blocking and closed on exec."""

    def bind(self, descriptor: int, address: bytes, /) -> None: ...

    def recvfrom(self, descriptor: int, size: int, /) -> tuple[bytes, bytes]:
        """One packet, at most `size` bytes of it, and its address; BlockingIOError if none waits."""

    def sendto(self, descriptor: int, data: bytes, address: bytes, /) -> int: ...

    def setsockopt(self, descriptor: int, level: int, option: int, value: int, /) -> None: ...

    def getsockopt(self, descriptor: int, level: int, option: int, /) -> int: ...

    def close(self, descriptor: int, /) -> None: ...


class Libc:
    """The running kernel, by the C library; reads are at most `LARGEST` bytes. Not for several threads at once."""

    def __init__(self) -> None:
        # Of its own, because argument types belong to the library object; use_errno keeps errno from other code.
        library = ctypes.CDLL(None, use_errno=True)
        self._library = library
        library.socket.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        library.bind.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
        pointer, length = ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)
        library.recvfrom.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t, ctypes.c_int, pointer, length]
        library.sendto.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint32,
        ]
        library.setsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, ctypes.c_uint32]
        library.getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, length]
        library.recvfrom.restype = library.sendto.restype = ctypes.c_ssize_t
        self._data = ctypes.create_string_buffer(LARGEST)
        self._address = ctypes.create_string_buffer(_SOCKADDR_SIZE)
        self._length = ctypes.c_uint32()

    def socket(self, domain: int, kind: int, protocol: int, /) -> int:
        descriptor = _checked(self._library.socket(domain, kind, protocol))
        os.set_inheritable(descriptor, False)
        os.set_blocking(descriptor, False)
        return descriptor

    def bind(self, descriptor: int, address: bytes, /) -> None:
        _checked(self._library.bind(descriptor, address, len(address)))

    def recvfrom(self, descriptor: int, size: int, /) -> tuple[bytes, bytes]:
        self._length.value = _SOCKADDR_SIZE
        size = _checked(
            self._library.recvfrom(
                descriptor, self._data, min(size, LARGEST), 0, self._address, ctypes.byref(self._length)
            )
        )
        return ctypes.string_at(self._data, size), self._address.raw

    def sendto(self, descriptor: int, data: bytes, address: bytes, /) -> int:
        return _checked(self._library.sendto(descriptor, data, len(data), 0, address, len(address)))

    def setsockopt(self, descriptor: int, level: int, option: int, value: int, /) -> None:
        number = ctypes.c_int(value)
        _checked(self._library.setsockopt(descriptor, level, option, ctypes.byref(number), ctypes.sizeof(number)))

    def getsockopt(self, descriptor: int, level: int, option: int, /) -> int:
        number = ctypes.c_int()
        length = ctypes.c_uint32(ctypes.sizeof(number))
        _checked(self._library.getsockopt(descriptor, level, option, ctypes.byref(number), ctypes.byref(length)))
        return number.value

    def close(self, descriptor: int, /) -> None:
        os.close(descriptor)


def _checked(result: int) -> int:
    """`result` of a C call; OSError (or its subclass for the errno) for -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
