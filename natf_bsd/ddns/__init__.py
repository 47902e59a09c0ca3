"""The home's address records, kept right from the router by RFC 2136 updates: beside NAT-f, in a process of its own."""
