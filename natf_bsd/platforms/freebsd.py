"""FreeBSD: divert(4), ipfw, and natd or in-kernel `ipfw nat` (FREEBSD.md 11)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial

from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.datapath import ipfw_reverse
from natf_bsd.datapath.ipfw_reverse import IpfwReversePath
from natf_bsd.divert import Divert
from natf_bsd.divert.divert4 import DivertBackend, DivertWriter
from natf_bsd.divert.host import Host
from natf_bsd.divert.own import DivertedControl, OwnPackets, ProgramPackets
from natf_bsd.divert.syscalls import SystemCalls
from natf_bsd.errors import CommandFailed, NatfError, RestartNeeded
from natf_bsd.firewall import ipfw, runner
from natf_bsd.firewall.guard import Listing
from natf_bsd.firewall.ipfw_places import EnPlaces, RouterPlaces
from natf_bsd.firewall.ipfw_rules import Tables
from natf_bsd.firewall.plan import Plan, Remains
from natf_bsd.firewall.runner import SysctlProgram
from natf_bsd.natd_bridge.clock import KeepAlive, needs_keep_alive
from natf_bsd.natd_bridge.natd import NatdBridge
from natf_bsd.ops.interfaces import Interface, outer_on_freebsd, route_to
from natf_bsd.ops.loop import monotonic, precise
from natf_bsd.ops.process import Run, Start, run_process, start_process
from natf_bsd.platforms import EnPorts, RouterPorts, Way
from natf_bsd.types import Address, Direction, format_address, parse_address

log = logging.getLogger(__name__)

# natd -unregistered_only translates private addresses alone (RFC 1918).
_PRIVATE = parse_address("10.255.255.254")


class FreeBsd:
    """See `Platform`. `calls`, `host`, `run`, `start` and the clock `now` are for a model kernel."""

    def __init__(
        self,
        *,
        calls: SystemCalls | None = None,
        host: Host | None = None,
        run: Run = run_process,
        start: Start = start_process,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.settings = SysctlProgram(run)
        self.run = run
        self.start = start
        self.now = now
        self._calls = calls
        self._host = host or Host()

    def external_node(self, config: EnConfig) -> FreeBsdEn:
        return FreeBsdEn(self, config, outer_on_freebsd(config.interface, self.run))

    def router(self, config: RouterConfig) -> FreeBsdRouter:
        return FreeBsdRouter(self, config, outer_on_freebsd(config.interface, self.run))

    def remains(self, role: str, config: Config) -> Remains:
        if role == "en":
            return Remains(ipfw.en_undo(), ipfw.not_in_use(role), partial(ipfw_reverse.remove, self.run))
        return Remains(ipfw.router_undo(), ipfw.not_in_use(role))

    def en_places(self, config: EnConfig, interface: Interface) -> EnPlaces:
        """Where our rules go among those that are there now."""
        rules, tables = self._firewall()
        return ipfw.en_places(rules, interface, config.virtual_network, tables)

    def router_places(self, interface: Interface) -> RouterPlaces:
        """As `en_places`."""
        rules, tables = self._firewall()
        return ipfw.router_places(rules, interface, tables)

    def _firewall(self) -> tuple[tuple[ipfw.Rule, ...], Tables]:
        """Rules and address tables. NatfError if there is no ipfw, or we may not ask it."""
        rules, tables = (self.run(look.argv, None) for look in (ipfw.LIST_RULES, ipfw.LIST_TABLES))
        if problem := ipfw.judge_listing(rules.status, rules.stdout if rules.status == 0 else rules.stderr):
            raise NatfError(problem)
        return ipfw.parse_rules(rules.stdout), ipfw.parse_tables(tables.stdout)

    def release(self) -> int:
        """kern.osreldate."""
        text = self.settings.read("kern.osreldate") or ""
        return int(text) if text.isdigit() else 0

    def backend(self, port: int, direction: Direction) -> DivertBackend:
        return DivertBackend(port, direction, calls=self._calls, host=self._host)

    def writer(self) -> DivertWriter:
        return DivertWriter(calls=self._calls)


class FreeBsdEn:
    """See `EnSide`. Packets of mapped routers are told by their addresses, which the table natf_peers has."""

    inbound_exact = False
    heeds_unreachable = False

    def __init__(self, system: FreeBsd, config: EnConfig, interface: Interface) -> None:
        self.interface = interface
        self._now = interface
        self._system = system
        self._config = config
        self._places = system.en_places(config, interface)
        self._kernel_path = config.kernel_path is not False and self._has_kernel_path()
        self._path: IpfwReversePath | None = None
        self._admitted: set[Address] = set()
        self._planned = False

    def outer(self) -> Interface:
        return outer_on_freebsd(self._config.interface, self._system.run)

    def open(self, stack: ExitStack) -> EnPorts:
        config, places = self._config, self._places
        answers, queries = self._divert(config.dns_queue, stack), self._divert(config.query_queue, stack, Direction.OUT)
        out, inward = self._divert(config.out_queue, stack, Direction.OUT), self._divert(config.in_queue, stack)
        errors = OwnPackets(
            self._system.writer(),
            Direction.IN,
            after_rule=places.error_after,
            interface=self.interface.name,
            address=self._address,
        )
        outward = OwnPackets(self._system.writer(), Direction.OUT, after_rule=places.queries)
        requests = OwnPackets(self._system.writer(), Direction.OUT, after_rule=places.request_after)
        replies = self._system.backend(config.control_queue, Direction.IN)
        for one in (errors, outward, requests, replies):
            stack.callback(one.close)
        # Answers to inside hosts need the NAT as errors do.
        injector = errors if places.gateway else ProgramPackets(errors, outward)
        control = DivertedControl(replies, requests, self._address)
        self._path = self._open_kernel_path(stack) if self._kernel_path else None
        return EnPorts((answers, queries), Way(out, inward, injector, self._path), outward, control)

    def _has_kernel_path(self) -> bool:
        """NatfError if there must be one and can't."""
        # Behind a NAT what programs here send and what inside hosts do come by the same rules.
        problem = (
            "this host serves inside hosts too" if self._places.gateway else ipfw_reverse.obstacle(self._system.run)
        )
        if problem is None:
            return True
        if self._config.kernel_path:
            raise NatfError(f"kernel_path = true in [en]: {problem}")
        log.warning("every packet is translated by this program, not by the kernel: %s", problem)
        return False

    def _open_kernel_path(self, stack: ExitStack) -> IpfwReversePath:
        path = IpfwReversePath(self._system.run, self._system.start, self._system.now)
        stack.callback(path.close)
        return path

    def plan(self, interface: Interface) -> Plan:
        config = self._config
        places = self._system.en_places(config, interface)
        if places != self._places:
            raise RestartNeeded("the firewall's rules have moved: others of natf's own are needed")
        self._now = interface
        self._planned = True
        rules = ipfw.EnFirewall(
            interface=interface.name,
            prefix=config.virtual_network,
            dns_queue=config.dns_queue,
            query_queue=config.query_queue,
            out_queue=config.out_queue,
            in_queue=config.in_queue,
            control_queue=config.control_queue,
            places=places,
            kernel_path=self._kernel_path,
            largest_for_nat=ipfw.largest_for_nat(self._system.release()),
        )
        return Plan(
            "en",
            ipfw.probe_en(rules),
            ipfw.en_rules(rules, self._admitted),
            list(ipfw.EN_SETTINGS),
            ipfw.en_undo(),
            ipfw.en_look(rules),
            ipfw.stand_in(rules),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """What is there once the ports are open is no leftover, and nobody reads these then."""
        if not self._kernel_path:
            return ()
        left = ipfw_reverse.leftovers(self._system.run) if self._path is None else ()
        return (*left, ipfw_reverse.NOTE)

    def admit(self, routers: Collection[Address]) -> None:
        """Before there is a plan they are only noted: its table has them."""
        new = set(routers) - self._admitted
        self._admitted |= new
        self._change(new, ())

    def keep(self, routers: Collection[Address]) -> None:
        wanted = set(routers)
        new, old = wanted - self._admitted, self._admitted - wanted
        self._admitted = wanted
        self._change(new, old)

    def forget_rewritten(self, routers: Collection[Address]) -> None:
        return

    def looked(self, found: Listing, now: float) -> None:
        """What somebody took out of the table comes back, and so do flows whose instance somebody deleted. What else
        somebody has put into it is no concern of ours.
        RestartNeeded: see `_refuse_pf`; or what the kernel translates is no longer let go as it is then."""
        _refuse_pf(found)
        if self._kernel_path and found.get("one_pass", ("1",)) != ("1",):
            raise RestartNeeded("net.inet.ip.fw.one_pass is no longer 1: the kernel cannot translate flows of ours")
        instances = found.get("instances", ())
        if self._path is not None and "unknown" not in instances:
            self._path.see(instances)
        there = {line.split()[0].partition("/")[0] for line in found.get("table", ())}
        if missing := {router for router in self._admitted if format_address(router) not in there}:
            log.warning("routers were taken out of ipfw's table %s; put in again", ipfw.PEERS_TABLE)
            self._change(missing, ())

    def next_look(self) -> float | None:
        return None

    def _change(self, new: Collection[Address], old: Collection[Address]) -> None:
        if not self._planned or not (new or old):
            return
        try:
            runner.apply([*ipfw.peers_add(new), *ipfw.peers_remove(old)], self._system.run)
        except CommandFailed as error:
            log.error("answers of a router may not reach its programs: %s", error)

    def _divert(self, port: int, stack: ExitStack, direction: Direction = Direction.IN) -> Divert:
        backend = self._system.backend(port, direction)
        return stack.enter_context(Divert(port, direction=direction, backend=backend))

    def _address(self) -> Address:
        return self._now.address


class FreeBsdRouter:
    """See `RouterSide`."""

    hint = (
        "is it running, and does its rule see what leaves by the outer interface? (service natd status; sockstat -P "
        "divert; ipfw show; with `ipfw nat` sysctl net.inet.ip.fw.one_pass must be 0)"
    )

    def __init__(self, system: FreeBsd, config: RouterConfig, interface: Interface) -> None:
        self.interface = interface
        self._system = system
        self._config = config
        self._places = system.router_places(interface)
        self.proof = (_PRIVATE, _neighbour(interface, system.run))
        self._clock = self._keep_alive()
        self._natd: tuple[str, ...] | None = None

    def outer(self) -> Interface:
        return outer_on_freebsd(self._config.interface, self._system.run)

    def open(self, stack: ExitStack) -> RouterPorts:
        config, places, system = self._config, self._places, self._system
        control = Divert(
            config.control_queue,
            direction=Direction.IN,
            backend=system.backend(config.control_queue, Direction.IN),
        )
        stack.enter_context(control)
        injector = OwnPackets(system.writer(), Direction.OUT, after_rule=places.reply_after)
        stack.callback(injector.close)
        bridge = NatdBridge(
            system.backend(config.capture_queue, Direction.OUT),
            places.pseudo_after,
            places.nat.received_on,
            places.nat.kind,
            self._clock,
            precise,
        )
        stack.callback(bridge.close)
        return RouterPorts(control, injector, bridge)

    def plan(self, interface: Interface) -> Plan:
        config = self._config
        places = self._system.router_places(interface)
        if places != self._places:
            raise RestartNeeded("the NAT's rule has moved: others of natf's own are needed")
        rules = ipfw.RouterFirewall(
            interface=interface.name,
            control_queue=config.control_queue,
            capture_queue=config.capture_queue,
            places=places,
        )
        return Plan(
            "router",
            ipfw.probe_router(rules),
            ipfw.router_rules(rules),
            [],
            ipfw.router_undo(),
            ipfw.router_look(rules),
        )

    def looked(self, found: Listing, now: float) -> None:
        """How many packets the NAT has seen, and whether it is the same natd: its clock needs to know. RestartNeeded:
        see `_refuse_pf`."""
        _refuse_pf(found)
        if self._clock is None:
            return
        natd = found.get("natd", ())
        if self._natd is not None and natd != self._natd:
            self._clock.note_restart()
        self._natd = natd
        if counts := [int(line.split()[1]) for line in found.get("nat", ())]:
            self._clock.note_packets(sum(counts), now)

    def next_look(self) -> float | None:
        """In traffic the NAT's packets are counted more often: the keep-alive of its clock then takes fewer of them."""
        return None if self._clock is None else self._clock.next_look()

    def _keep_alive(self) -> KeepAlive | None:
        if not needs_keep_alive(self._system.release()):
            return None
        return KeepAlive(self.interface.address, self.proof[1], self._system.now())


def _refuse_pf(found: Listing) -> None:
    """RestartNeeded if pf has been switched on since: what we write goes round for ever. The next start is refused, and
    says what is expected."""
    if found.get("pf"):
        raise RestartNeeded("pf is now active on the outer interface: `set skip` on it, or packets go round for ever")


def _neighbour(interface: Interface, run: Run) -> Address:
    """The gateway, else some address of the outer network that is not our own: a packet to it would leave by the outer
    interface."""
    gateway = route_to("default", run)
    if gateway.get("interface") == interface.name and (text := gateway.get("gateway")):
        try:
            return parse_address(text)
        except ValueError:  # a link of its own, without addresses
            pass
    return interface.address[:3] + bytes([interface.address[3] ^ 2])
