"""`natf doctor`: what it prints, and its exit status."""

import json

import pytest

from natf_bsd.doctor import examine
from natf_bsd.doctor.examine import System
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.ops.interfaces import Interface

GOOD = Finding(Severity.OK, "ipfw", "in the kernel")
BAD = Finding(Severity.ERROR, "forwarding", "net.inet.ip.forwarding is 0", "sysctl net.inet.ip.forwarding=1")
ODD = Finding(Severity.WARNING, "natd -deny_incoming", "not given", "sysrc natd_flags+=-deny_incoming")


@pytest.fixture
def says(monkeypatch):
    """Has the examination find what the test says, besides what it finds in the files."""
    findings = []

    def outer(wanted):
        return Interface(wanted or "em0", bytes((203, 0, 113, 1)))

    system = System(lambda host: {}, lambda *arguments: {}, [lambda host, facts: list(findings)], outer)
    monkeypatch.setattr(examine, "this_system", lambda: system)
    return findings


def test_findings_are_lines_with_what_to_do_below_and_a_summary(host, says):
    host.act.write_text("alice 192.168.0.2 allow\n")
    says += [GOOD, BAD]
    result = host.natf("doctor")
    assert (result.exit_code, result.stderr) == (2, "")
    assert result.stdout.splitlines() == [
        f"ok       configuration: {host.config} has [en] and [router]",
        f"ok       access control table: {host.act} lets 1 of 1 hosts be reached",
        "ok       ipfw: in the kernel",
        "error    forwarding: net.inet.ip.forwarding is 0",
        "         do: sysctl net.inet.ip.forwarding=1",
        "1 error",
    ]


@pytest.mark.parametrize(("findings", "status"), [([GOOD], 0), ([GOOD, ODD], 1), ([ODD, BAD], 2)])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_exit_status_tells_the_worst(host, says, findings, status, options):
    host.act.write_text("alice 192.168.0.2 allow\n")
    says += findings
    assert host.natf("doctor", *options).exit_code == status


def test_for_programs_it_is_a_list(host, says):
    host.act.write_text("alice 192.168.0.2 allow\n")
    says.append(ODD)
    found = json.loads(host.natf("doctor", "--json").stdout)
    assert found[-1] == {
        "severity": "warning",
        "title": "natd -deny_incoming",
        "found": "not given",
        "remedy": "sysrc natd_flags+=-deny_incoming",
    }
    assert [one["title"] for one in found] == ["configuration", "access control table", "natd -deny_incoming"]


def test_a_faulty_configuration_is_a_finding_and_the_rest_is_looked_at(host, says):
    host.config.write_text("[router]\ncookies = 7\n")
    says.append(GOOD)
    result = host.natf("doctor")
    assert (result.exit_code, result.stderr) == (2, "")
    first, _, second, _ = result.stdout.splitlines()
    assert first.startswith(f"error    configuration: {host.config}:2: ")
    assert second == "ok       ipfw: in the kernel"


def test_this_very_host_is_looked_at_without_a_failure(host):
    """Whatever it is: what is wrong is said, and nothing is left unjudged."""
    result = host.natf("doctor", "--json")
    found = json.loads(result.stdout)
    assert [one for one in found if one["found"].startswith("not judged")] == []
    assert result.exit_code == max({"ok": 0, "note": 0, "warning": 1, "error": 2}[one["severity"]] for one in found)
    assert {"configuration", "access control table", "name servers", "natf en"} <= {one["title"] for one in found}
