"""A secret of this host that survives restarts: random bytes in a file for root alone."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from natf_bsd.errors import NatfError
from natf_bsd.ops.runtime import make_private_directory


def kept_secret(path: Path, size: int) -> bytes:
    """The `size` bytes in `path`, made at the first call. NatfError when it can't be, or is not ours alone."""
    make_private_directory(path.parent)
    try:
        return _read(path, size)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected our file of {size} random bytes") from None
    try:
        return _make(path, size)
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected to keep {size} random bytes there") from None


def _read(path: Path, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        secret = file.read(size + 1) if stat.S_ISREG(found.st_mode) else b""
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or len(secret) != size:
        raise NatfError(
            f"{path}: expected a file of user {os.geteuid()}, mode 0600, with {size} bytes; remove it, and a new one"
            " is made (virtual addresses change then)"
        )
    return secret


def _make(path: Path, size: int) -> bytes:
    """Renamed into place, so that a crash leaves a whole file or none."""
    made = secrets.token_bytes(size)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    return made
