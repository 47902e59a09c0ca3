"""vagrant/e2e with stand-ins for vagrant, ssh and the tests: the order of things, and when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vagrant.machines import VAGRANT

LOG = 'printf "%s\\n" "$(basename "$0") $*" >>"$CALLS"\n'
SSH = f"#!/bin/sh\n{LOG}" + 'case $* in *fetch*) echo "$PAGES" ;; esac\n'
PAGES = " ".join(f"{name}'s {what}" for name in ("alice", "bob", "carol", "plain") for what in ("page", "file"))


class Entry:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._calls = path / "calls"
        self.status = 0
        (path / "vagrant").mkdir()
        shutil.copy(VAGRANT / "e2e", path / "vagrant")
        self.stand_in("vagrant", f"#!/bin/sh\n{LOG}echo 'Host en'\n")
        self.stand_in("ssh", SSH)
        self.stand_in("python", f"#!/bin/sh\n{LOG}exit $TESTS\n")

    def stand_in(self, name: str, text: str) -> None:
        path = self._path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *arguments: str, pages: str = PAGES, tests: int = 0) -> list[str]:
        """What was called; `status` is the entry's."""
        settings = {
            "PATH": f"{self._path / 'bin'}:{os.environ['PATH']}",
            "PYTHON": "python",
            "CALLS": str(self._calls),
            "PAGES": pages,
            "TESTS": str(tests),
        }
        done = subprocess.run(
            [str(self._path / "vagrant" / "e2e"), *arguments], env=settings, capture_output=True, text=True, check=False
        )
        self.status = done.returncode
        self.output = done.stdout
        return self._calls.read_text().splitlines()


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return Entry(tmp_path)


def on(call: str) -> str:
    """The part for the machine."""
    return call.partition("BatchMode=yes ")[2].replace("sudo -n ", "")


def test_the_services_make_way_for_the_tests_and_come_back(entry: Entry) -> None:
    calls = entry.run("-k", "alice")
    assert entry.status == 0
    assert calls[0] == "vagrant ssh-config"
    tests = calls.index("python -m pytest -p tests.vagrant.over_ssh tests/e2e -k alice")
    assert [on(call) for call in calls[tests - 2 : tests]] == [
        "en service natf_en onestop",
        "router service natf_router onestop",
    ]
    assert [on(call) for call in calls[tests + 1 :]] == [
        "en service natf_en onestart",
        "router service natf_router onestart",
    ]


def test_the_services_come_back_when_the_tests_fail(entry: Entry) -> None:
    calls = entry.run(tests=1)
    assert entry.status == 1
    assert on(calls[-1]) == "router service natf_router onestart"


def test_every_way_of_registration_and_figure_3_are_tried(entry: Entry) -> None:
    fetched = [on(call) for call in entry.run() if "fetch" in call]
    for home in ("home", "cname", "each"):
        assert f"en fetch -q -T 20 -o - http://alice.{home}.example.net/" in fetched
    assert "carol fetch -q -T 20 -o - http://alice.home.example.net/" in fetched
    assert "en fetch -q -T 20 -o - ftp://alice.home.example.net/hello" in fetched


def test_a_page_that_is_not_the_right_one_is_a_failure(entry: Entry) -> None:
    entry.run(pages="This is nobody's page.")
    assert entry.status == 1
    assert 'BAD  en: http://alice.home.example.net/, expected "alice\'s page"\n' in entry.output
