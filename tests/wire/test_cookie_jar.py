"""Cookies: whose they are, and how long they are good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.types import parse_address
from natf_bsd.wire.cookie import COOKIE_SIZE, CookieJar

SECRET = b"s" * 32
G1 = parse_address("203.0.113.10")
OTHER = parse_address("203.0.113.11")
TRANSACTION = bytes(range(8))


def test_golden_cookie() -> None:
    """Made with `openssl dgst -sha256 -mac HMAC` of address, transaction and slot 3 as 8 bytes."""
    assert CookieJar(SECRET).make(G1, TRANSACTION, 50.0).hex() == "b1443d6c2f2e0606c2cfaf83ac3baa67"


@given(st.floats(0, 1e9), st.floats(0, 1), st.binary(min_size=4, max_size=4), st.binary(min_size=8, max_size=8))
def test_cookie_is_good_for_a_whole_slot_from_when_it_was_made(
    now: float, part: float, source: bytes, transaction: bytes
) -> None:
    jar = CookieJar(SECRET, slot_seconds=16.0)
    cookie = jar.make(source, transaction, now)
    assert len(cookie) == COOKIE_SIZE
    assert jar.check(cookie, source, transaction, now + part * 15.9)


@pytest.mark.parametrize(("age", "good"), [(0.0, True), (15.9, True), (16.0, True), (31.9, True), (32.0, False)])
def test_cookie_dies_with_the_slot_after_its_own(age: float, good: bool) -> None:
    jar = CookieJar(SECRET)
    assert jar.check(jar.make(G1, TRANSACTION, 160.0), G1, TRANSACTION, 160.0 + age) is good


def test_cookie_of_the_future_is_refused() -> None:
    jar = CookieJar(SECRET)
    assert not jar.check(jar.make(G1, TRANSACTION, 160.0), G1, TRANSACTION, 159.9)


def test_cookie_serves_one_address_and_one_transaction() -> None:
    jar = CookieJar(SECRET)
    cookie = jar.make(G1, TRANSACTION, 0.0)
    assert not jar.check(cookie, OTHER, TRANSACTION, 0.0)
    assert not jar.check(cookie, G1, TRANSACTION[::-1], 0.0)


def test_cookie_of_another_secret_is_refused() -> None:
    assert not CookieJar(b"another").check(CookieJar(SECRET).make(G1, TRANSACTION, 0.0), G1, TRANSACTION, 0.0)


@pytest.mark.parametrize("cookie", [b"", bytes(16), bytes(32), b"x"])
def test_made_up_cookies_are_refused(cookie: bytes) -> None:
    assert not CookieJar(SECRET).check(cookie, G1, TRANSACTION, 0.0)


def test_part_of_a_cookie_is_refused() -> None:
    jar = CookieJar(SECRET)
    cookie = jar.make(G1, TRANSACTION, 0.0)
    assert not jar.check(cookie[:-1], G1, TRANSACTION, 0.0)
    assert not jar.check(cookie + b"\0", G1, TRANSACTION, 0.0)


def test_the_secret_is_not_in_the_repr() -> None:
    assert "sss" not in repr(CookieJar(SECRET))
