"""Set up, set up twice, undo, undo after a crash: on a real kernel, compared by all that could be left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from natf_bsd.firewall import linux, runner
from natf_bsd.firewall.command import Command
from natf_bsd.firewall.runner import SysctlJournal
from natf_bsd.natd_bridge.netfilter import NetfilterBridge
from natf_bsd.types import parse_address
from tests import spaces

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported())),
]

EN = linux.EnFirewall("240.0.0.0/8", dns_queue=8710, out_queue=8711, in_queue=8712, mark=0x4E000000, mask=0xFF000000)
ROUTER = linux.RouterFirewall(
    "wan",
    parse_address("203.0.113.1"),
    control_queue=8701,
    mark=0x4E000000,
    mask=0xFF000000,
    tun="natf0",
    table=78,
)
SITE = """\
*filter
:SITE - [0:0]
-A OUTPUT -j SITE
-A SITE -p tcp --dport 25 -j REJECT
-A FORWARD -i lan -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
"""
SETTINGS = [
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_timeout_max_retrans",
]


class Host:
    """A space with rules, a route and a rule of the site's own, so that there is something to spoil."""

    def __init__(self) -> None:
        self.space = spaces.Space()
        self.space.cable("wan", "203.0.113.1/24", spaces.Space(), "far", "203.0.113.2/24")
        self.space.set("net/ipv4/ip_forward", "1")
        self.space.run("ip rule add fwmark 5 lookup 5 priority 500")
        self.space.run("ip route add 10.0.0.0/8 dev wan table 5")
        with self.space:
            runner.apply([Command(("iptables-restore", "-w", "--noflush"), stdin=SITE)])

    def state(self) -> dict[str, object]:
        """All that our commands could change; counters and empty tables, which iptables never removes, left out."""
        saved = self.space.run("iptables-save")
        rules = [line for line in saved.splitlines() if line.startswith("-A") or re.match(r":\S+ -", line)]
        with self.space:
            settings = {name: Path("/proc/sys", name).read_text() for name in SETTINGS}
        return {
            "rules": sorted(re.sub(r" \[.*", "", line) for line in rules),
            "policy": self.space.run("ip rule"),
            "routes": self.space.run("ip route show table all"),
            "links": re.findall(r"^\d+: (\S+):", self.space.run("ip link"), re.MULTILINE),
            "settings": settings,
        }

    def apply(self, commands: list[Command]) -> None:
        with self.space:
            runner.apply(commands)

    def undo(self, commands: list[Command]) -> None:
        with self.space:
            assert runner.undo(commands) == []


@spaces.isolated
def test_the_external_node_leaves_the_host_as_it_was() -> None:
    host = Host()
    before = host.state()
    host.apply(linux.en_rules(EN))
    once = host.state()
    assert once != before
    host.apply(linux.en_rules(EN))
    assert host.state() == once
    host.undo(linux.en_undo())
    assert host.state() == before
    host.undo(linux.en_undo())
    assert host.state() == before


@spaces.isolated
def test_the_router_leaves_the_host_as_it_was() -> None:
    host = Host()
    journal = SysctlJournal(Path("/run/router.sysctl"))
    before = host.state()
    with host.space:
        bridge = NetfilterBridge("natf0")
    for _ in range(2):
        host.apply(linux.router_rules(ROUTER))
        with host.space:
            journal.apply(linux.router_sysctls(ROUTER))
    assert [line for line in host.space.run("ip rule").splitlines() if "natf0" in line] == [
        "78:\tfrom all iif natf0 lookup 78 proto 78"
    ]
    host.undo(linux.router_undo(table=78))
    with host.space:
        assert journal.restore() == []
    bridge.close()
    assert host.state() == before


@spaces.isolated
def test_a_router_that_crashed_is_undone_from_its_marks_alone() -> None:
    host = Host()
    before = host.state()
    with host.space:
        bridge = NetfilterBridge("natf0")
        runner.apply(linux.router_rules(ROUTER))
        SysctlJournal(Path("/run/router.sysctl")).apply(linux.router_sysctls(ROUTER))
        bridge.close()  # as the kernel does for a process that dies
        assert runner.check(linux.probe_router(ROUTER)) == []
    host.undo(linux.router_undo(table=78))
    with host.space:
        assert SysctlJournal(Path("/run/router.sysctl")).restore() == []
    assert host.state() == before


@pytest.mark.parametrize("done", range(10))
def test_a_set_up_that_stopped_half_way_is_undone(done: int) -> None:
    stopped_half_way(done)


@spaces.isolated
def stopped_half_way(done: int) -> None:
    host = Host()
    before = host.state()
    cases: list[tuple[Callable[[], list[Command]], list[Command]]] = [
        (lambda: linux.en_rules(EN), linux.en_undo()),
        (lambda: linux.router_rules(ROUTER), linux.router_undo(table=78)),
    ]
    with host.space:
        bridge = NetfilterBridge("natf0")
    for rules, undo in cases:
        host.apply(rules()[:done])
        host.undo(undo)
    bridge.close()
    assert host.state() == before


@spaces.isolated
def test_changed_configuration_replaces_the_rules_in_place() -> None:
    host = Host()
    host.apply(linux.en_rules(EN))
    changed = linux.EnFirewall("241.0.0.0/8", dns_queue=1, out_queue=2, in_queue=3, mark=1, mask=1)
    host.apply(linux.en_rules(changed))
    saved = host.space.run("iptables-save")
    assert "240.0.0.0/8" not in saved
    assert saved.count("241.0.0.0/8") == 3
    assert saved.count("-j NATF-EN-OUTPUT") == 3
    host.undo(linux.en_undo())
    assert "NATF" not in host.space.run("iptables-save")


@spaces.isolated
def test_our_rules_come_before_the_sites() -> None:
    host = Host()
    host.apply(linux.en_rules(EN))
    rules = [line for line in host.space.run("iptables -S OUTPUT").splitlines() if line.startswith("-A")]
    assert ["NATF-EN-OUTPUT" in rule for rule in rules] == [True, False]


@spaces.isolated
def test_a_host_that_can_be_a_router_passes_the_checks_and_others_hear_why_not() -> None:
    host = Host()
    with host.space:
        assert runner.check(linux.probe_en(EN)) == []
        assert runner.check(linux.probe_router(ROUTER)) == []
    host.space.set("net/ipv4/ip_forward", "0")
    host.space.run("ip rule add from 10.0.0.1 lookup 78 priority 78")
    host.space.run("ip route add 10.9.0.0/16 dev wan table 78")
    with host.space:
        problems = runner.check(linux.probe_router(ROUTER))
    assert [problem.split(":")[0] for problem in problems] == [
        "this host does not forward IPv4 packets",
        "rule priority 78 is taken",
        "routing table 78 is in use",
    ]
