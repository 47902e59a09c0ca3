"""What the kernel path on FreeBSD makes of ipfw, and undoes: on the model, and in a vnet jail of a running FreeBSD."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable

import pytest

from natf_bsd.datapath import Gone, ipfw_reverse
from natf_bsd.datapath.ipfw_reverse import _KILLED_AFTER as KILLED_AFTER
from natf_bsd.datapath.ipfw_reverse import NUMBERS, PATIENCE, ROOM, IpfwReversePath
from natf_bsd.firewall import ipfw
from natf_bsd.firewall.ipfw_places import EnPlaces
from natf_bsd.lab.ipfw_model import Host, interface
from natf_bsd.ops.process import TIMED_OUT, Completed, Process, Run, Start, run_process, start_process
from natf_bsd.types import Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import build
from tests.divert import jails

G1, G2, V1 = (parse_address(text) for text in ("203.0.113.10", "203.0.113.1", "240.0.1.1"))
MAPPED = Endpoint(G2, 8080)
PLACES = EnPlaces(29, 30, 31, 32, 34, 37, 38, 35, 36, 37, 39, 35)
RULES = ipfw.EnFirewall("lo0", "240.0.0.0/8", 8710, 8715, 8711, 8712, 8714, PLACES, kernel_path=True)


class Later:
    """A process of the model: it does its work when `may_end` says so or, unless it `hangs`, somebody waits for it."""

    def __init__(self, run: Callable[[], Completed], machine: Machine) -> None:
        self._run, self._machine = run, machine
        self._done: Completed | None = None

    def ended(self) -> Completed | None:
        return self.wait(0) if self._done or self._machine.may_end else None

    def wait(self, seconds: float) -> Completed | None:
        if not self._machine.hangs:
            self._done = self._done or self._run()
        return self._done

    def kill(self) -> None:
        self._done = Completed(TIMED_OUT, "", "killed")


class Machine:
    """One ipfw, of the model or of the kernel."""

    def __init__(self, run: Run, start: Start | None = None) -> None:
        self.run = run
        self.now = 1000.0
        self.may_end = True
        self.hangs = False
        self.batches: list[str] = []
        self._start = start
        self.path = IpfwReversePath(run, self._begin, lambda: self.now)

    def _begin(self, argv: tuple[str, ...], stdin: str | None) -> Process:
        self.batches.append(stdin or "")
        return self._start(argv, stdin) if self._start else Later(lambda: self.run(argv, stdin), self)

    def ipfw(self, line: str) -> list[str]:
        done = self.run(("ipfw", *line.split()), None)
        assert done.status == 0, f"{line}: {done.stderr}"
        return done.stdout.splitlines()

    def set_up(self) -> None:
        lines = [*ipfw._flow_tables(), *(ipfw._add(at, body, 5) for at, body in ipfw._kernel_path_rules(RULES))]
        done = self.run(("ipfw", "-q", "/dev/stdin"), "".join(f"{line}\n" for line in lines))
        assert (done.status, done.stderr) == (0, "")

    def turn(self) -> None:
        """Until nothing is under way."""
        for _ in range(1000):
            self.path.tick(self.now)
            if self.path.next_deadline() > self.now + 1:
                return
            self.now += 0.01
            time.sleep(0.01 if self._start else 0)  # a real process takes its time

    def there(self) -> tuple[list[str], list[str], list[str]]:
        return self.ipfw("nat show config"), self.ipfw("table natf_vo list"), self.ipfw("table natf_vi list")


def model() -> Machine:
    host = Host([interface("em0", "203.0.113.10")])

    def run(argv: tuple[str, ...], stdin: str | None) -> Completed:
        match argv:
            case ("ipfw", *rest):
                return Completed(*host.ipfw(rest, stdin or ""))
            case ("kldstat", *_):
                return Completed(0, "", "")
            case ("sysctl", "-n", "net.inet.ip.fw.one_pass"):
                return Completed(0, "1\n", "")
        raise AssertionError(argv)

    return Machine(run)


def kernel() -> Machine:
    return Machine(run_process, start_process)


def _no_kernel() -> str | None:
    if (reason := jails.unsupported()) is not None:
        return reason
    loaded = subprocess.run(["kldstat", "-q", "-m", "ipfw_nat"], check=False).returncode == 0
    return None if loaded else "the kernel module ipfw_nat is not loaded (kldload ipfw_nat)"


def flow(port: int = 40000, protocol: Protocol = Protocol.TCP) -> Flow:
    return Flow(protocol, Endpoint(G1, port), Endpoint(V1, 80))


def a_flow_is_handed_over_and_taken_back(machine: Machine) -> None:
    assert ipfw_reverse.obstacle(machine.run) is None
    machine.set_up()
    for number, one in enumerate((flow(), flow(protocol=Protocol.UDP))):
        name = Protocol(one.protocol).name.lower()
        assert machine.path.hand_over(one, MAPPED)
        machine.turn()
        assert machine.path.receive() == []
        assert machine.there() == (
            [
                f"ipfw nat {NUMBERS[number]} config ip 240.0.1.1 reverse redirect_port {name}"
                " 203.0.113.1:8080 240.0.1.1:80 203.0.113.10:40000"
            ],
            [f"203.0.113.10,{one.protocol},40000,240.0.1.1,80 {NUMBERS[number]}"],
            [f"203.0.113.1,{one.protocol},8080,203.0.113.10,40000 {NUMBERS[number]}"],
        )
        machine.path.take_back(one, at_once=bool(number))
        machine.turn()
        assert machine.there() == ([], [], [])
    assert machine.path.counters["failed"] == 0


def what_is_ours_is_removed_and_nothing_else(machine: Machine) -> None:
    machine.ipfw("nat 1001 config ip 203.0.113.10 same_ports")
    others = machine.ipfw("nat show config")
    machine.set_up()
    assert machine.path.hand_over(flow(), MAPPED)
    machine.turn()
    assert ipfw_reverse.obstacle(machine.run) is None, "our own are none, whoever's they are"
    ipfw_reverse.remove(machine.run)
    assert machine.there() == (others, [], []), "rules name the tables still"
    machine.ipfw("delete set 5")
    ipfw_reverse.remove(machine.run)
    assert machine.ipfw("table all list") == []
    ipfw_reverse.remove(machine.run)
    assert machine.ipfw("nat show config") == others


def what_is_in_the_way_is_named(machine: Machine) -> None:
    machine.ipfw(f"nat {NUMBERS[-1]} config ip 203.0.113.10 same_ports")
    assert "same_ports` has a number from" in str(ipfw_reverse.obstacle(machine.run))
    machine.ipfw(f"nat {NUMBERS[-1]} delete")
    machine.ipfw("table natf_vi create type addr")
    assert ipfw_reverse.obstacle(machine.run) == "ipfw's table natf_vi is not natf's: type addr, valtype legacy"
    ipfw_reverse.remove(machine.run)
    machine.ipfw("table natf_vi info")


def a_bad_line_leaves_nothing_in_the_kernel(machine: Machine) -> None:
    assert machine.path.hand_over(flow(), MAPPED)
    machine.set_up()
    good, machine.path._start = machine.path._start, lambda argv, text: good(argv, f"{text}no such command\n")
    machine.turn()
    assert machine.path.receive() == [Gone(flow().key)]
    machine.path._start = good
    machine.now += PATIENCE
    machine.turn()
    assert machine.there() == ([], [], [])
    assert machine.path.counters["failed"] >= 1


CONTRACT = [
    a_flow_is_handed_over_and_taken_back,
    what_is_ours_is_removed_and_nothing_else,
    what_is_in_the_way_is_named,
    a_bad_line_leaves_nothing_in_the_kernel,
]
clauses = pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)


@clauses
def test_on_the_model(clause: Callable[[Machine], None]) -> None:
    clause(model())


@pytest.mark.freebsd
@pytest.mark.skipif(_no_kernel() is not None, reason=str(_no_kernel()))
@clauses
def test_on_the_running_kernel(clause: Callable[[Machine], None]) -> None:
    jails.isolated(lambda: clause(kernel()))()


@pytest.fixture
def machine() -> Machine:
    made = model()
    made.set_up()
    return made


def test_all_that_is_due_goes_into_one_batch_take_backs_first(machine: Machine) -> None:
    first, second, third = (flow(40000 + number) for number in range(3))
    assert machine.path.hand_over(first, MAPPED)
    machine.turn()
    assert machine.path.hand_over(second, MAPPED)
    assert machine.path.hand_over(third, MAPPED)
    machine.path.take_back(first, at_once=False)
    machine.turn()
    verbs = [" ".join(line.split()[:3]) for line in machine.batches[1].splitlines()]
    over = [[f"nat 780{n} config", "table natf_vi add", "table natf_vo add"] for n in (1, 2)]
    assert verbs == ["table natf_vo delete", "table natf_vi delete", "nat 7800 delete", *over[0], *over[1]]


def test_a_flow_taken_back_before_its_batch_never_gets_to_the_kernel(machine: Machine) -> None:
    assert machine.path.hand_over(flow(), MAPPED)
    machine.path.take_back(flow())
    machine.turn()
    assert machine.batches == []


def test_at_once_waits_for_the_batch_under_way(machine: Machine) -> None:
    machine.may_end = False
    assert machine.path.hand_over(flow(), MAPPED)
    machine.path.tick(machine.now)
    assert machine.there()[0] == []
    machine.path.take_back(flow())
    assert machine.there() == ([], [], [])
    assert (machine.path.counters["handed_over"], machine.path.counters["taken_back"]) == (1, 1)


def test_a_flow_on_its_way_back_is_not_handed_over_again_before_it_is_there(machine: Machine) -> None:
    assert machine.path.hand_over(flow(), MAPPED)
    assert not machine.path.hand_over(flow(), MAPPED)
    machine.turn()
    machine.path.take_back(flow(), at_once=False)
    assert not machine.path.hand_over(flow(), MAPPED)
    machine.turn()
    assert machine.path.hand_over(flow(), MAPPED)
    assert machine.path.counters["refused"] == 2


def test_numbers_come_round_and_run_out(machine: Machine) -> None:
    for number in range(3 * len(NUMBERS)):
        assert machine.path.hand_over(flow(1000 + number), MAPPED)
        machine.turn()
        machine.path.take_back(flow(1000 + number))
    taken = [machine.path.hand_over(flow(2000 + n), Endpoint(G2, 1 + n)) for n in range(2 * ROOM + 1)]
    assert taken.count(False) == 1


def test_a_process_that_does_not_end_is_ended_and_its_flows_are_taken_back(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.may_end = False
    assert machine.path.hand_over(flow(), MAPPED)
    machine.path.tick(machine.now)
    machine.now += KILLED_AFTER + 1
    machine.path.tick(machine.now)
    assert machine.path.receive() == [Gone(flow().key)]
    assert "it had not ended after 5 s and was killed" in caplog.text
    machine.may_end = True
    machine.turn()
    assert machine.path.counters["taken_back"] == 1
    assert not machine.path.hand_over(flow(), MAPPED)
    machine.now += PATIENCE
    assert machine.path.hand_over(flow(), MAPPED)


def test_flows_that_wait_for_a_batch_that_fails_stay_where_they_are(machine: Machine) -> None:
    machine.may_end = False
    assert machine.path.hand_over(flow(), MAPPED)
    machine.path.tick(machine.now)
    assert machine.path.hand_over(flow(40001), MAPPED)
    machine.now += KILLED_AFTER + 1
    machine.path.tick(machine.now)
    assert machine.path.receive() == [Gone(flow().key), Gone(flow(40001).key)]


def test_the_loop_does_not_wait_for_a_process_that_hangs(machine: Machine) -> None:
    assert machine.path.hand_over(flow(), MAPPED)
    machine.turn()
    machine.hangs, machine.may_end = True, False
    machine.path.take_back(flow())
    assert len(machine.there()[0]) == 1
    assert not machine.path.hand_over(flow(), MAPPED), "its last mapping may be in force still"
    machine.hangs, machine.may_end = False, True
    machine.turn()
    assert machine.there() == ([], [], [])
    assert (machine.path.counters["taken_back"], machine.path.counters["failed"]) == (1, 0)
    assert machine.path.hand_over(flow(), MAPPED)


def test_flows_whose_instance_somebody_deleted_are_taken_back(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        assert machine.path.hand_over(flow(40000 + number), MAPPED)
    machine.turn()
    machine.now += 10
    assert machine.path.hand_over(flow(40003), MAPPED)
    before = machine.there()[0]
    machine.turn()
    machine.path.see(before)
    assert machine.path.receive() == [], "the last one was not there yet when they were listed"
    machine.ipfw("nat 7801 delete")
    machine.now += 10
    machine.path.see(machine.there()[0])
    assert machine.path.receive() == [Gone(flow(40001).key)]
    assert "somebody deleted instances of `ipfw nat`: 1 flows" in caplog.text
    machine.turn()
    assert [len(part) for part in machine.there()] == [3, 3, 3]
    machine.path.see(machine.there()[0])
    assert machine.path.receive() == []


def test_closing_takes_all_back_and_touches_nothing_if_there_was_nothing(machine: Machine) -> None:
    machine.ipfw("nat 7800 config ip 240.0.1.1 reverse redirect_port tcp 203.0.113.1:1 240.0.1.1:1 203.0.113.10:1")
    IpfwReversePath(machine.run, machine._begin, lambda: machine.now).close()
    assert len(machine.there()[0]) == 1, "another daemon's, by whom this one was refused"
    assert machine.path.hand_over(flow(), MAPPED)
    machine.path.tick(machine.now)
    machine.path.close()
    assert machine.there() == ([], [], [])


def test_processes_in_the_background_really_are() -> None:
    """The real `Start`, with more input than a pipe takes."""
    long = start_process(("sh", "-c", "sleep 5"), None)
    assert long.ended() is None
    assert long.wait(0.01) is None
    long.kill()
    done = long.wait(5)
    assert done is not None
    assert done.status != 0
    counted = start_process(("wc", "-c"), "x" * 200_000).wait(5)
    assert counted is not None
    assert counted.stdout.strip() == "200000"
    assert start_process(("sh", "-c", "echo no >&2; exit 3"), None).wait(5) == Completed(3, "", "no\n")
    missing = start_process(("natf-has-no-such-program",), None)
    assert missing.ended() == missing.wait(0) == Completed(127, "", "natf-has-no-such-program: not found")


def test_input_needs_no_file_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows must be taken back on a host whose disk is full too."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    begun = time.monotonic()
    slow = start_process(("sh", "-c", "sleep 0.3; wc -c"), "x" * 1_000_000)
    assert slow.ended() is None
    assert time.monotonic() - begun < 0.25, "what a pipe cannot take is fed later"
    until = time.monotonic() + 10
    while (done := slow.ended()) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert done is not None
    assert (done.status, done.stdout.strip()) == (0, "1000000")
    assert slow.ended() == slow.wait(0) == done
    assert start_process(("sh", "-c", "exec <&-; exit 3"), "x" * 200_000).wait(5) == Completed(3, "", "")


@pytest.mark.parametrize(("flags", "taken"), [(0x10, True), (0x18, True), (0x11, False), (0x02, False), (0x14, False)])
def test_flags_that_must_not_be_set_are_looked_at_by_the_model(flags: int, taken: bool) -> None:
    host = Host([interface("em0", "203.0.113.10")])
    host.add_route((0, 0), "em0")
    status, text, _ = host.ipfw(["add 9 deny tcp from any to any out tcpflags !syn,!fin,!rst"])
    assert (status, text) == (0, "00009 deny tcp from any to any out tcpflags !syn,!fin,!rst\n")
    assert host.ipfw(["add 9 deny tcp from any to any tcpflags !sin"])[0] == 65
    data = bytes(build.tcp(Endpoint(G1, 1), Endpoint(G2, 2), flags=flags, sequence=1))
    if taken:
        with pytest.raises(PermissionError):
            host.send(data)
    else:
        host.send(data)
