"""The NAT that is there, found by the rules that hand it packets (FREEBSD.md 2.4, 3)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw_rules import Rule
from natf_bsd.ops.interfaces import Interface
from natf_bsd.types import Direction, parse_address

_NAT: Final = re.compile(
    r"(divert|nat) (\d+) (?:log (?:logamount \d+ )?)?(?:ip|ip4|all) from any to (any|me)((?: \S+)*)"
)
_KINDS: Final = {"divert": "natd", "nat": "ipfw nat"}
# sin_zero has 8 bytes, one of them NUL (FREEBSD.md 1.5).
_LONGEST_NAME: Final = 7
_NAME: Final = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True, slots=True)
class NatRule:
    """The rule by which packets that leave get to the NAT: N of FREEBSD.md section 11.

    `argument` is natd's divert port, or the instance of `ipfw nat`. `received_on`: the rule wants packets that came in
    by this interface. `inbound` is the number of the rule for the way in, mostly the same.
    """

    number: int
    kind: str
    argument: int
    received_on: str | None
    inbound: int


@dataclass(frozen=True, slots=True)
class _Way:
    """A rule that hands the NAT everything that goes one way on the outer interface, or both."""

    rule: Rule
    kind: str
    argument: int
    directions: frozenset[Direction]
    received_on: str | None


def find_nat(rules: Iterable[Rule], interface: Interface) -> NatRule | None:
    """The NAT of the outer interface; None if no rule hands it all that leaves there.

    NatfError for a NAT that pseudo-packets cannot be sent through: several at once, one for the way out only, or one
    whose number other rules have too.
    """
    foreign = [rule for rule in rules if rule.enabled and not rule.is_ours]
    ways = [way for rule in foreign if (way := _way(rule, interface)) is not None]
    outbound = [way for way in ways if Direction.OUT in way.directions]
    if not outbound:
        return None
    out = _only(outbound, interface)
    inbound = [way for way in ways if Direction.IN in way.directions]
    if not inbound:
        raise NatfError(
            f"ipfw rule {out.rule} translates what leaves by {interface.name}, and no rule what comes in there;"
            f" expected `via {interface.name}` in it, or a rule `from any to any in via {interface.name}` for the same"
            " NAT"
        )
    into = _only(inbound, interface)
    # natd may read each way on a port of its own (-in_port, -out_port).
    if into.kind != out.kind or (out.kind == "ipfw nat" and into.argument != out.argument):
        raise NatfError(
            f"two NATs translate {interface.name}, one what leaves and one what comes in: ipfw rules {out.rule} and"
            f" {into.rule}; expected one for both"
        )
    _refuse_shared_numbers(foreign, out.rule, into.rule)
    return NatRule(out.rule.number, out.kind, out.argument, out.received_on, into.rule.number)


def no_nat(rules: Iterable[Rule], interface: Interface) -> NatfError:
    """What to tell whoever needs a NAT where `find_nat` finds none."""
    name = interface.name
    seen = [rule for rule in rules if rule.enabled and not rule.is_ours and rule.body.startswith(("divert ", "nat "))]
    found = f" (found only: {'; '.join(map(str, seen))})" if seen else ""
    return NatfError(
        f"no ipfw rule hands all that leaves by {name} to natd or `ipfw nat`{found}; expected a rule such as `divert"
        f" natd ip4 from any to any via {name}`, which these lines of /etc/rc.conf make: gateway_enable=YES,"
        f" firewall_enable=YES, firewall_type=open, natd_enable=YES, natd_interface={name} (or, for the NAT in the"
        f" kernel, firewall_nat_enable=YES, firewall_nat_interface={name}), and `service ipfw restart`"
    )


def _way(rule: Rule, interface: Interface) -> _Way | None:
    match = _NAT.fullmatch(rule.body.partition(" //")[0])
    if match is None:
        return None
    directions = {Direction.IN, Direction.OUT} if match[3] == "any" else {Direction.IN}
    received_on = None
    words = deque(match[4].split())
    while words:
        word = words.popleft()
        if word in ("in", "out"):
            directions &= {Direction(word)}
        elif word in ("via", "xmit", "recv") and words:
            name = words.popleft()
            if word == "xmit":
                directions.discard(Direction.IN)
            if _is_interface(name, interface):
                directions -= {Direction.OUT} if word == "recv" else frozenset()
            elif word == "recv" and _NAME.fullmatch(name):
                directions.discard(Direction.IN)
                received_on = name
            else:
                return None
        else:
            return None
    return _Way(rule, _KINDS[match[1]], int(match[2]), frozenset(directions), received_on)


def _is_interface(text: str, interface: Interface) -> bool:
    if text == "any" or fnmatchcase(interface.name, text):
        return True
    try:
        return parse_address(text) == interface.address
    except ValueError:
        return False


def _only(ways: Sequence[_Way], interface: Interface) -> _Way:
    if len(ways) > 1:
        texts = "; ".join(str(way.rule) for way in ways)
        raise NatfError(
            f"several ipfw rules hand the same packets of {interface.name} to a NAT or another reader: {texts}; natf"
            " works with one NAT, so that a pseudo-packet is translated once"
        )
    (way,) = ways
    if way.received_on is not None and len(way.received_on) > _LONGEST_NAME:
        raise NatfError(
            f"ipfw rule {way.rule} asks for packets received on {way.received_on}, a name of more than {_LONGEST_NAME}"
            " characters, which divert(4) cannot give a pseudo-packet; rename the interface (ifconfig_NAME_name in"
            " /etc/rc.conf) or leave `recv` out"
        )
    return way


def _refuse_shared_numbers(foreign: Collection[Rule], *nat: Rule) -> None:
    """In front of the NAT's rule another of its number sees a pseudo-packet first; behind it, `ipfw nat` goes on to it
    and a reinjected packet of natd does not."""
    for rule in foreign:
        if rule not in nat and any(rule.number == other.number for other in nat):
            raise NatfError(
                f"ipfw rule {rule} has the number of the NAT's rule; give it another, so that nothing comes between the"
                " NAT and natf's rules"
            )
