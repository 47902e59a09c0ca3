"""Section [ddns]: what must be set, and what each value may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from natf_bsd.config import parse
from natf_bsd.errors import ConfigError

PATH = Path("natf.toml")


@pytest.fixture
def lines(tmp_path: Path) -> dict[str, str]:
    """Settings that are good, as TOML."""
    key = tmp_path / "key"
    key.write_text('key "natf" { algorithm hmac-sha256; secret "c2VjcmV0"; };')
    key.chmod(0o600)
    return {
        "server": '"192.0.2.53"',
        "zone": '"Example.NET"',
        "names": '["home.example.net", "*.home.example.net"]',
        "key": f'"{key}"',
    }


def text(lines: dict[str, str]) -> str:
    return "[ddns]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())


def test_the_four_that_must_be_set_are_enough(lines: dict[str, str]) -> None:
    ddns = parse(text(lines), PATH).need_ddns()
    assert (ddns.server, ddns.zone, ddns.names) == (
        "192.0.2.53",
        "example.net",
        ("home.example.net", "*.home.example.net"),
    )
    assert (ddns.key.secret, ddns.port, ddns.ttl) == (b"secret", 53, 60)


@pytest.mark.parametrize("name", ["server", "zone", "names", "key"])
def test_one_of_them_that_is_missing_is_named(lines: dict[str, str], name: str) -> None:
    del lines[name]
    with pytest.raises(ConfigError, match=rf"natf.toml:1: ddns.{name} is not set; expected for example {name} = "):
        parse(text(lines), PATH)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("server", '"ns.example.net"', "natf.toml:2: ddns.server = 'ns.example.net': expected the IPv4 address"),
        ("names", "[]", "natf.toml:4: ddns.names = .*: expected a list of names"),
        ("names", '["*"]', r"natf.toml:4: ddns.names has \*; expected names in ddns.zone, example.net"),
        ("names", '["a.*.example.net"]', "natf.toml:4: ddns.names = "),
        ("names", '["home.example.org"]', "natf.toml:4: ddns.names has home.example.org; expected names in"),
        ("names", '["badexample.net"]', "natf.toml:4: ddns.names has badexample.net; expected names in"),
        ("key", '"/nowhere/key"', "natf.toml:5: ddns.key: /nowhere/key: No such file"),
        ("ttl", "0", "natf.toml:6: ddns.ttl = 0: expected seconds, from 1 to 86400"),
        ("port", "65536", "natf.toml:6: ddns.port = 65536: expected a number from 1 to 65535"),
        ("colour", "1", "natf.toml:6: no setting 'colour' in .ddns.; expected one of"),
    ],
)
def test_a_bad_value_is_told_with_its_line(lines: dict[str, str], name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(text(lines | {name: value}), PATH)


def test_without_the_section_it_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"natf.toml:1: no \[ddns\] section; expected one with server, zone, names"):
        parse("[router]\n", PATH).need_ddns()
