"""What is there without a daemon it belongs to, and a daemon without what it should have."""

from __future__ import annotations

from typing import Final

from natf_bsd.datapath import ipfw_reverse
from natf_bsd.divert.host import holder_of
from natf_bsd.doctor.facts import Facts, Host, Process, Role, processes, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw import EN_SET, ROUTER_SET, STAND_IN_SET, Rule, parse_rules

_SETS: Final = {"en": EN_SET, "router": ROUTER_SET}
_QUEUES: Final = {
    "en": ("dns_queue", "query_queue", "out_queue", "in_queue", "control_queue"),
    "router": ("control_queue", "capture_queue"),
}
_LOST: Final = {
    "en": "DNS answers and packets of NAT-f routers are lost",
    "router": "echo requests to this host are lost",
}
_INIT: Final = 1


def daemons(host: Host, facts: Facts) -> list[Finding]:
    """Which run, by their locks; and the kernel settings that a killed one has not set back."""
    return [finding for role in host.roles for finding in (_daemon(role), _journal(role, facts)) if finding]


def rules(host: Host, facts: Facts) -> list[Finding]:
    """FreeBSD: rules of ours without a daemon, and a daemon without its rules."""
    if not facts["rules"].known:
        return []
    try:
        ours = [rule for rule in parse_rules(facts["rules"].text) if rule.is_ours]
    except NatfError:
        return []  # `rules.places` has said it
    found = [_rules(role, ours) for role in host.roles]
    return [finding for finding in found if finding is not None]


def flows(host: Host, facts: Facts) -> list[Finding]:
    """FreeBSD: flows that a killed external node had given to the kernel, which nobody sees end."""
    role = host.role("en")
    answer = facts["nat instances"]
    if role is None or not role.is_away or not answer.known:
        return []
    left = sum(ipfw_reverse.is_ours(line.strip()) for line in answer.text.splitlines())
    if not left:
        return []
    text = f"{left} flows that a killed daemon had given to the kernel are there still (ipfw nat show config)"
    remedy = "service natf_en start, or to remove them: natf cleanup en"
    return [Finding(Severity.WARNING, "leftovers of natf en", text, remedy)]


def orphans(host: Host, facts: Facts) -> list[Finding]:
    """FreeBSD: a daemon whose supervisor was killed lives on, and nobody starts it again (FREEBSD.md 13)."""
    alive = {process.number: process for process in processes(facts)}
    found = [_orphan(role, facts, alive) for role in host.roles]
    return [finding for finding in found if finding is not None]


def ports(host: Host, facts: Facts) -> list[Finding]:
    """FreeBSD: divert ports that somebody else holds while our daemon is away."""
    return [
        finding
        for role in host.roles
        if role.is_away
        for name in _QUEUES[role.name]
        if (finding := _port(role, name, host, facts)) is not None
    ]


def _daemon(role: Role) -> Finding:
    title = f"natf {role.name}"
    if role.unseen:
        return Finding(Severity.NOTE, title, f"not seen whether it runs: {role.unseen}", "run natf doctor as root")
    if role.process is None:
        return Finding(
            Severity.NOTE, title, "not running", f"natf {role.name} run (FreeBSD: service natf_{role.name} start)"
        )
    return Finding(Severity.OK, title, f"running (process {role.process or 'unknown, just started'})")


def _journal(role: Role, facts: Facts) -> Finding | None:
    answer = facts[f"journal {role.name}"]
    if not role.is_away or not answer.known:
        return None
    text = f"a daemon that was killed has left kernel settings changed; {answer.asked} has the old ones"
    return Finding(Severity.WARNING, f"leftovers of natf {role.name}", text, f"natf cleanup {role.name}")


def _rules(role: Role, ours: list[Rule]) -> Finding | None:
    title = f"leftovers of natf {role.name}"
    in_force = [rule for rule in ours if rule.set == _SETS[role.name] and rule.enabled]
    stands_in = role.name == "en" and any(rule.set == STAND_IN_SET and rule.enabled for rule in ours)
    start = f"service natf_{role.name} start, or to remove them: natf cleanup {role.name}"
    if role.is_away and in_force:
        text = f"{len(in_force)} rules in ipfw's set {_SETS[role.name]} and no daemon: {_LOST[role.name]}"
        return Finding(Severity.ERROR, title, text, start)
    if role.is_away and stands_in:
        text = "its stand-in is in force: packets to virtual addresses are refused until it is started again"
        return Finding(Severity.NOTE, title, text, start)
    if role.process and (stands_in or not in_force):
        text = f"it runs (process {role.process}), and its rules are {'disabled' if stands_in else 'not there'}"
        return Finding(Severity.WARNING, f"rules of natf {role.name}", text, f"natf {role.name} reload")
    return None


def _orphan(role: Role, facts: Facts, alive: dict[int, Process]) -> Finding | None:
    daemon = alive.get(role.process or 0)
    file = facts[f"pidfile {role.name}"]
    if daemon is None or daemon.parent != _INIT or not file.known:
        return None
    supervisor = file.text.strip()
    if supervisor.isdecimal() and int(supervisor) in alive:
        return None
    text = (
        f"process {daemon.number} has lost its supervisor ({file.asked} names {supervisor or 'none'}, which is dead):"
        " when it dies, nobody starts it again"
    )
    service = f"service natf_{role.name}"
    return Finding(Severity.WARNING, f"supervisor of natf {role.name}", text, f"{service} stop; {service} start")


def _port(role: Role, name: str, host: Host, facts: Facts) -> Finding | None:
    port: int = getattr(host.en if role.name == "en" else host.router, name)
    holder = holder_of(port, facts["divert ports"].text)
    if holder is None:
        return None
    text = f"divert port {port} ({name} of [{role.name}]) is held by {holder}"
    remedy = f"end that process, or give [{role.name}] another {name}"
    return Finding(Severity.ERROR, f"divert ports of natf {role.name}", text, remedy)


def divert_ports_unseen(host: Host, facts: Facts) -> list[Finding]:
    """FreeBSD: that the programs the others rely on did not answer."""
    return [unseen(host, name, facts[name]) for name in ("divert ports", "processes") if not facts[name].known]
