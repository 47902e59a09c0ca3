"""What a program gets, and after how long, where there is no mapping to be had (docs/fallbacks.md)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from natf_bsd.en.negotiation import GIVE_UP_AFTER
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.wire import message
from tests.e2e.steps import LATE, connect, curl, status, udp
from tests.lab_platform import HERE, addresses, resolve

pytestmark = pytest.mark.lab

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "fallbacks.md"

OTHER_VERSION = """
import socket
from pathlib import Path
from natf_bsd.wire import icmp, message
Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("1")
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
    print("ready", flush=True)
    while True:
        data, (source, _) = s.recvfrom(65535)
        echo = icmp.decode_echo(data[20:])
        if message.is_natf(echo.data):
            answer = message.encode(message.Refused(echo.data[8:16], message.Status.UNSUPPORTED, "version 2"))
            answer = answer[:4] + bytes([2]) + answer[5:]
            s.sendto(icmp.encode_echo(icmp.Echo(icmp.ECHO_REPLY, echo.ident, echo.sequence, answer)), (source, 0))
"""
"""A router of the future, which can only say so."""

ASK_IN_VERSION_2 = """
import socket
from natf_bsd.types import Endpoint, Flow, Name, parse_address
from natf_bsd.wire import icmp, message
flow = Flow(6, Endpoint(parse_address("203.0.113.10"), 40000), Endpoint(parse_address("240.0.0.1"), 80))
request = bytearray(message.pad(message.encode(message.Request(b"12345678", flow, Name("alice", "home.example.net")))))
request[4] = 2
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
    s.settimeout(10)
    s.sendto(icmp.encode_echo(icmp.Echo(icmp.ECHO_REQUEST, 7, 1, bytes(request))), ("203.0.113.1", 0))
    print(icmp.decode_echo(s.recv(65535)[20:]).data.hex())
"""


def test_a_router_without_natf_is_reached_itself(natf: Figure1Lab) -> None:
    assert resolve(natf, "www.plain.example.net").startswith("240.")
    assert "plain's page" in curl(natf, "http://www.plain.example.net/").stdout
    assert udp(natf, "www.plain.example.net") == "plain: hello"


def test_a_silent_router_is_an_error_after_four_seconds(natf: Figure1Lab) -> None:
    word, seconds = connect(natf, "www.silent.example.net")
    assert word == "EHOSTUNREACH"
    assert GIVE_UP_AFTER <= seconds < GIVE_UP_AFTER + LATE
    assert udp(natf, "www.silent.example.net", 8) == "OSError", "UDP programs are told too"


def test_a_silent_router_is_reached_itself_where_the_user_wants_that(natf: Figure1Lab) -> None:
    assert natf.en is not None
    natf.en.stop()
    natf.start_en(on_silence="direct")
    word, seconds = connect(natf, "www.silent.example.net")
    assert word == "connected"
    assert GIVE_UP_AFTER <= seconds < GIVE_UP_AFTER + LATE


def test_a_router_whose_icmp_is_filtered_is_an_error_after_four_seconds(natf: Figure1Lab) -> None:
    with HERE.without_icmp(natf):
        word, seconds = connect(natf, "alice.home.example.net")
    assert word == "EHOSTUNREACH"
    assert GIVE_UP_AFTER <= seconds < GIVE_UP_AFTER + LATE
    assert connect(natf, "alice.home.example.net")[0] == "connected", "and works again once the filter is gone"


@contextmanager
def router_of_another_version(lab: Figure1Lab) -> Iterator[None]:
    process = lab.spawn("router", ["python3", "-c", OTHER_VERSION], name="version-2")
    lab.wait_until(lambda: "ready" in process.output(), process)
    try:
        yield
    finally:
        process.stop()
        lab.exec("router", ["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=0"], check=True)


@pytest.mark.linux("a setting that leaves pings to a process")
def test_a_router_of_another_version_is_an_error_at_once(natf: Figure1Lab) -> None:
    assert natf.router is not None
    assert natf.router.stop() == 0
    with router_of_another_version(natf):
        word, seconds = connect(natf, "alice.home.example.net")
        assert word == "EHOSTUNREACH"
        assert seconds < GIVE_UP_AFTER
        assert udp(natf, "alice.home.example.net") == "OSError"
    assert "203.0.113.1: unsupported" in status(natf, "en")["heard"][-1]
    natf.start_router()
    assert connect(natf, "alice.home.example.net")[0] == "connected"


@pytest.mark.linux("a raw socket that gets the answer to its own ping")
def test_an_external_node_of_another_version_is_told_ours(natf: Figure1Lab) -> None:
    done = natf.exec("en", [sys.executable, "-c", ASK_IN_VERSION_2], check=True)
    answer = bytes.fromhex(done.stdout)
    assert answer[4] == message.VERSION == 1
    heard = message.decode(answer)
    assert isinstance(heard, message.Refused)
    assert heard.status is message.Status.UNSUPPORTED


def test_an_external_node_needs_a_home_domain(natf: Figure1Lab) -> None:
    assert natf.en is not None
    natf.en.stop()
    natf.config("en").write_text("[en]\n")
    done = natf.natf("en", "en", "run")
    assert done.returncode == 1
    assert re.search(r"en\.toml:1: .*home_domains", done.stderr)
    natf.configure("en")
    natf.start_en()


def test_a_name_under_no_home_domain_is_answered_and_reached_as_ever(natf: Figure1Lab) -> None:
    assert natf.en is not None
    natf.en.stop()
    natf.start_en(home_domains=["another.example.net"])
    assert addresses(natf, "alice.home.example.net") == ["203.0.113.1"]
    assert connect(natf, "alice.home.example.net")[0] == "ECONNREFUSED", "by the router itself"


def test_a_star_makes_every_name_ours_as_in_the_paper(natf: Figure1Lab) -> None:
    assert natf.en is not None
    natf.en.stop()
    natf.start_en(home_domains=["*"])
    assert resolve(natf, "www.elsewhere.example.net").startswith("240.")
    assert "plain's page" in curl(natf, "http://www.elsewhere.example.net/").stdout, "which is no NAT-f router"
    assert "alice's page" in curl(natf, "http://alice.home.example.net/").stdout


def test_the_documentation_has_every_fallback_and_its_time() -> None:
    text = DOCUMENTATION.read_text()
    tests = {name for name in globals() if name.startswith("test_") and "documentation" not in name}
    assert set(re.findall(r"`(test_\w+)`", text)) == tests
    assert f"{GIVE_UP_AFTER:g} s" in text
