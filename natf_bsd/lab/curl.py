"""The part of curl(1) that the demo and the tests use, for machines without it: same options, same exit statuses."""

from __future__ import annotations

import argparse
import http.client
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

UNRESOLVED, CONNECT, PARTIAL, TIMEOUT, RECEIVE = 6, 7, 18, 28, 56
"""Exit statuses of curl(1)."""

_BLOCK = 1 << 16
_FOREVER = 86400.0
_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class CurlError(Exception):
    """Why a transfer failed, with curl's exit status for it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Transfer:
    """One GET. `known` has what is known of it by the names of `--write-out`'s variables."""

    def __init__(self, url: str, connect_timeout: float, max_time: float, rate: float) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path or "/"
        self._connect_timeout = min(connect_timeout, max_time)
        self._rate = rate
        self._began = time.monotonic()
        self._deadline = self._began + max_time
        self.known = {"errormsg": ""}

    def blocks(self) -> Iterator[bytes]:
        """The body; CurlError when it cannot be had, or not whole."""
        connection = http.client.HTTPConnection(self._host, self._port)
        try:
            with self._connected() as connection.sock:
                connection.request("GET", self._path)
                yield from self._body(connection)
        except TimeoutError:
            raise CurlError(TIMEOUT, f"Operation timed out after {self.elapsed():.3f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise CurlError(RECEIVE, str(error)) from None

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def _connected(self) -> socket.socket:
        try:
            address = socket.gethostbyname(self._host)
        except socket.gaierror:
            raise CurlError(UNRESOLVED, f"Could not resolve host: {self._host}") from None
        try:
            made = socket.create_connection((address, self._port), self._connect_timeout)
        except TimeoutError:
            raise
        except OSError as error:
            text = f"Failed to connect to {self._host} port {self._port}: {error.strerror}"
            raise CurlError(CONNECT, text) from None
        made.settimeout(self._left())
        self.known |= {"remote_ip": made.getpeername()[0], "local_port": str(made.getsockname()[1])}
        return made

    def _body(self, connection: http.client.HTTPConnection) -> Iterator[bytes]:
        response = connection.getresponse()
        began, size = time.monotonic(), 0
        while block := response.read1(_BLOCK):
            yield block
            size += len(block)
            time.sleep(max(0.0, began + size / self._rate - time.monotonic()))
            connection.sock.settimeout(self._left())
        if response.length:
            raise CurlError(PARTIAL, f"transfer closed with {response.length} bytes remaining to read")

    def _left(self) -> float:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError
        return left


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch and write as told; the exit status."""
    options = _parse(arguments)
    transfer = Transfer(options.url, options.connect_timeout, options.max_time, options.limit_rate)
    status = 0
    try:
        _save(transfer.blocks(), options.output)
    except CurlError as error:
        status = error.status
        transfer.known["errormsg"] = str(error)
        sys.stderr.write(f"curl: ({status}) {error}\n")
    transfer.known["time_total"] = f"{transfer.elapsed():.6f}"
    sys.stdout.write(re.sub(r"%\{(\w+)\}", lambda name: transfer.known.get(name[1], ""), options.write_out))
    return status


def _save(blocks: Iterator[bytes], path: str | None) -> None:
    if path is None:
        for block in blocks:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        return
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
            file.flush()


def _bytes(text: str) -> float:
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: expected a number with k, M or G behind it")
    return float(match[1]) * _SUFFIXES[match[2]]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="curl")
    parser.add_argument("-s", "--silent", action="store_true", help="there is never a progress meter")
    parser.add_argument("-S", "--show-error", action="store_true", help="errors are always shown")
    parser.add_argument("-o", "--output")
    parser.add_argument("-w", "--write-out", default="")
    parser.add_argument("--max-time", type=float, default=_FOREVER)
    parser.add_argument("--connect-timeout", type=float, default=_FOREVER)
    parser.add_argument("--limit-rate", type=_bytes, default=float("inf"))
    parser.add_argument("url")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
