"""ipfw(8): options, commands, what it prints and how it ends. `Firewall` is also what the kernel keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from natf_bsd.lab.ipfw_model.errors import (
    EX_DATAERR,
    EX_OSERR,
    EX_UNAVAILABLE,
    EX_USAGE,
    CommandError,
    NotModelledError,
)
from natf_bsd.lab.ipfw_model.nat import NatInstance, parse_config
from natf_bsd.lab.ipfw_model.parser import parse_add
from natf_bsd.lab.ipfw_model.rules import DEFAULT_RULE, DEFAULT_SET, AddressMatch, Body, End, Rule, RuleSet
from natf_bsd.lab.ipfw_model.tables import Table, Tables, check_name, parse_value
from natf_bsd.types import Address

_USAGE = 'usage: ipfw [options]\ndo "ipfw -h" or "man ipfw" for details'
_OPTIONS = frozenset("aqfnStcN")
_SETS = range(DEFAULT_SET)
_NO_STAMP = " " * 24
_NO_TABLE = "No such process"
_ANY = End((AddressMatch("any"),))
_STANDARD_INPUT = "/dev/stdin"


def _default_rule(accept: bool) -> Rule:
    action = "allow" if accept else "deny"
    return Rule(DEFAULT_RULE, DEFAULT_SET, Body(action, None, action, (None,), "ip", _ANY, _ANY))


@dataclass(slots=True)
class _Run:
    """One run of ipfw(8): its options, and what it printed so far. `name` stands before its messages."""

    options: set[str] = field(default_factory=set)
    out: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    name: str = "ipfw"

    @property
    def is_quiet(self) -> bool:
        return "q" in self.options

    def say(self, text: str) -> None:
        if not self.is_quiet:
            self.out.append(text)

    def warn(self, text: str) -> None:
        if not self.is_quiet:
            self.complaints.append(f"{self.name}: {text}\n")


class Firewall:
    """Rules, tables and NAT instances of one host, and the program that changes them.

    `files` are what ipfw(8) can read besides /dev/stdin: path to content. `one_pass` is net.inet.ip.fw.one_pass.
    """

    def __init__(self, address_of: Callable[[str], Address | None], *, default_accept: bool = True) -> None:
        self.rules = RuleSet(_default_rule(default_accept))
        self.tables = Tables()
        self.nats: dict[int, NatInstance] = {}
        self.one_pass = True
        self.files: dict[str, str] = {}
        self._address_of = address_of

    def ipfw(self, argv: list[str], stdin: str = "") -> tuple[int, str, str]:
        """(exit status, stdout, stderr) of ipfw(8) with these arguments, its name before them or not."""
        arguments = argv[1:] if argv and argv[0].rpartition("/")[2] == "ipfw" else list(argv)
        run = _Run()
        status = 0
        try:
            self._main(run, arguments, stdin)
        except CommandError as error:
            status = error.status
            run.complaints.append(f"{run.name}: {error.text}\n")
        return status, "".join(run.out), "".join(run.complaints)

    def _main(self, run: _Run, arguments: list[str], stdin: str) -> None:
        if arguments and len(arguments[-1]) > 1 and arguments[-1].startswith("/"):
            _take_options(run, arguments[:-1])
            self._read_file(run, arguments[-1], stdin)
        else:
            # A command given as one word is split, as ipfw does for shell scripts.
            words = arguments[0].split() if len(arguments) == 1 else arguments
            self._command(run, words)

    def _read_file(self, run: _Run, path: str, stdin: str) -> None:
        content = stdin if path == _STANDARD_INPUT else self.files.get(path)
        if content is None:
            raise CommandError(EX_USAGE, f"pathname: {path}: No such file or directory")
        for number, line in enumerate(content.splitlines(), 1):
            words = line.partition("#")[0].split()
            if words:
                run.name = f"Line {number}"
                self._command(run, words)

    def _command(self, run: _Run, words: list[str]) -> None:
        left = _take_options(run, words)
        if not left:
            raise CommandError(EX_USAGE, _USAGE)
        name, *arguments = left
        command = self._COMMANDS.get(name)
        if command is None:
            raise CommandError(EX_USAGE, f"bad command `{name}'")
        command(self, run, arguments)

    # Rules.

    def _add(self, run: _Run, arguments: list[str]) -> None:
        parsed = parse_add(arguments)
        if parsed.number >= DEFAULT_RULE:
            raise CommandError(EX_UNAVAILABLE, "getsockopt(IP_FW_XADD): Invalid argument")
        if "n" in run.options:
            run.say(f"{parsed.number:05} {parsed.body.text()}\n")
            return
        for table, kind in parsed.body.tables():
            if self.tables.get(table) is None:
                self.tables.create(table, kind)
        rule = self.rules.add(parsed.number, parsed.set, parsed.body)
        run.say(f"{rule.number:05} {rule.body.text()}\n")

    def _delete(self, run: _Run, arguments: list[str]) -> None:
        if arguments[:1] == ["set"]:
            for text in arguments[1:]:
                self.rules.delete_set(_number(text))
            return
        for text in arguments:
            if not self.rules.delete(_numbers(text)):
                run.warn(f"rule {text} not found")

    def _flush(self, run: _Run, arguments: list[str]) -> None:
        self.rules.flush()
        run.say("Flushed all rules.\n")

    def _zero(self, run: _Run, arguments: list[str]) -> None:
        wanted = frozenset(number for text in arguments for number in _numbers(text))
        for rule in self.rules.all():
            if not wanted or rule.number in wanted:
                rule.packets = rule.bytes = 0
        if not arguments:
            run.say("Accounting cleared.\n")
        for text in arguments:
            run.say(f"Entry {text} cleared.\n")

    def _reset_log(self, run: _Run, arguments: list[str]) -> None:
        run.say("Logging counts reset.\n")

    def _show(self, run: _Run, arguments: list[str]) -> None:
        run.options.add("a")
        self._list(run, arguments)

    def _list(self, run: _Run, arguments: list[str]) -> None:
        if not arguments:
            self._print(run, self.rules.all())
        for text in arguments:
            wanted = _numbers(text)
            found = [rule for rule in self.rules.all() if rule.number in wanted]
            if not found:
                raise CommandError(EX_UNAVAILABLE, f"rule {text} does not exist")
            self._print(run, found)

    def _print(self, run: _Run, rules: list[Rule]) -> None:
        shown = [rule for rule in rules if self.rules.is_enabled(rule) or "S" in run.options]
        widths = (
            max((len(str(rule.packets or "")) for rule in shown), default=0),
            max((len(str(rule.bytes or "")) for rule in shown), default=0),
        )
        run.out.extend(self._line(rule, run.options, widths) for rule in shown)

    def _line(self, rule: Rule, options: set[str], widths: tuple[int, int]) -> str:
        parts = [] if self.rules.is_enabled(rule) else ["# DISABLED"]
        parts.append(f"{rule.number:05}")
        if "a" in options:
            parts += [f"{rule.packets:{widths[0] or 1}}", f"{rule.bytes:{widths[1] or 1}}"]
        if "t" in options:
            parts.append(rule.stamp or _NO_STAMP)
        if "S" in options:
            parts.append(f"set {rule.set}")
        parts.append(rule.body.text(compact="c" in options))
        return " ".join(parts) + "\n"

    def _set(self, run: _Run, arguments: list[str]) -> None:
        match arguments:
            case ["show" | "list"]:
                self._show_sets(run)
            case ["move", one, "to", other]:
                self.rules.move(_set_number(one), _set_number(other))
            case ["swap", one, other]:
                self.rules.swap(_set_number(one), _set_number(other))
            case ["enable" | "disable", *_]:
                self._switch_sets(arguments)
            case [number, "list" | "show" as command] if number.isdigit():
                if command == "show":
                    run.options.add("a")
                self._print(run, [rule for rule in self.rules.all() if rule.set == int(number)])
            case _:
                raise NotModelledError(f"set {' '.join(arguments)}")

    def _show_sets(self, run: _Run) -> None:
        disabled = [number for number in _SETS if number in self.rules.disabled]
        enabled = [number for number in _SETS if number not in self.rules.disabled]
        parts = (("disable", disabled), ("enable", enabled))
        run.out.append(" ".join(" ".join(map(str, (word, *numbers))) for word, numbers in parts if numbers) + "\n")

    def _switch_sets(self, arguments: list[str]) -> None:
        chosen: dict[str, set[int]] = {"enable": set(), "disable": set()}
        word = ""
        for text in arguments:
            if text in chosen:
                word = text
            else:
                chosen[word].add(_set_number(text))
        self.rules.switch(frozenset(chosen["enable"]), frozenset(chosen["disable"]))

    # Tables.

    def _table(self, run: _Run, arguments: list[str]) -> None:
        if len(arguments) < 2:
            raise CommandError(EX_USAGE, "table needs command")
        name, command, *rest = arguments
        if name == "all":
            self._all_tables(run, command)
            return
        check_name(name)
        if command == "create":
            self._create_table(name, rest)
            return
        if command == "atomic":
            command, *rest = rest
        action = self._TABLE_COMMANDS.get(command)
        if action is None:
            raise NotModelledError(f"table command {command}")
        action(self, run, name, rest)

    def _all_tables(self, run: _Run, command: str) -> None:
        if command not in ("list", "info", "flush", "destroy"):
            raise NotModelledError(f"table all {command}")
        for table in list(self.tables):
            if command == "list":
                run.out.append(f"--- table({table.name}), set(0) ---\n")
            self._TABLE_COMMANDS[command](self, run, table.name, [])

    def _create_table(self, name: str, words: list[str]) -> None:
        settings = {"type": "addr", "valtype": "legacy", "limit": "0"}
        flags = set()
        left = list(words)
        while left:
            word = left.pop(0)
            if word in settings and left:
                settings[word] = left.pop(0)
            elif word in ("missing", "or-flush"):
                flags.add(word)
            else:
                raise CommandError(EX_USAGE, f"unknown option {word}")
        existing = self.tables.get(name)
        if existing is None:
            self.tables.create(name, settings["type"], settings["valtype"], _number(settings["limit"]))
        elif "or-flush" in flags:
            existing.items.clear()
        elif "missing" not in flags:
            raise CommandError(EX_OSERR, "Table creation failed: File exists")
        elif (existing.type_text, existing.valtype) != (settings["type"], settings["valtype"]):
            raise NotModelledError(f"`missing` for table {name}, which is there as another one")

    def _existing_table(self, name: str) -> Table:
        table = self.tables.get(name)
        if table is None:
            raise CommandError(EX_OSERR, f"failed to request table info: {_NO_TABLE}")
        return table

    def _references(self, name: str) -> int:
        return sum(name == used for rule in self.rules.all() for used, _ in rule.body.tables())

    def _destroy_table(self, run: _Run, name: str, words: list[str]) -> None:
        if self.tables.get(name) is None:
            run.warn(f"failed to destroy table {name}: {_NO_TABLE}")
        elif self._references(name):
            raise CommandError(EX_OSERR, f"failed to destroy table {name}: Device busy")
        else:
            self.tables.destroy(name)

    def _flush_table(self, run: _Run, name: str, words: list[str]) -> None:
        table = self.tables.get(name)
        if table is None:
            run.warn(f"failed to flush table {name} info: {_NO_TABLE}")
        else:
            table.items.clear()

    def _table_info(self, run: _Run, name: str, words: list[str]) -> None:
        run.out.append(self.tables.info(self._existing_table(name), self._references(name)))

    def _list_table(self, run: _Run, name: str, words: list[str]) -> None:
        table = self._existing_table(name)
        run.out.extend(f"{table.line(key, value)}\n" for key, value in table.in_order())

    def _look_up(self, run: _Run, name: str, words: list[str]) -> None:
        table = self._existing_table(name)
        key = table.parse_key(words[0])
        if table.type == "addr":
            value = table.look_up_address(int(str(key[0])).to_bytes(4, "big"))
        else:
            value = table.items.get(key)
        if value is None:
            raise CommandError(EX_UNAVAILABLE, f"Entry {words[0]} not found")
        run.out.append(f"{table.line(key, value)}\n")

    def _add_to_table(self, run: _Run, name: str, words: list[str]) -> None:
        table = self.tables.get(name)
        if table is None:
            table = self.tables.create(name)
            run.warn(f"DEPRECATED: inserting data into non-existent table {name}. (auto-created)")
        for at in range(0, len(words), 2):
            key = table.parse_key(words[at])
            value = parse_value(words[at + 1]) if at + 1 < len(words) else 0
            self._add_record(run, table, key, value)

    def _add_record(self, run: _Run, table: Table, key: tuple[object, ...], value: int) -> None:
        line = table.line(key, value)
        # -q lets an existing record be changed.
        if key in table.items and not run.is_quiet:
            run.out.append(f"exists: {line}\n")
            raise CommandError(EX_OSERR, "Adding record failed: record already exists")
        if table.limit and len(table.items) >= table.limit and key not in table.items:
            run.out.append(f"limit: {line}\n")
            raise CommandError(EX_OSERR, "Adding record failed: limit hit")
        table.items[key] = value
        run.say(f"added: {line}\n")

    def _delete_from_table(self, run: _Run, name: str, words: list[str]) -> None:
        table = self._existing_table(name)
        for text in words:
            key = table.parse_key(text)
            found = table.items.pop(key, None) is not None
            run.say(f"{'deleted' if found else 'notfound'}: {table.line(key, 0)}\n")
            if not found and not run.is_quiet:
                raise CommandError(EX_OSERR, "Deleting record failed: record not found")

    # In-kernel NAT.

    def _nat(self, run: _Run, arguments: list[str]) -> None:
        if arguments == ["show", "config"]:
            run.out.extend(f"{self.nats[number].text}\n" for number in sorted(self.nats))
            return
        text, command, *rest = (*arguments, "", "")
        rest = [word for word in rest if word]
        if "show" in (text, command):
            self._show_nat(run, text, rest)
            return
        number = int(text) if text.isdigit() else 0
        if number < 1:
            raise CommandError(EX_DATAERR, f"illegal nat id: {text}")
        if command == "config":
            self._configure_nat(run, parse_config(number, rest, self._address_of))
        elif command == "delete":
            if self.nats.pop(number, None) is None:
                run.warn(f"nat {number} not available: {_NO_TABLE}")
        else:
            raise CommandError(EX_USAGE, f"bad command `{command}'")

    def _configure_nat(self, run: _Run, instance: NatInstance) -> None:
        self.nats[instance.number] = instance
        run.say(f"{instance.text}\n")

    def _show_nat(self, run: _Run, text: str, rest: list[str]) -> None:
        if rest != ["config"]:
            raise CommandError(EX_USAGE, "Please specify action. Available: config,log")
        instance = self.nats.get(_number(text))
        if instance is None:
            raise CommandError(EX_OSERR, f"Error getting nat {text} instance info: {_NO_TABLE}")
        run.out.append(f"{instance.text}\n")

    _COMMANDS: ClassVar[dict[str, Callable[[Firewall, _Run, list[str]], None]]] = {
        "add": _add,
        "delete": _delete,
        "flush": _flush,
        "list": _list,
        "show": _show,
        "set": _set,
        "table": _table,
        "nat": _nat,
        "zero": _zero,
        "resetlog": _reset_log,
    }
    _TABLE_COMMANDS: ClassVar[dict[str, Callable[[Firewall, _Run, str, list[str]], None]]] = {
        "destroy": _destroy_table,
        "flush": _flush_table,
        "info": _table_info,
        "list": _list_table,
        "lookup": _look_up,
        "add": _add_to_table,
        "delete": _delete_from_table,
    }


def _take_options(run: _Run, words: list[str]) -> list[str]:
    """Read the options in front; returns the words behind them."""
    at = 0
    while at < len(words) and words[at].startswith("-") and len(words[at]) > 1:
        letters = set(words[at][1:])
        if letters - _OPTIONS:
            raise NotModelledError(f"ipfw {words[at]}")
        run.options |= letters
        at += 1
    return words[at:]


def _number(text: str) -> int:
    if not text.isdigit():
        raise CommandError(EX_USAGE, f"invalid number {text}")
    return int(text)


def _numbers(text: str) -> range:
    """`N` or `N-N`."""
    first, dash, last = text.partition("-")
    low = _number(first)
    return range(low, (_number(last) if dash else low) + 1)


def _set_number(text: str) -> int:
    if not text.isdigit() or int(text) > DEFAULT_SET:
        raise CommandError(EX_DATAERR, f"invalid set number {text}")
    return int(text)
