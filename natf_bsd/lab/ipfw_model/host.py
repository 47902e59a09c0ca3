"""One FreeBSD host: interfaces, routes, ip_input, forwarding, ip_output, ICMP, and the firewall in the middle.

Packets come in by `receive` (from a wire), `output` (from a program) and divert sockets, and go out into `wire`. There
is no ARP: `wire` says what would be sent to whom. Nothing here waits: when a call returns, all has happened.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from natf_bsd.lab.ipfw_model.command import Firewall
from natf_bsd.lab.ipfw_model.errors import NotModelledError
from natf_bsd.lab.ipfw_model.fragments import Reassembly, is_fragment, set_header_sum, split
from natf_bsd.lab.ipfw_model.natd import Libalias, Natd
from natf_bsd.lab.ipfw_model.rules import in_network
from natf_bsd.lab.ipfw_model.sockets import DivertAddress, DivertSockets
from natf_bsd.lab.ipfw_model.walk import Diverted, Passage, Step, Surroundings, walk
from natf_bsd.types import Address, Direction, Protocol, parse_address
from natf_bsd.wire import build, packet
from natf_bsd.wire.checksum import checksum, ones_sum

LOOPBACK = "lo0"
_DONT_FRAGMENT = 0x4000
_DEFAULT_TTL = 64
# The model does all that follows from an event at once. More steps than this are a divert loop (FREEBSD.md 5.3).
_LOOP = 2000
# Bytes that m_megapullup makes one piece of (FREEBSD.md 1.6); up to 13 no more than a page.
_LARGEST_FOR_NAT = 16384
_LARGEST_FOR_NAT_BEFORE_14 = 4096
# net.inet.icmp.quotelen: bytes quoted behind the header.
_QUOTE = 548
_UNREACHABLE, _TIME_EXCEEDED, _ECHO, _ECHO_REPLY = 3, 11, 8, 0
_UNREACHABLE_HOST, _UNREACHABLE_PORT, _NEED_FRAGMENT = 1, 3, 4
_QUERIES = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18})
_SUM_AT = {int(Protocol.TCP): 16, int(Protocol.UDP): 6}
_CLASS_E = (0xF0000000, 0xF0000000)
_MULTICAST = (0xE0000000, 0xF0000000)
_LOOPBACK_NET = (0x7F000000, 0xFF000000)
_BROADCAST = bytes([255] * 4)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; `address` None: it has no IPv4 address."""

    name: str
    address: Address | None = None
    prefix: int = 24
    mtu: int = 1500
    is_up: bool = True

    @property
    def network(self) -> tuple[int, int]:
        mask = 0xFFFFFFFF << (32 - self.prefix) & 0xFFFFFFFF
        return int.from_bytes(self.address or bytes(4), "big") & mask, mask

    @property
    def broadcast(self) -> Address:
        number, mask = self.network
        return (number | ~mask & 0xFFFFFFFF).to_bytes(4, "big")


def interface(name: str, address: str | None = None, *, prefix: int = 24, mtu: int = 1500) -> Interface:
    """An `Interface` from text."""
    return Interface(name, None if address is None else parse_address(address), prefix, mtu)


@dataclass(slots=True, eq=False)
class _Frame:
    """A packet in the kernel, with what its mbuf knows.

    `delayed`: the L4 checksum field holds the pseudo-header sum only. `is_verified`: no checksum need be looked at
    (it came by lo0). `resume` is the tag of a packet written to a divert socket: rule number and direction.
    """

    data: bytearray
    received: Interface | None = None
    delayed: bool = False
    is_verified: bool = False
    resume: tuple[int, Diverted] | None = None


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Host:
    """`firewall.ipfw` and `sockets` are what product code uses; the rest is the world around it.

    `listens(protocol, port)` tells which ports have programs: what they get is in `delivered`, other ports answer with
    RST or port unreachable. `ident()` gives the IP ids of packets of the kernel's own, `draw` libalias's random ports.
    """

    def __init__(
        self,
        interfaces: Sequence[Interface],
        *,
        forwarding: bool = False,
        now: Callable[[], float] = lambda: 0.0,
        release: int = 14,
        is_root: bool = True,
        has_divert: bool = True,
        default_accept: bool = True,
    ) -> None:
        loopback = Interface(LOOPBACK, parse_address("127.0.0.1"), 8, 16384)
        self.interfaces = {one.name: one for one in (loopback, *interfaces)}
        self.forwarding = forwarding
        self.allow_net240 = False
        self.now = now
        self.routes: list[tuple[tuple[int, int], str]] = []
        self.firewall = Firewall(self.address_of, default_accept=default_accept)
        self.sockets = DivertSockets(self._divert_write, release=release, is_root=is_root, is_loaded=has_divert)
        self.wire: list[tuple[str, bytes]] = []
        self.on_wire: Callable[[str, bytes], None] = lambda name, data: self.wire.append((name, data))
        self.delivered: list[tuple[str, bytes]] = []
        self.listens: Callable[[int, int], bool] = lambda protocol, port: False
        self.ident: Callable[[], int] = itertools.count(1).__next__
        self.draw = random.Random(0)
        self._largest_for_nat = _LARGEST_FOR_NAT if release >= 14 else _LARGEST_FOR_NAT_BEFORE_14
        self.counters: Counter[str] = Counter()
        self._natds: list[Natd] = []
        self._queue: deque[_Frame] = deque()
        self._is_settling = False
        self._reassembly = Reassembly()

    # What a person does at the host's keyboard.

    def ipfw(self, argv: list[str], stdin: str = "") -> tuple[int, str, str]:
        """Run ipfw(8); `argv` with or without the name itself. (exit status, stdout, stderr)"""
        return self.firewall.ipfw(argv, stdin)

    def address_of(self, name: str) -> Address | None:
        """First address of an interface; KeyError if there is no such interface."""
        return self.interfaces[name].address

    def add_route(self, network: tuple[int, int], interface_name: str) -> None:
        """The route to `network` (number, mask) leaves by this interface."""
        self.routes.append((network, interface_name))

    def start_natd(self, interface_name: str, *, deny_incoming: bool) -> Natd:
        """natd -interface NAME [-deny_incoming]; it reads on port 8668."""
        address = self.address_of(interface_name)
        if address is None:
            raise ValueError(f"{interface_name} has no address")
        natd = Natd(self.sockets, Libalias(address, deny_incoming=deny_incoming, draw=self.draw), self.now)
        self._natds.append(natd)
        return natd

    def stop_natd(self, natd: Natd) -> None:
        self._natds.remove(natd)
        natd.close()

    # Ways in.

    def receive(self, interface_name: str, data: bytes) -> None:
        """A packet from the wire."""
        self._queue.append(_Frame(bytearray(data), self.interfaces[interface_name]))
        self._settle()

    def send(self, data: bytes) -> None:
        """A program sends; `data` is the packet as it would look on the wire. OSError as its system call gets it.

        The protocols leave ip_sum and the L4 checksum to later: ip_sum zero, L4 the pseudo-header sum only.
        """
        frame = bytearray(data)
        set_header_sum(frame, 0)
        at = _sum_at(frame)
        if at is not None:
            struct.pack_into("!H", frame, at, pseudo_sum(frame))
        self.output(frame, delayed=at is not None)

    def output(self, data: bytes | bytearray, *, delayed: bool) -> None:
        """A packet as TCP, UDP or a raw socket hands it to ip_output: ip_sum is not looked at."""
        try:
            self._output(_Frame(bytearray(data), delayed=delayed))
        finally:
            self._settle()

    def _settle(self) -> None:
        if self._is_settling:
            return
        self._is_settling = True
        try:
            for _ in range(_LOOP):
                if self._queue:
                    self._input(self._queue.popleft())
                elif not any(natd.step() for natd in self._natds):
                    return
            self._queue.clear()
            raise NotModelledError(f"a packet that goes round for ever ({_LOOP} steps after one event)")
        finally:
            self._is_settling = False

    def _divert_write(self, data: bytes, address: DivertAddress) -> None:
        """div_send: FREEBSD.md 1.5."""
        frame = _Frame(bytearray(data), self.interfaces.get(address.name) if address.name else None)
        if len(data) < 20:
            raise _error(errno.EINVAL)
        if data[0] >> 4 != 4:
            raise _error(errno.EAFNOSUPPORT)
        size = int.from_bytes(data[2:4], "big")
        if size > len(data):
            raise _error(errno.EINVAL)
        del frame.data[size:]
        try:
            self._divert_resume(frame, address)
        finally:
            self._settle()

    def _divert_resume(self, frame: _Frame, address: DivertAddress) -> None:
        if address.direction is Direction.OUT:
            frame.resume = (address.rule, Diverted.OUTPUT)
            self._output(frame)
            return
        frame.resume = (address.rule, Diverted.LOOPBACK)
        if frame.received is None:
            found = (one for one in self.interfaces.values() if one.address == address.address)
            frame.received = next(found, None)
        if frame.received is None:
            raise _error(errno.EADDRNOTAVAIL)
        self._queue.append(frame)

    # ip_input.

    def _input(self, frame: _Frame) -> None:
        received = frame.received
        if received is None or not received.is_up or not self._is_sound(frame):
            return
        if not self._filter_quietly(frame, Direction.IN, ""):
            return
        if frame.data[0] >> 4 != 4:
            self.counters["ipv6"] += 1
            return
        if self._is_for_us(packet.destination(frame.data), received):
            self._deliver(frame, received)
        elif self.forwarding and not in_network(packet.destination(frame.data), _MULTICAST):
            self._forward(frame, received)
        else:
            self.counters["not for us"] += 1

    def _is_sound(self, frame: _Frame) -> bool:
        data = frame.data
        if data and data[0] >> 4 == 6:
            return True
        if len(data) < 20 or packet.header_length(data) < 20:
            self.counters["bad header"] += 1
            return False
        if not frame.is_verified and ones_sum(data[: packet.header_length(data)]) != 0xFFFF:
            self.counters["bad checksum"] += 1
            return False
        del data[int.from_bytes(data[2:4], "big") :]
        return True

    def _is_for_us(self, destination: Address, received: Interface) -> bool:
        return destination in self._own() or destination in (_BROADCAST, received.broadcast)

    def _own(self) -> frozenset[Address]:
        return frozenset(one.address for one in self.interfaces.values() if one.address is not None)

    def _deliver(self, frame: _Frame, received: Interface) -> None:
        if packet.source(frame.data) in self._own() and received.name != LOOPBACK:
            self.counters["bad source address"] += 1
            return
        if is_fragment(frame.data):
            whole = self._reassembly.add(frame.data, self.now())
            if whole is None:
                return
            frame.data = whole
        if not frame.is_verified and not _is_transport_sound(frame.data):
            self.counters["bad transport checksum"] += 1
            return
        protocol = packet.protocol(frame.data)
        if protocol == Protocol.ICMP:
            self._deliver_icmp(frame, received)
            return
        flow = packet.flow_of(frame.data)
        if flow is None or self.listens(protocol, flow.destination.port):
            self.delivered.append((received.name, bytes(frame.data)))
        elif packet.destination(frame.data) in self._own():
            self._refuse(frame, received)

    def _deliver_icmp(self, frame: _Frame, received: Interface) -> None:
        at = packet.header_length(frame.data)
        if frame.data[at] != _ECHO:
            self.delivered.append((received.name, bytes(frame.data)))
            return
        reply = bytearray(frame.data)
        reply[12:16], reply[16:20] = frame.data[16:20], frame.data[12:16]
        reply[at] = _ECHO_REPLY
        struct.pack_into("!H", reply, at + 2, 0)
        struct.pack_into("!H", reply, at + 2, checksum(reply[at:]))
        self._reflect(reply)

    def _refuse(self, frame: _Frame, received: Interface) -> None:
        """No program: RST, or port unreachable."""
        if packet.protocol(frame.data) == Protocol.UDP:
            self._send_error(frame.data, received, _UNREACHABLE, _UNREACHABLE_PORT)
            return
        reset = build.reset_for(frame.data)
        if reset is None:
            return
        struct.pack_into("!H", reset, 6, _DONT_FRAGMENT)
        # tcp_respond leaves what tcp_input used the field for: the length of the segment.
        set_header_sum(reset, len(frame.data) - packet.header_length(frame.data))
        self._answer(reset)

    def _send_error(self, about: bytearray, received: Interface | None, kind: int, code: int, mtu: int = 0) -> None:
        """icmp_error; ip_sum of the new header is still that of the packet it is about."""
        at = packet.header_length(about)
        is_error = packet.protocol(about) == Protocol.ICMP and len(about) > at and about[at] not in _QUERIES
        if packet.is_later_fragment(about) or is_error or self._is_to_many(packet.destination(about), received):
            return
        quote = bytes(about[: at + _QUOTE])
        message = bytearray(struct.pack("!BBHI", kind, code, 0, mtu) + quote)
        struct.pack_into("!H", message, 2, checksum(message))
        own = packet.destination(about) if packet.destination(about) in self._own() else None
        source = own or (received.address if received is not None else None)
        if source is None:
            return
        answer = build.ipv4(Protocol.ICMP, source, packet.source(about), message)
        answer[10:12] = about[10:12]
        self._reflect(answer)

    def _is_to_many(self, destination: Address, received: Interface | None) -> bool:
        broadcasts = (_BROADCAST,) if received is None or received.address is None else (_BROADCAST, received.broadcast)
        return in_network(destination, _MULTICAST) or destination in broadcasts

    def _reflect(self, answer: bytearray) -> None:
        """icmp_reflect: nothing to class E unless net.inet.ip.allow_net240 (FREEBSD.md 6)."""
        if in_network(packet.destination(answer), _CLASS_E) and not self.allow_net240:
            self.counters["no answer to class E"] += 1
            return
        answer[8] = _DEFAULT_TTL
        struct.pack_into("!HH", answer, 4, self.ident() & 0xFFFF, 0)
        self._answer(answer)

    def _answer(self, answer: bytearray) -> None:
        try:
            self._output(_Frame(answer))
        except OSError as error:
            self.counters[f"answer: {error.strerror}"] += 1

    # Forwarding: ip_tryforward.

    def _forward(self, frame: _Frame, received: Interface) -> None:
        data = frame.data
        if packet.header_length(data) > 20 and in_network(packet.destination(data), _CLASS_E) and not self.allow_net240:
            self.counters["cannot forward"] += 1
            return
        if data[8] <= 1:
            self._send_error(data, received, _TIME_EXCEEDED, 0)
            return
        data[8] -= 1
        set_header_sum(data)
        going = self._route(packet.destination(data))
        if going is None:
            self._send_error(data, received, _UNREACHABLE, _UNREACHABLE_HOST)
            return
        frame.resume = None
        if not self._filter_quietly(frame, Direction.OUT, going.name):
            return
        going = self._route(packet.destination(frame.data)) or going
        if len(frame.data) > going.mtu and _dont_fragment(frame.data):
            self._send_error(frame.data, received, _UNREACHABLE, _NEED_FRAGMENT, going.mtu)
            return
        self._transmit(frame, going)

    def _route(self, destination: Address) -> Interface | None:
        if destination in self._own():
            return self.interfaces[LOOPBACK]
        direct = [(one.network, one.name) for one in self.interfaces.values() if one.address is not None]
        found = [
            (mask, name)
            for (number, mask), name in (*direct, *self.routes)
            if in_network(destination, (number, mask)) and self.interfaces[name].is_up
        ]
        return self.interfaces[max(found)[1]] if found else None

    # ip_output.

    def _output(self, frame: _Frame) -> None:
        destination = packet.destination(frame.data)
        going = self._route(destination)
        if going is None:
            raise _error(errno.EHOSTUNREACH)
        if not self._filter(frame, Direction.OUT, going.name):
            return
        if packet.destination(frame.data) != destination:
            # Changed by `ipfw nat`: routed again, past the firewall (FREEBSD.md 2.2).
            going = self._route(packet.destination(frame.data))
            if going is None:
                raise _error(errno.EHOSTUNREACH)
        if in_network(packet.source(frame.data), _LOOPBACK_NET) and going.name != LOOPBACK:
            raise _error(errno.EADDRNOTAVAIL)
        if len(frame.data) > going.mtu and _dont_fragment(frame.data):
            raise _error(errno.EMSGSIZE)
        self._transmit(frame, going)

    def _transmit(self, frame: _Frame, going: Interface) -> None:
        if going.name == LOOPBACK:
            # lo0 claims to do all checksums, and none is ever computed (FREEBSD.md 1.6).
            set_header_sum(frame.data, 0)
            self._queue.append(_Frame(frame.data, going, is_verified=True))
            return
        _complete(frame)
        for piece in split(frame.data, going.mtu):
            self.on_wire(going.name, bytes(piece))

    # The firewall.

    def _filter_quietly(self, frame: _Frame, direction: Direction, sent: str) -> bool:
        """As `_filter`, for a packet whose sender is not waiting: it is denied in silence."""
        try:
            return self._filter(frame, direction, sent)
        except PermissionError:
            self.counters["denied"] += 1
            return False

    def _filter(self, frame: _Frame, direction: Direction, sent: str) -> bool:
        """Whether the packet goes on; False if it was taken away (diverted, waiting for fragments). EACCES: denied."""
        rules = self.firewall.rules
        slot, diverted = 0, None
        if frame.resume is not None:
            slot, diverted = rules.first_from(frame.resume[0] + 1), frame.resume[1]
            frame.resume = None
        received = frame.received.name if frame.received is not None else ""
        passage = Passage(frame.data, direction, received, sent, slot, diverted)
        while True:
            step = walk(rules, passage, self._surroundings())
            goes_on = self._ACTIONS[step.action](self, frame, passage, step)
            if goes_on is not None:
                return goes_on
            passage = replace(passage, data=frame.data, slot=step.slot + 1)
            if step.action == "tee":
                passage.diverted = None

    def _surroundings(self) -> Surroundings:
        addresses = {one.name: one.address for one in self.interfaces.values() if one.address is not None}
        return Surroundings(self._own(), addresses, self.firewall.tables)

    def _allow(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        return True

    def _deny(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        raise _error(errno.EACCES)

    def _divert(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        if is_fragment(frame.data):
            whole = self._reassembly.add(frame.data, self.now())
            if whole is None:
                return False
            frame.data = whole
        self._hand_over(frame, passage, step)
        return False

    def _tee(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        copy = replace(frame, data=bytearray(frame.data))
        self._hand_over(copy, passage, step)
        return None

    def _hand_over(self, frame: _Frame, passage: Passage, step: Step) -> None:
        """divert_packet: checksums of our own output are completed, ip_sum is not (FREEBSD.md 1.6)."""
        _complete(frame)
        address = bytes(4)
        if passage.direction is Direction.IN and frame.received is not None:
            address = frame.received.address or address
        name = frame.received.name if frame.received is not None else ""
        self.sockets.deliver(step.argument, bytes(frame.data), DivertAddress(step.rule.number, address, name))

    def _reass(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        # ip_fw2.c counts a `reass` rule twice.
        step.rule.count(len(frame.data))
        if not is_fragment(frame.data):
            return None
        whole = self._reassembly.add(frame.data, self.now())
        if whole is None:
            return False
        frame.data = whole
        return None

    def _nat(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        instance = self.firewall.nats.get(step.argument)
        if instance is None:
            raise _error(errno.EACCES)
        _complete(frame)
        if len(frame.data) > self._largest_for_nat:
            raise _error(errno.EACCES)
        if not instance.translator(self.draw).passes(frame.data, passage.direction, self.now()):
            raise _error(errno.EACCES)
        return True if self.firewall.one_pass else None

    def _unreach(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        self._send_error(frame.data, frame.received, _UNREACHABLE, step.argument)
        raise _error(errno.EACCES)

    def _reset(self, frame: _Frame, passage: Passage, step: Step) -> bool | None:
        if packet.protocol(frame.data) == Protocol.TCP:
            raise NotModelledError("the segment that `reset` sends")
        raise _error(errno.EACCES)

    _ACTIONS: ClassVar[dict[str, Callable[[Host, _Frame, Passage, Step], bool | None]]] = {
        "allow": _allow,
        "deny": _deny,
        "divert": _divert,
        "tee": _tee,
        "reass": _reass,
        "nat": _nat,
        "unreach": _unreach,
        "reset": _reset,
    }


def _dont_fragment(data: bytearray) -> bool:
    return bool(int.from_bytes(data[6:8], "big") & _DONT_FRAGMENT)


def _sum_at(data: bytes | bytearray) -> int | None:
    """Where the TCP or UDP checksum lies; None without one, as in a later fragment."""
    offset = _SUM_AT.get(data[9])
    if offset is None or packet.is_later_fragment(data):
        return None
    at = packet.header_length(data) + offset
    return at if at + 2 <= len(data) else None


def pseudo_sum(data: bytes | bytearray) -> int:
    """The sum of the pseudo-header, not complemented: what the field holds while the checksum is delayed."""
    size = len(data) - packet.header_length(data)
    return ones_sum(bytes(data[12:20]) + struct.pack("!HH", data[9], size))


def _complete(frame: _Frame) -> None:
    """in_delayed_cksum."""
    at = _sum_at(frame.data)
    if frame.delayed and at is not None:
        value = checksum(frame.data[packet.header_length(frame.data) :])
        struct.pack_into("!H", frame.data, at, value or 0xFFFF)
    frame.delayed = False


def _is_transport_sound(data: bytes | bytearray) -> bool:
    start = packet.header_length(data)
    if packet.protocol(data) == Protocol.ICMP:
        return len(data) >= start + 8 and ones_sum(data[start:]) == 0xFFFF
    at = _sum_at(data)
    if at is None:
        return packet.protocol(data) not in _SUM_AT
    if packet.protocol(data) == Protocol.UDP and not any(data[at : at + 2]):
        return True
    size = len(data) - start
    return ones_sum(bytes(data[12:20]) + struct.pack("!HH", data[9], size) + bytes(data[start:])) == 0xFFFF
