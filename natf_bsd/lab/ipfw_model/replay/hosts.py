"""flows.jsonl and private-to-private.jsonl: whole flows over several hosts.

Every recorded point is either where something comes into a host of the model, or where something comes out of one, or
both (a wire between two of them). What goes in is always the recording's packet, so that a difference shows where it
arises and does not spread.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from natf_bsd.lab.ipfw_model.host import Host, Interface, interface
from natf_bsd.lab.ipfw_model.replay.report import (
    Event,
    Report,
    completed,
    configure,
    delayed,
    divert_socket,
    fixed_ident,
    read_all,
)
from natf_bsd.types import Protocol
from natf_bsd.wire import packet

Point = tuple[str, str]
"""A recorded point and what happened there: ("wire en epair0a", "sent")."""

_CAP = 28
STIMULUS = (
    "made by a program (alice, carol, a daemon's write): it goes into the model, and what comes of it is compared"
)
RESULT = "the output of a program; the packets it is made of are compared"
BEYOND_CAP = "its cause lies beyond the 28 lines that were recorded at a point"
_DEFAULT_ROUTE = (0, 0)


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which host and interface, or divert port, a recorded point is."""

    enters: dict[Point, tuple[str, str]]
    leaves: dict[Point, tuple[str, str]]
    ports: dict[str, tuple[str, int]]


class Scene:
    """The hosts of one flow, and what came out of them so far."""

    def __init__(self, hosts: dict[str, Host], wiring: Wiring) -> None:
        self.hosts = hosts
        self.now = 0.0
        self._wiring = wiring
        self._sockets = {
            point: (hosts[name], divert_socket(hosts[name], port)) for point, (name, port) in wiring.ports.items()
        }
        self.found: dict[Key, list[tuple[int, str]]] = defaultdict(list)
        for host in hosts.values():
            host.now = lambda: self.now

    def enter(self, point: Point, data: bytes) -> None:
        name, interface_name = self._wiring.enters[point]
        self.hosts[name].receive(interface_name, data)

    def write(self, point: Point, data: bytes, sockaddr: bytes) -> None:
        host, descriptor = self._sockets[point[0]]
        host.sockets.sendto(descriptor, data, sockaddr)

    def collect(self) -> None:
        """Note what came out since the last time."""
        for point, (host, descriptor) in self._sockets.items():
            for data, sockaddr in read_all(host, descriptor):
                self.found[point, "read", sockaddr.hex()].append((len(data), data.hex()))
        for (point, op), (name, interface_name) in self._wiring.leaves.items():
            for sent, data in self.hosts[name].wire:
                if sent == interface_name:
                    self.found[point, op, str(data[9])].append((len(data), data.hex()))
        for host in self.hosts.values():
            host.wire.clear()


Key = tuple[str, str, str]
"""A point, and what keeps its packets in order: the sockaddr_in read, or the protocol on a wire."""


@dataclass(frozen=True, slots=True)
class Script:
    """How one recording is played: its wiring, its hosts, and who is the cause of what.

    `local` tells for an event of a point where packets leave whether a program on that host sent it: then it goes in
    there as that program's packet.
    """

    wiring: Wiring
    hosts: Callable[[str], dict[str, Host]]
    local: Callable[[Event], str | None]
    idents: dict[str, Callable[[Event], bool]] = field(default_factory=dict)


def replay(events: Sequence[Event], report: Report, script: Script) -> None:
    """Compare each flow; `Report.left_out` says why the events that only go in are not compared themselves."""
    for _, group in itertools.groupby(events, key=lambda event: str(event["flow"])):
        _play(sorted(group, key=lambda event: float(event["t"])), report, script)


def _play(events: list[Event], report: Report, script: Script) -> None:
    scene = Scene(script.hosts(events[0]["flow"]), script.wiring)
    packets = [event for event in events if event["point"] != "result"]
    for name, is_own in script.idents.items():
        scene.hosts[name].ident = fixed_ident([int(event["packet"][8:12], 16) for event in packets if is_own(event)])
    for event in packets:
        scene.now = event["t"]
        _stimulate(scene, event, script)
        scene.collect()
    _compare(scene, events, report, script)


def _stimulate(scene: Scene, event: Event, script: Script) -> None:
    point = (event["point"], event["op"])
    data = completed(event["packet"], event["length"])
    sender = script.local(event)
    if sender is not None:
        before, is_delayed = delayed(data)
        scene.hosts[sender].output(before, delayed=is_delayed)
    if event["op"] == "write":
        scene.write(point, data, bytes.fromhex(event["sockaddr"]))
    elif point in script.wiring.enters:
        scene.enter(point, data)


def _key(event: Event) -> Key:
    kind = event["sockaddr"] if event["op"] == "read" else str(int(event["packet"][18:20], 16))
    return event["point"], event["op"], kind


def _compare(scene: Scene, events: Iterable[Event], report: Report, script: Script) -> None:
    lines: dict[str, int] = defaultdict(int)
    recorded: dict[Key, list[Event]] = defaultdict(list)
    for event in events:
        lines[event["point"]] += 1
        if event["point"] == "result":
            report.leave_out(RESULT)
        elif event["op"] == "write" or (event["point"], event["op"]) not in script.wiring.leaves | _reads(script):
            report.leave_out(STIMULUS)
        else:
            recorded[_key(event)].append(event)
    is_capped = any(count >= _CAP for count in lines.values())
    for key in sorted(recorded.keys() | scene.found.keys()):
        _compare_point(key, scene.found[key], recorded[key], report, may_end_early=is_capped)
        surplus = len(scene.found[key]) - len(recorded[key])
        if surplus > 0 and lines[key[0]] < _CAP:
            report.differences.append(f"{_flow(events)} {key}: {surplus} packets more than were recorded")


def _reads(script: Script) -> dict[Point, tuple[str, int]]:
    return {(point, "read"): port for point, port in script.wiring.ports.items()}


def _flow(events: Iterable[Event]) -> str:
    return next(str(event["flow"]) for event in events)


def _compare_point(
    key: Key, found: list[tuple[int, str]], recorded: list[Event], report: Report, *, may_end_early: bool
) -> None:
    for at, event in enumerate(recorded):
        if at >= len(found) and may_end_early:
            report.leave_out(BEYOND_CAP)
            continue
        length, data = found[at] if at < len(found) else (0, "")
        wanted = event["packet"]
        what = f"{event['flow']} at {event['t']}: {key}"
        report.compare(what, (length, data[: len(wanted)]), (event["length"], wanted))


# flows.jsonl

FLOWS_WIRING = Wiring(
    enters={
        ("wire en epair0a", "sent"): ("router", "epair0b"),
        ("wire en epair0a", "received"): ("en", "epair0a"),
        ("wire alice epair1b", "sent"): ("router", "epair1a"),
    },
    leaves={
        ("wire en epair0a", "sent"): ("en", "epair0a"),
        ("wire en epair0a", "received"): ("router", "epair0b"),
        ("wire alice epair1b", "received"): ("router", "epair1a"),
    },
    ports={
        "en.8711 out": ("en", 8711),
        "en.8712 in": ("en", 8712),
        "en.8713 errors": ("en", 8713),
        "router.8701 control": ("router", 8701),
        "router.8702 capture": ("router", 8702),
        "router.tee 49 before natd": ("router", 8749),
        "router.tee 53 after natd": ("router", 8753),
    },
)
_EN_RULES = (
    "table natf_peers create type addr",
    "table natf_peers add 203.0.113.1",
    "add 30 set 5 deny ip from 240.0.0.0/4 to any in recv epair0a",
    "add 35 set 5 divert 8711 ip from me to 240.0.0.0/4 out xmit epair0a",
    "add 36 set 5 allow ip from me to any out xmit epair0a diverted-output",
    "add 37 set 5 divert 8713 icmp from any to me in recv epair0a icmptypes 3,4,11,12",
    "add 38 set 5 divert 8712 { tcp or udp } from table(natf_peers) to me in recv epair0a",
    "add 39 set 5 allow ip from 240.0.0.0/4 to me in recv epair0a diverted-loopback",
)
_ROUTER_RULES = (
    "add 40 set 5 divert 8701 icmp from any to me in recv epair0b icmptypes 8",
    "add 41 set 5 allow icmp from any to me in recv epair0b icmptypes 8",
    "add 49 tee 8749 ip from any to any via epair0b",
    "add 50 divert natd ip4 from any to any via epair0b",
    "add 51 set 5 divert 8702 ip from any to any out xmit epair0b ipid 20038 ipttl 1",
    "add 52 set 5 allow icmp from me to any out xmit epair0b icmptypes 0,8 diverted-output",
    "add 53 tee 8753 ip from any to any via epair0b",
)
_EN_CLOSED = "icmp port unreachable of the external host"


def _flow_hosts(flow: str) -> dict[str, Host]:
    en = Host([interface("epair0a", "203.0.113.10")])
    en.add_route(_DEFAULT_ROUTE, "epair0a")
    en.listens = lambda protocol, port: not flow.startswith(_EN_CLOSED)
    en.allow_net240 = flow.endswith("allow_net240=1")
    configure(en, *_EN_RULES)
    inside_mtu = 1000 if flow == "icmp fragmentation needed at the router" else 1500
    router = Host(
        [interface("epair0b", "203.0.113.1"), interface("epair1a", "192.168.0.1", mtu=inside_mtu)], forwarding=True
    )
    configure(router, *_ROUTER_RULES)
    router.start_natd("epair0b", deny_incoming="no -deny_incoming" not in flow)
    return {"en": en, "router": router}


def _is_type(event: Event, *types: int) -> bool:
    data = bytes.fromhex(event["packet"])
    return data[9] == Protocol.ICMP and data[packet.header_length(data)] in types


# In these the program speaks to G2 itself, past NAT-f: everything but the control connection.
_DIRECT = ("ftp pasv", "ftp port", "ftp eprt")
_FTP = 21


def _flow_sender(event: Event) -> str | None:
    if event["point"] == "en.8711 out" and event["op"] == "read":
        return None if _is_type(event, 3) else "en"
    if (event["point"], event["op"]) != ("wire en epair0a", "sent"):
        return None
    data = bytes.fromhex(event["packet"])
    flow = packet.flow_of(data)
    is_direct = event["flow"] in _DIRECT and flow is not None and flow.destination.port != _FTP
    return "en" if _is_type(event, 8) or is_direct else None


FLOWS = Script(
    FLOWS_WIRING,
    _flow_hosts,
    _flow_sender,
    {
        "en": lambda event: event["point"] == "en.8711 out" and event["op"] == "read" and _is_type(event, 3),
        "router": lambda event: (
            event["point"] == "router.tee 49 before natd"
            and event["sockaddr"][8:16] == "00000000"
            and event["sockaddr"][16:] == "0000000000000000"
            and int(event["packet"][18:20], 16) == Protocol.ICMP
        ),
    },
)


# private-to-private.jsonl

HOMES_WIRING = Wiring(
    enters={
        ("wire alice epair0a", "sent"): ("router1", "epair0b"),
        ("wire core epair1b", "received"): ("core", "epair1b"),
        ("wire core epair1b", "sent"): ("router1", "epair1a"),
        ("wire core epair2a", "sent"): ("router2", "epair2b"),
        ("wire core epair2a", "received"): ("core", "epair2a"),
        ("wire carol epair3b", "sent"): ("router2", "epair3a"),
    },
    leaves={
        ("wire alice epair0a", "received"): ("router1", "epair0b"),
        ("wire core epair1b", "received"): ("router1", "epair1a"),
        ("wire core epair1b", "sent"): ("core", "epair1b"),
        ("wire core epair2a", "sent"): ("core", "epair2a"),
        ("wire core epair2a", "received"): ("router2", "epair2b"),
        ("wire carol epair3b", "received"): ("router2", "epair3a"),
    },
    ports={
        "router1.8710 dns": ("router1", 8710),
        "router1.8711 out": ("router1", 8711),
        "router1.8712 in": ("router1", 8712),
        "router1.8713 errors": ("router1", 8713),
        "router1.8714 replies": ("router1", 8714),
        "router2.8701 control": ("router2", 8701),
        "router2.8702 capture": ("router2", 8702),
    },
)
_HOME_RULES = (
    "table natf_peers create type addr",
    "add 39 set 5 reass udp from any to me in recv {outside}",
    "add 40 set 5 divert 8701 icmp from any to me in recv {outside} icmptypes 8",
    "add 41 set 5 allow icmp from any to me in recv {outside} icmptypes 8",
    "add 43 set 5 divert 8714 icmp from any to me in recv {outside} icmptypes 0",
    "add 44 set 5 deny ip from 240.0.0.0/4 to any in recv {outside}",
    "add 45 set 5 divert 8710 udp from any 53 to me in recv {outside}",
    "add 46 set 5 divert 8713 icmp from any to me in recv {outside} icmptypes 3,4,11,12",
    "add 48 set 5 divert 8712 { tcp or udp } from table(natf_peers) to me in recv {outside}",
    "add 50 divert natd ip4 from any to any via {outside}",
    "add 51 set 5 divert 8702 ip from any to any out xmit {outside} ipid 20038 ipttl 1",
    "add 52 set 5 allow icmp from me to any out xmit {outside} icmptypes 0,8 diverted-output",
    "add 54 set 5 divert 8711 ip from me to 240.0.0.0/4 out xmit {outside}",
    "add 55 set 5 allow ip from me to any out xmit {outside} diverted-output",
)


def _home_router(outside: Interface, inside: Interface) -> Host:
    host = Host([outside, inside], forwarding=True)
    host.add_route(_DEFAULT_ROUTE, outside.name)
    host.listens = lambda protocol, port: True
    configure(host, *(rule.replace("{outside}", outside.name) for rule in _HOME_RULES))
    host.start_natd(outside.name, deny_incoming=True)
    return host


def _home_hosts(_: str) -> dict[str, Host]:
    core = Host([interface("epair1b", "203.0.113.254"), interface("epair2a", "198.51.100.254")], forwarding=True)
    core.listens = lambda protocol, port: True
    caller = _home_router(interface("epair1a", "203.0.113.1"), interface("epair0b", "192.168.0.1"))
    configure(caller, "table natf_peers add 198.51.100.1")
    called = _home_router(interface("epair2b", "198.51.100.1"), interface("epair3a", "192.168.0.1"))
    return {"router1": caller, "core": core, "router2": called}


def _home_sender(event: Event) -> str | None:
    """Router 1's own programs, seen behind natd, which keeps their ports; and the name server on core."""
    if event["flow"] == "router1 itself calls" and (event["point"], event["op"]) == ("router1.8711 out", "read"):
        return "router1"
    is_answer = event["flow"] == "dns" and (event["point"], event["op"]) == ("wire core epair1b", "sent")
    return "core" if is_answer else None


def _core_speaks(event: Event) -> bool:
    source = bytes.fromhex(event["packet"])[12:16]
    return event["op"] == "sent" and event["point"].startswith("wire core") and source[3:] == b"\xfe"


HOMES = Script(
    HOMES_WIRING,
    _home_hosts,
    _home_sender,
    {"core": lambda event: _core_speaks(event) and _is_type(event, 0, 3, 11)},
)
