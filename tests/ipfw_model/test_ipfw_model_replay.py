"""Every event of the FreeBSD 14.2 recordings comes out of the model as it was recorded, or is listed here.

`data/` holds the recordings, gzip-compressed and otherwise untouched. Of the others errors.jsonl is held against in
tests/divert/test_fake_kernel.py, natd-time.jsonl in tests/natd_bridge/test_libalias_clock.py, and of load.jsonl what
receive buffers hold in test_ipfw_model_host.py. Left out: pf.jsonl and tso.jsonl, since pf next to ipfw is refused and
TSO switched off.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from natf_bsd.lab.ipfw_model.replay import Event, Report, addresses, commands, dns, hosts, pseudo, vat

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> list[Event]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def check(name: str, report: Report, events: list[Event], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        left_out = "".join(f"\n    left out, {count}: {reason}" for reason, count in report.left_out.items())
        print(f"\n  {name}: {report.same} of {len(events)} events came out the same{left_out}")  # noqa: T201
    assert not report.differences, "\n".join(report.differences[:5])
    assert report.events == len(events) == report.same + report.left_out.total()


# Events of ipfw-commands that are left out: what of the event tells it, and why.
COMMANDS_LEFT_OUT = {
    "kldload": "modules are the host's, not ipfw(8)'s",
    "kldstat": "modules are the host's, not ipfw(8)'s",
    "sysctl": "another program: the model is of ipfw(8)",
    "netstat": "another program: the model is of ipfw(8)",
    "uname": "another program: the model is of ipfw(8)",
    "freebsd-version": "another program: the model is of ipfw(8)",
    "ifconfig": "another program: the model is of ipfw(8)",
    "route": "another program: the model is of ipfw(8)",
    "arp": "another program: the model is of ipfw(8)",
    "sockstat": "another program: the model is of ipfw(8)",
    "natd": "natd's command line; its packets are in pseudo, flows and private-to-private",
    "ps": "processes of that machine",
    "pgrep": "processes of that machine",
    "cat": "processes of that machine",
    "kill": "processes of that machine",
    "jls": "jails",
    "jexec": "jails",
    "pfctl": "pf is not modelled",
    "pfilctl": "pf is not modelled",
    "service": "rc.d and daemon(8)",
    "sysrc": "rc.d and daemon(8)",
    "rcorder": "rc.d and daemon(8)",
    "(state)": "rc.d and daemon(8)",
    "sh": "rc.d and daemon(8)",
    "grep": "rc.d and daemon(8)",
    "ipfw -p": "a preprocessor that was not installed there",
}

# Events of flows and private-to-private that are not compared themselves, by reason.
FLOWS_LEFT_OUT = {hosts.STIMULUS: 329, hosts.RESULT: 19, hosts.BEYOND_CAP: 34}
HOMES_LEFT_OUT = {hosts.STIMULUS: 70, hosts.RESULT: 9}


def command_left_out(event: Event) -> str | None:
    name = "ipfw -p" if event["argv"][0] == "ipfw" and "-p" in event["argv"] else event["argv"][0]
    return COMMANDS_LEFT_OUT.get(name)


def test_divert_addresses_come_out_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("divert-addresses"), Report()
    addresses.replay(events, report)
    check("divert-addresses", report, events, capsys)


def test_pseudo_packets_come_out_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("pseudo"), Report()
    pseudo.replay(events, report)
    check("pseudo", report, events, capsys)


def test_ipfw_commands_end_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("ipfw-commands"), Report()
    commands.replay(events, report, command_left_out)
    check("ipfw-commands", report, events, capsys)


def test_flows_come_out_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("flows"), Report()
    hosts.replay(events, report, hosts.FLOWS)
    check("flows", report, events, capsys)
    assert report.left_out == FLOWS_LEFT_OUT


def test_private_to_private_comes_out_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("private-to-private"), Report()
    hosts.replay(events, report, hosts.HOMES)
    check("private-to-private", report, events, capsys)
    assert report.left_out == HOMES_LEFT_OUT


def test_dns_answers_come_out_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("dns"), Report()
    dns.replay(events, report)
    check("dns", report, events, capsys)


def test_flows_translated_in_the_kernel_come_out_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    events, report = recorded("vat-in-kernel"), Report()
    vat.replay(events, report)
    check("vat-in-kernel", report, events, capsys)
    assert report.same == 3
    assert set(report.left_out) == {vat.SPEED}
