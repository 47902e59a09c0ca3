"""Faults of the whole file: syntax, sections, names, settings that contradict each other; each with its line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natf_bsd.config import _EN_SETTINGS, _ROUTER_SETTINGS, Config, load, parse
from natf_bsd.errors import ConfigError, NatfError

PATH = Path("natf.toml")
EN = '[en]\nhome_domains = ["home.example.net"]\n'


def refused(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[en\n", 1),
        (f"{EN}interface = eth0\n", 3),
        (f"{EN}\n\nmark 5\n", 5),
        (f"{EN}mark = 1\nmark = 2\n", 4),
        (f"{EN}[router]\n[en]\n", 4),
        (f'{EN}# a comment\ninterface = "eth0\n', 4),
        (f"{EN}\nquarantine =", 4),
        (f'{EN}interface = """\n\n', 3),
        (f"{EN}dns_queue = [1,\n2\n", 4),
        ("\ufeff" + EN, 1),
        (f"{EN}mark = {'9' * 5000}\n", 3),
        (f"{EN}mark = {'[' * 5000}\n", 3),
    ],
)
def test_what_is_not_toml_is_named_by_line(text, line):
    message = refused(text)
    assert message.startswith(f"natf.toml:{line}: not TOML: ")
    assert message.endswith('; expected lines such as interface = "eth0"')


def test_a_form_feed_or_line_separator_in_a_comment_does_not_shift_the_line():
    assert refused(f"# \u2028 \x85\n{EN}mark = 0\n").startswith("natf.toml:4: en.mark = 0: ")


@pytest.mark.parametrize(("section", "known"), [("en", _EN_SETTINGS), ("router", _ROUTER_SETTINGS)])
def test_an_unknown_setting_is_named_with_those_there_are(section, known):
    text = f"[router]\n\n[en]\n{EN[5:]}" if section == "en" else f"{EN}\n[router]\n\n"
    lines = text.count("\n") + 1
    message = refused(f"{text}colour = 'red'\n")
    assert (
        message == f"natf.toml:{lines}: no setting 'colour' in [{section}]; expected one of {', '.join(sorted(known))}"
    )


def test_a_setting_of_the_other_section_is_unknown():
    assert refused("[router]\nhome_domains = []").startswith("natf.toml:2: no setting 'home_domains' in [router]; ")


def test_a_name_that_would_break_the_line_does_not():
    assert refused(f'{EN}"a\\nb" = 1').startswith("natf.toml:1: no setting 'a\\nb' in [en]; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[eN]\n", "natf.toml:2: no section 'eN'; expected [en], [router] or [ddns]"),
        ("[router]\n[ routers . x ] # c\n", "natf.toml:2: no section 'routers'; expected [en], [router] or [ddns]"),
        ("\nrouters.x = 1\n", "natf.toml:2: no section 'routers'; expected [en], [router] or [ddns]"),
        (
            '# c\ninterface = "eth0"\n[router]\n',
            "natf.toml:2: 'interface' stands outside the sections; expected it below [en], [router] or [ddns]",
        ),
        ("\n[[en]]\n", "natf.toml:2: en is not a section; expected one line [en] and its settings"),
        ("\n\nrouter = 5\n", "natf.toml:3: router is not a section; expected one line [router] and its settings"),
    ],
)
def test_what_is_no_section_of_ours_is_named(text, message):
    assert refused(text) == message


def test_home_domains_must_be_set():
    assert refused("[router]\n\n[en]\nmark = 5\n") == (
        'natf.toml:3: en.home_domains is not set; expected for example home_domains = ["home.example.net"]'
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[ en ]\n\nmark=0", 3),
        ("['en'] # mark = 1\n\"mark\" = 0", 2),
        ("\nen.mark = 0", 2),
        ("\nen = { mark = 0 }", 2),
        ('[router]\nmark = 5\n[en]\nhome_domains = [\n"a.b",\n]\nmark = 0', 7),
        ("\n[en.keys]\n[en]\nmark = 0", 4),
    ],
)
def test_the_line_is_found_however_the_setting_is_written(text, line):
    """home_domains is missing in most, which is said only after every name and before every value."""
    if "home_domains" not in text:
        text = text.replace("mark = 0", 'mark = 0, home_domains = ["a.b"]') if "{" in text else text
        text += "" if "{" in text else f'\n{"en." if "[" not in text else ""}home_domains = ["a.b"]'
    assert refused(text).startswith(f"natf.toml:{line}: en.mark = 0: expected a number from 1 to 255")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("minimum_ttl = 10\nmaximum_ttl = 9", "4: en.minimum_ttl (10) is above en.maximum_ttl (9)"),
        ("maximum_ttl = 9\nmark = 5", "3: en.minimum_ttl (60) is above en.maximum_ttl (9)"),
        ("mark = 5\nminimum_ttl = 1e6", "4: en.minimum_ttl (1e+06) is above en.maximum_ttl (86400)"),
        (
            "mark = 5\nin_queue = 8710",
            "4: en.dns_queue and en.in_queue are both 8710; expected a number of its own for each",
        ),
        (
            "dns_queue = 8711\nmark = 5",
            "3: en.dns_queue and en.out_queue are both 8711; expected a number of its own for each",
        ),
        (
            "[router]\ncontrol_queue = 8712",
            "4: en.in_queue and router.control_queue are both 8712; expected a number of its own for each",
        ),
        (
            "[router]\nrequire_key = true",
            '4: router.require_key is true but router.keys names no key; expected keys = ["/path/of/key"]',
        ),
        (
            '[router]\ninterface = "eth0"\ntun = "eth0"',
            "5: router.tun and router.interface are both eth0; expected a device name of our own for tun",
        ),
        (
            'tun = "eth0"\ninterface = "eth0"',
            "3: en.tun and en.interface are both eth0; expected a device name of our own for tun",
        ),
        (
            '[router]\ntun = "natf1"',
            "4: en.tun and router.tun are both natf1; expected a device name of its own for each",
        ),
        (
            "[router]\ncontrol_queue = 8713",
            "4: en.inside_queue and router.control_queue are both 8713; expected a number of its own for each",
        ),
        (
            "mark = 255\n[router]\nmark = 1",
            "5: router.mark is 1, the value after en.mark, which marks inside hosts' connections; expected another",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named_where_they_are_set(lines, message):
    assert refused(EN + lines) == f"natf.toml:{message}"


def test_equal_queue_numbers_on_different_hosts_are_no_contradiction():
    assert parse("[router]\ncontrol_queue = 8710", PATH).need_router().control_queue == 8710
    assert parse(f"{EN}minimum_ttl = 9\nmaximum_ttl = 9", PATH).need_en().maximum_ttl == 9


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("false", "false"),
        ("0x" + "f" * 5000, "something huge"),
        (f'"{"x" * 100}"', f"'{'x' * 79}..."),
        ('"a\\nb"', r"'a\nb'"),
    ],
)
def test_a_strange_value_is_shown_short_and_on_one_line(value, shown):
    assert refused(f"{EN}minimum_ttl = {value}").startswith(f"natf.toml:3: en.minimum_ttl = {shown}: expected seconds")


def test_a_table_nested_too_deeply_to_be_shown_is_refused_all_the_same():
    assert refused(f"{EN}minimum_ttl{'.x' * 5000} = 1").startswith("natf.toml:3: ")


def test_a_file_is_loaded(tmp_path):
    file = tmp_path / "natf.toml"
    file.write_text(EN)
    assert load(file) == parse(EN, file)


def test_a_file_of_another_system_is_loaded(tmp_path):
    """A byte order mark, and carriage returns."""
    file = tmp_path / "natf.toml"
    file.write_bytes(b"\xef\xbb\xbf" + EN.replace("\n", "\r\n").encode())
    assert load(file) == parse(EN, file)


def test_a_missing_file_says_how_to_name_another(tmp_path):
    with pytest.raises(NatfError) as caught:
        load(tmp_path / "none.toml")
    assert str(caught.value) == (
        f"{tmp_path}/none.toml: No such file or directory; expected the configuration file (--config names another)"
    )


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(NatfError, match="Is a directory; expected the configuration file"):
        load(tmp_path)


def test_text_that_is_not_utf_8_is_named_by_line(tmp_path):
    file = tmp_path / "natf.toml"
    file.write_bytes(EN.encode() + b"# caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:3: found byte 0xe9, expected UTF-8 text"


def outcome(text):
    """A configuration or a one-line error in a line that is there; whatever else it raises fails the test."""
    try:
        config = parse(text, PATH)
    except ConfigError as error:
        assert 1 <= error.line <= text.count("\n") + 1
        assert str(error).startswith(f"natf.toml:{error.line}: ")
        assert len(str(error).splitlines()) == 1
        return error
    assert isinstance(config, Config)
    return config


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_configuration_or_an_error(text):
    outcome(text)


TOML_VALUES = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(lambda number: repr(number) if number == number else "nan"),
    st.sampled_from(
        ["true", "false", "inf", "-inf", "1979-05-27", "07:32:00", "1e400", "{}", "[]", "[[]]", "{ a.b = 1 }"]
    ),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="'", min_codepoint=32), max_size=20).map(
        "'{}'".format
    ),
    st.lists(st.sampled_from(["'a.b'", "'*'", "'/x'", "5", "[]"]), max_size=3).map(
        lambda items: f"[{','.join(items)}]"
    ),
)
LINES = st.one_of(
    st.sampled_from(["[en]", "[router]", "[en.keys]", "[x]", "# c", ""]),
    st.tuples(st.sampled_from(sorted({*_EN_SETTINGS, *_ROUTER_SETTINGS, "x"})), TOML_VALUES).map(" = ".join),
)


@settings(deadline=None)
@given(st.lists(LINES, max_size=8, unique_by=lambda line: line.split(" = ")[0]))
def test_any_settings_are_a_configuration_or_an_error(lines):
    outcome("\n".join(lines))


@settings(deadline=None)
@given(st.sampled_from(sorted(_EN_SETTINGS.keys() - {"home_domains"})), TOML_VALUES)
def test_any_value_of_the_external_node_is_taken_or_named(name, value):
    result = outcome(f"{EN}{name} = {value}")
    assert isinstance(result, Config) or result.line == 3


@settings(deadline=None)
@given(st.sampled_from(sorted(_ROUTER_SETTINGS)), TOML_VALUES)
def test_any_value_of_the_router_is_taken_or_named(name, value):
    result = outcome(f"[router]\n\n{name} = {value}")
    assert isinstance(result, Config) or result.line == 3


@settings(deadline=None)
@given(st.binary())
def test_any_file_is_a_configuration_or_an_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(data)
    try:
        assert isinstance(load(file), Config)
    except ConfigError as error:
        assert error.path == file
