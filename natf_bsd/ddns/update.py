"""One look at a zone's primary server, one update of it (RFC 2136) with a TSIG key; dnspython does the DNS.

What is replaced are the A records of the configured names. Their other records stay, AAAA included.
"""

from __future__ import annotations

from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update

from natf_bsd.config import DdnsConfig
from natf_bsd.errors import NatfError
from natf_bsd.types import Address, format_address

TIMEOUT: Final = 5.0
"""Seconds for the server to answer."""

_REASONS: Final = {
    dns.rcode.REFUSED: "it does not let this key update these names (BIND: update-policy or allow-update of the zone)",
    dns.rcode.NOTAUTH: "it is not the primary server of this zone, or does not know this key",
    dns.rcode.NOTZONE: "a name is not in this zone",
    dns.rcode.SERVFAIL: "it failed; its log says why (BIND: may it write the zone's directory?)",
    dns.rcode.NOTIMP: "it does no dynamic updates",
}


class UpdateFailed(NatfError):
    """The server could not be asked, or did not do it: in a sentence."""


def addresses(config: DdnsConfig) -> dict[str, list[str]]:
    """The A records the server has now, as text, by name. UpdateFailed."""
    return {name: _addresses(config, name) for name in config.names}


def _addresses(config: DdnsConfig, name: str) -> list[str]:
    query = dns.message.make_query(name, dns.rdatatype.A)
    query.flags &= ~dns.flags.RD
    answer = _exchange(config, query)
    if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise UpdateFailed(f"{_server(config)}: {dns.rcode.to_text(answer.rcode())} for {name}")
    found = answer.get_rrset(answer.answer, dns.name.from_text(name), dns.rdataclass.IN, dns.rdatatype.A)
    return sorted(map(str, found or ()))


def put(config: DdnsConfig, address: Address | None) -> None:
    """Make `address` the only A record of every name; None: leave them without one. UpdateFailed."""
    key = config.key
    change = dns.update.UpdateMessage(config.zone)
    change.use_tsig({dns.name.from_text(key.name): key.secret}, algorithm=dns.name.from_text(key.algorithm))
    for name in config.names:
        absolute = dns.name.from_text(name)
        if address is None:
            change.delete(absolute, dns.rdatatype.A)
        else:
            change.replace(absolute, config.ttl, dns.rdatatype.A, format_address(address))
    answer = _exchange(config, change)
    if answer.rcode() != dns.rcode.NOERROR:
        reason = _REASONS.get(answer.rcode(), "it did not do the update")
        raise UpdateFailed(f"{_server(config)}: {dns.rcode.to_text(answer.rcode())}, {reason}")
    if not answer.had_tsig:
        raise UpdateFailed(f"{_server(config)}: its answer is not signed, and so not believed")


def _exchange(config: DdnsConfig, message: dns.message.Message) -> dns.message.Message:
    """By TCP: an update and its answer may be long, and nobody forges one."""
    try:
        return dns.query.tcp(message, config.server, timeout=TIMEOUT, port=config.port)
    except dns.tsig.PeerBadTime:
        raise UpdateFailed(f"{_server(config)}: BADTIME, its clock and this host's differ by minutes") from None
    except dns.tsig.PeerBadKey:
        raise UpdateFailed(f"{_server(config)}: BADKEY, it knows no key {config.key.name}") from None
    except (dns.tsig.PeerBadSignature, dns.tsig.BadSignature):
        raise UpdateFailed(f"{_server(config)}: the secret or algorithm of key {config.key.name} is another") from None
    except dns.exception.Timeout:
        raise UpdateFailed(f"{_server(config)}: no answer within {TIMEOUT:g} s") from None
    except (dns.exception.DNSException, EOFError) as error:
        raise UpdateFailed(f"{_server(config)}: an answer that makes no sense ({error!r})") from None
    except OSError as error:
        raise UpdateFailed(f"{_server(config)}: {error.strerror or error}") from None


def _server(config: DdnsConfig) -> str:
    return f"name server {config.server}"
