"""What of the external node's tables survives a restart, as journal records (ops/journal.py).

A virtual address must mean the same name after a restart, since applications keep addresses, and a
download whose every packet comes in would never make its flow negotiate again: so names and flows are both
kept (DESIGN.md section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from natf_bsd.en.peers import Peer
from natf_bsd.tables.nrt import NameRelation
from natf_bsd.tables.vat import VatEntry
from natf_bsd.types import Endpoint, Flow, Name, Protocol, format_address, parse_address
from natf_bsd.wire.message import valid_name

Record = dict[str, object]


def name_record(relation: NameRelation, epoch_offset: float) -> Record:
    """`epoch_offset`: seconds from the monotonic clock to 1970; times are kept as time since 1970."""
    return {
        "id": f"name {relation.name}",
        "host": relation.name.host,
        "domain": relation.name.domain,
        "virtual": format_address(relation.virtual),
        "routers": [format_address(router) for router in relation.routers],
        "expires": round(relation.expires + epoch_offset, 1),
    }


def flow_record(entry: VatEntry) -> Record:
    return {
        "id": f"flow {entry.flow.key.hex()}",
        "protocol": entry.flow.protocol,
        "source": str(entry.flow.source),
        "destination": str(entry.flow.destination),
        "mapped": str(entry.mapped),
        "lifetime": entry.lifetime,
        "direct": entry.direct,
    }


def flow_gone(entry: VatEntry) -> Record:
    """The record that takes back `flow_record`."""
    return {"id": f"flow {entry.flow.key.hex()}", "gone": True}


def name_gone(relation: NameRelation) -> Record:
    """The record that takes back `name_record`."""
    return {"id": f"name {relation.name}", "gone": True}


def router_record(peer: Peer, epoch_offset: float) -> Record:
    """A router that speaks NAT-f, and how long to remember that."""
    address = format_address(peer.address)
    return {"id": f"router {address}", "address": address, "until": round(peer.deadline + epoch_offset, 1)}


def router_gone(peer: Peer) -> Record:
    """The record that takes back `router_record`."""
    return {"id": f"router {format_address(peer.address)}", "gone": True}


def read_router(record: dict[str, Any], epoch_offset: float) -> tuple[bytes, float]:
    """Address and monotonic deadline; ValueError, KeyError or TypeError if the record is not whole."""
    return parse_address(record["address"]), _finite(record["until"]) - epoch_offset


def read_name(record: dict[str, Any], epoch_offset: float) -> tuple[Name, bytes, tuple[bytes, ...], float]:
    """Name, virtual address, routers, monotonic expiry; ValueError, KeyError or TypeError if it is not whole."""
    name = Name(str(record["host"]), str(record["domain"]))
    if not valid_name(name):
        raise ValueError(f"{name} is not a name a request can carry")
    return (
        name,
        parse_address(record["virtual"]),
        tuple(parse_address(router) for router in record["routers"]),
        _finite(record["expires"]) - epoch_offset,
    )


def read_flow(record: dict[str, Any]) -> tuple[Flow, Endpoint, float, bool]:
    """Flow, mapped endpoint, lifetime and direct; ValueError, KeyError or TypeError if it is not whole."""
    protocol = record["protocol"]
    if protocol not in (Protocol.TCP, Protocol.UDP):
        raise ValueError(f"protocol {protocol!r} is neither TCP nor UDP")
    flow = Flow(Protocol(protocol), _endpoint(record["source"]), _endpoint(record["destination"]))
    return flow, _endpoint(record["mapped"]), _finite(record["lifetime"]), bool(record["direct"])


def _finite(value: Any) -> float:
    """A time that can be reckoned with: JSON as Python reads it knows NaN and Infinity."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a time")
    return number


def _endpoint(value: Any) -> Endpoint:
    address, _, port = str(value).rpartition(":")
    number = int(port)
    if not 0 <= number <= 65535:
        raise ValueError(f"{number} is not a port")
    return Endpoint(parse_address(address), number)


def by_kind(records: Iterable[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """Names, routers, flows. In this order, since a flow needs its name."""
    kinds: dict[str, list[Record]] = {"name": [], "router": [], "flow": []}
    for record in records:
        kind = str(record.get("id", "")).partition(" ")[0]
        kinds[kind if kind in kinds else "flow"].append(record)
    return kinds["name"], kinds["router"], kinds["flow"]
