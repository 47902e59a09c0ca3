"""vat-in-kernel.jsonl: flows that `ipfw nat ... reverse` with flow tables translates on the external node."""

from __future__ import annotations

from collections.abc import Sequence

from natf_bsd.lab.ipfw_model.host import Host, interface
from natf_bsd.lab.ipfw_model.replay.report import Event, Report, configure, delayed, divert_socket, read_all
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build
from natf_bsd.wire.packet import Rewrite

SPEED = "how fast it was: the model has no speed"

_FIELDS = "src-ip,proto,src-port,dst-ip,dst-port"
_HELD = 8711
_RULES = (
    f"table vo create type flow:{_FIELDS} valtype nat",
    f"table vi create type flow:{_FIELDS} valtype nat",
    "add 33 nat tablearg ip from me to 240.0.0.0/4 out flow table(vo)",
    "add 34 nat tablearg ip from any to me in flow table(vi)",
    f"add 35 divert {_HELD} ip from me to 240.0.0.0/4 out",
)
_G1, _G2, _V1 = (parse_address(text) for text in ("203.0.113.10", "203.0.113.1", "240.0.1.1"))


def replay(events: Sequence[Event], report: Report) -> None:
    """Compare what was translated, held and refused, and how the commands ended; leave out what is only about speed."""
    for event in events:
        name = event["series"]
        if "wire" in event:
            report.compare(name, _udp(event), [packet["packet"] for packet in event["wire"]])
        elif "held" in event:
            held, ends, diverted, destination = _held(event)
            recorded = (event["held"], [command[1:] for command in event["commands"]], event["diverted_later"], _G2)
            report.compare(name, (held, ends, diverted, destination), recorded)
        elif "deleted instance" in name:
            report.compare(name, _deleted(), "Permission denied" in event["errors"])
        else:
            report.leave_out(SPEED)


def _host() -> Host:
    host = Host([interface("epair0a", "203.0.113.10")])
    host.add_route((0, 0), "epair0a")
    host.listens = lambda protocol, port: True
    configure(host, *_RULES)
    return host


def _give(host: Host, protocol: str, source: int, port: int, number: int) -> None:
    configure(
        host,
        f"nat {number} config ip 240.0.1.1 reverse redirect_port {protocol}"
        f" 203.0.113.1:{port} 240.0.1.1:{port} 203.0.113.10:{source}",
        f"table vi add 203.0.113.1,{protocol},{port},203.0.113.10,{source} {number}",
        f"table vo add 203.0.113.10,{protocol},{source},240.0.1.1,{port} {number}",
    )


def _udp(event: Event) -> list[str]:
    """The program's packet as the wire had it, and the answer as it was before it was translated: an answer that is
    not for the program would not be delivered as one of V1."""
    sent, answered = (bytes.fromhex(packet["packet"]) for packet in event["wire"])
    source = int.from_bytes(sent[20:22], "big")
    virtual, mapped = Endpoint(_V1, 5000), Endpoint(_G2, 5000)
    host = _host()
    _give(host, "udp", source, 5000, 1999)
    before = bytearray(sent)
    Rewrite(destination=(mapped, virtual)).apply(before)
    host.send(bytes(before))
    host.receive("epair0a", answered)
    ((_, got),) = host.delivered
    after = bytearray(got)
    Rewrite(source=(virtual, mapped)).apply(after)
    return [data.hex() for _, data in host.wire] + [after.hex()]


def _held(event: Event) -> tuple[str, list[list[object]], int, bytes]:
    """(packet held, how the commands ended, packets diverted later, where the held one then went)."""
    host = _host()
    descriptor = divert_socket(host, _HELD)
    data, is_delayed = delayed(bytes.fromhex(event["held"]))
    host.output(data, delayed=is_delayed)
    ((held, sockaddr),) = read_all(host, descriptor)
    ends = [list(host.ipfw(command[0].split())) for command in event["commands"]]
    place = bytearray(sockaddr)
    place[2:4] = (32).to_bytes(2, "little")
    host.sockets.sendto(descriptor, held, bytes(place))
    host.send(bytes(build.tcp(Endpoint(_G1, 45000), Endpoint(_V1, 80), flags=16, sequence=2)))
    ((_, went), _) = host.wire
    return held.hex(), ends, len(list(read_all(host, descriptor))), went[16:20]


def _deleted() -> bool:
    """Whether the program is refused."""
    host = _host()
    _give(host, "tcp", 45000, 80, 1998)
    configure(host, "nat 1998 delete")
    try:
        host.send(bytes(build.tcp(Endpoint(_G1, 45000), Endpoint(_V1, 80), flags=2, sequence=1)))
    except PermissionError:
        return True
    return False
