"""Virtual addresses: which 240.B.C.D stands for a private host (paper 3.2; DESIGN.md section 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from natf_bsd.types import Address, Name

FIRST_OCTET = 240  # class E, reserved (RFC 1112 section 4): no host answers there
COUNT_PER_HASH = 256  # values of B


class VirtualAddresses:
    """The prefix virtual addresses come from, and the order in which a name tries them."""

    def __init__(self, first_octet: int = FIRST_OCTET, key: bytes = b"") -> None:
        """`key`, at most 64 bytes, makes the hash a secret: who knows it can make names whose addresses collide.

        ValueError when `first_octet` can't begin a host's address (RFC 6890: 0, 127, multicast, 255).
        """
        if not 1 <= first_octet <= 254 or first_octet == 127 or 224 <= first_octet <= 239:
            raise ValueError(
                f"virtual addresses can't begin with {first_octet}, expected 240 or another first octet of hosts"
            )
        self.first_octet = first_octet
        self._key = key

    def candidates(self, name: Name) -> Iterator[Address]:
        """The 256 addresses `name` may have, in order: A.B.C.D, C = hash(domain), D = hash(host), B counting up from 0.

        The hash is 1 + (first 8 bytes of BLAKE2b-64, big-endian) mod 254, of the ASCII text under the key: 1..254, the
        same in every process and release.
        """
        c, d = self._hash(name.domain), self._hash(name.host)
        return (bytes((self.first_octet, b, c, d)) for b in range(COUNT_PER_HASH))

    def contains(self, address: Address) -> bool:
        return address[0] == self.first_octet

    def _hash(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode("ascii"), digest_size=8, key=self._key).digest()
        return 1 + int.from_bytes(digest, "big") % 254
