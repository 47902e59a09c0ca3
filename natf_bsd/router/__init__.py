"""The NAT-f router [3.2]: `core` checks requests, has the NAT make mappings and answers; `daemon` is the wiring."""
