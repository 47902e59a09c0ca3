"""ipfw rules of both roles on FreeBSD, and their undoing (DESIGN.md sections 4, 7): configuration in, commands out.

What is ours lies in sets of our own and carries our comment, so undo needs no memory and set-up may run again over
what a crash left. One batch fills a disabled set and enables it with its last line: the rules come into force together,
and none does if ipfw stops half way. Facts are those of FREEBSD.md sections 1, 2, 11, 13.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from natf_bsd.divert.host import holder_of, is_held
from natf_bsd.firewall.command import Check, Command, Judge, Sysctl
from natf_bsd.firewall.ipfw_nat import NatRule, find_nat
from natf_bsd.firewall.ipfw_places import EnPlaces, RouterPlaces, en_places, not_ours, router_places
from natf_bsd.firewall.ipfw_rules import EN_SET, MARK, ROUTER_SET, STAND_IN_SET, Rule, parse_rules, parse_tables
from natf_bsd.natd_bridge.pseudo import CAPTURED_TTL, PSEUDO_IDENT
from natf_bsd.types import Address, format_address

__all__ = [
    "EN_SET",
    "EN_SETTINGS",
    "FLOWS_IN",
    "FLOWS_OUT",
    "FLOWS_TYPE",
    "LIST_RULES",
    "LIST_TABLES",
    "PEERS_TABLE",
    "PF_LOOPS_SINCE",
    "ROUTER_SET",
    "STAND_IN_SET",
    "EnFirewall",
    "EnPlaces",
    "NatRule",
    "RouterFirewall",
    "RouterPlaces",
    "Rule",
    "en_look",
    "en_places",
    "en_rules",
    "en_undo",
    "find_nat",
    "judge_listing",
    "largest_for_nat",
    "not_in_use",
    "parse_rules",
    "parse_tables",
    "peers_add",
    "peers_remove",
    "probe_en",
    "probe_router",
    "router_look",
    "router_places",
    "router_rules",
    "router_undo",
    "stand_in",
]

PEERS_TABLE: Final = "natf_peers"
FLOWS_OUT: Final = "natf_vo"
"""Flows that the kernel translates, as their programs send, G1:s -> V1:d, with the number of each one's NAT."""
FLOWS_IN: Final = "natf_vi"
"""The same flows as their answers come, G2:m -> G1:s."""
FLOWS_TYPE: Final = "flow:src-ip,proto,src-port,dst-ip,dst-port"
LIST_RULES: Final = Command(("ipfw", "-S", "list"))
"""Its output is for `parse_rules`, and for `judge_listing` if it fails."""
LIST_TABLES: Final = Command(("ipfw", "table", "all", "list"))
"""Its output is for `parse_tables`."""

PF_LOOPS_SINCE: Final = 1_400_000
"""kern.osreldate of the first release whose divert writes carry what makes pf forget ipfw's place (FREEBSD.md 5.3)."""

EN_SETTINGS: Final = (Sysctl("net.inet.tcp.tso", "0", optional=True),)
"""Programs of a host that is diverted itself must not hand over segments larger than the MTU: what is written back is
not cut up again (FREEBSD.md 1.6)."""

_SOCKETS: Final = "# sockets\n"
_WHO_READS: Final = "ipfw -S list 2>/dev/null; echo '# sockets'; sockstat -P divert"
_SYNTAX_ONLY: Final = ("ipfw", "-n", "-q", "/dev/stdin")
# Up to 12 the slow way of forwarding, which that setting chooses, refuses class E (FREEBSD.md 6). Prints nothing after.
_REDIRECT: Final = Command(
    ("sh", "-c", '[ "$(sysctl -n kern.osreldate)" -ge 1300000 ] || sysctl -n net.inet.ip.redirect')
)


@dataclass(frozen=True, slots=True)
class EnFirewall:
    """What the external node's rules depend on. `prefix`: of the virtual addresses; queues are divert ports.
    `kernel_path`: the kernel translates what `datapath.ipfw_reverse` puts into the tables of flows, packets of
    `largest_for_nat` bytes at most."""

    interface: str
    prefix: str
    dns_queue: int
    query_queue: int
    out_queue: int
    in_queue: int
    control_queue: int
    places: EnPlaces
    kernel_path: bool = False
    largest_for_nat: int = 4096


@dataclass(frozen=True, slots=True)
class RouterFirewall:
    """What the router's rules depend on: `interface` is the public one; queues are divert ports."""

    interface: str
    control_queue: int
    capture_queue: int
    places: RouterPlaces


def router_rules(fw: RouterFirewall) -> list[Command]:
    """Set up the router; may run again at any time."""
    lines = [f"set disable {ROUTER_SET}", f"delete set {ROUTER_SET}", *_router_lines(fw), f"set enable {ROUTER_SET}"]
    return [_batch(lines)]


def router_undo() -> list[Command]:
    """Remove all that `router_rules` makes, whatever its configuration was and however far it came."""
    return [_ipfw("delete", "set", str(ROUTER_SET)), _ipfw("set", "enable", str(ROUTER_SET))]


def en_rules(fw: EnFirewall, peers: Collection[Address]) -> list[Command]:
    """Set up the external node with these routers in use; may run again at any time.

    Until the last line the stand-in is in force: packets to the prefix do not leave in the meantime either.
    """
    return [
        _batch(
            [
                f"set disable {EN_SET} enable {STAND_IN_SET}",
                f"delete set {STAND_IN_SET}",
                _stand_in(fw),
                f"delete set {EN_SET}",
                f"table {PEERS_TABLE} create type addr missing",
                f"table {PEERS_TABLE} flush",
                *_entries("add", peers),
                *(_flow_tables() if fw.kernel_path else ()),
                *_en_lines(fw),
                f"set disable {STAND_IN_SET} enable {EN_SET}",
            ]
        )
    ]


def en_undo() -> list[Command]:
    """Remove all that `en_rules` makes, whatever its configuration was and however far it came; but for the tables of
    flows, which may be another's: `ipfw_reverse.remove` looks first."""
    return [
        _ipfw("delete", "set", str(EN_SET)),
        _ipfw("delete", "set", str(STAND_IN_SET)),
        _ipfw("table", PEERS_TABLE, "destroy"),
        _ipfw("set", "enable", str(EN_SET), str(STAND_IN_SET)),
    ]


def stand_in(fw: EnFirewall) -> list[Command]:
    """For the time a daemon is away: nothing is diverted, and packets to the prefix are refused at once. Its rule may
    have been flushed with all others; twice it does no harm.
    """
    return [_batch([_stand_in(fw), f"set disable {EN_SET} enable {STAND_IN_SET}"])]


def peers_add(addresses: Collection[Address]) -> list[Command]:
    """These routers are in use from now on; they may be already."""
    return [_batch(_entries("add", addresses))] if addresses else []


def peers_remove(addresses: Collection[Address]) -> list[Command]:
    """These routers are not in use any more; they may not have been."""
    return [_batch(_entries("delete", addresses))] if addresses else []


def _router_lines(fw: RouterFirewall) -> list[str]:
    places, name = fw.places, fw.interface
    requests = f"icmp from any to me in recv {name} icmptypes 8"
    rules = [
        # In front of firewall and NAT [3.2]. What the daemon gives back is for the firewall, but not for the NAT.
        (places.control, f"divert {fw.control_queue} {requests}"),
        (places.control_pass, f"skipto {places.nat.inbound + 1} {requests}"),
        (
            places.capture,
            # By whatever interface: a forged request may name as its sender an inside host, or this one.
            f"divert {fw.capture_queue} ip from any to any out ipid {PSEUDO_IDENT} ipttl {CAPTURED_TTL}",
        ),
        # What is written as if from this number passes this rule by. All else must not reach the next one, the NAT's
        # own packets above all: they are diverted-output too.
        (places.capture, f"skipto {places.reply + 1} ip from any to any out"),
        (places.reply, f"allow icmp from me to any out xmit {name} icmptypes 0 diverted-output"),
    ]
    return [_add(number, body, ROUTER_SET) for number, body in rules]


def _en_lines(fw: EnFirewall) -> list[str]:
    places, name = fw.places, fw.interface
    to_me = f"to me in recv {name}"
    rules = [
        # Rules that ask for ports or ICMP types see first fragments only (FREEBSD.md 1.7).
        (places.reass, f"reass udp from any {to_me}"),
        # Only our own rewriting may make such sources; from a wire, whichever, they are forged. It is written in behind
        # this.
        (places.deny, f"deny ip from {fw.prefix} to any in"),
        # A NAT that denies nothing would send on what comes from outside, as ours: strangers could call by our names.
        (places.deny, f"deny ip from any to {fw.prefix} in recv {name}"),
        (places.dns, f"divert {fw.dns_queue} udp from any 53 {to_me}"),
        # `in via lo0` would give checksums that were never computed (FREEBSD.md 1.6).
        (places.loopback, f"divert {fw.query_queue} udp from any 53 to any out via lo0"),
        (places.loopback, f"divert {fw.query_queue} udp from any to any 53 out via lo0"),
        (places.loopback, f"divert {fw.query_queue} tcp from any to any 53 out via lo0 established"),
        (places.control, f"divert {fw.control_queue} icmp from any {to_me} icmptypes 0"),
        (places.out, f"divert {fw.out_queue} ip from me to {fw.prefix} out xmit {name}"),
        # By another interface, or from another host: it must not leave.
        (places.out, f"unreach host ip from any to {fw.prefix} out"),
        # What other readers of divert sockets give back, natd above all, is diverted-output as well: on to the site's
        # rules. Our own packets are written as if from this number and so pass this rule by.
        (places.out, f"skipto {places.queries} ip from any to any out"),
        (places.pass_out, f"allow ip from me to any out xmit {name} diverted-output"),
        (places.queries, f"divert {fw.query_queue} udp from me to any 53 out xmit {name}"),
        (places.queries, f"divert {fw.query_queue} tcp from me to any 53 out xmit {name} established"),
        (places.errors, f"divert {fw.in_queue} icmp from any {to_me} icmptypes 3,4,11,12"),
        (places.peers, f"divert {fw.in_queue} {{ tcp or udp }} from table({PEERS_TABLE}) {to_me}"),
    ]
    if fw.kernel_path:  # rules of one number run in the order they were added
        rules = [*_kernel_path_rules(fw), *rules]
    if places.pass_in is not None:
        rules.append((places.pass_in, f"allow ip from {fw.prefix} {to_me} diverted-loopback"))
    return [_add(number, body, EN_SET) for number, body in sorted(rules, key=lambda rule: rule[0])]


def _kernel_path_rules(fw: EnFirewall) -> list[tuple[int, str]]:
    """What begins or ends a connection passes them by, on to the daemon. The table must be what is looked up last: it
    gives the number.
    """
    places, name = fw.places, fw.interface
    # `ipfw nat` drops what is larger; the daemon does not.
    small = f"iplen 0-{fw.largest_for_nat} "
    ours = (("tcp", f"{small}tcpflags !syn,!fin,!rst "), ("udp", small))
    return [
        # Ports are in first fragments only: the others would go to the daemon, which cannot put the rest together.
        (places.reass, f"reass tcp from any to me in recv {name}"),
        *(
            (places.out, f"nat tablearg {kind} from me to {fw.prefix} out xmit {name} {flags}flow table({FLOWS_OUT})")
            for kind, flags in ours
        ),
        *(
            (places.peers, f"nat tablearg {kind} from any to me in recv {name} {flags}flow table({FLOWS_IN})")
            for kind, flags in ours
        ),
    ]


def largest_for_nat(osreldate: int) -> int:
    """Bytes that `ipfw nat` makes one piece of on the release with this `kern.osreldate` (m_megapullup): up to 13 no
    more than a page. 14.2 is the first that was seen (FREEBSD.md 1.6)."""
    return 16384 if osreldate >= 1_402_000 else 4096


def _flow_tables() -> list[str]:
    """Before the rules: one that names a table that is not there makes it, as another one. They are emptied, for what
    is in them is an earlier daemon's, or comes again when its flow does.
    """
    return [
        line
        for table in (FLOWS_OUT, FLOWS_IN)
        for line in (f"table {table} create type {FLOWS_TYPE} valtype nat missing", f"table {table} flush")
    ]


def _stand_in(fw: EnFirewall) -> str:
    return _add(fw.places.stand_in, f"unreach host ip from any to {fw.prefix} out", STAND_IN_SET)


def _add(number: int, body: str, set_number: int) -> str:
    return f"add {number} set {set_number} {body} {MARK}"


def _entries(command: str, addresses: Iterable[Address]) -> list[str]:
    """One a line: ipfw(8) reads the second word behind the command as a value, and lines of 1023 bytes at most."""
    return [f"table {PEERS_TABLE} {command} {format_address(address)}" for address in sorted(addresses)]


def _batch(lines: Iterable[str]) -> Command:
    return Command(("ipfw", "-q", "/dev/stdin"), stdin="".join(f"{line}\n" for line in lines))


def _ipfw(*words: str) -> Command:
    return Command(("ipfw", "-q", *words))


def probe_router(fw: RouterFirewall) -> list[Check]:
    """What must hold before `router_rules` is worth trying."""
    return [
        *_probe(fw.interface, _router_lines(fw)),
        not_in_use("router", {fw.control_queue, fw.capture_queue}),
        _setting("net.inet.ip.forwarding", "1", "this host does not forward IPv4 packets, as any router must"),
        *_probe_nat(fw.places.nat),
    ]


def probe_en(fw: EnFirewall) -> list[Check]:
    """What must hold before `en_rules` is worth trying."""
    nat = fw.places.nat
    inside = [Check(_REDIRECT, _judge_redirect), *_probe_nat(nat)] if nat is not None else []
    own = {fw.dns_queue, fw.query_queue, fw.out_queue, fw.in_queue, fw.control_queue}
    return [*_probe(fw.interface, _en_lines(fw)), not_in_use("en", own), *inside]


def _probe(interface: str, lines: Iterable[str]) -> list[Check]:
    syntax = Command(_SYNTAX_ONLY, stdin="".join(f"{line}\n" for line in lines))
    return [
        Check(LIST_RULES, judge_listing),
        Check(syntax, _judge_syntax),
        _setting("net.inet.ip.fw.enable", "1", "ipfw is switched off"),
        Check(_pf_state(interface), _pf_judge(interface)),
    ]


def _probe_nat(nat: NatRule) -> list[Check]:
    if nat.kind != "ipfw nat":
        return []
    why = "`ipfw nat` ends the walk through the rules, and pseudo-packets leave this host uncaptured"
    return [_setting("net.inet.ip.fw.one_pass", "0", why)]


def _setting(name: str, expected: str, otherwise: str) -> Check:
    def judge(status: int, output: str) -> str | None:
        if status == 0 and output.strip() == expected:
            return None
        found = f"not to be had ({output.strip()})" if status else output.strip()
        return f"{name} is {found}, so that {otherwise}: set {name}={expected} (sysctl, /etc/sysctl.conf)"

    return Check(Command(("sysctl", "-n", name)), judge)


def judge_listing(status: int, output: str) -> str | None:
    """What is wrong if `LIST_RULES` ends with this status and output."""
    if status == 127:
        return "ipfw(8) is not installed; expected the one of the base system"
    if status:
        return (
            f"ipfw cannot list its rules (status {status}): {output.strip() or 'no message'}; expected to be root, and"
            " ipfw in the kernel: firewall_enable=YES in /etc/rc.conf and `service ipfw start`"
        )
    return None


def _judge_syntax(status: int, output: str) -> str | None:
    return f"ipfw does not take the rules (status {status}): {output.strip() or 'no message'}" if status else None


def _pf_state(interface: str) -> Command:
    """Prints nothing where pf does no harm: before 14, and where it is off or away."""
    lines = (
        f'[ "$(sysctl -n kern.osreldate)" -ge {PF_LOOPS_SINCE} ] || exit 0',
        "pfctl -s info 2>/dev/null | grep '^Status: Enabled' || exit 0",
        f"pfctl -s Interfaces -v -i {shlex.quote(interface)}",
    )
    return Command(("sh", "-c", "\n".join(lines)))


def _pf_judge(interface: str) -> Judge:
    def judge(status: int, output: str) -> str | None:
        if status:
            return f"pf is enabled and its state cannot be read (status {status}): {output.strip() or 'no message'}"
        lines = [line.split() for line in output.splitlines()]
        if not lines or [interface, "(skip)"] in [line[:2] for line in lines]:
            return None
        return (
            f"pf is enabled on {interface}: what a divert socket writes then starts at the first ipfw rule again, and"
            f" goes round for ever; expected `set skip on {interface}` in /etc/pf.conf (`pfctl -f /etc/pf.conf`), or no"
            " pf"
        )

    return judge


def _judge_redirect(status: int, output: str) -> str | None:
    if output.strip() in ("", "0"):
        return None
    return (
        f"net.inet.ip.redirect is {output.strip()}, so that before FreeBSD 13 packets of inside hosts to virtual"
        " addresses are not forwarded: set net.inet.ip.redirect=0 (sysctl, /etc/sysctl.conf)"
    )


def not_in_use(role: str, own: Collection[int] = ()) -> Check:
    """Whether the sets of `role` ("en", "router") may be deleted. Not if the rules there have a living daemon: somebody
    holds a divert port they name, other than the ports `own` (the lock in run_dir can't tell that: another daemon may
    have another run_dir, and the rules are for all alike). And not if rules of others are in them: those of the site,
    with which natf refused to start.
    """
    return Check(Command(("sh", "-c", _WHO_READS)), _owner_judge(role, frozenset(own)))


def _owner_judge(role: str, own: Collection[int]) -> Judge:
    sets = {EN_SET, STAND_IN_SET} if role == "en" else {ROUTER_SET}

    def judge(status: int, output: str) -> str | None:
        listing, _, sockets = output.partition(_SOCKETS)
        rules = [rule for rule in parse_rules(listing) if rule.set in sets]
        if foreign := next((rule for rule in rules if not rule.is_ours), None):
            return not_ours(foreign)
        bodies = [rule.body for rule in rules]
        ports = {int(words[1]) for body in bodies if (words := body.split())[0] == "divert" and words[1].isdigit()}
        held = sorted(port for port in ports.difference(own) if is_held(port, sockets))
        if not held:
            return None
        who = holder_of(held[0], sockets) or "a process"
        text = ", ".join(map(str, held))
        return f"natf {role} is running with another run_dir ({who} holds divert port {text}); stop it first"

    return judge


def router_look(fw: RouterFirewall) -> tuple[str, ...]:
    """The process that lists all `router_rules` makes, the NAT and the address of the outer interface; see
    `guard.read`."""
    return _look(fw.interface, str(ROUTER_SET), fw.places.nat)


def en_look(fw: EnFirewall) -> tuple[str, ...]:
    """As `router_look`, for `en_rules`."""
    table = f"echo '# table'; ipfw table {PEERS_TABLE} list 2>/dev/null || true"
    settings = f"echo '# settings'; sysctl -n {' '.join(setting.name for setting in EN_SETTINGS)} 2>/dev/null"
    kernel_path = (
        "echo '# one_pass'; sysctl -n net.inet.ip.fw.one_pass",
        "echo '# instances'; ipfw nat show config 2>/dev/null || echo unknown",
    )
    more = kernel_path if fw.kernel_path else ()
    return _look(fw.interface, f"[{EN_SET}{STAND_IN_SET}]", fw.places.nat, table, settings, *more)


def _look(interface: str, sets: str, nat: NatRule | None, *more: str) -> tuple[str, ...]:
    # A disabled rule is "# DISABLED NNNNN set ...", and a line that starts with "# " would be a section.
    ours = f"-e '/^\\(DISABLED \\)*[0-9]* set {sets} /p'"
    lines = (
        "rules=$(ipfw -S list) || exit",  # a list that failed is no empty list
        f"echo '# rules'; printf '%s\\n' \"$rules\" | sed -n -e 's/^# //' {ours}",
        f"echo '# others'; printf '%s\\n' \"$rules\" | grep -v ' {MARK} *$' | cksum",
        *(_look_at_nat(nat) if nat is not None else ()),
        *more,
        f"echo '# pf'; {_look_at_pf(interface)}",
        # Without an address the interface may be away altogether.
        f"echo '# address'; ifconfig {shlex.quote(interface)} inet 2>/dev/null || true",
    )
    return ("sh", "-c", "\n".join(lines))


def _look_at_pf(interface: str) -> str:
    """A line if pf has come to the interface since: then packets go round for ever, and natf is not to blame."""
    return (
        f'[ "$(sysctl -n kern.osreldate)" -ge {PF_LOOPS_SINCE} ]'
        " && pfctl -s info 2>/dev/null | grep -q '^Status: Enabled'"
        f" && ! pfctl -s Interfaces -v -i {shlex.quote(interface)} 2>/dev/null | grep -q '(skip)' && echo active"
    )


def _look_at_nat(nat: NatRule) -> list[str]:
    numbers = " ".join(map(str, sorted({nat.number, nat.inbound})))
    lines = [f"echo '# nat'; ipfw show {numbers} 2>/dev/null | grep -E ' (divert|nat) ' || true"]
    if nat.kind == "natd":
        lines.append("echo '# natd'; pgrep -x -U 0 natd || true")  # anybody may call a program so
    return lines
