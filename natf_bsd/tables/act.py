"""ACT, the access control table of the router (paper 3.2; DESIGN.md section 4): parsing, asking, editing text.

One line a host, columns separated by blanks, `#` begins a comment:

    # name  address       action  services
    alice   192.168.0.2   allow                               # every port
    bob     192.168.0.3   allow   tcp/80,443 udp/5000-5010
    eve     192.168.0.4   deny

A name that is not listed is denied. `deny` denies every port; services on such a line wait for the next `allow`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.names import is_written_label
from natf_bsd.types import Address, Protocol, format_address, parse_address

MAXIMUM_LINES = 65536  # hosts in a /16, the largest network people number by hand; bounds the memory at about 40 MB
COLUMNS = "name address action [services...]"

_TOKEN = re.compile(r"[^ \t\r]+")
_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP}
_ACTIONS = {"allow": True, "deny": False}
_DEFAULT_STARTS = (0, 8, 24, 32)  # columns of a first entry: room for a short name, any address, an action
_FORBIDDEN_FIRST_OCTETS = {0: "this network", 127: "loopback"}  # RFC 6890

_Columns: TypeAlias = tuple[re.Match[str], ...]


@dataclass(frozen=True, slots=True)
class Service:
    """Ports `low` to `high`, both included, of TCP or UDP."""

    protocol: int
    low: int
    high: int

    def __str__(self) -> str:
        ports = f"{self.low}" if self.low == self.high else f"{self.low}-{self.high}"
        return f"{Protocol(self.protocol).name.lower()}/{ports}"


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """One host: where it is and who may reach what. No services means every port. `line` counts from 1."""

    name: str
    address: Address
    allow: bool
    services: tuple[Service, ...]
    line: int

    def permits(self, protocol: int, port: int) -> bool:
        """Whether an outsider may reach `port` of the host."""
        if not self.allow or not self.services:
            return self.allow
        return any(service.protocol == protocol and service.low <= port <= service.high for service in self.services)


class AccessTable:
    """What one file says, in its order. Immutable: a changed file is a new table."""

    def __init__(self, entries: Sequence[AccessEntry] = ()) -> None:
        self._entries = {entry.name: entry for entry in entries}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AccessEntry]:
        return iter(self._entries.values())

    def lookup(self, host: str) -> AccessEntry | None:
        return self._entries.get(host)


def parse(text: str, path: Path | str) -> AccessTable:
    """The table `text` is. ConfigError names `path`, the line, what was found there, and what was expected."""
    lines = _lines(text)
    if len(lines) > MAXIMUM_LINES:
        raise ConfigError(path, MAXIMUM_LINES + 1, f"found more than {MAXIMUM_LINES} lines, expected fewer")
    entries: dict[str, AccessEntry] = {}
    for number, line in enumerate(lines, 1):
        words = [column.group() for column in _columns(line)]
        if not words:
            continue
        try:
            entry = _entry(words, number)
            if entry.name in entries:
                raise ValueError(
                    f"found {entry.name!r} again, expected one line a name; line {entries[entry.name].line} has it"
                )
        except ValueError as error:
            raise ConfigError(path, number, str(error)) from None
        entries[entry.name] = entry
    return AccessTable(tuple(entries.values()))


def add(text: str, path: Path | str, name: str, address: str, action: str, services: Sequence[str] = ()) -> str:
    """`text` with one more line, in the columns of the entry before it.

    NatfError when a value is bad or the name is listed already; the texts of `services` are as in the file.
    """
    table = parse(text, path)
    words = (name, address, action, *services)
    try:
        _entry(words, 0)
    except ValueError as error:
        raise NatfError(str(error)) from None
    listed = table.lookup(name)
    if listed is not None:
        raise NatfError(f"{path}:{listed.line}: {name!r} is listed already, with {format_address(listed.address)}")
    end = "\r\n" if text.endswith("\r\n") else "\n"
    gap = "" if not text or text.endswith("\n") else end
    result = text + gap + _aligned(words, _neighbour(text)) + end
    parse(result, path)
    return result


def set_action(text: str, path: Path | str, name: str, allow: bool) -> str:
    """`text` with the action of `name` changed and every other byte as it was. NatfError when `name` is not listed."""

    def change(line: str) -> str:
        action = _columns(line)[2]
        return line[: action.start()] + ("allow" if allow else "deny") + line[action.end() :]

    return _edited(text, path, name, change)


def remove(text: str, path: Path | str, name: str) -> str:
    """`text` without the line of `name`. NatfError when `name` is not listed."""
    return _edited(text, path, name, lambda line: "")


def _edited(text: str, path: Path | str, name: str, change: Callable[[str], str]) -> str:
    entry = parse(text, path).lookup(name)
    if entry is None:
        raise NatfError(f"{path}: {name!r} is not listed")
    lines = _lines(text)
    lines[entry.line - 1] = change(lines[entry.line - 1])
    return "".join(lines)


def _lines(text: str) -> list[str]:
    """Only a newline ends a line: str.splitlines would break at form feeds too, and the numbers would be wrong."""
    *lines, last = text.split("\n")
    return [line + "\n" for line in lines] + ([last] if last else [])


def _columns(line: str) -> _Columns:
    comment = _COMMENT.search(line)
    end = comment.start() if comment else len(line.rstrip("\n"))
    return tuple(_TOKEN.finditer(line, 0, end))


def _entry(words: Sequence[str], line: int) -> AccessEntry:
    """ValueError says what was found and what was expected."""
    if len(words) < 3:
        raise ValueError(f"found {len(words)} {'column' if len(words) == 1 else 'columns'}, expected {COLUMNS}")
    name, address, action, *services = words
    if action not in _ACTIONS:
        raise ValueError(f"found action {action!r}, expected allow or deny")
    return AccessEntry(
        _host_label(name),
        _host_address(address),
        _ACTIONS[action],
        tuple(service for word in services for service in _services(word)),
        line,
    )


def _host_label(name: str) -> str:
    if is_written_label(name):
        return name
    if is_written_label(name.lower()):
        raise ValueError(f"found upper case in name {name!r}, expected {name.lower()!r}")
    raise ValueError(
        f"found name {name!r}, expected one label of 1 to 63 lower-case letters, digits, hyphens, underscores"
    )


def _host_address(text: str) -> Address:
    try:
        address = parse_address(text)
    except ValueError:
        raise ValueError(f"found address {text!r}, expected an IPv4 address such as 192.168.0.2") from None
    kind = _not_a_host(address)
    if kind:
        raise ValueError(f"found {kind} address {text}, expected the address of a host")
    return address


def _not_a_host(address: Address) -> str | None:
    first = address[0]
    if address == b"\xff\xff\xff\xff":
        return "broadcast"
    if first >= 240:
        return "reserved (240.0.0.0/4)"
    if first >= 224:
        return "multicast"
    return _FORBIDDEN_FIRST_OCTETS.get(first)


def _services(word: str) -> list[Service]:
    protocol, slash, ports = word.partition("/")
    if not slash or protocol not in _PROTOCOLS:
        raise ValueError(f"found service {word!r}, expected tcp/PORTS or udp/PORTS such as tcp/80,443 or udp/5000-5010")
    return [Service(_PROTOCOLS[protocol], *_port_range(item, word)) for item in ports.split(",")]


def _port_range(item: str, word: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(item)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"found ports {item!r} in {word!r}, expected 1 to 65535, or LOW-HIGH")
    return low, high


def _neighbour(text: str) -> _Columns:
    """The columns of the last entry; none without one."""
    return next((columns for line in reversed(_lines(text)) if (columns := _columns(line))), ())


def _aligned(words: Sequence[str], neighbour: _Columns) -> str:
    """`words` at the column starts of `neighbour`, or separated by tabs if that one is."""
    if any("\t" in column.string[: column.start()] for column in neighbour[:3]):
        return "\t".join(words)
    starts = [column.start() for column in neighbour[:4]] or list(_DEFAULT_STARTS)
    if len(starts) == 3:
        starts.append(starts[2] + _DEFAULT_STARTS[3] - _DEFAULT_STARTS[2])
    line = ""
    for start, word in zip(starts, words, strict=False):
        line = (line + " " if line else "").ljust(start) + word
    return " ".join([line, *words[4:]])
