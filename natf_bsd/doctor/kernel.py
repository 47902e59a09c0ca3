"""FreeBSD: is in the kernel what NAT-f needs, and is it set so."""

from __future__ import annotations

from typing import Final

from natf_bsd.divert.divert4 import RECEIVE_BUFFER
from natf_bsd.doctor.facts import Facts, Host, release, settings, unseen
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.natd_bridge.clock import needs_keep_alive

SETTINGS: Final = (
    "kern.osreldate",
    "kern.securelevel",
    "security.jail.jailed",
    "security.jail.vnet",
    "security.bsd.see_other_uids",
    "kern.ipc.maxsockbuf",
    "net.inet.tcp.tso",
    "net.inet.ip.allow_net240",
    "net.inet.ip.forwarding",
    "net.inet.ip.fw.enable",
    "net.inet.ip.fw.one_pass",
)
"""Kernel settings that are looked at; `sysctl -i` leaves out what a release does not have."""

MODULES: Final = {
    "ipfw": (
        "sysrc firewall_enable=YES firewall_type=open; service ipfw start (kldload alone would let nothing pass: "
        "it denies by default)"
    ),
    "ipdivert": "kldload ipdivert (`service natf_en start` and `service natf_router start` do it too)",
}
"""What both roles need, and how it gets there."""

KERNEL_PATH_MODULE: Final = "ipfw_nat"
"""What the external node's kernel path needs besides."""

_NO_RULE_CHANGES: Final = 3  # securelevel(7)


def modules(host: Host, facts: Facts) -> list[Finding]:
    """ipfw and divert sockets, loaded or compiled in; a jail with a network stack of its own."""
    found = settings(facts)
    findings = []
    is_jail = found.get("security.jail.jailed") == "1"
    if is_jail and found.get("security.jail.vnet") == "0":
        remedy = "give the jail `vnet;` in jail.conf, or run natf on the jail's host"
        text = "this jail has no network stack of its own, and so no divert sockets"
        findings.append(Finding(Severity.ERROR, "jail", text, remedy))
    for name, remedy in MODULES.items():
        answer = facts[f"module {name}"]
        if answer.known:
            findings.append(Finding(Severity.OK, name, "in the kernel"))
        elif answer.missing:
            findings.append(unseen(host, name, answer))
        else:
            where = f"on the jail's host: kldload {name}" if is_jail else remedy
            findings.append(Finding(Severity.ERROR, name, "not in the kernel", where))
    return findings


def kernel_path(host: Host, facts: Facts) -> list[Finding]:
    """What keeps the kernel from translating the busiest flows of an external node. On a NAT box it never does."""
    if host.en is None or host.en.kernel_path is False or host.router is not None:
        return []
    findings = []
    answer = facts[f"module {KERNEL_PATH_MODULE}"]
    if not (answer.known or answer.missing):
        text = f"{KERNEL_PATH_MODULE} is not in the kernel: every packet goes through the daemon"
        remedy = f"kldload {KERNEL_PATH_MODULE} (a jail: on its host), and restart natf en"
        findings.append(Finding(Severity.NOTE, "kernel path", text, remedy))
    if settings(facts).get("net.inet.ip.fw.one_pass", "1") != "1":
        text = "net.inet.ip.fw.one_pass is not 1: every packet goes through the daemon"
        remedy = "where nothing else needs it so: sysctl net.inet.ip.fw.one_pass=1, and restart natf en"
        findings.append(Finding(Severity.NOTE, "kernel path", text, remedy))
    return findings


def kernel_settings(host: Host, facts: Facts) -> list[Finding]:
    """One finding a setting that matters here and that this release has."""
    if not facts["sysctl"].known and not facts["sysctl"].text:
        return [unseen(host, "kernel settings", facts["sysctl"])]
    found = settings(facts)
    findings = [_enabled(found), _secure(found), _buffer(found)]
    if host.en is not None:
        en = host.role("en")
        findings += [_segmentation(found, is_running=en is not None and en.process is not None), _class_e(found)]
    if host.router is not None:
        findings.append(_forwarding(found))
    return [finding for finding in findings if finding is not None]


def clock(host: Host, facts: Facts) -> list[Finding]:
    """libalias looks at the time only every so many packets since FreeBSD 13 (FREEBSD.md 4.5)."""
    if host.router is None or not release(facts):
        return []
    if not needs_keep_alive(release(facts)):
        return [Finding(Severity.OK, "clock of the NAT", "libalias of this release asks for the time at every packet")]
    text = (
        "libalias of this release can forget UDP mappings in use after a quiet minute; natf router sends packets"
        " through the NAT that keep its clock going (`natf status router` has their number and cost)"
    )
    return [Finding(Severity.NOTE, "clock of the NAT", text)]


def set_to(name: str, value: str) -> str:
    """How to set it, now and for the next boot."""
    return f"sysctl {name}={value}; and the line {name}={value} in /etc/sysctl.conf"


def _enabled(found: dict[str, str]) -> Finding | None:
    name = "net.inet.ip.fw.enable"
    if found.get(name) != "0":
        return None
    return Finding(Severity.ERROR, "ipfw", f"switched off: {name} is 0", set_to(name, "1"))


def _secure(found: dict[str, str]) -> Finding | None:
    name = "kern.securelevel"
    level = found.get(name, "")
    if not level.isdecimal() or int(level) < _NO_RULE_CHANGES:  # it is -1 on most hosts
        return None
    text = f"{name} is {level}: ipfw takes no rules"
    return Finding(Severity.ERROR, "secure level", text, f"sysrc kern_securelevel={_NO_RULE_CHANGES - 1}; and reboot")


def _buffer(found: dict[str, str]) -> Finding | None:
    name = "kern.ipc.maxsockbuf"
    text = found.get(name, "")
    if not text.isdecimal():
        return None
    granted = int(text) * 2048 // 2304  # FREEBSD.md 1.3
    if granted >= RECEIVE_BUFFER:
        return Finding(Severity.OK, "receive buffers", f"{name} is {text}")
    wanted = f"{name} is {text}: divert sockets get {granted} bytes, and lose packets in bursts"
    return Finding(Severity.WARNING, "receive buffers", wanted, set_to(name, "2097152"))


def _segmentation(found: dict[str, str], *, is_running: bool) -> Finding | None:
    name = "net.inet.tcp.tso"
    if (value := found.get(name)) is None:
        return None
    if value != "0" and is_running:
        text = f"{name} is {value}: segments larger than the MTU are diverted, and cannot be written back"
        return Finding(Severity.WARNING, "TCP segmentation offload", text, f"sysctl {name}=0")
    text = f"{name} is {value}{'' if value == '0' else '; natf en sets it to 0 while it runs'}"
    return Finding(Severity.OK, "TCP segmentation offload", text)


def _class_e(found: dict[str, str]) -> Finding | None:
    name = "net.inet.ip.allow_net240"
    if (value := found.get(name)) is None:  # before FreeBSD 14
        return None
    if value != "0":
        return Finding(Severity.OK, "virtual addresses", f"{name} is {value}")
    text = f"{name} is 0: an inside host is not told when a UDP port here is closed (ICMP errors to 240/4 are dropped)"
    return Finding(Severity.NOTE, "virtual addresses", text, f"if that matters: {set_to(name, '1')}")


def _forwarding(found: dict[str, str]) -> Finding | None:
    name = "net.inet.ip.forwarding"
    if (value := found.get(name)) is None:
        return None
    if value == "1":
        return Finding(Severity.OK, "forwarding", f"{name} is 1")
    text = f"{name} is {value}: this host forwards nothing, as any router must"
    return Finding(Severity.ERROR, "forwarding", text, f"sysctl {name}=1; sysrc gateway_enable=YES")
