"""Which router is asked, and when a flow goes to G2 itself [4]: never one known to speak NAT-f, never past a key."""

from __future__ import annotations

import dpkt
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.keys import Key
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import message

KEY = Key(b"keyident", b"k" * 32)
DOMAINS = ("home.example.net",)
THIRD = parse_address("203.0.113.3")


def heads(bench) -> list[tuple[bytes, int]]:
    """Where the packets sent so far go."""
    return [(ip.dst, ip.data.dport) for ip in map(dpkt.ip.IP, bench.sent)]


def asked(bench) -> list[bytes]:
    """Routers in the order of the requests, repetitions left out."""
    routers = [router for _, router, _ in bench.asked]
    return [router for place, router in enumerate(routers) if place == 0 or routers[place - 1] != router]


# A host that is no NAT-f router.


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_a_mirrored_request_means_the_host_itself(bench, udp: bool) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual) if udp else bench.syn(virtual))
    bench.mirror()
    assert heads(bench) == [(bench.G2, 5000 if udp else 80)]
    assert bench.count("control.used.mirror") == 1
    assert [entry.direct for entry in bench.core.vat] == [True]
    assert not bench.core.peers.speaks_natf(bench.G2)


def test_a_direct_flow_is_translated_back_and_never_renegotiated(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.mirror()
    bench.come(bench.udp_back(m=5000))
    assert dpkt.ip.IP(bench.sent[-1]).src == virtual
    for _ in range(20):
        bench.wait(20)
        bench.out(bench.udp(virtual))
    assert len(bench.asked) == 1
    assert len(bench.core.vat) == 1


def test_a_direct_flow_has_a_lifetime_of_its_own(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.mirror()
    bench.wait(299)
    assert len(bench.core.vat) == 1
    bench.wait(2)
    assert len(bench.core.vat) == 0


def test_a_router_that_spoke_natf_is_never_taken_for_the_host(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.map()
    bench.sent.clear()
    bench.out(bench.syn(virtual, s=40001))
    bench.mirror()
    assert bench.count("control.ignored.mirror_of_peer") == 1
    bench.wait(4.0)
    assert bench.sent == []
    assert bench.count("out.drop.silent") == 1


@pytest.mark.parametrize("how", ["refuse", "challenge"])
def test_whatever_it_said_it_spoke_natf(bench, how: str) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.refuse() if how == "refuse" else bench.challenge(b"cookie")
    bench.out(bench.syn(virtual, s=40001))
    bench.mirror()
    assert bench.count("control.ignored.mirror_of_peer") == 1


def test_its_daemon_may_come_back_within_the_four_seconds(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.map()
    bench.out(bench.syn(virtual, s=40001))
    bench.mirror()
    bench.wait(1.0)
    bench.map(61001)
    assert heads(bench) == [(bench.G2, 61000), (bench.G2, 61001)]


def test_a_key_is_never_got_past_by_mirroring(make_bench) -> None:
    """The mirrored request carries our own MAC, which is right."""
    bench = make_bench(EnConfig(DOMAINS, keys={"home.example.net": KEY}, on_silence="direct"))
    bench.out(bench.syn(bench.learn()))
    bench.mirror()
    assert bench.count("control.ignored.mirror_of_peer") == 1
    bench.wait(4.0)
    assert bench.sent == []
    assert bench.count("out.drop.silent") == len(bench.told) == 1


# Silence.


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_a_silent_host_is_reached_itself_if_so_configured(make_bench, udp: bool) -> None:
    bench = make_bench(EnConfig(DOMAINS, on_silence="direct"))
    virtual = bench.learn()
    bench.out(bench.udp(virtual) if udp else bench.syn(virtual))
    bench.wait(4.0)
    assert heads(bench) == [(bench.G2, 5000 if udp else 80)]
    assert bench.count("negotiation.silent") == 1
    assert bench.told == []


def test_a_silent_router_that_spoke_natf_is_unreachable_even_so(make_bench) -> None:
    bench = make_bench(EnConfig(DOMAINS, on_silence="direct"))
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.map()
    bench.out(bench.syn(virtual, s=40001))
    bench.wait(4.0)
    assert heads(bench) == [(bench.G2, 61000)]
    assert len(bench.told) == 1


# Several routers of one name.


def test_the_next_router_is_asked_when_one_is_silent(bench) -> None:
    bench.out(bench.syn(bench.learn("alice", bench.G2, bench.OTHER, THIRD)))
    bench.wait(4.0)
    assert asked(bench) == [bench.G2, bench.OTHER]
    bench.wait(4.0)
    assert asked(bench) == [bench.G2, bench.OTHER, THIRD]
    bench.map(61000)
    assert heads(bench) == [(THIRD, 61000)]
    assert bench.count("negotiation.silent") == 2
    assert bench.count("negotiation.started") == 1
    assert bench.told == []


def test_when_all_are_silent_the_program_is_told_once(bench) -> None:
    bench.out(bench.syn(bench.learn("alice", bench.G2, bench.OTHER)))
    bench.wait(7.9)
    assert bench.told == []
    bench.wait(0.1)
    assert len(bench.told) == 1
    assert bench.count("out.drop.silent") == 1
    assert bench.count("negotiation.silent") == 2


def test_a_late_answer_of_the_router_before_is_not_believed(bench) -> None:
    bench.out(bench.syn(bench.learn("alice", bench.G2, bench.OTHER)))
    bench.wait(4.1)
    bench.hear(lambda ident: message.Response(ident, Endpoint(bench.G2, 61000), 60), request=0)
    assert bench.count("control.ignored.unknown") == 1
    bench.map(61001)
    assert heads(bench) == [(bench.OTHER, 61001)]


def test_a_refusal_is_the_routers_word_and_no_other_is_asked(bench) -> None:
    bench.out(bench.syn(bench.learn("alice", bench.G2, bench.OTHER)))
    bench.refuse()
    bench.wait(10)
    assert asked(bench) == [bench.G2]


def test_a_renewal_asks_the_router_that_has_the_flow(bench) -> None:
    """Another one has another NAT: going there would cut the connection."""
    virtual = bench.learn("alice", bench.G2, bench.OTHER)
    bench.out(bench.udp(virtual))
    bench.wait(4.0)
    bench.map(61000)
    bench.asked.clear()
    bench.wait(31)
    bench.out(bench.udp(virtual))
    assert asked(bench) == [bench.OTHER]
    bench.wait(4.0)
    assert asked(bench) == [bench.OTHER]
    assert [entry.mapped for entry in bench.core.vat] == [Endpoint(bench.OTHER, 61000)]


def test_a_renewal_follows_the_name_to_its_new_address(bench) -> None:
    """Dynamic DNS: the router's address changed, and the name has left the old one."""
    virtual = bench.learn("alice", bench.G2)
    bench.out(bench.udp(virtual))
    bench.map(61000)
    bench.learn("alice", bench.OTHER)
    bench.wait(31)
    bench.out(bench.udp(virtual))
    assert asked(bench) == [bench.G2, bench.OTHER]
    bench.map(62000)
    assert bench.count("mapping.changed") == 1
    bench.out(bench.udp(virtual))
    assert heads(bench)[-1] == (bench.OTHER, 62000)


def test_round_robin_answers_do_not_change_the_router(bench) -> None:
    virtual = bench.learn("alice", bench.G2, bench.OTHER)
    assert bench.learn("alice", bench.OTHER, bench.G2) == virtual
    bench.out(bench.syn(virtual))
    assert asked(bench) == [bench.G2]
