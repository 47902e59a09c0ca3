"""Firewall rules as data: pure functions from configuration to commands, and a runner for them."""
