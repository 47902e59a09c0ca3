"""What Linux is asked, and the topics that are its own: most are the checks the daemons themselves make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from natf_bsd.doctor import interfaces, leftovers, lookups
from natf_bsd.doctor.facts import Answer, Facts, Host, Question, Read, Role, Topic, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.errors import NatfError
from natf_bsd.firewall import runner
from natf_bsd.ops.process import Run
from natf_bsd.ops.resolvers import RESOLV_CONF
from natf_bsd.platforms import EnSide, RouterSide
from natf_bsd.platforms.linux import Linux

_LIBERAL: Final = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
_QUEUES: Final = "/proc/net/netfilter/nfnetlink_queue"
_ASKS_RESOLVED: Final = re.compile(r"^hosts:[^#\n]*\bresolve\b", re.MULTILINE)
_BY_TLS: Final = re.compile(r"^(?:Global|Link \d+ \(\S+\)): (?:yes|opportunistic)$", re.MULTILINE)
_CHAIN: Final = re.compile(r"^\s*chain (\S+) \{\n(.*?)^\s*\}", re.MULTILINE | re.DOTALL)
_TABLE: Final = re.compile(r"^table (\S+ \S+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
# iptables keeps its chains here, and natf's rule is the first of this one.
_OURS: Final = ("ip filter", "FORWARD")
_CHAINS: Final = {"en": "NATF-EN-", "router": "NATF-RT-"}


def questions(host: Host) -> dict[str, Question]:
    """As `freebsd.questions`."""
    return {
        "tun": ("test", "-c", "/dev/net/tun"),
        "queues": ("test", "-e", _QUEUES),
        "liberal": _LIBERAL,
        "iptables": ("iptables-save",),
        "nft": ("nft", "list", "ruleset"),
        **_filters(host),
        "resolved": ("resolvectl", "dnsovertls"),
        "resolv.conf": RESOLV_CONF,
        "nsswitch.conf": Path("/etc/nsswitch.conf"),
        **{f"journal {role.name}": role.run_dir / f"{role.name}.sysctl" for role in host.roles},
    }


def _filters(host: Host) -> dict[str, Question]:
    """Of the outer interface: there programs of ours may be."""
    role = host.role("en")
    if role is None or not role.interface:
        return {}
    return {"filters": ("tc", "filter", "show", "dev", role.interface.name, "egress")}


def more(host: Host, facts: Facts, run: Run, read: Read) -> dict[str, Answer]:
    """What the daemons' own checks say of this host, one problem a line."""
    return {f"checks {role.name}": _check(host, role, run) for role in host.roles}


def _check(host: Host, role: Role, run: Run) -> Answer:
    asked = f"natf {role.name} check"
    if not host.root:
        return Answer(asked, 1, "", "needs root")
    try:
        side = _side(host, role)
        problems = runner.check(side.plan(side.interface).checks, run)
    except (NatfError, OSError, ValueError) as error:
        return Answer(asked, 1, "", str(error))
    return Answer(asked, 0, "\n".join(problems))


def _side(host: Host, role: Role) -> EnSide | RouterSide:
    if role.name == "en" and host.en is not None:
        return Linux().external_node(host.en)
    if role.name == "router" and host.router is not None:
        return Linux().router(host.router)
    raise NatfError("no settings")


def checks(host: Host, facts: Facts) -> list[Finding]:
    """iptables, forwarding, routing tables: what would keep a daemon from starting."""
    return [finding for role in host.roles if role.interface for finding in _checked(host, facts, role)]


def kernel(host: Host, facts: Facts) -> list[Finding]:
    """Devices and settings."""
    findings = []
    if not facts["queues"].known:
        text = f"{_QUEUES} is not there yet: the kernel makes it when natf first asks for packets"
        findings.append(
            Finding(Severity.NOTE, "NFQUEUE", text, "if natf then says it is missing: modprobe nfnetlink_queue")
        )
    if host.en is not None and host.en.kernel_path is None and facts["nft"].missing:
        text = "nft is not installed: every packet of this host's own programs goes through the daemon"
        remedy = "install it (Debian package nftables) and restart natf en"
        findings.append(Finding(Severity.NOTE, "kernel path", text, remedy))
    router = host.role("router")
    if router is None:
        return findings
    if not facts["tun"].known:
        text = "/dev/net/tun is missing, and with it the way through the NAT"
        findings.append(Finding(Severity.ERROR, "TUN device", text, "modprobe tun"))
    if router.process is not None and facts["liberal"].known and facts["liberal"].text.strip() != "1":
        text = "nf_conntrack_tcp_be_liberal is not 1 while natf router runs: TCP through mappings stalls"
        remedy = "sysctl net.netfilter.nf_conntrack_tcp_be_liberal=1"
        findings.append(Finding(Severity.WARNING, "conntrack", text, remedy))
    return findings


def forwarding_chains(host: Host, facts: Facts) -> list[Finding]:
    """nftables chains that may drop what netfilter's NAT is given by the TUN device."""
    if host.router is None or facts["nft"].missing:
        return []
    if not facts["nft"].known:
        return [unseen(host, "nftables", facts["nft"])]
    tun = host.router.tun
    return [
        _dropped(table, chain, tun)
        for table, body in _TABLE.findall(facts["nft"].text)
        for chain, rules in _CHAIN.findall(body)
        if (table, chain) != _OURS and _drops(rules) and tun not in rules
    ]


def resolved(host: Host, facts: Facts) -> list[Finding]:
    """Programs that ask systemd-resolved without a DNS packet are served by what it hears from others."""
    if host.en is None or not _ASKS_RESOLVED.search(facts["nsswitch.conf"].text):
        return []
    if not _BY_TLS.search(facts["resolved"].text):
        return []
    text = "systemd-resolved asks by TLS, and programs ask it without a packet: natf sees no name"
    remedy = "DNSOverTLS=no in /etc/systemd/resolved.conf, or no `resolve` in the line hosts: of /etc/nsswitch.conf"
    return [Finding(Severity.ERROR, "name servers", text, remedy)]


def leftover_rules(host: Host, facts: Facts) -> list[Finding]:
    """Chains of ours without a daemon."""
    return [
        Finding(
            Severity.WARNING,
            f"leftovers of natf {role.name}",
            "its firewall rules are there, and it does not run",
            f"start it, or to remove them: natf cleanup {role.name}",
        )
        for role in host.roles
        if role.is_away and f":{_CHAINS[role.name]}" in facts["iptables"].text
    ]


def leftover_filters(host: Host, facts: Facts) -> list[Finding]:
    """Programs of ours at an interface, without a daemon: what they know of goes on, and nobody sees it end."""
    role = host.role("en")
    if role is None or not role.is_away or "filters" not in facts or "natf_out" not in facts["filters"].text:
        return []
    text = "its programs are at an interface, and it does not run: flows go on by them as they were"
    return [Finding(Severity.WARNING, "leftovers of natf en", text, "start it, or to remove them: natf cleanup en")]


def _checked(host: Host, facts: Facts, role: Role) -> list[Finding]:
    title, answer = f"natf {role.name} check", facts[f"checks {role.name}"]
    if not answer.known:
        return [unseen(host, title, answer)]
    problems = [line for line in answer.text.splitlines() if line.strip()]
    found = [
        Finding(Severity.ERROR, title, problem, f"{title} then says whether more is in the way") for problem in problems
    ]
    return found or [Finding(Severity.OK, title, "nothing stands in the way")]


def _drops(rules: str) -> bool:
    """Whether the chain sees forwarded packets and drops, in the end, what nothing in it lets through."""
    lines = [line.strip() for line in rules.splitlines() if line.strip()]
    if not any("hook forward" in line for line in lines):
        return False
    return any("policy drop" in line for line in lines) or lines[-1].startswith(("drop", "reject"))


def _dropped(table: str, chain: str, tun: str) -> Finding:
    text = f"chain {chain} of table {table} drops what it does not let through, and does not name {tun}"
    remedy = f"nft insert rule {table} {chain} iifname {tun} oifname {tun} accept; and where that firewall is set up"
    return Finding(Severity.WARNING, "nftables", text, remedy)


TOPICS: Final[tuple[Topic, ...]] = (
    kernel,
    interfaces.outer,
    checks,
    forwarding_chains,
    lookups.lookups,
    resolved,
    leftovers.daemons,
    leftover_rules,
    leftover_filters,
)
