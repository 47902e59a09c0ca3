"""Real servers at home and stock clients on the external node (issue 4): each reaches alice by name, and only with
NAT-f."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.types import Protocol
from natf_bsd.wire import packet
from tests.e2e.application_servers import APPLICATIONS, FILE, ApplicationServers, has_gone_well, missing_for
from tests.e2e.applications_table import DOCUMENTATION

pytestmark = [pytest.mark.lab, pytest.mark.linux("its servers are Debian's, its timers netfilter's")]


class Home:
    """Alice's servers behind NAT-f."""

    def __init__(self, lab: Figure1Lab, servers: ApplicationServers, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self._servers = servers

    def use(self, label: str) -> subprocess.CompletedProcess[str]:
        """Run the application, which must go as it should."""
        application = APPLICATIONS[label]
        if reason := missing_for(application):
            pytest.skip(reason)
        done = self._servers.run(application)
        assert has_gone_well(application, done), (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done


@pytest.fixture(scope="module")
def home(figure1: Figure1Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """With both daemons; before they were started no application got anywhere."""
    directory = tmp_path_factory.mktemp("applications")
    servers = ApplicationServers(figure1, directory)
    with ThreadPoolExecutor() as pool:
        done = pool.map(servers.run, (replace(application, forgetful=False) for application in APPLICATIONS.values()))
        assert all(client.returncode != 0 for client in done)
    figure1.write_files()
    daemons = [figure1.start_router(), figure1.start_en()]
    yield Home(figure1, servers, directory)
    for daemon in reversed(daemons):
        assert daemon.stop() == 0, daemon.output()


def opened_by_alice(home: Home, label: str) -> int:
    """Connections that alice opened while the application ran."""
    with home.lab.capture("router", "lan") as capture:
        home.use(label)
        incoming = [seen.data for seen in capture.packets() if not seen.outgoing]
    tcp = [data for data in incoming if packet.protocol(data) == Protocol.TCP]
    return sum(packet.tcp_flags(data) == packet.TCP_SYN for data in tcp)


FTP = [label for label in APPLICATIONS if label.startswith("FTP")]


@pytest.mark.parametrize("label", [label for label in FTP if "active" in label.split()])
def test_ftp_puts_gets_and_lists_over_connections_that_the_server_opens(home: Home, label: str) -> None:
    assert opened_by_alice(home, label) == 3


@pytest.mark.parametrize("label", [label for label in FTP if "passive" in label.split()])
def test_ftp_puts_gets_and_lists_over_connections_that_the_client_opens(home: Home, label: str) -> None:
    assert opened_by_alice(home, label) == 0


def test_a_command_runs_over_ssh_and_its_output_comes_whole(home: Home) -> None:
    home.use("SSH command")


def test_a_file_is_copied_over_ssh(home: Home) -> None:
    home.use("SSH copy")
    assert (home.directory / "by-scp").read_text() == FILE


def test_the_second_http_request_uses_the_connection_of_the_first(home: Home) -> None:
    home.use("HTTP keep-alive")


def test_a_hundred_http_requests_at_once_are_a_hundred_flows_all_answered(home: Home) -> None:
    sources = re.findall(r"You are (\S+)\.", home.use("HTTP, 100 requests at once").stdout)
    assert len(set(sources)) == 100


def test_an_idle_connection_lives_as_long_as_the_routers_nat_remembers_it(home: Home) -> None:
    home.use("idle TCP")


def test_tcp_keep_alive_holds_a_connection_that_the_routers_nat_would_forget(home: Home) -> None:
    forgotten = "idle TCP for longer than the NAT remembers"
    home.use(forgotten)
    home.use(f"{forgotten}, with keep-alive")


def test_a_half_closed_connection_brings_the_whole_long_reply(home: Home) -> None:
    home.use("half-closed TCP, long reply")


def test_the_called_side_of_a_udp_flow_may_be_the_next_to_speak(home: Home) -> None:
    home.use("SIP-like, called back after a pause")


def test_datagrams_that_keep_alive_let_the_called_side_speak_after_any_pause(home: Home) -> None:
    home.use("SIP-like, called back after longer than the NAT remembers, with keep-alive")


@pytest.mark.parametrize("label", [label for label in APPLICATIONS if label.startswith("iperf3")])
def test_iperf3_measures_both_directions(home: Home, label: str) -> None:
    home.use(label)


def test_the_documentation_has_every_application() -> None:
    rows = [line.split("|")[1].strip() for line in DOCUMENTATION.read_text().splitlines() if line.startswith("|")]
    assert rows[2:] == list(APPLICATIONS)
