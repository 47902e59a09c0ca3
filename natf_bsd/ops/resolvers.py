"""The DNS servers this host asks, as resolv.conf(5) names them."""

from __future__ import annotations

from pathlib import Path

from natf_bsd.types import Address, parse_address

RESOLV_CONF = Path("/etc/resolv.conf")
_NSSWITCH = Path("/etc/nsswitch.conf")
_RESOLVED_CONF = Path("/run/systemd/resolve/resolv.conf")

_THIS_HOST = parse_address("0.0.0.0")
_LOOPBACK = parse_address("127.0.0.1")


def name_servers(text: str) -> frozenset[Address]:
    """The IPv4 addresses of the nameserver lines in `text`; this host itself if there is no such line at all
    (resolv.conf(5)). IPv6 servers are left out: their answers do not come by a packet we see."""
    lines = [words[1] for words in map(str.split, text.splitlines()) if len(words) > 1 and words[0] == "nameserver"]
    found = {_address(line) for line in lines} if lines else {_LOOPBACK}
    return frozenset(_LOOPBACK if address == _THIS_HOST else address for address in found if address is not None)


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None


class Resolvers:
    """The files that say it, read again and again: DHCP clients and VPNs rewrite them while we run.

    Where the name service asks systemd-resolved without a DNS packet (nss-resolve(8)), the servers that one asks count
    as well: nothing else of the look-up can be seen.
    """

    def __init__(
        self, resolv_conf: Path = RESOLV_CONF, switch: Path = _NSSWITCH, resolved_conf: Path = _RESOLVED_CONF
    ) -> None:
        self._resolv_conf = resolv_conf
        self._switch = switch
        self._resolved_conf = resolved_conf

    def read(self) -> frozenset[Address]:
        """Those in force now. OSError if a file is there that can't be read."""
        found = name_servers(_text(self._resolv_conf))
        if _asks_resolved(_text(self._switch)):
            upstream = _text(self._resolved_conf)
            found |= name_servers(upstream) if upstream else frozenset()
        return found


def _asks_resolved(text: str) -> bool:
    """Whether the line `hosts:` of an nsswitch.conf(5) names the service `resolve`."""
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return any("resolve" in words[1:] for words in lines if words and words[0] == "hosts:")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
