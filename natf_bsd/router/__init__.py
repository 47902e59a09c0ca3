"""The NAT-f router [3.2]: `core` checks a request, has the NAT make the mapping and answers; `daemon` is the wiring
to the kernel."""
