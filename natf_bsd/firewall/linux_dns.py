"""iptables rules (of mangle) that queue look-ups: those of this host's programs and, on a gateway, of inside hosts."""

from __future__ import annotations

from typing import Final

# IPv4 and TCP headers (40 bytes), the length before a message and a DNS header (14): no query is shorter. An
# acknowledgement alone is, with time stamps too (52), and stays with the kernel.
_WITH_DATA: Final = "-m length --length 54:65535 -m conntrack --ctstate ESTABLISHED"


def queries(queue: int) -> list[str]:
    """Only an answer to one of them is believed; one by TCP for an address of our names is reset."""
    return [
        f"-p udp --dport 53 {_to(queue)}",
        f"-p tcp --dport 53 {_WITH_DATA} {_to(queue)}",
    ]


def answers(queue: int) -> list[str]:
    """Of a connection conntrack knows, or none at all: what is to be NEW from port 53 was asked by nobody."""
    return [f"-p udp --sport 53 -m conntrack --ctstate ESTABLISHED,UNTRACKED {_to(queue)}"]


def _to(queue: int) -> str:
    """With the daemon away names are looked up as without NAT-f: hence the bypass."""
    return f"-j NFQUEUE --queue-num {queue} --queue-bypass"
