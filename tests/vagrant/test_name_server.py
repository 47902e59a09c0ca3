"""The zone that nsd serves: the three ways of registration of the paper's table 3, and what the lab's own server
says."""

from __future__ import annotations

import dns.name
import dns.rdatatype
import dns.zone
import pytest

from natf_bsd import config
from natf_bsd.dns.names import HomeDomains
from natf_bsd.lab.topology import FIGURE1
from tests.vagrant.machines import LAB, VAGRANT

DDNS = VAGRANT / "hosts" / "ddns"
HOME = "203.0.113.1"


@pytest.fixture(scope="module")
def zone() -> dns.zone.Zone:
    return dns.zone.from_file(str(DDNS / "example.net.zone"), origin="example.net.")


def answer(zone: dns.zone.Zone, text: str) -> list[str]:
    """Addresses of `text` after following CNAMEs and wildcards (RFC 4592) as a name server does."""
    name = dns.name.from_text(text)
    for _ in range(4):
        node = zone.get_node(name) or wildcard(zone, name)
        if node is None:
            return []
        if (alias := node.get_rdataset(zone.rdclass, dns.rdatatype.CNAME)) is None:
            found = node.get_rdataset(zone.rdclass, dns.rdatatype.A) or []
            return [record.address for record in found]
        name = next(iter(alias)).target.derelativize(zone.origin)
    raise AssertionError(f"{text}: too many aliases")


def wildcard(zone: dns.zone.Zone, name: dns.name.Name) -> dns.node.Node | None:
    below = {n.derelativize(zone.origin) for n in zone.nodes}
    encloser = name
    while not any(known == encloser or known.is_subdomain(encloser) for known in below):
        encloser = encloser.parent()
    return zone.get_node(dns.name.Name(("*", *encloser.labels)))


def test_one_wildcard_stands_for_every_host(zone: dns.zone.Zone) -> None:
    assert zone.get_node("*.home") is not None
    assert zone.get_node("alice.home") is None
    assert answer(zone, "alice.home.example.net.") == answer(zone, "anybody.home.example.net.") == [HOME]


def test_an_alias_of_the_homes_name_for_each_host(zone: dns.zone.Zone) -> None:
    for host in ("alice", "bob"):
        [record] = zone.find_rdataset(f"{host}.cname", dns.rdatatype.CNAME)
        assert str(record.target.derelativize(zone.origin)) == "home.example.net."
        assert answer(zone, f"{host}.cname.example.net.") == [HOME]
    assert answer(zone, "mallory.cname.example.net.") == []


def test_an_address_record_for_each_host(zone: dns.zone.Zone) -> None:
    for host in ("alice", "bob"):
        assert [record.address for record in zone.find_rdataset(f"{host}.each", dns.rdatatype.A)] == [HOME]
    assert answer(zone, "mallory.each.example.net.") == []


@pytest.mark.parametrize(
    "name", ["alice.home", "eve.home", "plain", "www.plain", "www.silent", "www.elsewhere", "nosuch"]
)
def test_the_labs_own_server_says_the_same(zone: dns.zone.Zone, name: str) -> None:
    address = FIGURE1.zone.address(f"{name}.example.net")
    assert answer(zone, f"{name}.example.net.") == ([address] if address else [])


def test_the_other_home_has_its_own_router(zone: dns.zone.Zone) -> None:
    assert answer(zone, "carol.home2.example.net.") == ["203.0.113.2"]


def test_every_way_is_under_a_home_domain_of_the_external_node() -> None:
    en = config.load(VAGRANT / "hosts" / "en" / "natf.toml").need_en()
    homes = HomeDomains(en.home_domains)
    for home in ("home", "cname", "each"):
        assert homes.split(f"alice.{home}.example.net") == ("alice", f"{home}.example.net")
    assert set(FIGURE1.zone.domains) <= set(en.home_domains)
    assert homes.split("www.elsewhere.example.net") is None


def test_records_live_as_long_as_in_the_lab(zone: dns.zone.Zone) -> None:
    assert {rdataset.ttl for _, rdataset in zone.iterate_rdatasets()} == {FIGURE1.zone.ttl}


def test_nsd_serves_that_zone_at_the_name_servers_address() -> None:
    lines = [line.split() for line in (DDNS / "nsd.conf").read_text().splitlines()]
    assert ["ip-address:", LAB["nameserver"]] in lines
    assert ["name:", '"example.net"'] in lines
    assert ["zonefile:", '"example.net.zone"'] in lines
