"""Both daemons on the lab of figure 1, started anew for each test that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natf_bsd.lab.figure1 import Figure1Lab


@pytest.fixture(scope="module")
def unreachable(figure1: Figure1Lab) -> Figure1Lab:
    """The lab without NAT-f, proved to need it: alice cannot be reached from the external node."""
    without = figure1.exec("en", ["curl", "-sS", "--max-time", "3", "http://alice.home.example.net/"])
    assert without.returncode != 0, f"alice is reached without NAT-f: {without.stdout}"
    return figure1


@pytest.fixture
def natf(unreachable: Figure1Lab) -> Iterator[Figure1Lab]:
    """The lab with both daemons running; stopped, and whatever a test killed cleaned up, afterwards."""
    lab = unreachable
    lab.write_files()
    lab.start_router()
    lab.start_en()
    yield lab
    for role, process in (("en", lab.en), ("router", lab.router)):
        if process is None or process.poll() is not None:
            assert lab.natf(role, "cleanup").returncode == 0
        else:
            assert process.stop() == 0, process.output()
