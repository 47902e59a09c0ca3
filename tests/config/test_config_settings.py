"""Every setting of the configuration file: what it takes, and what it says to a value it does not take."""

from dataclasses import fields
from pathlib import Path

import pytest

from natf_bsd.config import (
    _EN_SETTINGS,
    _ROUTER_SETTINGS,
    RUN_DIR,
    STATE_DIR,
    Config,
    EnConfig,
    RouterConfig,
    domain_name,
    parse,
    settings_of,
)
from natf_bsd.errors import ConfigError

PATH = Path("/etc/natf.toml")
HOME = 'home_domains = ["home.example.net"]'

QUEUES = ["1", "65535"]
NO_QUEUES = ["0", "65536", "-1", '"8710"', "8710.0", "true", "[8710]"]
DURATIONS = ["0", "1.5", "1000000000"]
NO_DURATIONS = ["-1", "1000000001", "inf", "nan", '"60"', "true", "[]"]
INTERFACES = ['"eth0"', '"br-lan"', '"eth0.100"', '"a23456789012345"']
NO_INTERFACES = ['""', '"a234567890123456"', '"eth 0"', '"eth/0"', '"-i"', '"eth+"', "5", "true", '["eth0"]']
PATHS = ['"/a/b"', '"/a b"']
NO_PATHS = ['"a/b"', '""', '"~/natf"', '"/a\\u0000b"', '"/a\\nb"', "5", "[]"]
FLAGS = ["true", "false"]
NO_FLAGS = ["0", "1", '"true"', "[]"]
COUNTS = ["1", "16777216"]
NO_COUNTS = ["0", "16777217", "1.0", "true", '"1"']
MARKS = ["1", "255"]
NO_MARKS = ["0", "256", "0x4e000000", "true", '"1"']

EN_GOOD = {
    "home_domains": ['["a.b"]', '["*"]', '["home.example.net.", "X.Y"]', '["xn--bcher-kva.example"]'],
    "interface": INTERFACES,
    "virtual_prefix": ["240", "254"],
    "on_silence": ['"unreachable"', '"direct"'],
    "minimum_ttl": ["0", "1.5", "86400"],
    "maximum_ttl": ["60", "1000000000"],
    "quarantine": DURATIONS,
    "maximum_names": COUNTS,
    "maximum_flows": COUNTS,
    "dns_queue": QUEUES,
    "out_queue": QUEUES,
    "in_queue": QUEUES,
    "control_queue": QUEUES,
    "query_queue": QUEUES,
    "gateway": FLAGS,
    "inside_queue": QUEUES,
    "tun": INTERFACES,
    "kernel_path": FLAGS,
    "mark": MARKS,
    "run_dir": PATHS,
    "state_dir": PATHS,
    "resolvers": ['["192.0.2.53"]', '["127.0.0.1", "10.0.0.1"]'],
    "keys": ["{}"],
}
EN_BAD = {
    "home_domains": [
        "[]",
        '"home.example.net"',
        "[5]",
        '["localhost"]',
        '[""]',
        '["."]',
        '["a..b"]',
        '["-a.b"]',
        '["a b.c"]',
        '["bücher.example"]',
        '["\\u212Aids.example"]',
        '["a.b.."]',
        f'["{"a" * 64}.b"]',
        f'["{"a." * 127}b"]',
    ],
    "interface": NO_INTERFACES,
    "virtual_prefix": ["239", "255", '"240"', "240.0", "true"],
    "on_silence": ['"Direct"', '""', "true", "[]"],
    "minimum_ttl": NO_DURATIONS,
    "maximum_ttl": NO_DURATIONS,
    "quarantine": NO_DURATIONS,
    "maximum_names": NO_COUNTS,
    "maximum_flows": NO_COUNTS,
    "dns_queue": NO_QUEUES,
    "out_queue": NO_QUEUES,
    "in_queue": NO_QUEUES,
    "control_queue": NO_QUEUES,
    "query_queue": NO_QUEUES,
    "gateway": NO_FLAGS,
    "inside_queue": NO_QUEUES,
    "tun": NO_INTERFACES,
    "kernel_path": NO_FLAGS,
    "mark": NO_MARKS,
    "run_dir": NO_PATHS,
    "state_dir": NO_PATHS,
    "resolvers": ["[]", '"192.0.2.53"', "[5]", '["::1"]', '["192.0.2.053"]', '["192.0.2.53:53"]', '["dns.example"]'],
    "keys": ["[]", '"/a"', "5", '{ "a.b" = 5 }', '{ "a.b" = "relative" }', '{ "a" = "/key" }'],
}
ROUTER_GOOD = {
    "interface": INTERFACES,
    "act": PATHS,
    "cookies": ['"load"', '"always"', '"never"'],
    "cookie_rate": COUNTS,
    "source_rate": ["0", "1", "16777216"],
    "require_key": ["false"],
    "tell_unknown": FLAGS,
    "maximum_pending": ["1", "65536"],
    "control_queue": QUEUES,
    "capture_queue": QUEUES,
    "tun": INTERFACES,
    "route_table": ["1", "252"],
    "mark": MARKS,
    "run_dir": PATHS,
    "keys": ["[]"],
}
ROUTER_BAD = {
    "interface": NO_INTERFACES,
    "act": NO_PATHS,
    "cookies": ['"sometimes"', "true", "[]"],
    "cookie_rate": NO_COUNTS,
    "source_rate": ["-1", "16777217", "1.5", '"1"', "true"],
    "require_key": NO_FLAGS,
    "tell_unknown": NO_FLAGS,
    "maximum_pending": ["0", "65537", "true"],
    "control_queue": NO_QUEUES,
    "capture_queue": NO_QUEUES,
    "tun": NO_INTERFACES,
    "route_table": ["0", "253", "255", '"main"'],
    "mark": NO_MARKS,
    "run_dir": NO_PATHS,
    "keys": ["{}", '"/a"', "5", "[5]", '["relative"]'],
}


def cases(table):
    return [(name, value) for name, values in table.items() for value in values]


def en_text(name, value):
    """The setting is on line 4, or 3 if it is the one that must be there."""
    lines = ["# external node", "[en]", f"{name} = {value}"]
    if name != "home_domains":
        lines.insert(2, HOME)
    return "\n".join(lines)


def router_text(name, value):
    return f"[router]\n# next is line 3\n{name} = {value}\n"


def test_the_tables_above_and_the_reader_know_every_setting():
    assert set(EN_GOOD) == set(EN_BAD) == set(_EN_SETTINGS) == {field.name for field in fields(EnConfig)}
    assert (
        set(ROUTER_GOOD) == set(ROUTER_BAD) == set(_ROUTER_SETTINGS) == {field.name for field in fields(RouterConfig)}
    )


@pytest.mark.parametrize(("name", "value"), cases(EN_GOOD))
def test_the_external_node_takes(name, value):
    assert parse(en_text(name, value), PATH).need_en()


@pytest.mark.parametrize(("name", "value"), cases(ROUTER_GOOD))
def test_the_router_takes(name, value):
    assert parse(router_text(name, value), PATH).need_router()


@pytest.mark.parametrize(("name", "value"), cases(EN_BAD))
def test_the_external_node_refuses(name, value):
    with pytest.raises(ConfigError) as caught:
        parse(en_text(name, value), PATH)
    check_message(caught.value, f"en.{name}", 3 if name == "home_domains" else 4, _EN_SETTINGS[name][1])


@pytest.mark.parametrize(("name", "value"), cases(ROUTER_BAD))
def test_the_router_refuses(name, value):
    with pytest.raises(ConfigError) as caught:
        parse(router_text(name, value), PATH)
    check_message(caught.value, f"router.{name}", 3, _ROUTER_SETTINGS[name][1])


def check_message(error, name, line, expected):
    """File, line, setting, value and what was expected, in one line."""
    text = str(error)
    assert text.startswith(f"{PATH}:{line}: {name} = ")
    assert f": expected {expected}" in text
    assert "\n" not in text
    assert (error.path, error.line) == (PATH, line)


def test_values_arrive_in_their_types():
    config = parse(
        """
        [en]
        home_domains = ["Home.Example.NET.", "*"]
        interface = "eth0"
        virtual_prefix = 241
        on_silence = "direct"
        minimum_ttl = 5
        quarantine = 2.5
        mark = 0x4f
        run_dir = "/tmp/run"
        [router]
        act = "/tmp/act"
        cookies = "always"
        tell_unknown = true
        """,
        PATH,
    )
    en, router = config.need_en(), config.need_router()
    assert en.home_domains == ("home.example.net", "*")
    assert (en.interface, en.virtual_prefix, en.on_silence) == ("eth0", 241, "direct")
    assert (en.minimum_ttl, en.quarantine) == (5.0, 2.5)
    assert isinstance(en.minimum_ttl, float)
    assert en.mark == 0x4F000000
    assert (en.run_dir, router.act) == (Path("/tmp/run"), Path("/tmp/act"))
    assert (router.cookies, router.tell_unknown, router.require_key) == ("always", True, False)


def test_what_is_not_set_has_its_default():
    config = parse(f"[en]\n{HOME}\n[router]\n", PATH)
    assert config == Config(PATH, EnConfig(("home.example.net",)), RouterConfig())
    assert config.need_en().run_dir == config.need_router().run_dir == RUN_DIR
    assert config.need_en().state_dir == STATE_DIR
    assert config.need_en().mark == config.need_router().mark == 78 << 24


def test_either_section_may_be_missing():
    assert parse("", PATH) == Config(PATH)
    assert parse("[router]", PATH).en is None
    assert parse(f"[en]\n{HOME}", PATH).router is None


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_missing_section_is_named_when_it_is_needed(role):
    with pytest.raises(ConfigError, match=rf"^/etc/natf.toml:1: no \[{role}\] section; expected one"):
        getattr(Config(PATH), f"need_{role}")()


def test_settings_are_shown_as_they_are_written():
    shown = settings_of(parse(f"[en]\n{HOME}\nmark = 79\nrun_dir = '/r'\n", PATH).need_en())
    assert set(shown) == set(_EN_SETTINGS)
    assert (shown["mark"], shown["run_dir"], shown["keys"]) == (79, "/r", [])
    assert shown["home_domains"] == ("home.example.net",)


@pytest.mark.parametrize(
    ("text", "name"),
    [("*", "*"), ("*.", "*"), ("Home.Example.NET", "home.example.net"), ("a_b.c-d.", "a_b.c-d"), ("x.y", "x.y")],
)
def test_a_domain_is_folded_to_what_the_wire_carries(text, name):
    assert domain_name(text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("localhost", "'localhost' is not a domain name of two labels or more"),
        ("bücher.example", "'bücher.example' is not ASCII; an international name is written in its xn-- form"),
    ],
)
def test_a_bad_domain_is_named_with_the_reason(text, reason):
    with pytest.raises(ConfigError) as caught:
        parse(f'[en]\nhome_domains = ["good.example.net", "{text}"]', PATH)
    assert str(caught.value).endswith(f"({reason})")
