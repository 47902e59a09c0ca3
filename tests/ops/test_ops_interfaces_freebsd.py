"""Which interface is the outer one on FreeBSD: by what ifconfig(8) and route(8) of 14.2 printed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.ops.interfaces import Interface, outer_on_freebsd, route_to
from natf_bsd.ops.process import Completed
from natf_bsd.types import parse_address

# ipfw-commands.jsonl of the recordings.
EPAIR0A = (
    "epair0a: flags=1008843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500\n"
    "\toptions=8<VLAN_MTU>\n\tether 02:42:ab:16:ff:0a\n"
    "\tinet 203.0.113.10 netmask 0xffffff00 broadcast 203.0.113.255\n"
    "\tinet 203.0.113.11 netmask 0xffffffff broadcast 203.0.113.11\n"
    "\tgroups: epair\n\tmedia: Ethernet 10Gbase-T (10Gbase-T <full-duplex>)\n\tstatus: active\n"
    "\tnd6 options=29<PERFORMNUD,IFDISABLED,AUTO_LINKLOCAL>\n"
)
TUN0 = (
    "tun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> metric 0 mtu 1492\n"
    "\tinet 198.51.100.7 --> 198.51.100.1 netmask 0xffffffff\n"
)
PFLOG0 = "pflog0: flags=0 metric 0 mtu 33152\n\toptions=0\n\tgroups: pflog\n"
DEFAULT = (
    "   route to: 0.0.0.0\ndestination: 0.0.0.0\n       mask: 0.0.0.0\n    gateway: 203.0.113.1\n        fib: 0\n"
    "  interface: epair0a\n      flags: <UP,GATEWAY,DONE,STATIC>\n"
    " recvpipe  sendpipe  ssthresh  rtt,msec    mtu        weight    expire\n"
    "       0         0         0         0      1500         1         0 \n"
)
ROUTE = Completed(0, DEFAULT, "")
NO_ROUTE = Completed(0, "", "route: route has not been found: No error: 0\n")


def freebsd(route: Completed) -> Callable[[tuple[str, ...], str | None], Completed]:
    texts = {"epair0a": EPAIR0A, "tun0": TUN0, "pflog0": PFLOG0}

    def run(argv: tuple[str, ...], stdin: str | None) -> Completed:
        if argv == ("route", "-n", "get", "default"):
            return route
        assert argv[0] == "ifconfig"
        text = texts.get(argv[1])
        missing = Completed(1, "", f"ifconfig: interface {argv[1]} does not exist\n")
        return Completed(0, text, "") if text else missing

    return run


def outer(wanted: str | None, route: Completed = ROUTE) -> Interface:
    return outer_on_freebsd(wanted, freebsd(route))


def test_the_one_that_is_named_is_taken_with_its_first_address() -> None:
    assert outer("epair0a", NO_ROUTE) == Interface("epair0a", parse_address("203.0.113.10"))


def test_otherwise_that_of_the_default_route() -> None:
    assert outer(None) == Interface("epair0a", parse_address("203.0.113.10"))


def test_a_point_to_point_link_has_its_own_address_not_its_peers() -> None:
    assert outer("tun0") == Interface("tun0", parse_address("198.51.100.7"))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (None, "no IPv4 default route; name the outer interface (interface = in the configuration)"),
        ("em7", "there is no interface em7; expected the outer one (interface = in the configuration)"),
        ("pflog0", "pflog0 has no IPv4 address; expected the public one"),
    ],
)
def test_what_is_missing_is_named(wanted: str | None, says: str) -> None:
    with pytest.raises(NatfError) as caught:
        outer(wanted, NO_ROUTE)
    assert str(caught.value) == says


def test_the_way_to_a_place_is_read_by_name() -> None:
    found = route_to("default", freebsd(ROUTE))
    assert (found["gateway"], found["interface"]) == ("203.0.113.1", "epair0a")
    assert route_to("default", freebsd(NO_ROUTE)) == {}
