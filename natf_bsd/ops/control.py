"""The control socket: a stream socket in the run directory; one line of JSON in, one line of JSON out, then closed.

Only its owner may connect (mode 0600 in a 0700 directory).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.ops.loop import Loop

_TIMEOUT = 5.0
_MAXIMUM_REQUEST = 65536
_SERVE_TIMEOUT = 0.5
"""Seconds a client may keep the daemon waiting: both ends are ours and the request is one line, so this is never
seen but with a stopped client."""

Handler = Callable[[dict[str, Any]], object]


class ControlServer:
    """Serves `handlers` by command name on `path` inside `loop`."""

    def __init__(self, path: Path, loop: Loop, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._loop = loop
        self._handlers = dict(handlers)
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            raise NatfError(f"{path}: {error.strerror}; expected to make the control socket there") from None
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
            client.settimeout(_SERVE_TIMEOUT)
            try:
                line = _read_line(client, _MAXIMUM_REQUEST)
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            except OSError:
                return

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            handler = self._handlers[request["command"]]
        except (ValueError, KeyError, TypeError):
            return {"error": f"expected a command: {', '.join(sorted(self._handlers))}"}
        try:
            return {"result": handler(request)}
        except NatfError as error:
            return {"error": str(error)}


def ask(path: Path, command: str, **arguments: object) -> Any:
    """What the daemon behind `path` answers to `command`; NatfError when none runs there or it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT)
        try:
            client.connect(str(path))
            client.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            answer = json.loads(_read_line(client, None))
        except PermissionError:
            raise NatfError(f"{path}: permission denied; expected to run as the user the daemon runs as") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NatfError(f"no daemon is running at {path}") from None
        except (OSError, ValueError) as error:
            raise NatfError(f"{path}: no answer from the daemon: {error}") from None
    if "error" in answer:
        raise NatfError(str(answer["error"]))
    return answer["result"]


def _read_line(client: socket.socket, limit: int | None) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n") and (limit is None or len(data) < limit):
        chunk = client.recv(65536)
        if not chunk:
            break
        data += chunk
    return bytes(data)
