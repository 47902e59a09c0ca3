"""The questions put to DNS servers, by this host or those behind it: only an answer to one is believed (RFC 5452).

A forger off the path must then guess port and transaction id, as with any resolver, and not the port alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from natf_bsd.dns.question import Question
from natf_bsd.tables.expiring import Table
from natf_bsd.types import Endpoint

MAXIMUM = 8192  # questions, about 1 kB each: 800 a second, of names under the home domains alone
LIFETIME = 10.0  # s; twice the five that resolvers wait before they ask again (resolv.conf(5), timeout)


class _Key(NamedTuple):
    client: Endpoint
    server: Endpoint
    ident: int
    name: str
    type: int
    klass: int


@dataclass(slots=True, eq=False)
class Query:
    """`answered`: an answer was believed already; another one may no longer teach anything else (the true one has come,
    and a forger has not the rest of ten seconds to try all ids). `plain`: by somebody who does not know EDNS. `tries`:
    how often it may yet be put once more, for a longer answer."""

    key: _Key
    deadline: float
    plain: bool
    tries: int
    answered: bool = False


class Queries:
    """A question is kept until it expires, not until its first answer: a repeated answer must become the same."""

    def __init__(self, maximum: int = MAXIMUM) -> None:
        self._table: Table[Query] = Table(maximum, {"key": lambda query: query.key})

    def __len__(self) -> int:
        return len(self._table)

    def remember(
        self, client: Endpoint, server: Endpoint, question: Question, now: float, *, plain: bool, tries: int
    ) -> bool:
        """`client` asks `server`, perhaps once more: then `plain` and `tries` stay as they are. False if the oldest
        question had to go for it: any program can ask faster than answers come, and must not keep others from asking.
        """
        forgotten = False
        key = _key(client, server, question)
        known = self._table.get("key", key)
        if known is None:
            while len(self._table) >= self._table.maximum:
                forgotten |= bool(self._table.expire(math.inf, limit=1))
            self._table.insert(Query(key, now + LIFETIME, plain, tries))
        else:
            known.deadline = now + LIFETIME
            known.answered = False
        return not forgotten

    def find(self, client: Endpoint, server: Endpoint, question: Question, now: float) -> Query | None:
        """What `client` asked `server` not long ago; None if it did not ask this."""
        known = self._table.get("key", _key(client, server, question))
        return known if known is not None and known.deadline > now else None

    def expire(self, now: float) -> None:
        self._table.expire(now)

    def next_deadline(self) -> float | None:
        return self._table.next_deadline()


def _key(client: Endpoint, server: Endpoint, question: Question) -> _Key:
    """Case folded: some servers answer in lower case whatever they were asked."""
    return _Key(client, server, question.ident, question.name.lower(), question.type, question.klass)
