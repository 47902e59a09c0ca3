"""The NAT-f router [3.2]: `core` checks requests, has the NAT make mappings and answers; `node` is the wiring to the
kernel, `daemon` its life on a host."""
