"""FreeBSD: ipfw's rules around ours: what would take our packets first, and what would deny mapped flows behind the
NAT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from natf_bsd.doctor.facts import Facts, Host, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw import (
    EnPlaces,
    RouterPlaces,
    Rule,
    en_places,
    parse_rules,
    parse_tables,
    router_places,
)
from natf_bsd.firewall.ipfw_rules import Tables
from natf_bsd.ops.interfaces import Interface

# A rule about packets from anywhere. Whether it is about new flows from outside, which come in by the outer interface,
# is for `_verdict`, which knows these options and takes a rule with any others for one about some flows only.
_ACTION: Final = r"(?P<action>allow|accept|pass|permit|deny|drop|reject|reset|unreach \S+)(?: log(?: logamount \d+)?)?"
_RULE: Final = re.compile(rf"{_ACTION} (?P<protocol>\S+|{{ [^}}]* }}) from any to (?P<to>\S+)(?P<options>.*)")
_ALLOWING: Final = frozenset({"allow", "accept", "pass", "permit"})
_STATE: Final = re.compile(r" (?:keep-state|record-state)(?: :\S+)?")
_NEVER: Final = re.compile(r" (?:established|frag|out|xmit \S+|diverted-output)(?: |$)")
_VIA: Final = re.compile(r" (?:via|recv) (\S+)")
_PROTO: Final = re.compile(r" proto (\S+)")
_BEHIND: Final = 5  # numbers natf's own rules take behind the NAT's, see `ipfw_places`


def places(host: Host, facts: Facts) -> list[Finding]:
    """Whether each role's rules have room in front of whatever would take their packets."""
    if not facts["rules"].known:
        return [unseen(host, "rules of ipfw", facts["rules"])]
    return [finding for role in host.roles if role.interface for finding in _places(host, facts, role.name)]


def denials(host: Host, facts: Facts) -> list[Finding]:
    """Whether rules behind the NAT's would deny what the ACT allows, as firewall_type="simple" has (FREEBSD.md 2.4)."""
    role = host.role("router")
    if not facts["rules"].known or role is None or role.interface is None:
        return []
    try:
        rules = parse_rules(facts["rules"].text)
        nat = router_places(rules, role.interface, _tables(facts)).nat
    except NatfError:  # `places` has said it
        return []
    behind = [rule for rule in rules if rule.enabled and not rule.is_ours and rule.number > nat.inbound]
    last = max(nat.number, nat.inbound) + _BEHIND
    findings = [_denial(protocol, behind, role.interface, last) for protocol in ("tcp", "udp")]
    return _without_repetition(findings)


def _places(host: Host, facts: Facts, name: str) -> list[Finding]:
    title = f"rules for natf {name}"
    try:
        found = _find_places(host, facts, name)
    except NatfError as error:
        return [
            Finding(
                Severity.ERROR,
                title,
                str(error),
                f"mend the rules; natf {name} check then says whether more is in the way",
            )
        ]
    if isinstance(found, RouterPlaces):
        text = f"{found.control:05} and {found.control_pass:05}, {found.capture:05} and {found.reply:05} around the NAT"
        return [Finding(Severity.OK, title, f"{text} at {found.nat.number:05} ({found.nat.kind})")]
    beside = f", beside the NAT at {found.nat.number:05} ({found.nat.kind})" if found.nat else ""
    return [Finding(Severity.OK, title, f"from {_first(found):05} to {_last(found):05}{beside}")]


def _find_places(host: Host, facts: Facts, name: str) -> RouterPlaces | EnPlaces:
    rules, tables = parse_rules(facts["rules"].text), _tables(facts)
    role = host.role(name)
    if role is None or role.interface is None:
        raise NatfError("no outer interface")
    if name == "router":
        return router_places(rules, role.interface, tables)
    if host.en is None:
        raise NatfError("no settings")
    return en_places(rules, role.interface, host.en.virtual_network, tables)


def _tables(facts: Facts) -> Tables | None:
    answer = facts["tables"]
    return parse_tables(answer.text) if answer.known else None


def _first(found: EnPlaces) -> int:
    return min(found.reass, found.loopback)


def _last(found: EnPlaces) -> int:
    return max(found.peers, found.pass_out, found.queries, found.pass_in or 0)


def _denial(protocol: str, behind: Sequence[Rule], interface: Interface, last: int) -> Finding:
    title = f"mapped {protocol.upper()} flows"
    exceptions: list[Rule] = []
    for rule in behind:
        verdict = _verdict(rule, protocol, interface.name)
        if verdict is None:
            continue
        allows, fits_all = verdict
        if allows and not fits_all:
            exceptions.append(rule)
        elif fits_all:
            return _allowed(title, rule) if allows else _denied(title, rule, exceptions, interface, last)
    return Finding(Severity.OK, title, "no rule behind the NAT denies them")


def _verdict(rule: Rule, protocol: str, interface: str) -> tuple[bool, bool] | None:
    """Whether the rule allows new flows from anywhere to inside hosts, and whether it decides about all of them; None:
    it decides about none of them, or it denies only some."""
    match = _RULE.fullmatch(rule.body.partition(" //")[0])
    if match is None or match["to"] == "me" or not _could_be(match["protocol"], protocol):
        return None
    options = _STATE.sub("", match["options"])
    if _NEVER.search(options) or any(name not in (interface, "any") for name in _VIA.findall(options)):
        return None
    if any(not _could_be(name, protocol) for name in _PROTO.findall(options)):
        return None
    left = _PROTO.sub("", _VIA.sub("", options)).split()
    if "setup" in left and protocol != "tcp":
        return None
    allows = match["action"] in _ALLOWING
    fits_all = match["to"] == "any" and set(left) <= {"in", "setup"}
    return (allows, fits_all) if allows or fits_all else None


def _could_be(text: str, protocol: str) -> bool:
    return text in ("ip", "ip4", "ipv4", "all", protocol) or f" {protocol} " in text


def _allowed(title: str, rule: Rule) -> Finding:
    return Finding(Severity.OK, title, f"allowed behind the NAT by ipfw rule {rule}")


def _denied(title: str, rule: Rule, exceptions: Sequence[Rule], interface: Interface, last: int) -> Finding:
    if exceptions:
        text = f"denied by ipfw rule {rule}, but for what these allow: {'; '.join(map(str, exceptions))}"
        return Finding(Severity.NOTE, title, text, "see to it that they allow all that the access control table does")
    first = last + 1
    where = (
        f"number it from {first} to {rule.number - 1}" if first < rule.number else f"above {last}, and that rule higher"
    )
    example = f"add allow {title.split()[1].lower()} from any to 192.168.0.2 in recv {interface.name}"
    remedy = f"a rule for each host of the access control table, in the firewall's script: {example} ({where})"
    return Finding(Severity.WARNING, title, f"behind the NAT they are denied by ipfw rule {rule}", remedy)


def _without_repetition(findings: Sequence[Finding]) -> list[Finding]:
    """One for both protocols where the same rule decides."""
    first, second = findings
    if (first.severity, first.found) != (second.severity, second.found):
        return [first, second]
    remedy = first.remedy.replace("allow tcp from", "allow ip from")
    return [Finding(first.severity, "mapped flows", first.found, remedy)]
