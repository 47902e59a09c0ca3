"""Do the names programs ask for come by where the external node sees them: plain DNS over UDP and IPv4."""

from __future__ import annotations

import re
from typing import Final

from natf_bsd.config import EnConfig
from natf_bsd.doctor.facts import Answer, Facts, Host, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.resolvers import RESOLV_CONF, name_servers
from natf_bsd.types import format_address

_TITLE: Final = "name servers"
_OVER_TCP: Final = frozenset({"usevc", "use-vc"})  # resolver(5) of FreeBSD, resolv.conf(5) of glibc
_TLS_UPSTREAM: Final = re.compile(r"^\s*(?:forward-)?(?:tls|ssl)-upstream:\s*yes", re.MULTILINE)


def lookups(host: Host, facts: Facts) -> list[Finding]:
    """What resolv.conf says, as far as it concerns an external node."""
    if host.en is None:
        return []
    answer = facts["resolv.conf"]
    if not answer.known and not answer.missing:
        return [unseen(host, _TITLE, answer)]
    findings = [*_over_tcp(answer.text), *_servers(answer, host.en)]
    return findings or [_good(answer)]


def local_unbound(host: Host, facts: Facts) -> list[Finding]:
    """A resolver here that asks others by TLS serves the programs of this host alone: what it hears is not seen."""
    file = facts["unbound"]
    if host.en is None or not _TLS_UPSTREAM.search(file.text):
        return []
    text = (
        f"{file.asked}: local_unbound asks by TLS. Programs of this host are served all the same (what they ask it goes"
        " over lo0); inside hosts that ask it get the router's true address"
    )
    remedy = "for inside hosts: no forward-tls-upstream, and the servers it asks in `resolvers` of [en]"
    return [Finding(Severity.NOTE, "local resolver", text, remedy)]


def _listed(text: str) -> list[str]:
    lines = (line.split() for line in text.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def _over_tcp(text: str) -> list[Finding]:
    lines = (line.split() for line in text.splitlines())
    found = [word for words in lines if words[:1] == ["options"] for word in words[1:] if word in _OVER_TCP]
    if not found:
        return []
    text = f"`options {found[0]}` has programs ask over TCP, which natf does not see: they get the router's address"
    return [Finding(Severity.ERROR, _TITLE, text, f"take {found[0]} out of {RESOLV_CONF}")]


def _servers(answer: Answer, config: EnConfig) -> list[Finding]:
    listed = _listed(answer.text)
    usable = name_servers(answer.text)
    remedy = f"an IPv4 server first in {RESOLV_CONF}"
    if not usable:
        text = f"none with an IPv4 address ({', '.join(listed)}): natf does not see what is asked over IPv6"
        return [Finding(Severity.ERROR, _TITLE, text, remedy)]
    sixes = [server for server in listed if ":" in server]
    if sixes and listed[0] == sixes[0]:
        text = f"{sixes[0]} is asked first, over IPv6, which natf does not see"
        return [Finding(Severity.ERROR, _TITLE, text, remedy)]
    findings = []
    if sixes:
        text = f"when {listed[0]} does not answer, {', '.join(sixes)} is asked over IPv6, which natf does not see"
        findings.append(Finding(Severity.NOTE, _TITLE, text))
    strangers = usable - set(config.resolvers) if config.resolvers else frozenset()
    if strangers:
        names = ", ".join(sorted(map(format_address, strangers)))
        text = f"programs ask {names}, whose answers are not believed: `resolvers` of [en] does not name it"
        findings.append(Finding(Severity.WARNING, _TITLE, text, f"add {names} to resolvers, or take resolvers out"))
    return findings


def _good(answer: Answer) -> Finding:
    usable = ", ".join(sorted(map(format_address, name_servers(answer.text))))
    source = "" if _listed(answer.text) else f", as {RESOLV_CONF} names none"
    return Finding(
        Severity.OK, _TITLE, f"{usable}{source} (not seen: programs with a resolver of their own, by TLS or HTTPS)"
    )
