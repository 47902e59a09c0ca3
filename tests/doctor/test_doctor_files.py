"""The configuration and the access control table."""

import os
import pathlib

import pytest

from natf_bsd import config as configuration
from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.doctor import files
from natf_bsd.doctor.finding import Finding, Severity


@pytest.fixture
def path(tmp_path):
    return tmp_path / "natf.toml"


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("[router]\n", "[router]"),
        ('[en]\nhome_domains = ["home.example.net"]\n', "[en]"),
        ('[en]\nhome_domains = ["*"]\n[router]\n', "[en] and [router]"),
    ],
)
def test_a_good_configuration_says_which_roles_it_has(path, text, roles):
    path.write_text(text)
    config, found = files.settings(path)
    assert found == Finding(Severity.OK, "configuration", f"{path} has {roles}")
    assert config == configuration.load(path)


def test_a_host_without_one_is_looked_at_for_both_roles(path, monkeypatch):
    monkeypatch.setattr(configuration, "DEFAULT_PATH", path)
    config, found = files.settings(path)
    assert (config.en, config.router) == (EnConfig(home_domains=("*",)), RouterConfig())
    assert found.severity is Severity.NOTE
    assert found.found == f"there is no {path}; this host is looked at for both roles, with the defaults"


def test_one_that_was_named_and_is_not_there_is_an_error(path):
    config, found = files.settings(path)
    assert found.severity is Severity.ERROR
    assert found.found.startswith(f"{path}: No such file or directory; ")
    assert config.en and config.router


def test_a_faulty_one_is_told_with_its_line(path):
    path.write_text("[router]\ncookies = 7\n")
    _, found = files.settings(path)
    assert (found.severity, found.remedy) == (Severity.ERROR, f"mend {path}")
    assert found.found.startswith(f"{path}:2: ")


def test_one_without_a_role_is_an_error(path):
    path.write_text("")
    config, found = files.settings(path)
    assert found.severity is Severity.ERROR
    assert config.en and config.router


def test_one_that_only_root_may_read_is_noted(path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    path.write_text("[router]\n")
    monkeypatch.setattr(type(path), "read_bytes", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    _, found = files.settings(path)
    assert (found.severity, found.remedy) == (Severity.NOTE, "run natf doctor as root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert files.settings(path)[1].severity is Severity.ERROR


@pytest.mark.parametrize(
    ("text", "severity", "found"),
    [
        ("alice 192.168.0.2 allow\nbob 192.168.0.3 deny\n", Severity.OK, "{} lets 1 of 2 hosts be reached"),
        ("bob 192.168.0.3 deny\n", Severity.WARNING, "{} allows nobody to be reached"),
        ("", Severity.WARNING, "{} allows nobody to be reached"),
        ("alice 192.168.0.2 maybe\n", Severity.ERROR, "{}:1: "),
    ],
)
def test_the_access_control_table_is_read(tmp_path, text, severity, found):
    act = tmp_path / "natf.act"
    act.write_text(text)
    said = files.access_table(RouterConfig(act=act))
    assert said.severity is severity
    assert said.found.startswith(found.format(act))


def test_a_missing_table_is_an_error_with_the_way_to_make_one(tmp_path):
    act = tmp_path / "natf.act"
    said = files.access_table(RouterConfig(act=act))
    assert (said.severity, said.remedy) == (
        Severity.ERROR,
        f"touch {act}; natf act add alice 192.168.0.2 tcp/22",
    )


def test_what_would_never_end_is_not_read(tmp_path):
    """The name of natd's file is from a command line: anybody can start a natd that names /dev/zero or a FIFO."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, pathlib.Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError):
            files.text_of(path)
    long = tmp_path / "long"
    long.write_text("x" * 3_000_000)
    assert len(files.text_of(long)) < 2_000_000
