"""Names as people register them (the paper's table 3), through real resolvers; and what else real DNS sends."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from natf_bsd.lab.capture import Capture, CapturedPacket
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.types import Protocol
from natf_bsd.wire import packet
from tests.e2e.name_servers import AUTHORITY, RESOLVERS, ROUTER, SIGNED_ZONE, ZONE, NameServers, Resolver, missing

pytestmark = [
    pytest.mark.lab,
    pytest.mark.linux("a host of a jail has the machine's own resolv.conf, and its packages other servers"),
]

PATTERNS = {"wildcard A": "wildcard", "CNAME to the home name": "alias", "one A record per inside host": "each"}
"""The registration patterns of table 3, and the home domain that has each."""

ROWS = PATTERNS | {
    "chain of three CNAMEs": "chain",
    "TTL 0": "zero",
    "A and AAAA": "both",
    "A, and HTTPS with an address hint": "hints",
    "signed with DNSSEC": "",
    "two A records": "several",
    "60 A records, more than 512 bytes": "long",
    "90 A records, more than 1232 bytes": "toolong",
}
"""Of the table in docs/names.md, and their domains in the zone; the signed one is a zone of its own."""

MANY_ROUTERS = ("several", "long", "toolong")
"""Most of whose addresses are nobody's: whether and when alice is reached there is chance."""

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "names.md"

DOMAINS = [
    *(
        f"{label}.{ZONE}"
        for label in (*PATTERNS.values(), "chain", "several", "long", "toolong", "zero", "both", "hints")
    ),
    SIGNED_ZONE,
]

ELSEWHERE = f"www.elsewhere.{ZONE}."

ASK = """
import json, socket, sys
for server, query in json.load(sys.stdin):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.settimeout(5)
        program.connect((server, 53))
        program.send(bytes.fromhex(query))
        print(program.recv(65535).hex())
"""

OVER_TCP = """
import sys
import dns.message, dns.query
server, *names = sys.argv[1:]
for name in names:
    try:
        answer = dns.query.tcp(dns.message.make_query(name, "A"), server, timeout=5)
        print(*(record.address for rrset in answer.answer for record in rrset))
    except OSError as error:
        print(type(error).__name__)
"""

BOTH_AT_ONCE = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print(name, *sorted({found[4][0] for found in socket.getaddrinfo(name, 80)}))
    except socket.gaierror as error:
        print(name, error.errno)
"""
"""A and AAAA in two datagrams of one socket: glibc."""

NAME_OF = """
import socket, sys
for address in sys.argv[1:]:
    try:
        print(socket.gethostbyaddr(address)[0])
    except OSError as error:
        print(type(error).__name__)
"""


def query(name: str, kind: str = "A", **options: Any) -> dns.message.Message:
    return dns.message.make_query(name, kind, **options)


class Names:
    """The external node's programs behind one resolver."""

    def __init__(self, lab: Figure1Lab, servers: NameServers, resolver: Resolver) -> None:
        self.lab = lab
        self.servers = servers
        self.resolver = resolver

    def ask(self, *queries: dns.message.Message) -> list[dns.message.Message]:
        return [dns.message.from_wire(data) for data in self._ask(*queries)]

    def ask_watched(self, *queries: dns.message.Message) -> tuple[list[bytes], list[bytes]]:
        """What a program got, and what the resolver sent: payloads, in order."""
        with self.watched() as capture:
            got = self._ask(*queries)
            sent = [bytes(found.data[28:]) for found in capture.packets() if self._is_answer(found)]
        return got, sent

    def watched(self) -> AbstractContextManager[Capture]:
        """Everything between program and resolver."""
        return self.lab.capture("en", "lo" if self.resolver.host == "en" else "eth0")

    def _is_answer(self, seen: CapturedPacket) -> bool:
        """As it comes in: on loopback it was seen going out too."""
        flow = packet.flow_of(seen.data)
        return not seen.outgoing and flow is not None and str(flow.source) == f"{self.resolver.address}:53"

    def _ask(self, *queries: dns.message.Message) -> list[bytes]:
        asked = json.dumps([(self.resolver.address, query.to_wire().hex()) for query in queries])
        done = self.lab.exec("en", [sys.executable, "-c", ASK], input=asked)
        assert done.returncode == 0, done.stderr
        return [bytes.fromhex(line) for line in done.stdout.split()]

    def ask_by_tcp(self, *names: str) -> list[str]:
        """The address of each, or the error of its connection."""
        return self.lab.exec("en", [sys.executable, "-c", OVER_TCP, self.resolver.address, *names]).stdout.splitlines()

    def resolve(self, *names: str) -> dict[str, list[str]]:
        """Addresses by getaddrinfo of glibc."""
        done = self.lab.exec("en", [sys.executable, "-c", BOTH_AT_ONCE, *names])
        return {name: found for name, *found in (line.split() for line in done.stdout.splitlines())}

    def names_of(self, *addresses: str) -> list[str]:
        return self.lab.exec("en", [sys.executable, "-c", NAME_OF, *addresses]).stdout.split()

    def page(self, name: str) -> str:
        return self.lab.exec("en", ["curl", "-sS", "--max-time", "20", f"http://{name}/"]).stdout

    def validate(self, name: str) -> str:
        """What a program that validates for itself says."""
        anchor = str(self.servers.trust_anchor())
        done = self.lab.exec(
            "en", ["delv", "-a", anchor, f"+root={SIGNED_ZONE}", f"@{self.resolver.address}", name, "A"]
        )
        return done.stdout + done.stderr

    def count(self, name: str) -> int:
        status = json.loads(self.lab.natf("en", "status", "--json").stdout)
        return int(status["en"]["counters"][name])


def outcome(names: Names, label: str) -> str:
    name = f"alice.{label}.{ZONE}" if label else f"alice.{SIGNED_ZONE}"
    (found,) = names.resolve(name).values()
    if not found[0].startswith("240."):
        return "no address"
    return "reached" if label not in MANY_ROUTERS and "alice's page" in names.page(name) else "virtual address"


def documented(resolver: str) -> dict[str, str]:
    """The column of `resolver` in the table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCUMENTATION.read_text().splitlines()]
    header, _, *body = [row for row in rows if row]
    return {row[0]: row[header.index(resolver)] for row in body}


def addresses(answer: dns.message.Message) -> list[str]:
    return [record.address for rrset in answer.answer if rrset.rdtype == dns.rdatatype.A for record in rrset]


@pytest.fixture(scope="module", params=RESOLVERS)
def without(request: pytest.FixtureRequest, servers: NameServers, figure1: Figure1Lab) -> Iterator[Names]:
    """Behind a resolver, with the external node's daemon not running."""
    resolver = RESOLVERS[request.param]
    if reason := missing(resolver.program):
        pytest.skip(reason)
    process = servers.start_resolver(resolver)
    (figure1.run_dir / "etc" / "en" / "resolv.conf").write_text(f"nameserver {resolver.address}\n")
    yield Names(figure1, servers, resolver)
    process.stop()


def proved_to_be_needed(without: Names) -> Names:
    """Without NAT-f every program gets true addresses."""
    names = [f"alice.{domain}" for domain in DOMAINS]
    resolved = without.resolve(*names)
    assert all(ROUTER in found for found in resolved.values()), resolved
    assert "2001:db8::1" in resolved[f"alice.both.{ZONE}"]
    short, hints, signed = without.ask(
        query(f"alice.long.{ZONE}"),
        query(f"alice.hints.{ZONE}", "HTTPS"),
        query(f"alice.{SIGNED_ZONE}", want_dnssec=True),
    )
    assert short.flags & dns.flags.TC, "so that getaddrinfo has asked over TCP"
    assert ROUTER in hints.answer[0].to_text()
    assert signed.flags & dns.flags.AD
    assert "fully validated" in without.validate(f"alice.{SIGNED_ZONE}")
    assert without.ask_by_tcp(f"alice.each.{ZONE}", ELSEWHERE) == [ROUTER, AUTHORITY]
    assert without.names_of("240.0.51.82") == ["herror"]
    assert [without.page(f"alice.{label}.{ZONE}") for label in PATTERNS.values()] == [""] * len(PATTERNS)
    return without


@pytest.fixture(scope="module")
def names(without: Names) -> Iterator[Names]:
    """Behind a resolver, with NAT-f."""
    needed = proved_to_be_needed(without)
    en = needed.lab.start_en(home_domains=DOMAINS)
    yield needed
    assert en.stop() == 0, en.output()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_alice_and_bob_are_reached_whichever_way_they_are_registered(names: Names, pattern: str) -> None:
    domain = f"{PATTERNS[pattern]}.{ZONE}"
    found = names.resolve(f"alice.{domain}", f"bob.{domain}")
    assert len({address for own in found.values() for address in own}) == 2
    for host in "alice", "bob":
        assert [address[:4] for address in found[f"{host}.{domain}"]] == ["240."]
        assert f"{host}'s page" in names.page(f"{host}.{domain}")


def test_whatever_the_answer_looks_like_programs_get_one_virtual_address(names: Names) -> None:
    """A chain of CNAMEs, several addresses, a TTL of zero, IPv6 beside it, an HTTPS record, more than a datagram holds,
    signatures."""
    domains = [domain for domain in DOMAINS if not domain.startswith("toolong")]
    found = names.resolve(*(f"alice.{domain}" for domain in domains))
    assert [[address[:4] for address in own] for own in found.values()] == [["240."]] * len(domains)


def test_the_documentation_tells_what_comes_of_it(names: Names) -> None:
    [resolver] = [text for text, known in RESOLVERS.items() if known is names.resolver]
    seen = {row: outcome(names, label) for row, label in ROWS.items()}
    sys.stdout.writelines(f"{resolver}: {row}: {what}\n" for row, what in seen.items())
    assert documented(resolver) == seen


def test_a_time_to_live_of_zero_stays_and_so_does_the_address(names: Names) -> None:
    first, second = names.ask(query(f"alice.zero.{ZONE}"), query(f"alice.zero.{ZONE}"))
    assert first.answer[0].ttl == second.answer[0].ttl == 0
    assert addresses(first) == addresses(second)


def test_edns_and_letter_case_come_back_as_they_were_asked(names: Names) -> None:
    mixed = "aLIcE.wIlDcArD.ExAmPle.nEt."
    with_edns, without_edns = names.ask(query(mixed, use_edns=0, payload=1232), query(mixed, use_edns=False))
    assert (with_edns.edns, without_edns.edns) == (0, -1)
    for answer in with_edns, without_edns:
        assert answer.question[0].name.to_text() == mixed
        assert addresses(answer)[0].startswith("240.")


@pytest.mark.parametrize("options", [{"use_edns": False}, {"want_dnssec": True, "payload": 512}], ids=["plain", "DO"])
def test_no_program_is_sent_to_tcp_for_an_address(names: Names, options: dict[str, Any]) -> None:
    before = names.count("dns.drop.truncated")
    (answer,) = names.ask(query(f"alice.long.{ZONE}", **options))
    assert addresses(answer)[0].startswith("240.")
    assert not answer.flags & dns.flags.TC
    assert options.get("want_dnssec") or answer.edns == -1
    assert names.count("dns.drop.truncated") - before <= 1
    with names.watched() as capture:
        (found,) = names.resolve(f"alice.long.{ZONE}").values()
        seen = {packet.protocol(found.data) for found in capture.packets()}
    assert Protocol.UDP in seen, "else nothing was watched"
    assert Protocol.TCP not in seen
    assert found == addresses(answer)


def test_of_more_addresses_than_any_datagram_holds_those_that_come_will_do(names: Names) -> None:
    """BIND and unbound send as many as there is room for, dnsmasq sends none."""
    (answer,) = names.ask(query(f"alice.toolong.{ZONE}"))
    assert not answer.flags & dns.flags.TC
    (found,) = names.resolve(f"alice.toolong.{ZONE}").values()
    if names.resolver.program == "dnsmasq":
        assert (answer.rcode(), addresses(answer)) == (dns.rcode.SERVFAIL, [])
        assert found in ([str(socket.EAI_AGAIN)], [str(socket.EAI_NODATA)]), "which one hangs on the other answer"
    else:
        assert addresses(answer) == found
        assert found[0].startswith("240.")


def test_who_asks_by_tcp_for_our_names_is_refused_and_for_others_answered(names: Names) -> None:
    assert names.ask_by_tcp(f"alice.each.{ZONE}", ELSEWHERE) == ["ConnectionResetError", AUTHORITY]
    assert names.count("dns.sent.tcp_reset") == 1


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB", "ANY"])
def test_addresses_are_not_told_by_other_records(names: Names, kind: str) -> None:
    (answer,) = names.ask(query(f"alice.hints.{ZONE}", kind))
    assert (answer.rcode(), answer.answer, answer.additional) == (dns.rcode.NOERROR, [], [])


def test_what_does_not_exist_is_told_byte_for_byte(names: Names) -> None:
    got, sent = names.ask_watched(
        query(f"nobody.each.{ZONE}"), query(f"nobody.each.{ZONE}", "AAAA"), query(f"alice.each.{ZONE}", "AAAA")
    )
    assert got == sent
    assert [dns.message.from_wire(data).rcode().name for data in got] == ["NXDOMAIN", "NXDOMAIN", "NOERROR"]


def test_other_names_come_byte_for_byte(names: Names) -> None:
    kinds = ("A", "AAAA", "HTTPS", "TXT", "MX")
    asked = [query(ELSEWHERE, kind, use_edns=edns) for kind in kinds for edns in (False, 0)]
    asked += [
        query("wWw.elseWhere.example.net."),
        query(f"www.elsewhere.{SIGNED_ZONE}", want_dnssec=True),
        query(f"long.{ZONE}"),
    ]
    got, sent = names.ask_watched(*asked)
    assert len(got) == len(asked)
    assert got == sent
    assert addresses(dns.message.from_wire(got[0])) == [AUTHORITY]
    assert dns.message.from_wire(got[-2]).flags & dns.flags.AD


def test_a_signed_name_is_no_longer_called_authentic(names: Names) -> None:
    for answer in names.ask(
        query(f"alice.{SIGNED_ZONE}", want_dnssec=True),
        query(f"alice.{SIGNED_ZONE}", flags=dns.flags.RD | dns.flags.AD),
    ):
        assert answer.rcode() == dns.rcode.NOERROR
        assert not answer.flags & dns.flags.AD
        assert [rrset.rdtype for rrset in answer.answer] == [dns.rdatatype.A], "no signature that would be false"
        assert addresses(answer)[0].startswith("240.")


def test_a_program_that_validates_for_itself_gets_nothing_rather_than_the_true_address(names: Names) -> None:
    said = names.validate(f"alice.{SIGNED_ZONE}")
    assert "fully validated" not in said
    assert ROUTER not in said
    assert "fully validated" in names.validate(f"www.elsewhere.{SIGNED_ZONE}")


def test_the_name_of_a_virtual_address_is_told_and_nobody_is_asked(names: Names) -> None:
    ((alice,), (bob,)) = names.resolve(f"alice.each.{ZONE}", f"bob.each.{ZONE}").values()
    asked = [query(dns.reversename.from_address(address).to_text(), "PTR") for address in (alice, "240.0.0.0")]
    with names.lab.capture("en", "eth0") as capture:
        assert names.names_of(alice, bob, "240.0.0.0") == [f"alice.each.{ZONE}", f"bob.each.{ZONE}", "herror"]
        named, unknown = names.ask(*asked)
        names.resolve(ELSEWHERE)
        left = [bytes(seen.data).lower() for seen in capture.packets()]
    assert any(b"elsewhere" in data for data in left), "else nothing was watched"
    assert not any(b"in-addr" in data for data in left)
    assert [rrset[0].to_text() for rrset in named.answer] == [f"alice.each.{ZONE}."]
    assert unknown.rcode() == dns.rcode.NXDOMAIN
    assert names.count("dns.drop.reverse") >= 3
    assert names.count("dns.drop.reverse_unknown") >= 2
