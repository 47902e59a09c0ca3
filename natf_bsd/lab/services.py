"""The servers on a lab's hosts, each a process: `python -m natf_bsd.lab.services http|udp-echo|dns|dns-relay|wait ...`.

Every server writes the line READY when it listens, then one line a request.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import select
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from natf_bsd.errors import NatfError
from natf_bsd.lab.topology import DNS_PORT, Host, Service, Zone

READY = "ready"

BIG_SIZE = 20_000_000
"""Bytes of `/big`: more than any buffer on the way, a fraction of a second at a gigabit."""

_BLOCK = 1 << 16


MODULE = (sys.executable, "-m", "natf_bsd.lab.services")


Server = tuple[list[str], str]
"""A server's process, and the text in its output that says it listens."""


def command(service: Service, host: Host) -> Server:
    """The server for `service`, not DNS, on `host`."""
    return [*MODULE, service.kind.value, "--name", host.name, "--port", str(service.port)], READY


def dns_command(zone: Zone, addresses: Sequence[str], dnsmasq: str | None, port: int = DNS_PORT) -> Server:
    """The DNS server for `zone` under some of its host's addresses. `dnsmasq` is its path, if it is installed."""
    if dnsmasq:
        return dnsmasq_command(dnsmasq, zone, addresses, port), "started"
    listen = [option for address in addresses for option in ("--listen", address)]
    return [*MODULE, "dns", *listen, "--port", str(port), *zone_arguments(zone)], READY


def relay_command(addresses: Sequence[str], server: str) -> Server:
    """What hands queries that are put to some of its host's addresses on to `server`, and the answers back."""
    listen = [option for address in addresses for option in ("--listen", address)]
    return [*MODULE, "dns-relay", *listen, "--port", str(DNS_PORT), "--to", server], READY


def find_dnsmasq() -> str | None:
    """Its path, if it is installed; not on an ordinary user's PATH in Debian."""
    return shutil.which("dnsmasq", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")


def dnsmasq_command(dnsmasq: str, zone: Zone, addresses: Sequence[str], port: int) -> list[str]:
    """dnsmasq with `zone`, no upstream, no files of the system, in the foreground as the user we are."""
    # local: without it a query for another record type of the name would be refused for want of an upstream.
    domains = [
        option for name, to in zone.domains.items() for option in (f"--address=/{name}/{to}", f"--local=/{name}/")
    ]
    return [
        dnsmasq,
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--log-queries",
        "--bind-interfaces",
        *(f"--listen-address={address}" for address in addresses),
        f"--port={port}",
        f"--local-ttl={zone.ttl}",
        *domains,
        *(f"--host-record={name},{to}" for name, to in zone.hosts.items()),
        "--local=/#/",
    ]


def zone_arguments(zone: Zone) -> list[str]:
    """`zone` as the arguments of our own server, which `parse_zone` reads."""
    domains = [option for name, to in zone.domains.items() for option in ("--domain", f"{name}={to}")]
    hosts = [option for name, to in zone.hosts.items() for option in ("--host", f"{name}={to}")]
    return [*domains, *hosts, "--ttl", str(zone.ttl)]


def parse_zone(arguments: argparse.Namespace) -> Zone:
    def table(pairs: list[str]) -> dict[str, str]:
        return {name: to for name, _, to in (pair.partition("=") for pair in pairs)}

    return Zone(table(arguments.domain), table(arguments.host), arguments.ttl)


# What is served.


def page(name: str, client: str) -> bytes:
    """The page of host `name`, which tells `client` ("address:port") where it was seen to come from."""
    return f"This is {name}'s page.\nYou are {client}.\n".encode()


def big_blocks(name: str, size: int = BIG_SIZE) -> Iterator[bytes]:
    """The file `/big` of host `name`: the same every time, another one on every host."""
    for start in range(0, size, _BLOCK):
        yield hashlib.shake_128(f"{name} {start}".encode()).digest(min(_BLOCK, size - start))


def big_digest(name: str) -> str:
    """SHA-256 of `/big`, in hex."""
    digest = hashlib.sha256()
    for block in big_blocks(name):
        digest.update(block)
    return digest.hexdigest()


# The servers.


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 1024
    """socketserver's 5 would drop SYNs of a few hundred concurrent clients."""

    daemon_threads = True

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        super().__init__(("", port), _HttpHandler)

    def server_bind(self) -> None:
        """Without HTTPServer's reverse look-up of our own name, which waits for a DNS server that may not be up."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.name, self.server_address[1]


class _HttpHandler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, [page(self.server.name, self.address_string())])
        elif self.path == "/big":
            self._answer(200, big_blocks(self.server.name), BIG_SIZE)
        else:
            self._answer(404, [b"No such page; there are / and /big.\n"])

    do_HEAD = do_GET

    def _answer(self, status: int, body: Iterator[bytes] | list[bytes], length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if length is None else "application/octet-stream")
        self.send_header("Content-Length", str(sum(map(len, body)) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            for block in body:
                self.wfile.write(block)

    def address_string(self) -> str:
        """With the port: it shows the NAT's work."""
        return f"{self.client_address[0]}:{self.client_address[1]}"


def serve_http(name: str, port: int) -> None:
    with _HttpServer(name, port) as server:
        _say(READY)
        server.serve_forever()


def serve_udp_echo(name: str, port: int) -> None:
    """Answer every datagram by itself, with "NAME: " before it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", port))
        _say(READY)
        while True:
            data, client = server.recvfrom(65535)
            _say(f"{len(data)} bytes from {client[0]}:{client[1]}")
            server.sendto(f"{name}: ".encode() + data, client)


def serve_dns(zone: Zone, addresses: Sequence[str], port: int) -> None:
    """The stand-in for dnsmasq: same zone, same answers, by UDP and by TCP."""
    with contextlib.ExitStack() as stack:
        servers = _bound(stack, addresses, port)
        streams = [stack.enter_context(socket.create_server((address, port))) for address in addresses]
        _say(READY)
        while True:
            for ready in select.select([*servers, *streams], [], [])[0]:
                if ready in streams:
                    # A thread: who connects and says nothing keeps nobody from being answered.
                    threading.Thread(target=_serve_stream, args=(ready.accept()[0], zone), daemon=True).start()
                    continue
                data, client = ready.recvfrom(65535)
                if (answer := dns_answer(data, zone)) is not None:
                    ready.sendto(answer, client)


def _bound(stack: contextlib.ExitStack, addresses: Sequence[str], port: int) -> list[socket.socket]:
    servers = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in addresses]
    for server, address in zip(servers, addresses, strict=True):
        server.bind((address, port))
    return servers


def _serve_stream(connection: socket.socket, zone: Zone) -> None:
    """One query behind its length, and its answer likewise (RFC 1035, 4.2.2)."""
    with connection, contextlib.suppress(OSError, struct.error):
        connection.settimeout(5)
        with connection.makefile("rb") as stream:
            (length,) = struct.unpack("!H", stream.read(2))
            answer = dns_answer(stream.read(length), zone)
        if answer is not None:
            connection.sendall(struct.pack("!H", len(answer)) + answer)


_RELAYED = 64
"""Queries that wait for an answer; the oldest is forgotten for another one."""


def relay_dns(addresses: Sequence[str], server: str, port: int) -> None:
    """Each query is put to `server` from a port of its own, as resolvers do."""
    with contextlib.ExitStack() as stack:
        servers = _bound(stack, addresses, port)
        waiting: dict[socket.socket, tuple[socket.socket, tuple[str, int]]] = {}
        _say(READY)
        while True:
            while len(waiting) > _RELAYED:
                oldest = next(iter(waiting))
                del waiting[oldest]
                oldest.close()
            for ready in select.select([*servers, *waiting], [], [])[0]:
                with contextlib.suppress(
                    OSError
                ):  # the server refuses, or there is no way to it: then it is asked again
                    if ready in waiting:
                        own, client = waiting.pop(ready)
                        with ready:
                            own.sendto(ready.recv(65535), client)
                        continue
                    data, client = ready.recvfrom(65535)
                    query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    waiting[query] = ready, client
                    query.connect((server, port))
                    query.send(data)


def dns_answer(query: bytes, zone: Zone) -> bytes | None:
    """The answer to the DNS message `query`; None to what is no query."""
    import dns.exception
    import dns.flags
    import dns.message
    import dns.rcode
    import dns.rdataclass
    import dns.rdatatype
    import dns.rrset

    try:
        message = dns.message.from_wire(query)
        response = dns.message.make_response(message, recursion_available=True)
    except (dns.exception.DNSException, ValueError):  # ValueError: an opcode that dnspython 2.3 does not know
        return None
    if len(message.question) != 1:
        return None
    question = message.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    address = zone.address(name)
    if not zone.exists(name):
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif address is not None and question.rdtype == dns.rdatatype.A:
        response.flags |= dns.flags.AA
        response.answer.append(dns.rrset.from_text(question.name, zone.ttl, "IN", "A", address))
    return response.to_wire()


# Waiting until they can be reached.


def wait_for(targets: Sequence[str], timeout: float) -> None:
    """Poll each of `targets` ("http:ADDRESS:PORT") until it answers. NatfError names those that don't in `timeout` s.

    Kinds are those of ServiceKind, and "host", which any answer to a connection attempt satisfies, a refusal too.
    """
    deadline = time.monotonic() + timeout
    waiting = list(targets)
    while waiting := [target for target in waiting if not _answers(target)]:
        if time.monotonic() > deadline:
            raise NatfError(f"no answer within {timeout:g} s: {', '.join(waiting)}")


_PATIENCE = 0.2
"""Seconds one look takes at most: a neighbour's answer comes within 1 ms, or its packet was lost."""


def _answers(target: str) -> bool:
    kind, address, port = target.split(":")
    try:
        return _LOOKS[kind](address, int(port))
    except OSError:
        time.sleep(0.01)
        return False


def _look_tcp(address: str, port: int) -> bool:
    socket.create_connection((address, port), timeout=_PATIENCE).close()
    return True


def _look_host(address: str, port: int) -> bool:
    try:
        return _look_tcp(address, port)
    except ConnectionRefusedError:
        return True


def _look_udp(data: bytes) -> Callable[[str, int], bool]:
    def look(address: str, port: int) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(_PATIENCE)
            client.connect((address, port))
            client.send(data)
            return bool(client.recv(65535))

    return look


_ROOT_QUERY = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\0" + struct.pack("!2H", 1, 1)
"""A question for the A record of the root (RFC 1035, 4.1); that there is none is an answer too."""

_LOOKS: dict[str, Callable[[str, int], bool]] = {
    "http": _look_tcp,
    "udp-echo": _look_udp(b"anybody there?"),
    "dns": _look_udp(_ROOT_QUERY),
    "host": _look_host,
}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m natf_bsd.lab.services")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("http", "udp-echo"):
        server = kinds.add_parser(kind)
        server.add_argument("--name", required=True)
        server.add_argument("--port", type=int, required=True)
    server = kinds.add_parser("dns")
    server.add_argument("--listen", action="append", required=True)
    server.add_argument("--port", type=int, required=True)
    server.add_argument("--domain", action="append", default=[])
    server.add_argument("--host", action="append", default=[])
    server.add_argument("--ttl", type=int, required=True)
    relay = kinds.add_parser("dns-relay")
    relay.add_argument("--listen", action="append", required=True)
    relay.add_argument("--port", type=int, required=True)
    relay.add_argument("--to", required=True)
    wait = kinds.add_parser("wait")
    wait.add_argument("--timeout", type=float, default=5.0)
    wait.add_argument("target", nargs="+")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    match options.kind:
        case "http":
            serve_http(options.name, options.port)
        case "udp-echo":
            serve_udp_echo(options.name, options.port)
        case "dns":
            serve_dns(parse_zone(options), options.listen, options.port)
        case "dns-relay":
            relay_dns(options.listen, options.to, options.port)
        case "wait":
            try:
                wait_for(options.target, options.timeout)
            except NatfError as error:
                sys.exit(str(error))


if __name__ == "__main__":
    main()
