"""The replay bites: a model with one deliberate fault does not come out as the recordings did."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from natf_bsd.lab.ipfw_model import NotModelledError
from natf_bsd.lab.ipfw_model import host as host_module
from natf_bsd.lab.ipfw_model.fragments import set_header_sum
from natf_bsd.lab.ipfw_model.host import Host
from natf_bsd.lab.ipfw_model.natd import Libalias
from natf_bsd.lab.ipfw_model.replay import Event, Report, addresses, commands, dns, hosts, pseudo
from natf_bsd.lab.ipfw_model.rules import RuleSet
from natf_bsd.lab.ipfw_model.sockets import DivertAddress, DivertSockets
from natf_bsd.types import Direction

DATA = Path(__file__).parent / "data"
Patch = Callable[[pytest.MonkeyPatch], None]

REPLAYS: dict[str, Callable[[list[Event], Report], None]] = {
    "divert-addresses": addresses.replay,
    "pseudo": pseudo.replay,
    "flows": lambda events, report: hosts.replay(events, report, hosts.FLOWS),
    "private-to-private": lambda events, report: hosts.replay(events, report, hosts.HOMES),
    "dns": dns.replay,
    "ipfw-commands": lambda events, report: commands.replay(
        events, report, lambda event: None if event["argv"][0] == "ipfw" and "-p" not in event["argv"] else "other"
    ),
}


def resume_one_rule_too_early(patch: pytest.MonkeyPatch) -> None:
    right = RuleSet.first_from
    patch.setattr(RuleSet, "first_from", lambda self, number: right(self, number - 1))


def resume_one_rule_too_late(patch: pytest.MonkeyPatch) -> None:
    right = RuleSet.first_from
    patch.setattr(RuleSet, "first_from", lambda self, number: right(self, number + 1))


def direction_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DivertAddress, "direction", property(lambda self: Direction.OUT))


def rule_number_in_network_order(patch: pytest.MonkeyPatch) -> None:
    right_pack, right_unpack = DivertAddress.pack, DivertAddress.unpack

    def swapped(sockaddr: bytes) -> bytes:
        return sockaddr[:2] + struct.pack("<H", *struct.unpack_from(">H", sockaddr, 2)) + sockaddr[4:]

    patch.setattr(DivertAddress, "pack", lambda self: swapped(right_pack(self)))
    patch.setattr(DivertAddress, "unpack", lambda sockaddr: right_unpack(swapped(sockaddr)))


def checksum_not_completed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(host_module, "_complete", lambda frame: None)


def header_checksum_completed_too(patch: pytest.MonkeyPatch) -> None:
    right = DivertSockets.deliver

    def deliver(self: DivertSockets, port: int, data: bytes, address: DivertAddress) -> None:
        changed = bytearray(data)
        set_header_sum(changed)
        right(self, port, bytes(changed), address)

    patch.setattr(DivertSockets, "deliver", deliver)


def set_number_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RuleSet, "is_enabled", lambda self, rule: True)


def fragments_diverted_as_they_are(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(host_module, "is_fragment", lambda data: False)


def name_of_eight_characters_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("natf_bsd.lab.ipfw_model.sockets._NAME_SIZE", 9)


def deny_incoming_ignored(patch: pytest.MonkeyPatch) -> None:
    right = Libalias.__init__

    def init(self: Libalias, outside: bytes, **options: object) -> None:
        right(self, outside, **{**options, "deny_incoming": False})  # type: ignore[arg-type]

    patch.setattr(Libalias, "__init__", init)


def one_pass_ignored(patch: pytest.MonkeyPatch) -> None:
    right = Host._nat
    patch.setitem(Host._ACTIONS, "nat", lambda self, *rest: right(self, *rest) and None)


FAULTS = [
    (resume_one_rule_too_early, "divert-addresses"),
    (resume_one_rule_too_early, "flows"),
    (resume_one_rule_too_late, "pseudo"),
    (resume_one_rule_too_late, "divert-addresses"),
    (direction_ignored, "divert-addresses"),
    (direction_ignored, "flows"),
    (direction_ignored, "private-to-private"),
    (rule_number_in_network_order, "divert-addresses"),
    (rule_number_in_network_order, "pseudo"),
    (rule_number_in_network_order, "dns"),
    (checksum_not_completed, "divert-addresses"),
    (checksum_not_completed, "flows"),
    (checksum_not_completed, "dns"),
    (header_checksum_completed_too, "divert-addresses"),
    (header_checksum_completed_too, "flows"),
    (set_number_ignored, "ipfw-commands"),
    (fragments_diverted_as_they_are, "divert-addresses"),
    (name_of_eight_characters_kept, "divert-addresses"),
    (deny_incoming_ignored, "pseudo"),
    (deny_incoming_ignored, "flows"),
    (one_pass_ignored, "pseudo"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_shows_in_the_recording(fault: Patch, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt") as lines:
        events = [json.loads(line) for line in lines]
    report = Report()
    try:
        REPLAYS[name](events, report)
    except (OSError, IndexError, NotModelledError):
        # A system call that the faulty model refuses, nothing to read, a divert loop: seen, too.
        return
    assert report.differences
