"""FreeBSD: the NAT itself, natd(8) or `ipfw nat`: does it run, and with the options a NAT-f router needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from natf_bsd.divert.host import holder_of
from natf_bsd.doctor.facts import Answer, Facts, Host, Question, processes, settings, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.doctor.kernel import set_to
from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw import NatRule, find_nat, parse_rules
from natf_bsd.ops.interfaces import Interface

Options: TypeAlias = Mapping[str, tuple[str, ...]]
"""natd's options by their long names, with what stands behind each."""

_SHORT: Final = {"d": "deny_incoming", "f": "config", "i": "in_port", "o": "out_port", "p": "port"}
_PORTS: Final = ("port", "in_port", "out_port")
_SERVICE: Final = {"natd": 8668}  # services(5)
_DEFAULT_PORT: Final = "natd"

_DENY: Final = (
    'sysrc natd_flags+=" -deny_incoming"; service natd restart (services of this host then need an `allow` rule of'
    " their own in front of natd's, each way)"
)
_WHY_DENY: Final = (
    "a stray packet to a port makes a link of its own to this host, and the mapping gets another port; and whatever no"
    " mapping fits reaches this host"
)


@dataclass(frozen=True, slots=True)
class Natd:
    """A natd that runs. `unread`: its configuration file, where that could not be read."""

    process: int
    options: Options
    unread: Answer | None = None

    @property
    def ports(self) -> set[int]:
        """Divert ports it reads; a name that is not known here counts as none."""
        texts = [value for name in _PORTS for value in self.options.get(name, ())[:1]] or [_DEFAULT_PORT]
        return {int(text) if text.isdecimal() else _SERVICE.get(text, 0) for text in texts}

    @property
    def denies_incoming(self) -> bool:
        values = self.options.get("deny_incoming")
        return values is not None and values[:1] in ((), ("yes",))


def configuration_files(facts: Facts) -> dict[str, Question]:
    """What is still to be read: the files the natd processes name."""
    return {_file_key(name): Path(name) for _, words in _natd_lines(facts) if (name := _file_of(_options(words)))}


def natds(facts: Facts) -> list[Natd]:
    found = []
    for number, words in _natd_lines(facts):
        options = _options(words)
        file = facts.get(_file_key(_file_of(options)))
        if file is not None and file.known:
            options |= _file_options(file.text)
        found.append(Natd(number, options, file if file is not None and not file.known else None))
    return found


def nat(host: Host, facts: Facts) -> list[Finding]:
    """Of each outer interface. What is wrong with its rule itself is `rules.places`'s to say."""
    if not facts["rules"].known:
        return [_flags(one) for one in natds(facts)] if host.router is not None else []
    findings: list[Finding] = []
    for interface in host.interfaces:
        rule = _rule(facts, interface)
        if rule is None:
            continue
        judge = _natd if rule.kind == "natd" else _in_kernel
        findings += judge(host, facts, rule)
    return findings


def _rule(facts: Facts, interface: Interface) -> NatRule | None:
    try:
        return find_nat(parse_rules(facts["rules"].text), interface)
    except NatfError:
        return None


def _natd(host: Host, facts: Facts, rule: NatRule) -> list[Finding]:
    title = f"natd of rule {rule.number:05}"
    running = natds(facts)
    reader = next((one for one in running if rule.argument in one.ports), None)
    if reader is None:
        return [_no_reader(host, facts, rule, running)]
    findings = [Finding(Severity.OK, title, f"runs (process {reader.process}) and reads divert port {rule.argument}")]
    if host.router is not None:
        findings.append(_flags(reader))
    return findings


def _no_reader(host: Host, facts: Facts, rule: NatRule, running: list[Natd]) -> Finding:
    """Where processes can't be seen, the socket may be."""
    title, port = f"natd of rule {rule.number:05}", rule.argument
    if not facts["processes"].known:
        return unseen(host, title, facts["processes"])
    holder = holder_of(port, facts["divert ports"].text)
    if holder is not None:
        return Finding(Severity.NOTE, title, f"divert port {port} is read by {holder}; natf takes it for a NAT")
    if running:
        others = "; ".join(f"process {one.process} reads {', '.join(map(str, sorted(one.ports)))}" for one in running)
        text = f"the rule diverts to port {port}, and no natd reads that ({others}): nothing passes"
        remedy = f'natd_flags="-port {port}" in /etc/rc.conf and `service natd restart`, or the other port in the rule'
        return Finding(Severity.ERROR, title, text, remedy)
    if settings(facts).get("security.bsd.see_other_uids") == "0" and not host.root:
        return unseen(host, title, Answer("ps", 1, "", "security.bsd.see_other_uids is 0"))
    text = f"no natd runs, so that what the rule diverts to port {port} is lost"
    return Finding(Severity.ERROR, title, text, "sysrc natd_enable=YES; service natd start")


def _flags(one: Natd) -> Finding:
    title = "natd -deny_incoming"
    if one.denies_incoming:
        return Finding(Severity.OK, title, f"given to process {one.process}")
    if one.unread is not None:
        text = f"not on the command line of process {one.process}, and its file is not seen: {one.unread.why}"
        return Finding(Severity.NOTE, title, text, "run natf doctor as root, or look into the file for deny_incoming")
    return Finding(Severity.WARNING, title, f"not given to process {one.process}: {_WHY_DENY}", _DENY)


def _in_kernel(host: Host, facts: Facts, rule: NatRule) -> list[Finding]:
    if host.router is None:
        return []
    title = f"ipfw nat {rule.argument}"
    return [*_instance(host, facts["nat instances"], rule.argument, title), *_one_pass(facts, title)]


def _instance(host: Host, answer: Answer, number: int, title: str) -> list[Finding]:
    if not answer.known:
        return [unseen(host, title, answer)]
    match = re.search(rf"^ipfw nat {number} config (.*)$", answer.text, re.MULTILINE)
    if match is None:
        remedy = "sysrc firewall_nat_enable=YES firewall_nat_interface=IF; service ipfw restart"
        return [Finding(Severity.ERROR, title, "there is no such instance: its rule denies everything", remedy)]
    words = match[1].split()
    findings = [Finding(Severity.OK, title, match[1])]
    remedy = f'sysrc firewall_nat_flags="{_wanted(words)}"; service ipfw restart'
    if "deny_in" not in words:
        findings.append(Finding(Severity.WARNING, title, f"without deny_in {_WHY_DENY}", remedy))
    if "same_ports" not in words:
        text = "without same_ports a mapping never has the port of its service, and active FTP does not work through it"
        findings.append(Finding(Severity.NOTE, title, text, remedy))
    return findings


def _wanted(words: Iterable[str]) -> str:
    """The options of an instance as `firewall_nat_flags` has them, and ours."""
    kept = [word for word in ("unreg_only", "reset", "log") if word in words]
    return " ".join([*kept, "deny_in", "same_ports"])


def _one_pass(facts: Facts, title: str) -> list[Finding]:
    name = "net.inet.ip.fw.one_pass"
    value = settings(facts).get(name)
    if value in (None, "0"):
        return []
    text = f"{name} is {value}: the NAT's packets see no further rule, and pseudo-packets leave this host"
    return [Finding(Severity.ERROR, title, text, set_to(name, "0"))]


def _natd_lines(facts: Facts) -> list[tuple[int, tuple[str, ...]]]:
    return [(one.number, one.words[1:]) for one in processes(facts) if Path(one.words[0]).name == "natd"]


def _options(words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Of a command line: no value of natd's begins with a hyphen."""
    options: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in words:
        if word.startswith("-"):
            name = _SHORT.get(word[1:], word[1:])
            options[name] = ()
        elif name:
            options[name] += (word,)
    return options


def _file_options(text: str) -> dict[str, tuple[str, ...]]:
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return {_SHORT.get(words[0], words[0]): tuple(words[1:]) for words in lines if words}


def _file_of(options: Options) -> str:
    return next(iter(options.get("config", ())), "")


def _file_key(name: str) -> str:
    return f"file {name}"
