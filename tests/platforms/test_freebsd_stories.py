"""The product's FreeBSD code on the model of ipfw, divert and natd: figure 2 of the paper, and figure 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dns.message
import dns.rrset
import pytest

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.divert.divert4 import DivertBackend
from natf_bsd.divert.host import Host as DivertHost
from natf_bsd.errors import NatfError, RestartNeeded
from natf_bsd.firewall import guard, runner
from natf_bsd.firewall.command import Sysctl
from natf_bsd.lab.fabric import EchoHost
from natf_bsd.lab.ipfw_model.fragments import split
from natf_bsd.natd_bridge.clock import BUSY_INTERVAL, FIRST_LIMIT
from natf_bsd.natd_bridge.pseudo import PSEUDO_IDENT
from natf_bsd.tables.nrt import MAXIMUM_ROUTERS
from natf_bsd.types import Address, Direction, Endpoint, Flow, Name, Protocol, format_address, parse_address
from natf_bsd.wire import build, message, packet
from tests.platforms.world import Box, World

G1, G2, SERVER = (parse_address(f"203.0.113.{last}") for last in (10, 1, 53))
ALICE, EVE = parse_address("192.168.0.2"), parse_address("192.168.0.4")
ACT = "alice 192.168.0.2 allow\neve 192.168.0.4 deny\n"
ROUTER = RouterConfig(interface="wan")
SOURCE = Endpoint(G1, 40000)


def en_config(**settings: object) -> EnConfig:
    return EnConfig(("home.example.net",), interface="ext", resolvers=(SERVER,), **settings)  # type: ignore[arg-type]


def name_server(routers: dict[str, Address]) -> Callable[[bytes], list[bytes]]:
    """Answers A queries for names below the given domains."""

    def serve(data: bytes) -> list[bytes]:
        flow = packet.flow_of(data)
        if flow is None or flow.protocol != Protocol.UDP or flow.destination.port != 53:
            return []
        query = dns.message.from_wire(data[28:])
        response = dns.message.make_response(query)
        name = query.question[0].name
        for domain, router in routers.items():
            if name.to_text().endswith(f".{domain}."):
                response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", ".".join(map(str, router))))
        return [bytes(build.udp(flow.destination, flow.source, response.to_wire()))]

    return serve


def echo(name: str, address: Address, **options: object) -> Callable[[bytes], list[bytes]]:
    host = EchoHost(name, address, **options)  # type: ignore[arg-type]
    return lambda data: host.receive(bytearray(data))


class Figure1(World):
    """External node, router with natd, name server, alice and eve. `release`: of the external node."""

    def __init__(self, *, in_kernel: bool = False, release: int = 14) -> None:
        super().__init__()
        self.en = self.box("en", {"ext": ("public", "203.0.113.10")}, gateway=("203.0.113.1", "ext"), release=release)
        self.gateway = self.box(
            "router", {"wan": ("public", "203.0.113.1"), "lan": ("home", "192.168.0.1")}, forwarding=True
        )
        server = self.box("dns", {"ext": ("public", "203.0.113.53")})
        self.serve(server, name_server({"home.example.net": G2}))
        for name, address in (("alice", "192.168.0.2"), ("eve", "192.168.0.4")):
            inside = self.box(name, {"eth0": ("home", address)}, gateway=("192.168.0.1", "eth0"))
            self.serve(inside, echo(name, parse_address(address)))
        self.natd = self.start_natd(self.gateway, "wan", in_kernel=in_kernel)

    def start(self, **settings: object) -> Figure1:
        self.start_router(self.gateway, ROUTER, ACT)
        self.start_en(self.en, en_config(**settings))
        return self


def resolve(world: World, box: Box, client: Endpoint, name: str = "alice.home.example.net") -> Address:
    query = dns.message.make_query(name, "A")
    box.received()
    world.send(box, build.udp(client, Endpoint(SERVER, 53), query.to_wire()))
    (answer,) = box.received()
    (record,) = dns.message.from_wire(answer[28:]).answer
    return parse_address(record[0].address)


def kinds(world: World, segment: str) -> list[str]:
    """What was on the wire but for look-ups."""
    found = []
    for _, where, data in world.wire:
        flow = packet.flow_of(data)
        if where != segment or (flow is not None and 53 in (flow.source.port, flow.destination.port)):
            continue
        if int.from_bytes(data[4:6], "big") == PSEUDO_IDENT:
            found.append("pseudo-packet")
        elif packet.protocol(data) == Protocol.ICMP:
            found.append({8: "request", 0: "reply", 3: "unreachable"}[data[packet.header_length(data)]])
        else:
            found.append({6: "tcp", 17: "udp"}[packet.protocol(data)])
    return found


def syn(source: Endpoint, destination: Endpoint) -> bytes:
    return bytes(build.tcp(source, destination, flags=packet.TCP_SYN, sequence=1))


@pytest.fixture(params=[False, True], ids=["natd", "ipfw nat"])
def world(request: pytest.FixtureRequest) -> Iterator[Figure1]:
    made = Figure1(in_kernel=request.param)
    before = {box.name: box.listing() for box in (made.en, made.gateway)}
    made.start()
    yield made
    made.en.undo("en")
    made.gateway.undo("router")
    assert {box.name: box.listing() for box in (made.en, made.gateway)} == before


def test_without_natf_alice_is_not_reached() -> None:
    world = Figure1()
    assert resolve(world, world.en, Endpoint(G1, 40053)) == G2
    world.send(world.en, syn(SOURCE, Endpoint(G2, 80)))
    world.pass_time(10)
    assert world.en.received() == []
    assert "home" not in {segment for _, segment, _ in world.wire}


def test_a_name_a_mapping_a_connection(world: Figure1) -> None:
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 80)
    assert virtual.address[0] == 240
    world.send(world.en, syn(SOURCE, virtual))
    (answer,) = world.en.received()
    assert packet.flow_of(answer) == Flow(Protocol.TCP, virtual, SOURCE)
    assert packet.tcp_flags(answer) == packet.TCP_SYN | packet.TCP_ACK
    assert kinds(world, "public") == ["request", "reply", "tcp", "tcp"], "no pseudo-packet ever leaves"
    assert kinds(world, "home") == ["tcp", "tcp"]
    hello = build.tcp(SOURCE, virtual, flags=packet.TCP_ACK, sequence=2, acknowledgement=1001, payload=b"hello")
    world.send(world.en, hello)
    (answer,) = world.en.received()
    assert answer.endswith(b"alice: hello")


def test_datagrams_go_there_and_back(world: Figure1) -> None:
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 5000)
    for text in (b"one", b"two"):
        world.send(world.en, build.udp(SOURCE, virtual, text))
        (answer,) = world.en.received()
        assert packet.flow_of(answer) == Flow(Protocol.UDP, virtual, SOURCE)
        assert answer[28:] == b"alice: " + text
    assert kinds(world, "public").count("request") == 1


def test_who_is_denied_is_refused_at_once(world: Figure1) -> None:
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053), "eve.home.example.net"), 80)
    world.send(world.en, syn(SOURCE, virtual))
    (answer,) = world.en.received()
    assert packet.flow_of(answer) == Flow(Protocol.TCP, virtual, SOURCE)
    assert packet.tcp_flags(answer) & packet.TCP_RST
    assert "home" not in {segment for _, segment, _ in world.wire}


def test_a_closed_port_of_an_inside_host_is_told_with_its_virtual_address(world: Figure1) -> None:
    world.serve(world.boxes["alice"], echo("alice", ALICE, accepts=()))
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 5000)
    world.send(world.en, build.udp(SOURCE, virtual, b"anybody?"))
    (error,) = world.en.received()
    assert packet.protocol(error) == Protocol.ICMP
    assert packet.quoted_flow(error) == Flow(Protocol.UDP, SOURCE, virtual)


def test_an_ordinary_ping_is_answered_by_the_kernel(world: Figure1) -> None:
    """Neither side's rules keep it away, with or without data that is as long as a request."""
    for size in (56, 1000):
        world.send(world.en, build.icmp_echo(G1, G2, reply=False, ident=7, sequence=size, payload=bytes(size)))
        (answer,) = world.en.received()
        assert (answer[9], answer[20]) == (Protocol.ICMP, 0)


def test_other_traffic_with_a_mapped_router_is_left_alone(world: Figure1) -> None:
    """The router's own services, and connections of the inside hosts to the external node."""
    resolve(world, world.en, Endpoint(G1, 40053))
    world.send(world.boxes["alice"], build.udp(Endpoint(ALICE, 6000), Endpoint(G1, 7000), b"hello"))
    (got,) = world.en.received()
    assert packet.flow_of(got) == Flow(Protocol.UDP, Endpoint(G2, 6000), Endpoint(G1, 7000))
    assert world.en.en is not None
    assert world.en.en.core.counters["in.sent.foreign"] == 1


def test_a_forged_class_e_source_does_not_come_in(world: Figure1) -> None:
    virtual = resolve(world, world.en, Endpoint(G1, 40053))
    world.en.host.receive("ext", bytes(build.udp(Endpoint(virtual, 5000), SOURCE, b"evil")))
    world.settle()
    assert world.en.received() == []


def mapping_request(source: Address, port: int) -> bytes:
    """For alice's port 5000, as an external node at `source` would ask."""
    flow = Flow(Protocol.UDP, Endpoint(source, port), Endpoint(parse_address("240.1.2.3"), 5000))
    data = message.encode(message.Request(bytes(8), flow, Name("alice", "home.example.net")))
    return bytes(build.icmp_echo(source, G2, reply=False, ident=1, sequence=0, payload=message.pad(data)))


@pytest.mark.parametrize("claimed", ["192.168.0.4", "192.168.0.1"])
def test_a_request_that_claims_an_inside_source_has_no_pseudo_packet_go_there(world: Figure1, claimed: str) -> None:
    """Not to an inside host, and not to the router itself, by lo0, where nobody looks at its checksum."""
    world.gateway.host.receive("wan", mapping_request(parse_address(claimed), 514))
    world.settle()
    world.pass_time(1)
    assert "pseudo-packet" not in kinds(world, "home")
    assert [data for data in world.gateway.received() if packet.protocol(data) == Protocol.UDP] == []
    assert world.gateway.router is not None
    assert world.gateway.router.core.counters["mapping.failed.untranslated"] == 1
    assert world.gateway.router.core.counters["mapping.failed.no_answer"] == 0, "the guard's alarm"


def test_a_forged_class_e_source_does_not_come_in_by_another_interface_either() -> None:
    world = World()
    en = world.box("en", {"ext": ("public", "203.0.113.10"), "wlan": ("cafe", "192.168.7.2")})
    world.start_en(en, en_config())
    for interface in "ext", "wlan":
        en.host.receive(interface, bytes(build.udp(Endpoint(parse_address("240.9.9.9"), 80), SOURCE, b"evil")))
    world.settle()
    assert en.received() == []


@pytest.mark.parametrize("rule", [30, 45, 400])
def test_a_site_that_denies_pings_goes_on_to_deny_them(rule: int) -> None:
    """Mapping requests are answered all the same: the paper's router hooks before its firewall."""
    world = Figure1()
    world.gateway.ipfw(f"add {rule} deny icmp from any to any in recv wan icmptypes 8")
    world.start()
    world.send(world.en, build.icmp_echo(G1, G2, reply=False, ident=7, sequence=1, payload=bytes(56)))
    assert world.en.received() == []
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 5000)
    world.send(world.en, build.udp(SOURCE, virtual, b"hello"))
    (answer,) = world.en.received()
    assert answer[28:] == b"alice: hello"


def test_what_another_divert_socket_gives_back_is_judged_by_the_site() -> None:
    """It is diverted-output like our own packets."""
    world = Figure1()
    reader = DivertBackend(
        9000, Direction.OUT, calls=world.en.host.sockets, host=DivertHost(lambda _: 1500, lambda: ["ext"], lambda: "")
    )
    world.en.readers.append((reader.fileno(), lambda: [reader.send(one) for one in reader.receive(64)] and None))
    world.en.ipfw("add 20 divert 9000 tcp from me to 203.0.113.1 out", "add 60000 deny tcp from me to any 25 out")
    world.start_en(world.en, en_config())
    world.send(world.en, syn(SOURCE, Endpoint(G2, 25)))
    assert kinds(world, "public") == []
    assert reader.counters["not_permitted"] == 1


def test_many_answers_cost_one_process_and_a_name_has_few_routers() -> None:
    """Any web page can have names looked up, below a domain of its own even where `home_domains` is "*"."""
    world = Figure1().start()
    world.serve(world.boxes["dns"], lambda data: [])
    answers = []
    for number in range(40):
        query = dns.message.make_query(f"h{number}.home.example.net", "A")
        world.send(world.en, build.udp(Endpoint(G1, 40053), Endpoint(SERVER, 53), query.to_wire()))
        response = dns.message.make_response(query)
        addresses = [f"198.51.{number}.{last}" for last in range(1, 201)]
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *addresses))
        answers.append(bytes(build.udp(Endpoint(SERVER, 53), Endpoint(G1, 40053), response.to_wire())))
    world.en.received()
    world.en.programs.ran.clear()
    for answer in answers:
        world.en.host.receive("ext", answer)
    world.settle()
    assert len(world.en.programs.ran) == 1
    assert len(world.en.received()) == 40
    assert world.en.listing().count("198.51.") == 40 * MAXIMUM_ROUTERS


@pytest.mark.parametrize("role", ["en", "router"])
def test_pf_switched_on_later_ends_the_daemon_before_its_packets_go_round(world: Figure1, role: str) -> None:
    side = world.en.en_side if role == "en" else world.gateway.router_side
    assert side is not None
    side.looked({"pf": ()}, world.now)
    with pytest.raises(RestartNeeded, match="`set skip` on it"):
        side.looked({"pf": ("active",)}, world.now)


def test_the_stand_in_is_there_after_a_flush_too(world: Figure1) -> None:
    """A daemon that must end because the rules were flushed and have moved: nothing leaves till the next one is up."""
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 80)
    stand_in = world.en.plans["en"].stay
    assert stand_in
    world.en.ipfw("-f flush")
    for _ in range(2):
        runner.apply(stand_in, world.en.programs.run)
        with pytest.raises(PermissionError):
            world.send(world.en, syn(SOURCE, virtual))


def test_while_the_daemon_is_away_virtual_addresses_are_refused_and_nothing_leaves(world: Figure1) -> None:
    virtual = Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 80)
    stand_in = world.en.plans["en"].stay
    assert stand_in
    runner.apply(stand_in, world.en.programs.run)
    world.wire.clear()
    with pytest.raises(PermissionError):
        world.send(world.en, syn(SOURCE, virtual))
    assert world.wire == []
    runner.apply(world.en.plans["en"].set_up, world.en.programs.run)
    world.send(world.en, syn(SOURCE, virtual))
    assert len(world.en.received()) == 1


def test_a_router_whose_daemon_is_away_is_never_taken_for_alice(world: Figure1) -> None:
    resolve(world, world.en, Endpoint(G1, 40053))
    world.send(world.en, syn(SOURCE, Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 80)))
    world.en.received()
    world.gateway.undo("router")
    world.wire.clear()
    other = Endpoint(G1, 40001)
    world.send(world.en, syn(other, Endpoint(resolve(world, world.en, Endpoint(G1, 40053)), 80)))
    world.pass_time(5)
    (error,) = world.en.received()
    assert (error[9], error[20]) == (Protocol.ICMP, 11), "FreeBSD's TCP does not heed unreachable while it connects"
    assert "tcp" not in kinds(world, "public")
    world.start_router(world.gateway, ROUTER, ACT)


def test_a_look_up_at_a_local_resolver_is_seen_going_out(world: Figure1) -> None:
    """`in via lo0` would see no checksums (FREEBSD.md 1.6)."""
    local = Endpoint(parse_address("127.0.0.1"), 53)
    assert world.en.en is not None
    world.en.en.core.lookups.resolvers |= {local.address}
    query = dns.message.make_query("alice.home.example.net", "A")
    world.send(world.en, build.udp(Endpoint(local.address, 40053), local, query.to_wire()))
    (asked,) = world.en.received()
    (answer,) = name_server({"home.example.net": G2})(asked)
    world.send(world.en, answer)
    (seen,) = world.en.received()
    assert dns.message.from_wire(seen[28:]).answer[0][0].address.startswith("240.")


@pytest.mark.parametrize("local", ["127.0.0.1", "203.0.113.10"])
def test_a_local_resolver_may_hand_on_a_virtual_address(world: Figure1, local: str) -> None:
    """It has asked a server elsewhere. Under an address of this host other than 127.0.0.1 it is local as well."""
    own = parse_address(local)
    assert world.en.en is not None
    world.en.en.core.lookups.resolvers |= {own}
    query = dns.message.make_query("alice.home.example.net", "A")
    world.send(world.en, build.udp(Endpoint(own, 40054), Endpoint(own, 53), query.to_wire()))
    (asked,) = world.en.received()
    virtual = resolve(world, world.en, Endpoint(G1, 40053))
    (answer,) = name_server({"home.example.net": virtual})(asked)
    world.send(world.en, answer)
    (seen,) = world.en.received()
    assert [record[0].address for record in dns.message.from_wire(seen[28:]).answer] == [format_address(virtual)]


def test_a_nat_that_does_not_answer_is_told_at_the_start() -> None:
    world = Figure1()
    before = world.gateway.listing()
    world.gateway.host.stop_natd(world.natd)
    with pytest.raises(NatfError, match=r"the NAT \(natd\) did not give a pseudo-packet back: is it running"):
        world.start_router(world.gateway, ROUTER, ACT)
    world.gateway.undo("router")
    assert world.gateway.listing() == before


def test_a_host_without_a_nat_rule_is_told_what_to_write_into_rc_conf() -> None:
    world = Figure1()
    world.gateway.ipfw("delete 50")
    with pytest.raises(NatfError, match=r"no ipfw rule hands all that leaves by wan to natd.*natd_enable=YES"):
        world.start_router(world.gateway, ROUTER, ACT)


def test_rules_that_moved_are_no_reason_to_go_on_with_the_old_ones(world: Figure1) -> None:
    side = world.gateway.router_side
    assert side is not None
    side.plan(side.interface)
    nat = next(line for line in world.gateway.listing().splitlines() if line.startswith("00050 set 0"))
    world.gateway.ipfw("delete 50", f"add 60 {nat.partition(' set 0 ')[2]}")
    with pytest.raises(RestartNeeded):
        side.plan(side.interface)
    world.gateway.ipfw("delete 60", f"add 50 {nat.partition(' set 0 ')[2]}")


def test_a_router_taken_out_of_the_table_is_put_in_again(world: Figure1, caplog: pytest.LogCaptureFixture) -> None:
    resolve(world, world.en, Endpoint(G1, 40053))
    side = world.en.en_side
    assert side is not None
    world.en.ipfw("table natf_peers flush")
    side.looked({"table": ("2001:db8::1/128 0",)}, world.now)  # whatever else somebody has put into it
    assert "203.0.113.1/32" in world.en.listing()
    assert "put in again" in caplog.text


def test_programs_hand_over_no_segments_above_the_mtu_while_they_are_diverted(world: Figure1) -> None:
    """What is written back is not cut up again (FREEBSD.md 1.6); what a router only forwards, it does not divert."""
    assert world.en.plans["en"].sysctls == [Sysctl("net.inet.tcp.tso", "0", optional=True)]
    assert world.gateway.plans["router"].sysctls == []


def test_an_answer_in_fragments_becomes_virtual_too(world: Figure1) -> None:
    """A rule with ports sees the first of them only (FREEBSD.md 1.7)."""
    world.serve(world.boxes["dns"], lambda data: [])
    client = Endpoint(G1, 40053)
    query = build.udp(client, Endpoint(SERVER, 53), dns.message.make_query("alice.home.example.net", "A").to_wire())
    world.send(world.en, query)
    [answer] = name_server({"home.example.net": G2})(bytes(query))
    fragments = split(bytearray(answer), 60)
    assert len(fragments) > 1
    for fragment in fragments:
        world.en.host.receive("ext", bytes(fragment))
    world.settle()
    (seen,) = world.en.received()
    assert dns.message.from_wire(seen[28:]).answer[0][0].address.startswith("240.")


def look(world: Figure1, natd: str = "711") -> None:
    """As the guard lists it (`ipfw.router_look`); what follows from it, follows."""
    side = world.gateway.router_side
    assert side is not None
    _, counts, _ = world.gateway.host.ipfw(["ipfw", "show", "50"])
    side.looked(guard.read(f"# nat\n{counts}# natd\n{natd}\n"), world.now)
    world.pass_time(0)


def keep_alives(world: Figure1) -> int:
    """How many were written; all of them have come back."""
    assert world.gateway.router is not None
    counters = world.gateway.router.counters["nat"]
    assert counters["keep_alive_captured"] == counters["keep_alive_written"]
    return counters["keep_alive_written"]


def test_the_packets_of_the_nat_rule_tell_how_to_keep_its_clock_going(world: Figure1) -> None:
    side = world.gateway.router_side
    assert side is not None
    look(world)
    assert keep_alives(world) == FIRST_LIMIT
    world.pass_time(10)
    look(world)
    assert side.next_look() == world.now + BUSY_INTERVAL
    assert keep_alives(world) == FIRST_LIMIT, "those before were enough"
    assert "public" not in {where for at, where, _ in world.wire if at >= 1000.0}


def test_another_natd_is_seen_to_look_at_its_clock_as_seldom_as_a_new_one() -> None:
    """In quiet it comes to look more often; the same one needs fewer packets than at first."""
    written = {}
    for later in ("711", "712"):
        world = Figure1().start()
        for natd in (*["711"] * 5, later, later):
            before = keep_alives(world)
            look(world, natd)
            world.pass_time(10)
        written[later] = keep_alives(world) - before
    assert written == {"711": 667, "712": FIRST_LIMIT}


def test_routers_nobody_knows_any_more_leave_the_table() -> None:
    world = Figure1().start(quarantine=1.0)
    resolve(world, world.en, Endpoint(G1, 40053))
    side, node = world.en.en_side, world.en.en
    assert side is not None
    assert node is not None
    side.keep(node.core.routers())
    assert "203.0.113.1/32" in world.en.listing()
    world.pass_time(120)
    side.keep(node.core.routers())
    assert "203.0.113.1/32" not in world.en.listing()


class Figure3(World):
    """Two homes with equal private networks, each behind a router that has both parts of natf."""

    CORE = "203.0.113.254"

    def __init__(self, **nat: bool) -> None:
        super().__init__()
        self.routers = [self._home(number, nat) for number in (1, 2)]
        server = self.box("dns", {"ext": ("public", "203.0.113.53")})
        addresses = {f"home{number}.example.net": parse_address(f"203.0.113.{number}") for number in (1, 2)}
        self.serve(server, name_server(addresses))

    def _home(self, number: int, nat: dict[str, bool]) -> Box:
        router = self.box(
            f"router{number}",
            {"wan": ("public", f"203.0.113.{number}"), "lan": (f"home{number}", "192.168.0.1")},
            forwarding=True,
            gateway=(self.CORE, "wan"),
        )
        inside = self.box(f"host{number}", {"eth0": (f"home{number}", "192.168.0.2")}, gateway=("192.168.0.1", "eth0"))
        self.serve(inside, echo(f"host{number}", ALICE))
        self.start_natd(router, "wan", **nat)
        return router

    def start(self) -> Figure3:
        for number, router in enumerate(self.routers, 1):
            self.start_router(router, ROUTER, f"host{number} 192.168.0.2 allow\n")
            domains = (f"home{3 - number}.example.net",)
            self.start_en(router, EnConfig(domains, interface="wan", resolvers=(SERVER,)))
        return self


class Caller:
    """A program on an inside host: what it is answered is kept apart from what its server answers."""

    def __init__(self, world: World, box: Box, source: Endpoint) -> None:
        self._world, self._box = world, box
        self.source = source
        self.got: list[bytes] = []
        server = world._servers[box.name]

        def serve(data: bytes) -> list[bytes]:
            flow = packet.flow_of(data)
            ours = (flow is not None and flow.destination.port in (source.port, 40053)) or data[9] == Protocol.ICMP
            if ours:
                self.got.append(data)
            return [] if ours else server(data)

        world.serve(box, serve)

    def resolve(self, name: str) -> Address:
        query = dns.message.make_query(name, "A")
        client = Endpoint(self.source.address, 40053)
        self._world.send(self._box, build.udp(client, Endpoint(SERVER, 53), query.to_wire()))
        (record,) = dns.message.from_wire(self.got.pop()[28:]).answer
        return parse_address(record[0].address)

    def queue(self, data: bytes | bytearray) -> None:
        """Send, and let nothing follow from it yet."""
        self._box.host.send(bytes(data))

    def send(self, data: bytes | bytearray) -> list[bytes]:
        self._world.send(self._box, data)
        got, self.got = self.got, []
        return got


def test_private_to_private_with_equal_networks() -> None:
    world = Figure3()
    before = [router.listing() for router in world.routers]
    world.start()
    for number in (1, 2):
        caller = Caller(world, world.boxes[f"host{number}"], Endpoint(ALICE, 40000 + number))
        virtual = Endpoint(caller.resolve(f"host{3 - number}.home{3 - number}.example.net"), 5000)
        assert virtual.address[0] == 240
        for text in (b"one", b"two"):
            (answer,) = caller.send(build.udp(caller.source, virtual, text))
            assert packet.flow_of(answer) == Flow(Protocol.UDP, virtual, caller.source)
            assert answer[28:] == f"host{3 - number}: ".encode() + text
        (answer,) = caller.send(syn(caller.source, virtual))
        assert packet.tcp_flags(answer) == packet.TCP_SYN | packet.TCP_ACK
    assert "pseudo-packet" not in kinds(world, "public")
    for router in world.routers:
        router.undo("en")
        assert runner.undo(router.plans["router"].undo, router.programs.run) == []
    assert [router.listing() for router in world.routers] == before


@pytest.mark.parametrize("in_kernel", [False, True], ids=["natd", "ipfw nat"])
def test_homes_call_each_other_at_the_same_time_from_the_same_ports(in_kernel: bool) -> None:
    """All first packets of both homes leave before any answer is there: each router asks and is asked at once."""
    world = Figure3(in_kernel=in_kernel)
    before = [router.listing() for router in world.routers]
    world.start()
    callers = [Caller(world, world.boxes[f"host{number}"], Endpoint(ALICE, 40000)) for number in (1, 2)]
    virtual = [
        caller.resolve(f"host{3 - number}.home{3 - number}.example.net") for number, caller in enumerate(callers, 1)
    ]
    for caller, address in zip(callers, virtual, strict=True):
        caller.queue(build.udp(caller.source, Endpoint(address, 5000), b"hello"))
        caller.queue(syn(caller.source, Endpoint(address, 80)))
    world.settle()
    for number, (caller, address) in enumerate(zip(callers, virtual, strict=True), 1):
        answers = {flow: data for data in caller.got if (flow := packet.flow_of(data)) is not None}
        told = answers.pop(Flow(Protocol.UDP, Endpoint(address, 5000), caller.source))
        assert told[28:] == f"host{3 - number}: hello".encode()
        connected = answers.pop(Flow(Protocol.TCP, Endpoint(address, 80), caller.source))
        assert packet.tcp_flags(connected) == packet.TCP_SYN | packet.TCP_ACK
        assert answers == {}
    assert sorted(kinds(world, "public")) == ["reply"] * 4 + ["request"] * 4 + ["tcp"] * 4 + ["udp"] * 4
    ends = {
        end(data) for _, where, data in world.wire if where == "public" for end in (packet.source, packet.destination)
    }
    assert ends == {parse_address(f"203.0.113.{last}") for last in (1, 2, 53)}
    for router in world.routers:
        router.undo("en")
        assert runner.undo(router.plans["router"].undo, router.programs.run) == []
    assert [router.listing() for router in world.routers] == before


@pytest.mark.parametrize("deny_incoming", [False, True])
def test_nobody_outside_can_use_a_homes_virtual_addresses(deny_incoming: bool) -> None:
    """A NAT that denies nothing would make the router's own packets of them."""
    world = Figure3(deny_incoming=deny_incoming).start()
    virtual = Caller(world, world.boxes["host1"], Endpoint(ALICE, 40000)).resolve("host2.home2.example.net")
    world.wire.clear()
    router = world.routers[0]
    router.host.receive("wan", syn(Endpoint(SERVER, 40000), Endpoint(virtual, 80)))
    world.settle()
    assert world.wire == []
    assert router.en is not None
    assert router.en.core.counters["negotiation.started"] == 0


def test_an_inside_host_is_refused_at_once_too() -> None:
    world = Figure3().start()
    caller = Caller(world, world.boxes["host1"], Endpoint(ALICE, 40001))
    virtual = Endpoint(caller.resolve("nobody.home2.example.net"), 80)
    (answer,) = caller.send(syn(caller.source, virtual))
    assert packet.flow_of(answer) == Flow(Protocol.TCP, virtual, caller.source)
    assert packet.tcp_flags(answer) & packet.TCP_RST
