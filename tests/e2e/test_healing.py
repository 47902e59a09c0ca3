"""What others do to the hosts of running daemons - firewall reloads, devices, addresses, a second daemon - does not
last, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from natf_bsd.firewall.guard import INTERVAL
from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.topology import Zone
from tests.e2e.steps import Talk, status
from tests.lab_platform import HERE

pytestmark = pytest.mark.lab

SOME = 30.0  # s; for a repair, its look and a few `natf status`, on an emulated machine busy with something else
needs_tun = pytest.mark.linux("only its router has a TUN device")


def page(lab: Figure1Lab) -> str:
    url = "http://alice.home.example.net/"
    return lab.exec("en", ["curl", "-sS", "--max-time", "20", url]).stdout


def healed(lab: Figure1Lab, role: str) -> int:
    done = lab.natf(role, "status", "--json")
    return int(json.loads(done.stdout)[role]["handles"]["guard"]["healed"])


def wait_for_healing(lab: Figure1Lab, *roles: str, limit: float = INTERVAL + SOME) -> None:
    for role in roles:
        process = getattr(lab, role)
        lab.wait_until(lambda role=role: healed(lab, role) > 0, process, limit)
        assert "set up again" in process.output()


def test_a_firewall_that_was_reloaded_on_both_hosts_is_made_whole_again(natf: Figure1Lab) -> None:
    assert "alice's page" in page(natf)
    before = {host: len(HERE.own_rules(natf, host)) for host in ("en", "router")}
    for host in before:
        HERE.reload_firewall(natf, host)
        assert HERE.own_rules(natf, host) == []
    wait_for_healing(natf, "en", "router")
    after = {host: len(HERE.own_rules(natf, host)) for host in before}
    assert after == before
    assert "alice's page" in page(natf)
    assert "healed 1" in natf.natf("router", "status").stdout


@needs_tun
@pytest.mark.parametrize("commands", [["link set natf0 down"], ["link set natf0 down", "link set natf0 up"]])
def test_a_tun_device_that_went_down_is_brought_back_at_the_first_request(
    natf: Figure1Lab, commands: list[str]
) -> None:
    assert "alice's page" in page(natf)
    for command in commands:
        natf.exec("router", ["ip", *command.split()], check=True)
    page(natf)  # fails, and is the alarm
    wait_for_healing(natf, "router", limit=SOME)
    assert "alice's page" in page(natf)


@needs_tun
def test_a_tun_device_that_was_removed_ends_the_router_with_a_word(natf: Figure1Lab) -> None:
    assert natf.router is not None
    natf.exec("router", ["ip", "link", "del", "natf0"], check=True)
    assert natf.router.wait(SOME) == 1
    assert "natf0 was removed" in natf.router.output()
    assert "Traceback" not in natf.router.output()
    assert HERE.own_rules(natf, "router") == []


@contextmanager
def moved(lab: Figure1Lab, old: str, new: str) -> Iterator[None]:
    """Inside, the router has the public address `new`, and DNS says so."""
    zone = lab.topology.zone
    domains = {name: new if address == old else address for name, address in zone.domains.items()}
    _move(lab, old, new, replace(zone, domains=domains))
    try:
        yield
    finally:
        _move(lab, new, old, zone)


def _move(lab: Figure1Lab, old: str, new: str, zone: Zone) -> None:
    HERE.readdress(lab, "router", old, new)
    lab.serve_names(zone)


def test_a_router_with_a_new_public_address_serves_it(natf: Figure1Lab) -> None:
    assert "alice's page" in page(natf)
    with moved(natf, "203.0.113.1", "203.0.113.2"):
        wait_for_healing(natf, "router")
        assert "wan 203.0.113.2" in natf.natf("router", "status").stdout
        assert "alice's page" in page(natf)
        assert "203.0.113.2" in natf.natf("en", "status").stdout


def names_the_first(lab: Figure1Lab, role: str, said: str) -> bool:
    """FreeBSD tells its command and user too."""
    process = rf"\((?:.* \()?process {getattr(lab, role).pid}\b.* holds "
    return re.search(f"natf {role} is running with another run_dir {process}", said) is not None


@pytest.mark.parametrize("role", ["en", "router"])
def test_cleanup_with_another_run_dir_leaves_a_living_daemon_alone(natf: Figure1Lab, role: str) -> None:
    natf.configure(role, run_dir=str(natf.run_dir / "elsewhere"))
    done = natf.natf(role, "cleanup", role)
    assert done.returncode == 1
    assert names_the_first(natf, role, done.stderr)
    assert "alice's page" in page(natf)


def to_the_kernel(lab: Figure1Lab) -> int:
    """Flows handed over so far; 0 where the kernel takes none."""
    return int(status(lab, "en")["handles"].get("kernel", {}).get("handed_over", 0))


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_second_daemon_with_another_run_dir_leaves_the_first_alone(natf: Figure1Lab, role: str) -> None:
    open_one = Talk(natf, "en", "alice.home.example.net")
    before = open_one.request()
    handed_over = to_the_kernel(natf)
    natf.configure(role, run_dir=str(natf.run_dir / "elsewhere"), **HERE.other_queues[role])
    done = natf.natf(role, role, "run")
    assert done.returncode == 1
    assert names_the_first(natf, role, done.stderr)
    assert open_one.request() == before
    natf.configure(role)
    assert to_the_kernel(natf) == handed_over, "a connection the kernel has lost is handed over anew"
    assert "alice's page" in page(natf)
