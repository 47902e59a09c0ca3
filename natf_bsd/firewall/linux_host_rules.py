"""What the host's own rules would make of flows that are rewritten behind them, at the outer interface.

Such rules see V1, not G2. Most do not care: they go by interfaces, ports and the states of connections. Those that deny
packets by address do, and so do those that deny what no rule knows. Only rules whose text tells it are found: one in a
chain of others, behind conditions, may let nothing out and not look so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from typing import Final

# Policies to drop, and rules that drop or reject: of nftables behind the hook of their chain. Neither our own nor what
# only blocks single sources, of which some hosts have thousands.
_AWK: Final = r"""
/^:/ { if ($2 == "DROP") print; next }
/^-A NATF-/ { next }
/^-A/ { if (/ -j (DROP|REJECT)/ && (!/ -s [0-9.]+\/32 / || index($0, " -s " first))) print; next }
/^table / { ours = $3 == "natf_en"; next }
/^[ \t]*chain / { chain = $2; hook = "-"; next }
ours || chain ~ /^NATF-/ { next }
/^[ \t]*type .* hook / { for (i = 1; i < NF; i++) if ($i == "hook") hook = $(i + 1); if (/policy drop/) print "-", $0 }
/[ \t](drop|reject)/ && (!/ip saddr [0-9.]+ / || index($0, "ip saddr " first)) { print hook, $0 }
"""

_DENIES_ALL: Final = "its firewall drops what it has no rule for, and must see routers' addresses, not virtual ones"
_POLICY: Final = re.compile(r":(OUTPUT|POSTROUTING) DROP|.* hook (output|postrouting) .*policy drop")
_OUTWARD: Final = re.compile(r"-A (OUTPUT|POSTROUTING) |(output|postrouting) ")
_BEFORE_ROUTING: Final = re.compile(r"-A PREROUTING |(prerouting|ingress) ")
_INWARD: Final = re.compile(r"-A (INPUT|PREROUTING) |(input|prerouting|ingress) ")
_OF_OTHERS: Final = re.compile(r"-A FORWARD |forward ")
# What is left of a rule without conditions; counting, logging and comments are none.
_BARE: Final = re.compile(
    r"(-A (OUTPUT|POSTROUTING)|output|postrouting)( -o \S+)?( -j (DROP|REJECT)( --reject-with \S+)?| drop| reject.*)"
)
_NO_CONDITION: Final = re.compile(
    r" -m comment --comment (\"[^\"]*\"|\S+)| comment \"[^\"]*\"| counter packets \d+ bytes \d+"
    r"| log( prefix \"[^\"]*\")?(?= )"
)
_ADDRESSES: Final = re.compile(
    r"(?P<other>! )?(?P<kind>-[sd]) (?P<net>\S+)"
    r"|\bip (?P<nft>[sd])addr (?P<unequal>!= )?(?P<nets>\{[^}]*\}|[^\s{]+)"
)
_SET: Final = re.compile(r"--match-set \S+ (?P<sides>\S+)|\bip (?P<side>[sd])addr (!= )?@")


@dataclass(frozen=True, slots=True)
class HostRules:
    """`refusal`: why no flow should be rewritten behind them, None if there is no reason. `denied`: where they deny
    packets to."""

    refusal: str | None
    denied: tuple[IPv4Network, ...] = ()


def listing(prefix: str) -> str:
    """A line of shell that prints what `read` reads. `prefix`: of the virtual addresses, as for `read`."""
    first = prefix.partition(".")[0]
    return f"{{ iptables-save; nft -t list ruleset; }} 2>/dev/null | awk -v first={first}. '{_AWK}'"


def read(lines: Iterable[str], prefix: str) -> HostRules:
    virtual, denied = IPv4Network(prefix), set[IPv4Network]()
    for line in lines:
        rule = " ".join(_NO_CONDITION.sub("", line).split())
        if _OF_OTHERS.match(rule):
            continue
        if _POLICY.match(rule) or _BARE.fullmatch(rule):
            return HostRules(_DENIES_ALL)
        if found := _concerns(rule, virtual):
            return HostRules(f"{found}: {rule}")
        if not _INWARD.match(rule):
            denied.update(net for side, equal, net in _networks(rule) if side == "d" and equal and net.prefixlen)
    return HostRules(None, tuple(sorted(denied)))


def _concerns(rule: str, virtual: IPv4Network) -> str | None:
    """What a rule that denies packets has to do with virtual addresses, if anything."""
    before_us, behind_us = _BEFORE_ROUTING.match(rule), _OUTWARD.match(rule)
    for match in _SET.finditer(rule):
        sides = match["sides"] or match["side"]
        to, of = "d" in sides, "s" in sides.replace("dst", "")
        if (to and not _INWARD.match(rule)) or (of and before_us):
            return "a rule of its firewall goes by a set of addresses, and would see virtual ones"
    for side, equal, network in _networks(rule):
        if equal and network.prefixlen and network.overlaps(virtual):
            return "a rule of its firewall denies virtual addresses"
        if not equal and not virtual.subnet_of(network) and (behind_us if side == "d" else before_us):
            return "a rule of its firewall denies all but some addresses, and would see virtual ones"
    return None


def _networks(rule: str) -> Iterator[tuple[str, bool, IPv4Network]]:
    """Side ("s" or "d"), whether the rule is for these addresses or for all others, and which."""
    for match in _ADDRESSES.finditer(rule):
        if match["kind"]:
            side, equal, text = match["kind"][1], not match["other"], match["net"]
        else:
            side, equal, text = match["nft"], not match["unequal"], match["nets"].strip("{} ")
        for part in filter(None, re.split(r"[,\s]+", text)):
            for network in _read_network(part):
                yield side, equal, network


def _read_network(text: str) -> list[IPv4Network]:
    """None of what is no address: a set's name, an interface's."""
    first, _, last = text.partition("-")
    try:
        if last:
            return list(summarize_address_range(IPv4Address(first), IPv4Address(last)))
        return [IPv4Network(text, strict=False)]
    except ValueError:
        return []
