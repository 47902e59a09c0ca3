"""A PCP client (RFC 6887), on the inside host: `python -m natf_bsd.bench.peers.pcp ROUTER OWN`."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Final

from natf_bsd.bench.peers import asker
from natf_bsd.errors import WireError

PORT: Final = 5351
_MAP: Final = 1
_RESPONSE: Final = 0x80
_HEADER: Final = struct.Struct("!BBxxI16s")  # version, opcode, lifetime, client's address
_BODY: Final = struct.Struct("!12sB3xHH16s")  # nonce, protocol, internal port, external port, external address
_TCP: Final = 6
_LIFETIME: Final = 600


def mapped(address: str) -> bytes:
    """An IPv4 address as PCP has it (RFC 4291, 2.5.5.2)."""
    return bytes(10) + b"\xff\xff" + socket.inet_pton(socket.AF_INET, address)


def request(own: str, internal: int, external: int, nonce: bytes, lifetime: int = _LIFETIME) -> bytes:
    """Of a TCP port, which the router need not make `external` (section 11.1). Lifetime 0 ends a mapping (15)."""
    body = _BODY.pack(nonce, _TCP, internal, external, mapped("0.0.0.0"))
    return _HEADER.pack(2, _MAP, lifetime, mapped(own)) + body


def answer(data: bytes, nonce: bytes) -> int:
    """The external port; WireError for a refusal and for what is no answer to the request with this `nonce`."""
    if len(data) < 24 + _BODY.size or data[0] != 2 or data[1] != _RESPONSE | _MAP:
        raise WireError(f"no answer to a MAP request: {data[:4].hex()}")
    if data[3]:
        raise WireError(f"PCP result {data[3]} (RFC 6887, 7.4)")
    found, _, _, external, _ = _BODY.unpack_from(data, 24)
    if found != nonce:
        raise WireError("the answer to another request")
    return int(external)


def main(router: str, own: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.25)
        s.connect((router, PORT))

        nonce = os.urandom(12)

        def ask(external: int, lifetime: int = _LIFETIME) -> None:
            s.send(request(own, external, external, nonce, lifetime))
            if answer(s.recv(1100), nonce) != external:
                raise WireError(f"port {external} is taken")

        asker.serve(ask, lambda external: ask(external, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
