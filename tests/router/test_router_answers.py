"""What the router answers to whom: access control, statuses, and what it leaves to the kernel or drops."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.config import RouterConfig
from natf_bsd.effects import Inject
from natf_bsd.natd_bridge import pseudo
from natf_bsd.router.core import MAXIMUM_TEXT, RouterCore
from natf_bsd.tables import act
from natf_bsd.types import Direction, Endpoint, Flow, Packet, Protocol, parse_address
from natf_bsd.wire import build, message


def status(bench) -> message.Status:
    assert isinstance(bench.heard, message.Refused)
    return bench.heard.status


# The way to a mapping.


@pytest.mark.parametrize(("protocol", "lifetime"), [(Protocol.TCP, 86400), (Protocol.UDP, 60)])
def test_a_request_becomes_a_pseudo_packet_and_its_translation_the_answer(bench, protocol: int, lifetime: int) -> None:
    request = bench.ask("alice", protocol=protocol, d=5000)
    assert bench.answers == []
    assert len(bench.dropped) == 1
    forged = dpkt.ip.IP(bench.written[0])
    assert (forged.src, forged.data.sport) == (bench.ALICE, 5000)
    assert (forged.dst, forged.data.dport, forged.p) == (bench.G1, 40000, protocol)
    bench.translate(61000)
    assert bench.heard == message.Response(request.transaction, Endpoint(bench.G2, 61000), lifetime)
    assert (bench.answers[0].ident, bench.answers[0].sequence) == (77, 0)
    assert bench.count("mapping.made") == bench.count("request.accepted") == 1
    assert bench.core.pending == 0


@pytest.mark.parametrize("style", [pseudo.LIBALIAS_STYLE, pseudo.NETFILTER_STYLE])
def test_the_pseudo_packet_is_of_the_nats_style(make_bench, style: pseudo.PseudoStyle) -> None:
    bench = make_bench(style=style)
    bench.ask()
    forged = dpkt.ip.IP(bench.written[0])
    assert (forged.data.flags, forged.ttl, forged.id) == (style.tcp_flags, style.ttl, pseudo.PSEUDO_IDENT)


def test_two_hosts_are_told_apart_by_name_alone(bench) -> None:
    bench.ask("alice")
    bench.ask("bob")
    assert [dpkt.ip.IP(data).src for data in bench.written] == [bench.ALICE, bench.BOB]


def test_answers_find_their_requests_in_any_order(bench) -> None:
    first, second = bench.ask("alice"), bench.ask("bob")
    bench.translate(61001, 1)
    assert bench.heard == message.Response(second.transaction, Endpoint(bench.G2, 61001), 86400)
    bench.translate(61000, 0)
    assert bench.heard == message.Response(first.transaction, Endpoint(bench.G2, 61000), 86400)


def test_the_same_request_asked_again_later_is_answered_again(bench) -> None:
    request = bench.ask()
    bench.translate(61000)
    bench.send(message.encode(request))
    bench.translate(61000)
    assert [message.decode(echo.data) for echo in bench.answers] == [
        message.Response(request.transaction, Endpoint(bench.G2, 61000), 86400)
    ] * 2
    assert [echo.sequence for echo in bench.answers] == [0, 1]


# The access control table.


@pytest.mark.parametrize("host", ["eve", "mallory"])
def test_denied_and_unknown_look_the_same(bench, host: str) -> None:
    request = bench.ask(host)
    assert bench.heard == message.Refused(request.transaction, message.Status.DENIED)
    assert bench.written == []
    assert bench.count("request.answered.denied") == 1


def test_unknown_is_told_where_so_configured(make_bench) -> None:
    bench = make_bench(tell_unknown=True)
    bench.ask("mallory")
    assert status(bench) is message.Status.NO_SUCH_HOST
    bench.ask("eve")
    assert status(bench) is message.Status.DENIED
    assert bench.count("request.answered.no_such_host") == bench.count("request.answered.denied") == 1


@pytest.mark.parametrize(
    ("protocol", "port", "permitted"),
    [
        (Protocol.TCP, 80, True),
        (Protocol.TCP, 443, True),
        (Protocol.TCP, 81, False),
        (Protocol.TCP, 5005, False),
        (Protocol.UDP, 5000, True),
        (Protocol.UDP, 5010, True),
        (Protocol.UDP, 5011, False),
        (Protocol.UDP, 4999, False),
        (Protocol.UDP, 80, False),
    ],
)
def test_services_limit_protocol_and_port(bench, protocol: int, port: int, permitted: bool) -> None:
    bench.ask("bob", protocol=protocol, d=port)
    assert len(bench.written) == permitted
    assert bench.count("request.answered.denied") == (not permitted)


def test_a_new_table_is_in_force_at_once(bench) -> None:
    bench.ask("eve")
    bench.core.act = act.parse("eve 192.168.0.9 allow\n", "act")
    bench.ask("eve")
    assert dpkt.ip.IP(bench.written[0]).src == parse_address("192.168.0.9")
    bench.ask("alice")
    assert status(bench) is message.Status.DENIED


# Refused for what they are.


def test_an_external_node_behind_another_nat_is_told_so(bench) -> None:
    bench.ask(g1=parse_address("10.0.0.5"))
    assert status(bench) is message.Status.UNSUPPORTED
    assert bench.heard.text == "your address is 203.0.113.10 here: an external node behind another NAT"
    assert bench.count("request.answered.unsupported") == 1


@pytest.mark.parametrize("protocol", [0, 1, 132, 255])
def test_other_protocols_are_unsupported(bench, protocol: int) -> None:
    bench.ask(protocol=protocol)
    assert status(bench) is message.Status.UNSUPPORTED
    assert bench.written == []


@pytest.mark.parametrize("ports", [{"s": 0}, {"d": 0}])
def test_port_zero_is_malformed(bench, ports: dict[str, int]) -> None:
    bench.ask(**ports)
    assert status(bench) is message.Status.MALFORMED
    assert bench.written == []


def test_another_version_is_told_ours(bench) -> None:
    data = bytearray(message.encode(bench.request(transaction=b"transact")))
    data[4] = 9
    bench.send(bytes(data))
    assert bench.heard == message.Refused(
        b"transact", message.Status.UNSUPPORTED, "NAT-f protocol version 9, expected 1"
    )
    assert bench.answers[0].data[4] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:6] + b"\0\0" + data[8:],
        lambda data: data[:16] + b"\x63" + data[17:],
        lambda data: data[:5] + b"\x63" + data[6:],
        lambda data: data.replace(b"alice", b"al*ce"),
        lambda data: data.replace(b"alice", b"al\xffce"),
    ],
    ids=["length", "option", "type", "host", "not ASCII"],
)
def test_a_malformed_request_is_told_so(bench, spoil) -> None:
    bench.send(spoil(message.encode(bench.request(transaction=b"transact"))))
    assert status(bench) is message.Status.MALFORMED
    assert bench.heard.transaction == b"transact"
    assert bench.count("request.answered.malformed") == 1


@pytest.mark.parametrize(
    "answer",
    [
        message.Response(b"transact", Endpoint(bytes(4), 1), 1),
        message.CookieChallenge(b"transact", b"c"),
        message.Refused(b"transact", message.Status.DENIED),
    ],
)
def test_a_routers_words_get_no_answer(bench, answer: message.Message) -> None:
    bench.send(message.encode(answer))
    assert bench.answers == []
    assert bench.count("request.drop.not_a_request") == len(bench.dropped) == 1


def test_a_short_request_gets_no_answer(bench) -> None:
    bench.send(message.encode(bench.request()), pad=127)
    assert (bench.answers, bench.written) == ([], [])
    assert bench.count("request.drop.short") == 1
    bench.send(message.encode(bench.request()), pad=128)
    assert len(bench.written) == 1


@pytest.mark.parametrize("source", ["203.0.113.1", "127.0.0.1", "0.1.2.3", "224.0.0.1", "240.0.1.2", "255.255.255.255"])
def test_an_implausible_source_gets_no_answer(bench, source: str) -> None:
    address = parse_address(source)
    bench.send(message.encode(bench.request(g1=address)), source=address)
    assert (bench.answers, bench.written) == ([], [])
    assert bench.count("request.drop.implausible") == 1


# Not ours.


@pytest.mark.parametrize(
    "whole",
    [
        build.icmp_echo(
            bytes([1, 2, 3, 4]), bytes([203, 0, 113, 1]), reply=False, ident=1, sequence=1, payload=bytes(200)
        ),
        build.icmp_echo(bytes([1, 2, 3, 4]), bytes([203, 0, 113, 1]), reply=True, ident=1, sequence=1, payload=b"NATf"),
        build.icmp_echo(
            bytes([1, 2, 3, 4]), bytes([203, 0, 113, 1]), reply=False, ident=1, sequence=1, payload=b"NATf"
        )[:-1],
        build.udp(Endpoint(bytes([1, 2, 3, 4]), 1), Endpoint(bytes([203, 0, 113, 1]), 2), b"NATf"),
        b"",
        b"rubbish",
    ],
    ids=["ping", "reply", "cut", "UDP", "nothing", "rubbish"],
)
def test_an_ordinary_ping_is_given_back_to_the_kernel_untouched(bench, whole: bytes) -> None:
    bench.handle(whole)
    assert [bytes(passed.data) for passed in bench.passed] == [bytes(whole)]
    assert bench.count("request.passed") == 1


def test_a_request_with_a_wrong_checksum_is_left_to_the_kernel(bench) -> None:
    whole = build.icmp_echo(
        bench.G1, bench.G2, reply=False, ident=1, sequence=1, payload=message.pad(message.encode(bench.request()))
    )
    whole[22] ^= 1
    bench.handle(whole)
    assert bench.count("request.passed") == 1


# No amplification.


def test_the_longest_explanation_fits_the_smallest_request() -> None:
    longest = "your address is 255.255.255.255 here: an external node behind another NAT"
    assert len(longest) <= MAXIMUM_TEXT
    refusal = message.encode(message.Refused(bytes(8), message.Status.UNSUPPORTED, "x" * MAXIMUM_TEXT))
    assert len(refusal) + 34 == message.REQUEST_MINIMUM


@given(st.integers(0, 255), st.binary(max_size=120))
def test_whatever_a_request_says_its_answer_is_no_longer(number: int, rest: bytes) -> None:
    """Spoilt messages at the smallest size there is; explanations quote what they found."""
    core = RouterCore(RouterConfig(), act.parse("", "act"), pseudo.LIBALIAS_STYLE, lambda protocol: 60)
    head = message.HEADER.pack(message.MAGIC, 1, number % 6, 16 + len(rest), bytes(8))
    whole = build.icmp_echo(
        bytes([1, 2, 3, 4]), bytes([203, 0, 113, 1]), reply=False, ident=1, sequence=1, payload=message.pad(head + rest)
    )
    for effect in core.handle_request(Packet(whole, Direction.IN), 0.0):
        if isinstance(effect, Inject):
            assert len(effect.data) <= len(whole)
            message.decode(effect.data[28:])


def test_flow_of_a_request_is_what_the_nat_is_asked_for(bench) -> None:
    bench.ask("alice", s=1, d=65535)
    captured = pseudo.parse_captured(bench.written[0])
    assert captured.translated == Flow(Protocol.TCP, Endpoint(bench.ALICE, 65535), Endpoint(bench.G1, 1))
