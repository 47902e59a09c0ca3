"""The router's decisions, sans-IO: requests, captured pseudo-packets and `now` in, effects out [3.2 steps 4 to 6].

A request is read, its sender proves its address if asked to, the access control table is looked at, a pseudo-packet
is written to the NAT (`WritePseudo`), and what the NAT made of it (`handle_captured`) is the answer. No state is kept
for a stranger but the request at the NAT and, until it is whole again, its share of mappings a second (`rates`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from natf_bsd.config import RouterConfig
from natf_bsd.counters import Counters
from natf_bsd.effects import Drop, Effect, ForgetMapping, Inject, Send, WritePseudo
from natf_bsd.errors import AuthError, TableFull, UnsupportedVersion, WireError
from natf_bsd.natd_bridge import pseudo
from natf_bsd.router.answered import Answered
from natf_bsd.router.counts import COUNTERS
from natf_bsd.router.rates import Load, SourceRates
from natf_bsd.tables.act import AccessTable
from natf_bsd.tables.expiring import Table
from natf_bsd.types import Address, Endpoint, Flow, Packet, Protocol, format_address
from natf_bsd.wire import auth, build, icmp, message
from natf_bsd.wire.cookie import CookieJar

NAT_TIMEOUT = 0.2
"""Seconds a pseudo-packet may take through the NAT; then it is written once more (FREEBSD.md 3.1)."""

MAXIMUM_TEXT = message.REQUEST_MINIMUM - message.HEADER.size - 3 - auth.AUTH_SIZE
"""ASCII characters of explanation in a refusal: with all the rest it is no longer than the smallest request."""

_STATUS_COUNTERS = {status: f"request.answered.{status.name.lower()}" for status in message.Status}


@dataclass(slots=True, eq=False)
class Asked:
    """One request while it is being answered: who asked, how to answer, and with whose key."""

    source: Address
    destination: Address
    echo: icmp.Echo
    transaction: bytes
    key_id: bytes | None = None
    proven: bool = False
    """It has shown by key or cookie that it is at its address: not to be confused with who speaks in its name."""


@dataclass(slots=True, eq=False)
class Pending:
    """One request whose pseudo-packet is at the NAT."""

    asked: Asked
    cookie: int
    inside: Flow
    established: bool
    deadline: float
    retried: bool = False
    renumbered: bool = False


class RouterCore:
    """One router. `style`: the pseudo-packet its NAT needs; `lifetime`: seconds a protocol's mapping lives in use."""

    def __init__(
        self,
        config: RouterConfig,
        act: AccessTable,
        style: pseudo.PseudoStyle,
        lifetime: Callable[[int], int],
        *,
        token: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.counters = Counters(COUNTERS)
        self.act = act
        self.epoch_offset = 0.0
        """Seconds to add to `now` for the time since 1970 (AUTH); the shell keeps it right."""
        self._config = config
        self._style = style
        self._lifetime = lifetime
        self._token = token
        self._keys = {key.ident: key.secret for key in config.keys}
        self._jar = CookieJar(token(32))
        self._pending: Table[Pending] = Table(
            config.maximum_pending,
            {
                "cookie": lambda pending: pending.cookie,
                "request": lambda pending: (pending.asked.source, pending.asked.transaction),
            },
        )
        self._answered = Answered()
        self._load = Load(config.cookie_rate)
        self._rates = SourceRates(config.source_rate)

    @property
    def pending(self) -> int:
        return len(self._pending)

    @property
    def refused(self) -> dict[str, int]:
        """What full tables did not take."""
        return {"pending": self._pending.refused, "sources": self._rates.refused}

    def handle_request(self, packet: Packet, now: float) -> list[Effect]:
        """An echo request to this router: a NAT-f request is answered, an ordinary ping handed back to the kernel."""
        self.counters.add("request.received")
        try:
            source, destination, echo = icmp.decode_echo_packet(bytes(packet.data))
        except WireError:
            self.counters.add("request.passed")
            return [Send(packet)]
        if echo.type != icmp.ECHO_REQUEST or not message.is_natf(echo.data):
            self.counters.add("request.passed")
            return [Send(packet)]
        return [Drop(packet), *self._message(source, destination, echo, now)]

    def _message(self, source: Address, destination: Address, echo: icmp.Echo, now: float) -> list[Effect]:
        data = echo.data
        if len(data) < message.REQUEST_MINIMUM:
            return self._count("request.drop.short")
        if source == destination or not _plausible(source):
            return self._count("request.drop.implausible")
        asked = Asked(source, destination, echo, data[8:16])
        try:
            request = message.decode(data)
        except UnsupportedVersion as error:
            return self._refuse(asked, message.Status.UNSUPPORTED, str(error))
        except WireError as error:
            return self._refuse(asked, message.Status.MALFORMED, str(error))
        if not isinstance(request, message.Request):
            return self._count("request.drop.not_a_request")
        refusal = self._unproven(asked, request, now)
        return refusal if refusal is not None else self._checked(asked, request, now)

    def _unproven(self, asked: Asked, request: message.Request, now: float) -> list[Effect] | None:
        """None once the sender has proved what it must: by its key, or by a cookie that it is at its address."""
        try:
            if auth.is_signed(asked.echo.data):
                data = asked.echo.data[: message.message_length(asked.echo.data)]
                asked.key_id = auth.verify(data, self._keys, auth.epoch_ms(now, self.epoch_offset))
                asked.proven = True
                return None
        except AuthError:
            return self._refuse(asked, message.Status.BAD_KEY)
        if self._config.require_key:
            return self._refuse(asked, message.Status.KEY_REQUIRED)
        busy = self._load.note(now)
        asked.proven = bool(request.cookie) and self._jar.check(request.cookie, asked.source, request.transaction, now)
        if asked.proven or self._config.cookies == "never" or (self._config.cookies == "load" and not busy):
            return None
        return self._challenge(asked, request, now)

    def _challenge(self, asked: Asked, request: message.Request, now: float) -> list[Effect]:
        if request.cookie:
            self.counters.add("cookie.bad")
        self.counters.add("request.answered.challenge")
        cookie = self._jar.make(asked.source, request.transaction, now)
        return [self._reply(asked, message.CookieChallenge(request.transaction, cookie), now)]

    def _checked(self, asked: Asked, request: message.Request, now: float) -> list[Effect]:
        """The access control table's word on a proven request, and the way to the NAT."""
        flow = request.flow
        if not (flow.source.port and flow.destination.port):
            return self._refuse(asked, message.Status.MALFORMED, "port 0", now)
        if flow.source.address != asked.source:
            text = f"your address is {format_address(asked.source)} here: an external node behind another NAT"
            return self._refuse(asked, message.Status.UNSUPPORTED, text, now)
        if flow.protocol not in (Protocol.TCP, Protocol.UDP):
            return self._refuse(asked, message.Status.UNSUPPORTED, "TCP and UDP only", now)
        entry = self.act.lookup(request.name.host)
        if entry is None and self._config.tell_unknown:
            return self._refuse(asked, message.Status.NO_SUCH_HOST, "", now)
        if entry is None or not entry.permits(flow.protocol, flow.destination.port):
            return self._refuse(asked, message.Status.DENIED, "", now)
        inside = Flow(flow.protocol, flow.destination._replace(address=entry.address), flow.source)
        if (known := self._answered.get(asked.source, asked.transaction, inside, now)) is not None:
            self.counters.add("request.answered.again")
            return [self._mapping(asked, inside.protocol, known, now)]
        # Who has proved its address has a share that nobody who only claims it can use up.
        if not self._rates.take((asked.source, asked.proven), now):
            if not asked.proven and self._config.cookies != "never":
                return self._challenge(asked, request, now)
            self.counters.add("source.over_rate")
            return self._refuse(asked, message.Status.OUT_OF_RESOURCES, "too many requests", now)
        return self._ask_nat(asked, inside, request.established, now)

    def _ask_nat(self, asked: Asked, inside: Flow, established: bool, now: float) -> list[Effect]:
        if self._pending.get("request", (asked.source, asked.transaction)) is not None:
            return self._count("request.drop.pending")
        pending = Pending(asked, int.from_bytes(self._token(4), "big"), inside, established, now + NAT_TIMEOUT)
        try:
            self._pending.insert(pending)
        except (TableFull, KeyError):
            return self._refuse(asked, message.Status.OUT_OF_RESOURCES, "", now)
        self.counters.add("request.accepted")
        return [self._pseudo(pending)]

    def _pseudo(self, pending: Pending) -> WritePseudo:
        self.counters.add("pseudo.written")
        data = pseudo.build(pending.inside, pending.cookie, self._style, established=pending.established)
        return WritePseudo(data, pending.asked.transaction)

    def handle_captured(self, data: bytes, now: float) -> list[Effect]:
        """A packet the NAT gave back: the mapping, if it is a pseudo-packet of ours."""
        captured = pseudo.parse_captured(data)
        if captured is None:
            return self._count("captured.foreign")
        pending = self._pending.get("cookie", captured.cookie)
        if pending is None or pending.inside.destination != captured.translated.destination:
            return self._count("captured.late")
        self._pending.remove(pending)
        mapped = captured.translated.source
        if mapped.address == pending.inside.source.address:
            self.counters.add("mapping.failed.untranslated")
            return [self._no(pending.asked, message.Status.OUT_OF_RESOURCES, "the NAT made no mapping", now)]
        if mapped.address != pending.asked.destination and not pending.renumbered:
            return self._renumber(pending, mapped.address, now)
        if mapped.address != pending.asked.destination:
            self.counters.add("mapping.failed.other_address")
            text = f"the NAT uses {format_address(mapped.address)}, not this address"
            return [self._no(pending.asked, message.Status.OUT_OF_RESOURCES, text, now)]
        self.counters.add("mapping.made")
        asked, inside = pending.asked, pending.inside
        self._answered.remember(asked.source, asked.transaction, inside, mapped, now)
        return [self._mapping(asked, inside.protocol, mapped, now)]

    def _renumber(self, pending: Pending, address: Address, now: float) -> list[Effect]:
        """The NAT has a mapping of this flow at an address that this router may have no longer: once more, without."""
        pending.renumbered = True
        pending.deadline = now + NAT_TIMEOUT
        self._pending.insert(pending)
        self.counters.add("pseudo.renumbered")
        return [ForgetMapping(pending.inside, address), self._pseudo(pending)]

    def _mapping(self, asked: Asked, protocol: int, mapped: Endpoint, now: float) -> Inject:
        return self._reply(asked, message.Response(asked.transaction, mapped, self._lifetime(protocol)), now)

    def handle_timer(self, now: float) -> list[Effect]:
        """Second tries of pseudo-packets that did not come back, and the end of those that had one."""
        effects: list[Effect] = []
        self._rates.expire(now)
        for pending in self._pending.expire(now):
            if pending.retried:
                self.counters.add("mapping.failed.no_answer")
                text = "the NAT did not answer"
                effects.append(self._no(pending.asked, message.Status.OUT_OF_RESOURCES, text, now))
                continue
            pending.retried = True
            pending.deadline = now + NAT_TIMEOUT
            self._pending.insert(pending)
            self.counters.add("pseudo.retried")
            effects.append(self._pseudo(pending))
        return effects

    def next_deadline(self) -> float | None:
        deadlines = (self._pending.next_deadline(), self._rates.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _count(self, counter: str) -> list[Effect]:
        self.counters.add(counter)
        return []

    def _refuse(self, asked: Asked, status: message.Status, text: str = "", now: float | None = None) -> list[Effect]:
        self.counters.add(_STATUS_COUNTERS[status])
        return [self._no(asked, status, text, now)]

    def _no(self, asked: Asked, status: message.Status, text: str, now: float | None) -> Inject:
        return self._reply(asked, message.Refused(asked.transaction, status, text[:MAXIMUM_TEXT]), now)

    def _reply(self, asked: Asked, answer: message.Message, now: float | None) -> Inject:
        """The echo reply with `answer`, signed if the request was; the request's minimum is room enough for it."""
        data = message.encode(answer)
        if asked.key_id is not None and now is not None:
            epoch_ms = auth.epoch_ms(now, self.epoch_offset)
            data = auth.sign(data, asked.key_id, self._keys[asked.key_id], epoch_ms)
        echo = asked.echo
        packet = build.icmp_echo(
            asked.destination, asked.source, reply=True, ident=echo.ident, sequence=echo.sequence, payload=data
        )
        return Inject(bytes(packet), asked.transaction)


def _plausible(source: Address) -> bool:
    """Whether an external node can have this address. Requests are hooked before the kernel's own check of sources
    (martians), and a pseudo-packet to such an address could end in the router itself.
    """
    return source[0] not in (0, 127) and source[0] < 224
