"""Where our rules go among those of the site: in front of whatever would take their packets, behind the NAT.

The order of rules decides, so everything is placed relative to what is there (FREEBSD.md section 11). No number is
shared with a foreign rule, or with our other role: a packet written back to a divert socket skips *all* rules of the
number it came from, and would pass those others by (FREEBSD.md 1.5).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

from natf_bsd.errors import NatfError
from natf_bsd.firewall.ipfw_nat import NatRule, find_nat, no_nat
from natf_bsd.firewall.ipfw_rules import (
    EN_SET,
    ROUTER_SET,
    STAND_IN_SET,
    Reader,
    Rule,
    Tables,
    Traffic,
    own_network,
)
from natf_bsd.ops.interfaces import Interface
from natf_bsd.types import Direction

_HOST_FIRST: Final = 29
_HOST_OFFSETS: Final = (0, 1, 2, 5, 6, 7, 8, 9, 10)
_LOOPBACK: Final = "lo0"
# pf takes a packet written with one of these in the low byte of sin_port for one of its own (FREEBSD.md 5.3).
_PF_DIRECTIONS: Final = frozenset({1, 2})
_LAST: Final = 65534


@dataclass(frozen=True, slots=True)
class RouterPlaces:
    """Rule numbers of the router."""

    control: int
    control_pass: int
    nat: NatRule

    @property
    def capture(self) -> int:
        return self.nat.number + 1

    @property
    def reply(self) -> int:
        return self.nat.number + 2

    @property
    def pseudo_after(self) -> int:
        """Pseudo-packets are written as if they came from this rule: the NAT's is next."""
        return self.nat.number - 1

    @property
    def reply_after(self) -> int:
        """Replies: past the NAT, which would make a link of them or renumber them (FREEBSD.md section 3)."""
        return self.capture


@dataclass(frozen=True, slots=True)
class EnPlaces:
    """Rule numbers of the external node, on a host of its own or, with `nat`, on the NAT box of a home."""

    reass: int
    deny: int
    dns: int
    loopback: int
    control: int
    errors: int
    peers: int
    out: int
    pass_out: int
    queries: int
    pass_in: int | None
    stand_in: int
    nat: NatRule | None = None

    @property
    def gateway(self) -> bool:
        return self.nat is not None

    @property
    def request_after(self) -> int:
        """Mapping requests are written as if they came from this rule: `pass_out` is next, the NAT behind them."""
        return self.out

    @property
    def error_after(self) -> int:
        """ICMP errors to programs, here or inside: `pass_in` is next, or the NAT, which finds the program's host."""
        return self.peers if self.nat is None else self.nat.inbound - 1


def router_places(rules: Collection[Rule], interface: Interface, tables: Tables | None = None) -> RouterPlaces:
    """Places around the NAT of `interface`. NatfError says which rule is in the way, and what to do."""
    _refuse_foreign(rules, ROUTER_SET)
    nat = find_nat(rules, interface)
    if nat is None:
        raise no_nat(rules, interface)
    board = _Board(rules, {ROUTER_SET}, Reader(interface, tables or {}))
    board.need((nat.number + 1, nat.number + 2), ())
    (control,) = board.place(nat.inbound, (-10,), [_echo_requests(interface)], _behind(nat))
    # Just before the NAT, so that no rule of the site is left out.
    (control_pass,) = board.place(nat.inbound - 1, (0,), (), [*_behind(nat), *range(control + 1)])
    return RouterPlaces(control, control_pass, nat)


def en_places(rules: Collection[Rule], interface: Interface, prefix: str, tables: Tables | None = None) -> EnPlaces:
    """Places for a host or, where the interface has a NAT, around it. NatfError as for `router_places`.

    `prefix` is that of the virtual addresses, "240.0.0.0/8".
    """
    _refuse_foreign(rules, EN_SET, STAND_IN_SET)
    nat = find_nat(rules, interface)
    board = _Board(rules, {EN_SET, STAND_IN_SET}, Reader(interface, tables or {}))
    if nat is None:
        return _host(board, interface, IPv4Network(prefix))
    return _gateway(board, interface, IPv4Network(prefix), nat)


def _host(board: _Board, interface: Interface, prefix: IPv4Network) -> EnPlaces:
    own = own_network(interface)
    traffic = [*_answers(interface), *_departures(interface, prefix, own)]
    numbers = board.place(_HOST_FIRST, _HOST_OFFSETS, traffic)
    first = numbers[0]
    return EnPlaces(
        reass=first,
        deny=first + 1,
        dns=first + 2,
        loopback=board.place_loopback(first + 3, numbers),
        control=first + 5,
        out=first + 6,
        pass_out=first + 7,
        # Queries behind `pass_out`, which would else take them from the site's rules: a stateful one has to see the
        # query, or it drops the answer. Errors come in and queries go out, so that one number does for both.
        errors=first + 8,
        queries=first + 8,
        peers=first + 9,
        pass_in=first + 10,
        stand_in=first + 6,
    )


def _gateway(board: _Board, interface: Interface, prefix: IPv4Network, nat: NatRule) -> EnPlaces:
    out, pass_out, queries = range(nat.number + 3, nat.number + 6)
    board.need((out, pass_out, queries), _departures(interface, prefix, None), passing=(nat.number, nat.inbound))
    numbers = board.place(nat.inbound, (-11, -7, -6, -5, -4, -2), _answers(interface), _behind(nat))
    reass, control, deny, dns, errors, peers = numbers
    return EnPlaces(
        reass=reass,
        deny=deny,
        dns=dns,
        loopback=board.place_loopback(peers - 1, [*numbers, *_behind(nat)]),
        control=control,
        errors=errors,
        peers=peers,
        out=out,
        pass_out=pass_out,
        queries=queries,
        pass_in=None,
        # In front of the NAT: behind it the source is ours, and an inside host would never hear of the refusal.
        stand_in=reass,
        nat=nat,
    )


def _behind(nat: NatRule) -> range:
    """What both roles use behind the NAT; it may lie in front of the rule for the way in."""
    return range(nat.number + 1, nat.number + 6)


def _echo_requests(interface: Interface) -> Traffic:
    return _arriving("echo requests to this host", interface, {"icmp"}, icmp_types=frozenset({8}))


def _answers(interface: Interface) -> list[Traffic]:
    """What the external node's rules for the way in want to see first."""
    return [
        _arriving("DNS answers", interface, {"udp"}, source_port=53),
        _arriving("echo replies to this host", interface, {"icmp"}, icmp_types=frozenset({0})),
        _arriving("ICMP errors to this host", interface, {"icmp"}, icmp_types=frozenset({3, 4, 11, 12})),
        _arriving("what NAT-f routers send to this host", interface, {"tcp", "udp"}),
    ]


def _arriving(
    text: str,
    interface: Interface,
    protocols: Collection[str],
    *,
    source_port: int | None = None,
    icmp_types: frozenset[int] = frozenset(),
) -> Traffic:
    return Traffic(
        text,
        Direction.IN,
        interface.name,
        frozenset(protocols),
        destination=own_network(interface),
        source_port=source_port,
        icmp_types=icmp_types,
    )


def _departures(interface: Interface, prefix: IPv4Network, source: IPv4Network | None) -> list[Traffic]:
    """What they want to see on the way out; from anywhere (`source` None) where there is an inside."""
    name = interface.name
    udp = frozenset({"udp"})
    return [
        Traffic("DNS queries", Direction.OUT, name, udp, source, destination_port=53),
        Traffic(f"packets to {prefix}", Direction.OUT, name, source=source, destination=prefix),
    ]


def _loopback() -> list[Traffic]:
    udp = frozenset({"udp"})
    return [
        Traffic(f"DNS queries on {_LOOPBACK}", Direction.OUT, _LOOPBACK, udp, destination_port=53),
        Traffic(f"DNS answers on {_LOOPBACK}", Direction.OUT, _LOOPBACK, udp, source_port=53),
    ]


def _refuse_foreign(rules: Iterable[Rule], *sets: int) -> None:
    """Setting up begins with deleting what is in our sets."""
    for rule in rules:
        if rule.set in sets and not rule.is_ours:
            raise NatfError(not_ours(rule))


def not_ours(rule: Rule) -> str:
    """What to tell about a rule of others in a set of ours."""
    return (
        f"ipfw rule {rule} is not natf's and in set {rule.set}, which natf keeps for itself; expected no"
        f" others there: `ipfw set move {rule.set} to 8` takes them elsewhere"
    )


@dataclass(frozen=True, slots=True)
class _Taker:
    """A foreign rule that could take `traffic` from all rules between its own number and `until`."""

    rule: Rule
    traffic: Traffic
    until: int

    def takes_from(self, number: int) -> bool:
        return self.rule.number < number < self.until

    def __str__(self) -> str:
        return f"ipfw rule {self.rule} could take {self.traffic.text} first"


class _Board:
    """The numbers of the rules, and what those that are there make of them. `own`: the sets we fill anew."""

    def __init__(self, rules: Iterable[Rule], own: Collection[int], reader: Reader) -> None:
        # Disabled rules too: their set may be enabled at any time.
        self._taken = {rule.number: rule for rule in rules if not (rule.is_ours and rule.set in own)}
        self._foreign = [rule for rule in rules if rule.enabled and not rule.is_ours]
        self._reader = reader

    def need(self, numbers: Iterable[int], traffic: Sequence[Traffic], passing: Collection[int] = ()) -> None:
        """These numbers and no others will do. The rules with the numbers `passing` give back what they take."""
        takers = [taker for taker in self._takers(traffic) if taker.rule.number not in passing]
        for number in numbers:
            if (rule := self._taken.get(number)) is not None:
                raise NatfError(
                    f"ipfw rule {rule} has a number that natf's rules behind the NAT need; expected {number:05} to be"
                    " free: give the rule a higher number"
                )
            if _is_pf(number) or number > _LAST:
                fault = f"above {_LAST}" if number > _LAST else "which pf, where it runs, takes for a mark of its own"
                raise NatfError(
                    f"natf's rule behind the NAT would get the number {number}, {fault}; expected the NAT's rule"
                    " elsewhere, for instance at 50"
                )
            for taker in takers:
                if taker.takes_from(number):
                    raise NatfError(
                        f"{taker}, and natf's rule {number:05} behind the NAT never sees them; number it above"
                        f" {number:05}, or narrow it{_hint(taker.rule)}"
                    )

    def place_loopback(self, number: int, reserved: Collection[int]) -> int:
        """One number up to this one; the other rules don't mind where. A site's own rule for lo0 takes everything."""
        return self.place(number, (0,), _loopback(), reserved)[0]

    def place(
        self, anchor: int, offsets: Sequence[int], traffic: Sequence[Traffic], reserved: Collection[int] = ()
    ) -> list[int]:
        """Numbers `anchor` + each of `offsets`, with the highest anchor up to this one that has them all free and in
        front of what could take `traffic`."""
        takers = self._takers(traffic)
        for start in range(anchor, 0, -1):
            numbers = [start + offset for offset in offsets]
            if all(self._is_free(number, takers, reserved) for number in numbers):
                return numbers
        raise self._no_room([anchor + offset for offset in offsets], takers)

    def _is_free(self, number: int, takers: Iterable[_Taker], reserved: Collection[int]) -> bool:
        return (
            number > 0
            and not _is_pf(number)
            and number not in self._taken
            and number not in reserved
            and not any(taker.takes_from(number) for taker in takers)
        )

    def _takers(self, traffic: Iterable[Traffic]) -> list[_Taker]:
        return [
            _Taker(rule, packets, until)
            for packets in traffic
            for rule in self._foreign
            if (until := self._reader.taken_until(rule, packets)) is not None
        ]

    def _no_room(self, wanted: Sequence[int], takers: Iterable[_Taker]) -> NatfError:
        span = f"rules {wanted[0]} to {wanted[-1]}" if len(wanted) > 1 else f"rule {wanted[0]}"
        blocking = [taker for taker in takers if any(taker.takes_from(number) for number in wanted)]
        if blocking:
            first = min(blocking, key=lambda taker: taker.rule.number)
            return NatfError(
                f"{first}, and below it there is no room for natf's {span}; give it a number above {wanted[-1]}, or"
                f" narrow it to other packets{_hint(first.rule)}"
            )
        taken = next((self._taken[number] for number in wanted if number in self._taken), None)
        if taken is not None:
            return NatfError(
                f"ipfw rule {taken} has a number of natf's {span}, and below it there is no room for them; give it"
                " another number"
            )
        return NatfError(f"no room for natf's {span} in front of the NAT's; expected that at 50 or above")


def _is_pf(number: int) -> bool:
    return number & 0xFF in _PF_DIRECTIONS


def _hint(rule: Rule) -> str:
    return " (a table may hold the address: `ipfw table all list`)" if "table(" in rule.body else ""
