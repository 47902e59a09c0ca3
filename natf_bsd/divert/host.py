"""What a divert socket asks the rest of a FreeBSD host: route MTUs, interface names, who holds a port."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from natf_bsd.types import Address

_AF_ROUTE: Final = 17  # FreeBSD sys/socket.h; net/route.h for the rest
_RTM_GET: Final = 4
_RTM_VERSION: Final = 5
_RTA_DST: Final = 1
# struct rt_msghdr: msglen, version, type, index, spare, flags, addrs, pid, seq, errno, fmask, inits; then rt_metrics:
# locks, mtu and 12 more. The same in 12 to 15, with the C compiler's alignment.
_RT_MSGHDR: Final = struct.Struct("@HBBHHiiiiiiL14L")
_MTU_FIELD: Final = 13
_SOCKADDR_IN: Final = struct.Struct("=BB2x4s8x")
_REPLY_SIZE: Final = 2048
_ROUTE_TIMEOUT: Final = 0.2  # the kernel answers within write(); this is for a reply lost to a full buffer
_TOOL_TIMEOUT: Final = 5.0


def route_mtu(destination: Address) -> int:
    """The MTU of the route to `destination`; 0 if there is none or the kernel does not say."""
    body = _SOCKADDR_IN.pack(_SOCKADDR_IN.size, socket.AF_INET, destination)
    try:
        with socket.socket(_AF_ROUTE, socket.SOCK_RAW) as route:
            route.settimeout(_ROUTE_TIMEOUT)
            route.send(route_request(body, os.getpid()))
            return next(filter(None, _answers(route)), 0)
    except OSError:  # ESRCH: no route
        return 0


def _answers(route: socket.socket) -> Iterator[int]:
    """The MTU in each message heard, 0 for messages about other things; ends by OSError when nothing more comes."""
    while True:
        yield mtu_of(route.recv(_REPLY_SIZE), os.getpid())


def route_request(destination: bytes, process: int) -> bytes:
    """RTM_GET for a packed sockaddr_in."""
    size = _RT_MSGHDR.size + len(destination)
    header = _RT_MSGHDR.pack(size, _RTM_VERSION, _RTM_GET, 0, 0, 0, _RTA_DST, process, 1, 0, 0, 0, *[0] * 14)
    return header + destination


def mtu_of(message: bytes, process: int) -> int:
    """The MTU in the answer to `route_request`; 0 for any other message of the routing socket."""
    if len(message) < _RT_MSGHDR.size:
        return 0
    _, version, kind, _, _, _, _, asked_by, *_ = fields = _RT_MSGHDR.unpack_from(message)
    if (version, kind, asked_by) != (_RTM_VERSION, _RTM_GET, process):
        return 0
    return int(fields[_MTU_FIELD])


def interface_names() -> Sequence[str]:
    """The interfaces of this host, or of this jail."""
    return [name for _, name in socket.if_nameindex()]


def divert_sockets() -> str:
    """What `sockstat -P divert` prints; empty where it can't be run."""
    try:
        done = subprocess.run(
            ["sockstat", "-P", "divert"], capture_output=True, text=True, check=False, timeout=_TOOL_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def holder_of(port: int, sockstat: str) -> str | None:
    """Who has divert `port` bound by the text of sockstat(1); None if it does not say.

    It prints question marks for a socket whose process it does not see: one in another jail, or of the jail's host.
    """
    for user, command, process in _holders(port, sockstat):
        return None if process == "?" else f"{command} (process {process} of {user})"
    return None


def is_held(port: int, sockstat: str) -> bool:
    """Whether anybody has divert `port` bound by the text of sockstat(1)."""
    return any(_holders(port, sockstat))


def _holders(port: int, sockstat: str) -> Iterator[tuple[str, str, str]]:
    for line in sockstat.splitlines():
        user, command, process, _, protocol, local, *_ = [*line.split(), *[""] * 6]
        if protocol.startswith("div") and local.rpartition(":")[2] == str(port):
            yield user, command, process


@dataclass(frozen=True, slots=True)
class Host:
    """The questions as values, so that a model host can answer them."""

    mtu_to: Callable[[Address], int] = route_mtu
    interfaces: Callable[[], Sequence[str]] = interface_names
    sockstat: Callable[[], str] = divert_sockets
