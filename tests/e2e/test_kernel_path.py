"""Flows of the external node's programs, translated by the kernel: what goes on without the daemon, what is left."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from natf_bsd.lab import services
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import LabProcess
from natf_bsd.lab.story import digest
from tests.datapath.test_interface_vat import unable
from tests.e2e.conftest import running
from tests.e2e.steps import Talk, curl, kill, only_by_the_nat, status, udp
from tests.e2e.test_lifetimes import FORGET, UdpFlow, flow, tcp, until

pytestmark = [pytest.mark.lab, pytest.mark.linux("netfilter")]

MARKED = """
from natf_bsd.natd_bridge.conntrack import Dump
found = Dump(0x4E000000, 0xFF000000).listed()
print(len(found), sum(entry.key[4] == 240 for entry in found))
"""


AT_INTERFACE, BY_NAT = "at the interface", "by the NAT"


@pytest.fixture(params=[AT_INTERFACE, BY_NAT])
def natf(request: pytest.FixtureRequest, unreachable: Figure1Lab) -> Iterator[Figure1Lab]:
    """Either way in which the kernel may translate."""
    by_nat = request.param == BY_NAT
    if not by_nat and (reason := unable()):
        pytest.skip(reason)
    with only_by_the_nat(unreachable) if by_nat else nullcontext(), running(unreachable):
        assert ("interface.drop.no_flow" in kernel(unreachable)) is not by_nat
        yield unreachable


def kernel(lab: Figure1Lab) -> dict[str, int]:
    return dict(status(lab, "en")["handles"]["kernel"])


def tracked(lab: Figure1Lab) -> tuple[int, int]:
    """Connections with our mark in the external node's kernel; how many of them it translates."""
    here, translated = lab.exec("en", [sys.executable, "-c", MARKED], check=True).stdout.split()
    return int(here), int(translated)


def table(lab: Figure1Lab) -> str:
    return lab.exec("en", ["nft", "list", "ruleset"], check=True).stdout


@contextmanager
def asleep(process: LabProcess | None) -> Iterator[None]:
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def download(lab: Figure1Lab, speed: str) -> LabProcess:
    """The big file, on its way."""
    copy = lab.run_dir / "copy"
    copy.unlink(missing_ok=True)
    url = "http://alice.home.example.net/big"
    argv = ["curl", "-sS", "--max-time", "60", "--speed-time", "3", "--limit-rate", speed, "-o", str(copy), url]
    load = lab.spawn("en", argv, name="load")
    lab.wait_until(lambda: copy.exists() and copy.stat().st_size > 1_000_000, load)
    return load


def test_flows_take_the_way_that_is_there(natf: Figure1Lab, request: pytest.FixtureRequest) -> None:
    by_nat = BY_NAT in request.node.name
    assert "alice" in curl(natf, "http://alice.home.example.net/").stdout
    counted = kernel(natf)
    assert (counted["handed_over"], counted["at_interface"]) == (1, 0 if by_nat else 1)
    assert natf.en is not None
    said = "flows are translated by netfilter's NAT, not at eth0: its firewall drops what it has no rule for"
    assert (said in natf.en.output()) is by_nat


def programs(lab: Figure1Lab) -> str:
    shown = [lab.exec("en", ["tc", "filter", "show", "dev", "eth0", way]).stdout for way in ("egress", "ingress")]
    return "".join(shown)


@pytest.mark.parametrize("kernel_path", [True, False])
def test_a_second_daemon_touches_no_programs_of_the_first(natf: Figure1Lab, kernel_path: bool) -> None:
    before = programs(natf)
    elsewhere = {"run_dir": str(natf.run_dir / "elsewhere"), "dns_queue": 1, "out_queue": 2, "in_queue": 3}
    natf.configure("en", **elsewhere, kernel_path=kernel_path)
    assert natf.natf("en", "en", "run").returncode == 1
    natf.configure("en")
    assert programs(natf) == before


def test_programs_of_an_earlier_daemon_are_removed_by_one_that_needs_none(natf: Figure1Lab) -> None:
    kill(natf.en)
    natf.start_en(kernel_path=False)
    assert "natf" not in programs(natf)
    assert "alice" in curl(natf, "http://alice.home.example.net/").stdout
    natf.write_files()


@pytest.fixture
def at_interface(unreachable: Figure1Lab) -> Iterator[Figure1Lab]:
    if reason := unable():
        pytest.skip(reason)
    with running(unreachable):
        yield unreachable


def answered_by(lab: Figure1Lab) -> str:
    """The way that a new flow takes, once it is answered."""
    before = kernel(lab)["at_interface"]
    assert "alice" in curl(lab, "http://alice.home.example.net/").stdout
    return AT_INTERFACE if kernel(lab)["at_interface"] > before else BY_NAT


def reload(lab: Figure1Lab) -> None:
    """The daemon looks at the host at once."""
    assert lab.natf("en", "en", "reload").returncode == 0


@pytest.mark.parametrize(
    "rule",
    [
        "raw PREROUTING -s 240.0.0.0/4 -j DROP",
        "filter OUTPUT -d 224.0.0.0/3 -j REJECT",
        "filter OUTPUT -m owner ! --uid-owner 0 -d 203.0.113.0/24 -j REJECT",
    ],
)
def test_rules_of_the_host_that_come_later_and_go_again(at_interface: Figure1Lab, rule: str) -> None:
    """What is open goes on by the other way, and nothing new is lost."""
    talk = Talk(at_interface, "en", "alice.home.example.net")
    before = talk.request()
    table, *rest = rule.split()
    at_interface.exec("en", ["iptables", "-t", table, "-A", *rest], check=True)
    reload(at_interface)
    assert answered_by(at_interface) == BY_NAT
    assert talk.request() == before
    at_interface.exec("en", ["iptables", "-t", table, "-D", *rest], check=True)
    reload(at_interface)
    assert answered_by(at_interface) == AT_INTERFACE
    assert talk.request() == before


def test_flows_go_on_when_somebody_takes_the_programs_place(at_interface: Figure1Lab) -> None:
    talk = Talk(at_interface, "en", "alice.home.example.net")
    before = talk.request()
    at_interface.exec("en", ["tc", "qdisc", "del", "dev", "eth0", "clsact"], check=True)
    assert talk.request() == before
    assert answered_by(at_interface) == AT_INTERFACE
    with asleep(at_interface.en):  # it would be faster
        for change in "del dev eth0 clsact", "add dev eth0 ingress":
            at_interface.exec("en", ["tc", "qdisc", *change.split()], check=True)
    assert talk.request() == before
    assert answered_by(at_interface) == BY_NAT
    at_interface.exec("en", ["tc", "qdisc", "del", "dev", "eth0", "ingress"], check=True)
    until(lambda: answered_by(at_interface) == AT_INTERFACE, 5)
    assert talk.request() == before


def test_marks_that_others_take_away(at_interface: Figure1Lab) -> None:
    talk = Talk(at_interface, "en", "alice.home.example.net")
    before = talk.request()
    for others in ["CONNMARK", "--restore-mark"], ["MARK", "--set-mark", "1"]:
        at_interface.exec("en", ["iptables", "-t", "mangle", "-I", "OUTPUT", "-j", *others], check=True)
        assert talk.request() == before
        reload(at_interface)
        assert answered_by(at_interface) == AT_INTERFACE
        assert talk.request() == before
        at_interface.exec("en", ["iptables", "-t", "mangle", "-D", "OUTPUT", "-j", *others], check=True)


def test_a_download_needs_no_daemon(natf: Figure1Lab) -> None:
    load = download(natf, "8M")
    with asleep(natf.en):
        assert load.wait(60) == 0, load.output()
    assert digest(natf.run_dir / "copy") == services.big_digest("alice")


def test_without_the_kernel_it_does(natf: Figure1Lab) -> None:
    """The other way, for hosts without nftables; it is all there is for hosts behind a gateway."""
    assert natf.en is not None
    assert natf.en.stop() == 0
    natf.start_en(kernel_path=False)
    load = download(natf, "8M")
    with asleep(natf.en):
        assert load.wait(60) != 0
    assert "alice" in curl(natf, "http://alice.home.example.net/").stdout
    assert udp(natf, "bob.home.example.net") == "bob: hello"
    counters = status(natf, "en")["counters"]
    assert counters["out.sent.handed_over"] == 0
    assert counters["in.sent.translated"] > 100
    assert not any(row["in_kernel"] for row in status(natf, "en")["flows"])
    natf.write_files()


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_flow_may_have_the_port_of_one_that_an_earlier_daemon_rewrote(natf: Figure1Lab, end: str) -> None:
    """Conntrack remembers the earlier one, and would give the new one a port that its router does not know."""
    assert natf.en is not None
    assert natf.en.stop() == 0
    rewrites = natf.start_en(kernel_path=False)
    # By the other one the router's NAT remembers which port it gave alice's, and gives it again.
    assert [tcp(natf, port, "close") for port in (41006, 41005)] == ["done", "done"]
    if end == "killed":
        kill(rewrites)
    else:
        assert rewrites.stop() == 0
    natf.write_files()
    natf.start_en()
    assert tcp(natf, 41005, "close") == "done"
    row = flow(natf, 41005)
    assert row is not None
    assert row["in_kernel"]


def test_flows_go_on_when_somebody_empties_the_kernels_table(natf: Figure1Lab) -> None:
    talk, datagrams = Talk(natf, "en", "alice.home.example.net"), UdpFlow(natf, "bob.home.example.net")
    before = talk.request()
    assert datagrams.send() == "bob: hello"
    started = status(natf, "en")["counters"]["negotiation.started"]
    natf.exec("en", [sys.executable, "-c", FORGET], check=True)
    assert tracked(natf) == (0, 0)
    assert talk.request() == before
    assert datagrams.send() == "bob: hello"
    assert status(natf, "en")["counters"]["negotiation.started"] == started
    assert tracked(natf) == (2, 2)


def test_flows_go_on_when_somebody_flushes_every_table_of_nftables(natf: Figure1Lab) -> None:
    """Those that are open at once, new ones when the guard has looked."""
    talk = Talk(natf, "en", "alice.home.example.net")
    before = talk.request()
    natf.exec("en", ["nft", "delete", "table", "ip", "natf_en"], check=True)
    reload(natf)
    assert "natf_en" in table(natf)
    assert talk.request() == before
    assert "alice" in curl(natf, "http://alice.home.example.net/").stdout


def test_a_flow_that_is_over_is_over_in_the_kernel(natf: Figure1Lab) -> None:
    talk = Talk(natf, "en", "alice.home.example.net")
    port, _ = talk.request()
    row = flow(natf, port)
    assert row is not None
    assert (row["in_kernel"], row["state"]) == (True, "established")
    assert tcp(natf, 41004, "close") == "done"
    closed = flow(natf, 41004)
    assert closed is not None
    assert (closed["in_kernel"], closed["state"]) == (True, "closing")
    until(lambda: tracked(natf) == (1, 1), 20)
    assert flow(natf, port) is not None


def test_nothing_is_left_in_the_kernel_by_a_daemon_that_stops(natf: Figure1Lab) -> None:
    talk = Talk(natf, "en", "alice.home.example.net")
    talk.request()
    assert tracked(natf) == (1, 1)
    assert natf.en is not None
    assert natf.en.stop() == 0
    assert tracked(natf) == (0, 0)
    assert "natf_en" not in table(natf)


def test_nothing_is_left_by_one_that_was_killed_once_it_is_cleaned_up(natf: Figure1Lab) -> None:
    talk = Talk(natf, "en", "alice.home.example.net")
    before = talk.request()
    kill(natf.en)
    assert talk.request() == before, "what is open goes on meanwhile"
    assert natf.natf("en", "cleanup", "en").returncode == 0
    assert tracked(natf) == (0, 0)
    assert "natf_en" not in table(natf)


def test_the_next_daemon_takes_over_what_the_kernel_has(natf: Figure1Lab) -> None:
    """All but flows of datagrams, whose mapping may be another's by now: their next one asks."""
    talk, datagrams = Talk(natf, "en", "alice.home.example.net"), UdpFlow(natf, "bob.home.example.net")
    before = talk.request()
    assert datagrams.send() == "bob: hello"
    kill(natf.en)
    natf.start_en()
    assert tracked(natf) == (1, 1)
    assert talk.request() == before
    assert datagrams.send() == "bob: hello"
    for port in before[0], datagrams.port:
        row = flow(natf, port)
        assert row is not None
        assert row["in_kernel"]
