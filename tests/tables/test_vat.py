import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import TableFull
from natf_bsd.tables.expiring import DuplicateKey
from natf_bsd.tables.nrt import NameRelation
from natf_bsd.tables.vat import (
    SILENCE_GAP,
    SILENCE_PACKETS,
    SILENCE_SECONDS,
    TCP_CLOSING,
    TCP_HALF_CLOSED,
    TCP_OPENING,
    TCP_RESET,
    UDP_RENEWAL,
    TcpState,
    VatEntry,
    VatTable,
)
from natf_bsd.types import Endpoint, Flow, Name, Protocol, parse_address
from natf_bsd.wire import build, packet
from natf_bsd.wire.packet import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

G1 = parse_address("203.0.113.10")
G2 = parse_address("203.0.113.1")
V1 = parse_address("240.0.1.2")
V2 = parse_address("240.0.1.3")
ALICE = NameRelation(Name("alice", "home.example.net"), V1, (G2,), expires=1e6)
BOB = NameRelation(Name("bob", "home.example.net"), V2, (G2,), expires=1e6)
TCP_FLOW = Flow(Protocol.TCP, Endpoint(G1, 40000), Endpoint(V1, 80))
UDP_FLOW = Flow(Protocol.UDP, Endpoint(G1, 40000), Endpoint(V1, 5000))
MAPPED = Endpoint(G2, 61000)
DAY = 86400.0
TICK = 0.001


def entry_in(table: VatTable, flow: Flow = TCP_FLOW, mapped: Endpoint = MAPPED, lifetime: float = DAY, **options):
    return table.insert(flow, mapped, ALICE, lifetime, 0.0, **options)


def established(table: VatTable | None = None) -> VatEntry:
    entry = entry_in(table if table is not None else VatTable())
    entry.note_out(TCP_SYN, 0.0)
    entry.note_in(TCP_SYN | TCP_ACK, 0.1)
    entry.note_out(TCP_ACK, 0.2)
    return entry


def udp(lifetime: float = 60.0, **options) -> VatEntry:
    return entry_in(VatTable(), UDP_FLOW, lifetime=lifetime, **options)


# Finding and rewriting


def test_an_entry_is_found_by_its_packets_in_both_directions():
    table = VatTable()
    entry = entry_in(table)
    outgoing = build.tcp(TCP_FLOW.source, TCP_FLOW.destination, flags=TCP_SYN)
    incoming = build.tcp(MAPPED, TCP_FLOW.source, flags=TCP_SYN | TCP_ACK)
    assert table.by_out(packet.flow_key(outgoing)) is entry
    assert table.by_in(packet.flow_key(incoming)) is entry
    assert table.by_out(packet.flow_key(incoming)) is None
    assert table.by_in(packet.flow_key(outgoing)) is None


def test_rewriting_turns_the_application_s_packets_into_the_network_s_and_back():
    entry = entry_in(VatTable())
    outgoing = build.tcp(TCP_FLOW.source, TCP_FLOW.destination, flags=TCP_ACK, payload=b"hello")
    entry.out_rewrite.apply(outgoing)
    assert outgoing == build.tcp(TCP_FLOW.source, MAPPED, flags=TCP_ACK, payload=b"hello")
    incoming = build.tcp(MAPPED, TCP_FLOW.source, flags=TCP_ACK, payload=b"world")
    entry.in_rewrite.apply(incoming)
    assert incoming == build.tcp(TCP_FLOW.destination, TCP_FLOW.source, flags=TCP_ACK, payload=b"world")


def test_a_direct_entry_leads_to_the_service_port_itself():
    entry = entry_in(VatTable(), mapped=Endpoint(G2, 80), direct=True)
    outgoing = build.tcp(TCP_FLOW.source, TCP_FLOW.destination, flags=TCP_ACK)
    entry.out_rewrite.apply(outgoing)
    assert outgoing == build.tcp(TCP_FLOW.source, Endpoint(G2, 80), flags=TCP_ACK)
    assert entry.direct


def test_a_flow_has_one_entry():
    table = VatTable()
    entry = entry_in(table)
    with pytest.raises(DuplicateKey):
        entry_in(table, mapped=Endpoint(G2, 7))
    assert list(table) == [entry]


def test_a_full_table_refuses_and_supersedes_nothing():
    table = VatTable(maximum=1)
    entry = entry_in(table)
    with pytest.raises(TableFull):
        table.insert(UDP_FLOW, MAPPED, ALICE, 60, 0.0)
    other_flow = Flow(Protocol.TCP, TCP_FLOW.source, Endpoint(V2, 80))
    with pytest.raises(TableFull):
        table.insert(other_flow, MAPPED, BOB, DAY, 0.0)
    assert table.refused == 2
    assert list(table) == [entry]


def test_a_removed_entry_is_told_once_and_may_still_be_used_by_who_holds_it():
    removed = []
    table = VatTable(on_remove=removed.append)
    entry = established(table)
    table.remove(entry)
    with pytest.raises(KeyError):
        table.remove(entry)
    entry.note_out(TCP_RST, 1.0)
    assert removed == [entry]
    assert table.by_out(entry.out_key) is None
    assert table.by_in(entry.in_key) is None
    assert table.next_deadline() is None


# Remapping


def test_remap_moves_the_incoming_key_and_the_rewriting():
    table = VatTable()
    entry = established(table)
    moved = Endpoint(G2, 62000)
    table.remap(entry, moved, 300, 5.0)
    assert table.by_in(Flow(Protocol.TCP, MAPPED, TCP_FLOW.source).key) is None
    assert table.by_in(Flow(Protocol.TCP, moved, TCP_FLOW.source).key) is entry
    assert (entry.mapped, entry.lifetime, entry.mapped_at) == (moved, 300, 5.0)
    incoming = build.tcp(moved, TCP_FLOW.source, flags=TCP_ACK)
    entry.in_rewrite.apply(incoming)
    assert incoming == build.tcp(TCP_FLOW.destination, TCP_FLOW.source, flags=TCP_ACK)
    outgoing = build.tcp(TCP_FLOW.source, TCP_FLOW.destination, flags=TCP_ACK)
    entry.out_rewrite.apply(outgoing)
    assert outgoing == build.tcp(TCP_FLOW.source, moved, flags=TCP_ACK)


def test_remap_to_the_same_port_keeps_the_entry():
    table = VatTable()
    entry = established(table)
    table.remap(entry, MAPPED, DAY, 5.0)
    assert table.by_in(entry.in_key) is entry
    assert table.superseded == 0


def test_a_shorter_lifetime_is_honoured_at_once():
    table = VatTable()
    entry = established(table)
    table.remap(entry, MAPPED, 100, 5.0)
    assert table.next_deadline() == 100.2
    assert table.expire(100.2) == [entry]


def test_remap_of_an_entry_that_is_gone_is_an_error():
    table = VatTable()
    entry = entry_in(table)
    table.remove(entry)
    with pytest.raises(KeyError):
        table.remap(entry, MAPPED, DAY, 1.0)


def test_the_router_s_newest_answer_supersedes_an_entry_with_the_same_port():
    removed = []
    table = VatTable(on_remove=removed.append)
    old = entry_in(table)
    other_flow = Flow(Protocol.TCP, TCP_FLOW.source, Endpoint(V2, 80))
    new = table.insert(other_flow, MAPPED, BOB, DAY, 1.0)
    assert removed == [old]
    assert table.superseded == 1
    assert table.by_in(new.in_key) is new
    assert table.by_out(TCP_FLOW.key) is None
    third = entry_in(table, mapped=Endpoint(G2, 7))
    table.remap(third, MAPPED, DAY, 2.0)
    assert removed == [old, new]
    assert table.by_in(third.in_key) is third
    assert list(table) == [third]


# TCP states


def test_a_connection_goes_through_its_states():
    entry = entry_in(VatTable())
    assert entry.state is TcpState.OPENING
    entry.note_out(TCP_SYN, 0.0)
    assert entry.state is TcpState.OPENING
    entry.note_in(TCP_SYN | TCP_ACK, 0.1)
    assert entry.state is TcpState.ESTABLISHED
    entry.note_out(TCP_FIN | TCP_ACK, 1.0)
    assert entry.state is TcpState.ESTABLISHED
    entry.note_in(TCP_FIN | TCP_ACK, 1.1)
    assert entry.state is TcpState.CLOSING
    entry.note_out(TCP_ACK, 1.2)
    assert entry.state is TcpState.CLOSING


def test_fins_count_in_either_order():
    entry = established()
    entry.note_in(TCP_FIN | TCP_ACK, 1.0)
    entry.note_in(TCP_FIN | TCP_ACK, 1.5)
    assert entry.state is TcpState.ESTABLISHED
    entry.note_out(TCP_FIN | TCP_ACK, 2.0)
    assert entry.state is TcpState.CLOSING


@pytest.mark.parametrize("note", [VatEntry.note_out, VatEntry.note_in])
@pytest.mark.parametrize("make", [established, lambda: entry_in(VatTable())])
def test_a_reset_closes_whatever_the_state_and_nothing_but_a_syn_opens_again(note, make):
    entry = make()
    note(entry, TCP_RST | TCP_ACK, 1.0)
    assert entry.state is TcpState.CLOSED
    entry.note_in(TCP_FIN | TCP_ACK, 1.1)
    entry.note_out(TCP_FIN | TCP_ACK, 1.2)
    entry.note_in(TCP_ACK, 1.3)
    assert entry.state is TcpState.CLOSED
    entry.note_out(TCP_SYN, 1.4)
    assert entry.state is TcpState.OPENING


def test_an_entry_made_in_mid_stream_is_established_by_the_first_answer():
    entry = entry_in(VatTable())
    entry.note_out(TCP_ACK, 0.0)
    assert entry.state is TcpState.OPENING
    entry.note_in(TCP_ACK, 0.1)
    assert entry.state is TcpState.ESTABLISHED


def test_a_reused_port_starts_afresh():
    entry = established()
    entry.note_out(TCP_FIN, 1.0)
    entry.note_in(TCP_FIN, 1.0)
    entry.note_out(TCP_SYN, 2.0)
    entry.note_in(TCP_SYN | TCP_ACK, 2.1)
    entry.note_out(TCP_FIN, 3.0)
    assert entry.state is TcpState.ESTABLISHED
    assert not entry.suspect


def test_udp_has_no_state():
    entry = udp()
    entry.note_out(TCP_RST, 1.0)
    entry.note_in(TCP_FIN, 1.0)
    assert entry.state is None


# Deadlines: idle seconds after the last packet


def opening(table: VatTable) -> VatEntry:
    entry = entry_in(table)
    entry.note_out(TCP_SYN, 1.0)
    return entry


def half_closed(table: VatTable) -> VatEntry:
    entry = established(table)
    entry.note_in(TCP_FIN | TCP_ACK, 1.0)
    return entry


def closing(table: VatTable) -> VatEntry:
    entry = half_closed(table)
    entry.note_out(TCP_FIN | TCP_ACK, 1.0)
    return entry


def reset(table: VatTable) -> VatEntry:
    entry = established(table)
    entry.note_in(TCP_RST, 1.0)
    return entry


def open_and_used(table: VatTable) -> VatEntry:
    entry = established(table)
    entry.note_in(TCP_ACK, 1.0)
    return entry


def used_udp(table: VatTable) -> VatEntry:
    entry = entry_in(table, UDP_FLOW, lifetime=60)
    entry.note_in(0, 1.0)
    return entry


@pytest.mark.parametrize(
    ("make", "idle"),
    [
        (opening, TCP_OPENING),
        (open_and_used, DAY),
        (half_closed, TCP_HALF_CLOSED),
        (closing, TCP_CLOSING),
        (reset, TCP_RESET),
        (used_udp, 60.0),
    ],
)
def test_an_entry_ends_after_its_state_s_idle_time_and_each_packet_prolongs_it(make, idle):
    table = VatTable()
    entry = make(table)
    assert entry.deadline == 1.0 + idle
    entry.note_out(TCP_ACK, 1.5)
    for _ in range(3):  # the heap's bound may be early, so a sweep or two find nothing
        assert table.expire(1.5 + idle - TICK) == []
    assert table.next_deadline() <= 1.5 + idle
    assert table.expire(1.5 + idle) == [entry]


@pytest.mark.parametrize("make", [opening, half_closed])
def test_a_router_s_shorter_lifetime_goes_before_ours(make):
    table = VatTable()
    entry = make(table)
    table.remap(entry, MAPPED, 20, 1.0)
    assert entry.deadline == 21.0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["out", "in", "remap", "expire"]),
        st.sampled_from([0, TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK, TCP_FIN, TCP_RST]),
        st.floats(0, 100),
    ),
    max_size=30,
)


@given(EVENTS)
def test_whatever_happens_to_a_flow_its_end_is_never_late(events):
    table = VatTable()
    entry = entry_in(table)
    now = 0.0
    for kind, flags, delay in events:
        now += delay
        if kind == "out":
            entry.note_out(flags, now)
        elif kind == "in":
            entry.note_in(flags, now)
        elif kind == "remap":
            table.remap(entry, MAPPED, 10 + delay, now)
        elif table.expire(now):
            assert entry.deadline <= now
            break
        promised = table.next_deadline()
        assert promised is not None
        assert promised <= entry.deadline


# Renewal


def test_udp_in_use_is_renewed_every_half_minute():
    entry = udp(lifetime=120)
    entry.note_out(0, UDP_RENEWAL - TICK)
    entry.note_in(0, UDP_RENEWAL - TICK)
    assert not entry.renew_due(UDP_RENEWAL - TICK)
    entry.note_in(0, UDP_RENEWAL)
    assert entry.renew_due(UDP_RENEWAL)


def test_udp_with_a_short_lifetime_is_renewed_at_half_of_it():
    entry = udp(lifetime=20)
    entry.note_in(0, 9.9)
    assert not entry.renew_due(9.9)
    entry.note_in(0, 10.0)
    assert entry.renew_due(10.0)


def test_udp_not_in_use_since_the_last_answer_is_left_to_expire():
    assert not udp().renew_due(45.0)


def test_remap_starts_the_renewal_interval_anew():
    table = VatTable()
    entry = entry_in(table, UDP_FLOW, lifetime=60)
    entry.note_in(0, 30.0)
    table.remap(entry, MAPPED, 60, 30.0)
    entry.note_in(0, 59.0)
    assert not entry.renew_due(59.0)
    entry.note_in(0, 60.0)
    assert entry.renew_due(60.0)


def test_tcp_is_not_renewed_by_the_clock():
    entry = established()
    entry.note_in(TCP_ACK, 50_000.0)
    assert not entry.renew_due(50_000.0)


def test_a_syn_sent_twice_without_an_answer_is_reason_to_renew():
    entry = entry_in(VatTable())
    entry.note_out(TCP_SYN, 0.0)
    assert not entry.renew_due(0.0)
    entry.note_out(TCP_SYN, 1.0)
    assert entry.renew_due(1.0)


def test_each_further_syn_is_another_reason():
    table = VatTable()
    entry = entry_in(table)
    entry.note_out(TCP_SYN, 0.0)
    entry.note_out(TCP_SYN, 1.0)
    table.remap(entry, MAPPED, DAY, 1.1)
    assert not entry.renew_due(1.2)
    entry.note_out(TCP_SYN, 3.0)
    assert entry.renew_due(3.0)


def test_an_answer_ends_the_suspicion():
    entry = entry_in(VatTable())
    entry.note_out(TCP_SYN, 0.0)
    entry.note_out(TCP_SYN, 1.0)
    entry.note_in(TCP_SYN | TCP_ACK, 1.1)
    assert not entry.renew_due(1.1)


def test_a_refused_connection_tried_again_is_not_suspicious():
    entry = entry_in(VatTable())
    entry.note_out(TCP_SYN, 0.0)
    entry.note_in(TCP_RST | TCP_ACK, 0.1)
    entry.note_out(TCP_SYN, 0.2)
    assert not entry.renew_due(0.2)


def test_outgoing_packets_without_an_answer_for_a_while_are_reason_to_renew():
    entry = established()
    entry.note_in(TCP_ACK, 1.0)
    for n in range(SILENCE_PACKETS):
        entry.note_out(TCP_ACK, 100.0 + n)
    assert not entry.renew_due(100.0 + SILENCE_SECONDS - TICK)
    assert entry.renew_due(100.0 + SILENCE_SECONDS)
    entry.note_in(TCP_ACK, 106.0)
    assert not entry.renew_due(106.0)


def test_few_packets_without_an_answer_are_no_silence():
    entry = established()
    entry.note_in(TCP_ACK, 1.0)
    for n in range(SILENCE_PACKETS - 1):
        entry.note_out(TCP_ACK, 100.0 + n)
    assert not entry.renew_due(1000.0)


def test_many_packets_within_a_moment_are_no_silence():
    entry = established()
    for n in range(1000):
        entry.note_out(TCP_ACK, 50.0 + n * TICK)
    assert not entry.renew_due(51.0)


REPEATED = (0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4)  # s; TCP's repetitions, each pause twice as long
LOOKS = 2.5  # s between two looks at what the kernel has carried


def asked_by_looks(
    sent: tuple[float, ...],
    answered: tuple[float, ...],
    phase: float,
    entry: VatEntry,
    *,
    looks: float = LOOKS,
    waits: tuple[float, ...] | None = None,
) -> float | None:
    """When the router is asked again first, in seconds: packets go out at `sent` and come in at `answered`. `waits`:
    from when on (and till when, in turns) the kernel says that data are unacknowledged."""
    before = phase - looks
    for number in range(24):
        now = phase + looks * number
        out, inward = (sum(before < at <= now for at in times) for times in (sent, answered))
        told = None if waits is None else bool(sum(at <= now for at in waits) % 2)
        if out or inward or told is not None:
            entry.note_carried(out, inward, 0, reset=False, since=START + before, now=START + now, unacknowledged=told)
        if entry.renew_due(START + now, passed=bool(out or inward)):
            return now
        before = now
    return None


START = 1000.0


def carried(flow: Flow) -> VatEntry:
    entry = VatTable().insert(flow, MAPPED, ALICE, 300.0, START - LOOKS)
    if entry.state is not None:
        entry.note_in(0, START - LOOKS)
    return entry


@pytest.mark.parametrize("earlier", [0.1, 0.5, 0.7, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("phase", [round(0.1 * n, 1) for n in range(26)])
def test_a_lost_mapping_is_asked_for_before_tcp_waits_for_long(phase: float, earlier: float) -> None:
    """Whenever the looks fall, and however soon after an answer it was lost: its next repetition but one after 3 s."""
    asked = asked_by_looks((-earlier, *REPEATED), (-earlier,), phase, carried(TCP_FLOW))
    assert asked is not None
    assert asked < 10


@pytest.mark.parametrize("phase", [round(0.25 * n, 2) for n in range(11)])
def test_a_lost_mapping_of_datagrams_is_asked_for_within_eight_seconds(phase: float) -> None:
    asked = asked_by_looks(tuple(float(n) for n in range(-2, 25)), (-2.0, -1.0), phase, carried(UDP_FLOW))
    assert asked is not None
    assert asked < 8


@pytest.mark.parametrize("phase", [round(0.5 * n, 1) for n in range(6)])
@pytest.mark.parametrize("delay", [0.1, 2.0])
def test_what_is_answered_is_not_asked_for(phase: float, delay: float) -> None:
    sent = tuple(2.0 * n for n in range(14))
    assert asked_by_looks(sent, tuple(at + delay for at in sent), phase, carried(TCP_FLOW)) is None


@pytest.mark.parametrize("phase", [round(0.5 * n, 1) for n in range(6)])
def test_a_last_acknowledgement_is_no_silence(phase: float) -> None:
    assert asked_by_looks((0.0, 0.1, 0.2, 0.3), (0.05, 0.15, 0.25), phase, carried(TCP_FLOW)) is None


@pytest.mark.parametrize("looks", [LOOKS, 1.3 * LOOKS])
@pytest.mark.parametrize("phase", [round(0.1 * n, 1) for n in range(26)])
def test_data_that_wait_are_asked_for_early_by_late_looks_too(phase: float, looks: float) -> None:
    asked = asked_by_looks((-0.5, *REPEATED), (-0.5,), phase, carried(TCP_FLOW), looks=looks, waits=(0.0,))
    assert asked is not None
    assert asked < 12.6


@pytest.mark.parametrize("phase", [round(0.25 * n, 2) for n in range(11)])
def test_what_was_acknowledged_is_not_asked_for(phase: float) -> None:
    """A burst one way, and acknowledgements of what came: more packets out than in at the end."""
    sent = tuple(0.1 * n for n in range(60))
    assert asked_by_looks(sent, sent[:30], phase, carried(TCP_FLOW), waits=(0.05, 3.05)) is None


def test_data_that_wait_are_asked_for_however_long_the_router_is_away() -> None:
    """TCP's pauses get longer than any after which packets are no longer counted together."""
    entry = carried(TCP_FLOW)
    away = (*REPEATED, 51.0, 102.0)
    assert asked_by_looks((-0.5, *away), (-0.5,), 0.3, entry, waits=(0.0,)) is not None
    for now in range(60, 130, 5):
        out = int(any(now - 5 < at <= now for at in away))
        entry.note_carried(out, 0, 0, reset=False, since=START + now - LOOKS, now=START + now, unacknowledged=True)
        assert entry.renew_due(START + now, passed=bool(out))


def test_an_idle_connection_that_wakes_up_is_not_silent():
    entry = established()
    for n in range(SILENCE_PACKETS):
        entry.note_out(TCP_ACK, 0.2 + (SILENCE_GAP + 1) * n)
        assert not entry.renew_due(entry.last_out)


def test_retransmissions_that_back_off_are_silence():
    entry = established()
    for seconds in (0, 3, 9):
        entry.note_out(TCP_ACK, 100.0 + seconds)
    assert entry.renew_due(109.0)


def test_after_a_renewal_silence_is_measured_anew():
    table = VatTable()
    entry = established(table)
    for n in range(10):
        entry.note_out(TCP_ACK, 10.0 + n)
    table.remap(entry, MAPPED, DAY, 20.0)
    for n in range(SILENCE_PACKETS):
        entry.note_out(TCP_ACK, 20.0 + n)
    assert not entry.renew_due(22.0)
    assert entry.renew_due(25.0)


def test_a_hint_from_outside_is_reason_to_renew():
    entry = established()
    entry.suspect = True
    assert entry.renew_due(1.0)


def test_a_renewal_can_be_put_off():
    entry = established()
    entry.suspect = True
    entry.renew_not_before = 10.0
    assert not entry.renew_due(10.0 - TICK)
    assert entry.renew_due(10.0)


@pytest.mark.parametrize("make", [closing, reset])
def test_a_connection_that_is_over_is_not_renewed(make):
    entry = make(VatTable())
    entry.suspect = True
    assert not entry.renew_due(2.0)


def test_a_direct_entry_is_not_renewed():
    entry = udp(mapped=Endpoint(G2, 5000), direct=True)
    entry.note_out(0, 40.0)
    entry.suspect = True
    assert not entry.renew_due(40.0)
