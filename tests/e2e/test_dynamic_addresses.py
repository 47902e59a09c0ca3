"""The home's address changes, and the external node's: with BIND, and `natf ddns` that keeps its records right."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tomlkit

from natf_bsd.firewall.guard import INTERVAL
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import LabProcess
from tests.e2e.name_servers import AUTHORITY, ROUTER, ZONE, NameServers, find, missing
from tests.e2e.steps import SOME, Talk, curl, status
from tests.lab_platform import HERE, addresses, resolve

pytestmark = pytest.mark.lab

ELSEWHERE = "203.0.113.2"
"""G2 after the provider has renumbered the home."""

NAME = f"alice.moving.{ZONE}"


@pytest.fixture(scope="module")
def lab(unreachable: Figure1Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Figure1Lab]:
    """BIND has authority and lets a key change moving.example.net, which is not there yet; both daemons run."""
    if reason := missing("named", "dnssec-keygen", "tsig-keygen"):
        pytest.skip(reason)
    lab = unreachable
    directory = tmp_path_factory.mktemp("names")
    key = lab.run_dir / "ddns.key"
    key.write_text(subprocess.run([find("tsig-keygen"), "natf"], capture_output=True, text=True, check=True).stdout)
    key.chmod(0o600)
    names = NameServers(lab, directory)
    names.start_authority(key, f"moving.{ZONE}", f"*.moving.{ZONE}")
    (lab.run_dir / "etc" / "en" / "resolv.conf").write_text(f"nameserver {AUTHORITY}\n")
    lab.start_router()
    lab.start_en(home_domains=[f"moving.{ZONE}"], minimum_ttl=1, maximum_ttl=1)
    configure(lab)
    yield lab
    for process in (lab.en, lab.router):
        assert process is not None
        assert process.stop() == 0


def configure(lab: Figure1Lab, **settings: object) -> None:
    """`natf ddns` on the router, with `settings` beside the lab's own."""
    names = [f"moving.{ZONE}", f"*.moving.{ZONE}"]
    own = {"server": AUTHORITY, "zone": ZONE, "names": names, "key": str(lab.run_dir / "ddns.key"), "ttl": 1}
    (lab.run_dir / "ddns.toml").write_text(tomlkit.dumps({"ddns": own | {"interface": "wan"} | settings}))


def ddns(lab: Figure1Lab, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "natf_bsd.cli", "--config", str(lab.run_dir / "ddns.toml"), "ddns", *arguments]


@contextmanager
def updater(lab: Figure1Lab) -> Iterator[LabProcess]:
    process = lab.spawn("router", ddns(lab, "run"), name="ddns")
    lab.wait_until(lambda: " 203.0.113." in process.output(), process)
    yield process
    assert process.stop() == 0


@contextmanager
def moved(lab: Figure1Lab, host: str, old: str, new: str) -> Iterator[None]:
    """Inside, `host` has the outer address `new` instead of `old`."""
    HERE.readdress(lab, host, old, new)
    try:
        yield
    finally:
        HERE.readdress(lab, host, new, old)


def wait_until_served(lab: Figure1Lab, role: str, address: str) -> None:
    deadline = time.monotonic() + INTERVAL + SOME
    while not status(lab, role)["interface"].endswith(address):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_records_are_made_kept_and_removed_by_one_command_each(lab: Figure1Lab) -> None:
    assert addresses(lab, NAME) == []
    said = [lab.exec("router", ddns(lab, "update"), check=True).stdout for _ in range(2)]
    names = f"moving.{ZONE}, *.moving.{ZONE}"
    assert said == [f"{names}: now {ROUTER}\n", f"{names}: already {ROUTER}\n"]
    assert "alice's page" in curl(lab, f"http://{NAME}/").stdout
    assert lab.exec("router", ddns(lab, "update", "--remove"), check=True).stdout == f"{names}: no address any more\n"
    assert addresses(lab, NAME) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": [f"other.{ZONE}"]}, f"name server {AUTHORITY}: REFUSED, it does not let this key update these"),
        ({"zone": "example.org", "names": ["a.example.org"]}, f"name server {AUTHORITY}: REFUSED for a.example.org"),
        ({"server": "203.0.113.81"}, "name server 203.0.113.81: Connection refused"),
        ({"key": "other.key"}, f"name server {AUTHORITY}: "),
    ],
    ids=["policy", "zone", "server", "key"],
)
def test_what_the_server_does_not_do_is_told_in_words(lab: Figure1Lab, settings: dict[str, object], said: str) -> None:
    if "key" in settings:
        other = lab.run_dir / "other.key"
        other.write_text((lab.run_dir / "ddns.key").read_text().replace('key "natf"', 'key "another"'))
        other.chmod(0o600)
        settings = {"key": str(other)}
        said = f"{said}BADKEY, it knows no key another"
    configure(lab, **settings)
    done = lab.exec("router", ddns(lab, "update"))
    configure(lab)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {said}")


def test_a_home_that_is_renumbered_is_reached_again_and_open_connections_go_on(lab: Figure1Lab) -> None:
    """By the same virtual address; programs notice a pause, and those that connect anew nothing at all."""
    with updater(lab) as process:
        virtual = resolve(lab, NAME)
        talk = Talk(lab, "en", NAME)
        before = talk.request()
        with moved(lab, "router", ROUTER, ELSEWHERE):
            lab.wait_until(lambda: f"are now {ELSEWHERE}" in process.output(), process)
            wait_until_served(lab, "router", ELSEWHERE)
            HERE.forget_neighbour(lab, "en", ROUTER)  # to the provider's network the old address is nobody's now
            assert resolve(lab, NAME) == virtual
            assert "alice's page" in curl(lab, f"http://{NAME}/").stdout
            assert talk.request() == before, "the same connection"
            [flow] = [flow for flow in status(lab, "en")["flows"] if flow["source"].endswith(f":{before[0]}")]
            assert flow["mapped"].startswith(f"{ELSEWHERE}:")
            assert flow["virtual"] == f"{virtual}:80"
        lab.wait_until(lambda: process.output().rstrip().endswith(f" {ROUTER}"), process)
        wait_until_served(lab, "router", ROUTER)
    assert "alice's page" in curl(lab, f"http://{NAME}/").stdout


def test_an_external_node_that_moves_forgets_its_flows_and_makes_new_ones_at_once(lab: Figure1Lab) -> None:
    lab.exec("router", ddns(lab, "update"), check=True)
    virtual = resolve(lab, NAME)
    talk = Talk(lab, "en", NAME)
    port, _ = talk.request()
    with moved(lab, "en", "203.0.113.10", "203.0.113.11"):
        assert "alice's page" in curl(lab, f"http://{NAME}/").stdout, "before the daemon has noticed"
        wait_until_served(lab, "en", "203.0.113.11")
        found = status(lab, "en")
        assert [flow for flow in found["flows"] if flow["source"].startswith("203.0.113.10:")] == []
        assert found["counters"]["flows.left_address"] >= 1
        assert not any(flow["source"].endswith(f":{port}") for flow in found["flows"])
        assert resolve(lab, NAME) == virtual
        assert "alice's page" in curl(lab, f"http://{NAME}/").stdout
    wait_until_served(lab, "en", "203.0.113.10")
    assert "alice's page" in curl(lab, f"http://{NAME}/").stdout
