"""From the words of `ipfw add` to a rule, as strict as ipfw(8): ipfw2.c, with the recorded texts where there are some.

Actions and options that ipfw(8) knows and natf does not need are `NotModelledError`; words it does not know either get
its error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from natf_bsd.lab.ipfw_model.errors import EX_DATAERR, EX_USAGE, CommandError, NotModelledError
from natf_bsd.lab.ipfw_model.rules import AddressMatch, Body, End, Option
from natf_bsd.lab.ipfw_model.tables import check_name, format_network, parse_network
from natf_bsd.types import Protocol

# ipfw2.h: IPFW_ARG_MIN, IPFW_ARG_MAX
_ARGUMENT = range(1, 65535)
_SETS = range(32)
_SERVICES = {"natd": 8668, "ssh": 22, "domain": 53, "http": 80, "https": 443}
_PROTOCOLS: dict[str, int | None] = {
    "ip": None,
    "all": None,
    "ip4": 4,
    "ipv4": 4,
    "ip6": 6,
    "ipv6": 6,
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "sctp": 132,
}
_VERSIONS = frozenset({"ip4", "ipv4", "ip6", "ipv6"})
_PROTOCOL_TEXTS = {"all": "ip", "ipv4": "ip4", "ipv6": "ip6"}
VERSION_FLAG = 256
"""A protocol number above this is an IP version: `ip4` is 256 + 4."""

_ACTIONS = {
    "accept": "allow",
    "allow": "allow",
    "pass": "allow",
    "permit": "allow",
    "deny": "deny",
    "drop": "deny",
    "count": "count",
    "reass": "reass",
    "reset": "reset",
    "divert": "divert",
    "tee": "tee",
    "skipto": "skipto",
    "nat": "nat",
    "unreach": "unreach",
}
_OTHER_ACTIONS = frozenset(
    [
        "abort",
        "abort6",
        "call",
        "check-state",
        "eaction",
        "fwd",
        "forward",
        "netgraph",
        "ngtee",
        "nptv6",
        "pipe",
        "queue",
        "reset6",
        "return",
        "setdscp",
        "setfib",
        "setmark",
        "tcp-setmss",
        "unreach6",
        "nat64lsn",
        "nat64stl",
        "nat64clat",
    ]
)
UNREACH_CODES = [
    "net",
    "host",
    "protocol",
    "port",
    "needfrag",
    "srcfail",
    "net-unknown",
    "host-unknown",
    "isolated",
    "net-prohib",
    "host-prohib",
    "tosnet",
    "toshost",
    "filter-prohib",
    "host-precedence",
    "precedence-cutoff",
]
# `reject` is short for this, and what ipfw(8) prints for it (ipfw2.c:print_action_instruction, O_REJECT).
_UNREACH_HOST = UNREACH_CODES.index("host")
_OTHER_OPTIONS = frozenset(
    [
        "antispoof",
        "bridged",
        "defer-immediate-action",
        "diverted-any",
        "dst-ip6",
        "ext6hdr",
        "fib",
        "flow-id",
        "icmp6types",
        "ipprecedence",
        "iptos",
        "ipversion",
        "jail",
        "keep-state",
        "layer2",
        "limit",
        "lookup",
        "mac",
        "mac-type",
        "mark",
        "not-fragment",
        "record-state",
        "recv-mac",
        "set-limit",
        "sockarg",
        "src-ip6",
        "tagged",
        "tcpack",
        "tcpdatalen",
        "tcpmss",
        "tcpseq",
        "tcpwin",
        "uid",
        "gid",
        "verrevpath",
        "versrcreach",
        "dscp",
        "dst-ip",
        "src-ip",
        "proto",
        "tcpoptions",
    ]
)
_TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32}
# ip.h: option types; ipfw knows these four (FREEBSD.md 2.1).
_IP_OPTIONS = {"ssrr": 137, "lsrr": 131, "rr": 7, "ts": 68}

Ranges = tuple[tuple[int, int], ...]


class Words:
    """The words left. `take` gives the next one, or the error ipfw(8) has for its absence."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._at = 0

    @property
    def next(self) -> str | None:
        return self._words[self._at] if self._at < len(self._words) else None

    def take(self, missing: CommandError) -> str:
        word = self.next
        if word is None:
            raise missing
        self._at += 1
        return word

    def skip(self, word: str) -> bool:
        if self.next != word:
            return False
        self._at += 1
        return True

    def rest(self) -> list[str]:
        left = self._words[self._at :]
        self._at = len(self._words)
        return left


@dataclass(frozen=True, slots=True)
class Parsed:
    """A line of `ipfw add`: number 0 if it names none."""

    number: int
    set: int
    body: Body


def parse_add(arguments: list[str]) -> Parsed:
    """The words behind `add`. Raises `CommandError` and `NotModelledError`."""
    words = Words(arguments)
    number = 0
    if words.next is not None and words.next.isdigit():
        number = int(words.take(_missing("action")))
    set_number = 0
    if words.skip("set"):
        text = words.take(_missing("set number"))
        if not text.isdigit() or int(text) not in _SETS:
            raise CommandError(EX_DATAERR, f"illegal set {text}")
        set_number = int(text)
    return Parsed(number, set_number, _parse_body(words))


def _missing(what: str) -> CommandError:
    return CommandError(EX_USAGE, f"missing {what}")


def _parse_body(words: Words) -> Body:
    action, argument, action_text = _parse_action(words)
    if words.skip("log"):
        action_text += " log"
        if words.skip("logamount"):
            action_text += f" logamount {words.take(_missing('logamount argument'))}"
    protocols, protocols_text = _parse_protocols(words)
    _expect(words, "from")
    source = _parse_end(words, "source")
    _expect(words, "to")
    destination = _parse_end(words, "dst")
    options, comment = _parse_options(words)
    return Body(action, argument, action_text, protocols, protocols_text, source, destination, tuple(options), comment)


def _expect(words: Words, word: str) -> None:
    if not words.skip(word):
        raise CommandError(EX_USAGE, f"missing ``{word}''")


def _parse_action(words: Words) -> tuple[str, int | None, str]:
    word = words.take(_missing("action"))
    if word in _OTHER_ACTIONS:
        raise NotModelledError(f"action {word}")
    if word == "reject":
        return "unreach", _UNREACH_HOST, word
    action = _ACTIONS.get(word)
    if action is None:
        raise CommandError(EX_DATAERR, f"invalid action {word}\n")
    parse = _ARGUMENTS.get(action)
    if parse is None:
        return action, None, action
    text = words.take(CommandError(EX_USAGE, f"missing argument for {word}"))
    if text == "tablearg" and action != "unreach":
        return action, None, f"{action} tablearg"
    argument = parse(action, text)
    if (action, argument) == ("unreach", _UNREACH_HOST):
        return action, argument, "reject"
    shown = UNREACH_CODES[argument] if action == "unreach" and argument < len(UNREACH_CODES) else str(argument)
    return action, argument, f"{action} {shown}"


def _parse_number(action: str, text: str) -> int:
    number = int(text) if text.isdigit() else -1
    if number not in _ARGUMENT:
        raise CommandError(EX_DATAERR, f"illegal argument {text}({max(number, 0)}) for {action}")
    return number


def _parse_divert_port(action: str, text: str) -> int:
    if text.isdigit():
        return _parse_number(action, text)
    if text not in _SERVICES:
        raise CommandError(EX_DATAERR, "illegal divert/tee port")
    return _SERVICES[text]


def _parse_nat(action: str, text: str) -> int:
    if text == "global":
        raise NotModelledError("nat global")
    return _parse_number(action, text)


def _parse_unreach(_: str, text: str) -> int:
    if text in UNREACH_CODES:
        return UNREACH_CODES.index(text)
    if not text.isdigit() or int(text) > 255:
        raise CommandError(EX_DATAERR, f"unknown ICMP unreachable code ``{text}''")
    return int(text)


_ARGUMENTS: dict[str, Callable[[str, str], int]] = {
    "divert": _parse_divert_port,
    "tee": _parse_divert_port,
    "skipto": _parse_number,
    "nat": _parse_nat,
    "unreach": _parse_unreach,
}


def _parse_protocols(words: Words) -> tuple[tuple[int | None, ...], str]:
    if not words.skip("{"):
        number, text = _parse_protocol(words.take(_missing("protocol")))
        return (number,), text
    found = [_parse_protocol(words.take(_missing("protocol")))]
    while words.skip("or"):
        found.append(_parse_protocol(words.take(_missing("protocol"))))
    if not words.skip("}"):
        raise CommandError(EX_USAGE, "missing close braces")
    return tuple(number for number, _ in found), f"{{ {' or '.join(text for _, text in found)} }}"


def _parse_protocol(word: str) -> tuple[int | None, str]:
    if word.isdigit() and int(word) < 256:
        return int(word), word
    if word not in _PROTOCOLS:
        # ipfw takes a rule without protocol for one of options only.
        if word in _OPTIONS or word in _OTHER_OPTIONS or word == "not":
            raise NotModelledError(f"a rule without protocol and addresses, at {word}")
        raise CommandError(EX_USAGE, f"unrecognised option [-1] {word}\n")
    number = _PROTOCOLS[word]
    if word in _VERSIONS and number is not None:
        number += VERSION_FLAG
    return number, _PROTOCOL_TEXTS.get(word, word)


def _parse_end(words: Words, what: str) -> End:
    negated = words.skip("not")
    text = words.take(CommandError(EX_USAGE, f"missing {what} address"))
    if text == "{":
        raise NotModelledError("addresses in braces")
    addresses = tuple(_parse_address(part) for part in text.split(","))
    ports = parse_ranges(words.next, services=True) if words.next is not None else None
    if ports is None:
        return End(addresses, negated=negated)
    words.take(_missing("port"))
    return End(addresses, ports, format_ranges(ports), negated)


def _parse_address(text: str) -> AddressMatch:
    if text in ("any", "me"):
        return AddressMatch(text)
    if text in ("me6", "any6"):
        raise NotModelledError(f"address {text}")
    table = _table_name(text)
    if table is not None:
        return AddressMatch(text, table=table)
    network = parse_network(text)
    if network[1] == 0:
        return AddressMatch("any")
    return AddressMatch(format_network(network).removesuffix("/32"), network)


def _table_name(text: str) -> str | None:
    if not (text.startswith("table(") and text.endswith(")")):
        return None
    name = text[6:-1]
    if "," in name:
        raise NotModelledError(f"a table with a value: {text}")
    return check_name(name)


def parse_ranges(text: str, *, services: bool = False) -> Ranges | None:
    """Numbers and ranges `N,N-N` of 16 bits, higher ones cut as ipfw cuts them; None if it is something else."""
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if services and part in _SERVICES:
            first, dash, last = str(_SERVICES[part]), "", ""
        if not first.isdigit() or (dash and not last.isdigit()):
            return None
        low = int(first) & 0xFFFF
        ranges.append((low, int(last) & 0xFFFF if dash else low))
    return tuple(ranges)


def format_ranges(ranges: Ranges) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _parse_options(words: Words) -> tuple[list[Option], str]:
    options: list[Option] = []
    while words.next is not None:
        if words.skip("//"):
            return options, " ".join(words.rest())
        negated = words.skip("not")
        word = words.take(CommandError(EX_USAGE, "missing argument for ``not''"))
        if word in _OTHER_OPTIONS or word in ("{", "or"):
            raise NotModelledError(f"option {word}")
        parse = _OPTIONS.get(word)
        if parse is None:
            raise CommandError(EX_USAGE, f"unrecognised option [-1] {word}\n")
        option = parse(word, words)
        text = f"not {option.text}" if negated else option.text
        options.append(Option(option.name, text, option.value, negated))
    return options, ""


def _flag(word: str, _: Words) -> Option:
    return Option(word, word)


def _interface(word: str, words: Words) -> Option:
    name = words.take(CommandError(EX_USAGE, "recv, xmit, via require interface name or address"))
    if name.startswith("table("):
        raise NotModelledError("an interface table")
    return Option(word, f"{word} {name}", name)


def _ranges(word: str, words: Words) -> Option:
    text = words.take(CommandError(EX_USAGE, f"{word} requires arguments"))
    ranges = parse_ranges(text, services=word.endswith("port"))
    if ranges is None:
        raise CommandError(EX_DATAERR, f"invalid {word} {text}")
    return Option(word, f"{word} {format_ranges(ranges)}", ranges)


def _icmp_types(word: str, words: Words) -> Option:
    text = words.take(CommandError(EX_USAGE, "icmptypes requires list of types"))
    parts = text.split(",")
    if not all(part.isdigit() and int(part) < 32 for part in parts):
        raise CommandError(EX_DATAERR, "ICMP type out of range")
    types = sorted({int(part) for part in parts})
    return Option(word, f"{word} {','.join(map(str, types))}", frozenset(types))


def _flow_table(word: str, words: Words) -> Option:
    text = words.take(CommandError(EX_USAGE, "flow requires table name"))
    name = _table_name(text)
    if name is None:
        raise CommandError(EX_USAGE, f"table name {text} is invalid")
    return Option(word, f"{word} {text}", name)


def _named_bits(names: dict[str, int], error: str) -> Callable[[str, Words], Option]:
    def parse(word: str, words: Words) -> Option:
        text = words.take(CommandError(EX_USAGE, f"missing argument for {word}"))
        parts = text.split(",")
        if unknown := [part for part in parts if part.removeprefix("!") not in names]:
            raise CommandError(EX_DATAERR, f"{error} {unknown[0]}")
        wanted = frozenset(names[part] for part in parts if not part.startswith("!"))
        unwanted = frozenset(names[part[1:]] for part in parts if part.startswith("!"))
        return Option(word, f"{word} {text}", (wanted, unwanted))

    return parse


_OPTIONS: dict[str, Callable[[str, Words], Option]] = {
    "in": _flag,
    "out": _flag,
    "diverted": _flag,
    "diverted-loopback": _flag,
    "diverted-output": _flag,
    "setup": _flag,
    "established": _flag,
    "frag": _flag,
    "recv": _interface,
    "xmit": _interface,
    "via": _interface,
    "icmptypes": _icmp_types,
    "ipid": _ranges,
    "ipttl": _ranges,
    "iplen": _ranges,
    "src-port": _ranges,
    "dst-port": _ranges,
    "flow": _flow_table,
    "tcpflags": _named_bits(_TCP_FLAGS, "invalid tcpflag"),
    "ipoptions": _named_bits(_IP_OPTIONS, "invalid IP option"),
}

PROTOCOLS_WITH_PORTS = frozenset({int(Protocol.TCP), int(Protocol.UDP), 132, 136})
"""TCP, UDP, SCTP and UDP-Lite: of these ipfw looks at the ports (ip_fw2.c)."""
