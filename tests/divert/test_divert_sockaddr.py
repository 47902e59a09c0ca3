"""The sockaddr_in of divert(4), against those a FreeBSD 14.2 kernel gave and took (data/, FREEBSD.md 1.4, 1.5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.divert import sockaddr
from natf_bsd.divert.sockaddr import Place
from natf_bsd.errors import NatfError
from natf_bsd.types import Direction, parse_address

RECORDED = Path(__file__).with_name("data") / "freebsd_14_2_divert_addresses.jsonl"
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in RECORDED.read_text().splitlines()]
HERE = parse_address("203.0.113.1")
PLACES = st.builds(
    Place,
    st.integers(0, 65535),
    st.binary(min_size=4, max_size=4),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789_", max_size=7),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda one: one["case"])
def test_every_recorded_address_is_read(record: dict[str, Any]) -> None:
    said = record["sockaddr"]
    place = Place.unpack(bytes.fromhex(said["raw"]))
    assert (place.rule, place.address, place.interface) == (said["rule"], parse_address(said["addr"]), said["ifname"])


@pytest.mark.parametrize(
    "record", [one for one in RECORDS if len(one["sockaddr"]["ifname"]) <= 7], ids=lambda o: o["case"]
)
def test_every_recorded_address_is_made_again(record: dict[str, Any]) -> None:
    said = record["sockaddr"]
    assert Place(said["rule"], parse_address(said["addr"]), said["ifname"]).pack().hex() == said["raw"]


def test_the_port_to_bind_is_in_network_order_and_nothing_else_counts() -> None:
    # errors.jsonl, "bind a port that another socket holds"
    assert sockaddr.bind_address(9000).hex() == "10022328000000000000000000000000"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_that_ipfw_refuses_are_refused(port: int) -> None:
    with pytest.raises(NatfError, match="expected 1 to 65535"):
        sockaddr.bind_address(port)


@given(PLACES)
def test_a_place_survives_packing(place: Place) -> None:
    assert Place.unpack(place.pack()) == place


@given(PLACES, st.booleans())
def test_the_direction_forced_is_the_one_the_kernel_reads(place: Place, keep_name: bool) -> None:
    """sin_addr alone decides, and the rule number stays."""
    raw = place.pack()
    inward = Place.unpack(sockaddr.incoming(raw, keep_name=keep_name))
    outward = Place.unpack(sockaddr.outgoing(raw))
    assert inward.address != sockaddr.NO_ADDRESS
    assert inward.address == place.address or place.address == sockaddr.NO_ADDRESS
    assert outward == Place(place.rule, sockaddr.NO_ADDRESS, place.interface)
    assert (inward.rule, inward.interface) == (place.rule, place.interface if keep_name else "")


def test_own_places_are_those_the_recordings_wrote() -> None:
    written = {one["case"]: one["sockaddr"]["raw"] for one in RECORDS if one["kind"] == "write"}
    none = sockaddr.NO_ADDRESS
    assert sockaddr.made(Direction.OUT, 101, "", none).hex() == written["out, sin_port 101"]
    inside = "out, source not ours, name of the inside interface"
    assert sockaddr.made(Direction.OUT, 0, "epair1a", none).hex() == written[inside]
    both = "in, name and address of the interface"
    assert sockaddr.made(Direction.IN, 0, "epair0b", HERE).hex() == written[both]
    assert sockaddr.made(Direction.IN, 0, "", HERE).hex() == written["in, address only"]


def test_an_incoming_place_without_address_is_still_incoming() -> None:
    place = Place.unpack(sockaddr.made(Direction.IN, 7, "epair2b", sockaddr.NO_ADDRESS))
    assert place.address != sockaddr.NO_ADDRESS
    assert (place.rule, place.interface) == (7, "epair2b")


def test_an_outgoing_place_ignores_the_address() -> None:
    assert Place.unpack(sockaddr.made(Direction.OUT, 7, "", HERE)) == Place(7)


@pytest.mark.parametrize(
    ("rule", "interface", "says"),
    [
        (-1, "", "rule -1: expected 0 to 65535"),
        (65536, "", "rule 65536"),
        (1, "wanport0", "wanport0.* at most 7 characters.*address"),
    ],
)
def test_what_the_kernel_cannot_be_told_is_refused(rule: int, interface: str, says: str) -> None:
    for direction in Direction:
        with pytest.raises(NatfError, match=says):
            sockaddr.made(direction, rule, interface, HERE)


def test_an_incoming_packet_needs_an_interface() -> None:
    with pytest.raises(NatfError, match="name or an address of the interface"):
        sockaddr.made(Direction.IN, 1, "", sockaddr.NO_ADDRESS)


def test_a_place_reads_well() -> None:
    assert str(Place(100, HERE, "epair0b")) == "rule 100 203.0.113.1 epair0b"
    assert str(Place(100)) == "rule 100 0.0.0.0 -"
