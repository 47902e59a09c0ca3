"""How the router makes its NAT learn a mapping: pseudo-packets, and bridges that pass them through a NAT."""

from natf_bsd.natd_bridge.bridge import NatBridge
from natf_bsd.natd_bridge.pseudo import Captured, PseudoStyle

__all__ = ["Captured", "NatBridge", "PseudoStyle"]
