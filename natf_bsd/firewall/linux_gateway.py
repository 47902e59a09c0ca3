"""What an external node's rules on Linux have besides where it serves the hosts behind its NAT [3.4]: a gateway.

`linux` puts these rules in front of its own, chain by chain; `divert.inside` is what reads and writes the device.

out: P1:s -> V1:d, forwarded into the TUN device, SNAT: G1:s -> V1:d; the daemon sends G1:s -> G2:m by a raw socket
in:  G2:m -> G1:s, told by its connection's mark, queued; the daemon writes V1:d -> G1:s to the TUN, NAT: -> P1:s
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from natf_bsd.firewall.command import Check, Command, Judge, Sysctl
from natf_bsd.types import Address, format_address

# Ours among routing protocols and rule priorities: a number without a name in /etc/iproute2/rt_protos; 78 is ASCII N.
ROUTE_PROTOCOL: Final = 78
IP_NOTHING_THERE: Final = (2,)
"""Exit statuses of ip(8) when the kernel has no such rule or route (it "said no"); 1 is a fault in the command."""

# The IPv4 dummy address (RFC 7600, in IANA's special-purpose registry): no host has it.
_DUMMY: Final = "192.0.0.8"

# Below the ports Linux gives the programs of the host itself (32768 to 60999): an inside host's flow to V1:d must not
# be taken for one of theirs, which conntrack never sees as G1:s -> V1:d.
_PORTS: Final = "1024-32767"


@dataclass(frozen=True, slots=True)
class Gateway:
    """`interface` is the outer one, with its `mtu` (bytes) and its address G1; `tun` is the device; `queue` and `mark`
    are those of answers for inside hosts."""

    interface: str
    address: Address
    mtu: int
    tun: str
    queue: int
    mark: int


def forward(gateway: Gateway, prefix: str) -> list[str]:
    """Of filter FORWARD: inside hosts to virtual addresses, and what answers them; the host's own policy knows no
    TUN. Nobody on the outer interface may use them."""
    return [
        f"! -i {gateway.interface} -o {gateway.tun} -d {prefix} -j ACCEPT",
        f"-i {gateway.tun} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        f"-i {gateway.tun} -j DROP",
    ]


def incoming(gateway: Gateway) -> list[str]:
    """Of filter INPUT: an answer whose inside host conntrack has forgotten is not for this host's programs."""
    return [f"-i {gateway.tun} -j DROP"]


def source_nat(gateway: Gateway) -> list[str]:
    """Of nat POSTROUTING: NAT comes before VAT (step 2.5 of 3.4), as if the device were the outer interface."""
    address = format_address(gateway.address)
    ported = [f"-o {gateway.tun} -p {name} -j SNAT --to-source {address}:{_PORTS}" for name in ("tcp", "udp")]
    return [*ported, f"-o {gateway.tun} -j SNAT --to-source {address}"]


def not_forged(gateway: Gateway) -> list[str]:
    """Of raw PREROUTING: class E sources that the daemon makes."""
    return [f"-i {gateway.tun} -j RETURN"]


def answers(gateway: Gateway, mask: int) -> list[str]:
    """Of mangle INPUT. No bypass, as for the host's own programs."""
    return [f"-m connmark --mark {gateway.mark:#x}/{mask:#x} -j NFQUEUE --queue-num {gateway.queue}"]


def marked(gateway: Gateway, mask: int) -> list[str]:
    """Of mangle OUTPUT: what the daemon's raw socket sends carries the mark, and the answers' connection gets it."""
    save = f"-j CONNMARK --save-mark --nfmask {mask:#x} --ctmask {mask:#x}"
    return [f"-m mark --mark {gateway.mark:#x}/{mask:#x} {save}"]


def route(gateway: Gateway, prefix: str) -> list[Command]:
    """The way into the TUN device, which must be open already."""
    # The source is for the host's own programs: they would get that of any interface.
    way = (prefix, "dev", gateway.tun, "src", format_address(gateway.address), "proto", str(ROUTE_PROTOCOL))
    return [
        Command(("ip", "link", "set", gateway.tun, "up", "mtu", str(gateway.mtu))),
        # On a device without an address even the loose reverse path filter takes only sources that are routed to it
        # (fib_validate_source, seen on 6.18), and errors of hops on the way would never reach an inside host.
        Command(("ip", "-4", "address", "replace", f"{_DUMMY}/32", "dev", gateway.tun, "scope", "host")),
        Command(("ip", "-4", "route", "replace", *way)),
    ]


def no_route() -> list[Command]:
    """Undoes `route`, whatever the device was called; that goes with the daemon."""
    argv = ("ip", "-4", "route", "flush", "table", "main", "proto", str(ROUTE_PROTOCOL))
    return [Command(argv, may_fail=IP_NOTHING_THERE)]


def sysctls(gateway: Gateway) -> list[Sysctl]:
    """Kernel settings of the TUN device, to be applied through a `SysctlJournal`."""
    return [
        # Loose: ICMP errors come from routers on the way, which are reached by the outer interface (see `route`).
        Sysctl(f"net/ipv4/conf/{gateway.tun}/rp_filter", "2"),
        Sysctl(f"net/ipv6/conf/{gateway.tun}/disable_ipv6", "1", optional=True),
    ]


def route_is_free(gateway: Gateway, prefix: str) -> Check:
    """Whether nobody else has a route for the virtual addresses: `route` would replace it."""
    return Check(Command(("ip", "-4", "route", "show", "exact", prefix)), _route_judge(gateway, prefix))


def look(gateway: Gateway) -> Iterator[str]:
    """Lines of the process that lists what is in force; see `guard.read`."""
    names = " ".join(setting.name for setting in sysctls(gateway))
    yield f"echo '# route'; ip -4 route show table main proto {ROUTE_PROTOCOL} 2>/dev/null"
    yield f"echo '# settings'; cd /proc/sys && cat {names} 2>/dev/null"
    yield f"echo '# device'; ip -o -4 address show dev {shlex.quote(gateway.tun)} up 2>/dev/null | cut -d: -f2-"


def _route_judge(gateway: Gateway, prefix: str) -> Judge:
    def judge(status: int, output: str) -> str | None:
        if status:
            return f"ip route does not work here (status {status}); is iproute2 installed?"
        foreign = [line for line in output.splitlines() if line.strip() and f"dev {gateway.tun} " not in f"{line} "]
        return f"a route to {prefix} exists: {foreign[0].strip()}; virtual addresses need it" if foreign else None

    return judge
