"""Which interface is the outer one: against a fake kernel, and against the real one in a namespace."""

import json
import os
import subprocess
import sys

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.ops import interfaces
from natf_bsd.ops.interfaces import Interface, outer_interface
from tests import spaces

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads interfaces of Linux")


class Message(dict):
    def get_attr(self, name):
        return self.get("attrs", {}).get(name)


class FakeRoutes:
    """The four calls of pyroute2's IPRoute that are used; `links`, `addresses` and `routes` are the test's."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def link_lookup(self, ifname):
        return [index for index, name in self.links.items() if name == ifname]

    def get_links(self, index):
        return [Message(attrs={"IFLA_IFNAME": self.links[index]})]

    def get_default_routes(self, family):
        assert family == 2
        return [Message(attrs=attrs) for attrs in self.routes]

    def get_addr(self, family, index):
        assert family == 2
        return [Message(scope=scope, attrs={"IFA_LOCAL": text}) for scope, text in self.addresses.get(index, [])]


@pytest.fixture
def kernel(monkeypatch):
    pyroute2 = pytest.importorskip("pyroute2")
    fake = type("Fake", (FakeRoutes,), {"links": {1: "lo", 2: "eth0", 3: "eth1"}, "addresses": {}, "routes": []})
    monkeypatch.setattr(pyroute2, "IPRoute", fake)
    return fake


def test_the_one_that_is_named_is_taken(kernel):
    kernel.addresses = {3: [(0, "203.0.113.10")]}
    found = outer_interface("eth1")
    assert found == Interface("eth1", bytes((203, 0, 113, 10)))
    assert str(found) == "eth1 203.0.113.10"


def test_otherwise_that_of_the_default_route(kernel):
    kernel.addresses = {2: [(0, "203.0.113.10")]}
    main = {"RTA_TABLE": 254}
    kernel.routes = [{"RTA_OIF": 3, "RTA_TABLE": 78}, main, {"RTA_OIF": 2, **main}, {"RTA_OIF": 3, **main}]
    assert outer_interface(None) == Interface("eth0", bytes((203, 0, 113, 10)))


def test_an_address_of_this_link_or_host_only_is_none(kernel):
    kernel.addresses = {
        2: [(253, "169.254.0.1"), (254, "127.0.0.2"), (0, None), (0, "203.0.113.10"), (0, "203.0.113.11")]
    }
    assert outer_interface("eth0").address == bytes((203, 0, 113, 10))
    kernel.addresses = {2: [(253, "169.254.0.1")]}
    with pytest.raises(NatfError, match=r"^eth0 has no IPv4 address; expected the public one$"):
        outer_interface("eth0")


def test_one_that_is_not_there_is_named(kernel):
    with pytest.raises(NatfError) as caught:
        outer_interface("eth7")
    assert str(caught.value) == (
        "there is no interface eth7; expected the outer one (interface = in the configuration)"
    )


def test_no_default_route_says_what_to_do(kernel):
    with pytest.raises(NatfError) as caught:
        outer_interface(None)
    assert str(caught.value) == ("no IPv4 default route; name the outer interface (interface = in the configuration)")


def test_another_system_is_told_so(monkeypatch):
    monkeypatch.setattr(interfaces.sys, "platform", "plan9")
    with pytest.raises(NatfError, match="interfaces of plan9 cannot be read: natf runs on FreeBSD and Linux"):
        outer_interface(None)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(NatfError, match=r"the Python package pyroute2 is missing; expected natf_bsd\[linux\]"):
        outer_interface(None)


SCRIPT = """
import json
from natf_bsd.errors import NatfError
from natf_bsd.ops.interfaces import outer_interface

def look(wanted):
    try:
        return str(outer_interface(wanted))
    except NatfError as error:
        return str(error)

print(json.dumps([look(None), look("outer0"), look("outer1"), look("outer7")]))
"""


@pytest.mark.lab
@pytest.mark.linux("network namespaces")
def test_a_real_kernel_says_the_same():
    setup = (
        "ip link add outer0 type veth peer name outer1 && ip addr add 203.0.113.10/24 dev outer0 &&"
        " ip link set outer1 up && ip link set outer0 up && ip route add default via 203.0.113.254 &&"
        ' exec "$0" -c "$1"'
    )
    done = subprocess.run(
        ["unshare", "-n" if os.geteuid() == 0 else "-Urn", "sh", "-c", setup, sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [
        "outer0 203.0.113.10",
        "outer0 203.0.113.10",
        "outer1 has no IPv4 address; expected the public one",
        "there is no interface outer7; expected the outer one (interface = in the configuration)",
    ]


@spaces.isolated
def test_the_default_route_is_that_of_the_main_table():
    """Not that of a VPN, of a second line, or of our own TUN device: pyroute2 lists all tables, 78 before 254."""
    here, there = spaces.Space(), spaces.Space()
    here.cable("eth0", "203.0.113.1/24", there, "eth0", "203.0.113.254/24")
    here.cable("eth1", "198.51.100.1/24", there, "eth1", "198.51.100.254/24")
    here.run("ip route add default via 198.51.100.254 table 78")
    with here, pytest.raises(NatfError, match="no IPv4 default route"):
        outer_interface(None)
    here.run("ip route add default via 203.0.113.254")
    with here:
        assert str(outer_interface(None)) == "eth0 203.0.113.1"
