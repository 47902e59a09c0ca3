"""iptables rules of both roles on Linux, and their undoing (DESIGN.md sections 4, 7): configuration in, commands out.

What is ours carries our name: chains NATF-*, jumps with the comment "natf", rule and route with protocol 78. So undo
needs no memory, and set-up may run again over what a crash left. Chains are filled by one iptables-restore, which
replaces the content of a chain it declares and touches no other.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from natf_bsd.firewall import linux_dns, linux_gateway, linux_host_rules
from natf_bsd.firewall.command import Check, Command, Judge, Sysctl
from natf_bsd.firewall.linux_gateway import IP_NOTHING_THERE, ROUTE_PROTOCOL, Gateway
from natf_bsd.types import Address, format_address

RULE_PRIORITY: Final = 78  # before the main table's 32766

# ICMP data of at least 128 bytes (DESIGN.md section 5) behind 8 of ICMP and 20 of IP: most pings stay with the kernel.
_REQUEST_LENGTHS: Final = "156:65535"
# The magic at the start of the ICMP data: 28 bytes in, up to 40 more with IP options. Whoever pings with 128 bytes and
# more is answered by the kernel, not by us.
_MAGIC: Final = "-m string --algo bm --hex-string |4e415466| --from 28 --to 72"
# Mappings are made in ports where a router has no service, above what Linux gives its own programs (32768 to 60999).
# Conntrack decides before INPUT whose a packet is: with m = d a forged request could have taken a stranger's
# connections to the router's own port d.
_MAPPED_PORTS: Final = "61000-65535"
# Seconds to wait for whoever holds the lock of iptables, far above any set-up of a firewall's rules.
_WAIT: Final = ("-w", "10")
_COMMENT: Final = ("-m", "comment", "--comment", "natf")
_IPTABLES_NOTHING_THERE: Final = (1, 2)  # no such rule or chain; 4 (lock) and others are real failures

# Table and built-in chain of each chain of ours, in the order the jumps are set. The external node: first the stand-in
# and what keeps forged packets out, last the rule that makes packets come to us.
_EN_PLACES: Final = (
    ("filter", "OUTPUT"),
    ("filter", "FORWARD"),
    ("filter", "INPUT"),
    ("nat", "POSTROUTING"),
    ("raw", "PREROUTING"),
    ("mangle", "INPUT"),
    ("mangle", "FORWARD"),
    ("mangle", "OUTPUT"),
    ("raw", "OUTPUT"),
)
# What tells packets of known flows from others there goes by marks that a hook before it made.
_TELLS_UNKNOWN: Final = ("mangle", "OUTPUT")
_ROUTER_PLACES: Final = (
    ("nat", "POSTROUTING"),
    ("filter", "INPUT"),
    ("filter", "FORWARD"),
    ("raw", "OUTPUT"),
    ("raw", "PREROUTING"),
)

_ROLES: Final = {"en": "EN", "router": "RT"}

NFT_TABLE: Final = "natf_en"
NFT_MAP: Final = "vat"
"""Where `datapath.netfilter` puts what it hands over."""

# Packets are counted by connection: nothing else tells that a flow in the kernel is in use, or unanswered.
_ACCOUNTING: Final = Sysctl("net/netfilter/nf_conntrack_acct", "1")
# Conntrack takes segments that came late or twice for invalid and does not translate them; this host would answer those
# by a RST.
_LIBERAL: Final = Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")

_QUEUES: Final = "# queues\n"
# iptables-save may fail without privilege, and the file is missing before the kernel has NFQUEUE: nobody reads then.
_WHO_READS: Final = (
    "iptables-save 2>/dev/null; echo '# queues'; cat /proc/net/netfilter/nfnetlink_queue 2>/dev/null || true"
)
_QUEUE_NUMBER: Final = re.compile(r"--queue-num (\d+)")
# The rule that comes first in the hook of `_TELLS_UNKNOWN`.
_FIRST: Final = (
    "echo '# first'; printf '%s\\n' \"$rules\" |"
    " awk '/^\\*/ { table = $1 } table == \"*mangle\" && /^-A OUTPUT / { print; exit }'"
)
_LARGEST_PROCESS: Final = 1 << 22  # linux/threads.h, PID_MAX_LIMIT; other netlink ports lie far above

_Place: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class EnFirewall:
    """What the external node's rules depend on. `prefix`: of the virtual addresses; `mark` lies within `mask`.
    `gateway`: where it serves the hosts behind its NAT too. `kernel_path`: the kernel translates the flows of this
    host's own programs (`datapath.netfilter`), and `mark` is what their connections carry. `rewritten_at`: the
    interface where it may do that without its NAT (`datapath.ebpf`)."""

    prefix: str
    dns_queue: int
    out_queue: int
    in_queue: int
    mark: int
    mask: int
    gateway: Gateway | None = None
    kernel_path: bool = False
    rewritten_at: str | None = None

    @property
    def unknown_mark(self) -> int:
        """For packets of no known flow, within `mask`: neither `mark` nor none."""
        return self.mark ^ self.mask or self.mark & self.mark >> 1


@dataclass(frozen=True, slots=True)
class RouterFirewall:
    """What the router's rules depend on: `interface` is the public one and `address` its address G2."""

    interface: str
    address: Address
    control_queue: int
    mark: int
    mask: int
    tun: str
    table: int
    priority: int = RULE_PRIORITY


def _en_chains(fw: EnFirewall) -> dict[_Place, list[str]]:
    mark = f"{fw.mark:#x}/{fw.mask:#x}"
    return {
        # The stand-in. A packet to the prefix comes this far only while nobody holds the queue: it must not leave.
        ("filter", "OUTPUT"): [f"-d {fw.prefix} -j REJECT --reject-with icmp-host-unreachable"],
        # Nobody else's packet to the prefix leaves here either: containers and virtual machines behind this host.
        # By code 10: Linux does not tell a UDP socket of code 1, nor does FreeBSD's TCP heed that one.
        ("filter", "FORWARD"): [f"-d {fw.prefix} -j REJECT --reject-with icmp-host-prohibited"],
        # Only our own rewriting may make class E sources; from a wire they are forged.
        ("raw", "PREROUTING"): [f"-s {fw.prefix} ! -i lo -j DROP"],
        ("mangle", "INPUT"): [
            # Replies of marked flows and ICMP errors about them. No bypass: without the daemon the kernel would answer
            # such a packet with a RST and end a connection that a restarted daemon could go on serving.
            f"-m connmark --mark {mark} -j NFQUEUE --queue-num {fw.in_queue}",
            *linux_dns.answers(fw.dns_queue),
        ],
        # What the daemon sent on towards a router carries the mark by its verdict; the connection inherits it.
        ("mangle", "OUTPUT"): [
            f"-m mark --mark {mark} -j CONNMARK --save-mark --nfmask {fw.mask:#x} --ctmask {fw.mask:#x}",
            *linux_dns.queries(fw.dns_queue),
        ],
        # raw, so that conntrack and all that follows see G2 only, never V1.
        ("raw", "OUTPUT"): [
            f"-m mark --mark {mark} -j CT --notrack",  # our injected packets
            f"-d {fw.prefix} -j NFQUEUE --queue-num {fw.out_queue} --queue-bypass",
        ],
    }


def _kernel_path_chains(fw: EnFirewall) -> dict[_Place, list[str]]:
    """`_en_chains` where the kernel translates: behind conntrack, which knows the flows that it does already."""
    mark = f"{fw.mark:#x}/{fw.mask:#x}"
    queue = f"-j NFQUEUE --queue-num {fw.out_queue} --queue-bypass"
    return _en_chains(fw) | {
        # The kernel translates errors about its flows too, but gives all of them V1 as their source.
        ("mangle", "INPUT"): [
            f"-p icmp -m connmark --mark {mark} -j NFQUEUE --queue-num {fw.in_queue} --queue-bypass",
            *linux_dns.answers(fw.dns_queue),
        ],
        ("mangle", "OUTPUT"): [
            f"-d {fw.prefix} -p tcp --syn {queue}",  # perhaps a new connection on an old flow's ports
            f"-d {fw.prefix} -m connmark --mark {mark} -j RETURN",
            f"-d {fw.prefix} {queue}",
            *linux_dns.queries(fw.dns_queue),
        ],
        ("raw", "OUTPUT"): [f"-m mark --mark {mark} -j CT --notrack"],
    }


def _interface_chains(fw: EnFirewall, interface: str) -> dict[_Place, list[str]]:
    """`_kernel_path_chains` where flows may be rewritten at `interface`: behind these rules outward, before them
    inward, so that connections are G1:s <-> V1:d. From there come packets of known flows with our mark; on their way
    there the unknown ones have another (`_nft_table`), since rules tell packets apart faster than connections."""
    mark, unknown = f"{fw.mark:#x}/{fw.mask:#x}", f"{fw.unknown_mark:#x}/{fw.mask:#x}"
    to_daemon = f"-j NFQUEUE --queue-num {fw.in_queue}"
    queue = f"-j NFQUEUE --queue-num {fw.out_queue} --queue-bypass"
    chains = _kernel_path_chains(fw)
    # What is not rewritten there is by the NAT, and not to the prefix here.
    chains["filter", "OUTPUT"] = [
        f"-d {fw.prefix} {condition} -j REJECT --reject-with icmp-host-unreachable"
        for condition in (f"-m mark --mark {unknown}", f"! -o {interface}")
    ]
    chains["raw", "PREROUTING"] = [
        f"-s {fw.prefix} -i {interface} -m mark --mark {mark} -j RETURN",
        f"-s {fw.prefix} ! -i lo -j DROP",
    ]
    # No bypass: without the daemon nobody could make anything of these.
    chains["mangle", "INPUT"][1:1] = [
        # About a flow, or of one and once in fragments. What comes out of a tunnel by such a flow keeps the mark.
        f"! -s {fw.prefix} -i {interface} -m mark --mark {mark} {to_daemon}",
        # The connection was forgotten. If this made a new one, it would be the other way round.
        f"-s {fw.prefix} -m mark --mark {unknown} {to_daemon}",
    ]
    chains["mangle", "OUTPUT"] = [
        f"-d {fw.prefix} -p udp -m mark ! --mark {unknown} -j RETURN",
        f"-d {fw.prefix} -p tcp ! --syn -m mark ! --mark {unknown} -j RETURN",
        f"-d {fw.prefix} -p icmp -m conntrack --ctstate DNAT -j RETURN",  # the NAT translates errors too
        f"-d {fw.prefix} {queue}",
        *linux_dns.queries(fw.dns_queue),
    ]
    return chains


def _nft_table(fw: EnFirewall) -> str:
    """Input of nft: the table with the map in which a flow's first packet finds its destination. A NAT's hook sees no
    other packets; ours comes before those of others, of whom the first decides. What the daemon let go has our mark,
    which its connection keeps; without a daemon none gets it."""
    key = "ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service"
    rest = 0xFFFFFFFF ^ fw.mask
    marked = f"and {rest:#x} or {fw.mark:#x}"
    complement = f"and {rest:#x} or {fw.unknown_mark:#x}"
    # By the interface's number: where a new device has the name, nothing is rewritten yet. Such a flow, and one that
    # leaves by another interface, goes to the daemon.
    unknown = f"""
    chain unknown {{
        type filter hook output priority -151
        ip daddr != {fw.prefix} accept
        ct mark and {fw.mask:#x} != {fw.mark:#x} meta mark set meta mark {complement} accept
        oif "{fw.rewritten_at}" accept
        ct status dnat accept
        meta mark set meta mark {complement}
    }}
    chain unknown_answers {{
        type filter hook input priority -151
        ip saddr {fw.prefix} ct state new meta mark set meta mark {complement}
    }}"""
    # A first packet is routed like all that follow, which have no mark.
    unmarked = f"""
        meta mark set meta mark and {rest:#x}"""
    return f"""\
table ip {NFT_TABLE}
delete table ip {NFT_TABLE}
table ip {NFT_TABLE} {{
    map {NFT_MAP} {{
        type {key} : ipv4_addr . inet_service
        flags timeout
    }}{unknown if fw.rewritten_at else ""}
    chain output {{
        type nat hook output priority -101
        ip daddr != {fw.prefix} accept
        meta mark and {fw.mask:#x} == {fw.mark:#x} ct mark set ct mark {marked}{"" if fw.rewritten_at else unmarked}
        dnat to ip saddr . ip protocol . th sport . ip daddr . th dport map @{NFT_MAP}
    }}
}}
"""


_NFT_UNDO: Final = f"nft list table ip {NFT_TABLE} >/dev/null 2>&1 || exit 0; exec nft delete table ip {NFT_TABLE}"
"""Where there is no nft there is no table."""


def kernel_path_works(fw: EnFirewall) -> Check:
    """Whether nft and the kernel take what the kernel path needs."""
    script = f"nft --check -f - && cat /proc/sys/{_ACCOUNTING.name}"
    return Check(Command(("sh", "-c", script), stdin=_nft_table(fw)), _judge_kernel_path)


def _judge_kernel_path(status: int, output: str) -> str | None:
    if not status:
        return None
    if "nft: not found" in output:
        return "nft is not installed (Debian package nftables)"
    return f"no NAT by nftables here (status {status}): {' '.join(output.split()) or 'no message'}"


def _gateway_chains(fw: EnFirewall, gateway: Gateway) -> dict[_Place, list[str]]:
    """`_host_chains`, and what inside hosts need: before what refuses or drops, and in hooks of their own."""
    chains = _host_chains(fw)
    chains["filter", "FORWARD"][:0] = linux_gateway.forward(gateway, fw.prefix)
    chains["raw", "PREROUTING"][:0] = linux_gateway.not_forged(gateway)
    chains["mangle", "INPUT"][:0] = linux_gateway.answers(gateway, fw.mask)
    chains["mangle", "OUTPUT"][:0] = linux_gateway.marked(gateway, fw.mask)
    return chains | {
        ("filter", "INPUT"): linux_gateway.incoming(gateway),
        ("nat", "POSTROUTING"): linux_gateway.source_nat(gateway),
        # Queries before the NAT, answers behind it: both have the inside host's address. What outsiders ask of a name
        # server in the home passes: it may have virtual addresses or their names in it, which are told to no stranger.
        ("mangle", "FORWARD"): [
            *(f"! -o {gateway.interface} {rule}" for rule in linux_dns.answers(fw.dns_queue)),
            *(f"! -i {gateway.interface} {rule}" for rule in linux_dns.queries(fw.dns_queue)),
        ],
    }


def _host_chains(fw: EnFirewall) -> dict[_Place, list[str]]:
    if fw.rewritten_at is not None:
        return _interface_chains(fw, fw.rewritten_at)
    return _kernel_path_chains(fw) if fw.kernel_path else _en_chains(fw)


def _chains_of(fw: EnFirewall) -> dict[_Place, list[str]]:
    return _host_chains(fw) if fw.gateway is None else _gateway_chains(fw, fw.gateway)


def _router_chains(fw: RouterFirewall) -> dict[_Place, list[str]]:
    return {
        # The hairpin: what enters by the TUN leaves by the TUN, with the source the real reply will have.
        ("nat", "POSTROUTING"): [
            f"-o {fw.tun} -p {protocol} -j SNAT --to-source {format_address(fw.address)}:{_MAPPED_PORTS}"
            for protocol in ("tcp", "udp")
        ],
        # Its fence: should the ip rule be lost, a pseudo-packet still goes nowhere else, and nothing else comes in.
        ("filter", "INPUT"): [
            f"-i {fw.tun} -j DROP",
            # Conntrack saw a SYN of the inside host first, so between the true SYN+ACK and its answer it takes a SYN of
            # the external node for invalid and does not translate it. It is one sent again because the SYN+ACK was
            # lost, and a RST of this host's would end the connection that the next SYN+ACK makes.
            f"-i {fw.interface} -p tcp --dport {_MAPPED_PORTS.replace('-', ':')}"
            " -m conntrack --ctstate INVALID -j DROP",
        ],
        ("filter", "FORWARD"): [
            f"-i {fw.tun} -o {fw.tun} -j ACCEPT",
            f"-i {fw.tun} ! -o {fw.tun} -j DROP",
            f"! -i {fw.tun} -o {fw.tun} -j DROP",
        ],
        # Our answers: conntrack never saw the requests.
        ("raw", "OUTPUT"): [f"-m mark --mark {fw.mark:#x}/{fw.mask:#x} -j CT --notrack"],
        # raw: before conntrack and every filter rule, as the paper's router hooks before its firewall [3.2].
        ("raw", "PREROUTING"): [
            f"-i {fw.interface} -p icmp --icmp-type echo-request -m addrtype --dst-type LOCAL"
            f" -m length --length {_REQUEST_LENGTHS} {_MAGIC}"
            f" -j NFQUEUE --queue-num {fw.control_queue} --queue-bypass"
        ],
    }


def en_rules(fw: EnFirewall) -> list[Command]:
    """Set up the external node; may run again at any time. A gateway's TUN must be open already."""
    rules = _set_up("EN", _EN_PLACES, _chains_of(fw))
    if fw.rewritten_at is not None:
        rules.insert(1, _no_longer_second("EN", *_TELLS_UNKNOWN))
    if fw.kernel_path:  # first: a packet let go before its translation is there would be refused
        rules.insert(0, Command(("nft", "-f", "-"), stdin=_nft_table(fw)))
    return rules if fw.gateway is None else rules + linux_gateway.route(fw.gateway, fw.prefix)


def en_sysctls(fw: EnFirewall) -> list[Sysctl]:
    """As `router_sysctls`, for `en_rules`."""
    tracking = [_ACCOUNTING, _LIBERAL] if fw.kernel_path else []
    return tracking if fw.gateway is None else tracking + linux_gateway.sysctls(fw.gateway)


def en_undo() -> list[Command]:
    """Remove all that `en_rules` makes, whatever its configuration was and however far it came."""
    return [*_undo("EN", _EN_PLACES), *linux_gateway.no_route(), Command(("sh", "-c", _NFT_UNDO))]


def router_rules(fw: RouterFirewall) -> list[Command]:
    """Set up the router; may run again at any time. The TUN must be open already (`natd_bridge.netfilter`).

    `router_sysctls` go after it: conntrack's settings exist once conntrack is in use.
    """
    rule = ("priority", str(fw.priority), "protocol", str(ROUTE_PROTOCOL))
    route = ("table", str(fw.table), "proto", str(ROUTE_PROTOCOL))
    return [
        *_set_up("RT", _ROUTER_PLACES, _router_chains(fw)),
        Command(("ip", "link", "set", fw.tun, "up", "mtu", "1500")),
        # `ip rule add` can't replace, and `ip rule show` succeeds without a match.
        Command(("ip", "-4", "rule", "del", *rule), may_fail=IP_NOTHING_THERE),
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
        _LIBERAL,
        # For the same reason conntrack never learns the window of such a connection, takes it for zero, and forgets the
        # connection after this time without a packet, 300 s by default, instead of tcp_timeout_established (seen on
        # 6.18). So this is what a mapping lives: the paper's value for established TCP [4].
        Sysctl("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "86400"),
    ]


def router_undo(*, table: int, priority: int = RULE_PRIORITY) -> list[Command]:
    """Remove all that `router_rules` makes. The TUN itself goes with the bridge that opened it."""
    protocol = str(ROUTE_PROTOCOL)
    return [
        *_undo("RT", _ROUTER_PLACES),
        Command(
            ("ip", "-4", "rule", "del", "priority", str(priority), "protocol", protocol), may_fail=IP_NOTHING_THERE
        ),
        Command(("ip", "-4", "route", "flush", "table", str(table), "proto", protocol), may_fail=IP_NOTHING_THERE),
    ]


def probe_en(fw: EnFirewall) -> list[Check]:
    """What must hold before `en_rules` is worth trying."""
    own = {fw.dns_queue, fw.out_queue, fw.in_queue}
    gateway = fw.gateway
    if gateway is None:
        return [_rules_parse("EN", _host_chains(fw)), not_in_use("en", own)]
    return [
        _rules_parse("EN", _gateway_chains(fw, gateway)),
        not_in_use("en", own | {gateway.queue}),
        _forwards(),
        linux_gateway.route_is_free(gateway, fw.prefix),
    ]


def probe_router(fw: RouterFirewall) -> list[Check]:
    """What must hold before `router_rules` is worth trying."""
    return [
        _rules_parse("RT", _router_chains(fw)),
        not_in_use("router", {fw.control_queue}),
        _forwards(),
        Check(Command(("ip", "-4", "rule", "show", "priority", str(fw.priority))), _rule_judge(fw)),
        Check(Command(("ip", "-4", "route", "show", "table", str(fw.table))), _table_judge(fw)),
    ]


def en_look(fw: EnFirewall, interface: str) -> tuple[str, ...]:
    """The process that lists all `en_rules` makes, the addresses of the outer interface, and for `linux_host_rules`
    what it reads; see `guard.read`."""
    settings = f"cd /proc/sys && cat {_ACCOUNTING.name} {_LIBERAL.name}"
    listing = f"echo '# nft'; nft -t list table ip {NFT_TABLE} 2>/dev/null; {settings}"
    table = (listing,) if fw.kernel_path else ()
    around = () if fw.rewritten_at is None else (_FIRST, f"echo '# host'; {linux_host_rules.listing(fw.prefix)}")
    return _look("EN", interface, *table, *around, *(() if fw.gateway is None else linux_gateway.look(fw.gateway)))


def router_look(fw: RouterFirewall) -> tuple[str, ...]:
    """As `en_look`, for `router_rules`."""
    tun = shlex.quote(fw.tun)
    return _look(
        "RT",
        fw.interface,
        f"echo '# policy'; ip -4 rule show priority {fw.priority} protocol {ROUTE_PROTOCOL}",
        f"echo '# route'; ip -4 route show table {fw.table} proto {ROUTE_PROTOCOL} 2>/dev/null",
        f"echo '# settings'; cd /proc/sys && cat {' '.join(s.name for s in router_sysctls(fw))} 2>/dev/null",
        f"echo '# device'; ip -o link show dev {tun} up 2>/dev/null | cut -d: -f2",
    )


def _look(role: str, interface: str, *more: str) -> tuple[str, ...]:
    lines = (
        "rules=$(iptables-save) || exit",  # a list that failed is no empty list
        f"echo '# rules'; printf '%s\\n' \"$rules\" | grep NATF-{role}-",
        *more,
        # Without an address the interface may be away altogether.
        f"echo '# address'; ip -o -4 address show dev {shlex.quote(interface)} scope global 2>/dev/null || true",
    )
    return ("sh", "-c", "\n".join(lines))


def not_in_use(role: str, own: Collection[int] = ()) -> Check:
    """Whether the rules of `role` ("en", "router") that are here have a living daemon: somebody holds a queue they
    name, other than the queues `own`.

    The lock in run_dir can't tell that: another daemon may have another run_dir, and the rules are for all alike.
    """
    return Check(Command(("sh", "-c", _WHO_READS)), _owner_judge(role, frozenset(own)))


def _owner_judge(role: str, own: Collection[int]) -> Judge:
    def judge(status: int, output: str) -> str | None:
        saved, _, queues = output.partition(_QUEUES)
        rules = [line for line in saved.splitlines() if line.startswith(f"-A NATF-{_ROLES[role]}-")]
        named = {int(number) for line in rules for number in _QUEUE_NUMBER.findall(line)} - set(own)
        # Queue and netlink port of its reader, which is the number of a process for the first socket of each.
        readers = {int(queue): int(port) for queue, port in (line.split()[:2] for line in queues.splitlines() if line)}
        held = {queue: readers[queue] for queue in sorted(named) if queue in readers}
        if not held:
            return None
        process = next((f"process {port}" for port in held.values() if port <= _LARGEST_PROCESS), "a process")
        text = ", ".join(map(str, held))
        return f"natf {role} is running with another run_dir ({process} holds NFQUEUE {text}); stop it first"

    return judge


def _set_up(role: str, places: Sequence[_Place], chains: Mapping[_Place, Sequence[str]]) -> list[Command]:
    fill = Command(("iptables-restore", *_WAIT, "--noflush"), stdin=_restore(role, chains))
    return [fill, *(_jump(role, *place) for place in places if place in chains)]


def _restore(role: str, chains: Mapping[_Place, Sequence[str]]) -> str:
    """Input of iptables-restore that gives our chains exactly these rules."""
    lines: list[str] = []
    for table in sorted({table for table, _ in chains}):
        members = {_name(role, hook): rules for (of, hook), rules in chains.items() if of == table}
        lines.append(f"*{table}")
        lines += [f":{name} - [0:0]" for name in members]
        lines += [f"-A {name} {rule}" for name, rules in members.items() for rule in rules]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _name(role: str, hook: str) -> str:
    return f"NATF-{role}-{hook}"


def _jump(role: str, table: str, hook: str) -> Command:
    iptables = ("iptables", *_WAIT, "-t", table)
    target = (*_COMMENT, "-j", _name(role, hook))
    # First, before anything that accepts or drops. The price: what a queue gives back goes on at the next hook, so a
    # site's own rules behind ours in the same chain do not see it.
    return Command((*iptables, "-I", hook, "1", *target), unless=(*iptables, "-C", hook, *target))


def _no_longer_second(role: str, table: str, hook: str) -> Command:
    """Whoever comes before our jump may take away the marks it goes by."""
    iptables, name = ("iptables", *_WAIT, "-t", table), _name(role, hook)
    is_first = f"iptables -t {table} -S {hook} | grep ^-A | head -n 1 | grep -q -e '-j {name}$'"
    return Command(
        (*iptables, "-D", hook, *_COMMENT, "-j", name),
        unless=("sh", "-c", is_first),
        may_fail=_IPTABLES_NOTHING_THERE,
    )


def _undo(role: str, places: Sequence[_Place]) -> list[Command]:
    """In the reverse of the order of setting up; each jump before its chain, which could not be removed with it."""
    commands: list[Command] = []
    for table, hook in reversed(places):
        iptables, name = ("iptables", *_WAIT, "-t", table), _name(role, hook)
        commands += [
            # A site that restores what it saved while we ran (iptables-restore -n) has the jump twice.
            Command((*iptables, "-D", hook, *_COMMENT, "-j", name), may_fail=_IPTABLES_NOTHING_THERE, repeated=True),
            Command((*iptables, "-F", name), may_fail=_IPTABLES_NOTHING_THERE),
            Command((*iptables, "-X", name), may_fail=_IPTABLES_NOTHING_THERE),
        ]
    return commands


def _rules_parse(role: str, chains: Mapping[_Place, Sequence[str]]) -> Check:
    command = Command(("iptables-restore", *_WAIT, "--noflush", "--test"), stdin=_restore(role, chains))
    return Check(command, _judge_rules)


def _judge_rules(status: int, output: str) -> str | None:
    if status == 127:
        return "iptables-restore is not installed (Debian package iptables)"
    if status:
        return f"iptables does not take the rules (status {status}): {output.strip() or 'no message'}"
    return None


def _forwards() -> Check:
    return Check(Command(("cat", "/proc/sys/net/ipv4/ip_forward")), _judge_forwarding)


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
    def judge(status: int, output: str) -> str | None:
        if status:  # a table nobody has used yet is an error to some versions of ip
            return None
        foreign = [line for line in output.splitlines() if line.strip() and f"dev {fw.tun} " not in f"{line} "]
        return f"routing table {fw.table} is in use: {foreign[0].strip()}" if foreign else None

    return judge
