"""Load makers, the same for every way: `python -m natf_bsd.bench.load serve|setup|throughput|echo|ask ...` on a host.

A client prints one JSON value. Bytes are counted where they arrive.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from natf_bsd.types import Endpoint, Flow, Name, parse_address
from natf_bsd.wire import icmp, message

T = TypeVar("T")

PORT: Final = 9000
OTHERS: Final = 9001
"""The server's port for NAT-f, and that for all other ways: with one for both, two flows from the same source port
would be one to the router's NAT."""
READY: Final = "ready"
BETWEEN_FLOWS: Final = 0.002
"""Seconds between two connections."""

_GREETING: Final = b"!"
_DATA: Final = {"awake": b"D", "asleep": b"d"}
"""Of streams of datagrams, by whether who receives them stays awake in between."""
_LINE: Final = 64
_BLOCK: Final = 1 << 16
_PATIENCE: Final = 10.0  # s; above any pause a measurement may have
_AWAKE: Final = 0.01  # s; above any gap in a stream
_BUFFER: Final = 4 << 20  # bytes; else a burst of datagrams measures the receiver's wake-up


# The server, on the inside host.


class _TcpHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.sendall(_GREETING)
        words = connection.recv(_LINE, socket.MSG_WAITALL).split()
        if not words:
            return
        size, seconds = int(words[1]), float(words[2])
        if words[0] == b"get":
            _pour(connection, size, seconds)
            return
        connection.sendall(f"{json.dumps(_drain(connection))}\n".encode())


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def server_activate(self) -> None:
        super().server_activate()
        _steady(self.socket)


def _steady(s: socket.socket) -> None:
    """The congestion control of nearly all hosts. BBR, which some have, probes in rounds as long as our turns."""
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def _pour(connection: socket.socket, size: int, seconds: float) -> None:
    """Messages of `size` bytes for so many seconds."""
    data = bytes(size)
    send = connection.send
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(64):
            send(data)
    connection.shutdown(socket.SHUT_WR)


def _drain(connection: socket.socket) -> list[float]:
    """Bytes until the other side has ended, and the seconds they took."""
    buffer = bytearray(_BLOCK)
    total = connection.recv_into(buffer)
    began = time.perf_counter()
    while count := connection.recv_into(buffer):
        total += count
    return [total, time.perf_counter() - began]


class _Count:
    """Datagrams of one sender: bytes, and when the first and the last came."""

    def __init__(self) -> None:
        self.bytes = 0
        self.first = self.last = 0.0


def _serve_udp(port: int) -> None:
    counts: dict[Any, _Count] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        s.bind(("", port))
        streams = False
        while True:
            data, source = _next_of_stream(s) if streams else _next(s)
            streams = data.startswith(_DATA["awake"])
            if data[:1] in _DATA.values():
                now = time.perf_counter()
                count = counts.setdefault(source, _Count())
                count.first = count.first or now
                count.last = now
                count.bytes += len(data)
            elif data.startswith(b"report"):
                count = counts.get(source, _Count())
                s.sendto(json.dumps([count.bytes, count.last - count.first]).encode(), source)
            elif data.startswith(b"get"):
                _, size, seconds, receiver = data.decode().split()
                arguments = s, source, _DATA[receiver] * int(size), float(seconds)
                threading.Thread(target=_stream, args=arguments, daemon=True).start()
            else:
                s.sendto(data, source)


def _next_of_stream(s: socket.socket) -> tuple[bytes, Any]:
    """The next datagram to a blocking socket without Python's own timeout; asleep only if none comes for a while.

    Waking a sleeper is the work of whoever sends, here on the same machine, and costs as much as all that is measured:
    the slower way would pay for it with each packet, and the faster one never. Not where a daemon rewrites packets:
    that wants the processor on which a receiver stays awake.
    """
    end = time.perf_counter() + _AWAKE
    while time.perf_counter() < end:
        try:
            return s.recvfrom(2048, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
    return _next(s)


def _next(s: socket.socket) -> tuple[bytes, Any]:
    return s.recvfrom(2048)


def _stream(s: socket.socket, to: Any, data: bytes, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(64):
            s.sendto(data, to)
    for _ in range(5):
        time.sleep(0.02)
        s.sendto(b"end", to)


def serve() -> None:
    others = _Tcp(("", OTHERS), _TcpHandler)
    threading.Thread(target=others.serve_forever, daemon=True).start()
    server = _Tcp(("", PORT), _TcpHandler)
    for port in PORT, OTHERS:
        threading.Thread(target=_serve_udp, args=(port,), daemon=True).start()
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    server.serve_forever()


# The clients, on the external node. `ways` are ADDRESS:PORT.


def _address(way: str) -> tuple[str, int]:
    host, _, port = way.rpartition(":")
    return host, int(port)


def setup(rounds: str, *ways: str) -> list[list[list[float]]]:
    """Of each round, for each way in turn: seconds until connect() returned, and until the first byte was there; and
    when it began, by a clock that is the same for the whole machine."""
    return _in_turns(rounds, ways, lambda way: _connect(_address(way)))


def _in_turns(rounds: str, ways: Sequence[str], one: Callable[[str], T]) -> list[list[T]]:
    """`one` of each round for each way, in the order of `ways`. Every second round begins with the last: who comes
    after another is no better or worse for it."""
    found = []
    for number in range(int(rounds)):
        step = -1 if number % 2 else 1
        found.append([one(way) for way in ways[::step]][::step])
    return found


def _connect(address: tuple[str, int]) -> list[float]:
    time.sleep(BETWEEN_FLOWS)  # what the last connection left to do is done
    with socket.socket() as s:
        s.settimeout(_PATIENCE)
        began = time.perf_counter()
        s.connect(address)
        connected = time.perf_counter()
        s.recv(1)
        return [connected - began, time.perf_counter() - began, began]


def throughput(protocol: str, direction: str, size: str, receiver: str, seconds: str, rounds: str, *ways: str) -> Any:
    """Of each round, for each way in turn: bytes delivered by a flow of messages of `size`, and the seconds that took.
    `direction`: put, get; `receiver` of datagrams: awake, asleep (between them). Turns are short (`seconds`), so that
    all ways see the same of what else the machine does.
    """
    by_protocol: dict[str, Callable[..., list[float]]] = {"tcp": _tcp, "udp": partial(_udp, receiver)}
    run = by_protocol[protocol]
    return _in_turns(rounds, ways, lambda way: run(_address(way), direction, int(size), float(seconds)))


def _tcp(address: tuple[str, int], direction: str, size: int, seconds: float) -> list[float]:
    with socket.create_connection(address, _PATIENCE) as s:
        _steady(s)
        s.recv(1)
        s.sendall(f"{direction} {size} {seconds}".ljust(_LINE).encode())
        if direction == "get":
            return _drain(s)
        _pour(s, size, seconds)
        return list(json.loads(s.makefile().readline()))


def _udp(receiver: str, address: tuple[str, int], direction: str, size: int, seconds: float) -> list[float]:
    """Datagrams that arrived, sent as fast as the sender can."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        s.settimeout(_PATIENCE)
        s.connect(address)
        s.send(b"hello")  # the flow is made, and its way known to every cache
        s.recv(100)
        if direction == "get":
            s.send(f"get {size} {seconds} {receiver}".encode())
            return _received(s, _DATA[receiver])
        data = _DATA[receiver] * size
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(64):
                s.send(data)
        time.sleep(0.05)
        s.send(b"report")
        return list(json.loads(s.recv(100)))


def _received(s: socket.socket, kind: bytes) -> list[float]:
    s.settimeout(None)  # with one of Python's own it would wait in poll() before each datagram
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(_PATIENCE), 0))
    total, began, last = 0, 0.0, 0.0
    following = _next_of_stream if kind == _DATA["awake"] else _next
    while (data := following(s)[0])[:1] == kind:
        last = time.perf_counter()
        began = began or last
        total += len(data)
    return [total, last - began]


def echo(rounds: str, *ways: str) -> list[list[float]]:
    """Seconds of a round trip of a small datagram, of each round for each way in turn, on open flows."""
    sockets = []
    for way in ways:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(_PATIENCE)
        s.connect(_address(way))
        s.send(b"hello")
        s.recv(100)
        sockets.append(s)
    return [[_round_trip(s) for s in sockets] for _ in range(int(rounds))]


def _round_trip(s: socket.socket) -> float:
    began = time.perf_counter()
    s.send(b"echo")
    s.recv(100)
    return time.perf_counter() - began


def ask(seconds: str, own: str, router: str, host: str, domain: str) -> list[float]:
    """Mapping requests answered with a mapping, for UDP flows of which each is new, and the seconds that took: always
    64 under way, written down beforehand.
    """
    requests = [_request(number, parse_address(own), Name(host, domain)) for number in range(40_000)]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        s.settimeout(0.2)
        for data in requests[:64]:
            s.sendto(data, (router, 0))
        began = last = time.perf_counter()
        answered, sent, end = 0, 64, began + float(seconds)
        while last < end:
            try:
                heard = s.recv(512)
            except TimeoutError:  # a burst was lost: go on with others
                heard = b""
            last = time.perf_counter()
            if heard[20:21] == b"\0" and heard[28:34] == b"NATf\x01\x02":
                answered += 1
            if sent < len(requests):
                s.sendto(requests[sent], (router, 0))
                sent += 1
            elif not heard:
                break
    return [answered, last - began]


def _request(number: int, own: bytes, name: Name) -> bytes:
    flow = Flow(17, Endpoint(own, 20_000 + number), Endpoint(parse_address("240.0.0.1"), 5000))
    data = message.pad(message.encode(message.Request(os.urandom(8), flow, name)))
    return icmp.encode_echo(icmp.Echo(icmp.ECHO_REQUEST, 7, number & 0xFFFF, data))


_CLIENTS: Final[dict[str, Callable[..., Any]]] = {"setup": setup, "throughput": throughput, "echo": echo, "ask": ask}


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "serve":
        serve()
    sys.stdout.write(f"{json.dumps(_CLIENTS[what](*arguments))}\n")


if __name__ == "__main__":
    main()
