"""Which tests this machine can run, and a lab for those that need one."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.figure3 import Figure3Lab
from natf_bsd.lab.lab import Lab
from tests.lab_platform import own_lab, remove_remains

IS_FREEBSD = sys.platform.startswith("freebsd")
_MARKERS = {
    "lab": "builds a network on this machine: namespaces of Linux, or as root vnet jails of FreeBSD",
    "freebsd": "needs a FreeBSD kernel; there also every lab test that is not for Linux alone",
    "linux(reason)": "needs Linux, for the reason given",
}


# How long an example takes says nothing of ours: the processor may be an emulated one.
hypothesis.settings.register_profile(
    "natf",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("natf")


def pytest_configure(config: pytest.Config) -> None:
    for name, text in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First of all, so that `-m freebsd` sees what is marked here."""
    reasons = {"freebsd": None if IS_FREEBSD else f"needs FreeBSD, this is {sys.platform}"}
    if any(item.get_closest_marker("lab") for item in items):
        reasons["lab"] = Figure1Lab.is_supported()
    for item in items:
        if (linux := item.get_closest_marker("linux")) and sys.platform != "linux":
            item.add_marker(pytest.mark.skip(reason=f"needs Linux: {linux.args[0]}"))
        elif IS_FREEBSD and item.get_closest_marker("lab"):
            item.add_marker("freebsd")
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A failure in a lab is mostly explained by what the processes on its hosts wrote."""
    outcome = yield
    report = outcome.get_result()
    arguments = getattr(item, "funcargs", {})
    lab = arguments.get("figure1") or arguments.get("figure3")
    if report.failed and isinstance(lab, Lab):
        report.sections.append(("Logs of the lab", lab.report()))


@pytest.fixture(scope="module")
def figure1() -> Iterator[Figure1Lab]:
    """The paper's figure 1, up, daemons not started: one for all tests of a file."""
    remove_remains()
    with own_lab(Figure1Lab) as lab, lab:
        yield lab


@pytest.fixture(scope="module")
def figure3() -> Iterator[Figure3Lab]:
    """As `figure1`, the paper's figure 3."""
    remove_remains()
    with own_lab(Figure3Lab) as lab, lab:
        yield lab
