"""A UPnP IGD control point, on the inside host: `python -m natf_bsd.bench.peers.upnp ROUTER OWN`.

The router is looked for once (SSDP, whose answers may take a second by its rules); what is timed is AddPortMapping.
"""

from __future__ import annotations

import http.client
import socket
import sys
from typing import Final
from urllib.parse import urlsplit
from xml.etree import ElementTree

from natf_bsd.bench.peers import asker
from natf_bsd.errors import WireError

_GROUP: Final = ("239.255.255.250", 1900)
_SERVICE: Final = "urn:schemas-upnp-org:service:WANIPConnection:1"
_SEARCH: Final = (
    f'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {_SERVICE}\r\n\r\n'
)
_DEVICE: Final = "{urn:schemas-upnp-org:device-1-0}"


def description(own: str) -> str:
    """The address of the router's description."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
        s.sendto(_SEARCH.encode(), _GROUP)
        for line in s.recv(2048).decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.lower() == "location":
                return value.strip()
    raise WireError("an answer to M-SEARCH without a location")


def control_path(document: bytes) -> str:
    """Where the service that maps ports is controlled, by the router's description."""
    for service in ElementTree.fromstring(document).iter(f"{_DEVICE}service"):
        path = service.findtext(f"{_DEVICE}controlURL")
        if service.findtext(f"{_DEVICE}serviceType") == _SERVICE and path:
            return path
    raise WireError(f"the router has no {_SERVICE}")


def envelope(action: str, external: int, **more: object) -> bytes:
    """AddPortMapping or DeletePortMapping of a TCP port."""
    arguments = {"NewRemoteHost": "", "NewExternalPort": external, "NewProtocol": "TCP"} | more
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{_SERVICE}">{inner}</u:{action}></s:Body></s:Envelope>'
    ).encode()


def _exchange(where: str, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    connection = http.client.HTTPConnection(where, timeout=2)
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        data = reply.read()
    finally:
        connection.close()
    if reply.status != http.HTTPStatus.OK:
        raise WireError(f"{method} {path}: status {reply.status}: {data[:300]!r}")
    return data


def main(router: str, own: str) -> None:
    place = urlsplit(description(own))
    path = control_path(_exchange(place.netloc, "GET", place.path))

    def act(action: str, external: int, **more: object) -> None:
        headers = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{_SERVICE}#{action}"'}
        _exchange(place.netloc, "POST", path, envelope(action, external, **more), **headers)

    def ask(external: int) -> None:
        act(
            "AddPortMapping",
            external,
            NewInternalPort=external,
            NewInternalClient=own,
            NewEnabled=1,
            NewPortMappingDescription="bench",
            NewLeaseDuration=600,
        )

    asker.serve(ask, lambda external: act("DeletePortMapping", external))


if __name__ == "__main__":
    main(*sys.argv[1:])
