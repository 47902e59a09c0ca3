"""A backend without a kernel, for tests and model labs."""

from __future__ import annotations

import itertools
import socket
from collections import deque

from natf_bsd.types import Direction, Packet


class MemoryBackend:
    """Packets come from `feed()`; `sent` and `dropped` show what became of them, in order."""

    def __init__(self) -> None:
        self.sent: list[Packet] = []
        self.dropped: list[Packet] = []
        self._waiting: deque[Packet] = deque()
        self._numbers = itertools.count(1)
        self._received = 0
        self._reader, self._writer = socket.socketpair()  # readable while packets wait: one byte each
        self._writer.setblocking(False)
        self._reader.setblocking(False)

    def feed(self, data: bytes | bytearray, direction: Direction, interface: str = "") -> Packet:
        """Let a packet wait to be received."""
        packet = Packet(bytearray(data), direction, interface, next(self._numbers))
        self._waiting.append(packet)
        self._writer.send(b"x")
        return packet

    def fileno(self) -> int:
        return self._reader.fileno()

    def receive(self, limit: int) -> list[Packet]:
        packets = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        if packets:
            self._reader.recv(len(packets))
        self._received += len(packets)
        return packets

    def send(self, packet: Packet) -> None:
        self.sent.append(packet)

    def drop(self, packet: Packet) -> None:
        self.dropped.append(packet)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    @property
    def counters(self) -> dict[str, int]:
        return {"received": self._received, "sent": len(self.sent), "dropped": len(self.dropped)}
