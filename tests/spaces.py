"""Fresh network namespaces for one function: `isolated` runs it in a child process, and nothing is left behind.

For experiments with one kernel mechanism, where several hosts live in one process; `lab.figure1` is for whole systems.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec

import pytest

P = ParamSpec("P")

_CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MS_REC_PRIVATE: Final = 1 << 18 | 1 << 14  # linux/mount.h
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_TOOLS: Final = {"ip": "iproute2", "iptables": "iptables"}

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Space:
    """One more network namespace of this process. In its `with` block sockets are made and commands run there.

    A socket belongs to the space it was made in for good, so one thread can play several hosts.
    """

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _call("unshare", _CLONE_NEWNET)
        self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._outer: list[int] = []
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)
        self.run("ip link set lo up")

    def __enter__(self) -> Space:
        self._outer.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        _call("setns", self._descriptor, _CLONE_NEWNET)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outer = self._outer.pop()
        _call("setns", outer, _CLONE_NEWNET)
        os.close(outer)

    def run(self, command: str) -> str:
        """Standard output of a command, which must succeed."""
        with self:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{command}: {done.stderr.strip()}")
        return done.stdout

    def set(self, name: str, value: str) -> None:
        """A setting under /proc/sys."""
        with self:
            (Path("/proc/sys") / name).write_text(value)

    def cable(self, interface: str, address: str, peer: Space, peer_interface: str, peer_address: str) -> None:
        """An Ethernet link between two spaces, up, with an address ("203.0.113.1/24") at each end."""
        there = f"/proc/{os.getpid()}/fd/{peer._descriptor}"
        self.run(f"ip link add {interface} type veth peer name {peer_interface} netns {there}")
        for space, name, text in (self, interface, address), (peer, peer_interface, peer_address):
            space.run(f"ip address add {text} dev {name}")
            space.run(f"ip link set {name} up")


def isolated(function: Callable[P, None]) -> Callable[P, None]:
    """Run `function` in a child process with namespaces of its own, as root there; also without being root here.

    What it raises arrives as an AssertionError with the child's traceback as text.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        problem = _in_child(functools.partial(function, *args, **kwargs))
        if problem:
            raise AssertionError(problem)

    return run


LINUX: Final = pytest.mark.linux("network namespaces and netfilter")
"""For every test that uses this."""


@functools.cache
def unsupported() -> str | None:
    """Why `isolated` can't work here, or None."""
    if sys.platform != "linux":
        return f"needs network namespaces of Linux, this is {sys.platform}"
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian package {package})"
    problem = _in_child(lambda: None)
    return f"no network namespaces here: {problem.splitlines()[-1]}" if problem else None


def _in_child(body: Callable[[], None]) -> str:
    """The traceback of what `body` raised in the child; an empty text if nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _play(body, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as report:
        text = report.read()
    _, status = os.waitpid(child, 0)
    return text or ("" if status == 0 else f"the child process ended with wait status {status}")


def _play(body: Callable[[], None], writer: int) -> None:
    """The child's whole life; it never returns into its copy of the parent's program."""
    status = 1
    try:
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        _separate()
        body()
        status = 0
    except BaseException:
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _separate() -> None:
    """Leave the machine's namespaces: network and mounts always, users when we are not root."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
    else:
        _call("unshare", _CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        # Not in one call: files under /proc of a network made before its users are the machine's root's.
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC_PRIVATE, None)
    _call("mount", b"none", b"/run", b"tmpfs", 0, None)  # iptables keeps its lock there
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, capture_output=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
