"""Packets out of the kernel and back: one handle over divert(4), NFQUEUE and memory (DESIGN.md section 6)."""

from natf_bsd.divert.handle import Backend, Divert, held_by, open_backend
from natf_bsd.types import Direction, Packet

__all__ = ["Backend", "Direction", "Divert", "Packet", "held_by", "open_backend"]
