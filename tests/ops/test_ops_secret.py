"""A secret kept in a file of ours."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.ops.secret import kept_secret


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "virtual.key"


def test_a_secret_is_made_once_for_its_owner_alone(path: Path) -> None:
    secret = kept_secret(path, 16)
    assert len(secret) == 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_secret(path, 16) == secret
    assert [file.name for file in path.parent.iterdir()] == ["virtual.key"]


def test_no_two_secrets_are_alike(path: Path) -> None:
    assert kept_secret(path, 16) != kept_secret(path.with_name("other"), 16)


def test_what_a_crash_left_is_replaced(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.parent.mkdir(mode=0o700)
    path.with_name("virtual.key.new").symlink_to(victim)
    assert len(kept_secret(path, 16)) == 16
    assert victim.read_text() == "precious"


def test_a_secret_others_can_read_or_of_another_length_is_refused(path: Path) -> None:
    kept_secret(path, 16)
    path.chmod(0o640)
    with pytest.raises(NatfError, match="0600"):
        kept_secret(path, 16)
    path.chmod(0o600)
    with pytest.raises(NatfError, match="20 bytes"):
        kept_secret(path, 20)


def test_a_link_is_not_followed(path: Path) -> None:
    kept_secret(path.with_name("other"), 16)
    path.symlink_to("other")
    with pytest.raises(NatfError, match=r"virtual\.key"):
        kept_secret(path, 16)


def test_a_directory_others_can_write_to_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(NatfError, match="nobody else can write"):
        kept_secret(path, 16)
