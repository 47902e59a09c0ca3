"""Cookies prove that a stranger receives at his address, without our remembering him (DESIGN.md section 5)."""

from __future__ import annotations

import hmac
import struct

from natf_bsd.types import Address

COOKIE_SIZE = 16


class CookieJar:
    """Makes and checks cookies under `secret`; one is good for its time slot of `slot_seconds` and the next slot."""

    def __init__(self, secret: bytes, slot_seconds: float = 16.0) -> None:
        self._secret = secret
        self._slot_seconds = slot_seconds

    def make(self, source: Address, transaction: bytes, now: float) -> bytes:
        """The 16-byte cookie for a request with `transaction` from `source` at `now` (monotonic seconds)."""
        return self._cookie(source, transaction, self._slot(now))

    def check(self, cookie: bytes, source: Address, transaction: bytes, now: float) -> bool:
        slot = self._slot(now)
        return any(
            hmac.compare_digest(cookie, self._cookie(source, transaction, candidate)) for candidate in (slot, slot - 1)
        )

    def _slot(self, now: float) -> int:
        return int(now // self._slot_seconds)

    def _cookie(self, source: Address, transaction: bytes, slot: int) -> bytes:
        return hmac.digest(self._secret, struct.pack("!4s8sq", source, transaction, slot), "sha256")[:COOKIE_SIZE]
