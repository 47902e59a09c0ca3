"""The nouns everything else speaks of: addresses, endpoints, flows, packets, names.

Addresses are 4 bytes in network order throughout, because that is how they lie in a packet: a table look-up takes a
slice of the packet as it is. Text appears only at the edges (configuration, status, messages to people).
"""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Address: TypeAlias = bytes
"""An IPv4 address: 4 bytes, network order."""


_KEY = struct.Struct("!4s4sHHB")


class Protocol(enum.IntEnum):
    """IP protocol numbers NAT-f deals with (IANA)."""

    ICMP = 1
    TCP = 6
    UDP = 17


class Direction(enum.Enum):
    """Which way a packet was going when the kernel handed it to us."""

    IN = "in"
    OUT = "out"


def parse_address(text: str) -> Address:
    """Four bytes for dotted-quad `text`; ValueError by inet_pton's rules: no leading zeros, no short forms."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None


def format_address(address: Address) -> str:
    return socket.inet_ntop(socket.AF_INET, address)


class Endpoint(NamedTuple):
    """An address and a TCP or UDP port."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"{format_address(self.address)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a TCP or UDP conversation."""

    protocol: int
    source: Endpoint
    destination: Endpoint
    _key: bytes = field(init=False, compare=False, repr=False, default=b"")

    @property
    def key(self) -> bytes:
        """The 13 bytes `wire.packet.flow_key` reads from a packet of it: addresses, ports, protocol. It is the same
        object for all tables."""
        if not self._key:
            source, destination = self.source, self.destination
            key = _KEY.pack(source.address, destination.address, source.port, destination.port, self.protocol)
            object.__setattr__(self, "_key", key)
        return self._key

    def reversed(self) -> Flow:
        return Flow(self.protocol, self.destination, self.source)

    def __str__(self) -> str:
        try:
            name = Protocol(self.protocol).name.lower()
        except ValueError:
            name = f"proto {self.protocol}"
        return f"{name} {self.source} > {self.destination}"


class Name(NamedTuple):
    """A private host name and its home domain, both lower case: ("alice", "home.example.net")."""

    host: str
    domain: str

    def __str__(self) -> str:
        return f"{self.host}.{self.domain}"


@dataclass(slots=True, eq=False)
class Packet:
    """One IPv4 packet the kernel handed over, from its first header byte.

    `token` is what the backend needs to put the packet back where it was (NFQUEUE: its id; divert(4): the whole
    sockaddr_in); a packet of our own making has none. Nothing outside divert/ looks into it. `handle` is the
    `divert.Divert` it was read from. `leaves` is the interface by which a packet goes on that came in by `interface`,
    where the platform tells (Linux).
    """

    data: bytearray
    direction: Direction
    interface: str = ""
    token: object = field(default=None, repr=False)
    handle: object = field(default=None, repr=False)
    leaves: str = ""
