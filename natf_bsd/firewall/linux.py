"""iptables rules of both roles on Linux, and their undoing (DESIGN.md sections 4, 7): configuration in, commands out.

What is ours carries our name: chains NATF-*, jumps with the comment "natf", rule and route with protocol 78. So undo
needs no memory, and set-up may run again over what a crash left. Chains are filled by one iptables-restore, which
replaces the content of a chain it declares and touches no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from natf_bsd.firewall.command import Check, Command, Judge, Sysctl
from natf_bsd.types import Address, format_address

VIRTUAL_PREFIX: Final = "240.0.0.0/8"

# Port numbers are those of FREEBSD.md section 11, so that both platforms are described in the same words.
CONTROL_QUEUE: Final = 8701
DNS_QUEUE: Final = 8710
OUT_QUEUE: Final = 8711
IN_QUEUE: Final = 8712

# One byte that the usual owners of marks leave alone: Kubernetes 0xc000, Tailscale 0xff0000, Calico 0xffff0000.
MARK: Final = 0x4E
MASK: Final = 0xFF

TUN: Final = "natf0"
# Any number from 5 to 252 without a name in /etc/iproute2/rt_protos and rt_tables would do; 78 is ASCII N.
ROUTE_TABLE: Final = 78
ROUTE_PROTOCOL: Final = 78
RULE_PRIORITY: Final = 78  # before the main table's 32766

# ICMP data of at least 128 bytes (DESIGN.md section 5) behind 8 of ICMP and 20 of IP: most pings stay with the kernel.
_REQUEST_LENGTHS: Final = "156:65535"
_COMMENT: Final = ("-m", "comment", "--comment", "natf")
_NOTHING_THERE: Final = (1, 2)  # iptables: no such rule or chain; 4 (lock) and others are real failures
_IP_NOTHING_THERE: Final = (2,)  # ip: the kernel said no


@dataclass(frozen=True, slots=True)
class EnFirewall:
    """What the external node's rules depend on. `mark` lies within `mask`."""

    prefix: str = VIRTUAL_PREFIX
    dns_queue: int = DNS_QUEUE
    out_queue: int = OUT_QUEUE
    in_queue: int = IN_QUEUE
    mark: int = MARK
    mask: int = MASK


@dataclass(frozen=True, slots=True)
class RouterFirewall:
    """What the router's rules depend on: `interface` is the public one and `address` its address G2."""

    interface: str
    address: Address
    control_queue: int = CONTROL_QUEUE
    mark: int = MARK
    mask: int = MASK
    tun: str = TUN
    table: int = ROUTE_TABLE
    priority: int = RULE_PRIORITY


@dataclass(frozen=True, slots=True)
class _Chain:
    """One chain of ours: where it hangs and what is in it."""

    table: str
    hook: str
    rules: tuple[str, ...]
    role: str

    @property
    def name(self) -> str:
        return f"NATF-{self.role}-{self.hook}"


def _en_chains(fw: EnFirewall) -> list[_Chain]:
    mark = f"{fw.mark:#x}/{fw.mask:#x}"
    return [
        # The stand-in. A packet to the prefix comes this far only while nobody holds the queue: it must not leave.
        _Chain("filter", "OUTPUT", (f"-d {fw.prefix} -j REJECT --reject-with icmp-host-unreachable",), "EN"),
        # Only our own rewriting may make class E sources; from a wire they are forged.
        _Chain("raw", "PREROUTING", (f"-s {fw.prefix} ! -i lo -j DROP",), "EN"),
        _Chain(
            "mangle",
            "INPUT",
            (
                # Replies of marked flows and ICMP errors about them. No bypass: without the daemon the kernel would
                # answer such a packet with a RST and end a connection that a restarted daemon could go on serving.
                f"-m connmark --mark {mark} -j NFQUEUE --queue-num {fw.in_queue}",
                f"-p udp --sport 53 -m conntrack --ctstate ESTABLISHED,UNTRACKED"
                f" -j NFQUEUE --queue-num {fw.dns_queue} --queue-bypass",
            ),
            "EN",
        ),
        # What the daemon sent on towards a router carries the mark by its verdict; the connection inherits it.
        _Chain(
            "mangle",
            "OUTPUT",
            (f"-m mark --mark {mark} -j CONNMARK --save-mark --nfmask {fw.mask:#x} --ctmask {fw.mask:#x}",),
            "EN",
        ),
        # raw, so that conntrack and all that follows see G2 only, never V1. Last, so that the rest is ready.
        _Chain(
            "raw",
            "OUTPUT",
            (
                f"-m mark --mark {mark} -j CT --notrack",  # our injected packets
                f"-d {fw.prefix} -j NFQUEUE --queue-num {fw.out_queue} --queue-bypass",
            ),
            "EN",
        ),
    ]


def _router_chains(fw: RouterFirewall) -> list[_Chain]:
    return [
        # The hairpin: what enters by the TUN leaves by the TUN, with the source the real reply will have.
        _Chain("nat", "POSTROUTING", (f"-o {fw.tun} -j SNAT --to-source {format_address(fw.address)}",), "RT"),
        _Chain("filter", "FORWARD", (f"-i {fw.tun} -o {fw.tun} -j ACCEPT",), "RT"),
        _Chain("raw", "OUTPUT", (f"-m mark --mark {fw.mark:#x}/{fw.mask:#x} -j CT --notrack",), "RT"),
        # raw: before conntrack and every filter rule, as the paper's router hooks before its firewall [3.2].
        _Chain(
            "raw",
            "PREROUTING",
            (
                f"-i {fw.interface} -p icmp --icmp-type echo-request -m addrtype --dst-type LOCAL"
                f" -m length --length {_REQUEST_LENGTHS} -j NFQUEUE --queue-num {fw.control_queue} --queue-bypass",
            ),
            "RT",
        ),
    ]


def en_rules(fw: EnFirewall) -> list[Command]:
    """Set up the external node; may run again at any time."""
    return _set_up(_en_chains(fw))


def en_undo() -> list[Command]:
    """Remove all that `en_rules` makes, whatever its configuration was and however far it came."""
    return _undo(_en_chains(EnFirewall()))


def router_rules(fw: RouterFirewall) -> list[Command]:
    """Set up the router; may run again at any time. The TUN must be open already (`natd_bridge.netfilter`).

    `router_sysctls` go after it: conntrack's settings exist once conntrack is in use.
    """
    rule = ("priority", str(fw.priority), "protocol", str(ROUTE_PROTOCOL))
    route = ("table", str(fw.table), "proto", str(ROUTE_PROTOCOL))
    return [
        *_set_up(_router_chains(fw)),
        Command(("ip", "link", "set", fw.tun, "up", "mtu", "1500")),
        # `ip rule add` can't replace, and `ip rule show` succeeds without a match.
        Command(("ip", "-4", "rule", "del", *rule), may_fail=_IP_NOTHING_THERE),
        Command(("ip", "-4", "rule", "add", "iif", fw.tun, "lookup", str(fw.table), *rule)),
        Command(("ip", "-4", "route", "replace", "default", "dev", fw.tun, *route)),
    ]


def router_sysctls(fw: RouterFirewall) -> list[Sysctl]:
    """Kernel settings the hairpin needs, to be applied through a `SysctlJournal`."""
    return [
        # Loose: the pseudo-packet's source P1 is reached by the inside interface, not by the TUN. The kernel takes the
        # larger of this and conf/all.
        Sysctl(f"net/ipv4/conf/{fw.tun}/rp_filter", "2"),
        Sysctl(f"net/ipv6/conf/{fw.tun}/disable_ipv6", "1", optional=True),
        # The sequence number of the real SYN+ACK can't fit the pseudo SYN's (FREEBSD.md section 10).
        Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ]


def router_undo(*, table: int = ROUTE_TABLE, priority: int = RULE_PRIORITY) -> list[Command]:
    """Remove all that `router_rules` makes. The TUN itself goes with the bridge that opened it."""
    chains = _router_chains(RouterFirewall("", bytes(4)))
    protocol = str(ROUTE_PROTOCOL)
    return [
        *_undo(chains),
        Command(
            ("ip", "-4", "rule", "del", "priority", str(priority), "protocol", protocol), may_fail=_IP_NOTHING_THERE
        ),
        Command(("ip", "-4", "route", "flush", "table", str(table), "proto", protocol), may_fail=_IP_NOTHING_THERE),
    ]


def probe_en(fw: EnFirewall) -> list[Check]:
    """What must hold before `en_rules` is worth trying."""
    return [_rules_parse(_en_chains(fw))]


def probe_router(fw: RouterFirewall) -> list[Check]:
    """What must hold before `router_rules` is worth trying."""
    return [
        _rules_parse(_router_chains(fw)),
        Check(Command(("cat", "/proc/sys/net/ipv4/ip_forward")), _judge_forwarding),
        Check(Command(("ip", "-4", "rule", "show", "priority", str(fw.priority))), _rule_judge(fw)),
        Check(Command(("ip", "-4", "route", "show", "table", str(fw.table))), _table_judge(fw)),
    ]


def _set_up(chains: list[_Chain]) -> list[Command]:
    fill = Command(("iptables-restore", "-w", "--noflush"), stdin=_restore(chains))
    return [fill, *(_jump(chain) for chain in chains)]


def _restore(chains: list[_Chain]) -> str:
    """Input of iptables-restore that gives our chains exactly these rules."""
    lines: list[str] = []
    for table in sorted({chain.table for chain in chains}):
        members = [chain for chain in chains if chain.table == table]
        lines.append(f"*{table}")
        lines += [f":{chain.name} - [0:0]" for chain in members]
        lines += [f"-A {chain.name} {rule}" for chain in members for rule in chain.rules]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _jump(chain: _Chain) -> Command:
    iptables = ("iptables", "-w", "-t", chain.table)
    target = (*_COMMENT, "-j", chain.name)
    return Command((*iptables, "-I", chain.hook, "1", *target), unless=(*iptables, "-C", chain.hook, *target))


def _undo(chains: list[_Chain]) -> list[Command]:
    """Jumps first, in the reverse of the order they came in; a chain that is jumped to can't be removed."""
    commands: list[Command] = []
    for chain in reversed(chains):
        iptables = ("iptables", "-w", "-t", chain.table)
        commands += [
            Command((*iptables, "-D", chain.hook, *_COMMENT, "-j", chain.name), may_fail=_NOTHING_THERE),
            Command((*iptables, "-F", chain.name), may_fail=_NOTHING_THERE),
            Command((*iptables, "-X", chain.name), may_fail=_NOTHING_THERE),
        ]
    return commands


def _rules_parse(chains: list[_Chain]) -> Check:
    return Check(Command(("iptables-restore", "-w", "--noflush", "--test"), stdin=_restore(chains)), _judge_rules)


def _judge_rules(status: int, output: str) -> str | None:
    if status == 127:
        return "iptables-restore is not installed (Debian package iptables)"
    if status:
        return f"iptables does not take the rules (status {status}): {output.strip() or 'no message'}"
    return None


def _judge_forwarding(status: int, output: str) -> str | None:
    if status or output.strip() != "1":
        return "this host does not forward IPv4 packets: set net.ipv4.ip_forward=1, as any router must"
    return None


def _rule_judge(fw: RouterFirewall) -> Judge:
    def judge(status: int, output: str) -> str | None:
        if status:
            return f"ip rule does not work here (status {status}); is iproute2 installed?"
        foreign = [line for line in output.splitlines() if f"iif {fw.tun} " not in line]
        return f"rule priority {fw.priority} is taken: {foreign[0].strip()}" if foreign else None

    return judge


def _table_judge(fw: RouterFirewall) -> Judge:
    def judge(_status: int, output: str) -> str | None:
        # A table nobody has used yet is an error to some versions of ip.
        foreign = [line for line in output.splitlines() if line.strip() and f"dev {fw.tun} " not in f"{line} "]
        return f"routing table {fw.table} is in use: {foreign[0].strip()}" if foreign else None

    return judge
