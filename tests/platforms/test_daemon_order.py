"""A rule whose divert port nobody reads loses every packet: rules come after the ports, and go before them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.divert import Divert
from natf_bsd.divert.memory import MemoryBackend
from natf_bsd.en import daemon as en_daemon
from natf_bsd.errors import NatfError
from natf_bsd.firewall.command import Command
from natf_bsd.firewall.plan import Plan
from natf_bsd.natd_bridge.pseudo import LIBALIAS_STYLE
from natf_bsd.ops import runtime
from natf_bsd.ops.interfaces import Interface
from natf_bsd.platforms import EnPorts, RouterPorts, Way
from natf_bsd.router import daemon as router_daemon
from natf_bsd.types import parse_address

OUTER = Interface("em0", parse_address("203.0.113.1"))
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Side:
    """An external node or a router whose ports and rules write down in `log` when they come and go."""

    interface = OUTER
    inbound_exact = heeds_unreachable = False
    proof = (OUTER.address, OUTER.address)
    hint = "there is none"

    def __init__(self, role: str, log: Path) -> None:
        self._role, self._log = role, log
        log.touch()

    def open(self, stack: ExitStack) -> EnPorts | RouterPorts:
        self._note("ports open")
        stack.callback(self._note, "ports closed")
        first, second, third, fourth = (self._port(stack) for _ in range(4))
        if self._role == "en":
            return EnPorts((first,), Way(second, third, Mock()), Mock(), fourth)  # type: ignore[arg-type]
        bridge = Mock(style=LIBALIAS_STYLE)
        bridge.fileno.return_value = bridge.next_deadline.return_value = None
        bridge.captured.return_value = []
        return RouterPorts(first, Mock(), bridge)

    def plan(self, interface: Interface) -> Plan:
        """Its look fails, which ends the daemon right after the set-up."""
        return Plan(self._role, [], [self._command("rules set")], [], [self._command("rules removed")], ("false",))

    def keep(self, routers: object) -> None:
        return

    def forget_rewritten(self, routers: object) -> None:
        return

    def _port(self, stack: ExitStack) -> Divert:
        return stack.enter_context(Divert(1, backend=MemoryBackend()))

    def _command(self, text: str) -> Command:
        return Command(("sh", "-c", f"echo {text} >> {self._log}"))

    def _note(self, text: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{text}\n")


@pytest.fixture
def signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_en(folder: Path) -> None:
    config = EnConfig(("home.example.net",), run_dir=folder / "run", state_dir=folder / "state")
    en_daemon.EnDaemon(config).run()


def run_router(folder: Path) -> None:
    act = folder / "natf.act"
    act.write_text("alice 192.168.0.2 allow\n")
    router_daemon.RouterDaemon(RouterConfig(run_dir=folder / "run", act=act)).run()


@pytest.mark.parametrize(("role", "run"), [("en", run_en), ("router", run_router)])
def test_rules_are_in_force_only_while_their_ports_are_read(
    role: str, run: Callable[[Path], None], tmp_path: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side(role, tmp_path / "log")
    platform = SimpleNamespace(settings=Mock(), external_node=lambda config: side, router=lambda config: side)
    for daemon in (en_daemon, router_daemon):
        monkeypatch.setattr(daemon, "this_platform", lambda: platform)
    monkeypatch.setattr(runtime, "need_root", lambda what: None)
    with pytest.raises(NatfError):
        run(tmp_path)
    assert (tmp_path / "log").read_text().splitlines() == ["ports open", "rules set", "rules removed", "ports closed"]
