"""What is done to a FreeBSD machine for a lab, to the letter; nothing is run here."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.firewall.command import Command
from natf_bsd.lab import jail_commands as commands
from natf_bsd.lab.jail_commands import Means, Names, NatKind
from natf_bsd.lab.topology import FIGURE1, FIGURE3, Host, Interface, Nat, Service, ServiceKind, Topology, Zone

SMALL = Topology(
    hosts=(
        Host(
            "gw",
            (Interface("wan", "out", "198.51.100.1"), Interface("lan", "in", "10.0.0.1", 8)),
            nat=Nat("wan", "lan"),
        ),
        Host("dns", (Interface("eth0", "out", "198.51.100.53"),), services=(Service(ServiceKind.DNS, 53),)),
        Host("pc", (Interface("eth0", "in", "10.0.0.2", 8),), default_route="10.0.0.1", answers_echo=False),
    ),
    zone=Zone(),
    nameserver="198.51.100.53",
)
NAMES = Names("t1")
WIRES = {("gw", "wan"): "epair7", ("gw", "lan"): "epair8", ("dns", "eth0"): "epair9", ("pc", "eth0"): "epair10"}
LOCAL = Means(bridge=True, nat=NatKind.NATD, asked=("127.0.0.1",))
FAR = Means(bridge=False, nat=NatKind.IPFW_NAT, asked=("192.0.2.5",))
RUN_DIR = Path("/var/run/natf-lab/t1")


def jail(name: str) -> Command:
    parameters = ("path=/", "persist", "vnet", "children.max=0", "allow.raw_sockets")
    return Command(("jail", "-q", "-c", f"name=natf_t1_{name}", f"host.hostname={name}", *parameters))


def inside(name: str, script: str) -> Command:
    return Command(("jexec", f"natf_t1_{name}", "sh", "-e"), stdin=script)


PLUG_IN = Command(
    ("sh", "-e"),
    stdin="ifconfig epair7a vnet natf_t1_net_out\n"
    "ifconfig epair7b vnet natf_t1_gw\n"
    "ifconfig epair8a vnet natf_t1_net_in\n"
    "ifconfig epair8b vnet natf_t1_gw\n"
    "ifconfig epair9a vnet natf_t1_net_out\n"
    "ifconfig epair9b vnet natf_t1_dns\n"
    "ifconfig epair10a vnet natf_t1_net_in\n"
    "ifconfig epair10b vnet natf_t1_pc\n",
)

BEGIN = "ipfw -q add 65000 allow ip from any to any\n"
BEGIN_HOST = f"{BEGIN}ifconfig lo0 inet 127.0.0.1/8 up\n"
GATEWAY_LINKS = (
    "ifconfig epair7b name wan\n"
    "ifconfig wan inet 198.51.100.1/24 up\n"
    "ifconfig epair8b name lan\n"
    "ifconfig lan inet 10.0.0.1/8 up\n"
)


def test_make_jails() -> None:
    assert commands.make_jails(SMALL, NAMES) == [jail(name) for name in ("net_out", "net_in", "gw", "dns", "pc")]


def test_make_a_wire_that_is_marked_from_the_start() -> None:
    assert commands.make_wire(NAMES) == Command(("ifconfig", "epair", "create", "description", "natf:t1"))
    assert commands.wire_of("epair12a\n") == "epair12"
    with pytest.raises(NatfError, match="printed ''; expected a name like epair7a"):
        commands.wire_of("")


def test_connect_with_bridges_natd_and_a_resolver_on_this_host() -> None:
    assert commands.connect(SMALL, NAMES, WIRES, LOCAL, RUN_DIR) == [
        PLUG_IN,
        inside(
            "net_out",
            f"{BEGIN}bridge=$(ifconfig bridge create)\n"
            "ifconfig epair7a up\n"
            'ifconfig "$bridge" addm epair7a\n'
            "ifconfig epair9a up\n"
            'ifconfig "$bridge" addm epair9a\n'
            'ifconfig "$bridge" up\n',
        ),
        inside(
            "net_in",
            f"{BEGIN}bridge=$(ifconfig bridge create)\n"
            "ifconfig epair8a up\n"
            'ifconfig "$bridge" addm epair8a\n'
            "ifconfig epair10a up\n"
            'ifconfig "$bridge" addm epair10a\n'
            'ifconfig "$bridge" up\n',
        ),
        inside(
            "gw",
            f"{BEGIN_HOST}{GATEWAY_LINKS}"
            "sysctl net.inet.ip.forwarding=1\n"
            "natd -interface wan -port 8668 -deny_incoming -dynamic -exit_delay 0 -P /var/run/natf-lab/t1/natd-gw.pid\n"
            "ipfw -q add 50 divert 8668 ip4 from any to any via wan\n",
        ),
        inside("dns", f"{BEGIN_HOST}ifconfig epair9b name eth0\nifconfig eth0 inet 198.51.100.53/24 up\n"),
        inside(
            "pc",
            f"{BEGIN_HOST}ifconfig epair10b name eth0\n"
            "ifconfig eth0 inet 10.0.0.2/8 up\n"
            "route -q add default 10.0.0.1\n"
            "ipfw -q add 100 deny icmp from any to me in icmptypes 8\n",
        ),
    ]


def test_connect_with_forwarding_jails_ipfw_nat_and_a_name_server_far_away() -> None:
    assert commands.connect(SMALL, NAMES, WIRES, FAR, RUN_DIR) == [
        PLUG_IN,
        inside(
            "net_out",
            f"{BEGIN}sysctl net.inet.ip.forwarding=1 net.inet.ip.redirect=0 net.link.ether.inet.proxyall=1\n"
            "ifconfig epair7a inet 169.254.0.1/32 up\n"
            "route -q add -host 198.51.100.1 -iface epair7a\n"
            "ifconfig epair9a inet 169.254.0.2/32 up\n"
            "route -q add -host 198.51.100.53 -iface epair9a\n"
            "route -q add -host 192.0.2.5 -iface epair9a\n",
        ),
        inside(
            "net_in",
            f"{BEGIN}sysctl net.inet.ip.forwarding=1 net.inet.ip.redirect=0 net.link.ether.inet.proxyall=1\n"
            "ifconfig epair8a inet 169.254.0.1/32 up\n"
            "route -q add -host 10.0.0.1 -iface epair8a\n"
            "ifconfig epair10a inet 169.254.0.2/32 up\n"
            "route -q add -host 10.0.0.2 -iface epair10a\n",
        ),
        inside(
            "gw",
            f"{BEGIN_HOST}{GATEWAY_LINKS}"
            "route -q add -host 192.0.2.5 198.51.100.53\n"
            "sysctl net.inet.ip.forwarding=1\n"
            "ipfw -q add 10 reass ip from any to any in\n"
            "sysctl net.inet.ip.fw.one_pass=0\n"
            "ipfw -q nat 123 config if wan same_ports deny_in\n"
            "ipfw -q add 50 nat 123 ip4 from any to any via wan\n",
        ),
        inside(
            "dns",
            f"{BEGIN_HOST}ifconfig epair9b name eth0\n"
            "ifconfig eth0 inet 198.51.100.53/24 up\n"
            "ifconfig eth0 inet 192.0.2.5/32 alias\n",
        ),
        inside(
            "pc",
            f"{BEGIN_HOST}ifconfig epair10b name eth0\n"
            "ifconfig eth0 inet 10.0.0.2/8 up\n"
            "route -q add default 10.0.0.1\n"
            "route -q add -host 192.0.2.5 10.0.0.1\n"
            "ipfw -q add 100 deny icmp from any to me in icmptypes 8\n",
        ),
    ]


def scripts(topology: Topology, means: Means) -> dict[str, str]:
    """What is run in each jail."""
    wires = {
        (host.name, port.name): f"epair{number}{index}"
        for number, host in enumerate(topology.hosts)
        for index, port in enumerate(host.interfaces)
    }
    made = commands.connect(topology, NAMES, wires, means, RUN_DIR)[1:]
    return {command.argv[1].removeprefix("natf_t1_"): command.stdin or "" for command in made}


def test_a_home_network_that_has_the_name_servers_address_serves_dns_under_it() -> None:
    """192.168.0.1 is in many a resolv.conf, and in every lab."""
    asked = ("192.168.0.1",)
    assert commands.name_servers(FIGURE1, asked) == {"dns": ["203.0.113.53", "192.168.0.1"], "router": ["192.168.0.1"]}
    made = scripts(FIGURE1, replace(FAR, asked=asked))
    assert "route -q add -host 192.168.0.1 203.0.113.53\n" in made["en"]
    assert "ifconfig eth0 inet 192.168.0.1/32 alias\n" in made["dns"]
    assert "-host 192.168.0.1" not in made["alice"] + made["router"]
    assert made["net_public"].count("-host 192.168.0.1 ") == 1
    assert made["net_private"].count("-host 192.168.0.1 ") == 1


def test_a_name_server_that_seems_to_be_in_the_home_is_reached_through_the_router() -> None:
    asked = ("192.168.0.254",)
    assert commands.name_servers(FIGURE1, asked) == {"dns": ["203.0.113.53", "192.168.0.254"]}
    assert "route -q add -host 192.168.0.254 192.168.0.1\n" in scripts(FIGURE1, replace(FAR, asked=asked))["alice"]


def test_a_name_server_with_the_address_of_an_inside_host_leaves_the_way_to_that_host() -> None:
    made = scripts(FIGURE1, replace(FAR, asked=("192.168.0.2",)))
    assert "route -q add -host 192.168.0.2 203.0.113.53\n" in made["en"]
    assert "route -q add -host 192.168.0.2" not in made["router"] + made["bob"]


def test_a_resolver_on_this_host_is_one_on_each_host() -> None:
    assert commands.name_servers(SMALL, ("127.0.0.1",)) == {
        "gw": ["127.0.0.1"],
        "dns": ["198.51.100.53", "127.0.0.1"],
        "pc": ["127.0.0.1"],
    }
    assert commands.name_servers(SMALL, ("127.0.0.1", "192.0.2.5")) == {"dns": ["198.51.100.53", "192.0.2.5"]}


def test_the_labs_own_name_server_may_be_the_machines_too() -> None:
    assert commands.name_servers(SMALL, ("198.51.100.53",)) == {"dns": ["198.51.100.53"]}
    assert commands.clash(SMALL, ("198.51.100.53",)) is None
    assert "alias" not in scripts(SMALL, replace(FAR, asked=("198.51.100.53",)))["dns"]


def test_name_servers_the_lab_cannot_answer_for_are_named_with_the_way_out() -> None:
    assert commands.clash(SMALL, ("192.0.2.5", "127.0.0.1")) is None
    assert commands.clash(SMALL, ("198.51.100.9",)) == (
        "/etc/resolv.conf names 198.51.100.9, of the lab's own network 198.51.100.0/24; expected another server"
    )
    assert commands.clash(SMALL, ()) == (
        "/etc/resolv.conf names IPv6 servers only; add a line with an IPv4 one, or 127.0.0.1"
    )


def test_two_homes_with_the_same_addresses_have_switches_of_their_own() -> None:
    made = scripts(FIGURE3, replace(FAR, nat=NatKind.NATD))
    assert "-host 192.168.0.2 -iface" in made["net_private"]
    assert "-host 192.168.0.2 -iface" in made["net_private2"]
    assert "192.168.0." not in made["net_public"]
    for router in ("router", "router2"):
        assert f"-P /var/run/natf-lab/t1/natd-{router}.pid\n" in made[router]
        assert "route -q add default 203.0.113.254\n" in made[router]


@pytest.mark.parametrize("means", [LOCAL, FAR])
def test_scripts_are_shell(means: Means) -> None:
    for topology in (FIGURE1, FIGURE3):
        for script in scripts(topology, means).values():
            done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")


def test_interface_names_fit_divert() -> None:
    """Which cuts them after 7 characters (FREEBSD.md 1.4)."""
    for topology in (FIGURE1, FIGURE3):
        assert max(len(port.name) for host in topology.hosts for port in host.interfaces) <= 7


def test_names_of_instances_do_not_collide_and_have_no_dot() -> None:
    topologies = {name: Names(name).all(FIGURE1) for name in ("figure1", "test-123", "test", "test-12", "net")}
    everything = [jail for jails in topologies.values() for jail in jails]
    assert len(set(everything)) == len(everything)
    assert not any("." in jail for jail in everything)
    assert Names("test-123").host("natf_test-123_en") == "en"
    assert Names("test-12").host("natf_test-123_en") is None
    assert Names("t1").host("www") is None


def test_tear_down_fetches_ports_before_jails_go() -> None:
    made = commands.tear_down(
        existing=["natf_t1_net_out", "natf_t1_gw"],
        ports={"natf_t1_net_out": ["epair7a", "epair9a"]},
        loose=["epair12a", "epair11a"],
    )
    assert [" ".join(command.argv) for command in made] == [
        "ifconfig epair7a -vnet natf_t1_net_out",
        "ifconfig epair7a destroy",
        "ifconfig epair9a -vnet natf_t1_net_out",
        "ifconfig epair9a destroy",
        "ifconfig epair11a destroy",
        "ifconfig epair12a destroy",
        "jail -R natf_t1_net_out",
        "jail -R natf_t1_gw",
    ]


def test_what_jls_prints() -> None:
    assert commands.parse_jails("1 e5\n5 natf_t1_en\n") == {1: "e5", 5: "natf_t1_en"}
    assert commands.parse_jails("") == {}


def test_what_ps_prints() -> None:
    printed = (
        "  0     0 DLs  [kernel]\n"
        "  5   891 Is   natd -interface wan -port 8668\n"
        "  5   903 Z    <defunct>\n"
        " 12 12345 S    /usr/local/bin/python3.11 -m natf_bsd.lab.services http --name alice --port 80\n"
        "  5   904 I    \n"
    )
    assert list(commands.parse_processes(printed)) == [
        (0, 0, "[kernel]"),
        (5, 891, "natd -interface wan -port 8668"),
        (12, 12345, "/usr/local/bin/python3.11 -m natf_bsd.lab.services http --name alice --port 80"),
        (5, 904, ""),
    ]


IFCONFIG = """\
vtnet0: flags=1008843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
\tdescription: the way out
\tether 02:42:ab:16:ff:0b
lo0: flags=1008049<UP,LOOPBACK,RUNNING,MULTICAST,LOWER_UP> metric 0 mtu 16384
\tgroups: lo
epair0a: flags=1008842<BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
\tdescription: natf:t1
\toptions=8<VLAN_MTU>
epair0b: flags=1008842<BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
epair1a: flags=1008842<BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
\tdescription: natf:t12
"""


def test_what_ifconfig_prints_of_marked_interfaces() -> None:
    assert commands.marked(IFCONFIG, "natf:t1") == ["epair0a"]
    assert commands.marked(IFCONFIG, "natf:t12") == ["epair1a"]
    assert commands.marked("", "natf:t1") == []
