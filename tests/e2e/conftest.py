"""Both daemons on the lab of figure 1, started anew for each test that asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from tests.e2e.name_servers import NameServers, missing


@pytest.fixture(scope="module")
def unreachable(figure1: Figure1Lab) -> Figure1Lab:
    """The lab without NAT-f, proved to need it: alice cannot be reached from the external node."""
    without = figure1.exec("en", ["curl", "-sS", "--max-time", "3", "http://alice.home.example.net/"])
    assert without.returncode != 0, f"alice is reached without NAT-f: {without.stdout}"
    return figure1


@pytest.fixture
def natf(unreachable: Figure1Lab) -> Iterator[Figure1Lab]:
    """The lab with both daemons running; stopped, and whatever a test killed cleaned up, afterwards."""
    with running(unreachable):
        yield unreachable


@contextmanager
def running(lab: Figure1Lab) -> Iterator[None]:
    """See `natf`."""
    lab.write_files()
    lab.start_router()
    lab.start_en()
    yield
    for role, process in (("en", lab.en), ("router", lab.router)):
        if process is None or process.poll() is not None:
            assert lab.natf(role, "cleanup", role).returncode == 0
        else:
            assert process.stop() == 0, process.output()


@pytest.fixture(scope="module")
def servers(figure1: Figure1Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NameServers]:
    """The lab with a server that has authority, and the router's daemon; the external node's is not started."""
    if reason := missing("named", "dnssec-keygen", "delv"):
        pytest.skip(reason)
    servers = NameServers(figure1, tmp_path_factory.mktemp("names"))
    authority = servers.start_authority()
    figure1.write_files()
    router = figure1.start_router()
    yield servers
    for process in (router, authority):
        process.stop()
