"""What routers say, or others in their name: every counter of `control`, and what the program gets for it."""

from __future__ import annotations

import dpkt
import pytest

from natf_bsd.config import EnConfig
from natf_bsd.en import report
from natf_bsd.en.refusals import REMEMBERED_FOR, Reaction, Refusals
from natf_bsd.keys import Key
from natf_bsd.types import Endpoint
from natf_bsd.wire import icmp, message, packet

KEY = Key(b"keyident", b"k" * 32)
KEYED = EnConfig(("home.example.net",), keys={"home.example.net": KEY})


def signed(bench) -> tuple[bytes, bytes, int]:
    return KEY.ident, KEY.secret, int(bench.now * 1000)


def unreachable(data: bytes) -> dpkt.icmp.ICMP:
    seen = dpkt.ip.IP(data)
    assert seen.p == dpkt.ip.IP_PROTO_ICMP
    assert icmp.ones_sum(data[20:]) == 0xFFFF
    assert seen.data.type == dpkt.icmp.ICMP_UNREACH
    return seen


# Ignored.


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (b"", "malformed"),
        (bytes(7), "malformed"),
        (icmp.encode_echo(icmp.Echo(0, 1, 1, b"abc"))[:-1] + b"?", "malformed"),
        (icmp.encode_echo(icmp.Echo(0, 1, 1, b"NATf\x01 and then rubbish")), "malformed"),
        (icmp.encode_echo(icmp.Echo(0, 1, 1, b"somebody's ping")), "not_natf"),
        (icmp.encode_echo(icmp.Echo(8, 1, 1, b"NATf" + bytes(60))), "not_natf"),
        (
            icmp.encode_echo(icmp.Echo(0, 1, 1, message.encode(message.CookieChallenge(b"whatever", b"c")))),
            "unknown",
        ),
    ],
    ids=["nothing", "short", "checksum", "rubbish", "ping", "request", "unknown transaction"],
)
def test_answers_to_nothing_we_asked_are_ignored(bench, data: bytes, counter: str) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.control(bench.G2, data)
    assert bench.count(f"control.ignored.{counter}") == 1
    assert len(bench.core.held) == 1


def test_an_answer_from_another_address_is_forged(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.map(source=bench.OTHER)
    assert bench.count("control.ignored.wrong_source") == 1
    assert bench.sent == []


def test_an_answer_with_another_identifier_is_forged(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.map(ident=bench.asked[0][2].ident ^ 1)
    assert bench.count("control.ignored.wrong_source") == 1


def test_a_mapping_at_another_address_is_not_taken(bench) -> None:
    """It would let a router point our programs at hosts of our own network."""
    bench.out(bench.syn(bench.learn()))
    bench.hear(lambda ident: message.Response(ident, Endpoint(bench.OTHER, 22), 60))
    assert bench.count("control.ignored.foreign_mapping") == 1
    assert (bench.sent, len(bench.core.vat), len(bench.core.held)) == ([], 0, 1)
    bench.map()
    assert len(bench.sent) == 1


def test_a_repeated_answer_changes_nothing(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.map(61000)
    bench.map(61001)
    assert bench.count("control.ignored.unknown") == 1
    assert [entry.mapped.port for entry in bench.core.vat] == [61000]


def test_an_answer_to_an_earlier_try_is_good(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.wait(0.3)
    assert len(bench.asked) == 2
    bench.map(request=0)
    assert len(bench.sent) == 1
    assert [peer.smoothed_rtt for peer in bench.core.peers] == pytest.approx([0.3])


# Cookies.


def test_a_cookie_is_sent_back_and_the_flow_then_mapped(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.challenge(b"prove it")
    assert [message.decode(echo.data).cookie for _, _, echo in bench.asked] == [b"", b"prove it"]
    assert bench.asked[0][2].data[8:16] == bench.asked[1][2].data[8:16]
    bench.map()
    assert len(bench.sent) == 1
    assert bench.count("control.used.challenge") == bench.count("control.used.response") == 1


def test_cookies_without_end_are_ignored_and_the_program_told_in_time(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    for number in range(10):
        bench.challenge(b"prove it" + bytes([number]))
    assert bench.count("control.used.challenge") == 2
    assert bench.count("control.ignored.challenges") == 8
    bench.wait(4.0)
    assert bench.count("out.drop.silent") == 1


def test_a_cookie_that_comes_twice_is_answered_once(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.challenge(b"prove it", request=0)
    bench.challenge(b"prove it", request=0)
    assert len(bench.asked) == 2
    assert bench.count("control.ignored.challenges") == 1


# Refusals.

REFUSING = ["DENIED", "NO_SUCH_HOST", "KEY_REQUIRED", "BAD_KEY"]
UNABLE = ["UNSUPPORTED", "OUT_OF_RESOURCES", "MALFORMED"]


@pytest.mark.parametrize("status", REFUSING)
def test_a_refused_connection_gets_a_reset(bench, status: str) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual, sequence=7000))
    bench.refuse(message.Status[status])
    assert len(bench.told) == len(bench.dropped) == 1
    seen = dpkt.ip.IP(bench.told[0])
    assert (seen.src, seen.data.sport, seen.dst, seen.data.dport) == (virtual, 80, bench.G1, 40000)
    assert seen.data.flags == dpkt.tcp.TH_RST | dpkt.tcp.TH_ACK
    assert (seen.data.seq, seen.data.ack) == (0, 7001)
    assert bench.count("out.drop.refused") == bench.count("control.used.refusal") == 1


def test_a_refused_segment_in_mid_connection_gets_the_reset_its_socket_takes(bench) -> None:
    bench.out(bench.tcp(bench.learn(), packet.TCP_ACK, sequence=7000, acknowledgement=9000, payload=b"abc"))
    bench.refuse()
    seen = dpkt.ip.IP(bench.told[0])
    assert (seen.data.flags, seen.data.seq) == (dpkt.tcp.TH_RST, 9000)


@pytest.mark.parametrize("status", REFUSING)
def test_a_refused_datagram_gets_port_unreachable(bench, status: str) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.refuse(message.Status[status])
    seen = unreachable(bench.told[0])
    assert (seen.src, seen.dst) == (virtual, bench.G1)
    assert seen.data.code == dpkt.icmp.ICMP_UNREACH_PORT
    quoted = seen.data.data.data
    assert (quoted.dst, quoted.data.dport, quoted.data.sport) == (virtual, 5000, 40000)


@pytest.mark.parametrize("status", UNABLE)
@pytest.mark.parametrize(
    ("udp", "code"), [(False, dpkt.icmp.ICMP_UNREACH_HOST), (True, dpkt.icmp.ICMP_UNREACH_HOST_PROHIB)]
)
def test_a_router_that_cannot_is_unreachable(bench, status: str, udp: bool, code: int) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual) if udp else bench.syn(virtual))
    bench.refuse(message.Status[status])
    seen = unreachable(bench.told[0])
    assert (seen.src, seen.dst, seen.data.code) == (virtual, bench.G1, code)
    quoted = seen.data.data.data
    assert (quoted.src, quoted.data.sport, quoted.dst) == (bench.G1, 40000, virtual)


def test_where_tcp_does_not_heed_unreachable_it_hears_time_exceeded(make_bench) -> None:
    """FreeBSD: both mean EHOSTUNREACH, and only this one ends an attempt to connect. UDP would take "prohibited" for a
    refusal."""
    bench = make_bench(heeds_unreachable=False)
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.refuse(message.Status.OUT_OF_RESOURCES)
    seen = dpkt.ip.IP(bench.told[0])
    assert (seen.src, seen.data.type, seen.data.code) == (virtual, dpkt.icmp.ICMP_TIMEXCEED, 0)
    assert seen.data.data.data.data.dport == 80
    bench.out(bench.udp(virtual))
    bench.refuse(message.Status.OUT_OF_RESOURCES)
    assert unreachable(bench.told[1]).data.code == dpkt.icmp.ICMP_UNREACH_HOST


def test_one_flow_gets_one_error_however_much_it_had_sent(bench) -> None:
    virtual = bench.learn()
    for number in range(3):
        bench.out(bench.udp(virtual, bytes([number])))
    bench.refuse()
    assert (len(bench.told), len(bench.dropped)) == (1, 3)
    assert bench.count("out.drop.refused") == 3


def test_a_refusal_is_remembered_for_a_moment(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.refuse()
    bench.wait(REMEMBERED_FOR - 0.1)
    bench.out(bench.syn(virtual))
    assert (len(bench.told), len(bench.asked)) == (2, 1)
    bench.out(bench.syn(virtual, s=40001))
    assert bench.count("negotiation.started") == 2
    bench.wait(0.2)
    bench.out(bench.syn(virtual))
    assert bench.count("negotiation.started") == 3


def test_why_a_router_refused_is_told_in_its_own_words(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    refusal = message.Refused(bench.asked[0][2].data[8:16], message.Status.UNSUPPORTED, "another NAT\x1b[2J")
    bench.hear(message.encode(refusal))
    [row] = report.tables(bench.core, bench.now, 10)["heard"]
    assert row == "alice.home.example.net by 203.0.113.1: unsupported 'another NAT\\x1b[2J'"


def test_a_router_of_another_version_is_unreachable_at_once(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    answer = bytearray(message.encode(message.Refused(bench.asked[0][2].data[8:16], message.Status.UNSUPPORTED)))
    answer[4] = 2
    bench.hear(bytes(answer))
    assert unreachable(bench.told[0]).data.code == dpkt.icmp.ICMP_UNREACH_HOST


# Keys.


def test_with_a_key_only_signed_answers_count(make_bench) -> None:
    bench = make_bench(KEYED)
    bench.out(bench.syn(bench.learn()))
    bench.map()
    bench.refuse()
    bench.challenge(b"prove it")
    bench.map(key=(KEY.ident, b"x" * 32, int(bench.now * 1000)))
    bench.map(key=(b"otherkey", KEY.secret, int(bench.now * 1000)))
    bench.map(key=(KEY.ident, KEY.secret, int(bench.now * 1000) - 60_001))
    assert bench.count("control.ignored.unauthenticated") == 6
    assert (bench.sent, bench.told) == ([], [])
    bench.map(key=signed(bench))
    assert len(bench.sent) == 1


def test_with_a_key_a_refusal_counts_when_signed(make_bench) -> None:
    bench = make_bench(KEYED)
    bench.out(bench.syn(bench.learn()))
    bench.refuse(key=signed(bench))
    assert bench.count("out.drop.refused") == 1


def test_with_a_key_another_version_is_not_believed_and_does_no_harm(make_bench) -> None:
    bench = make_bench(KEYED)
    bench.out(bench.syn(bench.learn()))
    answer = bytearray(message.encode(message.Refused(bench.asked[0][2].data[8:16], message.Status.UNSUPPORTED)))
    answer[4] = 2
    bench.hear(bytes(answer))
    assert bench.count("control.ignored.unauthenticated") == 1


def test_requests_are_signed_with_the_time_of_day(make_bench) -> None:
    bench = make_bench(KEYED)
    bench.core.epoch_offset = 1_700_000_000.0
    bench.out(bench.syn(bench.learn()))
    data = bench.asked[0][2].data
    option = data[message.message_length(data) - 34 : message.message_length(data)]
    assert option[2:10] == KEY.ident
    assert int.from_bytes(option[10:18], "big") == 1_700_000_100_000
    other = make_bench(EnConfig(("home.example.net", "other.example.net"), keys={"other.example.net": KEY}))
    other.out(other.syn(other.learn()))
    assert message.message_length(other.asked[0][2].data) < 100


# Silence.


@pytest.mark.parametrize("udp", [False, True])
def test_a_silent_router_is_unreachable_after_five_tries_and_four_seconds(bench, udp: bool) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual) if udp else bench.syn(virtual))
    bench.wait(3.999)
    assert bench.told == []
    bench.wait(0.001)
    assert [when - 100.0 for when, _, _ in bench.asked] == pytest.approx([0, 0.25, 0.75, 1.75, 3.75])
    seen = unreachable(bench.told[0])
    assert seen.data.code == (dpkt.icmp.ICMP_UNREACH_HOST_PROHIB if udp else dpkt.icmp.ICMP_UNREACH_HOST)
    assert bench.count("out.drop.silent") == bench.count("negotiation.silent") == 1
    assert bench.count("request.retransmitted") == 4
    assert list(bench.core.negotiations()) == []


def test_a_measured_round_trip_shortens_the_first_wait(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.wait(0.05)
    bench.map()
    bench.out(bench.syn(virtual, s=40001))
    bench.wait(0.11)
    times = [when for when, _, _ in bench.asked]
    assert times[2] - times[1] == pytest.approx(0.1)


def test_late_answer_after_silence_is_ignored(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    bench.wait(4.1)
    bench.map()
    assert bench.count("control.ignored.unknown") == 1
    assert bench.sent == []


def test_after_silence_the_next_packet_asks_again(bench) -> None:
    virtual = bench.learn()
    bench.out(bench.syn(virtual))
    bench.wait(4.1)
    bench.out(bench.syn(virtual))
    bench.map()
    assert len(bench.sent) == 1


def test_an_answer_with_a_number_we_never_used_is_good_but_measures_nothing(bench) -> None:
    bench.out(bench.syn(bench.learn()))
    _, router, echo = bench.asked[0]
    answer = message.encode(message.Response(echo.data[8:16], Endpoint(router, 61000), 60))
    bench.control(router, icmp.encode_echo(icmp.Echo(icmp.ECHO_REPLY, echo.ident, 9, answer)))
    assert len(bench.sent) == 1
    assert list(bench.core.peers) == []


def test_without_room_to_remember_a_refusal_the_router_is_asked_again() -> None:
    refusals = Refusals(maximum=1)
    refusals.remember(b"one", Reaction.REFUSED, 0.0)
    refusals.remember(b"two", Reaction.UNREACHABLE, 0.0)
    refusals.remember(b"one", Reaction.UNREACHABLE, 1.0)
    assert (refusals.get(b"one"), refusals.get(b"two")) == (Reaction.REFUSED, None)
    refusals.expire(REMEMBERED_FOR)
    assert refusals.get(b"one") is None
