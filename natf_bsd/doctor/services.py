"""FreeBSD: rc.conf(5): what will be there after the next boot, and after `service ipfw restart`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from natf_bsd.doctor.facts import Facts, Host, Role, unseen
from natf_bsd.doctor.finding import Finding, Severity

KNOBS: Final = (
    "natf_en_enable",
    "natf_router_enable",
    "natf_en_config",
    "natf_router_config",
    "firewall_enable",
    "firewall_coscripts",
    "firewall_nat_enable",
    "gateway_enable",
    "natd_enable",
)
"""Variables that are looked at; `sysrc -i` leaves out those that are not set."""

_YES: Final = frozenset({"yes", "true", "on", "1"})  # rc.subr, checkyesno


def rc_conf(host: Host, facts: Facts) -> list[Finding]:
    answer = facts["rc.conf"]
    if not answer.known:
        return [unseen(host, "rc.conf", answer)]
    pairs = (line.partition(": ") for line in answer.text.splitlines())
    knobs = {name.strip(): value.strip() for name, _, value in pairs}
    return [finding for role in host.roles for finding in _service(host, role, knobs)]


def _service(host: Host, role: Role, knobs: dict[str, str]) -> list[Finding]:
    name = f"natf_{role.name}"
    if not _is_on(knobs, f"{name}_enable"):
        return [Finding(Severity.NOTE, name, "not started at boot", f"sysrc {name}_enable=YES")]
    findings = [Finding(Severity.OK, name, f"started at boot ({name}_enable)")]
    findings += _needs(role, knobs)
    script = f"/usr/local/etc/rc.d/{name}"
    if name not in [Path(word).name for word in knobs.get("firewall_coscripts", "").split()]:
        text = "firewall_coscripts does not name it: after `service ipfw restart` its rules are away for up to 10 s"
        findings.append(Finding(Severity.NOTE, name, text, f'sysrc firewall_coscripts+=" {script}"'))
    file = knobs.get(f"{name}_config", "")
    if file and host.configuration is not None and file != str(host.configuration):
        text = f"started with {file}, and {host.configuration} is what was looked at here"
        findings.append(Finding(Severity.NOTE, name, text, f"natf --config {file} doctor"))
    return findings


def _needs(role: Role, knobs: dict[str, str]) -> list[Finding]:
    wanted = [("firewall_enable", "ipfw")]
    if role.name == "router":
        wanted.append(("gateway_enable", "forwarding"))
    missing = [(knob, what) for knob, what in wanted if not _is_on(knobs, knob)]
    if role.name == "router" and not (_is_on(knobs, "natd_enable") or _is_on(knobs, "firewall_nat_enable")):
        missing.append(("natd_enable", "NAT"))
    return [
        Finding(
            Severity.WARNING,
            f"natf_{role.name}",
            f"started at boot, without {what}: {knob} is not YES (unless another script sets it up)",
            f"sysrc {knob}=YES",
        )
        for knob, what in missing
    ]


def _is_on(knobs: dict[str, str], name: str) -> bool:
    return knobs.get(name, "").lower() in _YES
