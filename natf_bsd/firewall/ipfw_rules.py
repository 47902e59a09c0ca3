"""What the rules of ipfw that are already there mean for ours: text of `ipfw -S list` in, values out.

The reading is one-sided. A word that is not understood never keeps a rule from matching, so that a rule may look more
greedy than it is, and never less.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, ip_network
from typing import Final, TypeAlias

from natf_bsd.errors import NatfError
from natf_bsd.ops.interfaces import Interface
from natf_bsd.types import Direction, format_address

EN_SET: Final = 5
STAND_IN_SET: Final = 6
"""In force while the external node's daemon is away, disabled while it runs."""
ROUTER_SET: Final = 7
MARK: Final = "// natf"
"""The comment all our rules end with."""
NEVER: Final = 65536
"""Behind every rule number: where a packet goes on that a rule has taken for good."""

Tables: TypeAlias = Mapping[str, tuple[IPv4Network, ...]]
"""The addresses in ipfw's tables, by name; a table that is missing here may hold any."""

_OURS: Final = frozenset({EN_SET, STAND_IN_SET, ROUTER_SET})
_LINE: Final = re.compile(r"(# DISABLED )?(\d+) set (\d+) (.+)")
_TABLE_HEAD: Final = re.compile(r"--- table\((.+)\), set\(\d+\) ---")
_TABLE: Final = re.compile(r"table\(([^,)]+)(?:,[^)]*)?\)")
_PORTS: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_EVERYWHERE: Final = IPv4Network("0.0.0.0/0")
# What no packet on an outer interface comes from or goes to; 240.0.0.0/8 is asked for by name where it counts.
_NOWHERE: Final = tuple(IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))
_ANY_PROTOCOL: Final = frozenset({"ip", "ip4", "ipv4", "all"})
_ONLY_IPV6: Final = frozenset({"ip6", "ipv6", "ipv6-icmp"})
_PROTOCOL_NAMES: Final = {"1": "icmp", "6": "tcp", "17": "udp"}
# After these the packet goes on to the next rule. Whatever is neither here nor known takes it.
_PASSING: Final = frozenset({"count", "tee", "ngtee", "reass", "setdscp", "setfib", "setmark", "tcp-setmss"})
_DENYING: Final = frozenset({"deny", "drop", "reject", "reset", "unreach"})
# The first rule with one of these looks at all dynamic rules, whatever else it asks for (ipfw.8, "check-state").
_STATEFUL: Final = frozenset({"check-state", "keep-state", "limit"})


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it is printed; `body` is what comes behind number and set."""

    number: int
    set: int
    enabled: bool
    body: str

    def __str__(self) -> str:
        return f"{self.number:05} {self.body}"

    @property
    def is_ours(self) -> bool:
        return self.set in _OURS and self.body.endswith(MARK)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets of one kind at one place of the firewall; None is any. `text` names them in messages."""

    text: str
    direction: Direction
    interface: str
    protocols: frozenset[str] | None = None
    source: IPv4Network | None = None
    destination: IPv4Network | None = None
    source_port: int | None = None
    destination_port: int | None = None
    icmp_types: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _End:
    """Source or destination of a rule; None is any, or not understood."""

    networks: tuple[IPv4Network, ...] | None = None
    ports: str | None = None


def parse_rules(listing: str) -> tuple[Rule, ...]:
    """The output of `ipfw -S list`. NatfError for a line that is no rule."""
    rules = []
    for line in listing.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            rules.append(Rule(int(match[2]), int(match[3]), match[1] is None, match[4]))
        elif line.strip():
            raise NatfError(f"`ipfw -S list` printed {line.strip()!r}; expected a rule with its number and set")
    return tuple(rules)


def parse_tables(listing: str) -> Tables:
    """The output of `ipfw table all list`. Only tables of IPv4 addresses are kept."""
    tables: dict[str, list[IPv4Network]] = {}
    unread = set()
    name = ""
    for line in listing.splitlines():
        if match := _TABLE_HEAD.fullmatch(line.strip()):
            name = match[1]
            tables[name] = []
        elif line.strip():
            network = _network(line.split()[0])
            if network is None:
                unread.add(name)
            else:
                tables[name] += network
    return {name: tuple(networks) for name, networks in tables.items() if name not in unread}


def _network(text: str) -> tuple[IPv4Network, ...] | None:
    """The network; none at all for IPv6, None for other text."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    return (network,) if isinstance(network, IPv4Network) else ()


def own_network(interface: Interface) -> IPv4Network:
    """The interface's address as a network of its own."""
    return IPv4Network(format_address(interface.address))


class Reader:
    """Tells which rules could take which packets, on a host whose outer `interface` this is."""

    def __init__(self, interface: Interface, tables: Tables) -> None:
        self._own = (own_network(interface),)
        self._tables = tables

    def taken_until(self, rule: Rule, traffic: Traffic) -> int | None:
        """Where a packet that this rule takes goes on: `NEVER`, or a number to skip to. None: it takes none of them.

        A rule that denies what comes from or goes to addresses it names, where `traffic` names none, is the site's word
        about somebody in particular: it stays in force and counts as taking none.
        """
        words = rule.body.partition(" //")[0].split()
        if words[:1] == ["prob"]:
            words = words[2:]
        action = words[0]
        if action in _PASSING:
            return None
        if not _STATEFUL.isdisjoint(words):
            return NEVER
        if "from" in words and not self._could_match(words, traffic, denies=action in _DENYING):
            return None
        return int(words[1]) if action == "skipto" and words[1].isdigit() else NEVER

    def _could_match(self, words: list[str], traffic: Traffic, *, denies: bool) -> bool:
        at = words.index("from")
        protocols = _protocols(words[:at])
        source, left = self._ends(words[at + 1 :])
        destination, options = self._destination(left)
        return (
            _overlap(protocols, traffic.protocols)
            and _meets(source, traffic.source, traffic.source_port, denies=denies)
            and _meets(destination, traffic.destination, traffic.destination_port, denies=denies)
            and _options_allow(deque(options), traffic)
        )

    def _ends(self, words: list[str]) -> tuple[_End, list[str]]:
        if "to" not in words:
            return _End(), words
        at = words.index("to")
        return self._end(words[:at]), words[at + 1 :]

    def _destination(self, words: list[str]) -> tuple[_End, list[str]]:
        """Behind the address come ports or options, and nothing marks which."""
        at = 1 + (words[:1] == ["not"])
        if words[at - 1 : at] == ["{"]:
            at = words.index("}") + 1 if "}" in words else len(words)
        if words[at : at + 1] == ["not"] and _PORTS.fullmatch("".join(words[at + 1 : at + 2])):
            at += 2
        elif _PORTS.fullmatch("".join(words[at : at + 1])):
            at += 1
        return self._end(words[:at]), words[at:]

    def _end(self, words: list[str]) -> _End:
        if "not" in words:
            return _End()
        ports = words[-1] if len(words) > 1 and _PORTS.fullmatch(words[-1]) else None
        texts = [word for word in (words if ports is None else words[:-1]) if word not in ("{", "or", "}")]
        networks: tuple[IPv4Network, ...] = ()
        for text in ",".join(texts).split(","):
            found = self._addresses(text)
            if found is None:
                return _End(None, ports)
            networks += found
        return _End(networks, ports)

    def _addresses(self, text: str) -> tuple[IPv4Network, ...] | None:
        if text == "me":
            return self._own
        if match := _TABLE.fullmatch(text):
            return self._tables.get(match[1], (_EVERYWHERE,))
        return _network(text)


def _protocols(words: Sequence[str]) -> frozenset[str] | None:
    """What the words in front of `from` end with; None is any."""
    if words[-1] == "}" and "{" in words:
        names = [word for word in words[words.index("{") + 1 : -1] if word != "or"]
    else:
        names = list(words[-1:])
    if "not" in words[-2:] or "not" in names or not _ANY_PROTOCOL.isdisjoint(names):
        return None
    return frozenset(_PROTOCOL_NAMES.get(name, name) for name in names)


def _overlap(named: frozenset[str] | None, wanted: frozenset[str] | None) -> bool:
    if named is None:
        return True
    return not named <= _ONLY_IPV6 if wanted is None else not named.isdisjoint(wanted)


def _meets(end: _End, network: IPv4Network | None, port: int | None, *, denies: bool) -> bool:
    if port is not None and end.ports is not None and not _has_number(end.ports, port):
        return False
    if end.networks is None:
        return True
    if network is not None:
        return any(network.overlaps(other) for other in end.networks)
    return not denies and not all(any(one.subnet_of(other) for other in _NOWHERE) for one in end.networks)


def _has_number(ranges: str, number: int) -> bool:
    """Whether it is one of `N,N-N`; of what reads otherwise it may be."""
    if not _PORTS.fullmatch(ranges):
        return True
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if int(first) <= number <= int(last or first):
            return True
    return False


def _names(text: str, interface: str) -> bool:
    """Whether the word behind `via` could mean this interface; addresses and tables could."""
    if text == "any" or text.startswith("table(") or _network(text) is not None:
        return True
    return fnmatchcase(interface, text)


def _could_be(protocol: str, traffic: Traffic) -> bool:
    return traffic.protocols is None or protocol in traffic.protocols


def _has_port(text: str, port: int | None) -> bool:
    return port is None or _has_number(text, port)


_FLAGS: Final[Mapping[str, Callable[[Traffic], bool]]] = {
    "in": lambda traffic: traffic.direction is Direction.IN,
    "out": lambda traffic: traffic.direction is Direction.OUT,
    "setup": lambda traffic: _could_be("tcp", traffic),
    "established": lambda traffic: _could_be("tcp", traffic),
    "diverted": lambda _: True,
    "diverted-loopback": lambda _: True,
    "diverted-output": lambda _: True,
}
_WORDS: Final[Mapping[str, Callable[[Traffic, str], bool]]] = {
    "via": lambda traffic, text: _names(text, traffic.interface),
    # A packet on its way out may have been received anywhere.
    "recv": lambda traffic, text: traffic.direction is Direction.OUT or _names(text, traffic.interface),
    "xmit": lambda traffic, text: traffic.direction is Direction.OUT and _names(text, traffic.interface),
    "proto": lambda traffic, text: text in _ANY_PROTOCOL or _could_be(_PROTOCOL_NAMES.get(text, text), traffic),
    "icmptypes": lambda traffic, text: (
        traffic.protocols is None or any(_has_number(text, kind) for kind in traffic.icmp_types)
    ),
    "src-port": lambda traffic, text: _has_port(text, traffic.source_port),
    "dst-port": lambda traffic, text: _has_port(text, traffic.destination_port),
    "tcpflags": lambda traffic, _: _could_be("tcp", traffic),
    "ipid": lambda *_: True,
    "ipttl": lambda *_: True,
    "iplen": lambda *_: True,
}


def _options_allow(words: deque[str], traffic: Traffic) -> bool:
    """False if one of the options is never true for `traffic`."""
    while words:
        word = words.popleft()
        is_negated = word == "not" and bool(words)
        if is_negated:
            word = words.popleft()
        if word in _FLAGS:
            could_be = _FLAGS[word](traffic)
        elif word in _WORDS and words:
            could_be = _WORDS[word](traffic, words.popleft())
        else:
            return True  # what follows may be an argument of it
        if not could_be and not is_negated:
            return False
    return True
