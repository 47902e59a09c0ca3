"""What the replayed recordings do not show: system calls (errors.jsonl, load.jsonl), natd's clock, sets, refusals."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from natf_bsd.lab.ipfw_model import (
    AF_DIVERT,
    AF_INET,
    IPPROTO_DIVERT,
    SOCK_RAW,
    DivertAddress,
    Host,
    NotModelledError,
    interface,
)
from natf_bsd.lab.ipfw_model.sockets import SO_RCVBUF, SO_RERROR, SOL_SOCKET
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build

G1, G2, P1 = (parse_address(text) for text in ("203.0.113.10", "203.0.113.1", "192.168.0.2"))
V1 = parse_address("240.0.1.1")
OUT = DivertAddress(0).pack()


def router(now: Callable[[], float] = lambda: 0.0, **options: bool | int) -> Host:
    interfaces = [interface("epair0b", "203.0.113.1"), interface("epair1a", "192.168.0.1")]
    return Host(interfaces, forwarding=True, now=now, **options)  # type: ignore[arg-type]


def port(number: int) -> bytes:
    return bytes([16, 2]) + number.to_bytes(2, "big") + bytes(12)


def bound(host: Host, number: int) -> int:
    descriptor = host.sockets.socket(AF_DIVERT, SOCK_RAW, 0)
    host.sockets.bind(descriptor, port(number))
    return descriptor


def add(host: Host, rule: str) -> None:
    assert host.ipfw(["ipfw", "-q", "add", *rule.split()]) == (0, "", "")


def datagram(source: bytes, destination: bytes, size: int = 4) -> bytes:
    return bytes(build.udp(Endpoint(source, 5000), Endpoint(destination, 6000), bytes(size)))


def name_of(call: Callable[[], object]) -> str:
    with pytest.raises(OSError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((44, 1, 0), {}, "EPROTOTYPE"),
        ((2, 2, 258), {}, "EPROTONOSUPPORT"),
        ((44, 3, 0), {"is_root": False}, "EPERM"),
        ((44, 3, 0), {"has_divert": False}, "EAFNOSUPPORT"),
        ((44, 3, 0), {"release": 13}, "EAFNOSUPPORT"),
        ((2, 3, 258), {"release": 13, "has_divert": False}, "EPROTONOSUPPORT"),
    ],
)
def test_socket_is_refused_as_the_release_does(
    arguments: tuple[int, int, int], options: dict[str, bool | int], expected: str
) -> None:
    assert name_of(lambda: router(**options).sockets.socket(*arguments)) == expected


def test_the_old_form_works_and_14_complains_about_it() -> None:
    host = router()
    host.sockets.socket(AF_INET, SOCK_RAW, IPPROTO_DIVERT)
    assert len(host.sockets.kernel_messages) == 1


def test_bind_takes_a_free_port_in_network_order_and_may_be_repeated() -> None:
    host = router()
    first, second = bound(host, 9000), host.sockets.socket(AF_DIVERT, SOCK_RAW, 0)
    assert name_of(lambda: host.sockets.bind(second, port(9000))) == "EADDRINUSE"
    host.sockets.bind(first, port(9001))
    host.sockets.bind(second, port(9000))
    assert name_of(lambda: host.sockets.bind(second, port(9002)[:12])) == "EINVAL"
    assert name_of(lambda: host.sockets.bind(second, bytes([16, 44]) + port(9002)[2:])) == "EAFNOSUPPORT"


@pytest.mark.parametrize(
    ("sockaddr", "data", "expected"),
    [
        (b"", datagram(G2, G1), "EDESTADDRREQ"),
        (OUT[:15], datagram(G2, G1), "EINVAL"),
        (bytes([16, 44]) + bytes(14), datagram(G2, G1), "EAFNOSUPPORT"),
        (OUT, bytes(66028), "EMSGSIZE"),
        (OUT, datagram(parse_address("127.0.0.1"), G1), "EADDRNOTAVAIL"),
        (OUT, datagram(G2, parse_address("224.0.0.1")), "EHOSTUNREACH"),
        (OUT, datagram(G2, parse_address("255.255.255.255")), "EHOSTUNREACH"),
    ],
)
def test_sendto_fails_as_div_send_does(sockaddr: bytes, data: bytes, expected: str) -> None:
    host = router()
    descriptor = host.sockets.socket(AF_DIVERT, SOCK_RAW, 0)
    assert name_of(lambda: host.sockets.sendto(descriptor, data, sockaddr)) == expected


@pytest.mark.parametrize(
    ("length", "buffer", "sent", "kept"),
    [
        (1500, None, 100, 43),
        (1400, None, 400, 46),
        (100, None, 400, 206),
        (60, None, 1000, 863),
        (1400, 1048576, 900, 740),
    ],
)
def test_a_receive_buffer_holds_what_it_held_and_tells_of_overflow_once(
    length: int, buffer: int | None, sent: int, kept: int
) -> None:
    host = router()
    descriptor = bound(host, 9000)
    host.sockets.setsockopt(descriptor, SOL_SOCKET, SO_RERROR, 1)
    if buffer is not None:
        host.sockets.setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, buffer)
    add(host, "100 divert 9000 udp from any to me in")
    packet = datagram(G1, G2, length - 28)
    for _ in range(sent):
        host.receive("epair0b", packet)
    for _ in range(kept):
        host.sockets.recvfrom(descriptor, 65535)
    assert name_of(lambda: host.sockets.recvfrom(descriptor, 65535)) == "ENOBUFS"
    with pytest.raises(BlockingIOError):
        host.sockets.recvfrom(descriptor, 65535)


def test_a_receive_buffer_is_granted_up_to_maxsockbuf() -> None:
    host = router()
    descriptor = bound(host, 9000)
    host.sockets.setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, 1864135)
    assert name_of(lambda: host.sockets.setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, 1864136)) == "ENOBUFS"


def natd_after_quiet(*, burst: int) -> bool:
    """One mapping used every second for 75 s on a fresh natd, then other packets: does the mapping still work?"""
    time = [0.0]
    host = router(lambda: time[0])
    add(host, "50 divert natd ip4 from any to any via epair0b")
    host.start_natd("epair0b", deny_incoming=True)
    for second in range(75):
        time[0] = float(second)
        host.receive("epair1a", datagram(P1, G1))
    for number in range(burst):
        host.receive("epair1a", bytes(build.udp(Endpoint(P1, 7000), Endpoint(G1, 20000 + number))))
    host.wire.clear()
    time[0] += 2.4
    host.receive("epair0b", bytes(build.udp(Endpoint(G1, 6000), Endpoint(G2, 5000))))
    return [name for name, _ in host.wire] == ["epair1a"]


def test_natds_clock_kills_an_active_mapping_when_a_burst_ends_its_quiet() -> None:
    assert natd_after_quiet(burst=0)
    assert not natd_after_quiet(burst=1500)


def test_the_stand_in_set_refuses_what_would_leave_while_the_daemon_is_away() -> None:
    host = Host([interface("epair0a", "203.0.113.10")])
    host.add_route((0, 0), "epair0a")
    add(host, "35 set 5 divert 8711 ip from me to 240.0.0.0/4 out xmit epair0a")
    add(host, "34 set 6 unreach host ip from me to 240.0.0.0/4 out")
    host.ipfw(["ipfw", "set", "disable", "6"])
    host.send(datagram(G1, V1))
    assert host.wire == []
    host.ipfw(["ipfw", "set", "disable", "5"])
    host.send(datagram(G1, V1))
    assert len(host.wire) == 1
    host.ipfw(["ipfw", "set", "disable", "5", "enable", "6"])
    assert name_of(lambda: host.send(datagram(G1, V1))) == "EACCES"


def test_unreach_host_and_reject_are_one_rule() -> None:
    host = router()
    add(host, "70 unreach host ip from any to any out")
    add(host, "71 reject ip from any to any out")
    add(host, "72 unreach port ip from any to any out")
    assert host.ipfw(["ipfw", "list", "70-72"])[1].splitlines() == [
        "00070 reject ip from any to any out",
        "00071 reject ip from any to any out",
        "00072 unreach port ip from any to any out",
    ]


def test_a_table_gives_the_divert_port() -> None:
    host = router()
    descriptor = bound(host, 9000)
    host.ipfw(["ipfw", "table", "t", "create", "type", "addr", "valtype", "divert"])
    host.ipfw(["ipfw", "table", "t", "add", "203.0.113.0/24", "9000"])
    add(host, "100 divert tablearg ip from table(t) to me in")
    host.receive("epair0b", datagram(G1, G2))
    assert host.sockets.recvfrom(descriptor, 65535)[0] == datagram(G1, G2)


def test_what_ipfw_does_not_know_ends_as_ipfw_does_and_what_the_model_does_not_know_raises() -> None:
    host = router()
    assert host.ipfw(["ipfw", "add", "70", "allow", "ip", "from", "any", "to", "any", "frobnicate"])[0] == 64
    for rule in ("check-state", "allow ip from any to any keep-state", "pipe 1 ip from any to any"):
        with pytest.raises(NotModelledError):
            host.ipfw(["ipfw", "add", "70", *rule.split()])
    assert host.ipfw(["ipfw", "list"])[1] == "65535 allow ip from any to any\n"
