"""The external node [3.2]: `core` decides, `negotiation` is one flow's way to its mapping, `daemon` is the wiring
to the kernel."""
