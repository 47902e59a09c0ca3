"""The journal: what a restart finds, after whatever happened to the file and the disk."""

import contextlib
import errno
import json
import os
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natf_bsd.errors import NatfError
from natf_bsd.ops.journal import _COMPACT_AT, _COMPACT_MINIMUM, Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "en.journal"


def record(ident, **values):
    return {"id": ident, **values}


def gone(ident):
    return {"id": ident, "gone": True}


def written(path, *records):
    journal = Journal(path)
    for item in records:
        journal.append(item)
    journal.flush()
    return journal


@contextlib.contextmanager
def disk_of(size):
    """No file can grow beyond `size` bytes here: the write that would is cut short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_journal_is_empty_and_its_folder_private(path):
    journal = Journal(path)
    assert journal.records() == []
    assert not journal.dirty
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_records_survive_in_order(path):
    written(path, record("b", n=1), record("a", text="ä\u2028\n"))
    assert Journal(path).records() == [record("b", n=1), record("a", text="ä\u2028\n")]


def test_the_newest_record_of_an_id_counts(path):
    written(path, record("a", n=1), record("b", n=1), record("a", n=2))
    assert Journal(path).records() == [record("a", n=2), record("b", n=1)]


def test_what_is_gone_stays_gone(path):
    written(path, record("a"), record("b"), gone("a"), gone("never there"))
    assert Journal(path).records() == [record("b")]


def test_what_is_gone_may_come_back(path):
    written(path, record("a", n=1), gone("a"), record("a", n=2))
    assert Journal(path).records() == [record("a", n=2)]


def test_nothing_is_written_before_flush(path):
    journal = Journal(path)
    journal.append(record("a"))
    assert journal.dirty
    assert journal.records() == [record("a")]
    assert path.read_text() == ""
    journal.flush()
    assert not journal.dirty
    assert path.read_text() == '{"id":"a"}\n'


def test_a_flush_of_nothing_touches_no_file(path):
    journal = Journal(path)
    path.unlink()
    journal.flush()
    assert not path.exists()


def test_a_torn_last_line_is_reported_and_spoils_nothing(path):
    written(path, record("a"), record("b"))
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(path)
    assert journal.records() == [record("a")]
    assert journal.skipped == [f"{path}:2: not a record, skipped"]
    journal.append(record("c"))
    journal.flush()
    again = Journal(path)
    assert again.records() == [record("a"), record("c")]
    assert again.skipped == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"5",
        b"null",
        b"[]",
        b'"id"',
        b"{}",
        b"\0\0\0",
        b"\xff\xfe",
        b'{"id":',
        b"[" * 100000,
        b"9" * 5000,
    ],
)
def test_a_line_that_is_no_record_is_skipped_alone(path, line):
    path.parent.mkdir()
    path.write_bytes(b'{"id":"a"}\n' + line + b'\n{"id":"b"}\n')
    journal = Journal(path)
    assert journal.records() == [record("a"), record("b")]
    assert journal.skipped == [f"{path}:2: not a record, skipped"]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([b'{"id":"a"}', b'{"id":["a"],"gone":1}', b'{"id":{}}'])))
def test_any_file_is_read_and_is_clean_afterwards(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.journal"
    path.write_bytes(b"\n".join(lines))
    records = Journal(path).records()
    again = Journal(path)
    assert again.records() == records
    assert again.skipped == []


IDS = st.sampled_from("abc")
STEPS = st.lists(st.tuples(st.sampled_from(["set", "gone", "flush", "crash"]), IDS, st.integers(0, 9)), max_size=30)


@settings(deadline=None)
@given(STEPS)
def test_a_crash_loses_what_was_not_flushed_and_no_more(tmp_path_factory, steps):
    path = tmp_path_factory.getbasetemp() / "steps.journal"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    kept, current = {}, {}
    for step, ident, number in steps:
        if step == "set":
            journal.append(record(ident, n=number))
            current[ident] = number
        elif step == "gone":
            journal.append(gone(ident))
            current.pop(ident, None)
        elif step == "flush":
            journal.flush()
            kept = dict(current)
        else:
            journal = Journal(path)
            current = dict(kept)
        assert {item["id"]: item["n"] for item in journal.records()} == current


def test_a_start_leaves_only_what_lives(path):
    written(path, *(record("a", n=n) for n in range(50)), record("b"), gone("b"))
    assert len(path.read_text().splitlines()) == 52
    Journal(path)
    assert path.read_text() == '{"id":"a","n":49}\n'


def test_history_is_bounded_while_running(path):
    journal = Journal(path)
    longest = 0
    for n in range(5 * _COMPACT_MINIMUM):
        journal.append(record("a", n=n))
        journal.flush()
        longest = max(longest, path.stat().st_size)
    assert longest <= (_COMPACT_MINIMUM + 1) * len('{"id":"a","n":4999}\n')
    assert Journal(path).records() == [record("a", n=5 * _COMPACT_MINIMUM - 1)]


def test_many_living_records_are_not_rewritten_for_little(path):
    living = _COMPACT_MINIMUM
    journal = written(path, *(record(f"r{n}") for n in range(living)))
    inode = path.stat().st_ino
    for n in range((_COMPACT_AT - 1) * living):
        journal.append(record(f"r{n % living}"))
    journal.flush()
    assert path.stat().st_ino == inode
    journal.append(record("r0"))
    journal.flush()
    assert path.stat().st_ino != inode
    assert len(path.read_text().splitlines()) == living


def test_a_full_disk_is_an_error_and_the_buffer_waits_for_better_times(path):
    journal = written(path, record("a"))
    journal.append(record("b", text="x" * 100))
    journal.append(record("c"))
    with disk_of(50), pytest.raises(OSError):
        journal.flush()
    assert journal.dirty
    assert path.read_text() == '{"id":"a"}\n', "half a line would spoil the next one"
    journal.flush()
    assert not journal.dirty
    again = Journal(path)
    assert again.records() == journal.records() == [record("a"), record("b", text="x" * 100), record("c")]
    assert again.skipped == []


def test_a_disk_that_stays_full_does_not_fill_the_memory(path):
    journal = written(path, record("a", n=-1))
    with disk_of(5):
        for n in range(20):
            for m in range(_COMPACT_MINIMUM):
                journal.append(record("a", n=n * _COMPACT_MINIMUM + m))
            with pytest.raises(OSError):
                journal.flush()
    assert len(journal._buffer) <= _COMPACT_MINIMUM
    assert Journal(path).records() == [record("a", n=-1)]
    assert journal.dirty
    journal.flush()
    assert Journal(path).records() == [record("a", n=20 * _COMPACT_MINIMUM - 1)]


def test_a_rewrite_that_fails_leaves_the_old_file_and_no_other(path):
    journal = written(path, *(record("a", n=n) for n in range(_COMPACT_MINIMUM)))
    before = path.read_bytes()
    journal.append(record("b"))
    with disk_of(10), pytest.raises(OSError):
        journal.flush()
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    journal.flush()
    assert Journal(path).records() == [record("a", n=_COMPACT_MINIMUM - 1), record("b")]


def test_a_crash_in_the_middle_of_a_rewrite_is_no_loss(path):
    written(path, record("a"))
    path.with_name(path.name + ".new").write_text('{"id":"half')
    assert Journal(path).records() == [record("a")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NatfError) as caught:
        Journal(tmp_path / "file" / "en.journal")
    assert str(caught.value).startswith(f"{tmp_path}/file: ")
    assert str(caught.value).endswith("; expected to make a directory of ours there")


def test_a_journal_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "en.journal").mkdir()
    with pytest.raises(NatfError, match=r"en.journal: Is a directory; expected a place to keep"):
        Journal(tmp_path / "en.journal")


def test_a_record_without_an_id_is_a_fault_of_ours(path):
    with pytest.raises(KeyError):
        Journal(path).append({"n": 1})


def test_lines_are_compact_json(path):
    written(path, record("a", list=[1, 2], text="ä"))
    line = path.read_text()
    assert json.loads(line) == record("a", list=[1, 2], text="ä")
    assert line.isascii()
    assert " " not in line


def test_a_full_disk_is_no_reason_not_to_start(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append({"id": "a"})
    journal.flush()

    def full(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        again = Journal(path)
        assert again.records() == [{"id": "a"}]
        assert again.dirty
    again.flush()
    assert not again.dirty
