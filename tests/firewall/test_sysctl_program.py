"""FreeBSD's kernel settings by sysctl(8), as 14.2 answered; and kept by the journal as Linux's are."""

from __future__ import annotations

from pathlib import Path

import pytest

from natf_bsd.errors import NatfError
from natf_bsd.firewall.command import Sysctl
from natf_bsd.firewall.runner import SysctlJournal, SysctlProgram
from natf_bsd.ops.process import Completed

TSO = "net.inet.tcp.tso"


class Kernel:
    """sysctl(8) over `values`; those in `fixed` can't be set, as in a jail."""

    def __init__(self) -> None:
        self.values = {TSO: "1", "net.inet.ip.forwarding": "0"}
        self.fixed: set[str] = set()

    def run(self, argv: tuple[str, ...], stdin: str | None) -> Completed:
        assert argv[0] == "sysctl"
        name, _, value = argv[-1].partition("=")
        if name not in self.values:
            return Completed(1, "", f"sysctl: unknown oid '{name}'\n")
        if argv[1] == "-n":
            return Completed(0, f"{self.values[name]}\n", "")
        if name in self.fixed:
            return Completed(1, f"{name}: {self.values[name]}\n", f"sysctl: {name}={value}: Operation not permitted\n")
        before, self.values[name] = self.values[name], value
        return Completed(0, f"{name}: {before} -> {value}\n", "")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_a_setting_is_changed_and_comes_back(kernel: Kernel, tmp_path: Path) -> None:
    journal = SysctlJournal(tmp_path / "en.sysctl", SysctlProgram(kernel.run))
    journal.apply([Sysctl(TSO, "0")])
    assert kernel.values[TSO] == "0"
    assert journal.restore() == []
    assert kernel.values[TSO] == "1"
    assert not (tmp_path / "en.sysctl").exists()


def test_a_missing_setting_is_an_error_unless_it_is_optional(kernel: Kernel, tmp_path: Path) -> None:
    journal = SysctlJournal(tmp_path / "en.sysctl", SysctlProgram(kernel.run))
    journal.apply([Sysctl("net.inet.nosuch", "1", optional=True)])
    with pytest.raises(NatfError, match=r"net\.inet\.nosuch: this kernel does not have the setting"):
        journal.apply([Sysctl("net.inet.nosuch", "1")])


def test_a_refusal_is_told_in_the_kernels_words(kernel: Kernel, tmp_path: Path) -> None:
    kernel.fixed.add(TSO)
    journal = SysctlJournal(tmp_path / "en.sysctl", SysctlProgram(kernel.run))
    with pytest.raises(NatfError, match=r"tso: cannot set 0: sysctl: net\.inet\.tcp\.tso=0: Operation not permitted"):
        journal.apply([Sysctl(TSO, "0")])


def test_what_cannot_be_restored_stays_on_record_and_what_is_gone_does_not(kernel: Kernel, tmp_path: Path) -> None:
    journal = SysctlJournal(tmp_path / "en.sysctl", SysctlProgram(kernel.run))
    journal.apply([Sysctl(TSO, "0"), Sysctl("net.inet.ip.forwarding", "1")])
    kernel.fixed.add(TSO)
    del kernel.values["net.inet.ip.forwarding"]
    (failure,) = journal.restore()
    assert failure.startswith(f"{TSO}: cannot restore 1: ")
    kernel.fixed.clear()
    assert journal.restore() == []
    assert kernel.values[TSO] == "1"


def test_a_record_can_set_nothing_but_network_settings(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "en.sysctl").write_text('{"kern.securelevel": "3", "net.a=1": "2"}')
    failures = SysctlJournal(tmp_path / "en.sysctl", SysctlProgram(kernel.run)).restore()
    assert [text.split(":")[0] for text in failures] == ["kern.securelevel", "net.a=1"]
