"""The external node [3.2]: `core` decides, `lookups` answer for names, `negotiations` ask routers for mappings;
`node` is the wiring to the kernel, `daemon` its life on a host."""
