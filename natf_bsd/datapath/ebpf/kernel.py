"""bpf(2): maps and programs (linux/bpf.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Collection, Iterator
from typing import Final

HASH: Final = 1
ARRAY: Final = 2
LRU_HASH: Final = 9
_NO_PREALLOCATION: Final = 1

_MAP_CREATE: Final = 0
_MAP_LOOKUP: Final = 1
_MAP_UPDATE: Final = 2
_MAP_DELETE: Final = 3
_MAP_NEXT_KEY: Final = 4
_PROGRAM_LOAD: Final = 5
_PROGRAM_BY_ID: Final = 13
_MAP_BY_ID: Final = 14
_INFORMATION: Final = 15
_QUERY: Final = 16

_TRAFFIC_CLASSIFIER: Final = 3  # BPF_PROG_TYPE_SCHED_CLS

# Number of the system call, by machine; a 32-bit program may run on a 64-bit one.
_SYSTEM_CALLS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_SYSTEM_CALLS_32: Final = {"x86_64": 357, "i686": 357, "aarch64": 386, "armv8l": 386, "armv7l": 386, "armv6l": 386}

_ELEMENT: Final = struct.Struct("=I4xQQQ")  # map, addresses of key and value, flags
_NEW_MAP: Final = struct.Struct("=IIIII8x16s")  # type, sizes of key and value, most entries, flags; name
_NEW_PROGRAM: Final = struct.Struct("=IIQQIIQII16s")
_ASKED: Final = struct.Struct("=IIQ")  # descriptor, size and address of what is to be filled
_MAP_INFORMATION: Final = struct.Struct("=IIIII4x16s")  # type, id, sizes of key and value, most entries; name
_MAP_IDS: Final = struct.Struct("=52xIQ")  # how many, where to
_MOST_MAPS: Final = 16
_LOG: Final = 1 << 16
_BY_ID: Final = struct.Struct("=III")
_ASKED_WHO: Final = struct.Struct("=II16xI36x")  # interface, place; how many


class Map:
    """A table the kernel's programs share with us; keys and values are bytes of fixed size. OSError as bpf(2)."""

    def __init__(self, descriptor: int, kind: int, key_size: int, value_size: int, entries: int) -> None:
        self.descriptor = descriptor
        self._shape = (kind, key_size, value_size, entries)
        # Made once: an update is in the way of a flow's first packet.
        self._key = ctypes.create_string_buffer(key_size)
        self._value = ctypes.create_string_buffer(value_size)
        self._next = ctypes.create_string_buffer(key_size)
        key, value, following = map(ctypes.addressof, (self._key, self._value, self._next))
        self._element = _buffer(_ELEMENT.pack(descriptor, key, value, 0))
        self._key_alone = _buffer(_ELEMENT.pack(descriptor, key, 0, 0))
        self._first = _buffer(_ELEMENT.pack(descriptor, 0, following, 0))
        self._step = _buffer(_ELEMENT.pack(descriptor, key, following, 0))

    @classmethod
    def create(cls, name: str, kind: int, key_size: int, value_size: int, entries: int) -> Map:
        flags = _NO_PREALLOCATION if kind == HASH else 0
        asked = _NEW_MAP.pack(kind, key_size, value_size, entries, flags, name.encode())
        return cls(_bpf(_MAP_CREATE, _buffer(asked)), kind, key_size, value_size, entries)

    def is_like(self, kind: int, key_size: int, value_size: int, entries: int) -> bool:
        return self._shape == (kind, key_size, value_size, entries)

    def set(self, key: bytes, value: bytes) -> None:
        self._key.raw, self._value.raw = key, value
        _bpf(_MAP_UPDATE, self._element)

    def get(self, key: bytes) -> bytes | None:
        self._key.raw = key
        try:
            _bpf(_MAP_LOOKUP, self._element)
        except FileNotFoundError:
            return None
        return self._value.raw

    def delete(self, key: bytes) -> None:
        """Nothing happens if it is not there."""
        self._key.raw = key
        try:
            _bpf(_MAP_DELETE, self._key_alone)
        except FileNotFoundError:
            return

    def keys(self) -> Iterator[bytes]:
        """All that are there while nothing else changes."""
        step = self._first
        while True:
            try:
                _bpf(_MAP_NEXT_KEY, step)
            except FileNotFoundError:
                return
            key = self._next.raw
            yield key
            self._key.raw, step = key, self._step

    def close(self) -> None:
        os.close(self.descriptor)


def load(name: str, code: bytes) -> int:
    """A descriptor of the program `code` for tc(8)'s hooks, checked by the kernel. OSError, with what the kernel has
    to say against it if that is the program's fault."""
    log = ctypes.create_string_buffer(_LOG)
    instructions, licence = _buffer(code), _buffer(b"BSD\0")

    def asked(level: int) -> ctypes.Array[ctypes.c_char]:
        size, place = (_LOG, ctypes.addressof(log)) if level else (0, 0)
        return _buffer(
            _NEW_PROGRAM.pack(
                *(_TRAFFIC_CLASSIFIER, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)),
                *(level, size, place, 0, 0, name.encode()),
            )
        )

    try:
        return _bpf(_PROGRAM_LOAD, asked(0))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise
    try:
        return _bpf(_PROGRAM_LOAD, asked(1))
    except OSError as error:
        said = log.value.decode(errors="replace").strip().splitlines()
        raise OSError(error.errno, f"{name}: {' / '.join(said[-3:]) or error.strerror}") from None


def maps_of(identities: Collection[int]) -> dict[str, Map]:
    """The maps of the programs with these ids, by their names. OSError if one is gone."""
    found: dict[str, Map] = {}
    for identity in identities:
        descriptor = _bpf(_PROGRAM_BY_ID, _buffer(_BY_ID.pack(identity, 0, 0)))
        try:
            numbers = (ctypes.c_uint32 * _MOST_MAPS)()
            information = _information(descriptor, _MAP_IDS.pack(_MOST_MAPS, ctypes.addressof(numbers)))
            count = _MAP_IDS.unpack_from(information)[0]
        finally:
            os.close(descriptor)
        for number in numbers[: min(count, _MOST_MAPS)]:
            descriptor = _bpf(_MAP_BY_ID, _buffer(_BY_ID.pack(number, 0, 0)))
            kind, _, *sizes, name = _MAP_INFORMATION.unpack_from(_information(descriptor, b""))
            known = found.setdefault(name.rstrip(b"\0").decode(errors="replace"), Map(descriptor, kind, *sizes))
            if known.descriptor != descriptor:  # two programs share it
                os.close(descriptor)
    return found


def attached(index: int, place: int) -> int:
    """How many programs are attached to `place` of an interface (linux/bpf.h, bpf_attach_type); 0 where the kernel has
    no such place."""
    asked = _buffer(_ASKED_WHO.pack(index, place, 0))
    try:
        _bpf(_QUERY, asked)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOSPC):
            raise
    return int(_ASKED_WHO.unpack(asked.raw)[2])


def lift_limit() -> None:
    """Before 5.11 maps are counted against what a process may lock in memory, 64 KB by default."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return  # then the kernel says so when a map is made


def _information(descriptor: int, asked: bytes) -> bytes:
    filled = ctypes.create_string_buffer(asked, 128)
    _bpf(_INFORMATION, _buffer(_ASKED.pack(descriptor, len(filled), ctypes.addressof(filled))))
    return filled.raw


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_WORD_SIZE: Final = struct.calcsize("P")
_NUMBER: Final = (_SYSTEM_CALLS if _WORD_SIZE == 8 else _SYSTEM_CALLS_32).get(platform.machine())


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    if _NUMBER is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no number known here on {platform.machine()}")
    result: int = _LIBC.syscall(_NUMBER, command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
