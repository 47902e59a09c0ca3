"""The commands run on the model of ipfw, and packets through the rules they make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from natf_bsd.errors import CommandFailed
from natf_bsd.firewall import ipfw, runner
from natf_bsd.firewall.command import Check, Command
from natf_bsd.firewall.ipfw import EnFirewall, RouterFirewall
from natf_bsd.lab.ipfw_model import AF_DIVERT, SOCK_RAW, DivertAddress, Host, interface
from natf_bsd.natd_bridge import pseudo
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.process import Completed
from natf_bsd.types import Address, Endpoint, Flow, Protocol, parse_address
from natf_bsd.wire import build, packet
from natf_bsd.wire.icmp import ECHO_REPLY, ECHO_REQUEST, Echo, encode_echo

PREFIX = "240.0.0.0/8"
G1, G2, P1, V1 = (parse_address(text) for text in ("203.0.113.10", "203.0.113.1", "192.168.0.2", "240.0.1.1"))
RESOLVER = parse_address("198.51.100.53")
NATD_RULE = "add 50 divert natd ip4 from any to any via em0\n"
KERNEL_NAT = "nat 123 config if em0 same_ports deny_in\nadd 50 nat 123 ip4 from any to any via em0\n"
SITE = (
    "add 100 allow ip from any to any via lo0\n"
    "add 200 deny ip from any to 127.0.0.0/8\n"
    "add 300 deny ip from 127.0.0.0/8 to any\n"
)


def loaded(host: Host, batch: str) -> Host:
    assert host.ipfw(["ipfw", "-q", "/dev/stdin"], batch) == (0, "", "")
    return host


def nat_box(batch: str = NATD_RULE + SITE) -> Host:
    """Outer em0 203.0.113.1, inner em1 192.168.0.1."""
    host = Host([interface("em0", "203.0.113.1"), interface("em1", "192.168.0.1")], forwarding=True)
    host.add_route((0, 0), "em0")
    return loaded(host, batch)


def external_node() -> Host:
    """em0 203.0.113.10."""
    host = Host([interface("em0", "203.0.113.10")])
    host.add_route((0, 0), "em0")
    return loaded(host, SITE)


def run(host: Host) -> runner.Run:
    """Only ipfw(8) there is; its model says so if it is given anything else."""

    def run_on_host(argv: tuple[str, ...], stdin: str | None) -> Completed:
        assert argv[0] == "ipfw"
        return Completed(*host.ipfw(list(argv), stdin or ""))

    return run_on_host


def listing(host: Host) -> str:
    return host.ipfw(["ipfw", "-S", "list"])[1]


def state(host: Host) -> tuple[str, str, str]:
    tables = host.ipfw(["ipfw", "table", "all", "list"])[1]
    return listing(host), host.ipfw(["ipfw", "set", "show"])[1], tables


def in_force(host: Host, number: int) -> list[str]:
    return [str(rule) for rule in ipfw.parse_rules(listing(host)) if rule.set == number and rule.enabled]


def outer(host: Host) -> Interface:
    return Interface("em0", host.address_of("em0") or b"")


def router_on(host: Host) -> RouterFirewall:
    return RouterFirewall("em0", 8701, 8702, ipfw.router_places(ipfw.parse_rules(listing(host)), outer(host)))


def en_on(host: Host) -> EnFirewall:
    places = ipfw.en_places(ipfw.parse_rules(listing(host)), outer(host), PREFIX)
    return EnFirewall("em0", PREFIX, 8710, 8715, 8711, 8712, 8714, places)


@dataclass(frozen=True)
class Case:
    """A host as it was, what sets a role up there, and what undoes it."""

    host: Host
    set_up: list[Command]
    undo: list[Command]
    sets: tuple[int, ...]
    checks: list[Check] = field(default_factory=list)


def case(name: str) -> Case:
    role, _, nat = name.partition(" ")
    host = external_node() if not nat else nat_box({"natd": NATD_RULE, "kernel": KERNEL_NAT}[nat] + SITE)
    if role == "router":
        router = router_on(host)
        return Case(host, ipfw.router_rules(router), ipfw.router_undo(), (7,), ipfw.probe_router(router))
    en = en_on(host)
    return Case(host, ipfw.en_rules(en, [G2, RESOLVER]), ipfw.en_undo(), (5, 6), ipfw.probe_en(en))


CASES = ["router natd", "router kernel", "en", "en natd", "en kernel"]


@pytest.mark.parametrize("name", CASES)
def test_set_up_twice_is_set_up_once_and_undo_leaves_all_as_it_was(name: str) -> None:
    it = case(name)
    before = state(it.host)
    runner.apply(it.set_up, run(it.host))
    once = state(it.host)
    assert once != before
    assert in_force(it.host, it.sets[0])
    runner.apply(it.set_up, run(it.host))
    assert state(it.host) == once
    for _ in range(2):
        assert runner.undo(it.undo, run(it.host)) == []
        assert state(it.host) == before


@pytest.mark.parametrize("name", CASES)
def test_our_own_rules_are_no_obstacle_to_setting_up_again(name: str) -> None:
    it = case(name)
    runner.apply(it.set_up, run(it.host))
    if it.sets == (7,):
        assert ipfw.router_rules(router_on(it.host)) == it.set_up
    else:
        assert ipfw.en_rules(en_on(it.host), [G2, RESOLVER]) == it.set_up


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_ends_half_way_leaves_nothing_in_force_but_the_refusal(name: str, again: bool) -> None:
    lines = (case(name).set_up[0].stdin or "").splitlines(keepends=True)
    for kept in range(1, len(lines)):
        it = case(name)
        before = state(it.host)
        if again:
            runner.apply(it.set_up, run(it.host))
        torn = replace(it.set_up[0], stdin="".join([*lines[:kept], "frobnicate\n"]))
        with pytest.raises(CommandFailed, match=f"Line {kept + 1}: bad command `frobnicate'"):
            runner.apply([torn], run(it.host))
        assert in_force(it.host, it.sets[0]) == []
        assert all("reject ip from any to 240.0.0.0/8 out" in rule for rule in in_force(it.host, 6))
        assert runner.undo(it.undo, run(it.host)) == []
        assert state(it.host) == before


@pytest.mark.parametrize("name", CASES)
def test_the_checks_of_ipfw_pass_and_change_nothing(name: str) -> None:
    it = case(name)
    before = state(it.host)
    checks = [check for check in it.checks if check.command.argv[0] == "ipfw"]
    assert len(checks) == 2
    assert runner.check(checks, run(it.host)) == []
    assert state(it.host) == before


def test_words_that_are_no_rule_are_found_before_anything_is_set() -> None:
    host = external_node()
    checks = ipfw.probe_en(replace(en_on(host), interface="em0 frobnicate"))
    assert runner.check(checks[:2], run(host)) == [
        "ipfw does not take the rules (status 64): Line 1: unrecognised option [-1] frobnicate"
    ]


def test_both_roles_live_side_by_side_and_go_alone() -> None:
    host = nat_box()
    before = state(host)
    runner.apply(ipfw.router_rules(router_on(host)), run(host))
    with_router = state(host)
    runner.apply(ipfw.en_rules(en_on(host), []), run(host))
    assert len(in_force(host, 7)) == 5
    runner.apply(ipfw.router_rules(router_on(host)), run(host))
    assert runner.undo(ipfw.en_undo(), run(host)) == []
    assert state(host) == with_router
    assert runner.undo(ipfw.router_undo(), run(host)) == []
    assert state(host) == before


def test_peers_come_and_go_whether_known_or_not() -> None:
    host = external_node()
    runner.apply(ipfw.en_rules(en_on(host), [G2]), run(host))
    runner.apply([*ipfw.peers_add([G2, RESOLVER]), *ipfw.peers_add([G2])], run(host))
    assert host.ipfw(["ipfw", "table", ipfw.PEERS_TABLE, "list"])[1] == "198.51.100.53/32 0\n203.0.113.1/32 0\n"
    runner.apply([*ipfw.peers_remove([G2]), *ipfw.peers_remove([G2])], run(host))
    assert host.ipfw(["ipfw", "table", ipfw.PEERS_TABLE, "list"])[1] == "198.51.100.53/32 0\n"


# Packets.


class Port:
    """A divert socket of a daemon."""

    def __init__(self, host: Host, number: int) -> None:
        self._sockets = host.sockets
        self._descriptor = host.sockets.socket(AF_DIVERT, SOCK_RAW, 0)
        host.sockets.bind(self._descriptor, bytes([16, 2]) + number.to_bytes(2, "big") + bytes(12))

    def read(self) -> list[bytes]:
        return [data for data, _ in self.read_all()]

    def read_all(self) -> list[tuple[bytes, bytes]]:
        found = []
        while self._sockets.is_readable(self._descriptor):
            found.append(self._sockets.recvfrom(self._descriptor, 65535))
        return found

    def give_back(self) -> int:
        """Write everything back as it was read; how many."""
        packets = self.read_all()
        for data, sockaddr in packets:
            self._sockets.sendto(self._descriptor, data, sockaddr)
        return len(packets)

    def write(self, data: bytes, address: DivertAddress) -> None:
        self._sockets.sendto(self._descriptor, data, address.pack())


def echo(kind: int, source: Address, destination: Address) -> bytes:
    return bytes(build.ipv4(Protocol.ICMP, source, destination, encode_echo(Echo(kind, 7, 1, bytes(128)))))


def datagram(source: Address, source_port: int, destination: Address, port: int) -> bytes:
    return bytes(build.udp(Endpoint(source, source_port), Endpoint(destination, port), b"data"))


def hits(host: Host, number: int) -> int:
    """Packets that matched the first rule of this number."""
    return int(host.ipfw(["ipfw", "show", str(number)])[1].split()[1])


@pytest.mark.parametrize("nat", [NATD_RULE, KERNEL_NAT])
def test_a_pseudo_packet_is_captured_behind_the_nat_and_leaves_a_mapping(nat: str) -> None:
    host = nat_box(nat + SITE)
    host.firewall.one_pass = False
    if nat == NATD_RULE:
        host.start_natd("em0", deny_incoming=True)
    firewall = router_on(host)
    runner.apply(ipfw.router_rules(firewall), run(host))
    capture = Port(host, firewall.capture_queue)
    flow = Flow(Protocol.UDP, Endpoint(P1, 80), Endpoint(G1, 5000))
    written = pseudo.build(flow, 1234, pseudo.LIBALIAS_STYLE)
    capture.write(written, DivertAddress(firewall.places.pseudo_after, name="em1"))
    (captured,) = map(pseudo.parse_captured, capture.read())
    assert captured == pseudo.Captured(1234, Flow(Protocol.UDP, Endpoint(G2, 80), Endpoint(G1, 5000)))
    assert host.wire == []
    host.receive("em0", datagram(G1, 5000, G2, 80))
    assert [name for name, _ in host.wire] == ["em1"]


def router_with_a_site_that_denies_pings() -> tuple[Host, RouterFirewall]:
    host = nat_box(NATD_RULE + SITE + "add 400 deny icmp from any to any via em0 icmptypes 0,8\n")
    host.start_natd("em0", deny_incoming=True)
    firewall = router_on(host)
    runner.apply(ipfw.router_rules(firewall), run(host))
    return host, firewall


def test_control_packets_come_before_firewall_and_nat_and_our_replies_pass_both() -> None:
    host, firewall = router_with_a_site_that_denies_pings()
    control = Port(host, firewall.control_queue)
    host.receive("em0", echo(ECHO_REQUEST, G1, G2))
    assert [packet.source(data) for data in control.read()] == [G1]
    control.write(echo(ECHO_REPLY, G2, G1), DivertAddress(firewall.places.reply_after))
    assert [name for name, _ in host.wire] == ["em0"]
    assert hits(host, 50) == 0


def test_the_allow_for_our_replies_is_not_for_what_natd_gives_back() -> None:
    host, firewall = router_with_a_site_that_denies_pings()
    host.send(echo(ECHO_REPLY, G2, G1))
    host.receive("em1", echo(ECHO_REPLY, P1, G1))
    assert host.wire == []
    assert (hits(host, 50), hits(host, firewall.places.reply), hits(host, 400)) == (2, 0, 2)


@dataclass(frozen=True)
class Node:
    """An external node's host with its rules in force, and its daemon's ports."""

    host: Host
    firewall: EnFirewall
    dns: Port
    query: Port
    out: Port
    into: Port
    control: Port


def node_on(host: Host) -> Node:
    firewall = en_on(host)
    runner.apply(ipfw.en_rules(firewall, [G2]), run(host))
    host.listens = lambda protocol, port: True
    queues = (firewall.dns_queue, firewall.query_queue, firewall.out_queue, firewall.in_queue, firewall.control_queue)
    return Node(host, firewall, *(Port(host, number) for number in queues))


def test_the_external_node_sees_what_it_is_for_and_its_site_sees_the_rest() -> None:
    node = node_on(loaded(external_node(), "add 400 count ip from any to any\n"))
    host = node.host
    host.send(datagram(G1, 4000, RESOLVER, 53))
    assert node.query.give_back() == 1
    assert hits(host, 400) == 1  # a stateful rule of the site needs to see the query
    host.receive("em0", datagram(RESOLVER, 53, G1, 4000))
    assert node.dns.give_back() == 1
    host.receive("em0", echo(ECHO_REPLY, G2, G1))
    assert node.control.give_back() == 1
    host.receive("em0", bytes(build.unreachable_for(datagram(G1, 4000, G2, 80), code=3, source=G2)))
    assert node.into.give_back() == 1
    host.receive("em0", datagram(G2, 80, G1, 4000))
    assert node.into.give_back() == 1
    assert hits(host, 400) == 5
    assert len(host.delivered) == 4
    host.receive("em0", datagram(RESOLVER, 80, G1, 4000))
    assert node.into.read() == []


def test_a_local_resolver_is_seen_before_the_sites_own_rule_for_lo0() -> None:
    node = node_on(external_node())
    loopback = parse_address("127.0.0.1")
    node.host.send(datagram(loopback, 4000, loopback, 53))
    assert node.query.give_back() == 1
    node.host.send(datagram(loopback, 53, loopback, 4000))
    assert node.query.give_back() == 1
    assert hits(node.host, 100) == 4  # out and in


def test_what_the_external_node_rewrites_passes_a_site_that_knows_nothing_of_it() -> None:
    node = node_on(loaded(external_node(), "add 400 deny ip from any to any\n"))
    host, places = node.host, node.firewall.places
    host.send(datagram(G1, 4000, V1, 80))
    assert [packet.destination(data) for data in node.out.read()] == [V1]
    node.out.write(datagram(G1, 4000, G2, 80), DivertAddress(places.out))
    node.out.write(echo(ECHO_REQUEST, G1, G2), DivertAddress(places.request_after))
    assert [packet.destination(data) for _, data in host.wire] == [G2, G2]
    host.receive("em0", datagram(G2, 80, G1, 4000))
    assert len(node.into.read()) == 1
    node.into.write(datagram(V1, 80, G1, 4000), DivertAddress(places.peers, G1, "em0"))
    error = bytes(build.unreachable_for(datagram(G1, 4000, V1, 80), code=1, source=V1))
    node.into.write(error, DivertAddress(places.error_after, G1, "em0"))
    assert [packet.source(data) for _, data in host.delivered] == [V1, V1]


def test_virtual_addresses_neither_come_from_a_wire_nor_leave_by_another_way() -> None:
    host = Host([interface("em0", "203.0.113.10"), interface("em1", "192.168.0.1")], forwarding=True)
    host.add_route((0, 0), "em0")
    node = node_on(loaded(host, SITE))
    for name in ("em0", "em1"):
        host.receive(name, datagram(V1, 80, G1, 4000))
    assert host.delivered == []
    host.receive("em1", datagram(P1, 4000, V1, 80))  # another host's: no NAT here, so no way to help it
    assert node.out.read() == []
    ((name, answer),) = host.wire
    assert (name, packet.destination(answer), packet.protocol(answer)) == ("em1", P1, Protocol.ICMP)
    host.routes[:] = [((0xF0000000, 0xFF000000), "em1")]
    with pytest.raises(PermissionError):
        host.send(datagram(G1, 4000, V1, 80))


@pytest.mark.parametrize("kind", ["host", "gateway"])
def test_the_stand_in_refuses_while_the_daemon_is_away(kind: str) -> None:
    host = nat_box() if kind == "gateway" else external_node()
    if kind == "gateway":
        host.start_natd("em0", deny_incoming=True)
    node = node_on(host)
    runner.apply(ipfw.stand_in(node.firewall), run(host))
    with pytest.raises(PermissionError):
        host.send(datagram(outer(host).address, 4000, V1, 80))
    assert in_force(host, 5) == []
    host.wire.clear()
    if kind == "gateway":
        # An inside host hears of it, too: the refusal comes before the NAT hides who it was.
        host.receive("em1", datagram(P1, 4000, V1, 80))
        assert [(name, packet.destination(data)) for name, data in host.wire] == [("em1", P1)]
    assert node.out.read() == []
    runner.apply(ipfw.en_rules(node.firewall, []), run(host))
    assert in_force(host, 6) == []
    host.send(datagram(outer(host).address, 4000, V1, 80))
    assert len(node.out.read()) == 1


def test_on_the_nat_box_the_inside_goes_through_natd_first_and_comes_back_through_it_last() -> None:
    host = nat_box()
    host.start_natd("em0", deny_incoming=True)
    other = parse_address("203.0.113.77")
    node = node_on(host)
    runner.apply(ipfw.peers_add([other]), run(host))
    places = node.firewall.places
    host.receive("em1", datagram(P1, 4000, V1, 80))
    ((seen, sockaddr),) = node.out.read_all()
    assert (packet.source(seen), DivertAddress.unpack(sockaddr).rule) == (G2, places.out)
    node.out.write(datagram(G2, 4000, other, 80), DivertAddress(places.out))
    assert [(name, packet.destination(data)) for name, data in host.wire] == [("em0", other)]
    host.wire.clear()
    host.receive("em0", datagram(other, 80, G2, 4000))
    assert len(node.into.read()) == 1
    node.into.write(datagram(V1, 80, G2, 4000), DivertAddress(places.peers, G2, "em0"))
    error = bytes(build.unreachable_for(datagram(G2, 4000, V1, 80), code=1, source=V1))
    node.into.write(error, DivertAddress(places.error_after, G2, "em0"))
    assert [(name, packet.destination(data)) for name, data in host.wire] == [("em1", P1), ("em1", P1)]


def test_on_the_nat_box_the_site_judges_all_that_natd_gives_back() -> None:
    """natd's packets are diverted-output like ours, and must not pass by the rule that is for ours."""
    host = nat_box(NATD_RULE + SITE + "add 400 deny ip from any to any out\n")
    host.start_natd("em0", deny_incoming=True)
    node = node_on(host)
    host.receive("em1", datagram(P1, 4000, G1, 80))
    host.receive("em1", datagram(P1, 4000, RESOLVER, 53))
    assert hits(host, 400) == 1
    assert [packet.source(data) for data in node.query.read()] == [G2]
    assert (host.wire, hits(host, node.firewall.places.pass_out)) == ([], 0)
