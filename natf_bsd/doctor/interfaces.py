"""FreeBSD: is there an outer interface, and can divert(4) say its name (FREEBSD.md 1.4)."""

from __future__ import annotations

import re
from typing import Final

from natf_bsd.divert.sockaddr import NAME_MAXIMUM
from natf_bsd.doctor.facts import Facts, Host, Role
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.interfaces import read_route

_NAME: Final = re.compile(r"^([^\s:]+): flags=", re.MULTILINE)


def outer(host: Host, facts: Facts) -> list[Finding]:
    """The outer interface of each role, with an IPv4 address: without one what comes in looks as if it went out."""
    return [_outer(role) for role in host.roles]


def names(host: Host, facts: Facts) -> list[Finding]:
    """Whether two interfaces have one name in the 7 characters that divert sockets have for it."""
    every = _NAME.findall(facts["interfaces"].text)
    return [
        finding
        for interface in host.interfaces
        if (finding := _name(interface.name, [name for name in every if name != interface.name])) is not None
    ]


def way_out(host: Host, facts: Facts) -> list[Finding]:
    """Whether programs have a route to virtual addresses, and by the outer interface: natf sees them there alone
    (FREEBSD.md 6)."""
    role = host.role("en")
    if role is None or role.interface is None or host.en is None or "way out" not in facts:
        return []
    title, outer = "way to virtual addresses", role.interface.name
    name = read_route(facts["way out"].text).get("interface")
    if name == outer:
        return [Finding(Severity.OK, title, f"by {name}")]
    route = f"route add -net {host.en.virtual_network} GATEWAY, with the router that {outer} leads to"
    if name is None:
        text = "there is none: programs are told that the network is unreachable"
        return [Finding(Severity.ERROR, title, text, f'defaultrouter="GATEWAY" in /etc/rc.conf, or {route}')]
    return [Finding(Severity.ERROR, title, f"by {name}, where natf refuses them; it works on {outer}", route)]


def _outer(role: Role) -> Finding:
    title = f"outer interface of natf {role.name}"
    if role.interface is None:
        return Finding(Severity.ERROR, title, role.trouble, f'interface = "IF" in [{role.name}] of the configuration')
    return Finding(Severity.OK, title, str(role.interface))


def _name(name: str, others: list[str]) -> Finding | None:
    cut = name[:NAME_MAXIMUM]
    alike = [other for other in others if other[:NAME_MAXIMUM] == cut and NAME_MAXIMUM in (len(name), len(other))]
    title = f"name of {name}"
    if alike:
        text = (
            f"divert sockets cut names after {NAME_MAXIMUM} characters, and so take {name} and {', '.join(alike)} for"
            " one: natd and natf may put packets back on the wrong interface"
        )
        return Finding(Severity.WARNING, title, text, _rename(max(name, *alike, key=len)))
    if len(name) > NAME_MAXIMUM:
        text = f"longer than the {NAME_MAXIMUM} characters divert sockets keep; no harm unless one is named {cut}"
        return Finding(Severity.NOTE, title, text, f"for a clear name: {_rename(name)}")
    return None


def _rename(name: str) -> str:
    short = "wan0"
    return f'ifconfig_{name}_name="{short}" in /etc/rc.conf, with {short} in the other lines for it, and a reboot'
