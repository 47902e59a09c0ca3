"""Which DNS names are private hosts: one label before a home domain (paper 3.2; DESIGN.md section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from natf_bsd.names import folded, is_domain, is_label
from natf_bsd.types import Name

ANY_DOMAIN = "*"  # the paper's way: whatever follows the first label is a home domain

_ANY_MINIMUM_LABELS = 2  # under "*" a home domain has at least these, so that `example.com` is nobody's private host


class HomeDomains:
    """The configured home domains, lower case and without the final dot in `domains`."""

    def __init__(self, domains: Sequence[str]) -> None:
        """ValueError when one of `domains` is neither a domain name (an IDN as A-labels) nor "*"."""
        self.domains = tuple(_checked(domain) for domain in domains)
        self._named = frozenset(self.domains) - {ANY_DOMAIN}
        self._any = ANY_DOMAIN in self.domains

    def split(self, qname: str) -> Name | None:
        """("alice", "home.example.net") for that name, whatever its case, final dot or not; None if it is not ours.

        A home domain itself is not ours, nor is a name with more labels before it, nor one a HOST option can't carry.
        """
        host, _, domain = (folded(qname) or "").partition(".")
        if domain not in self._named and not self._falls_under_any(f"{host}.{domain}", domain):
            return None
        return Name(host, domain) if is_label(host) else None

    def _falls_under_any(self, qname: str, domain: str) -> bool:
        return (
            self._any
            and qname not in self._named
            and domain.count(".") + 1 >= _ANY_MINIMUM_LABELS
            and is_domain(domain)
        )


def _checked(domain: str) -> str:
    name = folded(domain)
    if name is None or (name != ANY_DOMAIN and not is_domain(name)):
        raise ValueError(f"found home domain {domain!r}, expected a domain name such as home.example.net, or *")
    return name
