"""Looks at this host, and says what was found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.doctor import files
from natf_bsd.doctor.facts import Answer, Facts, Host, Question, Read, Role, Topic, gather
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.errors import NatfError
from natf_bsd.ops.interfaces import Interface, outer_interface, outer_on_freebsd
from natf_bsd.ops.process import Run, run_process
from natf_bsd.ops.runtime import RoleLock


@dataclass(frozen=True, slots=True)
class System:
    """How one kind of system is looked at; `run` and `read` may stand for another host than this one."""

    questions: Callable[[Host], Mapping[str, Question]]
    more: Callable[[Host, Facts, Run, Read], Mapping[str, Answer]]
    topics: Sequence[Topic]
    outer: Callable[[str | None], Interface]
    run: Run = run_process
    read: Read = files.text_of


def this_system() -> System:
    """NatfError on any other than FreeBSD and Linux."""
    if sys.platform == "linux":
        from natf_bsd.doctor import linux

        return System(linux.questions, linux.more, linux.TOPICS, outer_interface)
    if sys.platform.startswith("freebsd"):
        return freebsd_system()
    raise NatfError(f"natf runs on FreeBSD and Linux, not on {sys.platform}")


def freebsd_system(run: Run = run_process) -> System:
    from natf_bsd.doctor import freebsd

    return System(freebsd.questions, freebsd.more, freebsd.TOPICS, lambda wanted: outer_on_freebsd(wanted, run), run)


def examine(path: Path, system: System | None = None) -> list[Finding]:
    """All findings about this host with the configuration in `path`; changes nothing."""
    system = system or this_system()
    config, said = files.settings(path)
    findings = [said]
    host = host_of(config, system.outer, is_configured=said.severity is Severity.OK)
    if host.configuration is not None and host.router is not None:
        findings.append(files.access_table(host.router))
    facts = gather(system.questions(host), system.run, system.read)
    facts |= system.more(host, facts, system.run, system.read)
    return [*findings, *judge(system.topics, host, facts)]


def host_of(config: Config, outer: Callable[[str | None], Interface], *, is_configured: bool) -> Host:
    roles = [_role(name, role, outer) for name, role in (("en", config.en), ("router", config.router)) if role]
    return Host(
        root=os.geteuid() == 0,
        roles=tuple(roles),
        en=config.en,
        router=config.router,
        configuration=config.path if is_configured else None,
    )


def judge(topics: Sequence[Topic], host: Host, facts: Facts) -> list[Finding]:
    return [finding for topic in topics for finding in _judge(topic, host, facts)]


def _judge(topic: Topic, host: Host, facts: Facts) -> list[Finding]:
    """Hosts differ in more ways than were thought of: what one topic cannot read must not hide the others."""
    try:
        return topic(host, facts)
    except Exception as error:
        text = f"not judged: {type(error).__name__}: {error}"
        return [Finding(Severity.WARNING, topic.__name__.replace("_", " "), text, "please report this")]


def _role(name: str, config: EnConfig | RouterConfig, outer: Callable[[str | None], Interface]) -> Role:
    interface, trouble = None, ""
    try:
        interface = outer(config.interface)
    except (NatfError, OSError) as error:
        trouble = str(error)
    process, hidden = None, ""
    try:
        process = RoleLock.holder(config.run_dir, name)
    except NatfError as error:
        hidden = str(error)
    return Role(name, config.run_dir, interface, trouble, process, hidden)
