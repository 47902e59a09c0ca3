"""Which of a host's own rules keep flows from being rewritten behind them: as text, and as the tools list it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from natf_bsd.firewall import linux, linux_host_rules, runner
from natf_bsd.firewall.linux_host_rules import HostRules
from tests import spaces

PREFIX = "240.0.0.0/8"
RULES = linux.EnFirewall(
    PREFIX,
    dns_queue=8710,
    out_queue=8711,
    in_queue=8712,
    mark=0x4E000000,
    mask=0xFF000000,
    kernel_path=True,
    rewritten_at="lo",
)
NONE = HostRules(None)


def read(*lines: str) -> HostRules:
    return linux_host_rules.read(lines, PREFIX)


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -j DROP",
        '-A INPUT -m comment --comment "the rest" -j REJECT --reject-with icmp-port-unreachable',
        "-A FORWARD -d 240.0.0.0/4 -j DROP",
        "-A OUTPUT -p tcp -m tcp --dport 25 -j REJECT --reject-with icmp-port-unreachable",
        "-A OUTPUT -m owner --uid-owner 1000 -j DROP",
        "-A ufw-reject-output -j REJECT",
        "-A f2b-sshd -s 192.0.2.7/32 -j REJECT",
        "-A INPUT -m set --match-set f2b src -j REJECT",
        "-A INPUT ! -s 192.168.0.0/16 -p tcp --dport 22 -j DROP",
        "output tcp dport 25 reject",
        "input ct state invalid drop",
        "input drop",
        "- ip6 daddr fc00::/7 drop",
        "- type filter hook input priority filter; policy drop;",
    ],
)
def test_most_rules_do_not_care(line: str) -> None:
    assert read(line) == NONE


@pytest.mark.parametrize(
    "line",
    [
        ":OUTPUT DROP [0:0]",
        ":POSTROUTING DROP [3:180]",
        "- type filter hook output priority filter; policy drop;",
        "-A OUTPUT -j DROP",
        '-A OUTPUT -o eth0 -m comment --comment "all else" -j REJECT --reject-with icmp-admin-prohibited',
        "output counter packets 12 bytes 3400 drop",
        'output log prefix "out: " reject with icmp port-unreachable comment "no"',
    ],
)
def test_what_denies_what_it_does_not_know_must_see_routers(line: str) -> None:
    assert "must see routers' addresses" in str(read(line).refusal)


@pytest.mark.parametrize(
    "line",
    [
        "-A PREROUTING -s 240.0.0.0/4 -j DROP",
        "-A bogons -s 240.0.0.0/5 -i eth0 -j DROP",
        "-A OUTPUT -d 224.0.0.0/3 -j REJECT --reject-with icmp-net-prohibited",
        "-A egress -d 240.1.2.3/32 -j DROP",
        "prerouting ip saddr { 0.0.0.0/8, 127.0.0.0/8, 240.0.0.0/4 } counter packets 0 bytes 0 drop",
        "- ip daddr 224.0.0.0-255.255.255.255 reject with icmp net-prohibited",
    ],
)
def test_what_denies_virtual_addresses_is_told_with_its_rule(line: str) -> None:
    refusal = str(read(line).refusal)
    assert refusal.startswith("a rule of its firewall denies virtual addresses: ")
    assert refusal.endswith(line.replace(" counter packets 0 bytes 0", ""))


@pytest.mark.parametrize(
    "line",
    [
        "-A OUTPUT ! -d 192.168.0.0/16 -m owner --uid-owner 1000 -j REJECT",
        "-A PREROUTING ! -s 192.168.0.0/16 -i eth0 -j DROP",
        "output ip daddr != 192.168.0.0/16 drop",
        "output ip daddr != { 10.0.0.0/8, 192.168.0.0/16 } drop",
        "-A OUTPUT -m set --match-set blocked dst -j DROP",
        "-A PREROUTING -m set --match-set bogons src -j DROP",
        "output ip daddr @blocked drop",
        "prerouting ip saddr != @known drop",
    ],
)
def test_what_goes_by_sets_or_denies_all_but_some_is_a_reason_too(line: str) -> None:
    assert "would see virtual ones" in str(read(line).refusal)


def test_where_the_host_sends_nothing_is_told() -> None:
    found = read(
        "-A OUTPUT -d 198.51.100.0/24 -j REJECT --reject-with icmp-port-unreachable",
        "-A SITE -d 203.0.113.9/32 -p tcp --dport 443 -j DROP",
        "output ip daddr { 192.0.2.1, 192.0.2.8-192.0.2.11 } drop",
        "-A INPUT -d 224.0.0.251/32 -j DROP",
        "-A OUTPUT ! -d 240.0.0.0/4 -d 198.18.0.0/15 -j DROP",
    )
    expected = ("192.0.2.1/32", "192.0.2.8/30", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.9/32")
    assert found == HostRules(None, tuple(map(IPv4Network, expected)))


def listed(space: spaces.Space) -> list[str]:
    with space:
        script = linux_host_rules.listing(PREFIX)
        return subprocess.run(("sh", "-c", script), capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.lab
@spaces.LINUX
@pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported()))
@spaces.isolated
def test_a_host_without_rules_of_its_own_shows_none_of_ours() -> None:
    space = spaces.Space()
    assert listed(space) == []
    with space:
        runner.apply(linux.en_rules(replace(RULES, rewritten_at="lo")))
    assert listed(space) == []


@pytest.mark.lab
@spaces.LINUX
@pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported()))
@spaces.isolated
def test_rules_are_found_whoever_made_them() -> None:
    for commands, refusal, denied in (
        (["iptables -P OUTPUT DROP"], "must see routers", ()),
        (["iptables -P INPUT DROP"], None, ()),
        (["iptables -A OUTPUT -j REJECT"], "must see routers", ()),
        (["iptables -t raw -A PREROUTING -s 240.0.0.0/4 -j DROP"], "denies virtual addresses", ()),
        (["iptables -A INPUT -s 192.0.2.1 -j DROP"], None, ()),
        (["iptables -A INPUT -s 240.0.2.1 -j DROP"], "denies virtual addresses", ()),
        (["iptables -N SITE", "iptables -A SITE -d 192.0.2.0/24 -j REJECT"], None, ("192.0.2.0/24",)),
        (
            [
                "nft add table inet site",
                "nft add chain inet site out { type filter hook output priority 0 ; policy drop ; }",
            ],
            "must see routers",
            (),
        ),
        (
            [
                "nft add table inet site",
                "nft add chain inet site pre { type filter hook prerouting priority -300 ; }",
                "nft add rule inet site pre ip saddr 240.0.0.0/4 counter drop",
            ],
            "denies virtual addresses",
            (),
        ),
        (
            [
                "nft add table ip site",
                "nft add chain ip site out { type filter hook output priority 0 ; }",
                "nft add rule ip site out ip daddr 192.0.2.8-192.0.2.11 reject",
            ],
            None,
            ("192.0.2.8/30",),
        ),
    ):
        space = spaces.Space()
        with space:
            runner.apply(linux.en_rules(RULES))
        for command in commands:
            space.run(command)
        found = linux_host_rules.read(listed(space), PREFIX)
        assert found.denied == tuple(map(IPv4Network, denied)), commands
        assert (found.refusal is None) == (refusal is None), commands
        assert str(refusal) in str(found.refusal), commands
