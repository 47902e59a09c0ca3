"""Linux: packets rewritten where they leave and enter the outer interface, by two small eBPF programs of ours."""
