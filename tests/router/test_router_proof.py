"""What a stranger must prove before the NAT is asked for anything: cookies under load, keys (DESIGN.md section 5)."""

from __future__ import annotations

import pytest

from natf_bsd.config import RouterConfig
from natf_bsd.errors import AuthError
from natf_bsd.keys import Key
from natf_bsd.types import parse_address
from natf_bsd.wire import auth, message

KEY = Key(b"keyident", b"k" * 32)
OTHER = Key(b"otherkey", b"o" * 32)
PAIR = (KEY.ident, KEY.secret)


def challenge(bench) -> bytes:
    assert isinstance(bench.heard, message.CookieChallenge)
    return bench.heard.cookie


# Cookies.


def test_always_a_cookie_first_then_the_mapping(make_bench) -> None:
    bench = make_bench(cookies="always")
    request = bench.ask()
    assert bench.written == []
    assert bench.count("request.answered.challenge") == 1
    bench.ask(transaction=request.transaction, cookie=challenge(bench))
    assert len(bench.written) == 1
    assert bench.count("cookie.bad") == 0


def test_no_state_is_kept_for_who_gets_a_cookie(make_bench) -> None:
    bench = make_bench(cookies="always")
    for _ in range(50):
        bench.ask()
    assert (bench.core.pending, bench.core.next_deadline()) == (0, None)


def test_a_cookie_is_good_for_its_source_its_transaction_and_a_while(make_bench) -> None:
    bench = make_bench(cookies="always")
    request = bench.ask()
    cookie = challenge(bench)
    bench.ask(cookie=cookie)
    assert bench.count("cookie.bad") == 1
    elsewhere = parse_address("198.51.100.9")
    bench.send(
        message.encode(bench.request(transaction=request.transaction, cookie=cookie, g1=elsewhere)), source=elsewhere
    )
    assert bench.count("cookie.bad") == 2
    bench.ask(transaction=request.transaction, cookie=b"guess")
    assert bench.count("cookie.bad") == 3
    bench.now += 40
    bench.ask(transaction=request.transaction, cookie=cookie)
    assert bench.count("cookie.bad") == 4
    assert bench.written == []
    assert bench.count("request.answered.challenge") == 5


def test_a_cookie_outlives_the_turn_of_its_time_slot(make_bench) -> None:
    bench = make_bench(cookies="always")
    bench.now = 159.9
    request = bench.ask()
    bench.now = 160.1
    bench.ask(transaction=request.transaction, cookie=challenge(bench))
    assert len(bench.written) == 1


def test_cookies_differ_between_two_runs_of_the_router(make_bench) -> None:
    first, second = make_bench(cookies="always", seed=1), make_bench(cookies="always", seed=2)
    first.ask(transaction=b"transact")
    second.ask(transaction=b"transact")
    assert challenge(first) != challenge(second)


def test_never_asks_nobody(make_bench) -> None:
    bench = make_bench(cookies="never", cookie_rate=1)
    for _ in range(20):
        bench.ask()
    assert len(bench.written) == 20


def test_under_load_who_comes_too_fast_must_prove_its_address(make_bench) -> None:
    bench = make_bench(cookies="load", cookie_rate=10)
    for _ in range(15):
        bench.ask()
    assert len(bench.written) == 10
    assert bench.count("request.answered.challenge") == 5


def test_load_is_remembered_for_a_second_and_then_over(make_bench) -> None:
    bench = make_bench(cookies="load", cookie_rate=10)
    for _ in range(15):
        bench.ask()
    bench.now += 1
    bench.ask()
    assert bench.count("request.answered.challenge") == 6
    bench.now += 1
    bench.ask()
    assert bench.count("request.answered.challenge") == 6


def test_after_a_pause_there_is_no_load(make_bench) -> None:
    bench = make_bench(cookies="load", cookie_rate=10)
    for _ in range(15):
        bench.ask()
    bench.now += 2
    bench.ask()
    assert bench.count("request.answered.challenge") == 5


def test_a_malformed_request_is_no_load(make_bench) -> None:
    bench = make_bench(cookies="load", cookie_rate=10)
    for _ in range(30):
        bench.send(b"NATf\x01\x01\x00\x10transact")
    bench.ask()
    assert len(bench.written) == 1


# Keys.


def test_a_signed_request_needs_no_cookie_and_gets_a_signed_answer(make_bench) -> None:
    bench = make_bench(cookies="always", keys=(KEY, OTHER))
    bench.ask_signed(PAIR)
    bench.translate()
    assert auth.verify(bench.answers[0].data, {KEY.ident: KEY.secret}, 100_000) == KEY.ident
    assert isinstance(bench.heard, message.Response)


def test_a_signed_request_is_no_load(make_bench) -> None:
    bench = make_bench(cookies="load", cookie_rate=1, keys=(KEY,))
    for _ in range(20):
        bench.ask_signed(PAIR)
    assert len(bench.written) == 20


@pytest.mark.parametrize("host", ["eve", "mallory"])
def test_a_refusal_to_who_has_a_key_is_signed(make_bench, host: str) -> None:
    bench = make_bench(keys=(KEY,), tell_unknown=True)
    bench.ask_signed(PAIR, host)
    assert auth.verify(bench.answers[0].data, {KEY.ident: KEY.secret}, 100_000) == KEY.ident
    assert isinstance(bench.heard, message.Refused)


def test_the_nats_failure_is_signed_too(make_bench) -> None:
    bench = make_bench(keys=(KEY,))
    bench.ask_signed(PAIR)
    bench.wait(1)
    assert auth.verify(bench.answers[0].data, {KEY.ident: KEY.secret}, 100_400) == KEY.ident
    assert bench.heard.status is message.Status.OUT_OF_RESOURCES


def test_answers_carry_the_routers_time_of_day(make_bench) -> None:
    bench = make_bench(keys=(KEY,))
    bench.core.epoch_offset = 1_700_000_000.0
    bench.ask_signed(PAIR, "eve", at=1_700_000_100.0)
    assert auth.verify(bench.answers[0].data, {KEY.ident: KEY.secret}, 1_700_000_100_000, window_ms=0)


@pytest.mark.parametrize(
    ("key", "at"),
    [
        ((KEY.ident, b"x" * 32), 100.0),
        ((b"nobodies", KEY.secret), 100.0),
        ((KEY.ident, OTHER.secret), 100.0),
        (PAIR, 39.9),
        (PAIR, 160.1),
    ],
    ids=["wrong secret", "unknown id", "another's secret", "too old", "from the future"],
)
def test_a_bad_key_is_told_so_unsigned_and_goes_no_further(make_bench, key: tuple[bytes, bytes], at: float) -> None:
    bench = make_bench(keys=(KEY, OTHER))
    bench.ask_signed(key, at=at)
    assert bench.heard.status is message.Status.BAD_KEY
    with pytest.raises(AuthError) as caught:
        auth.verify(bench.answers[0].data, {}, 0)
    assert caught.value.missing
    assert bench.written == []
    assert bench.count("request.answered.bad_key") == 1


@pytest.mark.parametrize("at", [40.0, 160.0])
def test_clocks_may_differ_by_a_minute(make_bench, at: float) -> None:
    bench = make_bench(keys=(KEY,))
    bench.ask_signed(PAIR, at=at)
    assert len(bench.written) == 1


def test_a_changed_byte_anywhere_breaks_the_signature(make_bench) -> None:
    bench = make_bench(keys=(KEY,), require_key=True)
    data = auth.sign(message.encode(bench.request()), *PAIR, 100_000)
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        bench.send(bytes(spoilt))
    assert bench.written == []
    bench.send(data)
    assert len(bench.written) == 1


def test_where_a_key_is_required_a_request_without_one_is_told_so(make_bench) -> None:
    bench = make_bench(keys=(KEY,), require_key=True)
    bench.ask()
    assert bench.heard.status is message.Status.KEY_REQUIRED
    assert bench.count("request.answered.key_required") == 1
    assert bench.written == []
    bench.ask_signed(PAIR)
    assert len(bench.written) == 1


def test_a_key_of_a_router_without_keys_is_bad(bench) -> None:
    bench.ask_signed(PAIR)
    assert bench.heard.status is message.Status.BAD_KEY


def test_secrets_show_in_no_repr() -> None:
    assert "kkkk" not in repr(RouterConfig(keys=(KEY,)))
