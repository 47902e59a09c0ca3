"""What resolv.conf means for an external node."""

import pytest

from natf_bsd.config import EnConfig
from natf_bsd.doctor import lookups
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.types import parse_address
from tests.doctor.machine import external_node, router

FORWARD = "/var/unbound/forward.conf"


def findings(machine, host=None):
    host = host or external_node()
    return lookups.lookups(host, machine.facts(host))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nameserver 192.0.2.53\noptions edns0 timeout:2\n", "192.0.2.53"),
        ("search example.net\nnameserver 192.0.2.54\nnameserver 192.0.2.53\n", "192.0.2.53, 192.0.2.54"),
        ("nameserver 127.0.0.1\n", "127.0.0.1"),
        ("", "127.0.0.1, as /etc/resolv.conf names none"),
    ],
)
def test_servers_asked_over_udp_and_ipv4_are_well(machine, text, found):
    machine.files["/etc/resolv.conf"] = text
    assert findings(machine) == [
        Finding(
            Severity.OK,
            "name servers",
            f"{found} (not seen: programs with a resolver of their own, by TLS or HTTPS)",
        )
    ]


def test_without_the_file_this_host_is_asked(machine):
    del machine.files["/etc/resolv.conf"]
    assert findings(machine)[0].found.startswith("127.0.0.1, as /etc/resolv.conf names none (")


@pytest.mark.parametrize("option", ["usevc", "use-vc"])
def test_names_asked_over_tcp_are_an_error(machine, option):
    machine.files["/etc/resolv.conf"] = f"nameserver 192.0.2.53\noptions edns0 {option}\n"
    (found,) = findings(machine)
    assert (found.severity, found.remedy) == (Severity.ERROR, f"take {option} out of /etc/resolv.conf")


@pytest.mark.parametrize(
    ("servers", "severity"),
    [
        (["2001:db8::53"], Severity.ERROR),
        (["2001:db8::53", "192.0.2.53"], Severity.ERROR),
        (["192.0.2.53", "fe80::1%em0"], Severity.NOTE),
    ],
)
def test_servers_asked_over_ipv6_are_told(machine, servers, severity):
    machine.files["/etc/resolv.conf"] = "".join(f"nameserver {server}\n" for server in servers)
    (found,) = findings(machine)
    assert found.severity is severity
    assert next(server for server in servers if ":" in server) in found.found


def test_servers_whose_answers_are_not_believed_are_a_warning(machine):
    config = EnConfig(home_domains=("home.example.net",), resolvers=(parse_address("192.0.2.99"),))
    (found,) = findings(machine, external_node(en=config))
    assert found.severity is Severity.WARNING
    assert found.remedy == "add 192.0.2.53 to resolvers, or take resolvers out"
    machine.files["/etc/resolv.conf"] = "nameserver 192.0.2.99\n"
    (found,) = findings(machine, external_node(en=config))
    assert found.severity is Severity.OK


def test_a_file_that_cannot_be_read_is_said(machine, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "read", refuse)
    (found,) = findings(machine)
    assert (found.severity, found.found) == (Severity.WARNING, "not seen: /etc/resolv.conf: Permission denied")


def test_a_router_does_not_care(machine):
    machine.files["/etc/resolv.conf"] = "nameserver 2001:db8::53\n"
    machine.files[FORWARD] = "forward-tls-upstream: yes\n"
    assert findings(machine, router()) == []
    assert lookups.local_unbound(router(), machine.facts(router())) == []


@pytest.mark.parametrize(
    ("text", "severities"),
    [
        ("forward-zone:\n\tname: .\n\tforward-tls-upstream: yes\n\tforward-addr: 192.0.2.53@853\n", [Severity.NOTE]),
        ("server:\n\ttls-upstream: yes\n", [Severity.NOTE]),
        ("forward-zone:\n\tname: .\n\tforward-addr: 192.0.2.53\n", []),
        ("# forward-tls-upstream: yes\n", []),
    ],
)
def test_a_local_resolver_that_asks_by_tls_is_noted(machine, text, severities):
    machine.files[FORWARD] = text
    found = lookups.local_unbound(external_node(), machine.facts(external_node()))
    assert [one.severity for one in found] == severities
