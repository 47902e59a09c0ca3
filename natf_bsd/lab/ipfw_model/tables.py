"""Tables: keys of type addr and flow, values, and the text ipfw(8) has for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from natf_bsd.lab.ipfw_model.errors import EX_DATAERR, EX_NOHOST, EX_USAGE, CommandError, NotModelledError
from natf_bsd.types import Address, Protocol, format_address, parse_address

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,63}")
_FLOW_FIELDS = ("src-ip", "proto", "src-port", "dst-ip", "dst-port")
_PROTOCOLS = {protocol.name.lower(): int(protocol) for protocol in Protocol}
# `table T info`: a table of 296 bytes, and 120 for each item (ipfw-commands.jsonl, both types).
_EMPTY_SIZE = 296
_ITEM_SIZE = 120

Key = tuple[object, ...]


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise CommandError(EX_USAGE, f"table name {name} is invalid")
    return name


def parse_value(text: str) -> int:
    """A value of type legacy: a number, or an address that is taken for one."""
    if text.isdigit():
        return int(text)
    try:
        return int.from_bytes(parse_address(text), "big")
    except ValueError:
        raise CommandError(EX_DATAERR, f"Unable to parse value: {text}") from None


def parse_network(text: str) -> tuple[int, int]:
    """(network number, mask) of `a.b.c.d`, `a.b.c.d/len` or `a.b.c.d:mask`."""
    base, _, length = text.partition("/")
    base, _, mask_text = base.partition(":")
    try:
        number = int.from_bytes(parse_address(base), "big")
        mask = int.from_bytes(parse_address(mask_text), "big") if mask_text else 0xFFFFFFFF
    except ValueError:
        raise CommandError(EX_NOHOST, f"hostname ``{text}'' unknown") from None
    if length:
        if not length.isdigit() or int(length) > 32:
            raise CommandError(EX_DATAERR, f"bad width ``{length}''")
        mask = 0xFFFFFFFF << (32 - int(length)) & 0xFFFFFFFF
    return number & mask, mask


def format_network(network: tuple[int, int]) -> str:
    number, mask = network
    return f"{format_address(number.to_bytes(4, 'big'))}/{mask.bit_count()}"


@dataclass(slots=True)
class Table:
    """One table. `fields` are those of a flow key; empty for type addr, and for a flow table a rule made itself."""

    name: str
    index: int
    type: str
    fields: tuple[str, ...] = ()
    valtype: str = "legacy"
    limit: int = 0
    items: dict[Key, int] = field(default_factory=dict)

    def parse_key(self, text: str) -> Key:
        return parse_network(text) if self.type == "addr" else self._parse_flow(text)

    def _parse_flow(self, text: str) -> Key:
        # Parts behind the last field are ignored, as the recorded `...,53,1` was.
        parts = text.split(",")
        if len(parts) < len(self.fields):
            parts += [""] * (len(self.fields) - len(parts))
        return tuple(_FLOW_PARSERS[name](part) for name, part in zip(self.fields, parts, strict=False))

    def format_key(self, key: Key) -> str:
        if self.type == "addr":
            number, mask = key
            return format_network((int(str(number)), int(str(mask))))
        return ",".join(format_address(part) if isinstance(part, bytes) else str(part) for part in key)

    def line(self, key: Key, value: int) -> str:
        return f"{self.format_key(key)} {value}"

    def in_order(self) -> list[tuple[Key, int]]:
        """As `list` prints them: a radix tree by number, a hash as it comes."""
        return sorted(self.items.items(), key=repr) if self.type == "addr" else list(self.items.items())

    def look_up_address(self, address: Address) -> int | None:
        """The value of the longest network that holds `address`."""
        number = int.from_bytes(address, "big")
        found = [
            (mask, value)
            for (network, mask), value in self.items.items()
            if isinstance(mask, int) and number & mask == network
        ]
        return max(found)[1] if found else None

    def look_up_flow(self, values: dict[str, object]) -> int | None:
        return self.items.get(tuple(values[name] for name in self.fields)) if self.fields else None

    @property
    def type_text(self) -> str:
        return f"{self.type}:{','.join(self.fields)}" if self.fields else self.type


def _parse_flow_address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError:
        raise CommandError(EX_NOHOST, f"hostname ``{text}'' unknown") from None


def _parse_flow_protocol(text: str) -> int:
    number = _PROTOCOLS.get(text, int(text) if text.isdigit() else 256)
    if not 0 < number < 256:
        raise CommandError(EX_DATAERR, f"Bad protocol number: {text}")
    return number


def _parse_flow_port(text: str) -> int:
    if not text.isdigit() or int(text) > 0xFFFF:
        raise CommandError(EX_DATAERR, f"Bad port number: {text}")
    return int(text)


_FLOW_PARSERS = {
    "src-ip": _parse_flow_address,
    "dst-ip": _parse_flow_address,
    "proto": _parse_flow_protocol,
    "src-port": _parse_flow_port,
    "dst-port": _parse_flow_port,
}


def parse_type(text: str) -> tuple[str, tuple[str, ...]]:
    """(type, fields) of the words behind `type`; the order of the fields is the kernel's, not the command's."""
    name, _, fields = text.partition(":")
    if name == "addr" and not fields:
        return name, ()
    if name != "flow":
        raise NotModelledError(f"table type {text}")
    named = fields.split(",")
    if unknown := set(named) - set(_FLOW_FIELDS):
        raise CommandError(EX_USAGE, f"Unknown flow field: {sorted(unknown)[0]}")
    return name, tuple(known for known in _FLOW_FIELDS if known in named)


class Tables:
    """All tables by name; the kernel gives each the lowest free index."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def __iter__(self) -> Iterator[Table]:
        # ipfw(8) sorts by length, then by name (tables.c: tablename_cmp).
        return iter(sorted(self._tables.values(), key=lambda table: (len(table.name), table.name)))

    def get(self, name: str) -> Table | None:
        return self._tables.get(name)

    def create(self, name: str, type_text: str = "addr", valtype: str = "legacy", limit: int = 0) -> Table:
        kind, fields = parse_type(type_text) if type_text != "flow" else ("flow", ())
        index = next(number for number in range(1, 65536) if number not in {t.index for t in self._tables.values()})
        table = Table(name, index, kind, fields, valtype, limit)
        self._tables[name] = table
        return table

    def destroy(self, name: str) -> None:
        del self._tables[name]

    def info(self, table: Table, references: int) -> str:
        return (
            f"--- table({table.name}), set(0) ---\n"
            f" kindex: {table.index}, type: {table.type_text}\n"
            f" references: {references}, valtype: {table.valtype}\n"
            f" algorithm: {'addr:radix' if table.type == 'addr' else 'flow:hash'}\n"
            f" items: {len(table.items)}, size: {_EMPTY_SIZE + _ITEM_SIZE * len(table.items)}\n"
        )
