"""Packets out of the kernel and back: one handle over divert(4), NFQUEUE and memory (DESIGN.md section 6)."""

from natf_bsd.divert.handle import Backend, Divert, open_backend
from natf_bsd.types import Direction, Packet

__all__ = ["Backend", "Direction", "Divert", "Packet", "open_backend"]
