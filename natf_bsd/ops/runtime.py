"""A daemon's place on the host: its run directory, and the lock that says who holds it."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import sys
from pathlib import Path
from types import TracebackType

from natf_bsd.errors import NatfError


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NatfError(f"{what} needs root: packets are taken from and given to the kernel")


def make_private_directory(path: Path) -> None:
    """Make `path`, or see that it is ours alone to write: who else can write there could have root write anywhere."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected to make a directory of ours there") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise NatfError(
            f"{path}: expected a directory of user {os.geteuid()} that nobody else can write to, and no link"
        )


class RoleLock:
    """One daemon of a role on a host. The lock goes with the process, so a crash leaves none behind."""

    def __init__(self, run_dir: Path, role: str) -> None:
        self._path = run_dir / f"{role}.lock"
        self._role = role
        self._descriptor = -1

    def __enter__(self) -> RoleLock:
        make_private_directory(self._path.parent)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NatfError(f"{self._path}: {error.strerror}; expected to make the lock file there") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 64).decode(errors="replace").strip()
            os.close(descriptor)
            raise NatfError(
                f"natf {self._role} already runs here (process {holder or 'unknown'}, {self._path})"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Unlinking would let a third process lock a new file of the same name while a second still waits for this
        # one.
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    @staticmethod
    def holder(run_dir: Path, role: str) -> int | None:
        """The process that holds the role, 0 if it has not written down its number yet; None if nobody does."""
        path = run_dir / f"{role}.lock"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise NatfError(f"{path}: {error.strerror}; expected to see who holds it") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 64).strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(descriptor)
        return None


def set_up_logging(verbose: bool) -> None:
    """One line an event on standard error; what supervises us (daemon(8), systemd) adds the time and sends it on."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="natf: %(levelname)s: %(message)s")
    logging.getLogger("natf_bsd").setLevel(logging.DEBUG if verbose else logging.INFO)
