"""The paper's figure 1 as it is without NAT-f, and what is left of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dpkt
import pytest

from natf_bsd.errors import NatfError
from natf_bsd.lab import lab as lab_module
from natf_bsd.lab import services
from natf_bsd.lab.demo import digest
from natf_bsd.lab.figure1 import ACT, Figure1Lab
from natf_bsd.lab.services import big_digest
from tests.lab_platform import HERE, addresses, own_lab

pytestmark = pytest.mark.lab

CURL = ("curl", "-sS", "--max-time", "10")


@pytest.fixture
def own() -> Iterator[Figure1Lab]:
    """One beside the fixture's; not up, gone afterwards whatever the test does to it."""
    with own_lab() as lab:
        yield lab
        lab.down()


def test_names_resolve_by_the_labs_own_server(figure1: Figure1Lab) -> None:
    assert addresses(figure1, "alice.home.example.net") == ["203.0.113.1"]
    assert addresses(figure1, "www.plain.example.net") == ["203.0.113.80"]
    assert addresses(figure1, "nosuch.example.net") == []


def test_a_plain_host_is_reached_by_name(figure1: Figure1Lab) -> None:
    done = figure1.exec("en", [*CURL, "http://www.plain.example.net/"])
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "This is plain's page.")
    assert "You are 203.0.113.10:" in done.stdout


def test_alice_cannot_be_reached_without_natf(figure1: Figure1Lab) -> None:
    done = figure1.exec("en", [*CURL, "http://alice.home.example.net/"])
    # Refused, or by a NAT that denies what nobody inside asked for: silence.
    assert (done.returncode in (7, 28), done.stdout) == (True, "")
    routed = figure1.exec("en", [*CURL, "--max-time", "1", "http://192.168.0.2/"])
    assert routed.returncode in (7, 28)


def test_alice_goes_out_through_the_routers_nat(figure1: Figure1Lab) -> None:
    done = figure1.exec("alice", [*CURL, "http://www.plain.example.net/"])
    assert "This is plain's page.\nYou are 203.0.113.1:" in done.stdout


@pytest.mark.parametrize("host", ["alice", "bob", "eve"])
def test_hosts_inside_serve_their_own_page(figure1: Figure1Lab, host: str) -> None:
    address = figure1.topology.host(host).address
    assert f"This is {host}'s page." in figure1.exec("router", [*CURL, f"http://{address}/"]).stdout


def test_a_big_file_crosses_the_nat_unharmed(figure1: Figure1Lab) -> None:
    copy = figure1.run_dir / "big"
    assert figure1.exec("bob", [*CURL, "-o", str(copy), "http://203.0.113.80/big"]).returncode == 0
    assert digest(copy) == big_digest("plain")


def test_silent_ignores_pings_and_answers_else(figure1: Figure1Lab) -> None:
    # No ping in every image: an echo request of our own, and 0.3 s for an answer that takes 0.3 ms.
    ping = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); s.settimeout(0.3)\n"
        "s.sendto(bytes.fromhex('0800f7fd00010001'), (sys.argv[1], 0))\n"
        "while (m := s.recv(99)[20:])[0] != 0: pass\n"
    )
    assert figure1.exec("en", [sys.executable, "-c", ping, "203.0.113.80"]).returncode == 0
    assert "TimeoutError" in figure1.exec("en", [sys.executable, "-c", ping, "203.0.113.81"]).stderr
    assert "silent's page" in figure1.exec("en", [*CURL, "http://www.silent.example.net/"]).stdout


def test_nothing_of_the_machines_network_is_seen(figure1: Figure1Lab) -> None:
    assert HERE.interfaces(figure1, "en") == ["eth0"]
    assert sorted(HERE.interfaces(figure1, "router")) == ["lan", "wan"]


@pytest.mark.linux("a jail has the machine's own resolv.conf")
def test_the_machines_resolv_conf_is_another(figure1: Figure1Lab) -> None:
    assert figure1.exec("en", ["cat", "/etc/resolv.conf"]).stdout == "nameserver 203.0.113.53\n"
    assert Path("/etc/resolv.conf").read_text() != "nameserver 203.0.113.53\n"


def test_commands_keep_their_directory_and_status(figure1: Figure1Lab, tmp_path: Path) -> None:
    done = figure1.exec("en", ["sh", "-c", "pwd; exit 7"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, f"{tmp_path}\n")
    assert figure1.exec("en", ["cat"], input="hello").stdout == "hello"


def test_a_capture_holds_one_connection(figure1: Figure1Lab) -> None:
    with figure1.capture("plain", "eth0") as capture:
        figure1.exec("en", [*CURL, "http://203.0.113.80/"])
        during = capture.packets()
    tcp = [(packet, dpkt.ip.IP(packet.data)) for packet in capture.packets() if packet.data[9] == 6]
    assert [packet for packet in during if packet.data[9] == 6] == [packet for packet, _ in tcp]
    assert [(packet.outgoing, ip.data.flags & 0x12) for packet, ip in tcp[:3]] == [(False, 2), (True, 18), (False, 16)]
    assert b"plain's page" in b"".join(bytes(ip.data.data) for packet, ip in tcp if packet.outgoing)
    assert all(0 <= time.time() - packet.time < 60 for packet, _ in tcp)


def test_a_capture_that_cannot_start_says_why(figure1: Figure1Lab) -> None:
    with pytest.raises(NatfError, match="No such device"), figure1.capture("plain", "eth7"):
        pass


def test_logs_and_status_tell_what_runs(figure1: Figure1Lab) -> None:
    figure1.exec("en", [*CURL, "http://203.0.113.80/"])
    assert "203.0.113.10:" in figure1.logs()["plain-http"]
    assert "--- plain-http\n" in figure1.report()
    status = figure1.status()
    assert status.up
    alice = next(host for host in status.hosts if host.name == "alice")
    kinds = [kind for process in alice.processes for kind in process.command.split() if kind in ("http", "udp-echo")]
    assert kinds == ["http", "udp-echo"]
    assert alice.addresses == ("192.168.0.2",)
    assert f"{alice.processes[0].pid}" in str(status)
    assert figure1.platform.description() in str(status)


def test_configuration_is_there_for_the_daemons(figure1: Figure1Lab) -> None:
    assert figure1.act.read_text() == ACT
    text = figure1.config("en").read_text()
    assert 'interface = "eth0"' in text and '"home.example.net"' in text
    figure1.configure("en", on_silence="direct")
    assert figure1.config("en").read_text() == text + 'on_silence = "direct"\n'
    figure1.configure("en")


def test_a_daemon_that_cannot_start_shows_its_own_words(figure1: Figure1Lab) -> None:
    with pytest.raises(NatfError, match=r"en-natf ended with status 1:\n.*no_such_setting"):
        figure1.start_en(no_such_setting=1)
    figure1.configure("en")


def test_another_process_uses_a_lab_that_is_up(figure1: Figure1Lab) -> None:
    other = Figure1Lab(figure1.instance)
    before = {process.pid for process in other.platform.processes()}
    other.up()
    assert {process.pid for process in other.platform.processes()} == before


def test_down_leaves_nothing(own: Figure1Lab) -> None:
    before = HERE.traces(own.instance)
    own.up()
    own.spawn("en", ["sleep", "1000"])
    during = HERE.traces(own.instance)
    own.down()
    assert HERE.traces(own.instance) == before
    assert len(during["processes"]) > 10
    assert during["files"]
    own.down()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only its hosts have names outside")
def test_root_enters_hosts_with_the_systems_own_tools(own: Figure1Lab) -> None:
    own.up()
    location = own.platform.location("alice")
    assert location in HERE.traces(own.instance)["hosts"]
    command = HERE.shell(location, ["sh", "-c", "echo inside; exec sleep 1000"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "inside\n"
        own.down()
        assert shell.wait() == -signal.SIGTERM


def test_down_after_the_maker_was_killed(own: Figure1Lab) -> None:
    before = HERE.traces(own.instance)
    up = f"Figure1Lab({own.instance!r}).up(); print('up', flush=True); input()"
    script = f"from natf_bsd.lab.figure1 import Figure1Lab; {up}"
    environment = os.environ | {"PYTHONPATH": str(lab_module.SOURCE)}
    maker = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert maker.stdout and maker.stdin
    with maker.stdout, maker.stdin:
        assert maker.stdout.readline() == b"up\n"
        maker.kill()
        maker.wait()
    assert own.is_up()
    assert HERE.traces(own.instance) != before
    own.down()
    assert HERE.traces(own.instance) == before


def test_processes_that_ignore_sigterm_end_too(own: Figure1Lab) -> None:
    own.up()
    process = own.spawn("bob", ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], name="deaf")
    own.wait_until(lambda: "deaf" in process.output(), process)
    own.down()
    assert process.returncode == -signal.SIGKILL


def test_a_lab_with_a_dead_server_is_made_again(own: Figure1Lab) -> None:
    own.up()
    victim = next(process for process in own.platform.processes() if process.host == "dns")
    os.kill(victim.pid, signal.SIGKILL)
    while own.is_up():
        time.sleep(0.01)
    own.up()
    assert addresses(own, "bob.home.example.net") == ["203.0.113.1"]


def test_without_dnsmasq_the_names_are_the_same(own: Figure1Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find_dnsmasq", lambda: None)
    own.up()
    assert any("natf_bsd.lab.services dns" in process.command for process in own.platform.processes())
    assert addresses(own, "alice.home.example.net") == ["203.0.113.1"]
    assert addresses(own, "nosuch.example.net") == []


def test_a_failure_while_making_shows_logs_and_leaves_nothing(own: Figure1Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = HERE.traces(own.instance)
    monkeypatch.setattr(own, "_wait_for_network", lambda: own.topology.host("mallory"))
    with pytest.raises(NatfError, match=r"no host 'mallory'[^\0]*--- alice-http\nready"):
        own.up()
    assert HERE.traces(own.instance) == before


def test_leaving_by_an_exception_shows_the_logs(own: Figure1Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), own:
        raise ZeroDivisionError
    assert "--- bob-udp-echo\nready" in capsys.readouterr().err
    assert not own.is_up()


def test_a_lab_is_removed_when_nobody_reads_its_logs(own: Figure1Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(sys.stderr, "write", write)
    with pytest.raises(BrokenPipeError), own:
        raise ZeroDivisionError
    assert not own.is_up()


def test_a_lab_that_is_not_up_says_how_to_get_one(own: Figure1Lab) -> None:
    with pytest.raises(NatfError, match="is not up; natf lab up"):
        own.exec("en", ["true"])
    assert str(own.status()) == "not up"


def test_two_at_the_same_time_make_one_lab(own: Figure1Lab) -> None:
    script = f"from natf_bsd.lab.figure1 import Figure1Lab; Figure1Lab({own.instance!r}).up()"
    environment = os.environ | {"PYTHONPATH": str(lab_module.SOURCE)}
    makers = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(2)]
    assert [maker.wait() for maker in makers] == [0, 0]
    assert own.is_up()


@pytest.mark.linux("elsewhere nothing holds a lab")
@pytest.mark.skipif(os.geteuid() == 0, reason="only a lab without root has a process that holds its namespaces")
def test_down_after_the_holder_was_killed(own: Figure1Lab) -> None:
    own.up()
    os.kill(int((own.run_dir / "holder").read_text().split()[0]), signal.SIGKILL)
    while own.is_up():
        time.sleep(0.01)
    assert HERE.traces(own.instance)["processes"]
    own.down()
    assert not HERE.traces(own.instance)["processes"]


WITHOUT_ROOT = (
    test_names_resolve_by_the_labs_own_server,
    test_a_plain_host_is_reached_by_name,
    test_alice_cannot_be_reached_without_natf,
    test_alice_goes_out_through_the_routers_nat,
    test_commands_keep_their_directory_and_status,
    test_a_capture_holds_one_connection,
    test_down_leaves_nothing,
    test_down_after_the_maker_was_killed,
    test_down_after_the_holder_was_killed,
)


def as_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python as the ordinary user 1000."""
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--", sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=lab_module.SOURCE)


@pytest.mark.linux("jails need root")
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: this whole run is the test")
def test_the_same_without_root() -> None:
    """As an ordinary user, who has not a single capability on this machine."""
    probe = as_user("-c", "from natf_bsd.lab.figure1 import Figure1Lab as F; print(F.is_supported() or '')")
    if reason := (probe.stdout + probe.stderr).strip():
        pytest.skip(f"no user namespaces here: {reason}")
    tests = [f"{__file__}::{test.__name__}" for test in WITHOUT_ROOT]
    done = as_user("-m", "pytest", "-p", "no:cacheprovider", "-q", *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(WITHOUT_ROOT)} passed" in done.stdout


@pytest.mark.linux("nobody else has ip-netns(8)")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's labs use the machine's own /run/netns")
def test_what_ip_netns_mounts_at_its_first_use_is_taken_back() -> None:
    """On a /run of its own, which nobody has used yet: a new machine's."""
    python = "from natf_bsd.lab.figure1 import Figure1Lab as L; l = L('first'); l.up(); print(l.is_up()); l.down()"
    begin = "umount -l /run/netns 2>/dev/null; mount -t tmpfs run /run"
    end = '! grep " /run/netns " /proc/self/mountinfo && test ! -e /run/netns && test ! -e /run/natf-lab'
    script = f'{begin} && "$0" -c "{python}" && {end}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["True"]), done.stdout + done.stderr
