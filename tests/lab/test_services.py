"""The servers of a lab on the loopback interface, and the two DNS servers against each other."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from natf_bsd.errors import NatfError
from natf_bsd.lab import services
from natf_bsd.lab.topology import FIGURE1, Host, Interface, Service, ServiceKind

HOST = Host("carol", (Interface("lo", "none", "127.0.0.1", 8),))
DNSMASQ = services.find_dnsmasq()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    kind: ServiceKind, port: int, dnsmasq: str | None = None, addresses: Sequence[str] = ("127.0.0.1",)
) -> Iterator[None]:
    if kind is ServiceKind.DNS:
        argv, ready = services.dns_command(FIGURE1.zone, addresses, dnsmasq, port)
    else:
        argv, ready = services.command(Service(kind, port), HOST)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if ready in line:
                break
        # Nobody must ever be stopped by a full pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    port = free_port()
    with running(ServiceKind.HTTP, port):
        yield port


def test_the_page_names_the_host_and_the_client(http_port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", http_port)
    connection.connect()
    own = connection.sock.getsockname()[1]
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.read().decode()) == (200, f"This is carol's page.\nYou are 127.0.0.1:{own}.\n")


def test_one_connection_carries_many_requests(http_port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", http_port)
    answers = []
    for method, path in (("GET", "/"), ("HEAD", "/big"), ("GET", "/nowhere"), ("GET", "/")):
        connection.request(method, path)
        response = connection.getresponse()
        answers.append((response.status, response.headers["Content-Length"], len(response.read())))
    assert answers[1] == (200, str(services.BIG_SIZE), 0)
    assert [status for status, _, _ in answers] == [200, 200, 404, 200]
    assert answers[0] == answers[3]


def test_the_big_file_arrives_whole(http_port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", http_port)
    connection.request("GET", "/big")
    data = connection.getresponse().read()
    assert len(data) == services.BIG_SIZE
    assert hashlib.sha256(data).hexdigest() == services.big_digest("carol")


def test_big_files_differ_by_host_and_never_change() -> None:
    assert services.big_digest("alice") != services.big_digest("bob")
    start = next(services.big_blocks("alice"))
    assert hashlib.sha256(start).hexdigest().startswith("dca4f86e68ab2b34")
    assert sum(map(len, services.big_blocks("alice", 100_001))) == 100_001


def test_udp_echo_says_who_answers() -> None:
    port = free_port(socket.SOCK_DGRAM)
    with running(ServiceKind.UDP_ECHO, port), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        client.send(b"hello\x00\xff")
        assert client.recv(100) == b"carol: hello\x00\xff"


@pytest.mark.parametrize("dnsmasq", [None, DNSMASQ], ids=["own", "dnsmasq"])
def test_dns_servers_answer_alike(dnsmasq: str | None, request: pytest.FixtureRequest) -> None:
    if dnsmasq is None and "dnsmasq" in request.node.name:
        pytest.skip("dnsmasq is not installed (Debian: dnsmasq-base)")
    port = free_port(socket.SOCK_DGRAM)
    with running(ServiceKind.DNS, port, dnsmasq):
        assert {question: ask(port, *question) for question in ANSWERS} == ANSWERS


Answer: TypeAlias = tuple[int, list[str]]
NODATA: Answer = (dns.rcode.NOERROR, [])
NXDOMAIN: Answer = (dns.rcode.NXDOMAIN, [])
ANSWERS: dict[tuple[str, str], Answer] = {
    ("alice.home.example.net", "A"): (dns.rcode.NOERROR, ["alice.home.example.net. 60 IN A 203.0.113.1"]),
    ("Alice.HOME.example.net", "A"): (dns.rcode.NOERROR, ["Alice.HOME.example.net. 60 IN A 203.0.113.1"]),
    ("home.example.net", "A"): (dns.rcode.NOERROR, ["home.example.net. 60 IN A 203.0.113.1"]),
    ("alice.home.example.net", "AAAA"): NODATA,
    ("alice.home.example.net", "HTTPS"): NODATA,
    ("www.plain.example.net", "A"): (dns.rcode.NOERROR, ["www.plain.example.net. 60 IN A 203.0.113.80"]),
    ("silent.example.net", "A"): (dns.rcode.NOERROR, ["silent.example.net. 60 IN A 203.0.113.81"]),
    ("www.elsewhere.example.net", "A"): (dns.rcode.NOERROR, ["www.elsewhere.example.net. 60 IN A 203.0.113.80"]),
    ("www.elsewhere.example.net", "AAAA"): NODATA,
    ("elsewhere.example.net", "A"): NODATA,
    ("x.www.elsewhere.example.net", "A"): NXDOMAIN,
    ("nosuch.example.net", "A"): NXDOMAIN,
    ("example.org", "A"): NXDOMAIN,
}


@pytest.mark.linux("elsewhere loopback has one address")
@pytest.mark.parametrize("dnsmasq", [None, DNSMASQ], ids=["own", "dnsmasq"])
def test_a_dns_server_answers_under_each_of_its_addresses(dnsmasq: str | None, request: pytest.FixtureRequest) -> None:
    if dnsmasq is None and "dnsmasq" in request.node.name:
        pytest.skip("dnsmasq is not installed (Debian: dnsmasq-base)")
    port = free_port(socket.SOCK_DGRAM)
    addresses = ("127.0.0.1", "127.0.0.2")
    with running(ServiceKind.DNS, port, dnsmasq, addresses):
        answers = [ask(port, "home.example.net", "A", address) for address in addresses]
    assert answers == [ANSWERS["home.example.net", "A"]] * 2


def ask(port: int, name: str, kind: str, server: str = "127.0.0.1") -> Answer:
    answer = dns.query.udp(dns.message.make_query(name, kind, use_edns=0), server, port=port, timeout=5)
    return answer.rcode(), [str(record) for record in answer.answer]


@pytest.mark.parametrize("dnsmasq", [None, DNSMASQ], ids=["own", "dnsmasq"])
def test_dns_servers_answer_by_tcp_too(dnsmasq: str | None, request: pytest.FixtureRequest) -> None:
    if dnsmasq is None and "dnsmasq" in request.node.name:
        pytest.skip("dnsmasq is not installed (Debian: dnsmasq-base)")
    port = free_port()
    query = dns.message.make_query("home.example.net", "A")
    with running(ServiceKind.DNS, port, dnsmasq), contextlib.ExitStack() as stack:
        if dnsmasq is None:  # which in the foreground has one customer at a time
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        answer = dns.query.tcp(query, "127.0.0.1", port=port, timeout=5)
    assert [str(record) for record in answer.answer] == ["home.example.net. 60 IN A 203.0.113.1"]


@pytest.mark.linux("elsewhere loopback has one address")
def test_a_relay_hands_on_queries_and_answers() -> None:
    port = free_port(socket.SOCK_DGRAM)
    relay = [*services.MODULE, "dns-relay", "--listen", "127.0.0.2", "--port", str(port), "--to", "127.0.0.1"]
    with subprocess.Popen(relay, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(dns.exception.Timeout):
            dns.query.udp(dns.message.make_query("home.example.net", "A"), "127.0.0.2", port=port, timeout=0.2)
        with running(ServiceKind.DNS, port):
            for _ in range(services._RELAYED + 2):
                assert ask(port, "home.example.net", "A", "127.0.0.2") == ANSWERS["home.example.net", "A"]
        process.terminate()


@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\xff" * 12, b"\0" * 12, b"\0\1\1\0\0\1" + b"\0" * 6])
def test_what_is_no_question_gets_no_answer(data: bytes) -> None:
    assert services.dns_answer(data, FIGURE1.zone) is None


def test_a_response_gets_no_answer() -> None:
    query = dns.message.make_query("home.example.net", "A")
    query.flags |= dns.flags.QR
    assert services.dns_answer(query.to_wire(), FIGURE1.zone) is None


def test_waiting_ends_when_everything_answers() -> None:
    tcp, udp, name = free_port(), free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_DGRAM)
    with running(ServiceKind.HTTP, tcp), running(ServiceKind.UDP_ECHO, udp), running(ServiceKind.DNS, name):
        targets = [f"http:127.0.0.1:{tcp}", f"udp-echo:127.0.0.1:{udp}", f"dns:127.0.0.1:{name}"]
        services.wait_for([*targets, f"host:127.0.0.1:{free_port()}"], 5)


def test_waiting_names_who_does_not_answer() -> None:
    there, nobody = free_port(), free_port()
    with socket.create_server(("127.0.0.1", there)), pytest.raises(NatfError) as error:
        services.wait_for([f"http:127.0.0.1:{there}", f"http:127.0.0.1:{nobody}", f"dns:127.0.0.1:{nobody}"], 0.05)
    assert str(error.value) == f"no answer within 0.05 s: http:127.0.0.1:{nobody}, dns:127.0.0.1:{nobody}"


def test_the_wait_command_fails_with_that_text() -> None:
    target = f"http:127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "natf_bsd.lab.services", "wait", "--timeout=0.05", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"no answer within 0.05 s: {target}\n")
