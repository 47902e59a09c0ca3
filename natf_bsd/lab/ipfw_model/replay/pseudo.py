"""pseudo.jsonl: pseudo-packets through natd and `ipfw nat`, and the mappings they make."""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Sequence

from natf_bsd.lab.ipfw_model.host import Host
from natf_bsd.lab.ipfw_model.replay.report import (
    Drawn,
    Event,
    Report,
    configure,
    divert_socket,
    read_all,
    recorded_router,
)
from natf_bsd.natd_bridge import pseudo
from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address

_EXTERNAL, _INTERNAL = "epair0b", "epair1a"
_CAPTURE = "add 51 divert 8702 ip from any to any out xmit epair0b ipid 20038 ipttl 1"
_BEFORE = re.compile(r"(?P<who>stray packet|packet of the inside host) (?P<packet>[0-9a-f]+)")
_COUNTED = re.compile(r"\d+")
_PSEUDO_ADDRESS = bytes.fromhex("10023100000000006570616972316100")
# What a draw gives that was not recorded: a model that draws too often shows.
_UNRECORDED = 33333


def replay(events: Sequence[Event], report: Report) -> None:
    """Compare all events; each NAT begins anew, as it did when it was recorded."""
    for nat, group in itertools.groupby(events, key=lambda event: str(event["nat"])):
        run = _Run(nat)
        for event in group:
            what = f"{nat}: {event['case']}"
            if "captured_count" in event:
                report.compare(what, run.count(event["case"]), event["captured_count"])
            else:
                report.compare(what, run.play(event), _recorded(event))


def _recorded(event: Event) -> Event:
    kept = ("returned", "errno", "left_host", "mapping_works", "then_in", "then_out")
    captured = [(one["sockaddr"]["raw"], one["packet"]) for one in event["captured"]]
    return {"captured": captured, **{name: event[name] for name in kept if name in event}}


class _Run:
    """One router with one NAT."""

    def __init__(self, nat: str) -> None:
        self.host = recorded_router()
        self.drawn = Drawn()
        self.host.draw = self.drawn
        configure(self.host, _CAPTURE)
        _install(self.host, nat)
        self.capture = divert_socket(self.host, 8702)
        self.writer = divert_socket(self.host)

    def play(self, event: Event) -> Event:
        """What the model makes of one event, in the recording's own terms."""
        self.drawn.value = self._draw(event)
        before = _BEFORE.match(event["note"])
        if before:
            name = _EXTERNAL if before["who"] == "stray packet" else _INTERNAL
            self.host.receive(name, bytes.fromhex(before["packet"]))
        self.host.wire.clear()
        found: Event = self._write(bytes.fromhex(event["written"]), bytes.fromhex(event["sockaddr"]["raw"]))
        found["captured"] = [(sockaddr.hex(), data.hex()) for data, sockaddr in read_all(self.host, self.capture)]
        found["left_host"] = [data.hex() for name, data in self.host.wire if name == _EXTERNAL]
        if "then_in" in event:
            self._use(event, found)
        return found

    def _draw(self, event: Event) -> int:
        if not event["captured"] or event["m"] is None:
            return _UNRECORDED
        is_icmp = bytes.fromhex(event["written"])[9] == Protocol.ICMP
        header = (int(event["written"][1], 16) * 4 + (4 if is_icmp else 0)) * 2
        wanted = int(event["written"][header : header + 4], 16)
        return int(event["m"]) if event["m"] != wanted else _UNRECORDED

    def _write(self, data: bytes, sockaddr: bytes) -> Event:
        try:
            return {"returned": self.host.sockets.sendto(self.writer, data, sockaddr), "errno": None}
        except OSError as error:
            return {"returned": -1, "errno": errno.errorcode[error.errno or 0]}

    def _use(self, event: Event, found: Event) -> None:
        sent_in, sent_out = event["then_in"]["sent_by_external"], event["then_out"]["sent_by_inside"]
        inside = self._pass(_EXTERNAL, sent_in, _INTERNAL)
        outside = self._pass(_INTERNAL, sent_out, _EXTERNAL)
        found["then_in"] = {"sent_by_external": sent_in, "seen_by_inside": inside}
        found["then_out"] = {"sent_by_inside": sent_out, "seen_by_external": outside}
        found["mapping_works"] = len(inside) == len(outside) == 1

    def _pass(self, entry: str, packet_hex: str, way_out: str) -> list[str]:
        self.host.wire.clear()
        self.host.receive(entry, bytes.fromhex(packet_hex))
        return [data.hex() for name, data in self.host.wire if name == way_out]

    def count(self, case: str) -> int:
        """How many of so many pseudo-packets are captured, read one by one or all at the end."""
        found = _COUNTED.search(case)
        number = int(found[0]) if found else 0
        captured = 0
        remote = Endpoint(parse_address("203.0.113.10"), 50000)
        for port in range(number):
            source = Endpoint(parse_address("192.168.0.2"), 10000 + port)
            self.drawn.value = 40000 + port
            self._write(pseudo.build(Flow(Protocol.UDP, source, remote), port, LIBALIAS_STYLE), _PSEUDO_ADDRESS)
            if "without waiting" not in case:
                captured += len(list(read_all(self.host, self.capture)))
        return captured + len(list(read_all(self.host, self.capture)))


def _install(host: Host, nat: str) -> None:
    if nat.startswith("natd"):
        configure(host, "add 50 divert natd ip4 from any to any via epair0b")
        if "not running" not in nat:
            host.start_natd(_EXTERNAL, deny_incoming="-deny_incoming" in nat)
    elif nat.startswith("nat rule names"):
        configure(host, "add 50 nat 99 ip4 from any to any via epair0b")
    elif nat.startswith("ipfw nat"):
        options, _, one_pass = nat.removeprefix("ipfw nat").partition(", one_pass=")
        host.firewall.one_pass = one_pass == "1"
        configure(host, f"nat 123 config if epair0b {options}", "add 50 nat 123 ip4 from any to any via epair0b")
