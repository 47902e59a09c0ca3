"""The control socket: a stream socket in the run directory; one line of JSON in, one line of JSON out, then closed.

Only its owner may connect (mode 0600 in a 0700 directory).
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.ops.loop import Loop, monotonic

log = logging.getLogger(__name__)

_TIMEOUT = 5.0
_MAXIMUM_REQUEST = 65536
_SERVE_TIMEOUT = 0.5
"""Seconds a client may keep the daemon waiting: with one line from our own client, only a stopped one does."""

Handler = Callable[[dict[str, Any]], object]


class NoDaemon(NatfError):
    """Nobody listens at the control socket; `killed`: the last one had no time to remove it."""

    def __init__(self, path: Path, *, killed: bool) -> None:
        super().__init__(
            f"no daemon is running at {path}{'; the last one was killed (natf cleanup)' if killed else ''}"
        )
        self.killed = killed


class ControlServer:
    """Serves `handlers` by command name on `path` inside `loop`."""

    def __init__(self, path: Path, loop: Loop, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._loop = loop
        self._handlers = dict(handlers)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            # A path of more than 107 bytes has no errno.
            raise NatfError(f"{path}: {error.strerror or error}; expected to make the control socket there") from None
        finally:
            os.umask(mask)
        self._socket.listen(8)
        self._socket.setblocking(False)
        loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        with client:
            try:
                line = _read_line(client, _MAXIMUM_REQUEST, _SERVE_TIMEOUT)
                client.settimeout(_SERVE_TIMEOUT)
                client.sendall(self._answer(line) + b"\n")
            except OSError:
                return

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            handler = self._handlers[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _error(f"expected a command: {', '.join(sorted(self._handlers))}")
        try:
            return json.dumps({"result": handler(request)}).encode()
        except NatfError as error:
            return _error(str(error))
        except Exception as error:  # a fault of ours in a report must not cost the flows
            log.exception("%s: command %s", self.path, request["command"])
            return _error(f"fault in the daemon, see its log: {error!r}")


def ask(path: Path, command: str, **arguments: object) -> Any:
    """What the daemon behind `path` answers to `command`; NoDaemon when none is there, NatfError when it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT)
        try:
            client.connect(str(path))
            client.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = _read_line(client, None, _TIMEOUT)
        except PermissionError:
            raise NatfError(f"{path}: permission denied; expected to run as the user the daemon runs as") from None
        except FileNotFoundError:
            raise NoDaemon(path, killed=False) from None
        except ConnectionRefusedError:
            raise NoDaemon(path, killed=True) from None
        except OSError as error:
            raise NatfError(f"{path}: no answer from the daemon: {error}") from None
    return _result(path, line)


def _result(path: Path, line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if "error" not in answer:
            return answer["result"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = f"{line[:60]!r}" if line else "nothing"
        raise NatfError(f"{path}: the daemon answered {found}; expected one line of JSON") from None
    raise NatfError(str(answer["error"]))


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


def _read_line(client: socket.socket, limit: int | None, seconds: float) -> bytes:
    """Up to the first newline, the end of the stream or `limit`; TimeoutError if that takes longer than `seconds`."""
    data = bytearray()
    give_up = monotonic() + seconds
    while limit is None or len(data) < limit:
        if (left := give_up - monotonic()) <= 0:
            raise TimeoutError("timed out")
        client.settimeout(left)
        chunk = client.recv(65536)
        data += chunk
        if not chunk or b"\n" in chunk:
            break
    return bytes(data)
