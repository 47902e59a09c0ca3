"""`ipfw nat N config ip V1 reverse redirect_port ...`: one flow, and no other packet is let near it."""

from __future__ import annotations

import pytest

from natf_bsd.lab.ipfw_model import Host, NotModelledError, interface
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build
from natf_bsd.wire.packet import TCP_ACK

G1, V1 = (Endpoint(parse_address(text), port) for text, port in (("203.0.113.10", 40000), ("240.0.1.1", 80)))
CONFIG = "nat 1001 config ip 240.0.1.1 reverse redirect_port tcp 203.0.113.1:8080 240.0.1.1:80 203.0.113.10:40000"


def host(*lines: str) -> Host:
    made = Host([interface("ext", "203.0.113.10")])
    made.add_route((0, 0), "ext")
    for line in lines:
        assert made.ipfw(line.split())[0] == 0
    return made


def test_a_packet_of_another_flow_is_refused_by_the_model() -> None:
    model = host(CONFIG, "add 33 nat 1001 ip from me to any out")
    with pytest.raises(NotModelledError, match="an instance for another flow"):
        model.send(bytes(build.tcp(Endpoint(G1.address, 40001), V1, flags=TCP_ACK, sequence=1)))


@pytest.mark.parametrize(
    "words", ["reverse", "reverse same_ports", "reverse redirect_port tcp 203.0.113.1:8080 240.0.1.1:80"]
)
def test_other_uses_of_reverse_are_refused_by_the_model(words: str) -> None:
    model = host(f"nat 1001 config ip 240.0.1.1 {words}", "add 33 nat 1001 ip from me to any out")
    with pytest.raises(NotModelledError):
        model.send(bytes(build.tcp(G1, V1, flags=TCP_ACK, sequence=1)))


def test_missing_does_not_stand_for_a_table_of_another_type() -> None:
    model = host("table natf_vo create type addr")
    create = "table natf_vo create type flow:src-ip,proto,src-port,dst-ip,dst-port valtype nat missing"
    with pytest.raises(NotModelledError):
        model.ipfw(create.split())
