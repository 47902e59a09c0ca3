"""Linux: NFQUEUE, iptables, raw sockets, and netfilter's NAT by a TUN device."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial

from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.datapath.ebpf import vat as ebpf
from natf_bsd.datapath.netfilter import NetfilterPath
from natf_bsd.divert import Divert
from natf_bsd.divert.inject import ControlSocket, Injector
from natf_bsd.divert.inside import FromInside, ToInside, TunInjector
from natf_bsd.divert.nfqueue import NfqueueBackend
from natf_bsd.divert.tun import TunDevice
from natf_bsd.errors import NatfError
from natf_bsd.firewall import linux, linux_host_rules, runner
from natf_bsd.firewall.guard import Listing
from natf_bsd.firewall.linux_gateway import Gateway
from natf_bsd.firewall.linux_host_rules import HostRules
from natf_bsd.firewall.plan import Plan, Remains
from natf_bsd.firewall.runner import ProcSys
from natf_bsd.natd_bridge import conntrack
from natf_bsd.natd_bridge.netfilter import NetfilterBridge
from natf_bsd.ops import interfaces
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.process import run_process
from natf_bsd.platforms import EnPorts, RouterPorts, Way
from natf_bsd.types import Address, Direction, parse_address

log = logging.getLogger(__name__)

MARK_MASK = 0xFF000000
"""The byte of the packet mark that is ours; `mark` in the configuration is its value."""


class Linux:
    """See `Platform`."""

    def __init__(self) -> None:
        self.settings = ProcSys()

    def external_node(self, config: EnConfig) -> LinuxEn:
        forwards = self.settings.read("net/ipv4/ip_forward") == "1"
        gateway = forwards if config.gateway is None else config.gateway
        return LinuxEn(config, interfaces.outer_interface(config.interface), gateway=gateway)

    def router(self, config: RouterConfig) -> LinuxRouter:
        return LinuxRouter(config, interfaces.outer_interface(config.interface))

    def remains(self, role: str, config: Config) -> Remains:
        if role == "en":
            return Remains(linux.en_undo(), linux.not_in_use(role), partial(_forget, config.en))
        router = config.router or RouterConfig()
        return Remains(linux.router_undo(table=router.route_table), linux.not_in_use(role))


def _forget(config: EnConfig | None) -> None:
    """The flows that the kernel translates."""
    ebpf.remove()
    if conntrack.problem() is not None:  # so nothing was ever told it
        return
    path = _kernel_path(config or EnConfig(home_domains=()))
    try:
        path.forget()
    finally:
        path.close()


def _remove_programs(config: EnConfig) -> None:
    """Of an earlier run. Flows first: without the programs their packets would leave as they are."""
    try:
        if conntrack.problem() is None:
            conntrack.forget_untranslated(config.mark, MARK_MASK, lambda to: to[0] == config.virtual_prefix)
        ebpf.remove()
    except OSError as error:
        log.warning("programs of an earlier run may be at an interface (natf cleanup removes them): %s", error.strerror)


def _host_rules(config: EnConfig) -> HostRules:
    done = run_process(("sh", "-c", linux_host_rules.listing(config.virtual_network)), None)
    if done.status:
        return HostRules(f"its firewall cannot be looked at: {done.stderr.strip() or 'no message'}")
    return linux_host_rules.read(done.stdout.splitlines(), config.virtual_network)


def _kernel_path(config: EnConfig, interface: ebpf.InterfaceVat | None = None) -> NetfilterPath:
    return NetfilterPath(config.mark, MARK_MASK, bytes([config.virtual_prefix]), interface)


def _rules(
    config: EnConfig, gateway: Gateway | None, *, kernel_path: bool, rewritten_at: str | None = None
) -> linux.EnFirewall:
    return linux.EnFirewall(
        prefix=config.virtual_network,
        dns_queue=config.dns_queue,
        out_queue=config.out_queue,
        in_queue=config.in_queue,
        mark=config.mark,
        mask=MARK_MASK,
        gateway=gateway,
        kernel_path=kernel_path,
        rewritten_at=rewritten_at,
    )


class LinuxEn:
    """See `EnSide`. Packets of mapped routers are told by connection marks: nothing to admit. `gateway`: the hosts
    behind this one are served too."""

    inbound_exact = True
    heeds_unreachable = True

    def __init__(self, config: EnConfig, interface: Interface, *, gateway: bool = False) -> None:
        self.interface = interface
        self._kernel_path = config.kernel_path is not False  # until `open` finds that there can be none
        self._config = config
        self._gateway = gateway
        self._from_inside: FromInside | None = None
        self._interface_vat: ebpf.InterfaceVat | None = None
        self._is_open = False

    def outer(self) -> Interface:
        return interfaces.outer_interface(self._config.interface)

    def open(self, stack: ExitStack) -> EnPorts:
        config = self._config
        self._is_open = True
        self._kernel_path = self._kernel_path and self._has_kernel_path()
        dns = stack.enter_context(Divert(config.dns_queue, direction=Direction.IN))
        out = stack.enter_context(Divert(config.out_queue, direction=Direction.OUT, mark=config.mark, mask=MARK_MASK))
        inward = stack.enter_context(Divert(config.in_queue, direction=Direction.IN))
        injector = Injector(config.mark)
        stack.callback(injector.close)
        control = ControlSocket()
        stack.callback(control.close)
        inside = self._open_inside(stack) if self._gateway else None
        own = {config.dns_queue, config.out_queue, config.in_queue}
        if not runner.check([linux.not_in_use("en", own)]):  # else this one will not start, and nothing there is ours
            self._interface_vat = self._open_interface_vat() if self._kernel_path else None
            if self._interface_vat is None:
                _remove_programs(config)
        kernel = self._open_kernel_path(stack) if self._kernel_path else None
        return EnPorts((dns,), Way(out, inward, injector, kernel), injector, control, inside)

    def _has_kernel_path(self) -> bool:
        """NatfError if there must be one and can't."""
        problems = runner.check([linux.kernel_path_works(_rules(self._config, None, kernel_path=True))])
        if not problems and (unasked := conntrack.problem()):
            problems = [unasked]
        for problem in problems:
            if self._config.kernel_path:
                raise NatfError(f"kernel_path = true in [en]: {problem}")
            log.warning("every packet is translated by this program, not by the kernel: %s", problem)
        return not problems

    def _open_kernel_path(self, stack: ExitStack) -> NetfilterPath:
        try:
            path = _kernel_path(self._config, self._interface_vat)
        except OSError as error:
            raise NatfError(f"conntrack: {error.strerror}; kernel_path = false in [en] does without it") from None
        stack.callback(path.close)
        return path

    def _open_interface_vat(self) -> ebpf.InterfaceVat | None:
        """None where flows must take the NAT's way."""
        config, name = self._config, self.interface.name
        rules = _host_rules(config)
        problem = self._not_at_interface(rules)
        try:
            if problem is None:
                vat = ebpf.InterfaceVat(
                    name, prefix=config.virtual_prefix, mark=config.mark, mask=MARK_MASK, flows=config.maximum_flows
                )
                vat.heed_rules(rules.refusal, rules.denied)
                return vat
        except OSError as error:
            problem = error.strerror or str(error)
        log.info("flows are translated by netfilter's NAT, not at %s: %s", name, problem)
        return None

    def _not_at_interface(self, rules: HostRules) -> str | None:
        # A gateway routes virtual addresses to its TUN device.
        return "this host is a gateway" if self._gateway else rules.refusal

    def _open_inside(self, stack: ExitStack) -> Way:
        config = self._config
        try:
            tun = TunDevice(config.tun, "inside hosts reach nobody without it")
        except NatfError as error:
            raise NatfError(f"{error}; gateway = false in [en] does without it, and without inside hosts") from None
        stack.callback(tun.close)
        raw = Injector(config.inside_mark)
        source = FromInside(tun, config.tun, config.virtual_prefix, raw, self.interface.address)
        self._from_inside = source
        # A device has no port.
        out = stack.enter_context(Divert(0, direction=Direction.OUT, backend=source))
        queue = ToInside(NfqueueBackend(config.inside_queue, Direction.IN), TunInjector(tun))
        inward = stack.enter_context(Divert(config.inside_queue, direction=Direction.IN, backend=queue))
        return Way(out, inward, TunInjector(tun))

    def plan(self, interface: Interface) -> Plan:
        """On a host that is no gateway the rules go by address and mark, whatever the `interface`."""
        gateway = self._gateway_on(interface) if self._gateway else None
        if self._from_inside is not None:
            self._from_inside.source = interface.address
        where, notes = (self._follow(interface), ()) if self._is_open else self._foresee(interface)
        rules = _rules(self._config, gateway, kernel_path=self._kernel_path, rewritten_at=where)
        look = linux.en_look(rules, interface.name)
        demanded = [linux.kernel_path_works(rules)] if self._config.kernel_path else []
        return Plan(
            "en",
            [*linux.probe_en(rules), *demanded],
            linux.en_rules(rules),
            linux.en_sysctls(rules),
            linux.en_undo(),
            look,
            notes=notes,
        )

    def _foresee(self, interface: Interface) -> tuple[str | None, tuple[str, ...]]:
        """As `_follow` before anything is open, and what is to be said of it."""
        config, name = self._config, interface.name
        if not self._kernel_path:
            return None, ()
        problem = self._not_at_interface(_host_rules(config)) or ebpf.obstacle(
            name, prefix=config.virtual_prefix, mark=config.mark, mask=MARK_MASK
        )
        if problem is not None:
            return None, (f"flows are translated by netfilter's NAT, not at {name}: {problem}",)
        return name, (f"flows are translated at {name}: tc filters natf_out and natf_in of clsact, removed at exit",)

    def _follow(self, interface: Interface) -> str | None:
        """Where flows may be rewritten from now on, if anywhere."""
        if self._interface_vat is None:
            return None
        if self._interface_vat.interface != interface.name:
            self._interface_vat.follow(interface.name)
        return interface.name

    def _gateway_on(self, interface: Interface) -> Gateway:
        config = self._config
        # What is read from the TUN device is sent by the outer interface as it is: the kernel must cut it for that.
        mtu = interfaces.mtu_on_linux(interface.name)
        return Gateway(interface.name, interface.address, mtu, config.tun, config.inside_queue, config.inside_mark)

    def admit(self, routers: Collection[Address]) -> None:
        return

    def keep(self, routers: Collection[Address]) -> None:
        return

    def forget_rewritten(self, routers: Collection[Address]) -> None:
        """Conntrack has seen these flows as G1:s -> G2:m. While it remembers one, for two minutes after a connection's
        end, its NAT gives a flow to V1 that is to become the same another source port, of which the router knows
        nothing.
        """
        if conntrack.problem() is None:  # else nothing can be translated by the kernel either
            conntrack.forget_untranslated(self._config.mark, MARK_MASK, routers.__contains__)

    def looked(self, found: Listing, now: float) -> None:
        """The host's own rules may be others now."""
        if self._interface_vat is not None:
            rules = linux_host_rules.read(found.get("host", ()), self._config.virtual_network)
            self._interface_vat.heed_rules(rules.refusal, rules.denied)

    def next_look(self) -> float | None:
        return None


class LinuxRouter:
    """See `RouterSide`."""

    # Documentation addresses (RFC 5737): what enters the TUN is translated and routed out of it whatever it is.
    proof = (parse_address("192.0.2.1"), parse_address("198.51.100.1"))
    hint = (
        "does another firewall table drop what is forwarded between netfilter's TUN device and itself? "
        "(nft list ruleset, iptables -S FORWARD)"
    )

    def __init__(self, config: RouterConfig, interface: Interface) -> None:
        self.interface = interface
        self._config = config

    def outer(self) -> Interface:
        return interfaces.outer_interface(self._config.interface)

    def open(self, stack: ExitStack) -> RouterPorts:
        control = stack.enter_context(Divert(self._config.control_queue, direction=Direction.IN))
        injector = Injector(self._config.mark)
        stack.callback(injector.close)
        bridge = NetfilterBridge(self._config.tun)
        stack.callback(bridge.close)
        return RouterPorts(control, injector, bridge)

    def plan(self, interface: Interface) -> Plan:
        """The TUN device must be open already."""
        config = self._config
        rules = linux.RouterFirewall(
            interface.name,
            interface.address,
            control_queue=config.control_queue,
            mark=config.mark,
            mask=MARK_MASK,
            tun=config.tun,
            table=config.route_table,
        )
        return Plan(
            "router",
            linux.probe_router(rules),
            linux.router_rules(rules),
            linux.router_sysctls(rules),
            linux.router_undo(table=config.route_table),
            linux.router_look(rules),
        )

    def looked(self, found: Listing, now: float) -> None:
        return

    def next_look(self) -> float | None:
        return None
