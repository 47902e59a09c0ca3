"""The FreeBSD backend over a stand-in kernel that answers as the recorded one (test_fake_kernel.py)."""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import sys
from pathlib import Path
from typing import Any

import pytest

from natf_bsd.divert import Direction, Divert, Packet, divert4
from natf_bsd.divert.divert4 import DivertBackend, may_answer, own_packet
from natf_bsd.divert.host import Host
from natf_bsd.errors import NatfError
from natf_bsd.types import Endpoint, Protocol, parse_address
from natf_bsd.wire import build
from natf_bsd.wire import packet as wire
from natf_bsd.wire.checksum import checksum
from tests.divert.fake_kernel import SO_RCVBUF, FakeKernel, sockaddr

DATA = Path(__file__).with_name("data")
PORT = 8711
G1, G2, V1 = (parse_address(text) for text in ("203.0.113.1", "198.51.100.7", "240.0.1.1"))
EN = parse_address("203.0.113.10")


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"freebsd_14_2_{name}.jsonl").read_text().splitlines()]


RECEIVED = [one for one in lines("divert_addresses") if one["kind"] == "receive"]


def host(kernel: FakeKernel, *, mtu: int = 1400, sockstat: str = "") -> Host:
    names = [name.decode() for name in kernel.interfaces]
    return Host(mtu_to=lambda _: mtu, interfaces=lambda: names, sockstat=lambda: sockstat)


def opened(kernel: FakeKernel, direction: Direction = Direction.OUT, **answers: Any) -> Divert:
    backend = DivertBackend(PORT, direction, calls=kernel, host=host(kernel, **answers))
    return Divert(PORT, direction=direction, backend=backend)


def udp(size: int = 8, *, port: int = 9, source: bytes = G1, destination: bytes = EN) -> bytearray:
    return build.udp(Endpoint(source, 5000), Endpoint(destination, port), bytes(size))


def only(divert: Divert) -> Packet:
    (item,) = divert.recv_batch()
    return item


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Opening.


def test_pf_divert_is_taken_where_it_exists() -> None:
    kernel = FakeKernel()
    opened(kernel)
    assert kernel.created == [(44, 3, 0)]


def test_the_old_form_is_taken_before_14() -> None:
    kernel = FakeKernel(release=13)
    opened(kernel)
    assert kernel.created == [(44, 3, 0), (2, 3, 258)]


@pytest.mark.parametrize("release", [12, 13, 14, 15])
def test_a_missing_module_is_named(release: int) -> None:
    with pytest.raises(NatfError, match=r"8711.*kldload ipdivert.*default_to_accept"):
        opened(FakeKernel(release=release, has_module=False))


@pytest.mark.parametrize("release", [12, 14])
@pytest.mark.parametrize(("user", "says"), [(65534, "root is needed"), (0, "vnet")])
def test_a_missing_privilege_is_explained(release: int, user: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(NatfError, match=f"8711: not permitted: .*{says}"):
        opened(FakeKernel(release=release, is_root=False))


def test_a_port_in_use_names_its_holder() -> None:
    kernel = FakeKernel()
    opened(kernel)
    (text,) = (
        one["stdout"].replace("8668", str(PORT)) for one in lines("sockstat") if one["note"] == "with natd running"
    )
    with pytest.raises(NatfError, match=r"divert port 8711: held by natd \(process 891 of root\)$"):
        opened(kernel, sockstat=text)
    assert len(kernel.sockets) == 1, "the second socket was closed"


@pytest.mark.parametrize("record", lines("sockstat"), ids=lambda one: one["note"])
def test_a_holder_that_sockstat_does_not_see_is_searched_on_the_host(record: dict[str, Any]) -> None:
    kernel = FakeKernel()
    DivertBackend(8701, Direction.IN, calls=kernel)
    with pytest.raises(NatfError, match=r"held by another program; `sockstat -P divert` on the host"):
        DivertBackend(8701, Direction.IN, calls=kernel, host=host(kernel, sockstat=record["stdout"]))


def test_other_refusals_to_bind_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, says in ("EADDRNOTAVAIL", "no IPv4 address yet"), ("EINVAL", "Invalid argument"):
        kernel = FakeKernel()
        number = getattr(errno, name)

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(kernel, "bind", refuse)
        with pytest.raises(NatfError, match=f"8711: .*{says}"):
            opened(kernel)
        assert not kernel.sockets


def test_one_megabyte_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    assert kernel.sockets[divert.fileno()].options[SO_RCVBUF] == 1 << 20
    assert warnings(caplog) == []


@pytest.mark.parametrize(("maximum", "granted"), [(600_000, 1 << 19), (100_000, 65636)])
def test_a_smaller_buffer_is_said_once(maximum: int, granted: int, caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel(largest_buffer=maximum)
    divert = opened(kernel)
    assert kernel.sockets[divert.fileno()].options[SO_RCVBUF] == granted
    (text,) = warnings(caplog)
    assert f"buffer of {granted} bytes, not 1048576" in text
    assert "kern.ipc.maxsockbuf" in text


def test_without_overrun_reports_all_else_works() -> None:
    divert = opened(FakeKernel(release=12))
    assert divert.counters["buffer_full"] == 0


def test_freebsd_gets_this_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(sys, "platform", "freebsd14")
    monkeypatch.setattr(divert4, "Libc", lambda: kernel)
    with Divert(PORT, direction=Direction.OUT) as divert:
        assert list(kernel.sockets) == [divert.fileno()]
    assert not kernel.sockets


def test_other_systems_are_told_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NatfError, match=r"darwin.*FreeBSD.*Linux"):
        Divert(PORT, direction=Direction.OUT)


# Reading and writing back.


@pytest.mark.parametrize("record", RECEIVED, ids=lambda one: f"{one['case']}: {one['rule']}")
def test_packets_are_written_back_where_they_were_taken_out(record: dict[str, Any]) -> None:
    """With the very sockaddr they were read with, but for a name of seven characters on the way in."""
    said = record["sockaddr"]
    direction = Direction.OUT if " out " in record["rule"] else Direction.IN
    kernel = FakeKernel()
    divert = opened(kernel, direction)
    data, raw = bytes.fromhex(record["packet"]), bytes.fromhex(said["raw"])
    kernel.deliver(PORT, data, raw)
    item = only(divert)
    assert (bytes(item.data), item.direction, item.interface) == (data, direction, said["ifname"])
    kernel._check_form = lambda *_: None  # type: ignore[method-assign]  # the recording's packets are cut
    divert.send(item)
    ((written, place),) = kernel.written
    assert written == data
    assert place == (raw if direction is Direction.OUT else expected_inward(raw))


def expected_inward(raw: bytes) -> bytes:
    if raw[4:8] == bytes(4):  # "in, interface without an IPv4 address": the name decides, it is whole
        return raw[:4] + bytes([0, 0, 0, 1]) + raw[8:]
    return raw[:8] + bytes(8) if raw[14] else raw


def test_the_recorded_cure_for_a_cut_name_is_ours() -> None:
    (read,) = (one for one in RECEIVED if one["case"] == "in, interface with an 8-character name")
    (cure,) = (o for o in lines("divert_addresses") if o["case"] == "in, 8-character interface, name removed")
    kernel = FakeKernel()
    divert = opened(kernel, Direction.IN)
    raw = bytes.fromhex(read["sockaddr"]["raw"])
    kernel.deliver(PORT, udp(), raw)
    divert.send(only(divert))
    place = kernel.written[0][1]
    assert place[:2] + bytes(2) + place[4:] == bytes.fromhex(cure["sockaddr"]["raw"])
    assert place[2:4] == raw[2:4]


def test_an_incoming_packet_that_looks_outgoing_goes_in(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel()
    divert = opened(kernel, Direction.IN)
    kernel.deliver(PORT, udp(), sockaddr(100, name=b"epair2b"))
    divert.send(only(divert))
    assert kernel.written[0][1] == sockaddr(100, bytes([0, 0, 0, 1]), b"epair2b")
    assert divert.counters["sent"] == 1
    assert warnings(caplog) == []


@pytest.mark.parametrize("names", [(b"lanport0",), (b"lanport", b"lanport0")])
def test_a_doubtful_name_without_address_is_refused_aloud(
    names: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Kept, it could bring the packet in by another interface: past rules that it must not pass."""
    kernel = FakeKernel()
    kernel.interfaces |= dict.fromkeys(names, bytes(4))
    divert = opened(kernel, Direction.IN)
    for _ in range(2):
        kernel.deliver(PORT, udp(), sockaddr(100, name=b"lanport0"))
        divert.send(only(divert))
    assert kernel.written == []
    assert divert.counters["unreachable"] == 2
    (text,) = warnings(caplog)
    assert "lanport... can't be put back" in text


def test_a_rule_without_in_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel()
    divert = opened(kernel, Direction.IN)
    kernel.deliver(PORT, udp(), sockaddr(120))
    divert.send(only(divert))
    assert kernel.written == []
    (text,) = warnings(caplog)
    assert "rule 120" in text
    assert "`in`" in text


def test_a_rule_without_out_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel()
    divert = opened(kernel, Direction.OUT)
    for _ in range(2):
        kernel.deliver(PORT, udp(), sockaddr(120, G1, b"epair0b"))
        divert.send(only(divert))
    assert [place for _, place in kernel.written] == [sockaddr(120, name=b"epair0b")] * 2
    (text,) = warnings(caplog)
    assert "rule 120" in text
    assert "`out`" in text


def test_one_call_reads_all_that_waits() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    for number in range(70):
        kernel.deliver(PORT, udp(number), sockaddr(35))
    assert [len(divert.recv_batch()) for _ in range(3)] == [64, 6, 0]
    assert divert.counters["received"] == 70


def test_a_full_buffer_is_counted_and_reading_goes_on() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    kernel.deliver(PORT, udp(), sockaddr(35))
    kernel.overrun(PORT)
    kernel.deliver(PORT, udp(), sockaddr(35))
    assert len(divert.recv_batch()) == 2
    assert divert.counters["buffer_full"] == 1


def test_other_errors_of_reading_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    divert = opened(kernel)

    def fail(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(kernel, "recvfrom", fail)
    with pytest.raises(OSError, match="Bad file"):
        divert.recv_batch()


def test_a_dropped_packet_needs_no_call() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    kernel.deliver(PORT, udp(), sockaddr(35))
    divert.drop(only(divert))
    assert kernel.written == []
    assert divert.counters["dropped"] == 1


def test_closing_closes_the_socket_once() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    divert.close()
    assert not kernel.sockets
    divert.close()


# What the kernel answers to a write.


@pytest.mark.parametrize(
    ("name", "counter"),
    [
        ("EACCES", "not_permitted"),
        ("ENOBUFS", "no_buffers"),
        ("EAGAIN", "no_buffers"),
        ("EHOSTUNREACH", "unreachable"),
        ("ENETUNREACH", "unreachable"),
        ("ENETDOWN", "unreachable"),
        ("EHOSTDOWN", "unreachable"),
        ("EADDRNOTAVAIL", "unreachable"),
        ("EINVAL", "invalid"),
        ("EAFNOSUPPORT", "invalid"),
        ("EMSGSIZE", "too_big"),
    ],
)
def test_refusals_are_counted_and_not_raised(name: str, counter: str) -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    kernel.deliver(PORT, udp(), sockaddr(35))
    kernel.answers.append(name)
    divert.send(only(divert))
    counters = {key: value for key, value in divert.counters.items() if value}
    assert counters == {"received": 1, counter: 1}
    assert kernel.written == []


@pytest.mark.parametrize(
    "record",
    [one for one in lines("divert_addresses") if one["kind"] == "write" and one["errno"]],
    ids=lambda one: one["case"],
)
def test_every_recorded_refusal_is_counted(record: dict[str, Any]) -> None:
    kernel = FakeKernel()
    direction = Direction.OUT if record["sockaddr"]["dir"] == "out" else Direction.IN
    divert = opened(kernel, direction)
    data = bytes.fromhex(record["written"]).ljust(record["written_length"], b"\0")
    kernel.deliver(PORT, data, bytes.fromhex(record["sockaddr"]["raw"]))
    divert.send(only(divert))
    counters = divert.counters
    refused = ("not_permitted", "unreachable", "no_buffers", "too_big", "invalid")
    assert (counters["sent"], sum(counters[name] for name in refused)) == (0, 1)


def test_an_error_that_is_not_the_networks_is_raised() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    kernel.deliver(PORT, udp(), sockaddr(35))
    kernel.answers.append("EBADF")
    with pytest.raises(OSError, match="Bad file"):
        divert.send(only(divert))


# Too big for the way.


def unfragmentable(data: bytearray) -> bytearray:
    data[6] |= 0x40
    return data


def too_big(kernel: FakeKernel, divert: Divert, source: bytes = G1) -> tuple[bytes, Divert]:
    """A packet to V1 that was rewritten to G2, and was then 100 bytes too long."""
    kernel.mtu = 1400
    original = unfragmentable(udp(1472, source=source, destination=V1))
    kernel.deliver(PORT, original, sockaddr(35, name=b"epair1a"))
    item = only(divert)
    item.data[16:20] = G2
    divert.send(item)
    return bytes(original), divert


def test_the_sender_of_a_packet_too_big_hears_the_mtu() -> None:
    kernel = FakeKernel()
    original, divert = too_big(kernel, opened(kernel, mtu=1400))
    assert (divert.counters["too_big"], divert.counters["need_fragment"], divert.counters["sent"]) == (1, 1, 0)
    ((error, place),) = kernel.written
    assert place == sockaddr(0, G1), "it comes in by the interface of the sender's address, before all rules"
    assert checksum(error[:20]) == checksum(error[20:]) == 0
    assert (wire.source(error), wire.destination(error), wire.protocol(error)) == (G2, G1, Protocol.ICMP)
    assert error[20:22] == bytes([3, 4])
    assert int.from_bytes(error[26:28], "big") == 1400
    assert error[28:] == original[:68], "quoted as the sender knows it"


def test_another_hosts_packet_is_answered_outwards() -> None:
    kernel = FakeKernel()
    guest = parse_address("192.168.0.2")
    _, divert = too_big(kernel, opened(kernel), source=guest)
    ((error, place),) = kernel.written
    assert (place, wire.destination(error)) == (sockaddr(0), guest)
    assert divert.counters["need_fragment"] == 1


def test_an_answer_that_cannot_be_sent_is_not_counted_as_one() -> None:
    kernel = FakeKernel()
    _, divert = too_big(kernel, opened(kernel), source=parse_address("100.64.0.9"))
    assert (divert.counters["too_big"], divert.counters["need_fragment"]) == (1, 0)


def test_an_mtu_larger_than_the_field_is_cut() -> None:
    kernel = FakeKernel()
    too_big(kernel, opened(kernel, mtu=1 << 20))
    assert kernel.written[0][0][26:28] == b"\xff\xff"


def icmp(kind: int) -> bytearray:
    return build.ipv4(Protocol.ICMP, G1, EN, bytes([kind, 0, 0, 0]) + bytes(28))


def with_byte(data: bytearray, at: int, value: int) -> bytearray:
    data[at] = value
    return data


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (udp(), True),
        (icmp(8), True),
        (icmp(0), True),
        *[(icmp(kind), False) for kind in (3, 4, 5, 11, 12)],
        (build.ipv4(Protocol.ICMP, G1, EN, b""), False),
        (with_byte(udp(), 7, 1), False),  # a later fragment
        (udp(source=bytes(4)), False),
        (udp(destination=parse_address("224.0.0.1")), False),
        (udp(destination=parse_address("239.255.255.250")), False),
        (udp(destination=parse_address("255.255.255.255")), False),
        (udp(destination=V1), True),
        (with_byte(udp(), 0, 0x65), False),  # IPv6
        (bytearray(19), False),
    ],
)
def test_errors_are_sent_about_what_rfc_1122_allows(data: bytearray, answer: bool) -> None:
    head = bytes(unfragmentable(data)[:68])
    assert may_answer(head) is answer
    assert not may_answer(head[:6] + bytes([head[6] & ~0x40]) + head[7:]), "it may be cut up"


# Packets of our own.


def test_own_packets_go_where_they_are_told() -> None:
    """FREEBSD.md 3.1: the pseudo-packet, before natd's rule 50 and as if from the inside interface."""
    kernel = FakeKernel()
    divert = opened(kernel)
    data = udp()
    divert.send(own_packet(data, Direction.OUT, after_rule=49, interface="epair1a"))
    divert.send(own_packet(data, Direction.IN, after_rule=51, address=G1))
    divert.send(own_packet(data, Direction.IN, interface="epair2b"))
    assert kernel.written == [
        (bytes(data), sockaddr(49, name=b"epair1a")),
        (bytes(data), sockaddr(51, G1)),
        (bytes(data), sockaddr(0, bytes([0, 0, 0, 1]), b"epair2b")),
    ]
    assert divert.counters["sent"] == 3


def test_an_own_packet_is_written_once_like_any_other() -> None:
    divert = opened(FakeKernel())
    item = own_packet(udp(), Direction.OUT)
    divert.send(item)
    with pytest.raises(NatfError, match="not held"):
        divert.send(item)


def test_an_own_packet_too_big_is_answered_too() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    divert.send(own_packet(unfragmentable(udp(2000)), Direction.OUT, after_rule=49))
    assert divert.counters["need_fragment"] == 1


def test_a_handle_is_readable_while_packets_wait() -> None:
    kernel = FakeKernel()
    divert = opened(kernel)
    assert not select.select([divert], [], [], 0)[0]
    kernel.deliver(PORT, udp(), sockaddr(35))
    assert select.select([divert], [], [], 0)[0]
