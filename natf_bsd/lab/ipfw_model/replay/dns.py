"""dns.jsonl: an answer of a name server, diverted and patched, and what the program that asked then got."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from natf_bsd.lab.ipfw_model.fragments import split
from natf_bsd.lab.ipfw_model.host import Host, interface
from natf_bsd.lab.ipfw_model.replay.report import (
    Event,
    Report,
    completed,
    configure,
    delayed,
    divert_socket,
    read_all,
)
from natf_bsd.types import parse_address
from natf_bsd.wire import packet

_EXTERNAL = "epair0a"
_MTU = 1500
_COUNTS = re.compile(r"^(\d{5}) +(\d+) +(\d+) (?!allow)", re.MULTILINE)
_VIRTUAL = parse_address("240.0.1.1")
_REASSEMBLED = "the same with a reass rule in front"
_UNMARKED = "no rule for it: answer as the resolver gave it"
_FRAGMENTED = "resolver elsewhere, answer of 2460 bytes in two fragments"


def replay(events: Sequence[Event], report: Report) -> None:
    """Compare all events. Two flows recorded only a result; their answer is the one another flow recorded whole."""
    answers = {event["flow"]: event for event in events if event.get("op") == "read"}
    for flow, group in itertools.groupby(events, key=lambda event: str(event["flow"])):
        lender = {_FRAGMENTED: _REASSEMBLED, _UNMARKED: next(iter(answers))}.get(flow, flow)
        _play(flow, list(group), answers[lender], report)


def _play(flow: str, events: list[Event], answer: Event, report: Report) -> None:
    host = Host([interface(_EXTERNAL, "203.0.113.10")])
    host.listens = lambda protocol, port: True
    if flow == _REASSEMBLED:
        configure(host, "add 29 reass udp from any to me in recv epair0a")
    descriptor = divert_socket(host, 8710)
    result = events[-1]
    configure(host, f"add {result['rule']}")
    _answer(host, bytearray(completed(answer["packet"], answer.get("length"))))
    read = [(sockaddr.hex(), len(data), data.hex()) for data, sockaddr in read_all(host, descriptor)]
    for event in events[:-1]:
        # The long answer was cut before the record that was patched.
        tail = _VIRTUAL if event["op"] == "write" else b""
        data = completed(event["packet"], event["length"], tail)
        if event["op"] == "read":
            recorded = (event["sockaddr"], event["length"], event["packet"])
            found = [(raw, length, text[: len(event["packet"])]) for raw, length, text in read]
            report.compare(f"{flow}: read", found, [recorded])
        else:
            written = host.sockets.sendto(descriptor, data, bytes.fromhex(event["sockaddr"]))
            report.compare(f"{flow}: write", written, event["length"])
    report.compare(f"{flow}: result", _outcome(host), _recorded_outcome(result))


def _answer(host: Host, data: bytearray) -> None:
    """The answer comes from the wire, or from a name server on this host."""
    if packet.source(data) == parse_address("127.0.0.1"):
        before, is_delayed = delayed(data)
        host.output(before, delayed=is_delayed)
        return
    for piece in split(data, _MTU):
        host.receive(_EXTERNAL, bytes(piece))


def _outcome(host: Host) -> Event:
    rules = [rule for rule in host.firewall.rules.rules if rule.packets]
    return {
        "answered": bool(host.delivered),
        "virtual": any(_VIRTUAL in data for _, data in host.delivered),
        "rules": [(f"{rule.number:05}", rule.packets, rule.bytes) for rule in rules],
    }


def _recorded_outcome(event: Event) -> Event:
    return {
        "answered": event["status"] == 0,
        "virtual": "240.0.1.1" in event["stdout"],
        "rules": [(number, int(packets), int(size)) for number, packets, size in _COUNTS.findall(event["rules"])],
    }
