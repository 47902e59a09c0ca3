"""When a flow that has its mapping asks for it again, and what comes of the answer (DESIGN.md section 4)."""

from __future__ import annotations

import dpkt
import pytest

from natf_bsd.en.core import DOUBT_AFTER
from natf_bsd.wire import build, message, packet

ACK, SYN, FIN, RST = packet.TCP_ACK, packet.TCP_SYN, packet.TCP_FIN, packet.TCP_RST


def udp_flow(bench, lifetime: int = 60) -> bytes:
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.map(61000, lifetime)
    bench.come(bench.udp_back())
    bench.asked.clear()
    return virtual


def tcp_flow(bench) -> bytes:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.map(61000, 86400)
    bench.come(bench.tcp_back(SYN | ACK))
    bench.asked.clear()
    return virtual


def unreachable_about_flow(bench, virtual: bytes, source: bytes | None = None, *, udp: bool = True) -> bytes:
    """What G2 says of the flow's packets when it has forgotten the mapping."""
    before = len(bench.sent)
    bench.out(bench.udp(virtual) if udp else bench.tcp(virtual, ACK))
    on_the_wire = bench.sent[before]
    return bytes(build.unreachable_for(on_the_wire, code=3, source=source or bench.G2))


@pytest.mark.parametrize(("lifetime", "due"), [(60, 30), (300, 30), (40, 20)])
def test_udp_in_use_asks_every_thirty_seconds_or_half_the_lifetime(bench, lifetime: int, due: int) -> None:
    virtual = udp_flow(bench, lifetime)
    for second in range(3 * due):
        bench.wait(1)
        bench.out(bench.udp(virtual))
        bench.come(bench.udp_back())
        if second + 1 in (due, 2 * due, 3 * due):
            bench.map(61000, lifetime)
    assert [when - 100 for when, _, _ in bench.asked] == [due, 2 * due, 3 * due]
    assert bench.count("negotiation.renewals") == 3


def test_udp_that_only_comes_in_asks_too(bench) -> None:
    """A camera's stream: its mapping may be killed in use by libalias's clock (FREEBSD.md 4.5)."""
    udp_flow(bench)
    for _ in range(29):
        bench.wait(1)
        bench.come(bench.udp_back())
    assert bench.asked == []
    bench.wait(1)
    bench.come(bench.udp_back())
    assert len(bench.asked) == 1
    assert bench.count("in.sent.translated") == 31


def test_udp_out_of_use_does_not_ask(bench) -> None:
    udp_flow(bench)
    bench.wait(59)
    assert bench.asked == []


def test_the_packet_that_asks_goes_on_at_once(bench) -> None:
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.sent.clear()
    bench.out(bench.udp(virtual, b"payload"))
    assert dpkt.ip.IP(bench.sent[0]).data.data == b"payload"
    assert len(bench.core.held) == 0


def test_while_a_renewal_runs_packets_go_on_and_no_second_one_starts(bench) -> None:
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.sent.clear()
    for _ in range(5):
        bench.out(bench.udp(virtual))
    assert (len(bench.asked), len(bench.sent)) == (1, 5)


def test_a_connection_in_use_both_ways_does_not_ask(bench) -> None:
    virtual = tcp_flow(bench)
    for _ in range(100):
        bench.wait(10)
        bench.out(bench.tcp(virtual, ACK))
        bench.come(bench.tcp_back(ACK))
    assert bench.asked == []


@pytest.mark.parametrize("udp", [True, False], ids=["UDP", "TCP"])
def test_a_flow_that_falls_silent_one_way_asks(bench, udp: bool) -> None:
    virtual = udp_flow(bench) if udp else tcp_flow(bench)
    for _ in range(6):
        assert bench.asked == []
        bench.out(bench.udp(virtual) if udp else bench.tcp(virtual, ACK))
        bench.wait(1)
    bench.out(bench.udp(virtual) if udp else bench.tcp(virtual, ACK))
    assert bench.count("negotiation.renewals") == 1


def test_a_syn_retransmitted_without_an_answer_asks(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.map()
    bench.wait(1)
    bench.asked.clear()
    bench.out(bench.syn(virtual))
    assert bench.count("negotiation.renewals") == 1
    assert len(bench.sent) == 2
    assert bench.asked == [], "not before this one has had time to be answered"
    bench.wait(0.021)
    assert len(bench.asked) == 1
    bench.map(61001)
    assert bench.core.vat.by_out(next(iter(bench.core.vat)).out_key).mapped.port == 61001


def test_a_retransmitted_syn_that_is_answered_does_not_ask(bench) -> None:
    """A mapping made anew would come when the connection is in use, or over."""
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.map()
    bench.wait(1)
    bench.asked.clear()
    bench.out(bench.syn(virtual))
    bench.come(bench.tcp_back(SYN | ACK))
    bench.wait(5)
    assert bench.asked == []
    assert bench.count("negotiation.called_off") == 1


def test_a_silent_connection_in_use_says_so_when_it_asks(bench) -> None:
    """Its router's NAT may look at TCP's state, and has to begin in the middle."""
    virtual = tcp_flow(bench)
    for _ in range(7):
        bench.out(bench.tcp(virtual, ACK))
        bench.wait(1)
    assert message.decode(bench.asked[-1][2].data).established
    bench.out(bench.syn(virtual, s=40009))
    assert not message.decode(bench.asked[-1][2].data).established


def test_a_connection_whose_entry_is_gone_says_so_when_it_asks(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.tcp(virtual, ACK))
    assert message.decode(bench.asked[-1][2].data).established


def test_a_flow_whose_name_has_moved_ends_when_the_new_router_does_not_take_it(bench) -> None:
    virtual = tcp_flow(bench)
    bench.learn("alice", bench.OTHER)
    for _ in range(7):
        bench.out(bench.tcp(virtual, ACK))
        bench.wait(1)
    assert bench.asked[-1][1] == bench.OTHER
    bench.refuse(message.Status.OUT_OF_RESOURCES)
    assert len(bench.core.vat) == 0
    bench.out(bench.tcp(virtual, ACK, acknowledgement=5))
    assert packet.tcp_flags(bytearray(bench.told[-1])) & packet.TCP_RST


def test_a_syn_answered_does_not_ask(bench) -> None:
    virtual = tcp_flow(bench)
    bench.out(bench.tcp(virtual, ACK))
    bench.wait(1)
    bench.out(bench.tcp(virtual, ACK))
    assert bench.asked == []


def test_a_closed_port_at_the_router_asks_but_not_right_after_a_negotiation(bench) -> None:
    """The inside host's own closed port says the same: once per five seconds is enough."""
    virtual = udp_flow(bench)
    bench.come(unreachable_about_flow(bench, virtual))
    assert bench.asked == []
    bench.wait(DOUBT_AFTER)
    bench.come(unreachable_about_flow(bench, virtual))
    assert bench.count("negotiation.renewals") == 1
    bench.map(61000)
    bench.come(unreachable_about_flow(bench, virtual))
    assert bench.count("negotiation.renewals") == 1


def test_an_error_of_a_hop_on_the_way_does_not_ask(bench) -> None:
    virtual = udp_flow(bench)
    bench.wait(DOUBT_AFTER)
    bench.come(unreachable_about_flow(bench, virtual, bench.OTHER))
    assert bench.asked == []


def test_a_closing_connection_does_not_ask(bench) -> None:
    virtual = tcp_flow(bench)
    bench.come(bench.tcp_back(FIN | ACK))
    for _ in range(8):
        bench.out(bench.tcp(virtual, FIN | ACK))
        bench.wait(1)
    assert bench.asked == []


def test_another_port_in_the_answer_is_taken_both_ways(bench) -> None:
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.out(bench.udp(virtual))
    bench.map(62000)
    assert bench.count("mapping.changed") == 1
    bench.out(bench.udp(virtual))
    assert dpkt.ip.IP(bench.sent[-1]).data.dport == 62000
    bench.come(bench.udp_back(m=62000))
    assert dpkt.ip.IP(bench.sent[-1]).src == virtual
    bench.come(bench.udp_back(m=61000))
    assert bench.count("in.drop.no_flow") == 1
    assert bench.saved[-1]["mapped"] == "203.0.113.1:62000"


def test_same_port_in_the_answer_is_no_change(bench) -> None:
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.out(bench.udp(virtual))
    bench.map(61000)
    assert bench.count("mapping.changed") == 0
    assert len(bench.core.vat) == 1


def test_an_unanswered_renewal_leaves_the_flow_and_waits_before_the_next(bench) -> None:
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.out(bench.udp(virtual))
    bench.wait(4.0)
    assert bench.count("negotiation.silent") == 1
    tries = len(bench.asked)
    bench.out(bench.udp(virtual))
    assert (len(bench.core.vat), len(bench.asked), bench.told) == (1, tries, [])
    bench.wait(DOUBT_AFTER)
    bench.out(bench.udp(virtual))
    assert len(bench.asked) == tries + 1


def test_a_mirrored_renewal_does_not_turn_the_flow_direct(bench) -> None:
    """The router's daemon is away; its NAT still has the mapping."""
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.out(bench.udp(virtual))
    bench.mirror()
    bench.out(bench.udp(virtual))
    assert dpkt.ip.IP(bench.sent[-1]).data.dport == 61000
    assert bench.count("control.ignored.mirror_of_peer") == 1


@pytest.mark.parametrize("udp", [True, False], ids=["UDP", "TCP"])
def test_a_refused_renewal_ends_the_flow_and_its_program_is_told_at_the_next_packet(bench, udp: bool) -> None:
    virtual = udp_flow(bench) if udp else tcp_flow(bench)
    for _ in range(6):
        bench.out(bench.udp(virtual) if udp else bench.tcp(virtual, ACK))
        bench.wait(1)
    bench.out(bench.udp(virtual) if udp else bench.tcp(virtual, ACK))
    bench.refuse(message.Status.DENIED)
    assert len(bench.core.vat) == 0
    bench.out(bench.udp(virtual) if udp else bench.tcp(virtual, ACK))
    assert bench.count("out.drop.refused") == len(bench.told) == 1


@pytest.mark.parametrize("status", ["OUT_OF_RESOURCES", "UNSUPPORTED", "MALFORMED"])
def test_a_router_that_just_cannot_renew_does_not_end_the_flow(bench, status: str) -> None:
    virtual = udp_flow(bench)
    bench.wait(30)
    bench.out(bench.udp(virtual))
    bench.refuse(message.Status[status])
    bench.out(bench.udp(virtual))
    assert bench.told == []
    assert dpkt.ip.IP(bench.sent[-1]).data.dport == 61000
    assert len(bench.asked) == 1
    bench.wait(DOUBT_AFTER)
    bench.out(bench.udp(virtual))
    assert len(bench.asked) == 2


def test_a_flow_that_ends_while_it_is_renewed_is_not_made_anew(bench) -> None:
    virtual = tcp_flow(bench)
    for _ in range(6):
        bench.out(bench.tcp(virtual, ACK))
        bench.wait(1)
    assert bench.count("negotiation.renewals") == 1
    bench.come(bench.tcp_back(RST))
    bench.wait(1.1)
    assert len(bench.core.vat) == 0
    bench.map(61000)
    assert len(bench.core.vat) == 0
    assert bench.core.names.by_virtual(virtual).flows == 0
