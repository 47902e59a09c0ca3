"""Exceptions that more than one part of natf_bsd raises or catches; those of one part stand beside what raises them.

`NatfError` is what a command turns into one line on standard error. `WireError` is the only exception a parser of
outside bytes raises: it never ends a daemon, it is counted.
"""

from __future__ import annotations

from pathlib import Path


class NatfError(Exception):
    """Something the user can act on; the text says what and how."""


class RestartNeeded(NatfError):
    """What a daemon has opened no longer fits the host; whoever supervises it starts it again."""


class ConfigError(NatfError):
    """A bad line in a file the user writes: `path:line: what was found, what was expected`."""

    def __init__(self, path: Path | str, line: int, text: str) -> None:
        super().__init__(f"{path}:{line}: {text}")
        self.path = Path(path)
        self.line = line


class WireError(Exception):
    """Bytes from outside that are not what they claim to be."""


class UnsupportedVersion(WireError):
    """A NAT-f message of another protocol version; its transaction id is where version 1 has it."""

    def __init__(self, version: int, transaction: bytes) -> None:
        super().__init__(f"NAT-f protocol version {version}, expected 1")
        self.version = version
        self.transaction = transaction


class AuthError(WireError):
    """A message whose AUTH option is absent, unknown, stale or wrong; `missing` tells absent from bad."""

    def __init__(self, text: str, *, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


class TableFull(Exception):
    """A bounded table refused an entry; the caller counts it."""


class CommandFailed(NatfError):
    """A firewall or network command ended with a status that was not expected."""

    def __init__(self, argv: tuple[str, ...], status: int, stderr: str) -> None:
        said = "; ".join(stderr.strip().splitlines()) or "no message"
        super().__init__(f"{' '.join(argv)}: exit status {status}: {said}")
        self.argv = argv
        self.status = status
