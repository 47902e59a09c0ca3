"""The external node restarted: names keep their addresses, flows their mappings; rubbish in the journal is harmless."""

from __future__ import annotations

import json
import math

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.config import EnConfig
from natf_bsd.en import report
from natf_bsd.en.core import EnCore
from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Name, format_address
from natf_bsd.wire import packet


def living(records: list[dict[str, object]]) -> list[dict[str, object]]:
    """What the journal keeps of them (ops/journal.py), through JSON as on disk."""
    kept: dict[object, dict[str, object]] = {}
    for record in records:
        kept.pop(record["id"], None)
        if not record.get("gone"):
            kept[record["id"]] = json.loads(json.dumps(record))
    return list(kept.values())


def restarted(make_bench, bench, *, reverse: bool = False):
    """A new external node with the journal of `bench`; its clock begins anew, the time of day goes on."""
    after = make_bench(bench.config)
    after.now = 5.0
    after.core.epoch_offset = bench.core.epoch_offset + bench.now - after.now
    records = living(bench.saved)
    assert after.core.restore(records[::-1] if reverse else records, after.now) == []
    return after


def test_addresses_flows_and_mappings_are_the_same_as_before(make_bench, bench) -> None:
    alice, bob = bench.learn("alice"), bench.learn("bob")
    bench.out(bench.syn(alice))
    bench.map(61000, 86400)
    bench.come(bench.tcp_back(packet.TCP_SYN | packet.TCP_ACK))
    after = restarted(make_bench, bench, reverse=True)
    assert (after.learn("alice"), after.learn("bob")) == (alice, bob)
    assert after.count("flows.restored") == 1
    after.come(after.tcp_back(packet.TCP_ACK))
    assert dpkt.ip.IP(after.sent[-1]).src == alice
    after.out(after.tcp(alice, packet.TCP_ACK))
    assert dpkt.ip.IP(after.sent[-1]).data.dport == 61000


def test_the_first_segment_of_a_restored_connection_goes_on_and_asks_once(make_bench, bench) -> None:
    alice = bench.learn()
    bench.out(bench.syn(alice))
    bench.map(61000)
    after = restarted(make_bench, bench)
    for _ in range(3):
        after.out(after.tcp(alice, packet.TCP_ACK))
    assert len(after.sent) == 3
    assert len(after.asked) == 1
    after.map(61007)
    assert after.count("mapping.changed") == 1


def test_a_restored_flow_asks_before_it_sends_what_the_router_itself_could_answer(make_bench, bench) -> None:
    """If the router was restarted too, G2:m is a port of its own."""
    alice = bench.learn()
    bench.out(bench.udp(alice))
    bench.map(61000)
    bench.out(bench.syn(alice))
    bench.map(61001)
    after = restarted(make_bench, bench)
    after.out(after.udp(alice))
    after.out(after.syn(alice))
    assert after.sent == []
    assert len(after.asked) == 2
    after.map(61007)
    assert dpkt.ip.IP(after.sent[0]).data.dport == 61007


def test_a_new_connection_on_an_old_four_tuple_asks_again(bench) -> None:
    alice = bench.learn()
    bench.out(bench.syn(alice))
    bench.map(61000)
    bench.come(bench.tcp_back(packet.TCP_SYN | packet.TCP_ACK))
    bench.come(bench.tcp_back(packet.TCP_RST))
    before = len(bench.sent)
    bench.out(bench.syn(alice, sequence=9000))
    assert len(bench.sent) == before
    assert len(bench.asked) == 2


def test_a_router_with_a_restored_flow_is_known_to_speak_natf(make_bench, bench) -> None:
    """Its daemon is away while we restart: a new flow must not end at the router itself, an old one not move there."""
    alice = bench.learn()
    bench.out(bench.udp(alice))
    bench.map(61000)
    after = restarted(make_bench, bench)
    after.out(after.udp(alice))
    after.mirror()
    after.out(after.udp(alice, s=40001))
    after.mirror()
    assert after.count("control.ignored.mirror_of_peer") == 2
    assert len(after.core.vat) == 0


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_a_restored_flow_once_confirmed_asks_no_more(make_bench, bench, udp: bool) -> None:
    alice = bench.learn()
    bench.out(bench.udp(alice) if udp else bench.syn(alice))
    bench.map(61000, 86400)
    after = restarted(make_bench, bench)
    for number in range(1, 6):
        after.out(after.udp(alice) if udp else after.tcp(alice, packet.TCP_ACK))
        if number == 1:
            after.map(61000, 86400)
        assert (len(after.sent), len(after.asked)) == (number, 1)


def test_a_restored_flow_that_ended_leaves_no_doubt_about_its_successor(make_bench, bench) -> None:
    alice = bench.learn()
    bench.out(bench.udp(alice))
    bench.map(61000, 60)
    after = restarted(make_bench, bench)
    after.wait(61)
    assert len(after.core.vat) == 0
    after.out(after.udp(alice))
    after.map(61001)
    after.out(after.udp(alice))
    assert (len(after.sent), len(after.asked)) == (2, 1)


def test_a_name_no_request_can_carry_is_left_out(make_bench) -> None:
    name = Name("Alice", "home.example.net")
    record = {**ALICE, "host": name.host, "virtual": format_address(next(VirtualAddresses().candidates(name)))}
    bench = make_bench()
    assert len(bench.core.restore([record], bench.now)) == 1
    assert len(bench.core.names) == 0


def test_a_restored_direct_flow_stays_direct(make_bench, bench) -> None:
    virtual = bench.learn()
    bench.out(bench.udp(virtual))
    bench.mirror()
    after = restarted(make_bench, bench)
    after.out(after.udp(virtual))
    assert dpkt.ip.IP(after.sent[0]).data.dport == 5000
    assert after.asked == []
    assert not after.core.peers.speaks_natf(after.G2)


def test_an_established_connection_may_be_idle_for_long_after_the_restart(make_bench, bench) -> None:
    alice = bench.learn()
    bench.out(bench.syn(alice))
    bench.map(61000, 86400)
    bench.come(bench.tcp_back(packet.TCP_SYN | packet.TCP_ACK))
    after = restarted(make_bench, bench)
    after.wait(80000)
    assert len(after.core.vat) == 1
    assert after.core.names.by_virtual(alice)


def test_what_ended_before_the_restart_does_not_come_back(make_bench, bench) -> None:
    alice = bench.learn()
    bench.out(bench.udp(alice))
    bench.map(61000, 60)
    bench.wait(61)
    after = restarted(make_bench, bench)
    assert len(after.core.vat) == 0
    assert after.core.names.by_virtual(alice)


def test_a_name_long_expired_is_forgotten_and_the_journal_told(make_bench) -> None:
    bench = make_bench(EnConfig(("home.example.net",), quarantine=100.0))
    alice = bench.learn(ttl=60)
    bench.now += 1000
    after = restarted(make_bench, bench)
    after.wait(1)
    assert after.core.names.by_virtual(alice) is None
    assert after.saved == [{"id": "name alice.home.example.net", "gone": True}]


def test_a_flow_whose_name_is_gone_is_reported(make_bench, bench) -> None:
    bench.out(bench.udp(bench.learn()))
    bench.map(61000)
    after = make_bench()
    complaints = after.core.restore([record for record in bench.saved if str(record["id"]).startswith("flow")], 0.0)
    assert len(complaints) == 1
    assert complaints[0].startswith("flow ")
    assert len(after.core.vat) == 0


def test_a_changed_prefix_drops_the_old_addresses_in_words(make_bench, bench) -> None:
    bench.learn()
    after = make_bench(EnConfig(("home.example.net",), virtual_prefix=241))
    complaints = after.core.restore(living(bench.saved), 0.0)
    assert "can't have the virtual address 240" in complaints[0] or "f0." in complaints[0]
    assert len(after.core.names) == 0


def test_a_smaller_table_keeps_what_fits(make_bench, bench) -> None:
    virtual = bench.learn()
    for s in range(40000, 40003):
        bench.out(bench.udp(virtual, s=s))
        bench.map(s)
    after = make_bench(EnConfig(("home.example.net",), maximum_flows=2))
    assert len(after.core.restore(living(bench.saved), 0.0)) == 1
    assert len(after.core.vat) == 2


ALICE = {
    "id": "name alice.home.example.net",
    "host": "alice",
    "domain": "home.example.net",
    "virtual": format_address(next(VirtualAddresses().candidates(Name("alice", "home.example.net")))),
    "routers": ["203.0.113.1"],
    "expires": 1000.0,
}
FLOW = {
    "id": "flow 00",
    "protocol": 17,
    "source": "203.0.113.10:40000",
    "destination": f"{ALICE['virtual']}:5000",
    "mapped": "203.0.113.1:61000",
    "lifetime": 60,
    "direct": False,
}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.text(max_size=9)), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def test_the_records_the_next_tests_spoil_are_good(make_bench) -> None:
    bench = make_bench()
    assert bench.core.restore([FLOW, ALICE], bench.now) == []
    assert len(bench.core.vat) == 1


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        (ALICE, "host", "Alice"),
        (ALICE, "host", ""),
        (ALICE, "domain", "home..net"),
        (ALICE, "virtual", "240.0.0.0"),
        (ALICE, "virtual", "203.0.113.7"),
        (ALICE, "routers", []),
        (ALICE, "routers", "203.0.113.1"),
        (ALICE, "expires", math.nan),
        (ALICE, "expires", None),
        (FLOW, "protocol", 1),
        (FLOW, "protocol", 1000),
        (FLOW, "protocol", math.inf),
        (FLOW, "source", 5),
        (FLOW, "source", "203.0.113.10"),
        (FLOW, "destination", "203.0.113.10:70000"),
        (FLOW, "destination", "240.9.9.9:80"),
        (FLOW, "mapped", "nowhere:1"),
        (FLOW, "lifetime", math.inf),
        (FLOW, "lifetime", "long"),
    ],
)
def test_a_spoilt_record_is_reported_by_its_id_and_left_out(make_bench, record, key: str, value: object) -> None:
    bench = make_bench()
    records = [{**one, key: value} if one is record else one for one in (ALICE, FLOW)]
    complaints = bench.core.restore(records, bench.now)
    assert complaints[0].startswith(f"{record['id']}: ")
    assert len(bench.core.vat) == 0
    bench.wait(10)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([*ALICE, *FLOW]), JUNK, st.booleans()), max_size=4))
def test_whatever_stands_in_the_journal_the_node_starts_and_works(
    spoils: list[tuple[bool, str, object, bool]],
) -> None:
    core = EnCore(EnConfig(("home.example.net",)))
    records: list[dict[str, object]] = []
    for flow, key, value, missing in spoils:
        record: dict[str, object] = dict(FLOW if flow else ALICE)
        record[key] = value
        if missing:
            record.pop(key)
        records.append(record)
    complaints = core.restore(records, 100.0)
    assert len(complaints) <= len(records)
    core.handle_timer(200.0)
    json.dumps(report.tables(core, 200.0, 10))
