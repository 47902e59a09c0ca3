"""What is Linux's own: the daemons' checks as findings, nftables, systemd-resolved."""

import sys
from dataclasses import replace

import pytest

from natf_bsd.config import RouterConfig
from natf_bsd.doctor import linux
from natf_bsd.doctor.facts import Answer, gather
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.errors import NatfError
from natf_bsd.firewall import runner
from natf_bsd.ops import interfaces
from natf_bsd.ops.process import Completed
from tests.doctor.machine import OUTER, external_node, router

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="judges hosts of Linux")

# As `nft list ruleset` prints firewalld's and Docker's.
FIREWALLD = """\
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state established,related accept
		jump filter_FORWARD_POLICIES
		reject with icmpx admin-prohibited
	}

	chain filter_INPUT {
		type filter hook input priority filter + 10; policy drop;
	}
}
"""
DOCKER = """\
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter packets 0 bytes 0 jump DOCKER-USER
	}
}
"""


def answered(**texts):
    return {name: Answer(name, 0, text) for name, text in texts.items()}


def chains(text):
    return linux.forwarding_chains(router(), answered(nft=text))


@pytest.fixture
def outer(monkeypatch):
    monkeypatch.setattr(interfaces, "outer_interface", lambda wanted: OUTER)


def test_a_chain_that_drops_what_is_forwarded_is_a_warning_with_the_rule_to_insert():
    (found,) = chains(FIREWALLD)
    assert found.severity is Severity.WARNING
    assert found.remedy.startswith("nft insert rule inet firewalld filter_FORWARD iifname natf0 oifname natf0 accept; ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        DOCKER,  # natf's own rule comes first there
        FIREWALLD.replace("\t\tct state", '\t\tiifname "natf0" oifname "natf0" accept\n\t\tct state'),
        FIREWALLD.replace("\t\treject with icmpx admin-prohibited\n", ""),
    ],
)
def test_a_chain_that_lets_them_pass_is_well(text):
    assert chains(text) == []


def test_a_chain_with_a_policy_to_drop_counts_too():
    (found,) = chains(DOCKER.replace("table ip filter", "table inet mine"))
    assert "chain FORWARD of table inet mine" in found.found


def test_without_nft_there_is_nothing_to_see_and_without_root_it_is_said():
    assert linux.forwarding_chains(router(), {"nft": Answer("nft", 127, "")}) == []
    (found,) = linux.forwarding_chains(replace(router(), root=False), {"nft": Answer("nft", 1, "", "not permitted")})
    assert found.severity is Severity.NOTE


@pytest.mark.parametrize(
    ("switch", "tls", "is_blind"),
    [
        ("hosts: files resolve [!UNAVAIL=return] dns\n", "Global: yes\nLink 2 (eth0): no\n", True),
        ("hosts: files resolve\n", "Global: no\nLink 2 (eth0): opportunistic\n", True),
        ("hosts: files resolve\n", "Global: no\nLink 2 (eth0): no\n", False),
        ("hosts: files dns # resolve\n", "Global: yes\n", False),
    ],
)
def test_a_resolved_that_asks_by_tls_without_a_packet_is_an_error(switch, tls, is_blind):
    facts = answered(**{"nsswitch.conf": switch, "resolved": tls})
    found = linux.resolved(external_node(), facts)
    assert [one.severity for one in found] == [Severity.ERROR] * is_blind
    assert linux.resolved(router(), facts) == []


def test_devices_that_are_missing_are_told():
    missing = Answer("test", 1, "")
    facts = {"queues": missing, "tun": missing, "liberal": Answer("file", 127, ""), "nft": Answer("nft", 0, "")}
    assert [(one.severity, one.title) for one in linux.kernel(router(), facts)] == [
        (Severity.NOTE, "NFQUEUE"),
        (Severity.ERROR, "TUN device"),
    ]
    assert [one.title for one in linux.kernel(external_node(), facts)] == ["NFQUEUE"]


def test_a_host_without_nftables_is_told_what_it_does_not_have():
    facts = answered(queues="", tun="", liberal="0") | {"nft": Answer("nft list ruleset", 127, "")}
    (found,) = linux.kernel(external_node(), facts)
    assert (found.severity, found.title) == (Severity.NOTE, "kernel path")
    assert linux.kernel(router(), facts) == []


def test_a_setting_somebody_took_back_from_a_running_router_is_a_warning():
    facts = answered(queues="", tun="", liberal="0\n")
    assert linux.kernel(router(), facts) == []
    (found,) = linux.kernel(router(77), facts)
    assert (found.severity, found.title) == (Severity.WARNING, "conntrack")
    assert linux.kernel(router(77), answered(queues="", tun="", liberal="1\n")) == []


def test_rules_without_a_daemon_are_a_warning():
    facts = answered(iptables="*filter\n:INPUT ACCEPT [0:0]\n:NATF-EN-OUTPUT - [0:0]\nCOMMIT\n")
    (found,) = linux.leftover_rules(external_node(), facts)
    assert found.remedy == "start it, or to remove them: natf cleanup en"
    assert linux.leftover_rules(external_node(77), facts) == []
    assert linux.leftover_rules(router(), facts) == []


def test_programs_at_an_interface_without_a_daemon_are_a_warning():
    host = external_node()
    question = linux.questions(host)["filters"]
    assert question == ("tc", "filter", "show", "dev", host.role("en").interface.name, "egress")
    facts = answered(filters="filter protocol ip pref 7800 bpf chain 0 handle 0x1 natf_out direct-action\n")
    (found,) = linux.leftover_filters(host, facts)
    assert found.remedy == "start it, or to remove them: natf cleanup en"
    assert linux.leftover_filters(external_node(77), facts) == []
    assert linux.leftover_filters(router(), facts) == []
    assert linux.leftover_filters(host, answered(filters="")) == []
    assert linux.leftover_filters(host, {}) == []


def test_what_the_daemons_check_becomes_findings(outer, monkeypatch):
    monkeypatch.setattr(runner, "check", lambda checks, run: ["no rules", "no forwarding"])
    host = router()
    facts = linux.more(host, {}, lambda argv, stdin: Completed(0, "", ""), lambda path: "")
    remedy = "natf router check then says whether more is in the way"
    assert linux.checks(host, facts) == [
        Finding(Severity.ERROR, "natf router check", "no rules", remedy),
        Finding(Severity.ERROR, "natf router check", "no forwarding", remedy),
    ]
    monkeypatch.setattr(runner, "check", lambda checks, run: [])
    host = external_node()
    facts = linux.more(host, {}, lambda argv, stdin: Completed(0, "", ""), lambda path: "")
    assert linux.checks(host, facts) == [Finding(Severity.OK, "natf en check", "nothing stands in the way")]


def test_checks_that_cannot_be_made_are_said(outer, monkeypatch):
    def fail(checks, run):
        raise NatfError("no netlink")

    monkeypatch.setattr(runner, "check", fail)
    (found,) = linux.checks(router(), linux.more(router(), {}, None, None))
    assert (found.severity, found.found) == (Severity.WARNING, "not seen: natf router check: no netlink")
    host = replace(router(), root=False)
    (found,) = linux.checks(host, linux.more(host, {}, None, None))
    assert (found.severity, found.remedy) == (Severity.NOTE, "run natf doctor as root")


def test_a_tun_device_of_another_name_is_meant():
    host = router(router=RouterConfig(tun="hairpin"))
    (found,) = linux.forwarding_chains(host, answered(nft=FIREWALLD))
    assert "iifname hairpin oifname hairpin accept" in found.remedy


def test_everything_topics_ask_for_is_gathered():
    """On a host that prints nothing: a name that is missing would be a KeyError."""
    host = router()
    facts = gather(linux.questions(host), lambda argv, stdin: Completed(1, "", ""), lambda path: "")
    facts |= {"checks router": Answer("natf router check", 0, "")}
    for topic in linux.TOPICS:
        topic(host, facts)
