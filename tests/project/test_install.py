"""`make install`, `make deinstall`, and the port skeleton, which must agree with them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

import natf_bsd
from natf_bsd import config
from natf_bsd.tables import act

ROOT = Path(__file__).resolve().parents[2]
PORT = ROOT / "ports" / "net" / "natf_bsd"
MAKES = [make for make in ("make", "bmake") if shutil.which(make)]

FILES = {
    "libexec/natf/natf.subr": 0o444,
    "etc/natf.toml.sample": 0o644,
    "etc/natf.act.sample": 0o600,
    "share/man/man8/natf.8": 0o444,
    "share/man/man5/natf.toml.5": 0o444,
    "share/man/man5/natf.act.5": 0o444,
}
SCRIPTS = {f"etc/rc.d/natf_{name}": 0o555 for name in ("ddns", "en", "router")}
CONFIGURATION = {"etc/natf.toml": 0o644, "etc/natf.act": 0o600}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "PREFIX"}
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def installed(root: Path) -> dict[str, int]:
    """Files below `root` with their modes."""
    files = (path for path in root.rglob("*") if not path.is_dir())
    return {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in files}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(("arguments", "prefix"), [((), "usr/local"), (("PREFIX=/opt/natf",), "opt/natf")])
def test_install_puts_everything_where_freebsd_looks_and_deinstall_takes_it_back(
    tmp_path: Path, make: str, arguments: tuple[str, ...], prefix: str
) -> None:
    done = run(make, "install", f"DESTDIR={tmp_path}", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert installed(tmp_path / prefix) == FILES | SCRIPTS | CONFIGURATION
    assert len(installed(tmp_path)) == len(FILES | SCRIPTS | CONFIGURATION)
    done = run(make, "deinstall", f"DESTDIR={tmp_path}", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert installed(tmp_path) == {}
    assert not (tmp_path / prefix / "libexec" / "natf").exists()


def test_the_scripts_know_the_prefix_they_are_installed_under(tmp_path: Path) -> None:
    run("make", "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/natf")
    for name in FILES | SCRIPTS | CONFIGURATION:
        text = (tmp_path / "opt/natf" / name).read_text()
        assert "%%" not in text
        assert str(tmp_path) not in text
    assert 'natf="/opt/natf/bin/natf"' in (tmp_path / "opt/natf/libexec/natf/natf.subr").read_text()


def test_changed_configuration_outlives_another_install_and_a_deinstall(tmp_path: Path) -> None:
    run("make", "install", f"DESTDIR={tmp_path}")
    changed = tmp_path / "usr/local/etc/natf.toml"
    changed.write_text("[router]\n")
    assert run("make", "install", f"DESTDIR={tmp_path}").returncode == 0
    done = run("make", "deinstall", f"DESTDIR={tmp_path}")
    assert (done.returncode, done.stdout) == (0, f"{changed} was changed and stays\n")
    assert installed(tmp_path) == {"usr/local/etc/natf.toml": 0o644}
    assert changed.read_text() == "[router]\n"


def test_deinstall_of_what_was_never_installed_is_no_error(tmp_path: Path) -> None:
    assert run("make", "deinstall", f"DESTDIR={tmp_path}").returncode == 0


@pytest.mark.parametrize("verb", ["install", "deinstall"])
def test_elsewhere_than_on_freebsd_nothing_is_put_into_the_system(tmp_path: Path, verb: str) -> None:
    uname = tmp_path / "uname"
    uname.write_text("#!/bin/sh\necho Linux\n")
    uname.chmod(0o755)
    prefix = tmp_path / "prefix"
    done = run("make", verb, f"PREFIX={prefix}", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode != 0
    assert "which FreeBSD alone has; here: pip install ." in done.stderr
    assert not prefix.exists()


def test_the_sample_configuration_is_valid_as_it_is_and_with_every_comment_taken_away(tmp_path: Path) -> None:
    text = (ROOT / "etc" / "natf.toml.sample").read_text().replace("%%PREFIX%%", "/usr/local")
    assert config.parse(text, Path("natf.toml")) == config.Config(Path("natf.toml"))
    key = tmp_path / "key"
    key.write_text('key "natf" { algorithm hmac-sha256; secret "c2VjcmV0"; };')
    key.chmod(0o600)
    text = text.replace("/usr/local/etc/natf-ddns.key", str(key))
    parsed = config.parse(re.sub(r"^#(?! )", "", text, flags=re.MULTILINE), Path("natf.toml"))
    assert parsed.need_ddns().names == ("home.example.net", "*.home.example.net")
    assert parsed.need_en().home_domains == ("home.example.net",)
    assert parsed.need_router().act == Path("/usr/local/etc/natf.act")


def test_the_sample_table_denies_everybody_until_its_comments_are_taken_away() -> None:
    text = (ROOT / "etc" / "natf.act.sample").read_text()
    assert len(act.parse(text, "natf.act")) == 0
    table = act.parse(re.sub(r"^#(?! )", "", text, flags=re.MULTILINE), "natf.act")
    assert [entry.name for entry in table] == ["alice", "bob", "eve"]


def variables() -> dict[str, str]:
    """Of the port's Makefile, continued lines joined."""
    text = (PORT / "Makefile").read_text().replace("\\\n", " ")
    found = re.findall(r"^([A-Z_]+)\+?=[ \t]*(.*)$", text, re.MULTILINE)
    return {name: " ".join(value.split()) for name, value in found}


def test_the_port_has_the_version_of_the_package() -> None:
    assert variables()["DISTVERSION"] == natf_bsd.__version__


def test_the_packing_list_is_what_install_installs() -> None:
    """But the scripts, which USE_RC_SUBR lists, and the configuration itself, which @sample makes from the samples."""
    lines = (PORT / "pkg-plist").read_text().splitlines()
    files = {re.sub(r"^@sample(\(.*\))? ", "", line): line for line in lines}
    expected = {f"{name}.gz" if "/man/" in name else name: mode for name, mode in FILES.items()}
    assert set(files) == set(expected)
    assert variables()["USE_RC_SUBR"].split() == [Path(name).name for name in SCRIPTS]
    for name, mode in CONFIGURATION.items():
        assert files[f"{name}.sample"].startswith("@sample(,,600) " if mode == 0o600 else "@sample ")


def test_the_port_s_own_step_installs_what_the_framework_does_not(tmp_path: Path) -> None:
    assert "tools/install files" in (PORT / "Makefile").read_text()
    run("sh", "tools/install", "files", DESTDIR=str(tmp_path), PREFIX="/usr/local")
    assert installed(tmp_path / "usr/local") == FILES


def test_the_port_s_scripts_are_ours() -> None:
    for name in variables()["USE_RC_SUBR"].split():
        assert (PORT / "files" / f"{name}.in").resolve() == ROOT / "rc.d" / name


def test_the_port_depends_on_what_setup_cfg_requires() -> None:
    setup = (ROOT / "setup.cfg").read_text()
    [block] = re.findall(r"^install_requires =\n((?: {4}.*\n)+)", setup, re.MULTILINE)
    required = {tuple(line.strip().split(" >= ")) for line in block.splitlines()}
    depends = re.findall(r"\$\{PYTHON_PKGNAMEPREFIX\}([\w-]+)>=([\d.]+):\w+/py-\1@", variables()["RUN_DEPENDS"])
    assert set(depends) == required
    assert f"python:{re.findall(r'python_requires = >= ([0-9.]+)', setup)[0]}+" in variables()["USES"]
