"""What the README tells people to type is typed here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from natf_bsd import config
from natf_bsd.cli import main
from natf_bsd.ops import act_file

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]


def typed(program: str) -> list[list[str]]:
    """The arguments of every use of `program` in the README's command lines."""
    pattern = re.compile(rf"(?:^|[\s/]){program} ([^&;|#>]*)")
    return [shlex.split(match[1]) for line in COMMANDS for match in pattern.finditer(line)]


def test_every_make_target_exists() -> None:
    targets = {arguments[0] for arguments in typed("make")}
    assert targets >= {"demo", "test"}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("text", re.findall(r"printf '(.*)' > (?:/usr/local)?/etc/natf.toml", README))
def test_every_configuration_is_accepted(text: str) -> None:
    parsed = config.parse(text.encode().decode("unicode_escape"), Path("natf.toml"))
    assert parsed.en or parsed.router


def test_the_table_s_first_line_is_made_as_told(tmp_path: Path) -> None:
    found = [found for found in typed("natf") if found[:2] == ["act", "add"]]
    assert len(found) == 2, "Linux and FreeBSD"
    for arguments in found:
        table = tmp_path / "natf.act"
        table.write_text("")
        done = CliRunner().invoke(main, ["act", "--file", str(table), *arguments[1:]])
        assert done.exit_code == 0, done.output
        [entry] = act_file.load(table)
        assert entry.permits(6, 22)
        assert not entry.permits(6, 23)


def test_every_command_exists() -> None:
    """As far as its words go: what stands behind them needs root or a lab."""
    commands = {tuple(arguments[:2]) for arguments in typed("natf")}
    assert ("router", "run") in commands
    for words in commands:
        known = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        done = CliRunner().invoke(main, [*known, "--help"])
        assert done.exit_code == 0, done.output


def test_freebsd_gets_the_packages_the_machines_of_vagrant_get() -> None:
    """pip needs setuptools and wheel too where it fetches nothing."""
    [packages] = re.findall(r"pkg install (.*)", README)
    machines = json.loads((ROOT / "vagrant" / "machines.json").read_text())["packages"]
    only_there = {"python3", "py311-dpkt", "curl"}
    assert set(packages.split()) == set(machines) - only_there


@pytest.mark.parametrize("folder", re.findall(r"\| `(natf_bsd/\w+/)` \|", README))
def test_every_folder_named_is_there(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_test_a_document_names_is_there(document: Path) -> None:
    """A name alone, `::test_...`, is of the file named before it."""
    file = ""
    for path, name in re.findall(r"(tests/\S+\.py)?::(test_\w+)", document.read_text()):
        file = path or file
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    en, router = text.split("## [router]")
    for part, section in ((en, config.EnConfig), (router, config.RouterConfig)):
        for setting in fields(section):
            assert f"`{setting.name}`" in part, f"{setting.name} is not in docs/configuration.md"
