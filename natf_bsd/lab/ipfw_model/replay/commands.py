"""ipfw-commands.jsonl: every ipfw(8) invocation, in order, its status and its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from natf_bsd.lab.ipfw_model.host import Host
from natf_bsd.lab.ipfw_model.replay.report import Event, Report, recorded_router

_DEFAULT_COUNTS = re.compile(r"^65535 +(\d+) +(\d+) ", re.MULTILINE)
_DEFAULT_STAMP = re.compile(r"^65535 (\w{3} \w{3} .{16}) ", re.MULTILINE)
_CONTENT = re.compile(r"content: (.*)", re.DOTALL)
_STANDARD_INPUT = re.compile(r'standard input: "(.*)"')


def replay(events: Sequence[Event], report: Report, reason_to_leave_out: Callable[[Event], str | None]) -> None:
    """Compare each event but those `reason_to_leave_out` has a reason for."""
    host = recorded_router()
    for event in events:
        reason = reason_to_leave_out(event)
        if reason is not None:
            report.leave_out(reason)
            continue
        found = _run(host, event)
        report.compare(" ".join(event["argv"]), found, (event["status"], event["stdout"], event["stderr"]))


def _run(host: Host, event: Event) -> tuple[int, str, str]:
    note = event["note"] or ""
    content = _CONTENT.search(note)
    if content:
        host.firewall.files[event["argv"][-1]] = content[1]
    stdin = _STANDARD_INPUT.search(note)
    _set_default_counts(host, event["stdout"])
    return host.ipfw(event["argv"], stdin[1] if stdin else "")


def _set_default_counts(host: Host, stdout: str) -> None:
    """What rule 65535 had counted is other traffic, which was not recorded."""
    default = host.firewall.rules.default
    counts = _DEFAULT_COUNTS.search(stdout)
    if counts:
        default.packets, default.bytes = int(counts[1]), int(counts[2])
    stamp = _DEFAULT_STAMP.search(stdout)
    if stamp:
        default.stamp = stamp[1]
