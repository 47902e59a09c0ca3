"""The machines agree with themselves, with the lab of figure 1, and with our own readers of configuration."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

import pytest

from natf_bsd import config
from natf_bsd.lab.topology import FIGURE1
from natf_bsd.tables.act import parse as parse_act
from tests.vagrant.machines import LAB, MACHINES, ROOT, VAGRANT, Link, links

ROUTERS = {"router": "home", "router2": "home2"}
DOCUMENTATION = ipaddress.ip_network("203.0.113.0/24")  # RFC 5737

KNOWN_RC = {
    "hostname",
    "defaultrouter",
    "gateway_enable",
    "firewall_enable",
    "firewall_type",
    "firewall_coscripts",
    "natd_enable",
    "natd_interface",
    "natd_flags",
    "nsd_enable",
    "ftpd_enable",
    "natf_en_enable",
    "natf_router_enable",
    "natf_lab_enable",
    "natf_lab_python",
    "natf_lab_services",
}
"""rc.conf(5) and FREEBSD.md 2.4, nsd's and ftpd's own, and those of the scripts in rc.d/ and provision/."""


def all_links() -> Iterator[tuple[str, Link]]:
    for machine in MACHINES:
        for link in links(machine):
            yield machine, link


def addresses(link: Link) -> list[ipaddress.IPv4Address]:
    return [ipaddress.IPv4Interface(text).ip for text in link.addresses]


def test_the_machines_of_both_figures_are_there() -> None:
    assert MACHINES.keys() == {"en", "router", "alice", "bob", "ddns", "router2", "carol"}


def test_the_name_server_comes_first() -> None:
    """The others ask it from their first boot in the lab on."""
    assert next(iter(MACHINES)) == "ddns"
    assert LAB["nameserver"] in [str(address) for link in links("ddns") for address in addresses(link)]


def test_the_public_network_is_for_documentation_and_both_homes_are_alike() -> None:
    assert ipaddress.ip_network(LAB["networks"]["public"]) == DOCUMENTATION
    homes = [network for name, network in LAB["networks"].items() if name != "public"]
    assert homes == ["192.168.0.0/24"] * 2


def test_addresses_lie_in_their_network_and_belong_to_one_machine() -> None:
    taken = [(link.network, address) for _, link in all_links() for address in addresses(link)]
    assert len(set(taken)) == len(taken)
    for network, address in taken:
        assert address in ipaddress.ip_network(LAB["networks"][network])
    for _, link in all_links():
        first, *others = link.addresses
        assert first.endswith("/24")
        assert all(other.endswith("/32") for other in others)


def test_mac_addresses_are_local_and_unique() -> None:
    macs = [link.mac for _, link in all_links()]
    assert len(set(macs)) == len(macs)
    for mac in macs:
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
        assert int(mac[:2], 16) & 3 == 2, "locally administered, one machine's"


def test_names_of_interfaces_are_short_enough_for_divert() -> None:
    assert all(len(link.name) <= 7 for _, link in all_links())


def test_only_routers_join_networks() -> None:
    joining = {machine: [link.network for link in links(machine)] for machine in MACHINES if len(links(machine)) > 1}
    assert joining == {name: ["public", home] for name, home in ROUTERS.items()}


def test_gateways_are_the_homes_routers_or_nobody() -> None:
    everybody = {address for _, link in all_links() for address in addresses(link)}
    for machine in MACHINES:
        gateway = MACHINES[machine]["gateway"]
        if links(machine)[0].network == "public":
            assert not gateway or ipaddress.ip_address(gateway) in DOCUMENTATION
            assert not gateway or ipaddress.ip_address(gateway) not in everybody, "beyond is nothing"
        else:
            assert gateway == "192.168.0.1"


def test_every_host_of_figure_1_has_its_address_and_interfaces_on_a_machine() -> None:
    places = {(machine, link.name, str(address)) for machine, link in all_links() for address in addresses(link)}
    for host in FIGURE1.hosts:
        for interface in host.interfaces:
            assert (LAB["hosts"].get(host.name, host.name), interface.name, interface.address) in places


def test_servers_listen_where_figure_1_has_them() -> None:
    served = {service for machine in MACHINES.values() for service in machine.get("services", [])}
    for host in FIGURE1.hosts:
        # silent shares a machine with plain, eve with bob: nobody reads a page of theirs.
        if host.name not in {"dns", "silent", "eve"}:
            assert {f"{s.kind.value}:{host.name}:{s.port}" for s in host.services} <= served


@pytest.mark.parametrize("machine", MACHINES)
def test_every_step_is_a_script(machine: str) -> None:
    steps = MACHINES[machine]["steps"]
    assert steps[:3] == ["packages", "network", "natf"], "each needs the one before"
    assert all((VAGRANT / "provision" / f"{step}.sh").is_file() for step in steps)


def test_every_script_is_a_step_of_some_machine() -> None:
    scripts = {path.stem for path in (VAGRANT / "provision").glob("*.sh")} - {"lib"}
    assert scripts == {step for machine in MACHINES.values() for step in machine["steps"]}


def test_every_knob_set_is_one_that_something_reads() -> None:
    text = "".join(path.read_text() for path in (VAGRANT / "provision").glob("*.sh"))
    names = set(re.findall(r'^ *set_rc "?([\w${}]+)', text, re.MULTILINE))
    roles = {name.replace("${role}", role) for name in names for role in ("en", "router")}
    interfaces = {name for name in roles if name.startswith("ifconfig_")}
    assert interfaces == {"ifconfig_$name", "ifconfig_${name}_alias$number", "ifconfig_${interface}_name"}
    assert roles - interfaces == KNOWN_RC


@pytest.mark.parametrize("machine", [name for name in MACHINES if MACHINES[name].get("roles")])
def test_configurations_have_the_roles_of_their_machine(machine: str) -> None:
    path = VAGRANT / "hosts" / machine / "natf.toml"
    parsed = config.load(path)
    roles = {name for name, section in (("en", parsed.en), ("router", parsed.router)) if section}
    assert roles == set(MACHINES[machine]["roles"])
    outer = links(machine)[0].name
    assert {section.interface for section in (parsed.en, parsed.router) if section} == {outer}


@pytest.mark.parametrize("machine", ROUTERS)
def test_tables_name_hosts_of_their_own_home(machine: str) -> None:
    path = VAGRANT / "hosts" / machine / "natf.act"
    inside = {
        str(address) for _, link in all_links() if link.network == ROUTERS[machine] for address in addresses(link)
    }
    entries = parse_act(path.read_text(), path)
    assert entries
    assert {".".join(map(str, entry.address)) for entry in entries} <= inside


def test_the_tables_of_figure_1_are_the_labs() -> None:
    from natf_bsd.lab.figure1 import ACT

    assert (VAGRANT / "hosts" / "router" / "natf.act").read_text() == ACT


def test_no_file_of_a_host_is_left_over() -> None:
    named = "".join(path.read_text() for path in (VAGRANT / "provision").glob("*.sh"))
    for path in (VAGRANT / "hosts").rglob("*.*"):
        assert f"$files/{path.name}" in named
        assert path.parent.name in MACHINES


def test_a_script_of_the_project_is_behind_each_role() -> None:
    if not (ROOT / "rc.d").is_dir():
        pytest.skip("no rc.d/ in this tree")
    for machine in MACHINES.values():
        for role in machine.get("roles", []):
            assert (ROOT / "rc.d" / f"natf_{role}").is_file()
