"""The loop: who is called, when, and with what; on the real clock, with waits of milliseconds."""

import contextlib
import math
import os
import selectors
import signal
import threading

import pytest

from natf_bsd.ops.loop import Loop, epoch_offset, monotonic, precise


class Pipe:
    """Something that becomes readable when it is written to."""

    def __init__(self):
        self.out, self.into = os.pipe()

    def fileno(self):
        return self.out

    def write(self):
        os.write(self.into, b"x")

    def read(self):
        return os.read(self.out, 1)

    def close(self):
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def make_loop():
    """Loops that are closed at the end; signal handlers are put back."""
    loops = []

    def make(next_deadline=lambda: None, on_deadline=lambda now: None):
        loops.append(Loop(next_deadline, on_deadline))
        return loops[-1]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield make
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for loop in loops:
        loop.close()


def test_a_deadline_is_kept_and_never_early(make_loop):
    deadlines = [monotonic() + 0.002, monotonic() + 0.004]
    calls = []

    def on_deadline(now):
        calls.append(now - deadlines.pop(0))
        if not deadlines:
            loop.stop()

    loop = make_loop(lambda: deadlines[0], on_deadline)
    loop.run()
    assert len(calls) == 2
    assert min(calls) >= 0


def test_a_deadline_that_has_passed_is_met_at_once_but_readers_go_first(make_loop, pipe):
    order = []
    loop = make_loop(lambda: monotonic() - 100, lambda now: (order.append("deadline"), loop.stop()))
    loop.add_reader(pipe, lambda: order.append(pipe.read()))
    pipe.write()
    loop.run()
    assert order == [b"x", "deadline"]


def test_a_wake_up_before_the_deadline_does_not_call_it(make_loop, pipe):
    loop = make_loop(lambda: monotonic() + 3600, lambda now: pytest.fail("not due"))
    loop.add_reader(pipe, lambda: (pipe.read(), loop.stop()))
    pipe.write()
    loop.run()


def test_a_reader_that_is_always_ready_does_not_starve_the_deadline(make_loop, pipe):
    due = monotonic() + 0.002
    loop = make_loop(lambda: due, lambda now: loop.stop())
    loop.add_reader(pipe, lambda: None)
    pipe.write()
    loop.run()


@pytest.mark.parametrize("deadline", [math.inf, 1e12])
def test_a_deadline_beyond_what_the_kernel_can_wait_for_is_no_fault(make_loop, pipe, deadline):
    loop = make_loop(lambda: deadline, lambda now: pytest.fail("not due"))
    loop.add_reader(pipe, lambda: (pipe.read(), loop.stop()))
    pipe.write()
    loop.run()


def test_it_waits_as_long_as_the_deadline_says(make_loop, monkeypatch):
    waits = []

    class Selector(selectors.SelectSelector):
        def select(self, timeout=None):
            waits.append(timeout)
            if len(waits) == len(deadlines):
                loop.stop()
            return []

    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    deadlines = [None, monotonic() + 100, monotonic() - 5, math.inf]
    loop = make_loop(lambda: deadlines[len(waits)])
    loop.run()
    assert waits[0] is None
    assert 90 < waits[1] <= 100
    assert waits[2] == 0
    assert waits[3] == 3600


def test_readers_are_called_while_there_is_something_to_read(make_loop, pipe):
    seen = []
    loop = make_loop()
    loop.add_reader(pipe, lambda: (seen.append(pipe.read()), len(seen) == 3 and loop.stop()))
    for _ in range(3):
        pipe.write()
    loop.run()
    assert seen == [b"x"] * 3


def test_a_removed_reader_is_not_called(make_loop, pipe):
    other = Pipe()
    loop = make_loop()
    loop.add_reader(pipe, lambda: pytest.fail("removed"))
    loop.add_reader(other.fileno(), loop.stop)
    loop.remove_reader(pipe)
    pipe.write()
    other.write()
    loop.run()
    other.close()


def test_a_fault_in_a_reader_ends_the_loop_loudly(make_loop, pipe):
    loop = make_loop()
    loop.add_reader(pipe, lambda: {}["fault"])
    pipe.write()
    with pytest.raises(KeyError):
        loop.run()


def test_stop_before_run_is_not_forgotten(make_loop):
    loop = make_loop()
    loop.stop()
    loop.run()


def test_a_signal_is_handled_in_the_loop_and_not_before(make_loop):
    seen = []
    loop = make_loop()
    loop.on_signal(signal.SIGUSR1, lambda: seen.append("usr1"))
    loop.on_signal(signal.SIGUSR2, lambda: (seen.append("usr2"), loop.stop()))
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    assert seen == []
    loop.run()
    assert seen == ["usr1", "usr2"]


def test_a_signal_wakes_a_loop_that_waits_for_ever(make_loop):
    loop = make_loop()
    loop.on_signal(signal.SIGUSR1, loop.stop)
    sender = threading.Timer(0.003, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    loop.run()
    sender.join()


def test_more_signals_than_the_pipe_holds_are_no_fault(make_loop):
    count = 70000  # a pipe holds 65536 bytes
    seen = []
    loop = make_loop()
    loop.on_signal(signal.SIGUSR1, lambda: (seen.append(1), len(seen) == count and loop.stop()))
    for _ in range(count):
        signal.raise_signal(signal.SIGUSR1)
    loop.run()
    assert len(seen) == count


def test_a_signal_after_close_is_swallowed():
    """A second SIGTERM must not cut off a daemon that takes its rules back."""
    before = signal.getsignal(signal.SIGUSR1)
    loop = Loop(lambda: None, lambda now: None)
    loop.on_signal(signal.SIGUSR1, lambda: pytest.fail("closed"))
    loop.close()
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def descriptors():
    """Those that are open. Not what /dev/fd lists: on FreeBSD that is the first three, without fdescfs(5)."""
    found = []
    for number in range(1024):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


def test_close_gives_every_descriptor_back():
    before = descriptors()
    loop = Loop(lambda: None, lambda now: None)
    assert len(descriptors()) > len(before)
    loop.close()
    assert descriptors() == before


def test_the_clocks_go_forward_and_the_offset_leads_to_the_day():
    import time

    assert monotonic() <= monotonic()
    assert precise() <= precise()
    assert abs(monotonic() + epoch_offset() - time.time()) < 3600
