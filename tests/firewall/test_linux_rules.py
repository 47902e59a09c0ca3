"""The exact commands of both roles: a change of the firewall has to be meant, and shows here."""

from __future__ import annotations

from dataclasses import replace

from natf_bsd.firewall import linux
from natf_bsd.firewall.command import Command, Sysctl
from natf_bsd.firewall.linux_gateway import Gateway, route_is_free
from natf_bsd.types import parse_address

EN = linux.EnFirewall("240.0.0.0/8", dns_queue=8710, out_queue=8711, in_queue=8712, mark=0x4E000000, mask=0xFF000000)
GATEWAY = Gateway("wan", parse_address("203.0.113.1"), mtu=1492, tun="natf1", queue=8713, mark=0x4F000000)
GATEWAY_EN = replace(EN, gateway=GATEWAY)
ROUTER = linux.RouterFirewall(
    "wan",
    parse_address("203.0.113.1"),
    control_queue=8701,
    mark=0x4E000000,
    mask=0xFF000000,
    tun="natf0",
    table=78,
)

EN_CHAINS = """\
*filter
:NATF-EN-OUTPUT - [0:0]
:NATF-EN-FORWARD - [0:0]
-A NATF-EN-OUTPUT -d 240.0.0.0/8 -j REJECT --reject-with icmp-host-unreachable
-A NATF-EN-FORWARD -d 240.0.0.0/8 -j REJECT --reject-with icmp-host-prohibited
COMMIT
*mangle
:NATF-EN-INPUT - [0:0]
:NATF-EN-OUTPUT - [0:0]
-A NATF-EN-INPUT -m connmark --mark 0x4e000000/0xff000000 -j NFQUEUE --queue-num 8712
-A NATF-EN-INPUT -p udp --sport 53 -m conntrack --ctstate ESTABLISHED,UNTRACKED \
-j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-OUTPUT -m mark --mark 0x4e000000/0xff000000 -j CONNMARK --save-mark --nfmask 0xff000000 --ctmask 0xff000000
-A NATF-EN-OUTPUT -p udp --dport 53 -j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-OUTPUT -p tcp --dport 53 -m length --length 54:65535 -m conntrack --ctstate ESTABLISHED \
-j NFQUEUE --queue-num 8710 --queue-bypass
COMMIT
*raw
:NATF-EN-PREROUTING - [0:0]
:NATF-EN-OUTPUT - [0:0]
-A NATF-EN-PREROUTING -s 240.0.0.0/8 ! -i lo -j DROP
-A NATF-EN-OUTPUT -m mark --mark 0x4e000000/0xff000000 -j CT --notrack
-A NATF-EN-OUTPUT -d 240.0.0.0/8 -j NFQUEUE --queue-num 8711 --queue-bypass
COMMIT
"""

GATEWAY_CHAINS = """\
*filter
:NATF-EN-OUTPUT - [0:0]
:NATF-EN-FORWARD - [0:0]
:NATF-EN-INPUT - [0:0]
-A NATF-EN-OUTPUT -d 240.0.0.0/8 -j REJECT --reject-with icmp-host-unreachable
-A NATF-EN-FORWARD ! -i wan -o natf1 -d 240.0.0.0/8 -j ACCEPT
-A NATF-EN-FORWARD -i natf1 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A NATF-EN-FORWARD -i natf1 -j DROP
-A NATF-EN-FORWARD -d 240.0.0.0/8 -j REJECT --reject-with icmp-host-prohibited
-A NATF-EN-INPUT -i natf1 -j DROP
COMMIT
*mangle
:NATF-EN-INPUT - [0:0]
:NATF-EN-OUTPUT - [0:0]
:NATF-EN-FORWARD - [0:0]
-A NATF-EN-INPUT -m connmark --mark 0x4f000000/0xff000000 -j NFQUEUE --queue-num 8713
-A NATF-EN-INPUT -m connmark --mark 0x4e000000/0xff000000 -j NFQUEUE --queue-num 8712
-A NATF-EN-INPUT -p udp --sport 53 -m conntrack --ctstate ESTABLISHED,UNTRACKED \
-j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-OUTPUT -m mark --mark 0x4f000000/0xff000000 -j CONNMARK --save-mark --nfmask 0xff000000 --ctmask 0xff000000
-A NATF-EN-OUTPUT -m mark --mark 0x4e000000/0xff000000 -j CONNMARK --save-mark --nfmask 0xff000000 --ctmask 0xff000000
-A NATF-EN-OUTPUT -p udp --dport 53 -j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-OUTPUT -p tcp --dport 53 -m length --length 54:65535 -m conntrack --ctstate ESTABLISHED \
-j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-FORWARD ! -o wan -p udp --sport 53 -m conntrack --ctstate ESTABLISHED,UNTRACKED \
-j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-FORWARD ! -i wan -p udp --dport 53 -j NFQUEUE --queue-num 8710 --queue-bypass
-A NATF-EN-FORWARD ! -i wan -p tcp --dport 53 -m length --length 54:65535 -m conntrack --ctstate ESTABLISHED \
-j NFQUEUE --queue-num 8710 --queue-bypass
COMMIT
*nat
:NATF-EN-POSTROUTING - [0:0]
-A NATF-EN-POSTROUTING -o natf1 -p tcp -j SNAT --to-source 203.0.113.1:1024-32767
-A NATF-EN-POSTROUTING -o natf1 -p udp -j SNAT --to-source 203.0.113.1:1024-32767
-A NATF-EN-POSTROUTING -o natf1 -j SNAT --to-source 203.0.113.1
COMMIT
*raw
:NATF-EN-PREROUTING - [0:0]
:NATF-EN-OUTPUT - [0:0]
-A NATF-EN-PREROUTING -i natf1 -j RETURN
-A NATF-EN-PREROUTING -s 240.0.0.0/8 ! -i lo -j DROP
-A NATF-EN-OUTPUT -m mark --mark 0x4e000000/0xff000000 -j CT --notrack
-A NATF-EN-OUTPUT -d 240.0.0.0/8 -j NFQUEUE --queue-num 8711 --queue-bypass
COMMIT
"""

ROUTER_CHAINS = """\
*filter
:NATF-RT-INPUT - [0:0]
:NATF-RT-FORWARD - [0:0]
-A NATF-RT-INPUT -i natf0 -j DROP
-A NATF-RT-INPUT -i wan -p tcp --dport 61000:65535 -m conntrack --ctstate INVALID -j DROP
-A NATF-RT-FORWARD -i natf0 -o natf0 -j ACCEPT
-A NATF-RT-FORWARD -i natf0 ! -o natf0 -j DROP
-A NATF-RT-FORWARD ! -i natf0 -o natf0 -j DROP
COMMIT
*nat
:NATF-RT-POSTROUTING - [0:0]
-A NATF-RT-POSTROUTING -o natf0 -p tcp -j SNAT --to-source 203.0.113.1:61000-65535
-A NATF-RT-POSTROUTING -o natf0 -p udp -j SNAT --to-source 203.0.113.1:61000-65535
COMMIT
*raw
:NATF-RT-OUTPUT - [0:0]
:NATF-RT-PREROUTING - [0:0]
-A NATF-RT-OUTPUT -m mark --mark 0x4e000000/0xff000000 -j CT --notrack
-A NATF-RT-PREROUTING -i wan -p icmp --icmp-type echo-request -m addrtype --dst-type LOCAL \
-m length --length 156:65535 -m string --algo bm --hex-string |4e415466| --from 28 --to 72 \
-j NFQUEUE --queue-num 8701 --queue-bypass
COMMIT
"""


def texts(commands: list[Command]) -> list[str]:
    return [" ".join(command.argv) for command in commands]


def test_the_external_nodes_chains_are_filled_by_one_process() -> None:
    first, *jumps = linux.en_rules(EN)
    assert first == Command(("iptables-restore", "-w", "10", "--noflush"), stdin=EN_CHAINS)
    assert texts(jumps) == [
        "iptables -w 10 -t filter -I OUTPUT 1 -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t filter -I FORWARD 1 -m comment --comment natf -j NATF-EN-FORWARD",
        "iptables -w 10 -t raw -I PREROUTING 1 -m comment --comment natf -j NATF-EN-PREROUTING",
        "iptables -w 10 -t mangle -I INPUT 1 -m comment --comment natf -j NATF-EN-INPUT",
        "iptables -w 10 -t mangle -I OUTPUT 1 -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t raw -I OUTPUT 1 -m comment --comment natf -j NATF-EN-OUTPUT",
    ]


def test_the_commands_of_an_external_node_that_serves_inside_hosts_too() -> None:
    first, *rest = linux.en_rules(GATEWAY_EN)
    assert first == Command(("iptables-restore", "-w", "10", "--noflush"), stdin=GATEWAY_CHAINS)
    assert texts(rest) == [
        "iptables -w 10 -t filter -I OUTPUT 1 -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t filter -I FORWARD 1 -m comment --comment natf -j NATF-EN-FORWARD",
        "iptables -w 10 -t filter -I INPUT 1 -m comment --comment natf -j NATF-EN-INPUT",
        "iptables -w 10 -t nat -I POSTROUTING 1 -m comment --comment natf -j NATF-EN-POSTROUTING",
        "iptables -w 10 -t raw -I PREROUTING 1 -m comment --comment natf -j NATF-EN-PREROUTING",
        "iptables -w 10 -t mangle -I INPUT 1 -m comment --comment natf -j NATF-EN-INPUT",
        "iptables -w 10 -t mangle -I FORWARD 1 -m comment --comment natf -j NATF-EN-FORWARD",
        "iptables -w 10 -t mangle -I OUTPUT 1 -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t raw -I OUTPUT 1 -m comment --comment natf -j NATF-EN-OUTPUT",
        "ip link set natf1 up mtu 1492",
        "ip -4 address replace 192.0.0.8/32 dev natf1 scope host",
        "ip -4 route replace 240.0.0.0/8 dev natf1 src 203.0.113.1 proto 78",
    ]
    assert linux.en_sysctls(GATEWAY_EN) == [
        Sysctl("net/ipv4/conf/natf1/rp_filter", "2"),
        Sysctl("net/ipv6/conf/natf1/disable_ipv6", "1", optional=True),
    ]
    assert linux.en_sysctls(EN) == []


def test_somebody_elses_route_to_the_prefix_stands_in_the_way() -> None:
    check = route_is_free(GATEWAY, "240.0.0.0/8")
    assert check.command.argv == ("ip", "-4", "route", "show", "exact", "240.0.0.0/8")
    assert check.judge(0, "") is None
    assert check.judge(0, "240.0.0.0/8 dev natf1 proto 78 scope link src 203.0.113.1\n") is None
    assert check.judge(0, "240.0.0.0/8 via 10.0.0.1 dev natf10 \n") == (
        "a route to 240.0.0.0/8 exists: 240.0.0.0/8 via 10.0.0.1 dev natf10; virtual addresses need it"
    )
    assert check.judge(127, "") == "ip route does not work here (status 127); is iproute2 installed?"


def test_the_routers_commands() -> None:
    first, *rest = linux.router_rules(ROUTER)
    assert first == Command(("iptables-restore", "-w", "10", "--noflush"), stdin=ROUTER_CHAINS)
    assert texts(rest) == [
        "iptables -w 10 -t nat -I POSTROUTING 1 -m comment --comment natf -j NATF-RT-POSTROUTING",
        "iptables -w 10 -t filter -I INPUT 1 -m comment --comment natf -j NATF-RT-INPUT",
        "iptables -w 10 -t filter -I FORWARD 1 -m comment --comment natf -j NATF-RT-FORWARD",
        "iptables -w 10 -t raw -I OUTPUT 1 -m comment --comment natf -j NATF-RT-OUTPUT",
        "iptables -w 10 -t raw -I PREROUTING 1 -m comment --comment natf -j NATF-RT-PREROUTING",
        "ip link set natf0 up mtu 1500",
        "ip -4 rule del priority 78 protocol 78",
        "ip -4 rule add iif natf0 lookup 78 priority 78 protocol 78",
        "ip -4 route replace default dev natf0 table 78 proto 78",
    ]
    assert linux.router_sysctls(ROUTER) == [
        Sysctl("net/ipv4/conf/natf0/rp_filter", "2"),
        Sysctl("net/ipv6/conf/natf0/disable_ipv6", "1", optional=True),
        Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
        Sysctl("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "86400"),
    ]


def test_each_jump_is_made_only_where_it_is_missing() -> None:
    commands = linux.en_rules(EN) + linux.en_rules(GATEWAY_EN) + linux.router_rules(ROUTER)
    jumps = [command for command in commands if "-I" in command.argv]
    assert len(jumps) == 20
    for command in jumps:
        hook = command.argv.index("-I") + 1
        # The check is the same rule without its place.
        expected = [*command.argv[: hook - 1], "-C", command.argv[hook], *command.argv[hook + 2 :]]
        assert command.unless == tuple(expected)


def test_every_chain_has_its_jump_and_every_jump_its_chain() -> None:
    for commands in linux.en_rules(EN), linux.en_rules(GATEWAY_EN), linux.router_rules(ROUTER):
        filled, jumped, table = set(), set(), ""
        for line in (commands[0].stdin or "").splitlines():
            table = line[1:] if line.startswith("*") else table
            if line.startswith(":"):
                filled.add((table, line[1:].split()[0]))
        for command in commands:
            if "-I" in command.argv:
                jumped.add((command.argv[4], command.argv[-1]))
        assert filled == jumped


def test_undo_of_the_external_node() -> None:
    commands = linux.en_undo()
    assert texts(commands) == [
        "iptables -w 10 -t raw -D OUTPUT -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t raw -F NATF-EN-OUTPUT",
        "iptables -w 10 -t raw -X NATF-EN-OUTPUT",
        "iptables -w 10 -t mangle -D OUTPUT -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t mangle -F NATF-EN-OUTPUT",
        "iptables -w 10 -t mangle -X NATF-EN-OUTPUT",
        "iptables -w 10 -t mangle -D FORWARD -m comment --comment natf -j NATF-EN-FORWARD",
        "iptables -w 10 -t mangle -F NATF-EN-FORWARD",
        "iptables -w 10 -t mangle -X NATF-EN-FORWARD",
        "iptables -w 10 -t mangle -D INPUT -m comment --comment natf -j NATF-EN-INPUT",
        "iptables -w 10 -t mangle -F NATF-EN-INPUT",
        "iptables -w 10 -t mangle -X NATF-EN-INPUT",
        "iptables -w 10 -t raw -D PREROUTING -m comment --comment natf -j NATF-EN-PREROUTING",
        "iptables -w 10 -t raw -F NATF-EN-PREROUTING",
        "iptables -w 10 -t raw -X NATF-EN-PREROUTING",
        "iptables -w 10 -t nat -D POSTROUTING -m comment --comment natf -j NATF-EN-POSTROUTING",
        "iptables -w 10 -t nat -F NATF-EN-POSTROUTING",
        "iptables -w 10 -t nat -X NATF-EN-POSTROUTING",
        "iptables -w 10 -t filter -D INPUT -m comment --comment natf -j NATF-EN-INPUT",
        "iptables -w 10 -t filter -F NATF-EN-INPUT",
        "iptables -w 10 -t filter -X NATF-EN-INPUT",
        "iptables -w 10 -t filter -D FORWARD -m comment --comment natf -j NATF-EN-FORWARD",
        "iptables -w 10 -t filter -F NATF-EN-FORWARD",
        "iptables -w 10 -t filter -X NATF-EN-FORWARD",
        "iptables -w 10 -t filter -D OUTPUT -m comment --comment natf -j NATF-EN-OUTPUT",
        "iptables -w 10 -t filter -F NATF-EN-OUTPUT",
        "iptables -w 10 -t filter -X NATF-EN-OUTPUT",
        "ip -4 route flush table main proto 78",
        "sh -c nft list table ip natf_en >/dev/null 2>&1 || exit 0; exec nft delete table ip natf_en",
    ]
    assert {command.may_fail for command in commands} == {(1, 2), (2,), ()}


def test_undo_of_the_router() -> None:
    commands = linux.router_undo(table=78)
    assert texts(commands) == [
        "iptables -w 10 -t raw -D PREROUTING -m comment --comment natf -j NATF-RT-PREROUTING",
        "iptables -w 10 -t raw -F NATF-RT-PREROUTING",
        "iptables -w 10 -t raw -X NATF-RT-PREROUTING",
        "iptables -w 10 -t raw -D OUTPUT -m comment --comment natf -j NATF-RT-OUTPUT",
        "iptables -w 10 -t raw -F NATF-RT-OUTPUT",
        "iptables -w 10 -t raw -X NATF-RT-OUTPUT",
        "iptables -w 10 -t filter -D FORWARD -m comment --comment natf -j NATF-RT-FORWARD",
        "iptables -w 10 -t filter -F NATF-RT-FORWARD",
        "iptables -w 10 -t filter -X NATF-RT-FORWARD",
        "iptables -w 10 -t filter -D INPUT -m comment --comment natf -j NATF-RT-INPUT",
        "iptables -w 10 -t filter -F NATF-RT-INPUT",
        "iptables -w 10 -t filter -X NATF-RT-INPUT",
        "iptables -w 10 -t nat -D POSTROUTING -m comment --comment natf -j NATF-RT-POSTROUTING",
        "iptables -w 10 -t nat -F NATF-RT-POSTROUTING",
        "iptables -w 10 -t nat -X NATF-RT-POSTROUTING",
        "ip -4 rule del priority 78 protocol 78",
        "ip -4 route flush table 78 proto 78",
    ]


def test_a_command_shows_as_shell_text_that_does_the_same() -> None:
    jump = Command(("iptables", "-I", "INPUT"), unless=("iptables", "-C", "INPUT"))
    assert jump.shell() == "iptables -C INPUT 2>/dev/null || iptables -I INPUT"
    assert Command(("ip", "rule", "del"), may_fail=(2,)).shell() == "ip rule del || true"
    assert Command(("cat",), stdin="a b\n").shell() == "cat <<'END'\na b\nEND"
    assert Command(("echo", "two words")).shell() == "echo 'two words'"
    assert Sysctl("net/ipv4/ip_forward", "1").shell() == "sysctl net/ipv4/ip_forward=1"
