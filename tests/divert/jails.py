"""FreeBSD: run a function in a child process inside a vnet jail that has lo0, an empty ipfw, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

_MODULES = ("ipfw", "ipdivert")
_SETTLE = 0.3  # seconds in which a packet over loopback surely arrives: it is queued to another kernel thread


@functools.cache
def unsupported() -> str | None:
    """Why `isolated` can't work here, or None. Loading ipfw could lock the user out of the machine: not done here."""
    if not sys.platform.startswith("freebsd"):
        return f"needs FreeBSD, this is {sys.platform}"
    if os.geteuid() != 0:
        return "needs root, to make a vnet jail"
    for module in _MODULES:
        if subprocess.run(["kldstat", "-q", "-m", module], check=False).returncode:
            return f"the kernel module {module} is not loaded (kldload {module}; ipfw denies everything at first)"
    return None


def command(text: str) -> str:
    """Standard output of a command, which must succeed."""
    done = subprocess.run(shlex.split(text), capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{text}: {done.stderr.strip()}")
    return done.stdout


def heard(receiver: socket.socket) -> list[bytes]:
    """The datagrams that arrive until nothing more does for a while."""
    found = []
    while select.select([receiver], [], [], _SETTLE)[0]:
        found.append(receiver.recv(65535))
    return found


def isolated(function: Callable[[], None]) -> Callable[[], None]:
    """What `function` raises in the jail arrives as an AssertionError with its traceback as text."""

    @functools.wraps(function)
    def run() -> None:
        with _jail() as number:
            problem = _in_child(number, function)
        if problem:
            raise AssertionError(problem)

    return run


@contextlib.contextmanager
def _jail() -> Iterator[int]:
    number = int(command(f"jail -i -c name=natf-test-{os.getpid()} path=/ vnet persist"))
    try:
        yield number
    finally:
        command(f"jail -r {number}")


def _in_child(jail: int, body: Callable[[], None]) -> str:
    """The traceback of what `body` raised inside; an empty text if nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _play(jail, body, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as report:
        text = report.read()
    _, status = os.waitpid(child, 0)
    return text or ("" if status == 0 else f"the child process ended with wait status {status}")


def _play(jail: int, body: Callable[[], None], writer: int) -> None:
    """The child's whole life; it never returns into its copy of the parent's program."""
    status = 1
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.jail_attach(jail) != 0:
            raise OSError(ctypes.get_errno(), "jail_attach")
        command("ifconfig lo0 mtu 1500")
        command("ifconfig lo0 inet 127.0.0.1/8 up")
        command("ipfw -q add 65000 allow ip from any to any")
        body()
        status = 0
    except BaseException:
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(status)
