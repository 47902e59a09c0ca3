"""The external node's tables as plain values, for `natf status` and its JSON."""

from __future__ import annotations

from itertools import islice

from natf_bsd.en.core import EnCore
from natf_bsd.en.negotiation import Negotiation
from natf_bsd.tables.nrt import NameRelation
from natf_bsd.tables.vat import VatEntry
from natf_bsd.types import Protocol, format_address


def tables(core: EnCore, now: float, limit: int) -> dict[str, object]:
    """At most `limit` rows a table, and how many there are; times in seconds from `now`."""
    return {
        "names": [_name(relation, now) for relation in islice(core.names, limit)],
        "names_total": len(core.names),
        "flows": [_flow(entry, now) for entry in islice(core.vat, limit)],
        "flows_total": len(core.vat),
        "negotiations": [_negotiation(negotiation, now) for negotiation in islice(core.negotiations(), limit)],
        "routers": [
            {"address": format_address(peer.address), "round_trip": peer.smoothed_rtt}
            for peer in islice(core.peers, limit)
        ],
        "held": len(core.held),
        "heard": list(core.heard),
        "refused": {
            "names": core.names.refused,
            "flows": core.vat.refused,
            "routers": core.peers.refused,
            "refusals": core.refusals.refused,
        },
        "superseded": core.vat.superseded,
        "counters": core.counters.snapshot(),
    }


def _name(relation: NameRelation, now: float) -> dict[str, object]:
    return {
        "name": str(relation.name),
        "virtual": format_address(relation.virtual),
        "routers": [format_address(router) for router in relation.routers],
        "flows": relation.flows,
        "ttl_left": round(relation.expires - now, 1),
    }


def _flow(entry: VatEntry, now: float) -> dict[str, object]:
    return {
        "protocol": Protocol(entry.flow.protocol).name.lower(),
        "source": str(entry.flow.source),
        "virtual": str(entry.flow.destination),
        "mapped": str(entry.mapped),
        "name": str(entry.relation.name),
        "state": entry.state.value if entry.state else "in use",
        "direct": entry.direct,
        "in_kernel": entry.in_kernel,
        "lifetime": entry.lifetime,
        "idle": round(now - entry.last_use, 1),
        "expires_in": round(entry.deadline - now, 1),
    }


def _negotiation(negotiation: Negotiation, now: float) -> dict[str, object]:
    return {
        "flow": str(negotiation.flow),
        "name": str(negotiation.name),
        "router": format_address(negotiation.router),
        "state": negotiation.state.value,
        "renewal": negotiation.renewal,
        "next_try_in": round(negotiation.due - now, 3),
    }
