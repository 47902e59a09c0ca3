"""A file of JSON lines that survives the daemon: the newest record of each id counts, `gone` takes one back.

Appending is buffered and written by `flush`, so that no file is touched while a packet waits. A line that a
crash cut off is skipped and reported; when most lines are history the file is written anew beside the old
one and renamed over it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.ops.runtime import make_private_directory

_COMPACT_AT = 4
"""Lines per living record at which the file is rewritten, and never below a thousand lines."""

_COMPACT_MINIMUM = 1000


class Journal:
    """Records are dicts with an "id"; a record with "gone": true ends its id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped: list[str] = []
        self._living: dict[str, str] = {}
        self._buffer: list[str] = []
        self._lines = 0
        self._overdue = False
        try:
            make_private_directory(path.parent)
            self._read()
            self._start_anew()
        except OSError as error:
            raise NatfError(
                f"{path}: {error.strerror}; expected a place to keep names and flows over a restart"
            ) from None

    def _start_anew(self) -> None:
        """A full disk is no reason not to start: what is there was read, and `flush` tries again."""
        try:
            self._compact()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._overdue = True

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._living.values()]

    def append(self, record: dict[str, object]) -> None:
        line = json.dumps(record, separators=(",", ":"))
        self._note(str(record["id"]), line, bool(record.get("gone")))
        self._buffer.append(line)

    @property
    def dirty(self) -> bool:
        return bool(self._buffer) or self._overdue

    def flush(self) -> None:
        """Write what was appended; OSError if the disk does not take it: then it is kept for the next time."""
        if not self.dirty:
            return
        if self._lines + len(self._buffer) > max(_COMPACT_MINIMUM, _COMPACT_AT * len(self._living)):
            self._overdue = True
        if not self._overdue:
            self._write_buffer()
            return
        # The living records have all that the buffer has: while the disk is full, it must not grow for ever.
        self._buffer.clear()
        self._compact()

    def _write_buffer(self) -> None:
        """All of it or nothing: half a line, left by a full disk, would spoil the next one."""
        data = memoryview("".join(f"{line}\n" for line in self._buffer).encode())
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        self._lines += len(self._buffer)
        self._buffer.clear()

    def _note(self, ident: str, line: str, gone: bool) -> None:
        if gone:
            self._living.pop(ident, None)
        else:
            self._living[ident] = line

    def _read(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                record = json.loads(line)
                self._note(str(record["id"]), line, bool(record.get("gone")))
            except (ValueError, KeyError, TypeError, RecursionError):
                self.skipped.append(f"{self.path}:{number}: not a record, skipped")

    def _compact(self) -> None:
        temporary = self.path.with_name(f"{self.path.name}.new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self._living.values()))
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._lines = len(self._living)
        self._overdue = False
