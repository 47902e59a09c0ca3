"""The story of figure 3 on this machine: hosts of two homes with the same private addresses call each other, with
nothing of ours on any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from natf_bsd.lab.capture import CapturedPacket
from natf_bsd.lab.figure3 import Figure3Lab
from natf_bsd.lab.story import Story, client
from natf_bsd.ops import render
from natf_bsd.wire import packet

_INSTANCE = "demo3"
_HOPS = (
    ("alice", "eth0"),
    ("router", "lan"),
    ("router", "wan"),
    ("router2", "wan"),
    ("router2", "lan"),
    ("carol", "eth0"),
)
_ALICE, _BOB = "alice.home.example.net", "bob.home.example.net"
_CAROL, _DAVE = "carol.home2.example.net", "dave.home2.example.net"
_VIRTUAL = 240


class Demo3(Story):
    """See Story."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._figure = Figure3Lab(_INSTANCE)
        about = (
            "NAT-f from private to private: alice and bob behind one router, carol, dave and eve behind another, in "
            "networks with the same addresses."
        )
        super().__init__(self._figure, say, about)

    def _tell(self) -> None:
        self._step("the lab is up", True, self._lab.platform.description())
        self._same_addresses()
        self._unreachable("without NAT-f alice cannot reach carol", "alice", f"http://{_CAROL}/")
        self._unreachable("nor carol alice", "carol", f"http://{_ALICE}/")
        self._figure.start()
        self._step(
            "natf router and natf en run on both routers, beside their own NAT, and nothing on inside hosts", True
        )
        self._names()
        self._calls()
        for caller, name in (("alice", _CAROL), ("carol", _BOB)):
            self._datagrams(f"UDP datagrams from {caller} and back", caller, name)
        self._file("a 20 MB file from carol to alice, the same bytes", "alice", _CAROL)
        self._refused(
            "eve, whom her router's table denies, is refused at once", "alice", "http://eve.home2.example.net/"
        )
        self._refused("so is a host the table does not know", "bob", "http://nobody.home2.example.net/")
        outside = self._one_packet("alice", _CAROL, _HOPS, ("router", "wan"))
        self._no_virtual_address(outside)
        self._breakdown("router", "router2")
        router, en = self._status("router2", "router"), self._status("router", "en")
        self._tables((render.act_table(router), render.names_table(en), render.flows_table(en)))

    def _same_addresses(self) -> None:
        alice, carol = (self._lab.topology.host(name).address for name in ("alice", "carol"))
        self._step("alice and carol have the same address, each in her own network", alice == carol, alice)

    def _names(self) -> None:
        seen = [self._resolve("alice", name) for name in (_CAROL, _DAVE)]
        good = len(set(seen)) == 2 and all(address.startswith(f"{_VIRTUAL}.") for address in seen)
        self._step("to alice carol and dave have virtual addresses of their own", good, " and ".join(seen))
        virtual = self._resolve("carol", _ALICE)
        self._step("and so has alice to carol", virtual.startswith(f"{_VIRTUAL}."), virtual)

    def _calls(self) -> None:
        calls = (("alice", _CAROL), ("carol", _ALICE), ("bob", _DAVE), ("dave", _BOB))
        self._pages(
            (
                f"{caller} calls {name.partition('.')[0]}, all four at the same time, with {client()}",
                caller,
                f"http://{name}/",
            )
            for caller, name in calls
        )

    def _no_virtual_address(self, packets: Iterable[CapturedPacket]) -> None:
        ends = {end(p.data)[0] for p in packets for end in (packet.source, packet.destination)}
        self._step("no virtual address is ever on the wire", bool(ends) and _VIRTUAL not in ends)
