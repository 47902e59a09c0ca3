"""When the records are brought up to date, and what is said: a server whose part the test plays."""

from __future__ import annotations

import logging

import pytest

from natf_bsd.config import DdnsConfig
from natf_bsd.ddns import daemon, update
from natf_bsd.ddns.daemon import CONFIRM, LONGEST_PAUSE, LOOK, DdnsDaemon
from natf_bsd.ddns.update import UpdateFailed
from natf_bsd.errors import NatfError
from natf_bsd.ops.interfaces import Interface
from natf_bsd.tsig import TsigKey
from natf_bsd.types import Address, format_address, parse_address

NAMES = ("home.example.net", "*.home.example.net")
CONFIG = DdnsConfig("192.0.2.53", "example.net", NAMES, TsigKey("natf", "hmac-sha256", b"secret"))
FIRST, SECOND = "203.0.113.1", "203.0.113.2"


def all_at(address: str) -> dict[str, list[str]]:
    return {name: [address] for name in NAMES}


class World:
    """An outer interface with `address`, and a server with `records` that fails with `trouble`. `updates` are times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address: str | None = FIRST
        self.records = all_at("198.51.100.1")
        self.trouble = ""
        self.looks: list[float] = []
        self.updates: list[float] = []
        self.now = 1000.0
        self.daemon = DdnsDaemon(CONFIG, self.outer)
        monkeypatch.setattr(update, "addresses", self.answer)
        monkeypatch.setattr(update, "put", self.put)

    def outer(self, wanted: str | None) -> Interface:
        if self.address is None:
            raise NatfError("wan has no IPv4 address")
        return Interface("wan", parse_address(self.address))

    def answer(self, config: DdnsConfig) -> dict[str, list[str]]:
        self.looks.append(self.now)
        if self.trouble:
            raise UpdateFailed(self.trouble)
        return dict(self.records)

    def put(self, config: DdnsConfig, address: Address | None) -> None:
        assert address is not None
        self.updates.append(self.now)
        self.records = all_at(format_address(address))

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / LOOK)):
            self.daemon.tick(self.now)
            self.now += LOOK


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_records_that_differ_are_replaced_at_once_and_then_left_alone(world: World) -> None:
    world.wait(600)
    assert world.updates == [1000.0]
    assert world.records == all_at(FIRST)
    assert world.looks == [1000.0]


def test_records_that_are_right_are_not_written(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.records = all_at(FIRST)
    world.wait(60)
    assert world.updates == []
    assert "were already 203.0.113.1" in caplog.text


def test_a_new_address_is_registered_at_the_next_look(world: World) -> None:
    world.wait(60)
    world.address = SECOND
    world.wait(LOOK)
    assert world.updates == [1000.0, 1060.0]
    assert world.records == all_at(SECOND)


def test_what_somebody_else_changed_is_put_right_within_a_quarter_of_an_hour(world: World) -> None:
    world.wait(60)
    world.records = all_at("198.51.100.1")
    world.wait(CONFIRM)
    assert len(world.updates) == 2


def test_trouble_is_told_once_and_tried_again_after_growing_pauses(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.trouble = "name server 192.0.2.53: REFUSED, so there"
    world.wait(3000)
    pauses = [later - earlier for earlier, later in zip(world.looks, world.looks[1:], strict=False)]
    assert pauses[:4] == [LOOK, 2 * LOOK, 4 * LOOK, 8 * LOOK]
    assert max(pauses) == LONGEST_PAUSE
    assert caplog.text.count("so there") == 1
    world.trouble = ""
    world.wait(LONGEST_PAUSE)
    assert len(world.updates) == 1


def test_a_new_address_does_not_wait_for_the_trouble_of_the_last_one(world: World) -> None:
    world.trouble = "name server 192.0.2.53: no answer within 5 s"
    world.wait(600)
    world.trouble, world.address = "", SECOND
    world.wait(LOOK)
    assert world.records == all_at(SECOND)


def test_without_an_address_the_records_stay_and_it_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.address = None
    world.wait(100)
    assert world.looks == []
    assert caplog.text.count("no IPv4 address") == 1
    world.address = FIRST
    world.wait(LOOK)
    assert len(world.updates) == 1


@pytest.mark.parametrize("address", ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "169.254.1.1"])
def test_an_address_nobody_outside_can_reach_is_not_registered(world: World, address: str) -> None:
    world.address = address
    with pytest.raises(NatfError, match=rf"wan {address} is a private address: this router is behind another NAT"):
        daemon.public_address(CONFIG, world.outer)
    world.wait(30)
    assert world.updates == []
