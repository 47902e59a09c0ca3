"""The stories bite: with one deliberate fault in the product's FreeBSD code one of them fails."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from natf_bsd.datapath.ipfw_reverse import IpfwReversePath
from natf_bsd.divert import sockaddr
from natf_bsd.divert.divert4 import DivertBackend
from natf_bsd.divert.own import OwnPackets
from natf_bsd.dns import carrier
from natf_bsd.effects import Send
from natf_bsd.en.core import EnCore
from natf_bsd.errors import NatfError
from natf_bsd.firewall import ipfw
from natf_bsd.firewall.ipfw_places import EnPlaces, RouterPlaces
from natf_bsd.types import Direction, Packet
from natf_bsd.wire.packet import QuotedRewrite, Rewrite
from tests.platforms import test_freebsd_kernel_path as kernel_path
from tests.platforms import test_freebsd_stories as stories

Patch = pytest.MonkeyPatch
Story = Callable[[], None]


def shifted(patch: Patch, places: type, name: str, by: int) -> None:
    right = getattr(places, name).fget
    patch.setattr(places, name, property(lambda self: right(self) + by))


def pseudo_packets_resume_behind_the_nat(patch: Patch) -> None:
    shifted(patch, RouterPlaces, "pseudo_after", 1)


def pseudo_packets_resume_behind_the_capture_rule(patch: Patch) -> None:
    shifted(patch, RouterPlaces, "pseudo_after", 2)


def errors_to_programs_resume_in_front_of_the_deny_rule(patch: Patch) -> None:
    shifted(patch, EnPlaces, "error_after", -9)


def errors_to_programs_resume_behind_the_nat(patch: Patch) -> None:
    shifted(patch, EnPlaces, "error_after", 1)


def own_packets_go_the_other_way(patch: Patch) -> None:
    right = OwnPackets.__init__

    def init(self: OwnPackets, writer: object, direction: Direction, **options: object) -> None:
        other = Direction.OUT if direction is Direction.IN else Direction.IN
        right(self, writer, other, **options)  # type: ignore[arg-type]

    patch.setattr(OwnPackets, "__init__", init)


def packets_are_written_back_the_other_way(patch: Patch) -> None:
    patch.setattr(DivertBackend, "_way_in", lambda self, raw, place: (sockaddr.outgoing(raw), None))


def rule_numbers_in_network_order(patch: Patch) -> None:
    patch.setattr(sockaddr, "_SOCKADDR", struct.Struct("!BBH4s8s"))


def answers_with_their_old_checksum(patch: Patch) -> None:
    right = carrier.replace_payload

    def replace_payload(data: bytearray, message: bytes) -> bytearray:
        renewed = right(data, message)
        renewed[26:28] = data[26:28]
        return renewed

    patch.setattr(carrier, "replace_payload", replace_payload)


def rewriting_that_leaves_the_transport_checksum(patch: Patch) -> None:
    right = Rewrite.__init__

    def init(self: Rewrite, **ends: object) -> None:
        right(self, **ends)  # type: ignore[arg-type]
        self._transport_delta = 0

    patch.setattr(Rewrite, "__init__", init)


def errors_with_their_old_quote(patch: Patch) -> None:
    patch.setattr(QuotedRewrite, "apply", lambda self, data: None)


def external_node_in_the_set_of_the_stand_in(patch: Patch) -> None:
    patch.setattr(ipfw, "EN_SET", ipfw.STAND_IN_SET)


def router_in_the_set_of_the_external_node(patch: Patch) -> None:
    right = ipfw._add
    sets = {ipfw.ROUTER_SET: ipfw.EN_SET}
    patch.setattr(ipfw, "_add", lambda number, body, own: right(number, body, sets.get(own, own)))


def nobody_admits_a_router(patch: Patch) -> None:
    patch.setattr(ipfw, "peers_add", lambda addresses: [])


def foreign_replies_are_kept(patch: Patch) -> None:
    patch.setattr("natf_bsd.divert.own.is_ours", lambda packet: bool(packet))


def captured_pseudo_packets_are_let_go(patch: Patch) -> None:
    right = DivertBackend.drop

    def drop(self: DivertBackend, packet: Packet) -> None:
        (
            self.send
            if int.from_bytes(packet.data[4:6], "big") == stories.PSEUDO_IDENT
            else lambda _: right(self, packet)
        )(packet)

    patch.setattr(DivertBackend, "drop", drop)


def kernel_rules(patch: Patch, change: Callable[[list[tuple[int, str]]], list[tuple[int, str]]]) -> None:
    right = ipfw._kernel_path_rules
    patch.setattr(ipfw, "_kernel_path_rules", lambda fw: change(right(fw)))


def the_kernel_translates_the_end_of_a_connection(patch: Patch) -> None:
    kernel_rules(patch, lambda rules: [(at, body.replace("tcpflags !syn,!fin,!rst ", "")) for at, body in rules])


def the_kernel_sees_first_fragments_only(patch: Patch) -> None:
    kernel_rules(patch, lambda rules: [rule for rule in rules if not rule[1].startswith("reass")])


def the_kernel_translates_one_way_only(patch: Patch) -> None:
    kernel_rules(patch, lambda rules: [rule for rule in rules if "natf_vi" not in rule[1]])


def the_kernel_comes_after_the_daemon(patch: Patch) -> None:
    right = ipfw._en_lines
    patch.setattr(ipfw, "_en_lines", lambda fw: sorted(right(fw), key=lambda line: (line.split()[1], "natf_v" in line)))


def the_kernel_has_a_flow_for_an_hour(patch: Patch) -> None:
    patch.setattr("natf_bsd.en.busiest._until", lambda entry, now: now + 3600)


def take_backs_wait_for_the_next_batch(patch: Patch) -> None:
    patch.setattr(IpfwReversePath, "_settle", lambda self: None)


def errors_of_flows_in_the_kernel_are_left_to_it(patch: Patch) -> None:
    patch.setattr(EnCore, "_inbound_error", lambda self, packet, now: [Send(packet)])


def on_figure_1(test: Callable[[stories.Figure1], None]) -> Story:
    def run() -> None:
        test(stories.Figure1().start())

    run.__name__ = test.__name__
    return run


CONNECTION = on_figure_1(stories.test_a_name_a_mapping_a_connection)
DATAGRAMS = on_figure_1(stories.test_datagrams_go_there_and_back)
DENIED = on_figure_1(stories.test_who_is_denied_is_refused_at_once)
CLOSED = on_figure_1(stories.test_a_closed_port_of_an_inside_host_is_told_with_its_virtual_address)
PING = on_figure_1(stories.test_an_ordinary_ping_is_answered_by_the_kernel)
AWAY = on_figure_1(stories.test_while_the_daemon_is_away_virtual_addresses_are_refused_and_nothing_leaves)
HOMES = stories.test_private_to_private_with_equal_networks
BUSY = on_figure_1(kernel_path.test_a_connection_from_its_first_packet_to_its_end)
LONG = on_figure_1(kernel_path.test_a_flow_in_use_for_long_is_with_the_kernel_most_of_the_time)
RENEWED = on_figure_1(kernel_path.test_datagrams_are_renewed_in_time)
CHANGED = on_figure_1(kernel_path.test_a_changed_mapping_is_never_used_with_the_old_one_in_the_kernel)
FRAGMENTS = on_figure_1(kernel_path.test_a_segment_in_fragments_is_put_together_for_the_kernel)
ERROR = on_figure_1(kernel_path.test_an_error_about_a_flow_of_the_kernel_is_translated_here)
REFUSED_INSIDE = stories.test_an_inside_host_is_refused_at_once_too

FAULTS: list[tuple[Callable[[Patch], None], Story]] = [
    # Resume rule.
    (pseudo_packets_resume_behind_the_nat, CONNECTION),
    (pseudo_packets_resume_behind_the_capture_rule, CONNECTION),
    (errors_to_programs_resume_in_front_of_the_deny_rule, DENIED),
    (errors_to_programs_resume_behind_the_nat, REFUSED_INSIDE),
    # Direction.
    (own_packets_go_the_other_way, CONNECTION),
    (packets_are_written_back_the_other_way, DATAGRAMS),
    # Byte order of sin_port.
    (rule_numbers_in_network_order, CONNECTION),
    (rule_numbers_in_network_order, HOMES),
    # Checksum.
    (answers_with_their_old_checksum, CONNECTION),
    (rewriting_that_leaves_the_transport_checksum, DATAGRAMS),
    (errors_with_their_old_quote, CLOSED),
    # Set number.
    (external_node_in_the_set_of_the_stand_in, AWAY),
    (router_in_the_set_of_the_external_node, HOMES),
    # The kernel path.
    (the_kernel_translates_the_end_of_a_connection, BUSY),
    (the_kernel_translates_one_way_only, BUSY),
    (the_kernel_comes_after_the_daemon, BUSY),
    (the_kernel_sees_first_fragments_only, FRAGMENTS),
    (the_kernel_has_a_flow_for_an_hour, LONG),
    (the_kernel_has_a_flow_for_an_hour, RENEWED),
    (take_backs_wait_for_the_next_batch, CHANGED),
    (errors_of_flows_in_the_kernel_are_left_to_it, ERROR),
    # And what else holds the mechanism together.
    (nobody_admits_a_router, DATAGRAMS),
    (foreign_replies_are_kept, PING),
    (captured_pseudo_packets_are_let_go, CONNECTION),
]


def test_without_a_fault_all_of_them_pass() -> None:
    for story in {story for _, story in FAULTS}:
        story()


@pytest.mark.parametrize(("fault", "story"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_makes_a_story_fail(fault: Callable[[Patch], None], story: Story, monkeypatch: Patch) -> None:
    fault(monkeypatch)
    with pytest.raises((AssertionError, ValueError, OSError, NatfError, pytest.fail.Exception)):
        story()
