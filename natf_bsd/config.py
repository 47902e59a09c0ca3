"""The configuration file: TOML in, frozen dataclasses out; a bad line is named by file, line and what was expected.

Every setting has a default but `home_domains` on an external node. Times are seconds.
"""

from __future__ import annotations

import re
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from natf_bsd.errors import ConfigError, NatfError

T = TypeVar("T")

DEFAULT_PATH = Path("/usr/local/etc/natf.toml" if sys.platform.startswith("freebsd") else "/etc/natf.toml")
RUN_DIR = Path("/var/run/natf" if sys.platform.startswith("freebsd") else "/run/natf")
STATE_DIR = Path("/var/db/natf" if sys.platform.startswith("freebsd") else "/var/lib/natf")
DEFAULT_ACT = DEFAULT_PATH.with_name("natf.act")

_MARK = 0x4E000000
"""'N' in the highest byte: the part of a packet's mark that is ours on Linux; the other 24 bits stay the site's
own."""


@dataclass(frozen=True, slots=True)
class Key:
    """A shared secret between an external node and a router (AUTH, DESIGN.md section 5). Never shown."""

    ident: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EnConfig:
    """Section [en]: the external node."""

    home_domains: tuple[str, ...]
    interface: str | None = None
    """Outer interface; none: the one of the default route."""
    virtual_prefix: int = 240
    """First octet of every virtual address; the /8 is the external node's own."""
    on_silence: str = "unreachable"
    """What a flow gets whose router answers nothing at all: "unreachable" or "direct" (G2 itself, as if it were no
    NAT-f router)."""
    minimum_ttl: float = 60.0
    maximum_ttl: float = 86400.0
    quarantine: float = 3600.0
    """How long a virtual address stays bound to its name after the DNS answer has expired: applications cache
    longer than that."""
    maximum_names: int = 65536
    maximum_flows: int = 131072
    dns_queue: int = 8710
    out_queue: int = 8711
    in_queue: int = 8712
    mark: int = _MARK
    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR
    keys: dict[str, Key] = field(default_factory=dict)
    """Home domain -> key its router knows."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Section [router]: the NAT-f router."""

    interface: str | None = None
    """Outer interface; none: the one of the default route."""
    act: Path = DEFAULT_ACT
    cookies: str = "load"
    """When a stranger must prove its address first: "always", "never", or "load": above `cookie_rate` requests a
    second."""
    cookie_rate: int = 200
    require_key: bool = False
    tell_unknown: bool = False
    """Whether an outsider is told "no such host" apart from "denied"; off, both look the same (DESIGN.md section
    4)."""
    maximum_pending: int = 1024
    control_queue: int = 8701
    tun: str = "natf0"
    route_table: int = 78
    """Linux: our own routing table, for packets from the TUN device only."""
    mark: int = _MARK
    run_dir: Path = RUN_DIR
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    en: EnConfig | None = None
    router: RouterConfig | None = None

    def need_en(self) -> EnConfig:
        if self.en is None:
            raise ConfigError(self.path, 1, 'no [en] section; expected one with home_domains = ["home.example.net"]')
        return self.en

    def need_router(self) -> RouterConfig:
        if self.router is None:
            raise ConfigError(self.path, 1, "no [router] section")
        return self.router


class _Reader:
    """Checks the values of one section against what its settings expect."""

    def __init__(self, path: Path, text: str, section: str, values: dict[str, Any]) -> None:
        self._path = path
        self._text = text
        self._section = section
        self._values = values

    def error(self, key: str, expected: str) -> ConfigError:
        line = _line_of(self._text, self._section, key)
        return ConfigError(self._path, line, f"{self._section}.{key} = {self._values.get(key)!r}: expected {expected}")

    def take(self, key: str, convert: Callable[[Any], T], expected: str) -> T:
        try:
            return convert(self._values[key])
        except (ValueError, TypeError) as error:
            raise self.error(key, f"{expected}{f' ({error})' if str(error) else ''}") from None

    def check_names(self, known: Iterator[str]) -> None:
        names = sorted(known)
        for key in self._values:
            if key not in names:
                line = _line_of(self._text, self._section, key)
                expected = ", ".join(names)
                raise ConfigError(
                    self._path, line, f"{self._section}.{key}: no such setting; expected one of {expected}"
                )


def _line_of(text: str, section: str, key: str) -> int:
    """The line `key` is set on, for messages: tomllib does not keep it. Falls back to the section's line, then to
    1."""
    current, section_line = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            current = header[1]
            if current == section:
                section_line = number
            if current == f"{section}.{key}":
                return number
        elif current == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
            return number
    return section_line


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _interface(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,15}", _string(value)):
        raise ValueError
    return str(value)


def _path(value: Any) -> Path:
    path = Path(_string(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return convert


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError
    return float(value)


def _choice(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return convert


_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def domain_name(value: Any) -> str:
    """A home domain as the wire carries it: lower-case A-labels, no dot at the end; or "*" for every domain."""
    name = _string(value).rstrip(".").lower()
    if name != "*" and (len(name) > 253 or "." not in name or not all(map(_LABEL.fullmatch, name.split(".")))):
        raise ValueError(f"{value!r} is not a domain name")
    return name


def _domains(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(domain_name(item) for item in value)


def _mark(value: Any) -> int:
    number = _integer(1, 255)(value)
    return number << 24


def load_key(path: Path) -> Key:
    """The key in `path`: one line, 16 hex digits of key id, a colon, at least 32 hex digits of secret (`natf key`
    makes one)."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise NatfError(f"{path}: others can read this key; expected mode 0600")
            text = file.read(4096).strip()
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}") from None
    if not (found := re.fullmatch(r"([0-9a-f]{16}):((?:[0-9a-f]{2}){16,64})", text)):
        raise ConfigError(
            path, 1, "expected 16 hex digits of key id, a colon, 32 to 128 hex digits of secret, and nothing else"
        )
    return Key(bytes.fromhex(found[1]), bytes.fromhex(found[2]))


def _en_keys(value: Any) -> dict[str, Key]:
    if not isinstance(value, dict):
        raise TypeError
    return {domain_name(domain): load_key(_path(path)) for domain, path in value.items()}


def _router_keys(value: Any) -> tuple[Key, ...]:
    if not isinstance(value, list):
        raise TypeError
    keys = tuple(load_key(_path(item)) for item in value)
    if len({key.ident for key in keys}) < len(keys):
        raise ValueError("two keys have the same id")
    return keys


_QUEUE = (_integer(1, 65535), "a number from 1 to 65535")
_POSITIVE = (_integer(1, 1 << 24), "a number from 1 to 16777216")
_DURATION = (_seconds, "seconds, 0 or more")
_ABSOLUTE = (_path, "an absolute path")
_OUTER = (_interface, "the name of a network interface")
_OUR_MARK = (_mark, "a number from 1 to 255, the highest byte of the packet mark that is ours")

_EN_SETTINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "home_domains": (_domains, 'a list of domain names such as ["home.example.net"], or ["*"]'),
    "interface": _OUTER,
    "virtual_prefix": (_integer(240, 254), "a number from 240 to 254, the first octet of virtual addresses"),
    "on_silence": (_choice("unreachable", "direct"), '"unreachable" or "direct"'),
    "minimum_ttl": _DURATION,
    "maximum_ttl": _DURATION,
    "quarantine": _DURATION,
    "maximum_names": _POSITIVE,
    "maximum_flows": _POSITIVE,
    "dns_queue": _QUEUE,
    "out_queue": _QUEUE,
    "in_queue": _QUEUE,
    "mark": _OUR_MARK,
    "run_dir": _ABSOLUTE,
    "state_dir": _ABSOLUTE,
    "keys": (_en_keys, 'a table of home domain = "/absolute/path/of/key"'),
}

_ROUTER_SETTINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "interface": _OUTER,
    "act": _ABSOLUTE,
    "cookies": (_choice("load", "always", "never"), '"load", "always" or "never"'),
    "cookie_rate": _POSITIVE,
    "require_key": (_boolean, "true or false"),
    "tell_unknown": (_boolean, "true or false"),
    "maximum_pending": (_integer(1, 65536), "a number from 1 to 65536"),
    "control_queue": _QUEUE,
    "tun": _OUTER,
    "route_table": (_integer(1, 252), "a routing table number from 1 to 252"),
    "mark": _OUR_MARK,
    "run_dir": _ABSOLUTE,
    "keys": (_router_keys, "a list of absolute paths of keys"),
}


def parse(text: str, path: Path) -> Config:
    """The configuration in `text`; ConfigError names `path`, the line and what was expected there."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(path, int(line[1]) if line else len(text.splitlines()), f"not TOML: {error}") from None
    for section, value in document.items():
        if section not in ("en", "router") or not isinstance(value, dict):
            raise ConfigError(path, _line_of(text, section, section), f"{section}: expected a section [en] or [router]")
    en = _section(path, text, "en", document, _EN_SETTINGS)
    router = _section(path, text, "router", document, _ROUTER_SETTINGS)
    config = Config(
        path, EnConfig(**en) if en is not None else None, RouterConfig(**router) if router is not None else None
    )
    _check_together(config, text)
    return config


def _section(
    path: Path, text: str, name: str, document: dict[str, Any], settings: dict[str, tuple[Callable[[Any], Any], str]]
) -> dict[str, Any] | None:
    if name not in document:
        return None
    reader = _Reader(path, text, name, document[name])
    reader.check_names(iter(settings))
    if name == "en" and "home_domains" not in document[name]:
        raise reader.error("home_domains", 'it to be set, for example home_domains = ["home.example.net"]')
    return {key: reader.take(key, *settings[key]) for key in document[name]}


def _check_together(config: Config, text: str) -> None:
    """What one setting alone cannot show."""
    if en := config.en:
        if en.minimum_ttl > en.maximum_ttl:
            raise ConfigError(
                config.path, _line_of(text, "en", "minimum_ttl"), "en.minimum_ttl is above en.maximum_ttl"
            )
        queues = [en.dns_queue, en.out_queue, en.in_queue]
        if config.router:
            queues.append(config.router.control_queue)
        if len(set(queues)) < len(queues):
            raise ConfigError(
                config.path, _line_of(text, "en", "dns_queue"), f"queue numbers {queues}: expected all different"
            )
    if (router := config.router) and router.require_key and not router.keys:
        line = _line_of(text, "router", "require_key")
        raise ConfigError(config.path, line, "router.require_key is true but router.keys names no key")


def load(path: Path) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(path, 1, f"not UTF-8 at byte {error.start}; expected TOML") from None
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected the configuration file (--config names another)") from None
    return parse(text, path)


def settings_of(config: EnConfig | RouterConfig) -> dict[str, object]:
    """The settings in force, for `natf status`; keys by their ids only."""
    shown: dict[str, object] = {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        if setting.name == "keys":
            value = sorted(key.ident.hex() for key in (value.values() if isinstance(value, dict) else value))
        shown[setting.name] = str(value) if isinstance(value, Path) else value
    return shown
