"""The walk: which rules a packet matches, in which order, and where it ends (ip_fw2.c:ipfw_chk)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from natf_bsd.lab.ipfw_model.parser import PROTOCOLS_WITH_PORTS, VERSION_FLAG, Ranges
from natf_bsd.lab.ipfw_model.rules import AddressMatch, End, Option, Rule, RuleSet, in_network
from natf_bsd.lab.ipfw_model.tables import Tables
from natf_bsd.types import Address, Direction, Protocol

_FRAGMENT_OFFSET = 0x1FFF
_MORE_FRAGMENTS = 0x2000
_FIXED = struct.Struct("!BBHHHBBH4s4s")
# What ipfw pulls up before it looks (PULLUP_TO in ip_fw2.c); a packet that ends before it is denied.
_NEEDED = {int(Protocol.TCP): 20, int(Protocol.UDP): 8, int(Protocol.ICMP): 4}
_SYN, _ACK, _RST = 2, 16, 4


class Diverted(enum.Enum):
    """How a packet came back from user space, for the options `diverted...`."""

    OUTPUT = "diverted-output"
    LOOPBACK = "diverted-loopback"


@dataclass(slots=True)
class Passage:
    """One packet at one of the two places where the firewall looks at it.

    `slot` is where the walk begins; `diverted` is set on packets just written to a divert socket.
    """

    data: bytearray
    direction: Direction
    received: str = ""
    sent: str = ""
    slot: int = 0
    diverted: Diverted | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What rules ask about besides the packet: own addresses, addresses of interfaces, tables."""

    own: Collection[Address]
    addresses: dict[str, Address]
    tables: Tables


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that takes the packet out of the walk, for a time or for good; `argument` with the tablearg put in."""

    action: str
    argument: int
    rule: Rule
    slot: int


class Headers:
    """The fields of an IPv4 or IPv6 packet that rules look at."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.version = data[0] >> 4
        self.size = len(data)
        self.protocol, self.ident, self.ttl, self.fragment = 0, 0, 0, 0
        self.source = self.destination = b""
        self.source_port = self.destination_port = 0
        self.icmp_type: int | None = None
        self.tcp_flags: int | None = None
        self.options: frozenset[int] = frozenset()
        self.is_cut = False
        if self.version == 4:
            self._read_ipv4(data)

    def _read_ipv4(self, data: bytes | bytearray) -> None:
        first, _, self.size, self.ident, self.fragment, self.ttl, self.protocol, _, self.source, self.destination = (
            _FIXED.unpack_from(data)
        )
        at = (first & 15) * 4
        self.options = frozenset(_option_types(data[20:at]))
        if self.fragment & _FRAGMENT_OFFSET:
            return
        self.is_cut = self.size < at + _NEEDED.get(self.protocol, 0)
        if self.is_cut:
            return
        if self.protocol in PROTOCOLS_WITH_PORTS and len(data) >= at + 4:
            self.source_port, self.destination_port = struct.unpack_from("!HH", data, at)
        if self.protocol == Protocol.TCP:
            self.tcp_flags = data[at + 13]
        if self.protocol == Protocol.ICMP:
            self.icmp_type = data[at]

    @property
    def has_ports(self) -> bool:
        return self.protocol in PROTOCOLS_WITH_PORTS and not self.fragment & _FRAGMENT_OFFSET and not self.is_cut


def _option_types(options: bytes | bytearray) -> list[int]:
    found = []
    at = 0
    while at < len(options) and options[at] != 0:
        found.append(options[at])
        at += 1 if options[at] == 1 else max(2, options[at + 1] if at + 1 < len(options) else 2)
    return found


@dataclass(slots=True)
class _Matching:
    """One packet against rules; `tablearg` is the value of the table that matched last."""

    headers: Headers
    passage: Passage
    around: Surroundings
    tablearg: int = field(default=0)

    def matches(self, rule: Rule) -> bool:
        body = rule.body
        self.tablearg = 0
        return (
            any(self._protocol(number) for number in body.protocols)
            and self._end(body.source, self.headers.source, self.headers.source_port)
            and self._end(body.destination, self.headers.destination, self.headers.destination_port)
            and all(_TESTS[option.name](self, option) != option.negated for option in body.options)
        )

    def _protocol(self, number: int | None) -> bool:
        if number is None:
            return True
        if number > VERSION_FLAG:
            return self.headers.version == number - VERSION_FLAG
        return self.headers.version == 4 and self.headers.protocol == number

    def _end(self, end: End, address: Address, port: int) -> bool:
        found = any(self._address(wanted, address) for wanted in end.addresses)
        if found == end.negated:
            return False
        return not end.ports or (self.headers.has_ports and in_ranges(port, end.ports))

    def _address(self, wanted: AddressMatch, address: Address) -> bool:
        if wanted.is_any:
            return True
        if not address:
            return False
        if wanted.text == "me":
            return address in self.around.own
        if wanted.network is not None:
            return in_network(address, wanted.network)
        table = self.around.tables.get(wanted.table or "")
        return self._found(None if table is None else table.look_up_address(address))

    def _found(self, value: int | None) -> bool:
        if value is None:
            return False
        self.tablearg = value
        return True

    def is_interface(self, name: str, wanted: str) -> bool:
        if wanted == "any":
            return bool(name)
        if wanted.endswith("*"):
            return name.startswith(wanted[:-1])
        if name and name == wanted:
            return True
        address = self.around.addresses.get(name)
        return address is not None and wanted == ".".join(map(str, address))

    def in_flow_table(self, name: str) -> bool:
        table = self.around.tables.get(name)
        headers = self.headers
        if table is None or headers.version != 4:
            return False
        values: dict[str, object] = {
            "src-ip": headers.source,
            "proto": headers.protocol,
            "src-port": headers.source_port,
            "dst-ip": headers.destination,
            "dst-port": headers.destination_port,
        }
        return self._found(table.look_up_flow(values))


def in_ranges(number: int, ranges: Ranges) -> bool:
    return any(low <= number <= high for low, high in ranges)


def _number_in(read: Callable[[Headers], int], *, needs_ports: bool = False) -> Callable[[_Matching, Option], bool]:
    def test(matching: _Matching, option: Option) -> bool:
        ranges = option.value
        headers = matching.headers
        if not isinstance(ranges, tuple) or headers.version != 4 or (needs_ports and not headers.has_ports):
            return False
        return in_ranges(read(headers), ranges)

    return test


def _via(matching: _Matching, option: Option) -> bool:
    passage = matching.passage
    name = passage.received if passage.direction is Direction.IN else passage.sent
    return matching.is_interface(name, str(option.value))


def _icmp_types(matching: _Matching, option: Option) -> bool:
    return isinstance(option.value, frozenset) and matching.headers.icmp_type in option.value


def _flags(matching: _Matching, wanted: int, unwanted: int) -> bool:
    flags = matching.headers.tcp_flags
    return flags is not None and flags & wanted == wanted and not flags & unwanted


def _established(matching: _Matching, _: Option) -> bool:
    flags = matching.headers.tcp_flags
    return flags is not None and bool(flags & (_ACK | _RST))


def _tcp_flags(matching: _Matching, option: Option) -> bool:
    wanted, unwanted = _bits(option)
    return _flags(matching, sum(wanted), sum(unwanted))


def _ip_options(matching: _Matching, option: Option) -> bool:
    wanted, unwanted = _bits(option)
    return wanted <= matching.headers.options and not unwanted & matching.headers.options


def _bits(option: Option) -> tuple[frozenset[int], frozenset[int]]:
    if not isinstance(option.value, tuple):
        raise TypeError(f"{option.name} with {option.value!r}")
    wanted, unwanted = option.value
    return wanted, unwanted


_TESTS: dict[str, Callable[[_Matching, Option], bool]] = {
    "in": lambda matching, _: matching.passage.direction is Direction.IN,
    "out": lambda matching, _: matching.passage.direction is Direction.OUT,
    "diverted": lambda matching, _: matching.passage.diverted is not None,
    "diverted-loopback": lambda matching, _: matching.passage.diverted is Diverted.LOOPBACK,
    "diverted-output": lambda matching, _: matching.passage.diverted is Diverted.OUTPUT,
    "setup": lambda matching, _: _flags(matching, _SYN, _ACK),
    "established": _established,
    "frag": lambda matching, _: bool(matching.headers.fragment & (_FRAGMENT_OFFSET | _MORE_FRAGMENTS)),
    "recv": lambda matching, option: matching.is_interface(matching.passage.received, str(option.value)),
    "xmit": lambda matching, option: matching.is_interface(matching.passage.sent, str(option.value)),
    "via": _via,
    "icmptypes": _icmp_types,
    "ipid": _number_in(lambda headers: headers.ident),
    "ipttl": _number_in(lambda headers: headers.ttl),
    "iplen": _number_in(lambda headers: headers.size),
    "src-port": _number_in(lambda headers: headers.source_port, needs_ports=True),
    "dst-port": _number_in(lambda headers: headers.destination_port, needs_ports=True),
    "flow": lambda matching, option: matching.in_flow_table(str(option.value)),
    "tcpflags": _tcp_flags,
    "ipoptions": _ip_options,
}


def walk(rules: RuleSet, passage: Passage, around: Surroundings) -> Step:
    """Follow the rules from `passage.slot` to the first that is not `count` or `skipto`, counting on the way.

    A `skipto` goes to the first rule with its number or a higher one, never back (ipfw(8)).
    """
    everything = rules.all()
    headers = Headers(passage.data)
    size = headers.size if headers.version == 4 else len(passage.data)
    if headers.is_cut:
        return Step("deny", 0, rules.default, len(everything) - 1)
    matching = _Matching(headers, passage, around)
    at = passage.slot
    while True:
        rule = everything[at]
        if rule is not rules.default and (not rules.is_enabled(rule) or not matching.matches(rule)):
            at += 1
            continue
        rule.count(size)
        argument = rule.body.argument if rule.body.argument is not None else matching.tablearg
        if rule.body.action == "skipto":
            at = max(at + 1, rules.first_from(argument))
        elif rule.body.action == "count":
            at += 1
        else:
            return Step(rule.body.action, argument, rule, at)
