"""The clients of the bench's peers, by their standards' words, and peers that run where their programs are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from natf_bsd.bench import bed, measure
from natf_bsd.bench.bed import Bed
from natf_bsd.bench.peers import direct, igd, pcp, tunnels, upnp
from natf_bsd.bench.peers.measure import _in_a_line, peers
from natf_bsd.errors import NatfError, WireError

NONCE = bytes(range(12))


def test_a_map_request_is_what_rfc_6887_has_in_11_1() -> None:
    data = pcp.request("192.168.0.2", 9000, 9100, NONCE, 3600)
    assert (
        data.hex()
        == (
            "02010000" + "00000e10" + "00000000000000000000ffffc0a80002"  # version, opcode MAP, lifetime, client
            "000102030405060708090a0b" + "06000000" + "2328238c"  # nonce, TCP, internal and suggested external port
            "00000000000000000000ffff00000000"
        )
    )


def map_response(result: int = 0, nonce: bytes = NONCE) -> bytes:
    body = nonce + bytes.fromhex("06000000" + "2328238d" + "00000000000000000000ffffcb007101")
    return bytes([2, 0x81, 0, result]) + bytes(20) + body


def test_a_map_response_gives_the_external_port() -> None:
    assert pcp.answer(map_response(), NONCE) == 9101


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (map_response(result=2), "result 2"),
        (map_response(nonce=bytes(12)), "another request"),
        (map_response()[:40], "no answer"),
        (b"\x02\x01" + map_response()[2:], "no answer"),
    ],
)
def test_whatever_else_comes_is_no_mapping(data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        pcp.answer(data, NONCE)


DESCRIPTION = b"""<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType><controlURL>/other</controlURL>
</service><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<controlURL>/ctl/IPConn</controlURL></service></serviceList></device></root>"""


def test_the_service_that_maps_ports_is_found_in_the_description() -> None:
    assert upnp.control_path(DESCRIPTION) == "/ctl/IPConn"
    with pytest.raises(WireError, match="WANIPConnection:1"):
        upnp.control_path(DESCRIPTION.replace(b"WANIPConnection:1", b"WANIPConnection:2"))


def test_an_action_has_its_arguments_in_order() -> None:
    text = upnp.envelope("AddPortMapping", 9100, NewInternalPort=9000).decode()
    names = [part.partition(">")[0] for part in text.split("<New")[1:]]
    assert names == ["RemoteHost", "ExternalPort", "Protocol", "InternalPort"]
    assert "<NewExternalPort>9100</NewExternalPort>" in text


@pytest.fixture(scope="module")
def ground() -> Iterator[Bed]:
    with bed.made(instance="peers") as ground:
        yield ground


TINY = measure.Effort(pairs=1, rounds=5, turns=2, seconds=0.05, fresh=1, entries=100)


@pytest.mark.lab
@pytest.mark.linux("a port forward of netfilter to compare with")
def test_a_peer_is_measured_beside_natf_and_leaves_nothing(ground: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> tuple[list[str], list[str]]:
        routes = ground.run("en", "ip", "route").splitlines()
        return [line for line in routes if "proto 78" not in line], rules(ground.run("router", "iptables-save"))

    before = state()
    monkeypatch.setattr("natf_bsd.bench.peers.measure.ALL", (direct.PEER, tunnels.IPIP))
    natf, without, *rest = peers(ground, TINY, str)
    assert natf["name"] == "NAT-f"
    assert len(natf["added_by_pair"]) == len(without["natf_by_pair"]) == TINY.pairs
    assert min(natf["first_byte"].values()) > 0
    assert {"signalling", "first_byte", "round_trip", "streams"} <= without.keys()
    assert all(row["ratio"] > 0 for row in without["streams"])
    assert "ipip" in rest[0].get("not_run", "ipip")
    assert state() == before


def rules(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith("-A")]


@pytest.mark.lab
@pytest.mark.linux("miniupnpd's rules are netfilter's")
@pytest.mark.skipif(shutil.which("miniupnpd") is None, reason="miniupnpd is not installed (make bench-peers)")
@pytest.mark.parametrize("peer", [igd.PCP, igd.UPNP], ids=["pcp", "upnp"])
def test_a_mapping_leads_to_alice(ground: Bed, peer: object) -> None:
    with peer.run(ground) as reach:  # type: ignore[attr-defined]
        assert len(ground.client("setup", 2, reach.target)) == 2
        assert reach.signalling() > 0


@pytest.mark.lab
@pytest.mark.linux("a port forward of netfilter to compare with")
def test_a_peer_whose_program_is_missing_says_which(ground: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with (
        pytest.raises(NatfError, match=r"miniupnpd \(Debian package miniupnpd\).*make bench-peers"),
        igd.PCP.run(ground),
    ):
        pass


def test_why_a_peer_did_not_run_is_one_line_of_text() -> None:
    assert _in_a_line("en-turn: Traceback\n\0\x1b[1m  timed out\n") == "en-turn: Traceback [1m timed out"
    assert len(_in_a_line("x" * 1000)) == 300
