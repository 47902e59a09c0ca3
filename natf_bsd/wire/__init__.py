"""Bytes on the wire: checksums, IPv4 packets read, rewritten in place and made, and NAT-f messages.

Everything here is a pure function of its arguments. `checksum` and `packet` are the per-packet path; `build` makes
whole packets for the slow path; `icmp` is the carrier of control messages, `message` their content; `auth` and `cookie`
prove who sent them. A parser of outside bytes raises `natf_bsd.errors.WireError` and nothing else.
"""
