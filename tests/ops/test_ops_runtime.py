"""A daemon's run directory and lock, and its log."""

import logging
import os
import subprocess
import sys

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.ops import runtime
from natf_bsd.ops.runtime import RoleLock, make_private_directory, need_root, set_up_logging

HOLD = """
import sys
from pathlib import Path
from natf_bsd.ops.runtime import RoleLock
with RoleLock(Path(sys.argv[1]), "en"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the role "en" in tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_lock_is_taken_with_our_number_in_it(tmp_path):
    assert RoleLock.holder(tmp_path, "en") is None
    with RoleLock(tmp_path, "en"):
        assert RoleLock.holder(tmp_path, "en") == os.getpid()
        assert (tmp_path / "en.lock").read_text() == f"{os.getpid()}\n"
    assert RoleLock.holder(tmp_path, "en") is None


def test_the_second_holder_is_told_who_is_the_first(tmp_path, holder):
    with pytest.raises(NatfError) as caught, RoleLock(tmp_path, "en"):
        pytest.fail("held twice")
    assert str(caught.value) == f"natf en already runs here (process {holder.pid}, {tmp_path}/en.lock)"
    assert RoleLock.holder(tmp_path, "en") == holder.pid


def test_a_refused_second_holder_leaves_the_first_ones_lock_alone(tmp_path):
    with RoleLock(tmp_path, "en"):
        for _ in range(2):
            with pytest.raises(NatfError, match="already runs here"):
                RoleLock(tmp_path, "en").__enter__()
        assert RoleLock.holder(tmp_path, "en") == os.getpid()


def test_the_roles_have_a_lock_each(tmp_path):
    with RoleLock(tmp_path, "en"), RoleLock(tmp_path, "router"):
        assert RoleLock.holder(tmp_path, "router") == os.getpid()


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "en.lock").read_text() == f"{holder.pid}\n", "its number is still there, and means nothing"
    assert RoleLock.holder(tmp_path, "en") is None
    with RoleLock(tmp_path, "en"):
        assert RoleLock.holder(tmp_path, "en") == os.getpid()


def test_a_process_we_start_does_not_hold_our_lock(tmp_path):
    with RoleLock(tmp_path, "en"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        assert RoleLock.holder(tmp_path, "en") is None
    finally:
        child.communicate()


def test_the_lock_is_let_go_when_the_daemon_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), RoleLock(tmp_path, "en"):
        raise ZeroDivisionError
    assert RoleLock.holder(tmp_path, "en") is None


def test_a_holder_that_has_not_written_its_number_is_still_a_holder(tmp_path):
    with RoleLock(tmp_path, "en"):
        (tmp_path / "en.lock").write_text("")
        assert RoleLock.holder(tmp_path, "en") == 0
        with pytest.raises(NatfError, match=r"already runs here \(process unknown, "):
            RoleLock(tmp_path, "en").__enter__()


def test_nobody_holds_a_lock_in_a_folder_that_is_not_there(tmp_path):
    assert RoleLock.holder(tmp_path / "none", "en") is None
    (tmp_path / "file").write_text("")
    assert RoleLock.holder(tmp_path / "file", "en") is None


def test_a_lock_that_cannot_be_looked_at_is_not_taken_for_free(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtime.os, "open", refuse)
    with pytest.raises(NatfError, match=r"en.lock: Permission denied; expected to see who holds it"):
        RoleLock.holder(tmp_path, "en")


def test_a_lock_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "en.lock").mkdir()
    with pytest.raises(NatfError, match=r"en.lock: Is a directory; expected to make the lock file there"):
        RoleLock(tmp_path, "en").__enter__()


def test_the_run_directory_is_made_private_with_its_parents(tmp_path):
    with RoleLock(tmp_path / "run" / "natf", "en"):
        assert (tmp_path / "run" / "natf").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "run" / "natf" / "en.lock").stat().st_mode & 0o777 == 0o600


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NatfError) as caught:
        make_private_directory(tmp_path / "file" / "natf")
    assert str(caught.value) == f"{tmp_path}/file/natf: Not a directory; expected to make a directory of ours there"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_run_directory_others_can_write_to_is_refused(tmp_path, mode):
    """Whoever writes there could have root restore "kernel settings" of his own choice."""
    place = tmp_path / "natf"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(NatfError, match="nobody else can write to"):
        make_private_directory(place)


def test_a_link_is_no_run_directory_and_no_lock(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NatfError, match="and no link"):
        make_private_directory(tmp_path / "link")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "real" / "en.lock").symlink_to(victim)
    with pytest.raises(NatfError), RoleLock(tmp_path / "real", "en"):
        pass
    assert victim.read_text() == "precious"


def test_who_is_not_root_is_told_why_root(monkeypatch):
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 1000)
    with pytest.raises(NatfError, match=r"^natf en run needs root: packets are taken from and given to the kernel$"):
        need_root("natf en run")
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 0)
    need_root("natf en run")


@pytest.mark.parametrize(("verbose", "level"), [(False, logging.INFO), (True, logging.DEBUG)])
def test_verbose_says_more_of_ours_only(verbose, level):
    ours = logging.getLogger("natf_bsd")
    before = ours.level
    try:
        set_up_logging(verbose)
        assert ours.level == level
        assert not logging.getLogger("pyroute2").isEnabledFor(logging.INFO)
    finally:
        ours.setLevel(before)
