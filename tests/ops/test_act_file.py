import fcntl
import os
import stat
import threading

import pytest

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.ops import act_file
from natf_bsd.ops.act_file import ActFile, edit, load
from natf_bsd.tables import act

TEXT = "alice 192.168.0.2 allow\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "act"
    path.write_text(TEXT)
    return path


def deny_alice(text: str) -> str:
    return act.set_action(text, "act", "alice", False)


def test_load_reads_the_table(path):
    assert [entry.name for entry in load(path)] == ["alice"]
    assert [entry.name for entry in load(str(path))] == ["alice"]


def test_load_names_what_it_could_not_read(tmp_path):
    with pytest.raises(NatfError, match=r"missing: No such file or directory$"):
        load(tmp_path / "missing")


def test_load_names_the_bad_line(path):
    path.write_text(TEXT + "oops\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2: found 1 column")


def test_load_names_the_line_that_is_not_utf_8(path):
    path.write_bytes(TEXT.encode() + b"b\xfcrgel 10.0.0.1 allow\n")
    with pytest.raises(ConfigError, match=r"act:2: found byte 0xfc, expected UTF-8 text$"):
        load(path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(NatfError, match="found no regular file"):
            load(tmp_path / name)
        with pytest.raises(NatfError, match="found no regular file"):
            edit(tmp_path / name, deny_alice)


def test_edit_replaces_the_text_and_returns_the_table(path):
    table = edit(path, deny_alice)
    assert path.read_text() == "alice 192.168.0.2 deny\n"
    assert not table.lookup("alice").allow


def test_edit_keeps_line_ends(path):
    path.write_bytes(b"# x\r\nalice 192.168.0.2 allow\r\n")
    edit(path, deny_alice)
    assert path.read_bytes() == b"# x\r\nalice 192.168.0.2 deny\r\n"


def test_edit_leaves_nothing_else_behind(path):
    edit(path, deny_alice)
    assert os.listdir(path.parent) == ["act"]


def test_edit_keeps_mode_and_owner(path):
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    edit(path, deny_alice)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_edit_that_changes_nothing_writes_nothing(path):
    before = path.stat()
    assert len(edit(path, lambda text: text)) == 1
    assert path.stat() == before or path.stat().st_ino == before.st_ino


def test_edit_through_a_symbolic_link_keeps_the_link(path, tmp_path):
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "link"
    link.symlink_to("../act")
    edit(link, deny_alice)
    assert link.is_symlink()
    assert path.read_text() == "alice 192.168.0.2 deny\n"
    assert sorted(os.listdir(tmp_path)) == ["act", "etc"]
    assert os.listdir(tmp_path / "etc") == ["link"]


def test_a_loop_of_links_is_named(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NatfError, match="found a loop of symbolic links"):
        edit(tmp_path / "a", deny_alice)
    with pytest.raises(NatfError, match="found a loop of symbolic links"):
        load(tmp_path / "a")


def test_a_missing_file_is_not_made(tmp_path):
    with pytest.raises(NatfError, match="No such file"):
        edit(tmp_path / "act", deny_alice)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", [lambda text: text + "oops\n", lambda text: act.remove(text, "act", "bob")])
def test_an_edit_that_fails_leaves_the_file_as_it_was(path, function):
    with pytest.raises(NatfError):
        edit(path, function)
    assert path.read_text() == TEXT
    assert os.listdir(path.parent) == ["act"]


def test_a_write_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(act_file.os, "fsync", full)
    with pytest.raises(NatfError, match=r"act: can't be replaced: No space left on device$"):
        edit(path, deny_alice)
    assert path.read_text() == TEXT
    assert os.listdir(path.parent) == ["act"]


def test_an_edit_waits_for_the_one_before_it_and_builds_on_its_result(path):
    names = [f"host{n}" for n in range(8)]
    threads = [
        threading.Thread(target=edit, args=(path, lambda text, n=n: act.add(text, "act", n, "10.0.0.1", "allow")))
        for n in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in load(path)} == {"alice", *names}
    assert os.listdir(path.parent) == ["act"]


def test_a_lock_that_is_never_released_is_an_error(path, monkeypatch):
    monkeypatch.setattr(act_file, "LOCK_PAUSE", 0.0)
    with path.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(NatfError, match="locked by another process"):
            edit(path, deny_alice)
    edit(path, deny_alice)


def test_a_lock_on_a_file_that_was_replaced_meanwhile_does_not_count(path, monkeypatch):
    """The second of two edits must not write over the first one's result, which is another file under the same name."""
    try_lock = act_file._try_lock
    replaced = []

    def replace_first(descriptor: int) -> bool:
        if not replaced:
            replaced.append(True)
            other = path.with_name("other")
            other.write_text(TEXT + "bob 192.168.0.3 allow\n")
            other.rename(path)
        return try_lock(descriptor)

    monkeypatch.setattr(act_file, "_try_lock", replace_first)
    monkeypatch.setattr(act_file, "LOCK_PAUSE", 0.0)
    edit(path, deny_alice)
    assert path.read_text() == "alice 192.168.0.2 deny\nbob 192.168.0.3 allow\n"


def test_a_watched_file_is_changed_until_it_is_loaded(path):
    watched = ActFile(path)
    assert watched.changed()
    assert len(watched.load()) == 1
    assert not watched.changed()


def test_an_edit_shows_even_with_size_and_time_unchanged(path):
    watched = ActFile(path)
    watched.load()
    times = path.stat()
    edit(path, lambda text: text.replace("0.2", "0.7"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert watched.changed()
    watched.load()
    assert not watched.changed()


def test_a_change_in_place_shows(path):
    watched = ActFile(path)
    watched.load()
    path.write_text(TEXT + "bob 192.168.0.3 allow\n")
    assert watched.changed()


def test_a_bad_file_is_reported_once(path):
    watched = ActFile(path)
    path.write_text("oops\n")
    with pytest.raises(ConfigError):
        watched.load()
    assert not watched.changed()


def test_a_file_that_goes_and_comes_is_noticed_each_time(path):
    watched = ActFile(path)
    watched.load()
    path.unlink()
    assert watched.changed()
    with pytest.raises(NatfError, match="No such file"):
        watched.load()
    assert not watched.changed()
    path.write_text(TEXT)
    assert watched.changed()


def test_a_file_that_is_gone_is_a_change_once(tmp_path):
    """The daemon looks every second, and says it once."""
    path = tmp_path / "act"
    path.write_text("alice 192.168.0.2 allow\n")
    act = ActFile(path)
    act.load()
    path.unlink()
    assert act.changed()
    with pytest.raises(NatfError):
        act.load()
    assert not act.changed()


def test_a_file_that_ends_in_mid_line_is_not_believed(tmp_path):
    """Half written, or cut by a full disk: without its ports the last host would be open on all of them."""
    path = tmp_path / "natf.act"
    path.write_text("alice 192.168.0.2 allow tcp/22\nbob 192.168.0.3 allow")
    with pytest.raises(ConfigError, match=r"natf\.act:2: .*newline"):
        act_file.load(path)
