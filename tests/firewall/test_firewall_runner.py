"""Running command lists: what is skipped, what stops, what goes on; and settings that come back after any crash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.firewall import linux, runner
from natf_bsd.firewall.command import Command, Sysctl
from natf_bsd.firewall.runner import ProcSys, SysctlJournal
from natf_bsd.ops import process
from natf_bsd.ops.process import Completed, run_process
from natf_bsd.types import parse_address


class FakeRun:
    """Remembers what was run; a command ends as `outcomes` says, else well."""

    def __init__(self, outcomes: Mapping[tuple[str, ...], Completed] | None = None) -> None:
        self.seen: list[tuple[str, ...]] = []
        self._outcomes = outcomes or {}

    def __call__(self, argv: tuple[str, ...], stdin: str | None) -> Completed:
        self.seen.append(argv)
        return self._outcomes.get(argv, Completed(0, "", ""))


def failed(status: int, stderr: str = "no") -> Completed:
    return Completed(status, "", stderr)


def test_a_command_whose_work_is_done_already_is_skipped() -> None:
    jump = Command(("add",), unless=("look",))
    there, missing = FakeRun(), FakeRun({("look",): failed(1)})
    runner.apply([jump], there)
    runner.apply([jump], missing)
    assert there.seen == [("look",)]
    assert missing.seen == [("look",), ("add",)]


def test_set_up_stops_at_the_first_failure_and_tells_it() -> None:
    run = FakeRun({("b",): failed(3, "out of order\n")})
    with pytest.raises(CommandFailed, match=r"b: exit status 3: out of order$") as raised:
        runner.apply([Command(("a",)), Command(("b",)), Command(("c",))], run)
    assert (raised.value.argv, raised.value.status) == (("b",), 3)
    assert run.seen == [("a",), ("b",)]


def test_undo_goes_on_after_failures_and_returns_them() -> None:
    run = FakeRun({("a",): failed(4), ("b",): failed(1)})
    failures = runner.undo([Command(("a",), may_fail=(1, 2)), Command(("b",), may_fail=(1, 2)), Command(("c",))], run)
    assert [(failure.argv, failure.status) for failure in failures] == [(("a",), 4)]
    assert run.seen == [("a",), ("b",), ("c",)]


def test_a_missing_program_is_status_127_and_names_itself() -> None:
    with pytest.raises(CommandFailed, match="not found"):
        runner.apply([Command(("natf-no-such-program",))])


def test_a_real_process_gets_its_input_and_gives_its_output() -> None:
    assert run_process(("cat",), "text") == Completed(0, "text", "")
    assert run_process(("sh", "-c", "echo $LC_ALL >&2; exit 7"), None) == Completed(7, "", "C\n")


def test_a_process_that_does_not_end_is_a_failed_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TIME_LIMIT", 0.05)
    with pytest.raises(CommandFailed, match=r"^sleep 60: exit status 124: did not end within 0\.05 s$"):
        runner.apply([Command(("sleep", "60"), may_fail=(1, 2))])


ROUTER = linux.RouterFirewall(
    "wan", parse_address("203.0.113.1"), control_queue=1, mark=1, mask=1, tun="natf0", table=78
)
FORWARDING = ("cat", "/proc/sys/net/ipv4/ip_forward")
RULES = ("iptables-restore", "-w", "10", "--noflush", "--test")
PRIORITY = ("ip", "-4", "rule", "show", "priority", "78")
TABLE = ("ip", "-4", "route", "show", "table", "78")
GOOD = {FORWARDING: Completed(0, "1\n", ""), TABLE: failed(2, "Error: ipv4: FIB table does not exist.\n")}


@pytest.mark.parametrize(
    ("argv", "outcome", "expected"),
    [
        (FORWARDING, Completed(0, "0\n", ""), "net.ipv4.ip_forward=1"),
        (RULES, failed(127, "not found"), "Debian package iptables"),
        (RULES, failed(2, "unknown option --queue-bypass\n"), "unknown option --queue-bypass"),
        (PRIORITY, Completed(0, "78:\tfrom all lookup vpn\n", ""), "priority 78 is taken: 78:\tfrom all lookup vpn"),
        (PRIORITY, failed(127), "iproute2"),
        (TABLE, Completed(0, "default via 192.0.2.1 dev eth0\n", ""), "table 78 is in use: default via 192.0.2.1"),
    ],
)
def test_what_stands_in_the_way_of_a_router_is_said(argv: tuple[str, ...], outcome: Completed, expected: str) -> None:
    (problem,) = runner.check(linux.probe_router(ROUTER), FakeRun(GOOD | {argv: outcome}))
    assert expected in problem


@pytest.mark.parametrize(
    "left",
    [
        {},
        {PRIORITY: Completed(0, "78:\tfrom all iif natf0 [detached] lookup 78 proto 78\n", "")},
        {TABLE: Completed(0, "default dev natf0 proto 78 scope link\n", "")},
    ],
)
def test_what_a_crash_of_our_own_left_stands_in_nobodys_way(left: dict[tuple[str, ...], Completed]) -> None:
    assert runner.check(linux.probe_router(ROUTER), FakeRun(GOOD | left)) == []


SAVED = """\
*raw
:NATF-RT-PREROUTING - [0:0]
-A PREROUTING -m comment --comment natf -j NATF-RT-PREROUTING
-A NATF-RT-PREROUTING -i wan -j NFQUEUE --queue-num 8701 --queue-bypass
-A NATF-EN-INPUT -j NFQUEUE --queue-num 8712
-A SITE -j NFQUEUE --queue-num 9
COMMIT
# queues
"""


def in_use(role: str, own: set[int], queues: str) -> list[str]:
    check = linux.not_in_use(role, own)
    return runner.check([check], FakeRun({check.command.argv: Completed(0, SAVED + queues, "")}))


def test_rules_whose_queue_somebody_reads_have_a_daemon_that_lives() -> None:
    reader = " 8701   4711     0 2 65535     0     0        0  1\n"
    assert in_use("router", set(), reader) == [
        "natf router is running with another run_dir (process 4711 holds NFQUEUE 8701); stop it first"
    ]
    assert in_use("router", {8702}, reader) != []
    unnamed = " 8712 4294963200     0 2 65535     0     0        0  1\n"
    assert in_use("en", set(), unnamed) == [
        "natf en is running with another run_dir (a process holds NFQUEUE 8712); stop it first"
    ]


@pytest.mark.parametrize(
    ("role", "own", "queues"),
    [
        ("router", set(), ""),  # a crash left the rules
        ("router", {8701}, " 8701   4711     0 2 65535     0     0        0  1\n"),  # we read it ourselves
        ("en", set(), " 8701   4711     0 2 65535     0     0        0  1\n"),  # the other role's
        ("router", set(), "    9   4711     0 2 65535     0     0        0  1\n"),  # the site's
    ],
)
def test_a_queue_of_nobody_of_ours_or_of_somebody_else_is_no_daemon(role: str, own: set[int], queues: str) -> None:
    assert in_use(role, own, queues) == []


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A /proc/sys of two settings."""
    root = tmp_path / "sys"
    (root / "net").mkdir(parents=True)
    (root / "net/liberal").write_text("0\n")
    (root / "net/filter").write_text("1\n")
    return root


SETTINGS = [Sysctl("net/liberal", "1"), Sysctl("net/filter", "2")]


def values(root: Path) -> list[str]:
    return [(root / setting.name).read_text().strip() for setting in SETTINGS]


def test_settings_come_back_as_they_were_and_the_record_goes(tmp_path: Path, kernel: Path) -> None:
    journal = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    journal.apply(SETTINGS)
    assert values(kernel) == ["1", "2"]
    assert journal.restore() == []
    assert values(kernel) == ["0", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["sys"]


def test_after_a_crash_the_value_from_before_the_first_start_comes_back(tmp_path: Path, kernel: Path) -> None:
    SysctlJournal(tmp_path / "undo", ProcSys(kernel)).apply(SETTINGS)
    again = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    again.apply(SETTINGS)
    (kernel / "net/filter").write_text("0\n")  # somebody else changed it meanwhile
    again.apply(SETTINGS)
    assert again.restore() == []
    assert values(kernel) == ["0", "1"]


def test_a_setting_that_is_right_already_is_left_alone(tmp_path: Path, kernel: Path) -> None:
    journal = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    journal.apply([Sysctl("net/filter", "1")])
    assert not (tmp_path / "undo").exists()


def test_a_crash_between_record_and_setting_restores_the_same_value(tmp_path: Path, kernel: Path) -> None:
    (tmp_path / "undo").write_text('{"net/liberal": "0"}')
    journal = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    assert journal.restore() == []
    assert values(kernel) == ["0", "1"]


def test_a_missing_setting_is_an_error_unless_it_is_optional(tmp_path: Path, kernel: Path) -> None:
    journal = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    journal.apply([Sysctl("net/ipv6", "1", optional=True)])
    with pytest.raises(NatfError, match="net/ipv6: this kernel does not have the setting"):
        journal.apply([Sysctl("net/ipv6", "1")])


def test_a_setting_that_went_with_its_device_needs_no_restoring(tmp_path: Path, kernel: Path) -> None:
    journal = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    journal.apply(SETTINGS)
    (kernel / "net/filter").unlink()
    (kernel / "net").rename(kernel / "gone")
    assert journal.restore() == []
    assert not (tmp_path / "undo").exists()


def test_what_could_not_be_restored_is_told_and_stays_on_record(tmp_path: Path, kernel: Path) -> None:
    journal = SysctlJournal(tmp_path / "undo", ProcSys(kernel))
    journal.apply(SETTINGS)
    (kernel / "net/filter").unlink()
    (kernel / "net/filter").mkdir()
    (failure,) = journal.restore()
    assert failure.startswith("net/filter: cannot restore 1: ")
    (kernel / "net/filter").rmdir()
    (kernel / "net/filter").write_text("2")
    assert journal.restore() == []
    assert values(kernel) == ["0", "1"]


def test_a_disk_that_takes_no_record_leaves_the_settings_alone_and_is_told(tmp_path: Path, kernel: Path) -> None:
    (tmp_path / "undo.new").mkdir()
    with pytest.raises(NatfError, match="undo: old kernel settings cannot be written down: "):
        SysctlJournal(tmp_path / "undo", ProcSys(kernel)).apply(SETTINGS)
    assert values(kernel) == ["0", "1"]


def test_a_record_that_is_none_is_not_overwritten(tmp_path: Path, kernel: Path) -> None:
    (tmp_path / "undo").write_text("not a record")
    with pytest.raises(NatfError, match="undo: not a record of kernel settings"):
        SysctlJournal(tmp_path / "undo", ProcSys(kernel)).apply(SETTINGS)
    assert values(kernel) == ["0", "1"]
