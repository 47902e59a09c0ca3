"""Daemons that are killed, restarted, stopped and cleaned up after: what survives, and that nothing is left
behind."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from natf_bsd.lab import services
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.story import digest
from natf_bsd.wire import packet
from tests.e2e.steps import SOME, Talk, differences, kill
from tests.lab_platform import HERE, resolve

pytestmark = pytest.mark.lab


def connect(lab: Figure1Lab) -> subprocess.CompletedProcess[str]:
    return lab.exec("en", ["curl", "-sS", "--max-time", "10", "http://alice.home.example.net/"])


def mapped(lab: Figure1Lab, port: str) -> str:
    """G2:m of the connection with this local port."""
    flows = json.loads(lab.natf("en", "status", "--json").stdout)["en"]["flows"]
    [found] = [flow["mapped"] for flow in flows if flow["source"].endswith(f":{port}")]
    return str(found)


@pytest.mark.parametrize("role", ["en", "router"])
def test_an_open_connection_outlives_a_kill_and_new_ones_work(natf: Figure1Lab, role: str) -> None:
    talk = Talk(natf, "en", "alice.home.example.net")
    before = talk.request()
    mapping = mapped(natf, before[0])
    kill(getattr(natf, role))
    getattr(natf, f"start_{role}")()
    assert talk.request() == before, "the same connection"
    assert "alice" in connect(natf).stdout
    assert mapped(natf, before[0]) == mapping, "by the same mapping; a renewal is answered by now"


def test_a_restart_by_signal_keeps_connections(natf: Figure1Lab) -> None:
    talk = Talk(natf, "en", "alice.home.example.net")
    before = talk.request()
    assert natf.en is not None
    natf.en.send_signal(signal.SIGUSR1)
    assert natf.en.wait() == 0, natf.en.output()
    address = resolve(natf, "alice.home.example.net")
    assert not address.startswith("240."), "no daemon, no rewriting"
    natf.start_en()
    assert talk.request() == before
    assert "alice" in connect(natf).stdout


def test_data_flow_on_while_the_router_has_no_daemon(natf: Figure1Lab) -> None:
    talk = Talk(natf, "en", "alice.home.example.net")
    before = talk.request()
    kill(natf.router)
    assert talk.request() == before


def test_a_download_outlives_a_kill_of_the_external_node(natf: Figure1Lab) -> None:
    """All its packets of substance come inward: only what was saved can tell whose they are."""
    copy = natf.run_dir / "copy"
    url = "http://alice.home.example.net/big"
    load = natf.spawn(
        "en", ["curl", "-sS", "--max-time", "110", "--limit-rate", "8M", "-o", str(copy), url], name="load"
    )
    natf.wait_until(lambda: copy.exists() and copy.stat().st_size > 1_000_000, load)
    kill(natf.en)
    natf.start_en()
    assert load.wait(120) == 0, load.output()
    assert digest(copy) == services.big_digest("alice")


def test_a_name_keeps_its_virtual_address_over_a_restart(natf: Figure1Lab) -> None:
    before = resolve(natf, "alice.home.example.net")
    kill(natf.en)
    natf.start_en()
    assert resolve(natf, "alice.home.example.net") == before


silent = pytest.mark.linux("what is diverted to a port that nobody reads is lost without a word")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=silent), signal.SIGUSR1])
def test_without_its_daemon_the_external_node_refuses_virtual_addresses_at_once(
    natf: Figure1Lab, number: signal.Signals
) -> None:
    assert connect(natf).returncode == 0
    address = resolve(natf, "alice.home.example.net")
    assert natf.en is not None
    natf.en.send_signal(number)
    natf.en.wait()
    with natf.capture("en", "eth0") as capture:
        done = natf.exec("en", ["curl", "-sS", "-w", "%{errormsg} %{time_total}", f"http://{address}/"])
        leaked = [data for p in capture.packets() if (data := packet.destination(p.data))[0] == 240]
    assert done.returncode == 7
    assert float(done.stdout.split()[-1]) < SOME, "an error, not a time-out"
    assert leaked == []


def test_a_stopped_daemon_leaves_its_host_as_it_was(unreachable: Figure1Lab) -> None:
    lab = unreachable
    lab.write_files()
    before = {role: HERE.state(lab, role) for role in ("en", "router")}
    lab.start_router()
    lab.start_en()
    assert connect(lab).returncode == 0
    running = {role: HERE.state(lab, role) for role in ("en", "router")}
    for role, parts in HERE.touched.items():
        assert all(running[role][part] != before[role][part] for part in parts), "else there would be nothing to undo"
    for process in (lab.en, lab.router):
        assert process is not None
        assert process.stop() == 0
    assert [differences(before[role], HERE.state(lab, role)) for role in before] == [[], []]


def test_cleanup_after_a_kill_leaves_the_host_as_it_was(unreachable: Figure1Lab) -> None:
    lab = unreachable
    lab.write_files()
    before = {role: HERE.state(lab, role) for role in ("en", "router")}
    lab.start_router()
    lab.start_en()
    kill(lab.en)
    kill(lab.router)
    lab.start_router()  # a second life over the remains must not take our own setting for the host's
    kill(lab.router)
    killed = {role: HERE.state(lab, role) for role in before}
    assert all(killed[role] != before[role] for role in before), "else there would be nothing to clean up"
    for role in before:
        done = lab.natf(role, "cleanup", role)
        assert done.returncode == 0, done.stderr
    assert [differences(before[role], HERE.state(lab, role)) for role in before] == [[], []]
    assert lab.natf("router", "cleanup", "router").returncode == 0, "and a second time does no harm"


def test_cleanup_leaves_a_living_daemon_alone_and_says_so(natf: Figure1Lab) -> None:
    assert natf.en is not None
    done = natf.natf("en", "cleanup", "en")
    assert done.returncode == 1
    assert f"process {natf.en.pid}" in done.stderr
    assert connect(natf).returncode == 0


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_second_daemon_is_told_who_holds_the_role(natf: Figure1Lab, role: str) -> None:
    done = natf.natf(role, role, "run")
    assert done.returncode == 1
    assert f"process {getattr(natf, role).pid}" in done.stderr
    assert connect(natf).returncode == 0, "and the first one goes on"
