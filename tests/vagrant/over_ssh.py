"""For pytest (-p tests.vagrant.over_ssh): which of tests/e2e cannot run on machines behind ssh, and why.

By what a test does, not by its name: whoever writes one need not know of this.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

REASONS = {
    r"\.capture\(": "watches packets while they pass: the file is there until the capture has ended",
    r"\.stat\(\)\.st_size": "watches a file grow: it is there until the process has ended",
    r"\biptables|\bip\(|natf0|host_state|reload_firewall|be_liberal": "is about the kernel of Linux",
    r"\.pid\}": "compares process ids: a process has another one here than there",
    r"serve_names\(|\bmoved\(": "needs a name server of its own: the machines have a real one",
    r"resolv_conf": "writes the resolv.conf of its own lab",
}


def reason(test: Callable[..., object]) -> str | None:
    """Why `test` can't run over ssh; None if it can."""
    source = inspect.getsource(test)
    return next((why for pattern, why in REASONS.items() if re.search(pattern, source)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and (why := reason(item.function)):
            item.add_marker(pytest.mark.skip(reason=f"over ssh: {why}"))
