"""FreeBSD: pf next to ipfw."""

from __future__ import annotations

from typing import Final

from natf_bsd.doctor.facts import Facts, Host, release, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.firewall.ipfw import PF_LOOPS_SINCE

_TITLE: Final = "pf next to ipfw"
_NO_DEVICE: Final = "/dev/pf: No such file"


def pf(host: Host, facts: Facts) -> list[Finding]:
    """On FreeBSD 14 and later pf must skip the outer interface, or packets go round in ipfw for ever."""
    if facts["module pf"].status:
        return [Finding(Severity.OK, _TITLE, "pf is not in the kernel")]
    if _NO_DEVICE in facts["pf"].error:
        return [Finding(Severity.OK, _TITLE, "this jail has no /dev/pf to switch it on with")]
    if not facts["pf"].known:
        return [unseen(host, _TITLE, facts["pf"])]
    if not facts["pf"].text.startswith("Status: Enabled"):
        return [Finding(Severity.OK, _TITLE, "pf is disabled")]
    if 0 < release(facts) < PF_LOOPS_SINCE:
        return [Finding(Severity.NOTE, _TITLE, "pf is enabled; on this release it does ipfw no harm")]
    if not facts["pf interfaces"].known:
        return [unseen(host, _TITLE, facts["pf interfaces"])]
    skipped = {line.split()[0] for line in facts["pf interfaces"].text.splitlines() if line.split()[1:] == ["(skip)"]}
    return [_judge(interface.name, skipped) for interface in host.interfaces]


def _judge(name: str, skipped: set[str]) -> Finding:
    if name in skipped:
        return Finding(Severity.OK, _TITLE, f"pf is enabled and skips {name}")
    text = (
        f"pf is enabled and does not skip {name}: what natd or natf writes back starts at the first ipfw rule again,"
        " and goes round for ever"
    )
    return Finding(Severity.ERROR, _TITLE, text, f"`set skip on {name}` in /etc/pf.conf, and pfctl -f /etc/pf.conf")
