"""Set up, set up twice, undo, undo after a crash: on a real kernel, compared by all that could be left behind."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from natf_bsd.config import Config
from natf_bsd.divert import Divert
from natf_bsd.divert.tun import TunDevice
from natf_bsd.errors import NatfError
from natf_bsd.firewall import guard, linux, runner
from natf_bsd.firewall.command import Command, Sysctl
from natf_bsd.firewall.installed import clean_up
from natf_bsd.firewall.linux_gateway import Gateway
from natf_bsd.firewall.runner import ProcSys, SysctlJournal
from natf_bsd.natd_bridge.netfilter import NetfilterBridge
from natf_bsd.ops.process import Completed, run_process
from natf_bsd.platforms.linux import Linux
from natf_bsd.types import Direction, Endpoint, Flow, Name, parse_address
from natf_bsd.wire import build, message
from tests import spaces

pytestmark = [
    pytest.mark.lab,
    spaces.LINUX,
    pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported())),
]

EN = linux.EnFirewall("240.0.0.0/8", dns_queue=8710, out_queue=8711, in_queue=8712, mark=0x4E000000, mask=0xFF000000)
GATEWAY = Gateway("wan", parse_address("203.0.113.1"), mtu=1500, tun="natf1", queue=8713, mark=0x4F000000)
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
        # Else the kernel adds routes of its own when nobody else turns out to have its address, a second later.
        with self.space:
            SysctlJournal(Path("/run/host.sysctl"), ProcSys()).apply(
                [Sysctl("net/ipv6/conf/default/disable_ipv6", "1", optional=True)]
            )
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


@pytest.mark.parametrize("crashed", [False, True])
def test_an_external_node_for_inside_hosts_leaves_the_host_as_it_was(crashed: bool) -> None:
    gateway_leaves_nothing(crashed)


@spaces.isolated
def gateway_leaves_nothing(crashed: bool) -> None:
    host = Host()
    journal = SysctlJournal(Path("/run/en.sysctl"), ProcSys())
    before = host.state()
    with host.space:
        assert runner.check(linux.probe_en(GATEWAY_EN)) == []
        tun = TunDevice("natf1", "nothing goes")
    for _ in range(2):
        host.apply(linux.en_rules(GATEWAY_EN))
        with host.space:
            journal.apply(linux.en_sysctls(GATEWAY_EN))
    assert host.space.run("ip route show proto 78").split() == (
        ["240.0.0.0/8", "dev", "natf1", "scope", "link", "src", "203.0.113.1"]
    )
    with host.space:
        assert runner.check(linux.probe_en(GATEWAY_EN)) == []
        if crashed:
            tun.close()
    host.undo(linux.en_undo())
    with host.space:
        assert journal.restore() == []
    tun.close()
    assert host.state() == before


@spaces.isolated
def test_the_router_leaves_the_host_as_it_was() -> None:
    host = Host()
    journal = SysctlJournal(Path("/run/router.sysctl"), ProcSys())
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
        SysctlJournal(Path("/run/router.sysctl"), ProcSys()).apply(linux.router_sysctls(ROUTER))
        bridge.close()  # as the kernel does for a process that dies
        assert runner.check(linux.probe_router(ROUTER)) == []
    host.undo(linux.router_undo(table=78))
    with host.space:
        assert SysctlJournal(Path("/run/router.sysctl"), ProcSys()).restore() == []
    assert host.state() == before


@pytest.mark.parametrize("done", range(12))
def test_a_set_up_that_stopped_half_way_is_undone(done: int) -> None:
    stopped_half_way(done)


@spaces.isolated
def stopped_half_way(done: int) -> None:
    host = Host()
    before = host.state()
    cases: list[tuple[Callable[[], list[Command]], list[Command]]] = [
        (lambda: linux.en_rules(EN), linux.en_undo()),
        (lambda: linux.en_rules(GATEWAY_EN), linux.en_undo()),
        (lambda: linux.router_rules(ROUTER), linux.router_undo(table=78)),
    ]
    with host.space:
        bridge, tun = NetfilterBridge("natf0"), TunDevice("natf1", "nothing goes")
    for rules, undo in cases:
        host.apply(rules()[:done])
        host.undo(undo)
    bridge.close()
    tun.close()
    assert host.state() == before


@spaces.isolated
def test_changed_configuration_replaces_the_rules_in_place() -> None:
    host = Host()
    host.apply(linux.en_rules(EN))
    changed = linux.EnFirewall("241.0.0.0/8", dns_queue=1, out_queue=2, in_queue=3, mark=1, mask=1)
    host.apply(linux.en_rules(changed))
    saved = host.space.run("iptables-save")
    assert "240.0.0.0/8" not in saved
    assert saved.count("241.0.0.0/8") == 4
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


@spaces.isolated
def test_only_echo_requests_with_our_magic_reach_the_router() -> None:
    """Also behind IP options, which shift it; an ordinary ping of 128 bytes never does."""
    router, stranger = spaces.Space(), spaces.Space()
    router.cable("wan", "203.0.113.1/24", stranger, "eth0", "203.0.113.2/24")
    here, there = parse_address("203.0.113.2"), parse_address("203.0.113.1")
    with router:
        runner.apply(linux.router_rules(ROUTER)[:6])
        control = Divert(8701, direction=Direction.IN)
    flow = Flow(6, Endpoint(here, 1), Endpoint(there, 80))
    request = message.pad(message.encode(message.Request(bytes(8), flow, Name("alice", "home.example.net"))))
    with stranger:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    for payload in bytes(128), b"x" * 1400, b"x" * 100 + request, request[:64], request:
        raw.sendto(bytes(build.icmp_echo(here, there, reply=False, ident=1, sequence=1, payload=payload))[20:], HERE)
    raw.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1" * 40)
    raw.sendto(bytes(build.icmp_echo(here, there, reply=False, ident=1, sequence=2, payload=request))[20:], HERE)
    time.sleep(0.1)
    found = list(control.waiting(10))
    assert [(packet.data[0] & 15) * 4 for packet in found] == [20, 60]
    assert all(request in packet.data for packet in found)


HERE = ("203.0.113.1", 0)


@spaces.isolated
def test_a_forwarded_packet_to_the_prefix_is_refused_at_once() -> None:
    host, behind = Host(), spaces.Space()
    host.space.cable("lan", "192.168.0.1/24", behind, "eth0", "192.168.0.2/24")
    behind.run("ip route add default via 192.168.0.1")
    host.space.run("ip route add default via 203.0.113.2")
    host.apply(linux.en_rules(EN))
    with behind:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(10)
    with pytest.raises(OSError, match="No route to host"):
        client.connect(("240.0.51.82", 80))


@spaces.isolated
def test_the_rules_of_a_daemon_that_lives_are_found_whatever_its_run_dir() -> None:
    host = Host()
    other = linux.RouterFirewall("wan", HOME, control_queue=8702, mark=1, mask=1, tun="natf1", table=78)
    with host.space:
        control = Divert(8701, direction=Direction.IN)
        runner.apply(linux.router_rules(ROUTER)[:6])
        assert runner.check(linux.probe_router(ROUTER)) == [], "it reads its queue itself"
        (problem,) = runner.check(linux.probe_router(other))
        assert "natf router is running with another run_dir (process" in problem
        assert "holds NFQUEUE 8701" in problem
        remains = {role: Linux().remains(role, Config(Path("natf.toml"))) for role in ("en", "router")}
        with pytest.raises(NatfError, match="natf router is running"):
            clean_up(remains, {"en": Path("/run/a"), "router": Path("/run/b")}, ProcSys())
        assert "NATF-RT" in host.space.run("iptables-save")
        control.close()
        assert clean_up(remains, {"en": Path("/run/a"), "router": Path("/run/b")}, ProcSys()) == []
    assert "NATF" not in host.space.run("iptables-save")


HOME = parse_address("203.0.113.1")


def look(host: Host, argv: tuple[str, ...]) -> guard.Listing:
    with host.space:
        done = run_process(argv, None)
    assert (done.status, done.stderr) == (0, "")
    return guard.read(done.stdout)


@spaces.isolated
def test_the_guard_sees_what_others_do_to_a_router_and_a_second_set_up_mends_it() -> None:
    host = Host()
    with host.space:
        bridge = NetfilterBridge("natf0")
    host.apply(linux.router_rules(ROUTER))
    listing = linux.router_look(ROUTER)
    expected = look(host, listing)
    assert [len(lines) for lines in expected.values()] == [19, 1, 1, 4, 1, 1]
    rules, policy, route, device = "firewall rules of natf", "ip rule", "route of the TUN device", "TUN device"
    for spoil, changed in (
        ("iptables -t filter -F FORWARD", [rules]),
        ("iptables -t raw -F", [rules]),
        ("iptables -t nat -D NATF-RT-POSTROUTING 1", [rules]),
        ("nft flush ruleset", [rules]) if shutil.which("nft") else ("iptables -t nat -F", [rules]),
        ("ip rule del priority 78", [policy]),
        ("ip route flush table 78", [route]),
        ("ip link set natf0 down", [route, device]),
    ):
        host.space.run(spoil)
        assert guard.judge(expected, look(host, listing), HOME) == guard.Finding(tuple(changed), HOME)
        host.apply(linux.router_rules(ROUTER))
        assert look(host, listing) == expected
    host.space.run("ip link set natf0 down")
    host.space.run("ip link set natf0 up")
    assert guard.judge(expected, look(host, listing), HOME).changed == (route,)
    host.space.run("ip address add 203.0.113.7/24 dev wan")
    assert guard.judge(expected, look(host, listing), HOME).address == HOME
    host.space.run("ip address del 203.0.113.1/24 dev wan")
    host.space.run("ip address replace 203.0.113.7/24 dev wan")
    assert guard.judge(expected, look(host, listing), HOME).address == parse_address("203.0.113.7")
    host.space.run("ip link del wan")
    assert guard.judge(expected, look(host, listing), HOME).address is None
    bridge.close()


@spaces.isolated
def test_the_guard_sees_what_others_do_to_an_external_node() -> None:
    host = Host()
    host.apply(linux.en_rules(EN))
    expected = look(host, linux.en_look(EN, "wan"))
    assert guard.judge(expected, look(host, linux.en_look(EN, "wan")), HOME) == guard.Finding((), HOME)
    for table in "filter", "mangle", "raw":
        host.space.run(f"iptables -t {table} -F")
        assert guard.judge(expected, look(host, linux.en_look(EN, "wan")), HOME).changed == ("firewall rules of natf",)
        host.apply(linux.en_rules(EN))
        assert look(host, linux.en_look(EN, "wan")) == expected


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (Debian package nftables)")
@spaces.isolated
def test_the_guard_sees_who_comes_before_the_rules_that_go_by_marks() -> None:
    host = Host()
    rules = replace(EN, kernel_path=True, rewritten_at="wan")
    listing = linux.en_look(rules, "wan")
    host.apply(linux.en_rules(rules))
    expected = look(host, listing)
    first = "which rule comes first in mangle OUTPUT"
    for others in "-p tcp -j MARK --set-mark 1", "-j CONNMARK --restore-mark":
        host.space.run(f"iptables -t mangle -I OUTPUT {others}")
        assert guard.judge(expected, look(host, listing), HOME).changed == (first,)
        host.apply(linux.en_rules(rules))
        assert guard.judge(expected, look(host, listing), HOME).changed == ()
    jumps = [line for line in host.space.run("iptables -t mangle -S OUTPUT").splitlines() if "NATF" in line]
    assert len(jumps) == 1


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (Debian package nftables)")
@spaces.isolated
def test_the_guard_sees_a_new_device_that_has_the_name() -> None:
    """Rules that go by its number let nothing out by it before they are renewed."""
    host = Host()
    rules = replace(EN, kernel_path=True, rewritten_at="wan")
    listing = linux.en_look(rules, "wan")
    host.apply(linux.en_rules(rules))
    expected = look(host, listing)
    host.space.run("ip link del wan")
    host.space.run("ip link add wan type veth peer name other")
    assert (
        "natf's table of nftables, or conntrack's settings" in guard.judge(expected, look(host, listing), HOME).changed
    )
    host.apply(linux.en_rules(rules))
    assert look(host, listing)["nft"] == expected["nft"]


@spaces.isolated
def test_the_guard_sees_what_others_do_to_one_that_serves_inside_hosts() -> None:
    host = Host()
    with host.space:
        tun = TunDevice("natf1", "nothing goes")
    host.apply(linux.en_rules(GATEWAY_EN))
    listing = linux.en_look(GATEWAY_EN, "wan")
    expected = look(host, listing)
    rules, route, device = "firewall rules of natf", "route of the TUN device", "TUN device"
    for spoil, changed in (
        ("iptables -t nat -F", [rules]),
        ("iptables -t mangle -F FORWARD", [rules]),
        ("ip route del 240.0.0.0/8", [route]),
        ("ip link set natf1 down", [route, device]),
        ("ip address flush dev natf1", [route, device]),
    ):
        host.space.run(spoil)
        assert guard.judge(expected, look(host, listing), HOME) == guard.Finding(tuple(changed), HOME)
        host.apply(linux.en_rules(GATEWAY_EN))
        assert look(host, listing) == expected
    tun.close()


@spaces.isolated
def test_what_an_external_node_for_inside_hosts_cannot_use_is_named() -> None:
    host = Host()
    host.space.set("net/ipv4/ip_forward", "0")
    host.space.run("ip route add 240.0.0.0/8 dev wan")
    with host.space:
        problems = runner.check(linux.probe_en(GATEWAY_EN))
    assert [problem.split(":")[0] for problem in problems] == [
        "this host does not forward IPv4 packets",
        "a route to 240.0.0.0/8 exists",
    ]


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_what_a_site_saved_and_restored_goes_with_the_rest(backend: str) -> None:
    if shutil.which(backend) is None:
        pytest.skip(f"no {backend}")
    saved_and_restored(backend)


@spaces.isolated
def saved_and_restored(backend: str) -> None:
    def run(argv: tuple[str, ...], stdin: str | None) -> Completed:
        name, *rest = argv
        return run_process((name.replace("iptables", backend), *rest), stdin)

    runner.apply(linux.en_rules(EN), run)
    saved = run(("iptables-save",), None).stdout
    assert run(("iptables-restore", "--noflush"), saved).status == 0  # now every jump is there twice
    assert runner.undo(linux.en_undo(), run) == []
    assert "NATF" not in run(("iptables-save",), None).stdout
