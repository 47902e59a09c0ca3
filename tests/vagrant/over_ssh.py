"""For pytest (-p tests.vagrant.over_ssh): which of tests/e2e cannot run on machines behind ssh, and why.

By what a test does, not by its name: whoever writes one need not know of this.
"""

from __future__ import annotations

import inspect
import re

import pytest

REASONS = {
    r"Figure3Lab": "needs more hosts in the homes than there are machines; vagrant/e2e calls from one to the other",
    r"\.capture\(": "watches packets while they pass: the file is there until the capture has ended",
    r"\.stat\(\)\.st_size": "watches a file grow: it is there until the process has ended",
    r"\.pid\}": "compares process ids: a process has another one here than there",
    r"serve_names\(|\bmoved\(": "needs a name server of its own: the machines have a real one",
    r"resolv_conf": "writes the resolv.conf of its own lab",
}


def reason(test: pytest.Function) -> str | None:
    """Why `test` can't run over ssh; None if it can."""
    if linux := test.get_closest_marker("linux"):
        return f"the machines are FreeBSD's: {linux.args[0]}"
    source = inspect.getsource(test.function)
    return next((why for pattern, why in REASONS.items() if re.search(pattern, source)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and (why := reason(item)):
            item.add_marker(pytest.mark.skip(reason=f"over ssh: {why}"))
