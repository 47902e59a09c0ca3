"""The ACT on disk: reading it, replacing it in one step, noticing that it changed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.tables.act import AccessTable, parse

LOCK_TRIES = 100  # with LOCK_PAUSE 5 s: an edit takes milliseconds, so a lock held for longer is somebody's mistake
LOCK_PAUSE = 0.05  # s

Stamp = tuple[int, int, int]


class ActFile:
    """One ACT file under watch. Another (mtime in ns, inode, size) means another content."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stamp: Stamp | None = None

    def load(self) -> AccessTable:
        """The table as it is now; `changed()` compares with this moment, also when the file turned out bad."""
        self._stamp = self._look()
        return load(self.path)

    def changed(self) -> bool:
        """Whether the file differs from what was last loaded. A file that came or went counts as changed."""
        return self._look() != self._stamp

    def _look(self) -> Stamp | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def load(path: Path | str) -> AccessTable:
    """The table in the file at `path`. NatfError when it can't be read, ConfigError when it is not an ACT."""
    with _opened(Path(path)) as descriptor:
        text = _read(descriptor, path)
    if text and not text.endswith("\n"):
        # Half written, or cut off by a full disk. What is missing may be the ports: none would mean all of them.
        last = text.count("\n") + 1
        raise ConfigError(path, last, "found the end of the file in mid-line, expected a newline at the end")
    return parse(text, path)


def edit(path: Path | str, function: Callable[[str], str]) -> AccessTable:
    """Replace the text of the file at `path` by `function` of it, and return the table it is then.

    Readers see the old file or the new one, whole. Two edits at a time wait for each other: the file itself is
    locked, which leaves nothing behind and can't be done by those who may not read it. A symbolic link stays
    one; owner and mode stay. An error from `function`, or a result that is not an ACT, leaves the file as it
    was. Errors as in `load`.
    """
    target = _resolved(Path(path))
    with _locked(target) as descriptor:
        before = _read(descriptor, path)
        after = function(before)
        table = parse(after, path)
        if after != before:
            _replace(target, os.fstat(descriptor), after.encode())
        return table


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # Python before 3.13 says RuntimeError for a loop of links
        raise _unusable(path, error) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor for reading. O_NONBLOCK so that a FIFO in this place is an error and not an endless wait."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NatfError(f"{path}: found no regular file, expected an access control table")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the locked file. Whoever held it may have put another file here: then that one is tried."""
    for _ in range(LOCK_TRIES):
        with _opened(path) as descriptor:
            if _try_lock(descriptor) and _is_at(descriptor, path):
                yield descriptor
                return
        time.sleep(LOCK_PAUSE)
    raise NatfError(
        f"{path}: locked by another process for {LOCK_TRIES * LOCK_PAUSE:.0f} s; try again when it has ended"
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(descriptor: int, path: Path | str) -> str:
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, line, f"found byte 0x{data[error.start]:02x}, expected UTF-8 text") from None


def _replace(target: Path, like: os.stat_result, data: bytes) -> None:
    """Write `data` beside `target` and rename it into place, so that a crash at any moment leaves one whole file."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _own_like(descriptor, like)
            os.fsync(descriptor)
        os.rename(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        raise NatfError(f"{target}: can't be replaced: {error.strerror}") from None


def _own_like(descriptor: int, like: os.stat_result) -> None:
    """Owner before mode: a change of owner clears the set-id bits."""
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: OSError | RuntimeError) -> NatfError:
    if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
        return NatfError(f"{path}: found a loop of symbolic links, expected an access control table")
    return NatfError(f"access control table {path}: {error.strerror}")
