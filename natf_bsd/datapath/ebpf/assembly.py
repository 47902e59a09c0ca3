"""Instructions of eBPF (RFC 9669), as many of them as our programs need."""

from __future__ import annotations

import struct
import sys
from typing import Final

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FRAME = range(11)

BYTE: Final = 0x10
HALF: Final = 0x08
WORD: Final = 0x00
DOUBLE: Final = 0x18

_INSTRUCTION: Final = struct.Struct("=BBhi")
_LARGEST_JUMP: Final = 0x7FFF

# Classes and operations, RFC 9669 sections 4 and 5.
_LOAD_IMMEDIATE: Final = 0x18
_LOAD: Final = 0x61
_STORE_IMMEDIATE: Final = 0x62
_STORE: Final = 0x63
_ATOMIC_ADD: Final = 0xDB
_ALU_AND: Final = 0x54
_ALU_OR: Final = 0x44
_MOVE: Final = 0xBF
_MOVE_IMMEDIATE: Final = 0xB7
_ADD_IMMEDIATE: Final = 0x07
_AND_IMMEDIATE: Final = 0x57
_OR_IMMEDIATE: Final = 0x47
_ADD: Final = 0x0F
_XOR_IMMEDIATE: Final = 0xA7
_SHIFT_LEFT: Final = 0x67
_SHIFT_RIGHT: Final = 0x77
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_UNEQUAL: Final = 0x55
_CALL: Final = 0x85
_EXIT: Final = 0x95
_MAP: Final = 1  # source register of _LOAD_IMMEDIATE: the number is a map's descriptor


class Assembly:
    """A program as it is written down. Offsets are in bytes, memory is that behind a register, jumps go to labels."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int, int]] = []
        self._targets: dict[int, str] = {}
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """The next instruction is where jumps to `name` go."""
        if name in self._labels:
            raise ValueError(f"label {name} twice")
        self._labels[name] = len(self._instructions)

    def code(self) -> bytes:
        """Instructions as the kernel takes them; ValueError for a jump to nowhere."""
        for place, name in self._targets.items():
            if name not in self._labels:
                raise ValueError(f"no label {name}")
            distance = self._labels[name] - place - 1
            if not 0 <= distance <= _LARGEST_JUMP:
                raise ValueError(f"{name} is behind, or too far away")
            operation, destination, source, _, immediate = self._instructions[place]
            self._instructions[place] = (operation, destination, source, distance, immediate)
        return b"".join(_encode(*instruction) for instruction in self._instructions)

    def move(self, destination: int, source: int) -> None:
        self._add(_MOVE, destination, source)

    def set(self, destination: int, number: int) -> None:
        self._add(_MOVE_IMMEDIATE, destination, immediate=number)

    def add(self, destination: int, number: int) -> None:
        self._add(_ADD_IMMEDIATE, destination, immediate=number)

    def add_register(self, destination: int, source: int) -> None:
        self._add(_ADD, destination, source)

    def both(self, destination: int, number: int) -> None:
        """Bitwise and."""
        self._add(_AND_IMMEDIATE, destination, immediate=number)

    def either(self, destination: int, number: int) -> None:
        """Bitwise or."""
        self._add(_OR_IMMEDIATE, destination, immediate=number)

    def both_word(self, destination: int, number: int) -> None:
        """Bitwise and of the lower 32 bits; the upper ones become 0."""
        self._add(_ALU_AND, destination, immediate=_signed(number))

    def either_word(self, destination: int, number: int) -> None:
        """As `both_word`, or."""
        self._add(_ALU_OR, destination, immediate=_signed(number))

    def differ(self, destination: int, number: int) -> None:
        """Bitwise exclusive or."""
        self._add(_XOR_IMMEDIATE, destination, immediate=number)

    def shift_left(self, destination: int, bits: int) -> None:
        self._add(_SHIFT_LEFT, destination, immediate=bits)

    def shift_right(self, destination: int, bits: int) -> None:
        self._add(_SHIFT_RIGHT, destination, immediate=bits)

    def load(self, size: int, destination: int, base: int, offset: int) -> None:
        self._add(_LOAD | size, destination, base, offset)

    def store(self, size: int, base: int, offset: int, source: int) -> None:
        self._add(_STORE | size, base, source, offset)

    def store_number(self, size: int, base: int, offset: int, number: int) -> None:
        self._add(_STORE_IMMEDIATE | size, base, offset=offset, immediate=number)

    def add_to_memory(self, base: int, offset: int, source: int) -> None:
        """Atomically, 64 bits."""
        self._add(_ATOMIC_ADD, base, source, offset)

    def load_map(self, destination: int, descriptor: int) -> None:
        self._add(_LOAD_IMMEDIATE, destination, _MAP, immediate=descriptor)
        self._add(0, 0)

    def jump(self, target: str) -> None:
        self._jump(_JUMP, 0, 0, target)

    def if_equal(self, register: int, number: int, target: str) -> None:
        self._jump(_JUMP_EQUAL, register, number, target)

    def if_unequal(self, register: int, number: int, target: str) -> None:
        self._jump(_JUMP_UNEQUAL, register, number, target)

    def call(self, helper: int) -> None:
        """One of the kernel's functions: arguments in R1 to R5, which are lost, the result in R0."""
        self._add(_CALL, 0, immediate=helper)

    def leave(self, result: int) -> None:
        self.set(R0, result)
        self._add(_EXIT, 0)

    def _jump(self, operation: int, register: int, number: int, target: str) -> None:
        self._targets[len(self._instructions)] = target
        self._add(operation, register, immediate=number)

    def _add(self, operation: int, destination: int, source: int = 0, offset: int = 0, immediate: int = 0) -> None:
        self._instructions.append((operation, destination, source, offset, immediate))


def _encode(operation: int, destination: int, source: int, offset: int, immediate: int) -> bytes:
    # The two registers are bit fields: which is in the lower half depends on the machine (RFC 9669 section 3).
    low, high = (destination, source) if sys.byteorder == "little" else (source, destination)
    return _INSTRUCTION.pack(operation, high << 4 | low, offset, immediate)


def _signed(number: int) -> int:
    """32 bits as the field for an immediate number has them."""
    return number - (1 << 32) if number >= 1 << 31 else number
