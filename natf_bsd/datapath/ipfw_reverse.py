"""FreeBSD: an instance of `ipfw nat ... reverse` for each flow, found by two tables of flows (FREEBSD.md 5.1, 13).

The rules are `firewall.ipfw`'s. An instance must be there before a table names it, and gone after: a packet that a
table sends to one that is missing is refused, and its program told so. All changes that are due go into one batch for
one ipfw(8), which runs while the loop goes on; what was on its way to a divert socket meanwhile is translated there.

ipfw counts nothing per instance: of what a flow carries nothing is reported.
"""

from __future__ import annotations

import errno
import logging
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from natf_bsd.datapath import Gone, Report
from natf_bsd.firewall.ipfw import FLOWS_IN, FLOWS_OUT, FLOWS_TYPE
from natf_bsd.ops.loop import monotonic
from natf_bsd.ops.process import TIMED_OUT, Completed, Process, Run, Start
from natf_bsd.types import Endpoint, Flow, Protocol, format_address

log = logging.getLogger(__name__)

ROOM: Final = 32
"""Flows in the kernel at once: the kernel looks through its list of instances for each packet, 100 cost 11 % of the
throughput, and each takes 42 KB (FREEBSD.md 5.1)."""

NUMBERS: Final = range(7800, 7800 + 2 * ROOM)
"""Instances that are ours. Twice as many as flows: those that are being taken back have theirs still."""

NOTE: Final = (
    f"busy flows get instances of `ipfw nat` from {NUMBERS[0]} to {NUMBERS[-1]}; these and the tables {FLOWS_OUT} and"
    f" {FLOWS_IN} are removed at exit"
)
"""What no rule shows."""

PATIENCE: Final = 60.0
"""Seconds after a batch that failed in which nothing is handed over."""

_POLL: Final = 0.02  # s between two looks whether ipfw(8) has ended, which takes it a few ms
_LOOP_WAITS: Final = 0.5  # s at most, in which no packet is looked at
_KILLED_AFTER: Final = 5.0  # s
_SEEN_AFTER: Final = 2.0  # s in which a list of instances may be under way
_BATCH: Final = ("ipfw", "-q", "/dev/stdin")
_INSTANCES: Final = ("ipfw", "nat", "show", "config")
_MODULE: Final = ("kldstat", "-q", "-m", "ipfw_nat")
_TABLES: Final = (FLOWS_OUT, FLOWS_IN)
_NUMBER: Final = re.compile(r"ipfw nat (\d+) config ")
_END: Final = r"\d+\.\d+\.\d+\.\d+:\d+"
_OURS: Final = re.compile(
    rf"ipfw nat \d+ config ip (?P<virtual>\d+\.\d+\.\d+\.\d+) reverse redirect_port (?:tcp|udp) {_END}"
    rf" (?P=virtual):\d+ {_END}"
)


@dataclass(frozen=True, slots=True)
class _Held:
    """A flow that has instance `number`, and was to be handed over at `since`."""

    flow: Flow
    mapped: Endpoint
    number: int
    since: float

    def hand_over(self) -> list[str]:
        virtual = self.flow.destination
        protocol = Protocol(self.flow.protocol).name.lower()
        return [
            f"nat {self.number} config ip {format_address(virtual.address)} reverse"
            f" redirect_port {protocol} {self.mapped} {virtual} {self.flow.source}",
            f"table {FLOWS_IN} add {self._inward} {self.number}",
            f"table {FLOWS_OUT} add {_key(self.flow)} {self.number}",
        ]

    def take_back(self) -> list[str]:
        """Does no harm where the kernel does not have it."""
        return [
            f"table {FLOWS_OUT} delete {_key(self.flow)}",
            f"table {FLOWS_IN} delete {self._inward}",
            f"nat {self.number} delete",
        ]

    @property
    def _inward(self) -> str:
        return _key(Flow(self.flow.protocol, self.mapped, self.flow.source))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Changes under way since `began`."""

    process: Process
    back: tuple[_Held, ...]
    over: tuple[_Held, ...]
    began: float


class IpfwReversePath:
    """`run` waits for a process, `start` does not; `now` is the monotonic clock. The tables must be there, empty, with
    the rules that name them."""

    def __init__(self, run: Run, start: Start, now: Callable[[], float]) -> None:
        self._run = run
        self._start = start
        self._now = now
        names = ("handed_over", "refused", "taken_back", "gone", "batches", "failed", "leftovers")
        self._counters = Counter(dict.fromkeys(names, 0))
        self._free = deque(NUMBERS)
        self._coming: dict[bytes, _Held] = {}
        self._held: dict[bytes, _Held] = {}
        self._leaving: dict[bytes, _Held] = {}
        self._batch: _Batch | None = None
        self._poll_at = 0.0
        self._over_not_before = self._back_not_before = -math.inf
        self._reports: list[Report] = []

    @property
    def room(self) -> int:
        return ROOM

    def hand_over(self, flow: Flow, mapped: Endpoint, leaves: str = "") -> bool:
        """False while the kernel has it still by its last mapping, and for a time after a failure."""
        known = (self._coming, self._held, self._leaving)
        if not self._free or self._now() < self._over_not_before or any(flow.key in flows for flows in known):
            self._counters["refused"] += 1
            return False
        self._coming[flow.key] = _Held(flow, mapped, self._free.popleft(), self._now())
        return True

    def take_back(self, flow: Flow, *, at_once: bool = True) -> None:
        """An ipfw(8) that takes its time is not waited for longer than half a second: the flow's packets may go by its
        last mapping until it has ended."""
        key = flow.key
        if (coming := self._coming.pop(key, None)) is not None:
            self._free.append(coming.number)
        if (held := self._held.pop(key, None)) is not None:
            self._leaving[key] = held
        if at_once and key in self._leaving:
            self._settle()

    def next_deadline(self) -> float:
        if self._batch is not None:
            return self._poll_at
        back = self._back_not_before if self._leaving else math.inf
        return min(back, self._over_not_before if self._coming else math.inf)

    def tick(self, now: float) -> None:
        if self._batch is not None and now >= self._poll_at:
            self._poll(now)
        if self._batch is None:
            self._begin(now)

    def fileno(self) -> None:
        return None

    def see(self, listed: Iterable[str]) -> None:
        """Take back the flows whose instance is not among `listed`, lines of `ipfw nat show config`: somebody deleted
        it, and ipfw refuses their packets."""
        there = {int(line.split()[2]) for line in listed if is_ours(line)}
        early = self._now() - _SEEN_AFTER
        lost = [held for held in self._held.values() if held.number not in there and held.since < early]
        for held in lost:
            self._leaving[held.flow.key] = self._held.pop(held.flow.key)
            self._reports.append(Gone(held.flow.key))
        if lost:
            self._counters["gone"] += len(lost)
            log.warning("somebody deleted instances of `ipfw nat`: %d flows of natf are taken back", len(lost))

    def receive(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    def look_at(self, flow: Flow) -> list[Report]:
        return []

    def look(self) -> list[Report]:
        return []

    def take_over(self) -> list[Report]:
        """Flows of an earlier run begin in user space. Their tables are empty since the rules were set."""
        try:
            numbers = _our_instances(self._run)
            if numbers:
                _perform(self._run, [f"nat {number} delete" for number in numbers])
                log.warning("%d flows that a killed daemon had given to the kernel are taken back", len(numbers))
            self._counters["leftovers"] += len(numbers)
        except OSError as error:
            self._counters["failed"] += 1
            log.error("flows of an earlier run stay with the kernel, which does not use them: %s", error.strerror)
        return []

    def forget(self) -> None:
        self._wait(_KILLED_AFTER)
        for flows in (self._coming, self._held, self._leaving):
            self._free.extend(held.number for held in flows.values())
            flows.clear()
        remove(self._run)

    def close(self) -> None:
        """Takes all back: without a daemon nobody sees a flow end, and the stand-in refuses its packets anyway."""
        self._wait(_KILLED_AFTER)
        self._leaving |= self._held
        if not self._leaving:
            return
        try:
            _perform(self._run, [line for held in self._leaving.values() for line in held.take_back()])
        except OSError as error:
            log.error("flows stay with the kernel (natf cleanup ends them): %s", error.strerror)

    @property
    def counters(self) -> dict[str, int]:
        """`handed_over`, `taken_back`: flows; `refused`: those it had no place for, or not yet; `gone`: those that the
        kernel did not take after all; `batches`: runs of ipfw(8) for these; `failed`: those that ended badly;
        `leftovers`: flows of an earlier run that were ended.
        """
        return dict(self._counters)

    def _begin(self, now: float) -> None:
        back = tuple(self._leaving.values()) if now >= self._back_not_before else ()
        over = tuple(self._coming.values()) if now >= self._over_not_before else ()
        if not (back or over):
            return
        for held in over:
            del self._coming[held.flow.key]
            self._held[held.flow.key] = held
        self._start_batch(back, over, now)

    def _start_batch(self, back: tuple[_Held, ...], over: tuple[_Held, ...], now: float) -> None:
        self._counters["batches"] += 1
        self._batch = _Batch(self._start(_BATCH, _text(back, over)), back, over, now)
        self._poll_at = now + _POLL

    def _poll(self, now: float) -> None:
        batch = self._batch
        if batch is None:
            return
        done = batch.process.ended()
        if done is None and now - batch.began > _KILLED_AFTER:
            done = _killed(batch.process)
        if done is None:
            self._poll_at = now + _POLL
        else:
            self._end(batch.back, batch.over, done)

    def _end(self, back: Collection[_Held], over: Collection[_Held], done: Completed) -> None:
        self._batch = None
        if done.status:
            self._fail(over, done)
            return
        self._counters["taken_back"] += len(back)
        self._counters["handed_over"] += len(over)
        for held in back:
            del self._leaving[held.flow.key]
            self._free.append(held.number)

    def _fail(self, over: Collection[_Held], done: Completed) -> None:
        """It stopped at its first bad line and left what came before: all its flows are taken back, by a batch of their
        own."""
        self._counters["failed"] += 1
        log.error("ipfw did not take flows (status %d): %s", done.status, done.stderr.strip() or "no message")
        self._over_not_before = self._now() + PATIENCE
        if not over:
            self._back_not_before = self._over_not_before
        # One that was brought back meanwhile is leaving already.
        failed = {held.flow.key: held for held in over if self._held.pop(held.flow.key, None) is not None}
        self._leaving |= failed
        self._free.extend(held.number for held in self._coming.values())
        gone = [Gone(key) for key in (*failed, *self._coming)]
        self._coming.clear()
        self._reports += gone
        self._counters["gone"] += len(gone)

    def _settle(self) -> None:
        """Wait until all that is leaving has left, or the loop can wait no longer."""
        until = monotonic() + _LOOP_WAITS
        self._wait_for_batch(_LOOP_WAITS)
        if self._batch is None and self._leaving:
            self._start_batch(tuple(self._leaving.values()), (), self._now())
            self._wait_for_batch(max(0.0, until - monotonic()))

    def _wait_for_batch(self, seconds: float) -> None:
        batch = self._batch
        if batch is not None and (done := batch.process.wait(seconds)) is not None:
            self._end(batch.back, batch.over, done)

    def _wait(self, seconds: float) -> None:
        """Until no batch is under way, whatever becomes of it."""
        self._wait_for_batch(seconds)
        if (batch := self._batch) is not None:
            self._end(batch.back, batch.over, _killed(batch.process))


def _killed(process: Process) -> Completed:
    """It may have done some of its work."""
    process.kill()
    return Completed(TIMED_OUT, "", f"it had not ended after {_KILLED_AFTER:g} s and was killed")


def obstacle(run: Run) -> str | None:
    """Why flows cannot be translated so on this host, None if they can. Changes nothing."""
    if run(_MODULE, None).status:
        return "the kernel has no ipfw_nat (kldload ipfw_nat; for a jail on its host)"
    one_pass = run(("sysctl", "-n", "net.inet.ip.fw.one_pass"), None)
    if one_pass.stdout.strip() != "1":
        return (
            f"net.inet.ip.fw.one_pass is {one_pass.stdout.strip() or 'not to be had'}, so that what the kernel has"
            " translated would meet the rules behind"
        )
    try:
        instances = _instances(run)
    except OSError as error:
        return error.strerror
    for line in instances:
        if _is_in_range(line) and not _OURS.fullmatch(line):
            return f"`{line}` has a number from {NUMBERS[0]} to {NUMBERS[-1]}, which natf keeps for itself"
    for name in _TABLES:
        kind = _table(run, name)
        if kind is not None and not kind.is_ours:
            return f"ipfw's table {name} is not natf's: {kind.text}"
    return None


def leftovers(run: Run) -> tuple[str, ...]:
    """What a start would remove of flows in ipfw, in words; of a daemon that runs too. Changes nothing."""
    try:
        numbers = _our_instances(run)
    except OSError as error:
        return (f"what is removed at the start cannot be told: {error.strerror}",)
    found = [f"`ipfw nat` {', '.join(map(str, numbers))}"] if numbers else []
    for name in _TABLES:
        if (kind := _table(run, name)) is not None and kind.is_ours and kind.items:
            found.append(f"entries of {name}: {kind.items}")
    return (f"there now, removed at the start: {'; '.join(found)}",) if found else ()


def remove(run: Run) -> None:
    """Whatever a daemon has left in ipfw for its flows, by what is ours alone. OSError if something stays.

    A table that a rule still names is emptied only.
    """
    tables = {name: kind for name in _TABLES if (kind := _table(run, name)) is not None and kind.is_ours}
    lines = [f"table {name} flush" for name in tables]
    lines += [f"nat {number} delete" for number in _our_instances(run)]
    lines += [f"table {name} destroy" for name, kind in tables.items() if not kind.references]
    if lines:
        _perform(run, lines)


def is_ours(line: str) -> bool:
    """Whether a line of `ipfw nat show config` is an instance of ours."""
    return _is_in_range(line) and _OURS.fullmatch(line) is not None


@dataclass(frozen=True, slots=True)
class _Kind:
    """What `ipfw table T info` says of it."""

    text: str
    is_ours: bool
    references: int
    items: int


def _table(run: Run, name: str) -> _Kind | None:
    """None: there is no such table."""
    done = run(("ipfw", "table", name, "info"), None)
    if done.status:
        return None
    said = dict(part.strip().split(": ", 1) for part in re.split(r",(?= )|\n", done.stdout) if ": " in part)
    is_ours = (said.get("type"), said.get("valtype")) == (FLOWS_TYPE, "nat")
    text = f"type {said.get('type', 'unknown')}, valtype {said.get('valtype', 'unknown')}"
    return _Kind(text, is_ours, int(said.get("references", "0")), int(said.get("items", "0")))


def _instances(run: Run) -> list[str]:
    """OSError if they cannot be listed."""
    if run(_MODULE, None).status:  # so there are none
        return []
    done = run(_INSTANCES, None)
    if done.status:
        raise OSError(errno.EIO, f"ipfw cannot list its NATs: {done.stderr.strip() or 'no message'}")
    return [line.strip() for line in done.stdout.splitlines()]


def _our_instances(run: Run) -> list[int]:
    return [int(line.split()[2]) for line in _instances(run) if is_ours(line)]


def _is_in_range(line: str) -> bool:
    match = _NUMBER.match(line)
    return match is not None and int(match[1]) in NUMBERS


def _perform(run: Run, lines: Collection[str]) -> None:
    done = run(_BATCH, "".join(f"{line}\n" for line in lines))
    if done.status:
        raise OSError(errno.EIO, f"ipfw (status {done.status}): {done.stderr.strip() or 'no message'}")


def _text(back: Iterable[_Held], over: Iterable[_Held]) -> str:
    lines = [line for held in back for line in held.take_back()]
    lines += [line for held in over for line in held.hand_over()]
    return "".join(f"{line}\n" for line in lines)


def _key(flow: Flow) -> str:
    source, destination = flow.source, flow.destination
    protocol = Protocol(flow.protocol).name.lower()
    return (
        f"{format_address(source.address)},{protocol},{source.port},"
        f"{format_address(destination.address)},{destination.port}"
    )
