"""The exact commands of both roles on FreeBSD: a change of the firewall has to be meant, and shows here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from natf_bsd.firewall import guard, ipfw
from natf_bsd.firewall.command import Check, Command, shell
from natf_bsd.firewall.ipfw import EnFirewall, NatRule, RouterFirewall
from natf_bsd.types import parse_address
from tests.firewall.ipfw_rule_sets import KERNEL_NAT, NATD, OPEN, OUTER, rules

NATD_RULES = rules(NATD + OPEN)
PREFIX = "240.0.0.0/8"
ROUTER = RouterFirewall("em0", 8701, 8702, ipfw.router_places(NATD_RULES, OUTER))
KERNEL_ROUTER = replace(ROUTER, places=ipfw.router_places(rules(KERNEL_NAT + OPEN), OUTER))
HOST = EnFirewall("em0", PREFIX, 8710, 8715, 8711, 8712, 8714, ipfw.en_places(rules(OPEN), OUTER, PREFIX))
GATEWAY = replace(HOST, places=ipfw.en_places(NATD_RULES, OUTER, PREFIX))
PEERS = [parse_address("203.0.113.9"), parse_address("198.51.100.1")]

ROUTER_BATCH = """\
set disable 7
delete set 7
add 40 set 7 divert 8701 icmp from any to me in recv em0 icmptypes 8 // natf
add 49 set 7 skipto 51 icmp from any to me in recv em0 icmptypes 8 // natf
add 51 set 7 divert 8702 ip from any to any out ipid 20038 ipttl 1 // natf
add 51 set 7 skipto 53 ip from any to any out // natf
add 52 set 7 allow icmp from me to any out xmit em0 icmptypes 0 diverted-output // natf
set enable 7
"""

HOST_BATCH = """\
set disable 5 enable 6
delete set 6
add 35 set 6 unreach host ip from any to 240.0.0.0/8 out // natf
delete set 5
table natf_peers create type addr missing
table natf_peers flush
table natf_peers add 198.51.100.1
table natf_peers add 203.0.113.9
add 29 set 5 reass udp from any to me in recv em0 // natf
add 30 set 5 deny ip from 240.0.0.0/8 to any in // natf
add 30 set 5 deny ip from any to 240.0.0.0/8 in recv em0 // natf
add 31 set 5 divert 8710 udp from any 53 to me in recv em0 // natf
add 32 set 5 divert 8715 udp from any 53 to any out via lo0 // natf
add 32 set 5 divert 8715 udp from any to any 53 out via lo0 // natf
add 32 set 5 divert 8715 tcp from any to any 53 out via lo0 established // natf
add 34 set 5 divert 8714 icmp from any to me in recv em0 icmptypes 0 // natf
add 35 set 5 divert 8711 ip from me to 240.0.0.0/8 out xmit em0 // natf
add 35 set 5 unreach host ip from any to 240.0.0.0/8 out // natf
add 35 set 5 skipto 37 ip from any to any out // natf
add 36 set 5 allow ip from me to any out xmit em0 diverted-output // natf
add 37 set 5 divert 8715 udp from me to any 53 out xmit em0 // natf
add 37 set 5 divert 8715 tcp from me to any 53 out xmit em0 established // natf
add 37 set 5 divert 8712 icmp from any to me in recv em0 icmptypes 3,4,11,12 // natf
add 38 set 5 divert 8712 { tcp or udp } from table(natf_peers) to me in recv em0 // natf
add 39 set 5 allow ip from 240.0.0.0/8 to me in recv em0 diverted-loopback // natf
set disable 6 enable 5
"""

GATEWAY_BATCH = """\
set disable 5 enable 6
delete set 6
add 39 set 6 unreach host ip from any to 240.0.0.0/8 out // natf
delete set 5
table natf_peers create type addr missing
table natf_peers flush
add 39 set 5 reass udp from any to me in recv em0 // natf
add 43 set 5 divert 8714 icmp from any to me in recv em0 icmptypes 0 // natf
add 44 set 5 deny ip from 240.0.0.0/8 to any in // natf
add 44 set 5 deny ip from any to 240.0.0.0/8 in recv em0 // natf
add 45 set 5 divert 8710 udp from any 53 to me in recv em0 // natf
add 46 set 5 divert 8712 icmp from any to me in recv em0 icmptypes 3,4,11,12 // natf
add 47 set 5 divert 8715 udp from any 53 to any out via lo0 // natf
add 47 set 5 divert 8715 udp from any to any 53 out via lo0 // natf
add 47 set 5 divert 8715 tcp from any to any 53 out via lo0 established // natf
add 48 set 5 divert 8712 { tcp or udp } from table(natf_peers) to me in recv em0 // natf
add 53 set 5 divert 8711 ip from me to 240.0.0.0/8 out xmit em0 // natf
add 53 set 5 unreach host ip from any to 240.0.0.0/8 out // natf
add 53 set 5 skipto 55 ip from any to any out // natf
add 54 set 5 allow ip from me to any out xmit em0 diverted-output // natf
add 55 set 5 divert 8715 udp from me to any 53 out xmit em0 // natf
add 55 set 5 divert 8715 tcp from me to any 53 out xmit em0 established // natf
set disable 6 enable 5
"""


def batch(text: str) -> list[Command]:
    return [Command(("ipfw", "-q", "/dev/stdin"), stdin=text)]


def texts(commands: list[Command]) -> list[str]:
    assert all(not command.may_fail and command.stdin is None for command in commands)
    return [" ".join(command.argv) for command in commands]


def test_the_router_is_one_batch_around_natd() -> None:
    assert ipfw.router_rules(ROUTER) == batch(ROUTER_BATCH)


def test_around_the_nat_in_the_kernel_the_rules_are_the_same() -> None:
    assert KERNEL_ROUTER.places.nat == NatRule(50, "ipfw nat", 123, None, 50)
    assert ipfw.router_rules(KERNEL_ROUTER) == batch(ROUTER_BATCH)


def test_the_external_node_is_one_batch() -> None:
    assert ipfw.en_rules(HOST, PEERS) == batch(HOST_BATCH)


def test_with_a_kernel_path_its_tables_come_first_and_its_rules_are_the_first_of_their_numbers() -> None:
    (command,) = ipfw.en_rules(replace(HOST, kernel_path=True, largest_for_nat=16384), PEERS)
    lines = (command.stdin or "").splitlines()
    flows = "create type flow:src-ip,proto,src-port,dst-ip,dst-port valtype nat missing"
    out, small, flags = "from me to 240.0.0.0/8 out xmit em0", "iplen 0-16384", "tcpflags !syn,!fin,!rst"
    new = [
        f"table natf_vo {flows}",
        "table natf_vo flush",
        f"table natf_vi {flows}",
        "table natf_vi flush",
        "add 29 set 5 reass tcp from any to me in recv em0 // natf",
        f"add 35 set 5 nat tablearg tcp {out} {small} {flags} flow table(natf_vo) // natf",
        f"add 35 set 5 nat tablearg udp {out} {small} flow table(natf_vo) // natf",
        f"add 38 set 5 nat tablearg tcp from any to me in recv em0 {small} {flags} flow table(natf_vi) // natf",
        f"add 38 set 5 nat tablearg udp from any to me in recv em0 {small} flow table(natf_vi) // natf",
    ]
    assert [line for line in lines if line in new] == new
    assert [line for line in lines if line not in new] == HOST_BATCH.splitlines()
    at = {line: number for number, line in enumerate(lines)}
    for number in ("29", "35", "38"):
        mine = [at[line] for line in new if line.startswith(f"add {number} ")]
        others = [at[line] for line in HOST_BATCH.splitlines() if line.startswith(f"add {number} set 5 ")]
        assert max(mine) < min(others)


def test_the_external_node_on_the_nat_box_is_one_batch_around_natd() -> None:
    assert ipfw.en_rules(GATEWAY, []) == batch(GATEWAY_BATCH)


def test_another_prefix_interface_and_other_ports_go_into_the_rules() -> None:
    other = replace(HOST, interface="vtnet0", prefix="241.0.0.0/8", in_queue=9712)
    (command,) = ipfw.en_rules(other, [])
    lines = (command.stdin or "").splitlines()
    assert "add 38 set 5 divert 9712 { tcp or udp } from table(natf_peers) to me in recv vtnet0 // natf" in lines
    assert "add 30 set 5 deny ip from 241.0.0.0/8 to any in // natf" in lines
    assert not [line for line in lines if "240.0.0.0" in line or "em0" in line]


def test_no_line_is_too_long_for_ipfw_to_read() -> None:
    """A line of a batch has at most 1023 bytes (BUFSIZ of stdio.h): a longer one would be read as two."""
    many = [number.to_bytes(4, "big") for number in range(1 << 24, (1 << 24) + 500)]
    for command in (*ipfw.en_rules(HOST, many), *ipfw.peers_add(many)):
        assert max(map(len, (command.stdin or "").splitlines())) < 200


def test_stand_in_and_undo() -> None:
    assert ipfw.stand_in(HOST) == batch(
        "add 35 set 6 unreach host ip from any to 240.0.0.0/8 out // natf\nset disable 5 enable 6\n"
    )
    assert texts(ipfw.router_undo()) == ["ipfw -q delete set 7", "ipfw -q set enable 7"]
    assert texts(ipfw.en_undo()) == [
        "ipfw -q delete set 5",
        "ipfw -q delete set 6",
        "ipfw -q table natf_peers destroy",
        "ipfw -q set enable 5 6",
    ]


def test_peers_come_and_go_in_one_batch() -> None:
    assert ipfw.peers_add(PEERS) == batch("table natf_peers add 198.51.100.1\ntable natf_peers add 203.0.113.9\n")
    assert ipfw.peers_remove(PEERS[:1]) == batch("table natf_peers delete 203.0.113.9\n")
    assert ipfw.peers_add([]) == ipfw.peers_remove([]) == []


def test_a_person_can_read_the_commands_and_paste_them() -> None:
    assert shell(ipfw.router_rules(ROUTER)) == f"ipfw -q /dev/stdin <<'END'\n{ROUTER_BATCH}END\n"
    assert shell(ipfw.peers_remove(PEERS[:1])) == (
        "ipfw -q /dev/stdin <<'END'\ntable natf_peers delete 203.0.113.9\nEND\n"
    )


# What is looked at first.


def commands_of(checks: list[Check]) -> list[str]:
    return [" ".join(check.command.argv).partition("\n")[0] for check in checks]


def judged(checks: list[Check], start: str, status: int, output: str) -> str | None:
    (check,) = [check for check in checks if " ".join(check.command.argv).startswith(start)]
    return check.judge(status, output)


WHO_READS = "ipfw -S list 2>/dev/null; echo '# sockets'; sockstat -P divert"


def test_what_is_looked_at_before_rules_are_set() -> None:
    common = ["ipfw -S list", "ipfw -n -q /dev/stdin", "sysctl -n net.inet.ip.fw.enable"]
    pf = ['sh -c [ "$(sysctl -n kern.osreldate)" -ge 1400000 ] || exit 0', f"sh -c {WHO_READS}"]
    assert commands_of(ipfw.probe_router(ROUTER)) == [*common, *pf, "sysctl -n net.inet.ip.forwarding"]
    assert commands_of(ipfw.probe_router(KERNEL_ROUTER)) == [
        *common,
        *pf,
        "sysctl -n net.inet.ip.forwarding",
        "sysctl -n net.inet.ip.fw.one_pass",
    ]
    assert commands_of(ipfw.probe_en(HOST)) == [*common, *pf]
    redirect = 'sh -c [ "$(sysctl -n kern.osreldate)" -ge 1300000 ] || sysctl -n net.inet.ip.redirect'
    assert commands_of(ipfw.probe_en(GATEWAY)) == [*common, *pf, redirect]
    kernel = replace(HOST, places=ipfw.en_places(rules(KERNEL_NAT + OPEN), OUTER, PREFIX))
    assert commands_of(ipfw.probe_en(kernel)) == [*common, *pf, redirect, "sysctl -n net.inet.ip.fw.one_pass"]


def test_the_syntax_of_exactly_the_rules_is_looked_at() -> None:
    for checks, text in ((ipfw.probe_router(ROUTER), ROUTER_BATCH), (ipfw.probe_en(HOST), HOST_BATCH)):
        given = (checks[1].command.stdin or "").splitlines()
        role_set = "set 7 " if text == ROUTER_BATCH else "set 5 "
        assert given == [line for line in text.splitlines() if line.startswith("add") and role_set in line]


@pytest.mark.parametrize(
    ("start", "good", "status", "bad", "text"),
    [
        (
            "ipfw -S",
            "65535 set 31 allow ip from any to any\n",
            71,
            "ipfw: getsockopt(IP_FW_XGET): Protocol not available\n",
            "ipfw cannot list its rules (status 71): ipfw: getsockopt(IP_FW_XGET): Protocol not available; expected to"
            " be root, and ipfw in the kernel: firewall_enable=YES in /etc/rc.conf and `service ipfw start`",
        ),
        ("ipfw -S", "", 127, "ipfw: not found", "ipfw(8) is not installed; expected the one of the base system"),
        (
            "ipfw -n",
            "",
            65,
            "Line 2: invalid action frobnicate\n\n",
            "ipfw does not take the rules (status 65): Line 2: invalid action frobnicate",
        ),
        (
            "sysctl -n net.inet.ip.forwarding",
            "1\n",
            0,
            "0\n",
            "net.inet.ip.forwarding is 0, so that this host does not forward IPv4 packets, as any router must: set"
            " net.inet.ip.forwarding=1 (sysctl, /etc/sysctl.conf)",
        ),
        (
            "sysctl -n net.inet.ip.fw.one_pass",
            "0\n",
            0,
            "1\n",
            "net.inet.ip.fw.one_pass is 1, so that `ipfw nat` ends the walk through the rules, and pseudo-packets leave"
            " this host uncaptured: set net.inet.ip.fw.one_pass=0 (sysctl, /etc/sysctl.conf)",
        ),
        (
            "sysctl -n net.inet.ip.fw.enable",
            "1\n",
            1,
            "sysctl: unknown oid 'net.inet.ip.fw.enable'\n",
            "net.inet.ip.fw.enable is not to be had (sysctl: unknown oid 'net.inet.ip.fw.enable'), so that ipfw is"
            " switched off: set net.inet.ip.fw.enable=1 (sysctl, /etc/sysctl.conf)",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(start: str, good: str, status: int, bad: str, text: str) -> None:
    checks = ipfw.probe_router(KERNEL_ROUTER)
    assert judged(checks, start, 0, good) is None
    assert judged(checks, start, status, bad) == text


# The shell scripts, run by this machine's sh with programs that print what FreeBSD's print.

Programs = Callable[[dict[str, str]], dict[str, str]]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    """Makes programs from shell text; gives the environment in which they come first."""

    def make(scripts: dict[str, str]) -> dict[str, str]:
        for name, text in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    return make


def run(argv: tuple[str, ...], environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


PF_ENABLED = "Status: Enabled for 0 days 00:00:02           Debug: Urgent"
PF_DISABLED = "Status: Disabled                              Debug: Urgent"


@pytest.mark.parametrize(
    ("release", "status", "interfaces", "refused"),
    [
        ("1402000", PF_ENABLED, "em0", True),
        ("1402000", PF_ENABLED, "em0 (skip)", False),
        ("1402000", PF_ENABLED, "em1 (skip)\nem0", True),
        ("1402000", PF_ENABLED, "lo0 (skip)", True),
        ("1402000", PF_DISABLED, "em0", False),
        ("1302001", PF_ENABLED, "em0", False),
        ("1402000", None, "", False),
    ],
)
def test_pf_next_to_ipfw_is_refused_where_it_loops(
    programs: Programs, release: str, status: str | None, interfaces: str, refused: bool
) -> None:
    pfctl = f'case "$*" in "-s info") echo "{status}" ;; "-s Interfaces -v -i em0") echo "{interfaces}" ;; esac'
    environment = programs({"sysctl": f"echo {release}", "pfctl": "exit 1" if status is None else pfctl})
    (check,) = [check for check in ipfw.probe_router(ROUTER) if "pfctl" in check.command.argv[-1]]
    problem = check.judge(*run(check.command.argv, environment))
    assert (problem is not None) == refused
    if problem:
        assert "expected `set skip on em0` in /etc/pf.conf" in problem


@pytest.mark.parametrize(
    ("release", "redirect", "refused"),
    [("1201000", "1", True), ("1201000", "0", False), ("1302001", "1", False), ("1402000", "1", False)],
)
def test_a_release_that_forwards_no_class_e_is_refused_on_the_nat_box(
    programs: Programs, release: str, redirect: str, refused: bool
) -> None:
    answers = f'case "$2" in kern.osreldate) echo {release} ;; net.inet.ip.redirect) echo {redirect} ;; esac'
    (check,) = [check for check in ipfw.probe_en(GATEWAY) if "redirect" in check.command.argv[-1]]
    problem = check.judge(*run(check.command.argv, programs({"sysctl": answers})))
    assert (problem is not None) == refused
    if problem:
        assert problem.endswith("set net.inet.ip.redirect=0 (sysctl, /etc/sysctl.conf)")


SOCKSTAT = """\
USER     COMMAND    PID   FD  PROTO  LOCAL ADDRESS         FOREIGN ADDRESS
root     python3.11 711   5   div4   *:8701                *:*
?        ?          ?     ?   div4   *:8712                *:*
"""


@pytest.mark.parametrize(
    ("checks", "holder"),
    [
        (
            lambda: ipfw.probe_router(replace(ROUTER, control_queue=1, capture_queue=2)),
            "python3.11 (process 711 of root)",
        ),
        (lambda: ipfw.probe_en(replace(HOST, in_queue=3)), "a process"),
    ],
    ids=["router", "en"],
)
def test_the_rules_of_a_daemon_that_lives_are_not_taken_from_it(
    programs: Programs, checks: Callable[[], list[Check]], holder: str
) -> None:
    """One with another run_dir and other ports: neither the lock nor the ports keep the second one off."""
    listing = ROUTER_BATCH + HOST_BATCH
    printed = "".join(f"{line.removeprefix('add ')}\n" for line in listing.splitlines() if line.startswith("add"))
    environment = programs({"ipfw": f"cat <<'END'\n{printed}END", "sockstat": f"cat <<'END'\n{SOCKSTAT}END"})
    (check,) = [check for check in checks() if "sockstat" in check.command.argv[-1]]
    problem = check.judge(*run(check.command.argv, environment))
    assert problem is not None
    assert f"is running with another run_dir ({holder} holds divert port 87" in problem
    for own in ipfw.probe_router(ROUTER), ipfw.probe_en(HOST):
        (check,) = [check for check in own if "sockstat" in check.command.argv[-1]]
        assert check.judge(*run(check.command.argv, environment)) is None, "the ports of this daemon itself"


LISTING = """\
# DISABLED 00035 set 6 reject ip from any to 240.0.0.0/8 out // natf
00040 set 7 divert 8701 icmp from any to me in recv em0 icmptypes 8 // natf
00050 set 0 divert 8668 ip4 from any to any via em0
00053 set 5 divert 8711 ip from me to 240.0.0.0/8 out xmit em0 // natf
00150 set 0 count ip from any to any // 00050 set 7 like this
65535 set 31 allow ip from any to any
"""
OTHERS = "1392163880 152"  # cksum(1) of what has not our comment
IFCONFIG = """\
em0: flags=1008843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
\toptions=8<VLAN_MTU>
\tinet 203.0.113.1 netmask 0xffffff00 broadcast 203.0.113.255"""


@pytest.fixture
def freebsd(programs: Programs) -> dict[str, str]:
    ipfw_script = f"""\
case "$*" in
"-S list") cat <<'END'
{LISTING}END
;;
"show 50") echo '00050 12 3456 divert 8668 ip4 from any to any via em0'; echo '00050 0 0 count' ;;
"table natf_peers list") echo '198.51.100.1/32 0' ;;
*) exit 64 ;;
esac"""
    pgrep = "[ \"$*\" = '-x -U 0 natd' ] && echo 711"
    ifconfig = f"[ \"$*\" = 'em0 inet' ] && echo '{IFCONFIG}'"
    sysctl = "case $2 in kern.osreldate) echo 1402000 ;; net.inet.tcp.tso) echo 0 ;; *) exit 1 ;; esac"
    pfctl = "exit 1"
    return programs({"ipfw": ipfw_script, "pgrep": pgrep, "ifconfig": ifconfig, "sysctl": sysctl, "pfctl": pfctl})


def test_a_look_at_the_router_shows_its_rules_the_nat_and_the_address(freebsd: dict[str, str]) -> None:
    status, output = run(ipfw.router_look(ROUTER), freebsd)
    assert status == 0
    assert guard.read(output) == {
        "rules": tuple(LISTING.splitlines()[1:2]),
        "others": (OTHERS,),
        "nat": ("00050 12 3456 divert 8668 ip4 from any to any via em0",),
        "natd": ("711",),
        "pf": (),
        "address": tuple(line.strip() for line in IFCONFIG.splitlines()),
    }
    assert guard.judge(guard.read(output), guard.read(output), OUTER.address) == guard.Finding((), OUTER.address)


def test_a_look_at_the_external_node_shows_both_sets_and_which_is_disabled(freebsd: dict[str, str]) -> None:
    status, output = run(ipfw.en_look(HOST), freebsd)
    assert status == 0
    assert guard.read(output) == {
        "rules": (
            "DISABLED 00035 set 6 reject ip from any to 240.0.0.0/8 out // natf",
            "00053 set 5 divert 8711 ip from me to 240.0.0.0/8 out xmit em0 // natf",
        ),
        "others": (OTHERS,),
        "table": ("198.51.100.1/32 0",),
        "settings": ("0",),
        "pf": (),
        "address": tuple(line.strip() for line in IFCONFIG.splitlines()),
    }
    kernel_path = guard.read(run(ipfw.en_look(replace(HOST, kernel_path=True)), freebsd)[1])
    assert "one_pass" in kernel_path
    assert "one_pass" not in guard.read(output)
    gateway = guard.read(run(ipfw.en_look(GATEWAY), freebsd)[1])
    assert (gateway["natd"], gateway["table"]) == (("711",), ("198.51.100.1/32 0",))


def test_a_look_that_finds_nothing_is_no_failure_and_one_that_cannot_list_is(programs: Programs) -> None:
    nothing = {"ipfw": '[ "$*" = "-S list" ]', "pgrep": "exit 1", "ifconfig": "exit 1"}
    status, output = run(ipfw.router_look(ROUTER), programs(nothing))
    others = ("3515105045 1",)
    assert (status, guard.read(output)) == (
        0,
        {"rules": (), "others": others, "nat": (), "natd": (), "pf": (), "address": ()},
    )
    status, output = run(ipfw.en_look(GATEWAY), programs(nothing | {"ipfw": "exit 71"}))
    assert (status, output) == (71, "")


def test_natd_is_not_looked_for_where_the_kernel_translates(freebsd: dict[str, str]) -> None:
    assert "natd" not in guard.read(run(ipfw.router_look(KERNEL_ROUTER), freebsd)[1])


@pytest.mark.parametrize(
    ("release", "info", "skip", "found"),
    [
        (1402000, "Status: Enabled for 0 days 00:00:07           Debug: Urgent", "", ("active",)),
        (1402000, "Status: Enabled for 0 days 00:00:07           Debug: Urgent", " (skip)", ()),
        (1402000, "Status: Disabled                              Debug: Urgent", "", ()),
        (1302000, "Status: Enabled for 0 days 00:00:07           Debug: Urgent", "", ()),
    ],
)
def test_a_pf_that_comes_to_the_interface_is_seen_at_the_next_look(
    programs: Programs, release: int, info: str, skip: str, found: tuple[str, ...]
) -> None:
    """Its uptime is no part of what is compared, or every look would find a change."""
    interfaces = f'[ "$*" = "-s Interfaces -v -i em0" ] && echo "em0{skip}"'
    stand_ins = {
        "ipfw": "exit 0",
        "ifconfig": "exit 0",
        "pgrep": "exit 1",
        "sysctl": f"echo {release}",
        "pfctl": f'[ "$*" = "-s info" ] && echo "{info}" || {{ {interfaces}; }}',
    }
    status, output = run(ipfw.router_look(ROUTER), programs(stand_ins))
    assert status == 0
    assert guard.read(output)["pf"] == found
    before = guard.read(output) | {"pf": ()}
    changed = guard.judge(before, guard.read(output), OUTER.address).changed
    assert [text.partition(",")[0] for text in changed] == ["pf" for _ in found]


def test_a_look_tells_when_rules_of_others_have_changed_and_not_when_those_of_our_other_role_have(
    programs: Programs,
) -> None:
    def look(listing: str) -> guard.Listing:
        environment = programs({"ipfw": f"[ \"$*\" = '-S list' ] && cat <<'END'\n{listing}END", "ifconfig": "exit 1"})
        return guard.read(run(ipfw.router_look(ROUTER), environment)[1])

    def surroundings(listing: str) -> bool:
        return guard.judge(look(LISTING), look(listing), OUTER.address).surroundings

    assert not surroundings(LISTING)
    assert not surroundings(LISTING.replace("00053 set 5", "00054 set 5"))
    assert surroundings("00010 set 0 allow ip from any to any\n" + LISTING)
    assert surroundings(LISTING.replace("divert 8668 ip4", "divert 8668 log ip4"))


def test_rules_of_others_in_our_sets_are_not_cleaned_up(programs: Programs) -> None:
    """natf refuses to start with them, and `service natf_en stop` cleans up."""
    environment = programs({"ipfw": "echo '00500 set 5 deny tcp from any to me 22'", "sockstat": "exit 0"})
    check = ipfw.not_in_use("en")
    said = check.judge(*run(check.command.argv, environment))
    assert said is not None
    assert said.startswith("ipfw rule 00500 deny tcp from any to me 22 is not natf")
    assert "`ipfw set move 5 to 8`" in said
    check = ipfw.not_in_use("router")
    assert check.judge(*run(check.command.argv, environment)) is None
