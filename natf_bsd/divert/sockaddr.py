"""The sockaddr_in of divert(4): where a packet was taken out, and where it is put back (FREEBSD.md 1.4, 1.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from natf_bsd.errors import NatfError
from natf_bsd.types import Address, Direction, format_address

SIZE: Final = 16
AF_INET: Final = 2
NO_ADDRESS: Final[Address] = bytes(4)
NAME_MAXIMUM: Final = 7
"""sin_zero is 8 bytes with the NUL: a longer interface name arrives cut, and cannot be written."""

# sin_len, sin_family, sin_port, sin_addr, sin_zero. sin_port holds the rule number in the byte order of the host; only
# in bind() it is a port in network order.
_SOCKADDR: Final = struct.Struct("=BBH4s8s")
_BIND: Final = struct.Struct("!BBH12x")
_ADDRESS: Final = slice(4, 8)
_RULE_MAXIMUM: Final = 0xFFFF
# Makes a write incoming where the interface's name decides and it has no address: any value but zero does, and an
# address of 0.0.0.0/8 is nobody's.
_ANY_ADDRESS: Final[Address] = bytes([0, 0, 0, 1])


@dataclass(frozen=True, slots=True)
class Place:
    """What a divert socket's sockaddr_in says.

    `rule`: the ipfw rule that diverted the packet; a packet written goes on at the first rule with a higher number.
    `address`: incoming: the first IPv4 address of the receive interface; 0.0.0.0: outgoing, or there is none.
    `interface`: the receive interface, also of forwarded outgoing packets; empty for what this host made itself.
    """

    rule: int
    address: Address = NO_ADDRESS
    interface: str = ""

    @classmethod
    def unpack(cls, raw: bytes) -> Place:
        """Read the 16 bytes that recvfrom() gave."""
        _, _, rule, address, name = _SOCKADDR.unpack(raw)
        return cls(rule, address, name.split(b"\0", 1)[0].decode("ascii", "replace"))

    def pack(self) -> bytes:
        """The 16 bytes for sendto(). NatfError if a rule number or a name does not fit."""
        if not 0 <= self.rule <= _RULE_MAXIMUM:
            raise NatfError(f"rule {self.rule}: expected 0 to {_RULE_MAXIMUM}")
        if len(self.interface) > NAME_MAXIMUM:
            raise NatfError(
                f"interface {self.interface}: divert(4) takes names of at most {NAME_MAXIMUM} characters; "
                "give the interface's address, or rename it (ifconfig IF name SHORT)"
            )
        return _SOCKADDR.pack(SIZE, AF_INET, self.rule, self.address, self.interface.encode("ascii"))

    def __str__(self) -> str:
        return f"rule {self.rule} {format_address(self.address)} {self.interface or '-'}"


def bind_address(port: int) -> bytes:
    """The sockaddr_in that binds a divert socket; only the port counts. NatfError for a port ipfw does not take."""
    if not 0 < port <= 0xFFFF:
        raise NatfError(f"divert port {port}: expected 1 to 65535")
    return _BIND.pack(SIZE, AF_INET, port)


def incoming(raw: bytes, *, keep_name: bool) -> bytes:
    """`raw` so that the packet is written as an incoming one; without the name, its address tells the interface."""
    if raw[_ADDRESS] == NO_ADDRESS:
        raw = raw[: _ADDRESS.start] + _ANY_ADDRESS + raw[_ADDRESS.stop :]
    return raw if keep_name else raw[: _ADDRESS.stop] + bytes(SIZE - _ADDRESS.stop)


def outgoing(raw: bytes) -> bytes:
    """`raw` so that the packet is written as an outgoing one."""
    return raw[: _ADDRESS.start] + NO_ADDRESS + raw[_ADDRESS.stop :]


def made(direction: Direction, rule: int, interface: str, address: Address) -> bytes:
    """The sockaddr_in for a packet of our own making. NatfError if it would not say where the packet is to go."""
    if direction is Direction.OUT:
        return Place(rule, NO_ADDRESS, interface).pack()
    if not interface and address == NO_ADDRESS:
        raise NatfError("an incoming packet needs the name or an address of the interface it is to come in by")
    return incoming(Place(rule, address, interface).pack(), keep_name=True)
