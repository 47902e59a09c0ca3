"""One source's share, and the load that makes strangers prove their address."""

from __future__ import annotations

from natf_bsd.keys import Key
from natf_bsd.router.rates import BURST_SECONDS, Load, SourceRates
from natf_bsd.wire import message

A, B = bytes((203, 0, 113, 10)), bytes((203, 0, 113, 11))


def test_a_source_gets_its_burst_and_then_its_rate() -> None:
    rates = SourceRates(10)
    assert sum(rates.take(A, 0.0) for _ in range(200)) == 10 * BURST_SECONDS
    assert rates.take(B, 0.0), "another source has a share of its own"
    assert sum(rates.take(A, 2.0) for _ in range(200)) == 20
    assert sum(rates.take(A, 1000.0) for _ in range(200)) == 10 * BURST_SECONDS


def test_a_source_is_forgotten_when_its_bucket_is_full_again() -> None:
    rates = SourceRates(10)
    for _ in range(50):
        rates.take(A, 0.0)
    assert rates.next_deadline() is not None
    rates.expire(BURST_SECONDS + 0.1)
    assert rates.next_deadline() is None


def test_zero_is_without_limit() -> None:
    rates = SourceRates(0)
    assert all(rates.take(A, 0.0) for _ in range(10_000))


def test_a_full_table_lets_a_new_source_through() -> None:
    rates = SourceRates(1, maximum=1)
    assert rates.take(A, 0.0)
    assert all(rates.take(B, 0.0) for _ in range(10))
    assert rates.refused == 10


def test_the_load_is_that_of_the_last_whole_second_or_this_one() -> None:
    load = Load(3)
    assert [load.note(0.1) for _ in range(5)] == [False, False, False, True, True]
    assert load.note(1.5), "the second before was busy"
    assert not load.note(3.0)


def test_a_source_over_its_rate_is_out_of_resources_and_counted(make_bench) -> None:
    bench = make_bench(source_rate=1, cookies="never")
    for s in range(BURST_SECONDS + 1):
        bench.ask(s=40000 + s)
    assert bench.core.pending == BURST_SECONDS
    assert bench.heard.status is message.Status.OUT_OF_RESOURCES
    assert bench.heard.text == "too many requests"
    assert bench.count("source.over_rate") == 1


def forge(bench, seconds: int, rate: int = 150) -> None:
    """Requests in the name of an honest external node, fewer than `cookie_rate`."""
    for _ in range(seconds):
        bench.now += 1
        for s in range(rate):
            written = len(bench.written)
            bench.ask(s=1024 + s)
            if len(bench.written) > written:
                bench.translate(61000 + s)


def test_forged_requests_do_not_use_up_the_share_of_who_proves_his_address(make_bench) -> None:
    bench = make_bench()
    forge(bench, 20)
    asked = bench.ask(s=50000)
    assert isinstance(bench.heard, message.CookieChallenge)
    bench.ask(s=50000, transaction=asked.transaction, cookie=bench.heard.cookie)
    bench.translate(62000)
    assert isinstance(bench.heard, message.Response)


def test_forged_requests_do_not_use_up_the_share_of_a_key(make_bench) -> None:
    key = Key(b"k" * 8, b"s" * 32)
    bench = make_bench(keys=(key,))
    forge(bench, 20)
    bench.ask_signed((key.ident, key.secret), s=50001)
    bench.translate(62000)
    assert isinstance(bench.heard, message.Response)
