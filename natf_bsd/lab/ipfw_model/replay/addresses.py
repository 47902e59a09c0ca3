"""divert-addresses.jsonl: what a divert socket reads, and what comes of what is written to it."""

from __future__ import annotations

import errno
import itertools
import re
import struct
from collections.abc import Sequence

from natf_bsd.lab.ipfw_model.fragments import split
from natf_bsd.lab.ipfw_model.host import Host
from natf_bsd.lab.ipfw_model.replay.report import (
    Event,
    Report,
    completed,
    configure,
    delayed,
    divert_socket,
    fixed_ident,
    read_all,
    recorded_router,
    with_header_sum,
)
from natf_bsd.types import Endpoint
from natf_bsd.wire import build, packet
from natf_bsd.wire.packet import TCP_SYN

_NEIGHBOURS = {
    "epair0b": "en.epair0a",
    "epair1a": "alice.epair1b",
    "wanport0": "en.epair3a",
    "wanport": "en.epair4a",
}
_WRITE_RULES = (
    "100 count ip from any to any in",
    "101 count ip from any to any out",
    "102 count ip from any to any out recv epair1a xmit epair0b",
    "103 count ip from any to any recv epair0b",
    "104 count ip from any to any recv wanport0",
    "105 count ip from any to any recv wanport",
    "106 count ip from any to any diverted",
    "107 count ip from any to any diverted-loopback",
    "108 count ip from any to any diverted-output",
    "109 count ip from any to any out xmit epair0b",
    "110 count ip from any to any out xmit epair1a",
    "120 divert 9000 udp from any to any 9120",
    "130 deny udp from any to any 9130",
    "65000 count ip from any to any",
)
_RECV = re.compile(r"recv (\w+)")
_PIECE = 756  # the MTU that the recorded fragments were made for
_CUT = 200
_SECOND = ", second rule"


def replay(events: Sequence[Event], report: Report) -> None:
    """Compare all events. A note belongs to the event before it."""
    receives = [event for event in events if event["kind"] != "write"]
    for case, group in itertools.groupby(receives, key=lambda event: _case(str(event["case"]))):
        _receive(case, list(group), report)
    for event in events:
        if event["kind"] == "write":
            report.compare(f"write: {event['case']}", _write(event), _recorded_write(event))


def _case(case: str) -> str:
    return case.partition(", first rule")[0].partition(_SECOND)[0].partition(": what the UDP socket")[0]


# Reading.


def _receive(case: str, events: list[Event], report: Report) -> None:
    host = recorded_router()
    sockets = [divert_socket(host, 9000), divert_socket(host, 9001)]
    rules = [event["rule"] for event in events if "rule" in event]
    if case == "two rules with one number":
        _two_rules(host, sockets, events[0], report)
        return
    for rule in dict.fromkeys(rules):
        configure(host, f"add {rule}")
    host.listens = lambda protocol, port: port == 7777
    _cause(host, case, events)
    read = [_shown(*record) for record in read_all(host, sockets[0])]
    if len(rules) > 1 and case.startswith("reinjected"):
        data, sockaddr = bytes.fromhex(events[0]["packet"]), bytes.fromhex(events[0]["sockaddr"]["raw"])
        host.sockets.sendto(sockets[0], data, sockaddr)
        read += [_shown(*record) for record in read_all(host, sockets[1])]
    found = iter(read)
    for event in events:
        if event["kind"] == "note":
            sizes = [len(data) - 28 for _, data in host.delivered]
            report.compare(
                case,
                f"a datagram of {sizes[0]} bytes arrived at the UDP socket without ever being diverted",
                event["note"],
            )
        elif event["sockaddr"] is None:
            report.compare(f"receive: {case}", list(found), [])
        else:
            report.compare(f"receive: {case}", next(found, None), _shown_event(event))


def _shown(data: bytes, sockaddr: bytes) -> tuple[str, int, str]:
    return sockaddr.hex(), len(data), data[:_CUT].hex()


def _shown_event(event: Event) -> tuple[str, int, str]:
    length = event.get("length", len(event["packet"]) // 2)
    return event["sockaddr"]["raw"], length, event["packet"]


def _two_rules(host: Host, sockets: list[int], event: Event, report: Report) -> None:
    lines = (
        "100 divert 9000 udp from any to me in",
        "100 divert 9001 udp from any to me in",
        "101 count udp from any to me in",
    )
    configure(host, *(f"add {line}" for line in lines))
    host.listens = lambda protocol, port: True
    host.receive("epair0b", bytes.fromhex(event["packet"]))
    read = list(read_all(host, sockets[0]))
    host.sockets.sendto(sockets[0], *read[0])
    counts = [rule.packets for rule in host.firewall.rules.rules]
    seen = len(list(read_all(host, sockets[1])))
    found = (read[0][1].hex(), read[0][0].hex(), seen, counts)
    report.compare("two rules with one number", found, (event["sockaddr"]["raw"], event["packet"], 0, [1, 0, 1]))


def _cause(host: Host, case: str, events: list[Event]) -> None:
    """Make the traffic that the case is about."""
    event = events[0]
    if "fragment" in case:
        _send_fragments(host, case, events)
        return
    data = completed(event["packet"], event["length"])
    if case.startswith("kernel answer"):
        host.ident = fixed_ident([int.from_bytes(data[4:6], "big")])
        host.receive("epair0b", _question(case, data))
        return
    address = event["sockaddr"]
    if address["ifname"] == "lo0" or (address["dir"] == "out" and not address["ifname"]):
        before, is_delayed = delayed(data)
        host.output(before, delayed=is_delayed)
    elif address["dir"] == "out" and "epair2b" not in event["rule"]:
        before = bytearray(data)
        before[8] += 1
        host.receive(address["ifname"], with_header_sum(before))
    else:
        received = _RECV.search(event["rule"])
        for one in events if case == "IPv6 in" else events[:1]:
            host.receive(received[1] if received else "", completed(one["packet"], one["length"]))


def _question(case: str, answer: bytes) -> bytes:
    """What the kernel answered to: an echo request, a segment for no port, or the packet an error quotes."""
    if "echo" in case:
        request = bytearray(answer)
        request[12:16], request[16:20] = answer[16:20], answer[12:16]
        request[4:6] = bytes(2)
        message = struct.unpack_from("!HH", answer, 24)
        return bytes(
            build.icmp_echo(
                bytes(request[12:16]),
                bytes(request[16:20]),
                reply=False,
                ident=message[0],
                sequence=message[1],
                payload=answer[28:],
            )
        )
    if "RST" in case:
        flow = packet.flow_of(answer)
        if flow is None:
            raise ValueError(case)
        sequence = int.from_bytes(answer[28:32], "big") - 1
        return bytes(build.tcp(Endpoint(*flow.destination), Endpoint(*flow.source), flags=TCP_SYN, sequence=sequence))
    return answer[28:]


def _send_fragments(host: Host, case: str, events: list[Event]) -> None:
    if case == "fragments in, tee":
        for event in events:
            host.receive("epair0b", completed(event["packet"], event["length"]))
        return
    if events[0]["packet"] is not None:
        whole = bytearray(completed(events[0]["packet"], events[0]["length"]))
    else:
        source = Endpoint(bytes([203, 0, 113, 10]), 5001)
        destination = Endpoint(bytes([203, 0, 113, 1]), 7777)
        whole = build.udp(source, destination, bytes(range(256)) * 8, ident=4242)
    pieces = split(whole, _PIECE)
    for piece in pieces[:2] if case == "one fragment missing" else pieces:
        host.receive("epair0b", bytes(piece))


# Writing.


def _recorded_write(event: Event) -> Event:
    return {
        "returned": event["returned"],
        "errno": event["errno"],
        "rules": event["rules"],
        "counters": {name: value for name, value in event["ip_counters"].items() if name.startswith("divert.")},
        "diverted_again": [(one["sockaddr"]["raw"], one["packet"]) for one in event["diverted_again"]],
        "wire": [(one["at"], one["length"], one["packet"]) for one in event["wire"]],
    }


def _write(event: Event) -> Event:
    host = recorded_router()
    configure(host, *(f"add {rule}" for rule in _WRITE_RULES))
    diverted = divert_socket(host, 9000)
    data = completed(event["written"], event["written_length"])
    host.ident = fixed_ident([int(one["packet"][8:12], 16) for one in event["wire"]])
    try:
        returned, name = host.sockets.sendto(divert_socket(host), data, bytes.fromhex(event["sockaddr"]["raw"])), None
    except OSError as error:
        returned, name = -1, errno.errorcode[error.errno or 0]
    sizes = [len(one["packet"]) for one in event["wire"]]
    return {
        "returned": returned,
        "errno": name,
        "rules": {f"{rule.number:05}": rule.packets for rule in host.firewall.rules.all() if rule.packets},
        "counters": {f"divert.{name}-packets": value for name, value in host.sockets.counters.items()},
        "diverted_again": [(sockaddr.hex(), data.hex()) for data, sockaddr in read_all(host, diverted)],
        "wire": [
            (_NEIGHBOURS[name], len(sent), sent.hex()[: sizes[at] if at < len(sizes) else None])
            for at, (name, sent) in enumerate(host.wire)
        ],
    }
