"""The whole story of figure 1 on this machine: real kernels, stock programs, each step with its time, and nothing
left behind."""

from __future__ import annotations

from collections.abc import Callable

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.story import Story, client
from natf_bsd.ops import render

_INSTANCE = "demo"
_HOPS = (("en", "eth0"), ("router", "wan"), ("router", "lan"), ("alice", "eth0"))


class Demo(Story):
    """See Story."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._figure = Figure1Lab(_INSTANCE)
        about = (
            "NAT-f on one machine: an external node, a router with an ordinary NAT, and alice, bob and eve behind it."
        )
        super().__init__(self._figure, say, about)

    def _tell(self) -> None:
        self._step("the lab is up", True, self._lab.platform.description())
        self._unreachable("without NAT-f alice cannot be reached", "en", "http://alice.home.example.net/")
        self._figure.start_router()
        self._step("natf router runs beside the router's own NAT", True)
        self._figure.start_en()
        self._step("natf en runs on the external node", True)
        self._names()
        self._pages(
            (f"a page from {name}, both at the same time, with {client()}", "en", f"http://{name}.home.example.net/")
            for name in ("alice", "bob")
        )
        self._datagrams("UDP datagrams to bob and back", "en", "bob.home.example.net")
        self._file("a 20 MB file from alice, the same bytes", "en", "alice.home.example.net")
        self._refusal()
        self._fallback()
        self._one_packet("en", "alice.home.example.net", _HOPS, ("router", "wan"))
        self._breakdown("en", "router")
        router, en = self._status("router", "router"), self._status("en", "en")
        self._tables((render.act_table(router), render.names_table(en), render.flows_table(en)))

    def _names(self) -> None:
        seen = [self._resolve("en", f"{host}.home.example.net") for host in ("alice", "bob")]
        good = len(set(seen)) == 2 and all(address.startswith("240.") for address in seen)
        self._step("alice and bob resolve to virtual addresses of their own", good, " and ".join(seen))
        elsewhere = self._resolve("en", "www.elsewhere.example.net")
        self._step("a name of somebody else resolves as ever", elsewhere == "203.0.113.80", elsewhere)

    def _refusal(self) -> None:
        for host, what in (
            ("eve", "eve, whom the table denies, is refused at once"),
            ("nobody", "so is a host the table does not know"),
        ):
            self._refused(what, "en", f"http://{host}.home.example.net/")

    def _fallback(self) -> None:
        done = self._fetch("en", "http://www.plain.example.net/")
        self._step(
            "a plain host without NAT-f is reached by the fallback", "plain" in done.stdout, done.stdout or done.stderr
        )
