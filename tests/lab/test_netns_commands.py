"""What is done to the machine for a lab, to the letter; nothing is run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.firewall.command import Command
from natf_bsd.lab import netns
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.netns import NetnsPlatform, filter_rules, set_up, tear_down
from natf_bsd.lab.platform import lab_platform
from natf_bsd.lab.topology import FIGURE1, Host, Interface, Nat, Topology, Zone

SMALL = Topology(
    hosts=(
        Host(
            "gw",
            (Interface("wan", "out", "198.51.100.1"), Interface("lan", "in", "10.0.0.1", 8)),
            nat=Nat("wan", "lan"),
        ),
        Host("pc", (Interface("eth0", "in", "10.0.0.2", 8),), default_route="10.0.0.1", answers_echo=False),
    ),
    zone=Zone(),
    nameserver="198.51.100.53",
)


def settings(namespace: str, forward: int) -> Command:
    script = (
        f"echo {forward} >/proc/sys/net/ipv4/ip_forward; "
        "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; "
        "echo 2 >/proc/sys/net/ipv4/conf/default/rp_filter"
    )
    return Command(("nsenter", f"--net=/run/netns/{namespace}", "--", "sh", "-ec", script))


NAT_RULES = """\
*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i lan -o wan -j ACCEPT
COMMIT
"""

NO_ECHO_RULES = """\
*filter
-A INPUT -p icmp --icmp-type echo-request -j DROP
COMMIT
"""


def test_set_up() -> None:
    assert set_up(SMALL, lambda host: f"natf-{host}") == [
        Command(("ip", "-batch", "-"), stdin="netns add natf-net\nnetns add natf-gw\nnetns add natf-pc\n"),
        settings("natf-gw", 1),
        settings("natf-pc", 0),
        Command(
            ("ip", "-n", "natf-net", "-batch", "-"),
            stdin="link add out type bridge\n"
            "link set out up\n"
            "link add in type bridge\n"
            "link set in up\n"
            "link add gw-wan type veth peer name wan netns natf-gw\n"
            "link set gw-wan master out up\n"
            "link add gw-lan type veth peer name lan netns natf-gw\n"
            "link set gw-lan master in up\n"
            "link add pc-eth0 type veth peer name eth0 netns natf-pc\n"
            "link set pc-eth0 master in up\n",
        ),
        Command(
            ("ip", "-n", "natf-gw", "-batch", "-"),
            stdin="link set lo up\n"
            "address add 198.51.100.1/24 brd + dev wan\n"
            "link set wan up\n"
            "address add 10.0.0.1/8 brd + dev lan\n"
            "link set lan up\n",
        ),
        Command(
            ("ip", "-n", "natf-pc", "-batch", "-"),
            stdin="link set lo up\n"
            "address add 10.0.0.2/8 brd + dev eth0\n"
            "link set eth0 up\n"
            "route add default via 10.0.0.1\n",
        ),
        Command(("nsenter", "--net=/run/netns/natf-gw", "--", "iptables-restore", "-w"), stdin=NAT_RULES),
        Command(("nsenter", "--net=/run/netns/natf-pc", "--", "iptables-restore", "-w"), stdin=NO_ECHO_RULES),
    ]


def test_tear_down_touches_what_exists_and_is_ours() -> None:
    existing = ["natf-pc", "natf-net", "natf-other", "pc", "somebody-elses"]
    assert tear_down(SMALL, lambda host: f"natf-{host}", existing) == [
        Command(("ip", "netns", "delete", "natf-pc")),
        Command(("ip", "netns", "delete", "natf-net")),
    ]


def test_an_ordinary_host_has_no_rules() -> None:
    assert filter_rules(FIGURE1.host("alice")) == ""


def test_interface_names_fit_linux() -> None:
    links = next(c.stdin or "" for c in set_up(FIGURE1, str) if c.argv[:3] == ("ip", "-n", "net"))
    names = [line.split()[2] for line in links.splitlines()]
    assert names and max(map(len, names)) <= 15


@pytest.mark.linux("looks at the user namespace")
def test_namespaces_of_instances_do_not_collide() -> None:
    assert NetnsPlatform().location("en") == "natf-en"
    assert NetnsPlatform("t1").location("en") == "natf-t1-en"


def test_exec_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "is_true_root", lambda: True)
    argv = NetnsPlatform().exec_argv("en", ["ping", "-c1", "203.0.113.1"], Path("/tmp"))
    assert argv[:8] == ["nsenter", "--net=/run/netns/natf-en", "--", "unshare", "-m", "--", "sh", "-c"]
    assert argv[9:] == [
        "sh",
        "/run/natf-lab/figure1:en",
        "/usr/local/sbin:/usr/sbin:/sbin",
        "/run/natf-lab/figure1/etc/en",
        "/tmp",
        "ping",
        "-c1",
        "203.0.113.1",
    ]


@pytest.mark.linux("looks at the user namespace")
def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(netns, "SYSTEM_DIRS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in ("nsenter", "unshare", "mount"):
        (tmp_path / tool).touch(mode=0o755)
    assert NetnsPlatform().is_supported() == (
        "missing: ip, iptables, iptables-restore (Debian: apt-get install iproute2 iptables)"
    )


def test_a_system_without_labs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "sunos5")
    with pytest.raises(NatfError, match="no lab on sunos5: only"):
        lab_platform("x")
    assert "no lab on sunos5" in (Figure1Lab.is_supported() or "")


@pytest.mark.parametrize("name", ["", "Up", "a/b", "-a", "a" * 33, "a b", ".."])
def test_instance_names_that_could_lead_astray_are_refused(name: str) -> None:
    with pytest.raises(NatfError, match="expected at most 32 lower-case letters"):
        Figure1Lab(name)
