"""FreeBSD hosts in memory with the product's own code on them: both nodes, as their daemons wire them, on the model of
ipfw, divert and natd. Only the event loop and the processes round it are missing.

When a call returns, everything that follows from it has happened; `pass_time` is for what takes time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.divert.host import Host as DivertHost
from natf_bsd.en.core import EnCore
from natf_bsd.en.node import EnNode
from natf_bsd.firewall import runner
from natf_bsd.firewall.plan import Plan
from natf_bsd.lab.ipfw_model import Host, Natd, interface
from natf_bsd.ops.process import Completed
from natf_bsd.platforms.freebsd import FreeBsd, FreeBsdEn, FreeBsdRouter
from natf_bsd.router.core import RouterCore
from natf_bsd.router.node import RouterNode, prove_nat
from natf_bsd.tables.act import parse
from natf_bsd.types import Address, format_address
from natf_bsd.wire import packet

NAT_RULE = 50
_ANYWHERE = (0, 0)
_ROUNDS = 200  # more than any story here needs: a message that goes round for ever


class Delayed:
    """A process on the model."""

    def __init__(self, run: Callable[[], Completed]) -> None:
        self._run = run

    def ended(self) -> Completed:
        return self._run()

    def wait(self, seconds: float) -> Completed:
        return self._run()

    def kill(self) -> None:
        return


class Programs:
    """The commands of a FreeBSD host that the product runs, answered by the model. `sysctls` are its settings."""

    def __init__(self, host: Host, gateway: tuple[str, str] | None, release: int) -> None:
        self._host = host
        self._gateway = gateway
        self.sysctls = {
            "kern.osreldate": f"{release}02000",
            "net.inet.ip.forwarding": str(int(host.forwarding)),
            "net.inet.ip.fw.enable": "1",
            "net.inet.ip.fw.one_pass": "1",
            "net.inet.tcp.tso": "1",
        }
        self.ran: list[tuple[str, ...]] = []
        self.modules = {"ipfw_nat"}
        self.batches: list[str] = []
        self.spoil: Callable[[str], str] = lambda batch: batch
        """Makes a batch that is run in the background another one."""

    def start(self, argv: tuple[str, ...], stdin: str | None) -> Delayed:
        """It does what it does when it is next looked at."""
        self.batches.append(stdin or "")
        return Delayed(lambda: self.run(argv, self.spoil(stdin or "")))

    def run(self, argv: tuple[str, ...], stdin: str | None) -> Completed:
        self.ran.append(argv)
        match argv:
            case ("ipfw", *rest):
                return Completed(*self._host.ipfw(rest, stdin or ""))
            case ("sysctl", "-n", name):
                value = self.sysctls.get(name)
                return Completed(1, "", f"sysctl: unknown oid '{name}'") if value is None else Completed(0, value, "")
            case ("sysctl", setting):
                name, _, value = setting.partition("=")
                self._set(name, value)
                return Completed(0, f"{name}: {value}\n", "")
            case ("kldstat", "-q", "-m", name):
                return Completed(int(name not in self.modules), "", "")
            case ("ifconfig", name):
                return self._ifconfig(name)
            case ("route", "-n", "get", "default"):
                return self._default_route()
            case ("sh", "-c", script) if "pfctl" in script or "redirect" in script:
                return Completed(0, "", "")  # a host without pf, and later than 12
            case ("sh", "-c", script) if "sockstat" in script:
                return Completed(0, f"{self._host.ipfw(['-S', 'list'])[1]}# sockets\n", "")  # without other daemons
        raise AssertionError(f"the model host has no {' '.join(argv)}")

    def _set(self, name: str, value: str) -> None:
        self.sysctls[name] = value
        if name == "net.inet.ip.fw.one_pass":
            self._host.firewall.one_pass = value == "1"

    def _ifconfig(self, name: str) -> Completed:
        found = self._host.interfaces.get(name)
        if found is None:
            return Completed(1, "", f"ifconfig: interface {name} does not exist")
        inet = f"\tinet {format_address(found.address)} netmask 0xffffff00\n" if found.address else ""
        return Completed(0, f"{name}: flags=1008843<UP,BROADCAST,RUNNING> metric 0 mtu {found.mtu}\n{inet}", "")

    def _default_route(self) -> Completed:
        if self._gateway is None:
            return Completed(0, "", "route: route has not been found: No error: 0\n")
        address, name = self._gateway
        return Completed(0, f"   route to: 0.0.0.0\n    gateway: {address}\n  interface: {name}\n", "")


@dataclass(eq=False)
class Box:
    """One FreeBSD host, with what runs on it."""

    name: str
    host: Host
    programs: Programs
    stack: ExitStack = field(default_factory=ExitStack)
    readers: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    ticks: list[tuple[Callable[[], float | None], Callable[[float], None]]] = field(default_factory=list)
    saved: list[dict[str, object]] = field(default_factory=list)
    en: EnNode | None = None
    router: RouterNode | None = None
    en_side: FreeBsdEn | None = None
    router_side: FreeBsdRouter | None = None
    plans: dict[str, Plan] = field(default_factory=dict)

    def ipfw(self, *lines: str) -> None:
        """A person's own rules."""
        for line in lines:
            status, _, stderr = self.host.ipfw(line.split())
            assert status == 0, f"{line}: {stderr}"

    def listing(self) -> str:
        """What of the firewall is ours to leave as it was: rules, sets, tables."""
        found = [self.host.ipfw(argv.split()) for argv in ("-S list", "set show", "table all list")]
        return "".join(stdout for _, stdout, _ in found)

    def received(self) -> list[bytes]:
        """What programs got since the last time."""
        got = [data for _, data in self.host.delivered]
        self.host.delivered.clear()
        return got

    def undo(self, role: str) -> None:
        assert runner.undo(self.plans[role].undo, self.programs.run) == []
        if role == "en" and self.en is not None:
            self.en.forget()
        self.stack.close()
        self.readers.clear()
        self.ticks.clear()


class World:
    """Boxes joined by segments. `wire` notes every packet that was sent on one: (time, segment, packet)."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.boxes: dict[str, Box] = {}
        self.wire: list[tuple[float, str, bytes]] = []
        self._segments: dict[str, list[tuple[Box, str]]] = {}
        self._servers: dict[str, Callable[[bytes], list[bytes]]] = {}
        self._queue: list[tuple[str, Box, bytes]] = []
        self._busy = False

    def box(
        self,
        name: str,
        interfaces: dict[str, tuple[str, str]],
        *,
        gateway: tuple[str, str] | None = None,
        forwarding: bool = False,
        release: int = 14,
    ) -> Box:
        """`interfaces`: by name, (segment, address); `gateway`: (address, interface) of the default route."""
        made = [interface(own, address) for own, (_, address) in interfaces.items()]
        host = Host(made, forwarding=forwarding, now=lambda: self.now, release=release)
        if gateway:
            host.add_route(_ANYWHERE, gateway[1])
        box = self.boxes[name] = Box(name, host, Programs(host, gateway, release))
        for own, (segment, _) in interfaces.items():
            self._segments.setdefault(segment, []).append((box, own))
        host.on_wire = lambda own, data: self._sent(box, interfaces[own][0], data)
        host.listens = lambda protocol, port: True
        return box

    def serve(self, box: Box, server: Callable[[bytes], list[bytes]]) -> None:
        """What programs on `box` answer: packets for a packet that was delivered to them."""
        self._servers[box.name] = server

    def start_natd(self, box: Box, outer: str, *, in_kernel: bool = False, deny_incoming: bool = True) -> Natd | None:
        """The NAT as rc.firewall's type `open` sets it up; natd's process, if it is one."""
        if in_kernel:
            box.programs.run(("sysctl", "net.inet.ip.fw.one_pass=0"), None)
            box.ipfw(f"nat 123 config if {outer} same_ports deny_in")
            box.ipfw(f"add {NAT_RULE} nat 123 ip4 from any to any via {outer}")
            return None
        natd = box.host.start_natd(outer, deny_incoming=deny_incoming)
        box.ipfw(f"add {NAT_RULE} divert natd ip4 from any to any via {outer}")
        return natd

    def start_en(self, box: Box, config: EnConfig) -> None:
        box.en_side = side = self._system(box).external_node(config)
        core = EnCore(config, inbound_exact=side.inbound_exact, heeds_unreachable=side.heeds_unreachable)
        box.en = node = EnNode(core, side, side.open(box.stack), box.saved.append, now=lambda: self.now)
        self._run(box, node)
        box.ticks.append((node.next_deadline, node.tick))
        self._set_up(box, side.plan(side.interface))
        node.take_over()

    def start_router(self, box: Box, config: RouterConfig, act: str) -> None:
        box.router_side = side = self._system(box).router(config)
        ports = side.open(box.stack)
        core = RouterCore(config, parse(act, "act"), ports.bridge.style, ports.bridge.lifetime)
        box.router = node = RouterNode(core, ports, now=lambda: self.now)
        self._run(box, node)
        box.ticks.append((node.next_deadline, node.tick))
        self._set_up(box, side.plan(side.interface))
        readable = box.host.sockets.is_readable
        prove_nat(ports.bridge, side.interface, side.proof, side.hint, wait=lambda descriptor, _: readable(descriptor))

    def send(self, box: Box, data: bytes | bytearray) -> None:
        """A program on `box` sends. OSError as its system call gets it."""
        try:
            box.host.send(bytes(data))
        finally:
            self.settle()

    def pass_time(self, seconds: float) -> None:
        """Timers fire in the order of their times."""
        end = self.now + seconds
        while True:
            due = [at for box in self.boxes.values() for deadline, _ in box.ticks if (at := deadline()) is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            for box in self.boxes.values():
                for _, tick in box.ticks:
                    tick(self.now)
            self.settle()
        self.now = end

    def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(_ROUNDS):
            if not (self._carry() | self._read() | self._answer()):
                return
        raise AssertionError(f"packets still on their way after {_ROUNDS} rounds")

    def _run(self, box: Box, node: EnNode | RouterNode) -> None:
        box.readers += [
            (source if isinstance(source, int) else source.fileno(), read) for source, read in node.readers()
        ]

    def _set_up(self, box: Box, plan: Plan) -> None:
        assert runner.check(plan.checks, box.programs.run) == []
        runner.apply(plan.set_up, box.programs.run)
        box.plans[plan.role] = plan

    def _system(self, box: Box) -> FreeBsd:
        host = DivertHost(mtu_to=lambda _: 1500, interfaces=lambda: list(box.host.interfaces), sockstat=lambda: "")
        run, start = box.programs.run, box.programs.start
        return FreeBsd(calls=box.host.sockets, host=host, run=run, start=start, now=lambda: self.now)

    def _sent(self, box: Box, segment: str, data: bytes) -> None:
        self._queue.append((segment, box, data))

    def _carry(self) -> bool:
        carried, self._queue = self._queue, []
        for segment, sender, data in carried:
            self.wire.append((self.now, segment, data))
            for box, own in self._receivers(segment, sender, packet.destination(data)):
                box.host.receive(own, data)
        return bool(carried)

    def _receivers(self, segment: str, sender: Box, destination: Address) -> list[tuple[Box, str]]:
        """Who has the address; else the one the sender's default route names; a dead end else."""
        members = [(box, own) for box, own in self._segments[segment] if box is not sender]
        exact = [(box, own) for box, own in members if box.host.interfaces[own].address == destination]
        if exact or sender.programs._gateway is None:
            return exact
        gateway = sender.programs._gateway[0]
        return [
            (box, own)
            for box, own in members
            if format_address(box.host.interfaces[own].address or bytes(4)) == gateway
        ]

    def _read(self) -> bool:
        busy = False
        for box in self.boxes.values():
            for descriptor, read in box.readers:
                if box.host.sockets.is_readable(descriptor):
                    read()
                    busy = True
        return busy

    def _answer(self) -> bool:
        busy = False
        for name, server in self._servers.items():
            box = self.boxes[name]
            for data in box.received():
                for answer in server(data):
                    box.host.send(answer)
                busy = True
        return busy
