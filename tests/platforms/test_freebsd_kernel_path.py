"""FreeBSD's in-kernel data path on the model: busy flows go by `ipfw nat ... reverse` and come back, and no packet of
them is lost, sent untranslated, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from natf_bsd.config import Config
from natf_bsd.datapath import ipfw_reverse
from natf_bsd.datapath.ipfw_reverse import NUMBERS, PATIENCE, ROOM
from natf_bsd.en.busiest import BUSY, INTERVAL, LONGEST
from natf_bsd.en.report import tables
from natf_bsd.errors import NatfError, RestartNeeded
from natf_bsd.firewall import guard, runner
from natf_bsd.lab.ipfw_model.fragments import split
from natf_bsd.tables.vat import TCP_CLOSING, VatEntry
from natf_bsd.types import Endpoint, Flow, Protocol
from natf_bsd.wire import build, packet
from tests.platforms.test_freebsd_stories import G1, G2, SOURCE, Figure1, Figure3, en_config, resolve, syn
from tests.platforms.world import Box


def instances(box: Box) -> list[str]:
    return box.host.ipfw(["nat", "show", "config"])[1].splitlines()


def entries(box: Box) -> list[str]:
    return [line for name in ("natf_vo", "natf_vi") for line in box.host.ipfw(["table", name, "list"])[1].splitlines()]


@pytest.fixture
def world() -> Iterator[Figure1]:
    made = Figure1()
    before = made.en.listing()
    made.start()
    yield made
    assert not [data for _, _, data in made.wire if packet.destination(data)[0] == 240]
    made.en.undo("en")
    assert made.en.listing() == before
    assert instances(made.en) == []


def virtual(world: Figure1, port: int) -> Endpoint:
    return Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), port)


def core(world: Figure1):
    assert world.en.en is not None
    return world.en.en.core


def counts(world: Figure1) -> dict[str, int]:
    assert world.en.en is not None
    return world.en.en.counters["kernel"]


def entry_of(world: Figure1) -> VatEntry:
    (entry,) = core(world).vat
    return entry


def connect(world: Figure1, source: Endpoint = SOURCE) -> Endpoint:
    there = virtual(world, 80)
    world.send(world.en, syn(source, there))
    assert len(world.en.received()) == 1
    return there


def use(
    world: Figure1, there: Endpoint, times: int = BUSY // 2, *, source: Endpoint = SOURCE, udp: bool = False
) -> int:
    """Each packet is answered; returns how many of all went through a divert socket."""
    diverted = world.en.host.sockets.counters["diverted"]
    for number in range(times):
        text = b"%d" % number
        data = (
            build.udp(source, there, text)
            if udp
            else build.tcp(source, there, flags=packet.TCP_ACK, sequence=2 + number, acknowledgement=1001, payload=text)
        )
        world.send(world.en, data)
        (answer,) = world.en.received()
        assert answer.endswith(b"alice: " + text)
        flow = packet.flow_of(answer)
        assert flow is not None
        assert (flow.source, flow.destination) == (there, source)
    return world.en.host.sockets.counters["diverted"] - diverted


def busy(world: Figure1, **how: object) -> Endpoint:
    """A flow the kernel has."""
    there = virtual(world, 5000) if how else connect(world)
    use(world, there, BUSY, udp=bool(how))
    world.pass_time(INTERVAL + 0.1)
    assert entry_of(world).in_kernel
    assert [line for line in instances(world.en) if line.startswith(f"ipfw nat {NUMBERS[0]} ")]
    return there


def test_a_connection_from_its_first_packet_to_its_end(world: Figure1) -> None:
    there = connect(world)
    assert use(world, there) == BUSY
    world.pass_time(INTERVAL)
    use(world, there, 3)
    world.pass_time(0.1)
    mapped = entry_of(world).mapped
    assert instances(world.en) == [
        f"ipfw nat {NUMBERS[0]} config ip {str(there).partition(':')[0]} reverse"
        f" redirect_port tcp {mapped} {there} {SOURCE}"
    ]
    assert len(entries(world.en)) == 2
    (row,) = tables(core(world), world.now, 9)["flows"]
    assert row["in_kernel"] is True
    assert use(world, there) == 0, "nothing is diverted any more"
    world.send(world.en, build.tcp(SOURCE, there, flags=packet.TCP_ACK | packet.TCP_FIN, sequence=500))
    world.en.received()
    assert not entry_of(world).in_kernel
    world.pass_time(0.1)
    assert (instances(world.en), entries(world.en)) == ([], [])
    world.pass_time(TCP_CLOSING)
    assert len(core(world).vat) == 0
    assert (counts(world)["handed_over"], counts(world)["taken_back"], counts(world)["failed"]) == (1, 1, 0)


def test_a_flow_in_use_for_long_is_with_the_kernel_most_of_the_time(world: Figure1) -> None:
    there = connect(world)
    diverted = sent = 0
    for _ in range(60):
        diverted += use(world, there, BUSY // 2)
        sent += BUSY
        world.pass_time(INTERVAL / 2)
    assert diverted / sent < 0.25
    assert counts(world)["handed_over"] >= 3
    world.pass_time(LONGEST)
    assert (instances(world.en), entries(world.en)) == ([], []), "quiet"


def test_datagrams_are_renewed_in_time(world: Figure1) -> None:
    there = busy(world, udp=True)
    asked = core(world).counters["negotiation.renewals"]
    for _ in range(60):
        use(world, there, BUSY // 2, udp=True)
        world.pass_time(INTERVAL / 2)
    assert core(world).counters["negotiation.renewals"] - asked >= 2
    assert counts(world)["handed_over"] >= 4
    world.pass_time(60)
    assert len(core(world).vat) == 0
    assert (instances(world.en), entries(world.en)) == ([], [])


def test_packets_in_the_queue_of_the_daemon_go_on_when_the_kernel_has_their_flow(world: Figure1) -> None:
    """Both ways, and when it has it no longer."""
    there = connect(world)
    use(world, there)
    mapped = entry_of(world).mapped
    node, host = world.en.en, world.en.host
    assert node is not None
    out = bytes(build.tcp(SOURCE, there, flags=packet.TCP_ACK, sequence=2, acknowledgement=1001, payload=b"late"))
    back = bytes(build.tcp(mapped, SOURCE, flags=packet.TCP_ACK, sequence=1001, acknowledgement=2, payload=b"back"))
    for instances_then in (1, 0):
        world.now += INTERVAL if instances_then else LONGEST
        if not instances_then:
            world.en.ipfw("table natf_vo flush", "table natf_vi flush")  # so that these come to the queue
        host.send(out)
        host.receive("ext", back)
        for _ in range(4):
            node.tick(world.now)
            world.now += 0.1
        assert len(instances(world.en)) == instances_then
        world.settle()
        assert sorted(data[-4:] for data in world.en.received()) == [b"back", b"late"]


def test_a_changed_mapping_is_never_used_with_the_old_one_in_the_kernel(world: Figure1) -> None:
    there = busy(world)
    entry, node = entry_of(world), world.en.en
    assert node is not None
    other = Endpoint(G2, entry.mapped.port + 1)
    node._perform(core(world)._mapped(entry.flow, other, 86400, False, world.now))
    assert (instances(world.en), entries(world.en)) == ([], []), "at once"
    world.send(world.en, build.tcp(SOURCE, there, flags=packet.TCP_ACK, sequence=2, payload=b"x"))
    assert packet.flow_of(world.wire[-1][2]) == Flow(Protocol.TCP, SOURCE, other)


def test_a_batch_that_fails_leaves_the_flow_in_user_space_and_nothing_behind(
    world: Figure1, caplog: pytest.LogCaptureFixture
) -> None:
    there = connect(world)
    world.en.programs.spoil = lambda batch: batch.replace("table natf_vo add", "tabel natf_vo add")
    use(world, there)
    world.pass_time(INTERVAL + 0.1)
    assert not entry_of(world).in_kernel
    assert (instances(world.en), entries(world.en)) == ([], [])
    assert (counts(world)["failed"], counts(world)["gone"]) == (1, 1)
    assert "ipfw did not take flows" in caplog.text
    world.en.programs.spoil = lambda batch: batch
    assert use(world, there) == BUSY
    world.pass_time(INTERVAL + 0.1)
    assert (counts(world)["refused"], counts(world)["handed_over"]) == (1, 0)
    world.pass_time(PATIENCE)
    use(world, there)
    world.pass_time(INTERVAL + 0.1)
    assert entry_of(world).in_kernel
    assert use(world, there) == 0


def test_more_busy_flows_than_there_is_room_for(world: Figure1) -> None:
    sources = [Endpoint(G1, 41000 + number) for number in range(ROOM + 2)]
    there = [connect(world, source) for source in sources]
    for source, to in zip(sources, there, strict=True):
        use(world, to, source=source)
    world.pass_time(INTERVAL + 0.1)
    assert len(instances(world.en)) == ROOM
    assert sum(entry.in_kernel for entry in core(world).vat) == ROOM
    assert len(world.en.programs.batches) == 1, "all by one process"
    for source, to in zip(sources, there, strict=True):
        use(world, to, 2, source=source)


def test_a_segment_in_fragments_is_put_together_for_the_kernel(world: Figure1) -> None:
    there = busy(world)
    answer = build.tcp(entry_of(world).mapped, SOURCE, flags=packet.TCP_ACK, sequence=1001, payload=bytes(200))
    diverted = world.en.host.sockets.counters["diverted"]
    for fragment in split(bytearray(answer), 100):
        world.en.host.receive("ext", bytes(fragment))
    world.settle()
    (seen,) = world.en.received()
    flow = packet.flow_of(seen)
    assert flow is not None
    assert (flow.source, len(seen)) == (there, 240)
    assert world.en.host.sockets.counters["diverted"] == diverted


def test_an_error_about_a_flow_of_the_kernel_is_translated_here(world: Figure1) -> None:
    there = busy(world)
    seen = build.tcp(SOURCE, entry_of(world).mapped, flags=packet.TCP_ACK, sequence=2, payload=b"x")
    world.en.host.receive("ext", bytes(build.unreachable_for(seen, code=1, source=G2)))
    world.settle()
    (error,) = world.en.received()
    assert packet.quoted_flow(error) == Flow(Protocol.TCP, SOURCE, there)


@pytest.mark.parametrize(("release", "largest"), [(14, 16384), (13, 4096)])
@pytest.mark.parametrize("diverted", [0, 1])
def test_what_is_too_large_for_the_kernel_is_translated_here(release: int, largest: int, diverted: int) -> None:
    """Either way; what comes is put together from fragments first."""
    world = Figure1(release=release).start()
    size = largest - 28 + diverted
    there = busy(world, udp=True)
    mapped, sockets = entry_of(world).mapped, world.en.host.sockets
    before = sockets.counters["diverted"]
    world.en.host.send(bytes(build.udp(SOURCE, there, bytes(size))))
    assert sockets.counters["diverted"] - before == diverted
    world.settle()
    assert len(world.en.received()) == 1, "alice has heard it"
    before = sockets.counters["diverted"]
    for fragment in split(bytearray(build.udp(mapped, SOURCE, bytes(size))), 1400):
        world.en.host.receive("ext", bytes(fragment))
    assert sockets.counters["diverted"] - before == diverted
    world.settle()
    (seen,) = world.en.received()
    assert len(seen) == size + 28


def test_an_instance_that_somebody_deletes_is_missed(world: Figure1) -> None:
    there = busy(world)
    side = world.en.en_side
    assert side is not None
    world.en.ipfw(f"nat {NUMBERS[0]} delete")
    world.pass_time(3)
    listed = "\n".join(instances(world.en))
    side.looked(guard.read(f"# one_pass\n1\n# instances\nunknown\n{listed}\n"), world.now)
    assert entry_of(world).in_kernel, "they could not be listed"
    side.looked(guard.read(f"# one_pass\n1\n# instances\n{listed}\n"), world.now)
    world.pass_time(0.1)
    assert not entry_of(world).in_kernel
    assert use(world, there, 2) == 4


def test_rules_that_are_set_again_leave_the_flow_to_the_daemon_for_its_time(world: Figure1) -> None:
    there = busy(world)
    assert world.en.en_side is not None
    runner.apply(world.en.en_side.plan(world.en.en_side.interface).set_up, world.en.programs.run)
    assert use(world, there, 5) == 10
    world.pass_time(LONGEST + 0.1)
    assert instances(world.en) == []
    use(world, there)
    world.pass_time(INTERVAL + 0.1)
    assert use(world, there, 5) == 0


def killed(world: Figure1) -> None:
    """The daemon is gone, its sockets with it."""
    world.en.stack.pop_all()
    world.en.readers.clear()
    world.en.ticks.clear()
    for descriptor in list(world.en.host.sockets._sockets):
        world.en.host.sockets.close(descriptor)


def test_what_a_killed_daemon_left_is_taken_back_by_the_next_one(
    world: Figure1, caplog: pytest.LogCaptureFixture
) -> None:
    busy(world)
    killed(world)
    world.start_en(world.en, en_config())
    assert (instances(world.en), entries(world.en)) == ([], [])
    assert "1 flows that a killed daemon had given to the kernel are taken back" in caplog.text
    assert counts(world)["leftovers"] == 1
    use(world, connect(world, Endpoint(G1, 40009)), source=Endpoint(G1, 40009))


def test_a_dry_run_tells_what_the_start_would_remove(world: Figure1) -> None:
    def notes() -> tuple[str, ...]:
        side = world._system(world.en).external_node(en_config())
        return side.plan(side.interface).notes

    assert notes() == (ipfw_reverse.NOTE,), "nothing is there yet"
    busy(world)
    before = instances(world.en), entries(world.en)
    assert world.en.en_side is not None
    running = world.en.en_side
    assert running.plan(running.interface).notes == (ipfw_reverse.NOTE,), "its own flows are not leftovers"
    killed(world)
    assert notes() == (
        "there now, removed at the start: `ipfw nat` 7800; entries of natf_vo: 1; entries of natf_vi: 1",
        ipfw_reverse.NOTE,
    )
    assert (instances(world.en), entries(world.en)) == before, "nothing is changed"
    world.start_en(world.en, en_config())
    assert (instances(world.en), entries(world.en)) == ([], []), "and so it does"
    assert notes() == (ipfw_reverse.NOTE,)


def test_a_dry_run_without_kernel_path_tells_of_no_leftovers(world: Figure1) -> None:
    """A start would leave them: `natf cleanup` removes them."""
    busy(world)
    killed(world)
    side = world._system(world.en).external_node(en_config(kernel_path=False))
    assert side.plan(side.interface).notes == ()
    world.start_en(world.en, en_config())


def test_cleanup_removes_what_a_killed_daemon_left(world: Figure1) -> None:
    busy(world)
    killed(world)
    remains = world._system(world.en).remains("en", Config(Path("/nowhere")))
    assert remains.forget is not None
    assert runner.undo(remains.undo, world.en.programs.run) == []
    remains.forget()
    assert instances(world.en) == []
    assert "natf" not in world.en.listing()


def test_a_daemon_that_goes_for_a_restart_leaves_no_flow_in_the_kernel(world: Figure1) -> None:
    """Its stand-in refuses what they send, and nobody would see them end."""
    busy(world)
    runner.apply(world.en.plans["en"].stay or (), world.en.programs.run)
    world.en.stack.close()
    assert (instances(world.en), entries(world.en)) == ([], [])
    world.en.readers.clear()
    world.en.ticks.clear()
    world.start_en(world.en, en_config())


def no_module(box: Box) -> None:
    box.programs.modules.clear()


def ruled(*lines: str) -> Callable[[Box], None]:
    return lambda box: box.ipfw(*lines)


def two_passes(box: Box) -> None:
    box.programs.run(("sysctl", "net.inet.ip.fw.one_pass=0"), None)


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (no_module, "the kernel has no ipfw_nat"),
        (two_passes, "net.inet.ip.fw.one_pass is 0"),
        (
            ruled("nat 7801 config ip 203.0.113.10 same_ports"),
            "nat 7801 config ip 203.0.113.10 same_ports` has a number",
        ),
        (ruled("table natf_vo create type addr"), "ipfw's table natf_vo is not natf's: type addr, valtype legacy"),
        (ruled("add 9 count ip from any to any flow table(natf_vi)"), "natf_vi is not natf's: type flow, valtype leg"),
    ],
)
def test_where_it_cannot_be_every_packet_is_translated_here(
    prepare: Callable[[Box], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = Figure1()
    prepare(world.en)
    before = world.en.listing(), instances(world.en)
    world.start()
    (said,) = [record.getMessage() for record in caplog.records if "not by the kernel" in record.getMessage()]
    assert why in said
    there = connect(world)
    use(world, there)
    world.pass_time(INTERVAL + 1)
    assert use(world, there) == BUSY
    world.en.undo("en")
    assert (world.en.listing(), instances(world.en)) == before
    with pytest.raises(NatfError, match=r"kernel_path = true in \[en\]: "):
        world.start_en(world.en, en_config(kernel_path=True))


def test_where_it_is_forbidden_nothing_of_it_is_there(caplog: pytest.LogCaptureFixture) -> None:
    world = Figure1()
    world.start(kernel_path=False)
    assert "natf_v" not in world.en.listing()
    assert "not by the kernel" not in caplog.text


def test_a_gateway_stays_in_user_space(caplog: pytest.LogCaptureFixture) -> None:
    world = Figure3()
    world.start()
    assert "this host serves inside hosts too" in caplog.text
    assert not [box for box in world.boxes.values() if "natf_v" in box.listing()]


def test_one_pass_switched_off_later_ends_the_daemon(world: Figure1) -> None:
    side = world.en.en_side
    assert side is not None
    side.looked(guard.read("# one_pass\n1\n"), world.now)
    with pytest.raises(RestartNeeded, match="one_pass"):
        side.looked(guard.read("# one_pass\n0\n"), world.now)


def test_an_instance_of_others_is_left_alone(world: Figure1) -> None:
    world.en.ipfw("nat 7900 config ip 203.0.113.10 same_ports")
    world.en.ipfw("nat 1 config ip 240.0.1.1 reverse redirect_port udp 203.0.113.1:5 240.0.1.1:5 203.0.113.10:5")
    busy(world)
    ipfw_reverse.remove(world.en.programs.run)
    assert [line.split()[2] for line in instances(world.en)] == ["1", "7900"]
    world.en.ipfw("nat 7900 delete", "nat 1 delete")
