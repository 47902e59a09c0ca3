"""Shared keys (AUTH, DESIGN.md section 5): what one is, the file it is in, and making a new one."""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from natf_bsd.errors import ConfigError, NatfError

_FILE = re.compile(r"([0-9a-f]{16}):((?:[0-9a-f]{2}){16,64})")
_SECRET_SIZE = 32
"""Bytes of a new secret: as many as HMAC-SHA-256 makes use of (RFC 2104 section 3)."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret shared by an external node and a router. Never shown."""

    ident: bytes
    secret: bytes = field(repr=False)


def load_key(path: Path) -> Key:
    """The key in `path`: one line, 16 hex digits of key id, a colon, at least 32 hex digits of secret.

    NatfError when it cannot be read or others may read it, ConfigError for another content.
    """
    text = read_private(path, "natf key").strip()
    if not (found := _FILE.fullmatch(text)):
        raise ConfigError(
            path, 1, "expected 16 hex digits of key id, a colon, 32 to 128 hex digits of secret, and nothing else"
        )
    return Key(bytes.fromhex(found[1]), bytes.fromhex(found[2]))


def read_private(path: Path, made_by: str) -> str:
    """The beginning of a key file, which the command `made_by` makes; NatfError when it cannot be read, or by others
    too.
    """
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4096)
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected a key file ({made_by} makes one)") from None
    if mode & 0o077:
        raise NatfError(f"{path}: mode {mode:04o} lets others at this key; expected 0600 (chmod 600 {path})")
    return text


def make_key(path: Path) -> Key:
    """A new key, in a new file `path` that is for its owner alone; NatfError when the file exists or can't be made."""
    made = Key(secrets.token_bytes(8), secrets.token_bytes(_SECRET_SIZE))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{made.ident.hex()}:{made.secret.hex()}\n")
    except FileExistsError:
        raise NatfError(f"{path}: exists already; expected a new file, no key is overwritten") from None
    except OSError as error:
        raise NatfError(f"{path}: {error.strerror}; expected to make the key file there") from None
    return made
