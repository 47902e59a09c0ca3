"""In-kernel NAT instances: `ipfw nat N config ...`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from natf_bsd.lab.ipfw_model.errors import EX_DATAERR, CommandError, NotModelledError
from natf_bsd.lab.ipfw_model.natd import Libalias
from natf_bsd.types import Address, Direction, Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire.packet import Rewrite, flow_of

_FLAGS = ("log", "deny_in", "same_ports", "unreg_only", "reset", "reverse", "proxy_only")
"""In the order ipfw(8) prints them."""
_REDIRECTS = {"redirect_port", "redirect_addr", "redirect_proto"}


@dataclass(frozen=True, slots=True)
class Redirect:
    """What `reverse redirect_port PROTO LOCAL ALIAS REMOTE` does: the fully specified, permanent link of one flow.

    `reverse` exchanges in and out: what goes out to ALIAS goes to LOCAL, what comes in from LOCAL is from ALIAS. No
    other packet is let near it here: libalias would make links of its own for it, and even change the source of one
    that comes in (FREEBSD.md 5.1).
    """

    protocol: int
    local: Endpoint
    alias: Endpoint
    remote: Endpoint

    def passes(self, data: bytearray, direction: Direction, _now: float) -> bool:
        """Translate it, as `Libalias.passes`."""
        flow = flow_of(data)
        if direction is Direction.OUT and flow == Flow(self.protocol, self.remote, self.alias):
            Rewrite(destination=(self.alias, self.local)).apply(data)
        elif direction is Direction.IN and flow == Flow(self.protocol, self.local, self.remote):
            Rewrite(source=(self.local, self.alias)).apply(data)
        else:
            raise NotModelledError(f"{flow} {direction.value} at an instance for another flow")
        return True


@dataclass(slots=True)
class NatInstance:
    """One instance; its links live and die with it."""

    number: int
    source: str
    address: Address
    flags: frozenset[str]
    redirects: tuple[str, ...] = ()
    _libalias: Libalias | None = field(default=None)

    @property
    def text(self) -> str:
        flags = [flag for flag in _FLAGS if flag in self.flags]
        return " ".join((f"ipfw nat {self.number} config {self.source}", *flags, *self.redirects))

    def translator(self, draw: random.Random) -> Libalias | Redirect:
        if self.flags == {"reverse"} and len(self.redirects) == 1:
            return self._redirect(self.redirects[0].split())
        if self.redirects or self.flags & {"reverse", "proxy_only", "unreg_only"}:
            raise NotModelledError(f"translation by: {self.text}")
        if self._libalias is None:
            deny_incoming, same_ports = "deny_in" in self.flags, "same_ports" in self.flags
            self._libalias = Libalias(self.address, deny_incoming=deny_incoming, same_ports=same_ports, draw=draw)
        return self._libalias

    def _redirect(self, words: list[str]) -> Redirect:
        match words:
            case ["redirect_port", protocol, local, alias, remote] if protocol.upper() in Protocol.__members__:
                link = Redirect(Protocol[protocol.upper()], *map(_endpoint, (local, alias, remote)))
                if link.alias.address == self.address:
                    return link
        raise NotModelledError(f"translation by: {self.text}")


def _endpoint(text: str) -> Endpoint:
    address, colon, port = text.partition(":")
    if not (colon and port.isdigit()):
        raise NotModelledError(f"a redirect with {text}, not a.b.c.d:port")
    return Endpoint(parse_address(address), int(port))


def parse_config(number: int, words: list[str], address_of: Callable[[str], Address | None]) -> NatInstance:
    """The words behind `nat N config`; `address_of` raises KeyError for an unknown interface."""
    if not words:
        raise CommandError(EX_DATAERR, "missing option")
    source, address = "", bytes(4)
    flags: set[str] = set()
    redirects: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word in ("if", "ip") and left:
            argument = left.pop(0)
            source = f"{word} {argument}"
            address = _interface_address(argument, address_of) if word == "if" else parse_address(argument)
        elif word in _FLAGS:
            flags.add(word)
        elif word in _REDIRECTS:
            arguments = _take_redirect(left)
            redirects.append(" ".join((word, *arguments)))
        else:
            raise CommandError(EX_DATAERR, f"unrecognised option ``{word}''")
    return NatInstance(number, source, address, frozenset(flags), tuple(redirects))


def _interface_address(name: str, address_of: Callable[[str], Address | None]) -> Address:
    try:
        address = address_of(name)
    except KeyError:
        raise CommandError(1, f"unknown interface name {name}") from None
    if address is None:
        raise NotModelledError(f"ipfw nat on {name}, which has no address")
    return address


def _take_redirect(left: list[str]) -> list[str]:
    taken = []
    while left and left[0] not in _REDIRECTS and left[0] not in _FLAGS:
        taken.append(left.pop(0))
    return taken
