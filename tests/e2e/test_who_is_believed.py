"""Who may say where a name's packets go: forgers, other users' DNS servers and strangers' names may not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natf_bsd.lab import services
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.topology import Zone
from tests.lab_platform import HERE, resolve

pytestmark = pytest.mark.lab

DNS, PLAIN, EN = "203.0.113.53", "203.0.113.80", "203.0.113.10"
ALICE = "alice.home.example.net"
NOBODY = 65534
FOLLOWED = 30.0  # s; the daemon looks at resolv.conf every ten

ASK = """
import contextlib, os, socket, sys
import dns.message, dns.rdtypes.IN.A  # both now: as another user it may not be able to read them
server, name, user = sys.argv[1:]
with contextlib.suppress(OSError):  # in a user namespace there is one user only
    os.setuid(int(user))
program = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
program.settimeout(10)
program.connect((server, 53))
program.send(dns.message.make_query(name, "A").to_wire())
answer = dns.message.from_wire(program.recv(4096))
print(answer.rcode().name, *(record for rrset in answer.answer for record in rrset))
"""

LISTEN = """
import socket, sys
import dns.message
program = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
program.settimeout(10)
program.connect((sys.argv[1], 53))
program.send(dns.message.make_query("www.elsewhere.example.net.", "A").to_wire())
program.recv(4096)
print("port", program.getsockname()[1], flush=True)
while True:
    program.settimeout(None)
    print("heard", program.recv(4096).hex(), flush=True)
"""

FORGE = """
import socket, sys
import dns.message, dns.rrset
from natf_bsd.types import Endpoint, parse_address
from natf_bsd.wire import build
server, victim, port, name, address = sys.argv[1:]
answer = dns.message.make_response(dns.message.make_query(name, "A"))
answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
wire.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
source, destination = Endpoint(parse_address(server), 53), Endpoint(parse_address(victim), int(port))
wire.sendto(build.udp(source, destination, answer.to_wire()), (victim, 0))
"""

FORWARD = """
import socket, sys
inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
inner.bind((sys.argv[2], 53))
print("started", flush=True)
while True:
    query, client = inner.recvfrom(4096)
    outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    outer.settimeout(5)
    outer.connect((sys.argv[1], 53))
    outer.send(query)
    inner.sendto(outer.recv(4096), client)
"""


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", script, *arguments]


def ask(lab: Figure1Lab, server: str, name: str) -> str:
    """What an ordinary user's program on the external node gets from `server`: response code and addresses."""
    done = lab.exec("en", python(ASK, server, name, str(NOBODY)))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def page(lab: Figure1Lab, host: str) -> str:
    return lab.exec("en", ["curl", "-sS", "--max-time", "20", f"http://{host}/"]).stdout


def status(lab: Figure1Lab) -> dict[str, Any]:
    return dict(json.loads(lab.natf("en", "status", "--json").stdout)["en"])


def count(lab: Figure1Lab, name: str) -> int:
    return int(status(lab)["counters"][name])


@pytest.fixture
def own_server(natf: Figure1Lab) -> Iterator[Callable[[Zone], None]]:
    """Starts the DNS server of somebody who may run one on the host `plain`, and wishes us ill."""
    started: list[LabProcess] = []

    def start(zone: Zone) -> None:
        argv = [*services.MODULE, "dns", "--listen", PLAIN, "--port", "53", *services.zone_arguments(zone)]
        server = natf.spawn("plain", argv, name="own-dns")
        started.append(server)
        natf.wait_until(lambda: services.READY in server.output(), server)

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def resolv_conf(natf: Figure1Lab) -> Iterator[Path]:
    """The external node's, to be written to as it is: it is mounted where its processes see it."""
    path = natf.run_dir / "etc" / "en" / "resolv.conf"
    text = path.read_text()
    yield path
    path.write_text(text)


def test_a_forged_answer_to_a_port_that_is_open_does_not_move_a_name(natf: Figure1Lab) -> None:
    virtual = resolve(natf, ALICE)
    program = natf.spawn("en", python(LISTEN, DNS), name="listen")
    natf.wait_until(lambda: program.output().startswith("port"), program)
    port = program.output().split()[1]
    assert natf.exec("plain", python(FORGE, DNS, EN, port, f"{ALICE}.", PLAIN)).returncode == 0
    natf.wait_until(lambda: count(natf, "dns.drop.unasked") == 1, program)
    assert "heard" not in program.output()
    program.stop()
    assert "alice's page" in page(natf, virtual)
    assert resolve(natf, ALICE) == virtual
    assert "alice's page" in page(natf, ALICE)


def test_a_users_own_server_does_not_move_a_name(natf: Figure1Lab, own_server: Callable[[Zone], None]) -> None:
    virtual = resolve(natf, ALICE)
    own_server(Zone(domains={"home.example.net": PLAIN}))
    assert ask(natf, PLAIN, ALICE) == f"NOERROR {PLAIN}", "his own answer is his own affair"
    assert count(natf, "dns.sent.stranger") == 1
    assert "alice's page" in page(natf, virtual)
    assert "alice's page" in page(natf, ALICE)


def test_somebody_elses_name_gets_no_virtual_address(natf: Figure1Lab, own_server: Callable[[Zone], None]) -> None:
    """Else a web page of evil.example.org, which a browser takes for one with it, could read alice's."""
    virtual = resolve(natf, ALICE)
    own_server(Zone(hosts={"evil.example.org": virtual, "good.example.org": PLAIN}))
    assert natf.en is not None
    assert natf.en.stop() == 0
    natf.start_en(resolvers=[DNS, PLAIN])
    assert ask(natf, PLAIN, "good.example.org") == f"NOERROR {PLAIN}"
    assert ask(natf, PLAIN, "evil.example.org") == "SERVFAIL"
    assert count(natf, "dns.sent.rebinding") == 1


def forwarder(dnsmasq: str | None) -> list[str]:
    if dnsmasq is None:
        return python(FORWARD, DNS, "127.0.0.1")
    options = (
        "no-daemon",
        "conf-file=/dev/null",
        "no-resolv",
        "no-hosts",
        "bind-interfaces",
        "listen-address=127.0.0.1",
    )
    return [dnsmasq, *(f"--{option}" for option in options), f"--server={DNS}"]


@pytest.mark.linux("a host of a jail has the machine's own resolv.conf, which stays as it is")
@pytest.mark.parametrize("kind", ["dnsmasq", "plain"])
def test_names_resolve_by_a_resolver_on_this_host(natf: Figure1Lab, resolv_conf: Path, kind: str) -> None:
    dnsmasq = services.find_dnsmasq() if kind == "dnsmasq" else None
    if kind == "dnsmasq" and dnsmasq is None:
        pytest.skip("dnsmasq is not installed")
    assert status(natf)["resolvers"] == [DNS]
    resolver = natf.spawn("en", forwarder(dnsmasq), name="forwarder")
    natf.wait_until(lambda: "started" in resolver.output(), resolver)
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    natf.wait_until(lambda: status(natf)["resolvers"] == ["127.0.0.1"], resolver, timeout=FOLLOWED)
    for _ in range(2):  # the second time from its cache
        assert resolve(natf, ALICE).startswith("240.")
        assert "alice's page" in page(natf, ALICE)
    assert resolve(natf, "www.elsewhere.example.net") == PLAIN
    counters = status(natf)["counters"]
    assert counters["dns.sent.stranger"] > 0, "what it hears from beyond stays as it is"
    assert counters["dns.drop.unasked"] == counters["dns.sent.failed"] == 0
    resolver.stop()


def test_a_resolver_on_this_host_may_pass_on_what_was_rewritten_before_it(natf: Figure1Lab) -> None:
    own = HERE.spare_loopback(natf)
    resolver = natf.spawn("en", python(FORWARD, DNS, own), name="forwarder")
    natf.wait_until(lambda: "started" in resolver.output(), resolver)
    assert natf.en is not None
    assert natf.en.stop() == 0
    natf.start_en(resolvers=[own, *natf.resolvers])
    assert ask(natf, own, ALICE) == f"NOERROR {resolve(natf, ALICE)}"
    assert count(natf, "dns.sent.already") == 1
    assert "alice's page" in page(natf, ALICE)
    resolver.stop()
