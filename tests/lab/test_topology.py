"""The networks as data agree with themselves, and the zone answers as DNS does."""

from __future__ import annotations

import ipaddress

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.lab.lab import probes
from natf_bsd.lab.topology import FIGURE1, FIGURE3, Host, Topology, Zone


@pytest.mark.parametrize("topology", [FIGURE1, FIGURE3])
def test_hosts_on_a_segment_share_a_network_and_no_address(topology: Topology) -> None:
    for segment in topology.segments:
        interfaces = [interface for _, interface in topology.ports(segment)]
        assert interfaces
        assert len({interface.network for interface in interfaces}) == 1
        assert len({interface.address for interface in interfaces}) == len(interfaces)


def test_the_private_segment_is_reached_through_the_router_only() -> None:
    inside = [h for h in FIGURE1.hosts if h.interfaces[0].segment == "private"]
    assert [host.name for host in inside] == ["alice", "bob", "eve"]
    assert {host.default_route for host in inside} == {"192.168.0.1"}
    assert [host.name for host in FIGURE1.hosts if host.nat] == ["router"]


def test_the_external_node_has_a_gateway_that_nobody_is() -> None:
    gateway = FIGURE1.host("en").default_route
    assert gateway is not None
    assert ipaddress.ip_address(gateway) in FIGURE1.host("en").interfaces[0].network
    assert gateway not in {i.address for host in FIGURE1.hosts for i in host.interfaces}


def test_the_homes_of_figure_3_have_the_same_addresses() -> None:
    homes = [[port.address for _, port in FIGURE3.ports(segment)] for segment in ("private", "private2")]
    assert homes[0] == ["192.168.0.1", "192.168.0.2", "192.168.0.3"]
    assert homes[1] == [*homes[0], "192.168.0.4"]
    assert [host.name for host in FIGURE3.hosts if host.nat] == ["router", "router2"]


def test_an_unknown_host_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(NatfError, match="no host 'mallory' in this lab; expected one of en, router, dns"):
        FIGURE1.host("mallory")


def test_every_server_is_probed_from_its_segments_router() -> None:
    found = [(host.name, targets) for host, targets in probes(FIGURE1)]
    assert found == [
        (
            "router",
            [
                "host:203.0.113.10:9",
                "dns:203.0.113.53:53",
                "http:203.0.113.80:80",
                "udp-echo:203.0.113.80:5000",
                "http:203.0.113.81:80",
                "udp-echo:203.0.113.81:5000",
            ],
        ),
        (
            "router",
            [f"{kind}:192.168.0.{n}:{port}" for n in (2, 3, 4) for kind, port in (("http", 80), ("udp-echo", 5000))],
        ),
    ]


def test_no_router_is_probed_from_outside() -> None:
    """Its NAT need not answer."""
    found = [(host.name, targets) for host, targets in probes(FIGURE3)]
    assert found == [
        ("router", ["dns:203.0.113.53:53"]),
        ("router", [server for last in (2, 3) for server in servers(last)]),
        ("router2", [server for last in (2, 3, 4) for server in servers(last)]),
    ]


def servers(last: int) -> list[str]:
    return [f"http:192.168.0.{last}:80", f"udp-echo:192.168.0.{last}:5000"]


ZONE = Zone(domains={"home.example.net": "203.0.113.1"}, hosts={"www.other.example.net": "203.0.113.9"})


@pytest.mark.parametrize(
    ("name", "address", "exists"),
    [
        ("home.example.net", "203.0.113.1", True),
        ("alice.home.example.net", "203.0.113.1", True),
        ("a.b.home.example.net", "203.0.113.1", True),
        ("nothome.example.net", None, False),
        ("www.other.example.net", "203.0.113.9", True),
        ("x.www.other.example.net", None, False),
        ("other.example.net", None, True),
        ("example.net", None, True),
        ("net", None, True),
        ("org", None, False),
        ("", None, False),
    ],
)
def test_zone(name: str, address: str | None, exists: bool) -> None:
    assert ZONE.address(name) == address
    assert ZONE.exists(name) is exists


def test_a_hosts_address_is_that_of_its_first_interface() -> None:
    assert FIGURE1.host("router").address == "203.0.113.1"
    assert isinstance(FIGURE1.host("alice"), Host)


def test_who_belongs_to_a_home() -> None:
    assert [host.name for host in FIGURE1.hosts if FIGURE1.is_home(host.name)] == ["router", "alice", "bob", "eve"]
    assert [host.name for host in FIGURE3.hosts if not FIGURE3.is_home(host.name)] == ["dns"]
