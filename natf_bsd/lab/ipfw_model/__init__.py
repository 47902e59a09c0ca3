"""ipfw(8), ipfw(4), divert(4) and natd in memory, as FreeBSD 14.2 was seen to behave: FreeBSD code runs on it in tests.

`Host` joins everything; `Host.sockets` has the system calls on divert sockets, `Host.ipfw` is the program. What the
model does not know it refuses with `NotModelledError`: a wrong answer would be worse than none. The recordings it must
reproduce, and the events left out with their reasons, are in tests/ipfw_model.
"""

from natf_bsd.lab.ipfw_model.errors import CommandError, NotModelledError
from natf_bsd.lab.ipfw_model.host import LOOPBACK, Host, Interface, interface
from natf_bsd.lab.ipfw_model.natd import Libalias, Natd, SampledClock
from natf_bsd.lab.ipfw_model.sockets import AF_DIVERT, AF_INET, IPPROTO_DIVERT, SOCK_RAW, DivertAddress, DivertSockets

__all__ = [
    "AF_DIVERT",
    "AF_INET",
    "IPPROTO_DIVERT",
    "LOOPBACK",
    "SOCK_RAW",
    "CommandError",
    "DivertAddress",
    "DivertSockets",
    "Host",
    "Interface",
    "Libalias",
    "Natd",
    "NotModelledError",
    "SampledClock",
    "interface",
]
