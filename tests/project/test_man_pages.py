"""The manual pages name every command, option and setting, and are mdoc(7) that mandoc(1) has nothing against."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from natf_bsd import config
from natf_bsd.cli import main
from natf_bsd.keys import make_key
from natf_bsd.tables import act
from natf_bsd.tsig import TsigKey

PAGES = Path(__file__).resolve().parents[2] / "docs" / "man"
NAMES = ("natf.8", "natf.toml.5", "natf.act.5")
REQUIRED = ("NAME", "DESCRIPTION", "FILES", "EXAMPLES", "SEE ALSO")
BLOCKS = {"Bl": "El", "Bd": "Ed", "Rs": "Re", "Oo": "Oc"}


def source(name: str) -> str:
    return (PAGES / name).read_text()


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_and_its_options_are_in_natf_8(words: str) -> None:
    entry = re.search(rf"^\.It Ic {words}(?: .*)?\n(?:(?!\.It |\.El).*\n)*", source("natf.8"), re.MULTILINE)
    assert entry, f"natf {words} is not in natf.8"
    for parameter in COMMANDS[words].params:
        if isinstance(parameter, click.Option):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert f"Fl {option.removeprefix('-')}" in entry[0], f"{option} of natf {words} is not in natf.8"


def test_every_option_of_all_commands_is_in_natf_8() -> None:
    text = source("natf.8")
    options = [option for parameter in main.params for option in parameter.opts]
    assert "--config" in options
    for option in options:
        assert re.search(rf"^\.It Fl (?:\w , )?{option.removeprefix('-')}\b", text, re.MULTILINE), option


def sections() -> list[str]:
    """Of natf.toml.5: what it says of [en], [router], [ddns]."""
    return re.split(r"^\.Ss Section \[\w+\].*\n", source("natf.toml.5"), flags=re.MULTILINE)[1:]


def test_every_setting_is_in_natf_toml_5_in_its_section() -> None:
    for part, section in zip(sections(), (config.EnConfig, config.RouterConfig, config.DdnsConfig), strict=True):
        named = set(re.findall(r"\w+", " ".join(re.findall(r"^\.It Va (.*)$", part, re.MULTILINE))))
        missing = {setting.name for setting in fields(section)} - named
        assert missing == set(), f"not in natf.toml.5, section of {section.__name__}"


def test_defaults_that_are_numbers_are_the_real_ones() -> None:
    ddns = config.DdnsConfig("", "", (), TsigKey("", "", b""))
    checked = 0
    for part, section in zip(sections(), (config.EnConfig(()), config.RouterConfig(), ddns), strict=True):
        entries = re.findall(r"^\.It Va (\w+)\n(?:(?!\.It ).*\n)*?Default: (\d+)\.\n", part, re.MULTILINE)
        for name, number in entries:
            if hasattr(section, name) and name != "mark":
                assert getattr(section, name) == int(number), name
                checked += 1
    assert checked >= 10


def test_places_on_freebsd_are_in_configuration_md_too() -> None:
    table = (PAGES.parent / "configuration.md").read_text()
    entry = r"^\.It Va (\w+)\n(?:(?!\.It ).*\n)*?Default:\n\.Pa (\S+) \.\n"
    places = re.findall(entry, source("natf.toml.5"), re.MULTILINE)
    assert {name for name, _ in places} == {"run_dir", "state_dir", "act"}
    for name, place in places:
        assert re.search(rf"^\| `{name}` \|.*`{place}`", table, re.MULTILINE), name


@pytest.mark.parametrize(
    "text", re.findall(r"^\[(?:en|router)\]\n(?:(?!\.Ed).*\n)+", source("natf.toml.5"), re.MULTILINE)
)
def test_examples_of_natf_toml_5_are_accepted(text: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    make_key(key)
    parsed = config.parse(text.replace("/usr/local/etc/natf.key", str(key)), Path("natf.toml"))
    assert parsed.en or parsed.router


def test_the_example_of_natf_act_5_is_a_table() -> None:
    [example] = re.findall(r"^\.Bd -literal.*\n((?:(?!\.Ed).*\n)+)", source("natf.act.5"), re.MULTILINE)
    assert [entry.name for entry in act.parse(example, "natf.act")] == ["alice", "bob", "eve"]
    assert f"at most {act.MAXIMUM_LINES} lines" in source("natf.act.5")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_built_as_mdoc_wants_it(name: str) -> None:
    """For machines without mandoc: the prologue, the sections' order, blocks that are closed."""
    lines = source(name).splitlines()
    title, section = name.rsplit(".", 1)
    assert [line.split()[0] for line in lines[:3]] == [".Dd", ".Dt", ".Os"]
    assert lines[1] == f".Dt {title.upper()} {section}"
    sections = [line.removeprefix(".Sh ") for line in lines if line.startswith(".Sh ")]
    assert [wanted for wanted in sections if wanted in REQUIRED] == list(REQUIRED)
    for begin, end in BLOCKS.items():
        words = " ".join(line for line in lines if line.startswith(".")).replace(".", " ").split()
        assert words.count(begin) == words.count(end), begin
    assert not [line for line in lines if not line or line != line.rstrip() or "\t" in line]


@pytest.mark.parametrize("name", NAMES)
def test_mandoc_has_nothing_against_a_page(name: str) -> None:
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed")
    lint = subprocess.run(["mandoc", "-T", "lint", PAGES / name], capture_output=True, text=True, check=False)
    # Where the pages are not installed, those they refer to are not found.
    findings = [line for line in lint.stdout.splitlines() if "referenced manual not found" not in line]
    assert findings == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_refers_to_no_page_of_ours_that_is_not_there(name: str) -> None:
    ours = re.findall(r"^\.Xr (natf\S*) (\d)", source(name), re.MULTILINE)
    assert ours
    assert {f"{title}.{section}" for title, section in ours} <= set(NAMES)
