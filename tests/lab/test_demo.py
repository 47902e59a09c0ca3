"""The demo itself: it tells the whole story, and says so when a step fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from natf_bsd.cli import main
from natf_bsd.lab.demo import Demo
from natf_bsd.lab.demo_figure3 import Demo3
from natf_bsd.lab.fabric import Fabric
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.figure3 import Figure3Lab
from tests.lab_platform import HERE

CLIENT = "stock curl" if shutil.which("curl") else "a stand-in for curl, which is not installed"
STORY = (
    "without NAT-f alice cannot be reached",
    "alice and bob resolve to virtual addresses of their own: 240.",
    f"a page from alice, both at the same time, with {CLIENT}: This is alice's page.",
    f"a page from bob, both at the same time, with {CLIENT}: This is bob's page.",
    "UDP datagrams to bob and back: bob: one, bob: two, bob: three",
    "a 20 MB file from alice, the same bytes: 20000000 bytes",
    "eve, whom the table denies, is refused at once",
    "so is a host the table does not know",
    "a plain host without NAT-f is reached by the fallback: This is plain's page.",
    "at the router's outer side: one echo request, one echo reply, then the SYN, once",
    "every mapping's time was traced on both sides",
    "everything is removed",
)
STORY3 = (
    "alice and carol have the same address, each in her own network: 192.168.0.2",
    "without NAT-f alice cannot reach carol",
    "nor carol alice",
    "natf router and natf en run on both routers, beside their own NAT, and nothing on inside hosts",
    "to alice carol and dave have virtual addresses of their own: 240.",
    "and so has alice to carol: 240.",
    f"alice calls carol, all four at the same time, with {CLIENT}: This is carol's page. You are 203.0.113.1:",
    f"carol calls alice, all four at the same time, with {CLIENT}: This is alice's page. You are 203.0.113.2:",
    f"bob calls dave, all four at the same time, with {CLIENT}: This is dave's page. You are 203.0.113.1:",
    f"dave calls bob, all four at the same time, with {CLIENT}: This is bob's page. You are 203.0.113.2:",
    "UDP datagrams from alice and back: carol: one, carol: two, carol: three",
    "UDP datagrams from carol and back: bob: one, bob: two, bob: three",
    "a 20 MB file from carol to alice, the same bytes: 20000000 bytes",
    "eve, whom her router's table denies, is refused at once",
    "so is a host the table does not know",
    "at the router's outer side: one echo request, one echo reply, then the SYN, once",
    "no virtual address is ever on the wire",
    "every mapping's time was traced on both sides",
    "everything is removed",
)
LONGEST = 120.0 if sys.platform == "linux" else 600.0
"""Seconds. FreeBSD may run on an emulated processor, where each process takes a tenth of a second to start."""

PARTS = ("negotiation start", "router, its NAT included", "resume", "total", "answer rewriting, once a name")


@pytest.mark.lab
def test_the_story_is_told_whole_and_within_its_time() -> None:
    if reason := Figure1Lab().platform.lacks_for_daemons():
        pytest.skip(reason)
    said: list[str] = []
    began = time.monotonic()
    assert Demo(said.append).run() == []
    assert time.monotonic() - began < LONGEST
    text = "\n".join(said)
    for step in STORY:
        assert re.search(rf"^ *[0-9.]+ s  ok   {re.escape(step)}", text, re.MULTILINE), step
    for part in PARTS:
        assert re.search(rf"^  {re.escape(part)} +[1-9]\d* us +[1-9]\d* us$", text, re.MULTILINE), part
    hops = [line.split()[-1] for line in said if re.match(r"  (en|router|alice), \w+ +tcp ", line)]
    assert [hop.rpartition(":")[0].split(".")[0] for hop in hops] == ["240", "203", "203", "192", "192"]
    for table in ("ACT", "NRT, names", "VAT, flows"):
        assert any(line.startswith(table) for line in said), table


@pytest.mark.lab
def test_the_story_from_private_to_private_is_told_whole_and_within_its_time() -> None:
    if reason := Figure3Lab().platform.lacks_for_daemons():
        pytest.skip(reason)
    said: list[str] = []
    began = time.monotonic()
    assert Demo3(said.append).run() == []
    assert time.monotonic() - began < LONGEST
    text = "\n".join(said)
    for step in STORY3:
        assert re.search(rf"^ *[0-9.]+ s  ok   {re.escape(step)}", text, re.MULTILINE), step
    for part in PARTS:
        assert re.search(rf"^  {re.escape(part)} +[1-9]\d* us +[1-9]\d* us$", text, re.MULTILINE), part
    hops = [line.split() for line in said if re.match(r"  \w+, \w+ +tcp ", line)]
    assert [(hop[0], hop[-3].rpartition(":")[0], hop[-1].split(".")[0]) for hop in hops] == [
        ("alice,", "192.168.0.2", "240"),
        ("alice,", "192.168.0.2", "240"),
        ("router,", "192.168.0.2", "240"),
        ("router,", "203.0.113.1", "203"),
        ("router2,", "203.0.113.1", "203"),
        ("router2,", "203.0.113.1", "192"),
        ("carol,", "203.0.113.1", "192"),
    ]
    for table in ("ACT", "NRT, names", "VAT, flows"):
        assert any(line.startswith(table) for line in said), table


def test_figure_3_is_not_told_in_memory() -> None:
    done = CliRunner().invoke(main, ["demo", "--figure", "3", "--in-memory"])
    assert done.exit_code == 1
    assert "figure 3 is told with real hosts only: --in-memory was given" in done.output


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="stands for the demo on a broken machine; once is enough")
def test_a_router_that_says_nothing_of_eve_is_no_refusal_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    demo = Demo(said.append)
    monkeypatch.setattr(demo, "_tell", lambda: (demo._figure.start_router(), demo._figure.start_en(), filtered(demo)))
    assert demo.run() == ["eve, whom the table denies, is refused at once", "so is a host the table does not know"]


@pytest.mark.lab
@pytest.mark.linux("its machine's namespaces tell by their names whose they are")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's namespaces are the machine's")
@pytest.mark.parametrize(("name", "failed"), [("somebody-elses", []), ("natf-demo-extra", ["everything is removed"])])
def test_what_others_make_meanwhile_is_not_left_by_us(
    monkeypatch: pytest.MonkeyPatch, name: str, failed: list[str]
) -> None:
    demo = Demo(lambda line: None)
    monkeypatch.setattr(demo, "_tell", lambda: subprocess.run(["ip", "netns", "add", name], check=True))
    try:
        assert demo.run() == failed
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def filtered(demo: Demo) -> None:
    with HERE.without_icmp(demo._lab):
        demo._refusal()


def test_where_namespaces_are_impossible_it_is_told_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure1Lab, "is_supported", staticmethod(lambda: "no namespaces on this moon"))
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "Running in memory, with model hosts and a model NAT (libalias): no namespaces on this moon."
    assert sum(line.startswith("  ok ") for line in lines) == 9
    assert "BAD" not in done.output


def test_in_memory_too_a_step_that_fails_is_said_and_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fabric, "_from_inside", lambda self, data: None)
    done = CliRunner().invoke(main, ["demo", "--in-memory"])
    assert done.exit_code == 1
    assert "BAD" in done.output
    assert "the demo failed: TCP to alice; UDP to alice; " in done.output
