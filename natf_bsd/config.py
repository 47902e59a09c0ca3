"""The configuration file: TOML in, frozen dataclasses out; a bad line is named by file, line and what was expected.

Every setting has a default but `home_domains` on an external node. Times are seconds.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.keys import Key, load_key
from natf_bsd.names import folded, is_written_domain
from natf_bsd.tsig import TsigKey, load_tsig_key
from natf_bsd.types import Address, format_address, parse_address

T = TypeVar("T")

_SHOWN_MAXIMUM = 80
"""Characters of a value a message repeats."""

_HEADER = re.compile(r"\s*\[+([^\[\]]+)\]+\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"\s*([^\s=#\[][^=#]*?)\s*=")

DEFAULT_PATH = Path("/usr/local/etc/natf.toml" if sys.platform.startswith("freebsd") else "/etc/natf.toml")
RUN_DIR = Path("/var/run/natf" if sys.platform.startswith("freebsd") else "/run/natf")
STATE_DIR = Path("/var/db/natf" if sys.platform.startswith("freebsd") else "/var/lib/natf")
DEFAULT_ACT = DEFAULT_PATH.with_name("natf.act")

DEFAULT_MARK = 0x4E000000
"""'N' in the highest byte, the part of a packet's mark that is ours on Linux; the other bits stay the site's own."""


@dataclass(frozen=True, slots=True)
class EnConfig:
    """Section [en]: the external node."""

    home_domains: tuple[str, ...]
    interface: str | None = None
    """Outer interface; none: the one of the default route."""
    virtual_prefix: int = 240
    """First octet of every virtual address; the /8 is the external node's own."""
    on_silence: str = "unreachable"
    """What a flow gets whose router stays silent: "unreachable", or "direct" (G2 itself, as if it spoke no NAT-f)."""
    minimum_ttl: float = 60.0
    maximum_ttl: float = 86400.0
    quarantine: float = 3600.0
    """How long a virtual address stays its name's after the DNS answer has expired: applications cache for longer."""
    maximum_names: int = 65536
    maximum_flows: int = 131072
    dns_queue: int = 8710
    out_queue: int = 8711
    in_queue: int = 8712
    control_queue: int = 8714
    """FreeBSD: echo replies; this and the other queues are divert ports there."""
    query_queue: int = 8715
    """FreeBSD: DNS queries, and look-ups on loopback both ways."""
    gateway: bool | None = None
    """Linux: whether the hosts behind this one are served too, by its NAT; none: where it forwards packets."""
    inside_queue: int = 8713
    """Linux: answers for inside hosts."""
    tun: str = "natf1"
    """Linux: the device through which inside hosts are served."""
    kernel_path: bool | None = None
    """Whether the kernel translates the flows of this host's own programs, on FreeBSD the busiest; none: where it
    can."""
    mark: int = DEFAULT_MARK
    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR
    resolvers: tuple[Address, ...] = ()
    """DNS servers whose answers are believed; none: those of /etc/resolv.conf, as it changes."""
    keys: dict[str, Key] = field(default_factory=dict)
    """Home domain -> key its router knows."""

    @property
    def inside_mark(self) -> int:
        """The mark of inside hosts' connections: the value after `mark`."""
        return ((self.mark >> 24) % 255 + 1) << 24

    @property
    def virtual_network(self) -> str:
        """The network of all virtual addresses, "240.0.0.0/8"."""
        return f"{self.virtual_prefix}.0.0.0/8"


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Section [router]: the NAT-f router."""

    interface: str | None = None
    """Outer interface; none: the one of the default route."""
    act: Path = DEFAULT_ACT
    cookies: str = "load"
    """When a stranger must prove its address: "always", "never", or "load": above `cookie_rate` requests a second."""
    cookie_rate: int = 200
    source_rate: int = 100
    """Mappings one source may ask for in a second, with bursts of five seconds' worth; 0 is without limit."""
    require_key: bool = False
    tell_unknown: bool = False
    """Whether an outsider is told "no such host"; off, that looks the same as "denied" (DESIGN.md section 4)."""
    maximum_pending: int = 1024
    control_queue: int = 8701
    capture_queue: int = 8702
    """FreeBSD: pseudo-packets behind the NAT."""
    tun: str = "natf0"
    route_table: int = 78
    """Linux: our own routing table, for packets from the TUN device only."""
    mark: int = DEFAULT_MARK
    run_dir: Path = RUN_DIR
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class DdnsConfig:
    """Section [ddns]: the home's records, kept at the router's address."""

    server: str
    """The zone's primary name server, an IPv4 address."""
    zone: str
    names: tuple[str, ...]
    """Whose A record is the router's address: the home's name, "*." before it, hosts."""
    key: TsigKey
    port: int = 53
    ttl: int = 60
    interface: str | None = None
    """Outer interface; none: the one of the default route."""
    allow_private: bool = False
    """Whether a private address may be registered."""


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    en: EnConfig | None = None
    router: RouterConfig | None = None
    ddns: DdnsConfig | None = None

    def need_en(self) -> EnConfig:
        if self.en is None:
            raise ConfigError(self.path, 1, 'no [en] section; expected one with home_domains = ["home.example.net"]')
        return self.en

    def need_router(self) -> RouterConfig:
        if self.router is None:
            raise ConfigError(self.path, 1, "no [router] section; expected one, which may be empty")
        return self.router

    def need_ddns(self) -> DdnsConfig:
        if self.ddns is None:
            raise ConfigError(self.path, 1, "no [ddns] section; expected one with server, zone, names and key")
        return self.ddns


class _Reader:
    """Checks the values of one section against what its settings expect."""

    def __init__(self, path: Path, text: str, section: str, values: dict[str, Any]) -> None:
        self._path = path
        self._text = text
        self._section = section
        self._values = values

    def error(self, key: str, expected: str) -> ConfigError:
        line = _line_of(self._text, self._section, key)
        found = f"{self._section}.{key} = {_shown(self._values[key])}"
        return ConfigError(self._path, line, f"{found}: expected {expected}")

    def take(self, key: str, convert: Callable[[Any], T], expected: str) -> T:
        try:
            return convert(self._values[key])
        except ConfigError:
            raise  # it names a file of its own, where the fault is
        except (ValueError, TypeError) as error:
            raise self.error(key, f"{expected}{f' ({error})' if str(error) else ''}") from None
        except NatfError as error:
            line = _line_of(self._text, self._section, key)
            raise ConfigError(self._path, line, f"{self._section}.{key}: {error}") from None

    def check_names(self, known: Iterable[str]) -> None:
        names = sorted(known)
        for key in self._values:
            if key not in names:
                line = _line_of(self._text, self._section, key)
                text = f"no setting {key!r} in [{self._section}]; expected one of {', '.join(names)}"
                raise ConfigError(self._path, line, text)


def _shown(value: Any) -> str:
    """`value` as a message can carry it: as TOML writes it where that differs most, and never long."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, tables nested as deep
        return "something huge"
    return text if len(text) <= _SHOWN_MAXIMUM else f"{text[:_SHOWN_MAXIMUM]}..."


def _line_of(text: str, *names: str) -> int:
    """The line that sets `names`, such as ("en", "mark"), for messages: tomllib does not keep it.

    Falls back to the line of the section, then to 1. Only a newline ends a line in TOML (str.splitlines knows more).
    """
    wanted = _unquoted(".".join(names))
    section, fallback = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            here = section = _unquoted(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            here = f"{section}.{_unquoted(assignment[1])}".lstrip(".")
        else:
            continue
        if f"{here}.".startswith(f"{wanted}."):
            return number
        if wanted.startswith(f"{here}."):
            fallback = number
    return fallback


def _unquoted(name: str) -> str:
    return re.sub(r"[\s\"']", "", name)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _interface(value: Any) -> str:
    # 15: IFNAMSIZ less its zero byte. A hyphen first would be an option to the commands the name is given to.
    if not re.fullmatch(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]{0,14}", _string(value)):
        raise ValueError
    return str(value)


def _path(value: Any) -> Path:
    path = Path(_string(value))
    if not path.is_absolute() or not value.isprintable():
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


_LONGEST = 1_000_000_000
"""Seconds, about 30 years: what anyone can mean by "for ever"."""


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST:
        raise ValueError
    return float(value)


def _choice(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return convert


def domain_name(value: Any) -> str:
    """A home domain as the wire carries it: lower-case A-labels, no dot at the end; or "*" for every domain."""
    text = _string(value)
    name = folded(text)
    if name is None:
        raise ValueError(f"{_shown(text)} is not ASCII; an international name is written in its xn-- form")
    if name != "*" and not is_written_domain(name):
        raise ValueError(f"{_shown(text)} is not a domain name of two labels or more")
    return name


def _domains(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(domain_name(item) for item in value)


def _addresses(value: Any) -> tuple[Address, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(parse_address(_string(item)) for item in value)


def _mark(value: Any) -> int:
    number = _integer(1, 255)(value)
    return number << 24


def _en_keys(value: Any) -> dict[str, Key]:
    if not isinstance(value, dict):
        raise TypeError
    keys = {domain_name(domain): load_key(_path(path)) for domain, path in value.items()}
    if "*" in keys:
        raise ValueError("a key belongs to one home domain, not to *")
    return keys


def _router_keys(value: Any) -> tuple[Key, ...]:
    if not isinstance(value, list):
        raise TypeError
    keys = tuple(load_key(_path(item)) for item in value)
    if len({key.ident for key in keys}) < len(keys):
        raise ValueError("two keys have the same id")
    return keys


def _record_names(value: Any) -> tuple[str, ...]:
    """Names with an A record each: host and domain names, of which the first label may be "*"."""
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(f"*.{domain_name(item[2:])}" if _string(item)[:2] == "*." else domain_name(item) for item in value)


def _one_address(value: Any) -> str:
    return format_address(parse_address(_string(value)))


_QUEUE = (_integer(1, 65535), "a number from 1 to 65535")
_POSITIVE = (_integer(1, 1 << 24), "a number from 1 to 16777216")
_DURATION = (_seconds, f"seconds, from 0 to {_LONGEST}")
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
    "control_queue": _QUEUE,
    "query_queue": _QUEUE,
    "gateway": (_boolean, "true or false"),
    "inside_queue": _QUEUE,
    "tun": _OUTER,
    "kernel_path": (_boolean, "true or false"),
    "mark": _OUR_MARK,
    "run_dir": _ABSOLUTE,
    "state_dir": _ABSOLUTE,
    "resolvers": (_addresses, 'a list of IPv4 addresses of DNS servers such as ["192.0.2.53"]'),
    "keys": (_en_keys, 'a table of home domain = "/absolute/path/of/key"'),
}

_ROUTER_SETTINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "interface": _OUTER,
    "act": _ABSOLUTE,
    "cookies": (_choice("load", "always", "never"), '"load", "always" or "never"'),
    "cookie_rate": _POSITIVE,
    "source_rate": (_integer(0, 1 << 24), "a number from 0 (no limit) to 16777216"),
    "require_key": (_boolean, "true or false"),
    "tell_unknown": (_boolean, "true or false"),
    "maximum_pending": (_integer(1, 65536), "a number from 1 to 65536"),
    "control_queue": _QUEUE,
    "capture_queue": _QUEUE,
    "tun": _OUTER,
    "route_table": (_integer(1, 252), "a routing table number from 1 to 252"),
    "mark": _OUR_MARK,
    "run_dir": _ABSOLUTE,
    "keys": (_router_keys, "a list of absolute paths of keys"),
}

_DDNS_SETTINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "server": (_one_address, "the IPv4 address of the zone's primary name server"),
    "port": _QUEUE,
    "zone": (domain_name, 'a zone such as "example.net"'),
    "names": (_record_names, 'a list of names such as ["home.example.net", "*.home.example.net"]'),
    "key": (lambda value: load_tsig_key(_path(value)), "the absolute path of a TSIG key file"),
    "ttl": (_integer(1, 86400), "seconds, from 1 to 86400"),
    "interface": _OUTER,
    "allow_private": (_boolean, "true or false"),
}

_SECTIONS = {"en": _EN_SETTINGS, "router": _ROUTER_SETTINGS, "ddns": _DDNS_SETTINGS}
_MUST_BE_SET = {
    "en": {"home_domains": 'home_domains = ["home.example.net"]'},
    "router": {},
    "ddns": {
        "server": 'server = "192.0.2.53"',
        "zone": 'zone = "example.net"',
        "names": 'names = ["home.example.net", "*.home.example.net"]',
        "key": 'key = "/usr/local/etc/natf-ddns.key"',
    },
}


def parse(text: str, path: Path) -> Config:
    """The configuration in `text`; ConfigError names `path`, the line and what was expected there."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, int("9" * 5000) raises another
        line = re.search(r"at line (\d+)", str(error))
        number = int(line[1]) if line else text.rstrip().count("\n") + 1
        raise ConfigError(path, number, f'not TOML: {error}; expected lines such as interface = "eth0"') from None
    for name, value in document.items():
        if problem := _problem_of_section(name, value):
            raise ConfigError(path, _line_of(text, name), problem)
    en, router, ddns = (_section(path, text, name, document) for name in _SECTIONS)
    config = Config(
        path,
        EnConfig(**en) if en is not None else None,
        RouterConfig(**router) if router is not None else None,
        DdnsConfig(**ddns) if ddns is not None else None,
    )
    _check_together(config, text)
    return config


def _problem_of_section(name: str, value: Any) -> str | None:
    if name in _SECTIONS:
        return (
            None if isinstance(value, dict) else f"{name} is not a section; expected one line [{name}] and its settings"
        )
    if isinstance(value, dict):
        return f"no section {name!r}; expected [en], [router] or [ddns]"
    return f"{name!r} stands outside the sections; expected it below [en], [router] or [ddns]"


def _section(path: Path, source: str, name: str, document: dict[str, Any]) -> dict[str, Any] | None:
    if name not in document:
        return None
    settings = _SECTIONS[name]
    reader = _Reader(path, source, name, document[name])
    reader.check_names(settings)
    for key, example in _MUST_BE_SET[name].items():
        if key not in document[name]:
            text = f"{name}.{key} is not set; expected for example {example}"
            raise ConfigError(path, _line_of(source, name), text)
    return {key: reader.take(key, *settings[key]) for key in document[name]}


def _check_together(config: Config, text: str) -> None:
    """What one setting alone cannot show."""
    en, router = config.en, config.router
    if en and en.minimum_ttl > en.maximum_ttl:
        problem = f"en.minimum_ttl ({en.minimum_ttl:g}) is above en.maximum_ttl ({en.maximum_ttl:g})"
        raise ConfigError(config.path, _later_line(text, "en.minimum_ttl", "en.maximum_ttl"), problem)
    _check_queues(config, text)
    for domain in en.keys if en and "*" not in en.home_domains else ():
        if en and domain not in en.home_domains:
            problem = f"en.keys has a key for {domain}; expected one of en.home_domains, {', '.join(en.home_domains)}"
            raise ConfigError(config.path, _line_of(text, "en", "keys", domain), problem)
    if router and router.require_key and not router.keys:
        problem = 'router.require_key is true but router.keys names no key; expected keys = ["/path/of/key"]'
        raise ConfigError(config.path, _line_of(text, "router", "require_key"), problem)
    _check_devices(config, text)
    _check_records(config, text)
    if en and router and en.inside_mark == router.mark:
        problem = f"router.mark is {router.mark >> 24}, the value after en.mark, which marks inside hosts' connections"
        raise ConfigError(config.path, _later_line(text, "en.mark", "router.mark"), f"{problem}; expected another")


def _check_devices(config: Config, text: str) -> None:
    """Two devices of one name would be one."""
    taken: dict[str, str] = {}
    for section, settings in (("en", config.en), ("router", config.router)):
        if settings and settings.tun == settings.interface:
            problem = f"{section}.tun and {section}.interface are both {settings.tun}"
            raise ConfigError(
                config.path, _line_of(text, section, "tun"), f"{problem}; expected a device name of our own for tun"
            )
        if settings and settings.tun in taken:
            problem = f"en.tun and router.tun are both {settings.tun}; expected a device name of its own for each"
            raise ConfigError(config.path, _later_line(text, "en.tun", "router.tun"), problem)
        if settings:
            taken[settings.tun] = section


def _check_records(config: Config, text: str) -> None:
    """A server is asked for one zone only."""
    ddns = config.ddns
    for name in ddns.names if ddns else ():
        if ddns and name != ddns.zone and not name.endswith(f".{ddns.zone}"):
            problem = f"ddns.names has {name}; expected names in ddns.zone, {ddns.zone}"
            raise ConfigError(config.path, _line_of(text, "ddns", "names"), problem)


_QUEUES = ("dns_queue", "out_queue", "in_queue", "inside_queue", "control_queue", "query_queue", "capture_queue")


def _check_queues(config: Config, text: str) -> None:
    """Two readers of one queue would get each other's packets."""
    taken: dict[int, str] = {}
    for section, settings in (("en", config.en), ("router", config.router)):
        for key in _QUEUES:
            number = getattr(settings, key, None)
            if number is None:
                continue
            name = f"{section}.{key}"
            if number in taken:
                problem = f"{taken[number]} and {name} are both {number}; expected a number of its own for each"
                raise ConfigError(config.path, _later_line(text, taken[number], name), problem)
            taken[number] = name


def _later_line(text: str, *settings: str) -> int:
    """Of settings that contradict each other one may be a default: the line that is there, or the later one."""
    return max(_line_of(text, *setting.split(".")) for setting in settings)


def load(path: Path) -> Config:
    """The configuration in the file `path`; NatfError if it cannot be read, ConfigError if it is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected the configuration file (--config names another)") from None
    try:
        return parse(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, line, f"found byte 0x{error.object[error.start]:02x}, expected UTF-8 text") from None


def settings_of(config: EnConfig | RouterConfig) -> dict[str, object]:
    """The settings in force, for `natf status`; keys by their ids only."""
    shown: dict[str, object] = {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        if setting.name == "keys":
            value = sorted(key.ident.hex() for key in (value.values() if isinstance(value, dict) else value))
        if setting.name == "resolvers":
            value = [format_address(address) for address in value]
        if setting.name == "mark":
            value >>= 24  # as it is written in the file
        shown[setting.name] = str(value) if isinstance(value, Path) else value
    return shown
