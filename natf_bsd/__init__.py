"""NAT-f: outsiders open ordinary connections to hosts behind a NAT, by name (Suzuki, Usami, Watanabe, IPSJ 2007)."""

__version__ = "0.1.0"
