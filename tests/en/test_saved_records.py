"""Journal records of names and flows: there and back, and whatever else a file may hold."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natf_bsd.en import saved
from natf_bsd.en.peers import Peer
from natf_bsd.tables.nrt import NameRelation
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Endpoint, Flow, Name, parse_address

NAME = Name("alice", "home.example.net")
VIRTUAL = next(VirtualAddresses().candidates(NAME))
G2 = parse_address("203.0.113.1")
FLOW = {
    "id": "flow x",
    "protocol": 6,
    "source": "203.0.113.10:40000",
    "destination": "240.0.1.1:80",
    "mapped": "203.0.113.1:80",
    "lifetime": 60.0,
    "direct": False,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400) | st.text() | st.just("1.2.3.4:5"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_a_name_comes_back_with_its_time_on_the_new_clock():
    record = saved.name_record(NameRelation(NAME, VIRTUAL, (G2,), expires=500.0), epoch_offset=1_000_000.0)
    again = json.loads(json.dumps(record))
    assert saved.read_name(again, epoch_offset=1_000_400.0) == (NAME, VIRTUAL, (G2,), 100.0)


def test_a_flow_comes_back():
    flow = Flow(6, Endpoint(parse_address("203.0.113.10"), 40000), Endpoint(parse_address("240.0.1.1"), 80))
    assert saved.read_flow(FLOW) == (flow, Endpoint(G2, 80), 60.0, False)


@pytest.mark.parametrize("lifetime", [10**400, float("inf"), float("nan"), "soon", None, []])
def test_a_lifetime_that_is_no_time_is_refused(lifetime):
    with pytest.raises((ValueError, TypeError)):
        saved.read_flow(FLOW | {"lifetime": lifetime})


@settings(deadline=None)
@given(st.sampled_from(sorted(FLOW)), JSON)
def test_any_flow_record_is_read_or_refused_in_the_agreed_ways(key, value):
    with contextlib.suppress(ValueError, KeyError, TypeError):
        flow, _, lifetime, _ = saved.read_flow(FLOW | {key: value})
        assert len(flow.key) == 13
        assert lifetime < float("inf")


@settings(deadline=None)
@given(st.sampled_from(["host", "domain", "virtual", "routers", "expires"]), JSON)
def test_any_name_record_is_read_or_refused_in_the_agreed_ways(key, value):
    record = saved.name_record(NameRelation(NAME, VIRTUAL, (G2,), expires=500.0), 0.0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        _, virtual, routers, _ = saved.read_name(record | {key: value}, 0.0)
        assert {len(address) for address in (virtual, *routers)} == {4}


def test_names_come_before_the_flows_that_need_them():
    records = [{"id": "flow a"}, {"id": "name b"}, {"id": "router c"}, {"id": "flow d"}, {}]
    kinds = ([{"id": "name b"}], [{"id": "router c"}], [{"id": "flow a"}, {"id": "flow d"}, {}])
    assert saved.by_kind(records) == kinds


@settings(deadline=None)
@given(st.sampled_from(["address", "until"]), JSON)
def test_any_router_record_is_read_or_refused_in_the_agreed_ways(key, value):
    record = saved.router_record(Peer(G2, 0.1, 500.0, 0.0), 0.0)
    assert saved.read_router(record, 0.0) == (G2, 500.0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        address, _ = saved.read_router(record | {key: value}, 0.0)
        assert len(address) == 4
