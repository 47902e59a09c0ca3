"""The external node [3.2]: `core` decides, `negotiations` ask routers for mappings, `daemon` is the wiring."""
