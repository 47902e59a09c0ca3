"""Keys of DNS updates (TSIG, RFC 8945), in the file tsig-keygen(8) writes and nsupdate(1) reads."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from natf_bsd.errors import ConfigError
from natf_bsd.keys import read_private

ALGORITHMS: Final = ("hmac-sha256", "hmac-sha384", "hmac-sha512", "hmac-sha224", "hmac-sha1")
"""Not MD5, which RFC 8945 says must not be used any more (section 6)."""

_FILE: Final = re.compile(
    r'\s*key\s+"?(?P<name>[A-Za-z0-9._-]+)"?\s*\{\s*'
    r'algorithm\s+"?(?P<algorithm>[a-z0-9-]+)"?\s*;\s*secret\s+"?(?P<secret>[A-Za-z0-9+/=]+)"?\s*;\s*\}\s*;\s*'
)
_EXPECTED: Final = 'expected what tsig-keygen writes: key "NAME" { algorithm hmac-sha256; secret "BASE64"; };'


@dataclass(frozen=True, slots=True)
class TsigKey:
    """A secret shared with a name server. Never shown."""

    name: str
    algorithm: str
    secret: bytes = field(repr=False)


def load_tsig_key(path: Path) -> TsigKey:
    """The key in `path`. NatfError when it cannot be read or others may read it, ConfigError for another content."""
    if not (found := _FILE.fullmatch(read_private(path, "tsig-keygen"))):
        raise ConfigError(path, 1, _EXPECTED)
    if found["algorithm"] not in ALGORITHMS:
        text = f"algorithm {found['algorithm']}: expected one of {', '.join(ALGORITHMS)}"
        raise ConfigError(path, _line(found, "algorithm"), text)
    try:
        secret = base64.b64decode(found["secret"], validate=True)
    except binascii.Error:
        raise ConfigError(path, _line(found, "secret"), "the secret is not base64") from None
    return TsigKey(found["name"], found["algorithm"], secret)


def _line(found: re.Match[str], group: str) -> int:
    return found.string.count("\n", 0, found.start(group)) + 1
