"""What a host name and a domain name may be. Lower case; an international name is in its xn-- form.

The wire takes from outside whatever the DNS can hold of these characters; what a user writes follows RFC 1123 section
2.1 besides (no hyphen at either end of a label), with the underscore some names have.
"""

from __future__ import annotations

import re

DOMAIN_MAXIMUM = 253
"""Characters; 255 bytes in a DNS message (RFC 1035 section 2.3.4)."""

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_STRICT_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def is_label(text: str) -> bool:
    """Whether the HOST option can carry `text` (DESIGN.md section 5)."""
    return _LABEL.fullmatch(text) is not None


def is_domain(text: str) -> bool:
    """Whether the DOMAIN option can carry `text`; one label will do."""
    return len(text) <= DOMAIN_MAXIMUM and all(map(_LABEL.fullmatch, text.split(".")))


def is_written_label(text: str) -> bool:
    """Whether a user may write `text` for a host."""
    return _STRICT_LABEL.fullmatch(text) is not None


def is_written_domain(text: str) -> bool:
    """Whether a user may write `text` for a home domain: two labels or more."""
    return len(text) <= DOMAIN_MAXIMUM and "." in text and all(map(_STRICT_LABEL.fullmatch, text.split(".")))


def folded(text: str) -> str | None:
    """`text` in lower case and without the dot at its end; None if it is not ASCII, since str.lower would fold some
    letters from outside ASCII into it.
    """
    return text.removesuffix(".").lower() if text.isascii() else None
