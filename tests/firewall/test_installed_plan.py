"""A plan in force: what is undone, whichever way it ends."""

import logging
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.divert.inside import FromInside
from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.firewall import plan, runner
from natf_bsd.firewall.command import Check, Command
from natf_bsd.firewall.installed import Installed, sysctl_journal
from natf_bsd.firewall.runner import ProcSys
from natf_bsd.ops import interfaces
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.process import Completed, run_process
from natf_bsd.platforms import linux as platform_linux
from natf_bsd.platforms.linux import Linux, LinuxEn, LinuxRouter

WAN = Interface("wan", bytes((203, 0, 113, 1)))


@pytest.fixture
def log(monkeypatch):
    """The commands instead of their running; "fail" and "interrupt" do as they are called."""
    ran = []

    def run(argv, stdin):
        ran.append(argv[0])
        if argv[0] == "interrupt":
            raise KeyboardInterrupt
        return Completed(int(argv[0].startswith("fail")), "", "refused")

    for name in ("apply", "undo", "check"):
        real = getattr(runner, name)
        monkeypatch.setattr(runner, name, lambda items, real=real: real(items, run))
    return ran


def commands(*names):
    return [Command((name,)) for name in names]


def a_plan(*set_up, checks=()):
    return plan.Plan("en", list(checks), commands(*set_up), [], commands("undo1", "undo2"))


def test_set_up_on_entry_and_undone_on_exit(log, tmp_path):
    with Installed(a_plan("one", "two"), tmp_path, ProcSys(tmp_path)):
        assert log == ["one", "two"]
    assert log == ["one", "two", "undo1", "undo2"]


def test_what_stands_in_the_way_is_all_told_and_nothing_is_done(log, tmp_path):
    checks = [Check(command, lambda status, output: output or None) for command in commands("fail1", "ok", "fail2")]
    with pytest.raises(NatfError) as caught, Installed(a_plan("one", checks=checks), tmp_path, ProcSys(tmp_path)):
        pytest.fail("not installed")
    assert str(caught.value) == "refused; refused"
    assert log == ["fail1", "ok", "fail2"]


@pytest.mark.parametrize(("step", "error"), [("fail", CommandFailed), ("interrupt", KeyboardInterrupt)])
def test_what_came_half_way_is_undone_at_once(log, tmp_path, step, error):
    with pytest.raises(error), Installed(a_plan("one", step, "two"), tmp_path, ProcSys(tmp_path)):
        pytest.fail("not installed")
    assert log == ["one", step, "undo1", "undo2"]


def test_a_daemon_that_fails_leaves_nothing_behind(log, tmp_path):
    with pytest.raises(ZeroDivisionError), Installed(a_plan("one"), tmp_path, ProcSys(tmp_path)):
        raise ZeroDivisionError
    assert log == ["one", "undo1", "undo2"]


def test_undo_goes_on_after_a_failure_and_says_so(log, tmp_path, caplog):
    broken = plan.Plan("en", [], [], [], commands("fail", "undo2"))
    sysctl_journal(tmp_path, "en", ProcSys(tmp_path))._path.write_text("not json")
    with caplog.at_level(logging.ERROR), Installed(broken, tmp_path, ProcSys(tmp_path)):
        pass
    assert log == ["fail", "undo2"]
    assert [record.getMessage() for record in caplog.records] == [
        "not undone: fail: exit status 1: refused",
        f"not undone: {tmp_path}/en.sysctl: not a record of kernel settings; restore by hand and delete it",
    ]


def test_the_plan_of_each_role_follows_its_configuration():
    en = LinuxEn(EnConfig(("a.b",), virtual_prefix=241, mark=0x4F << 24), WAN).plan(WAN)
    assert en.role == "en"
    table, rules, *_ = (command.stdin for command in en.set_up)
    assert "ip daddr != 241.0.0.0/8 accept" in table
    assert "meta mark and 0xff000000 == 0x4f000000 ct mark set ct mark and 0xffffff or 0x4f000000" in table
    assert "-d 241.0.0.0/8" in rules
    assert "0x4f000000/0xff000000" in rules
    router = LinuxRouter(RouterConfig(tun="hairpin", route_table=99), WAN).plan(WAN)
    assert router.role == "router"
    assert "--to-source 203.0.113.1" in router.set_up[0].stdin
    assert "net/ipv4/conf/hairpin/rp_filter" in [sysctl.name for sysctl in router.sysctls]


def test_everything_either_role_sets_up_is_in_what_cleanup_undoes():
    config = RouterConfig(route_table=99)
    en = EnConfig(("a.b",))
    for side in (LinuxEn(en, WAN), LinuxEn(en, WAN, gateway=True), LinuxRouter(config, WAN)):
        one = side.plan(WAN)
        assert one.undo == Linux().remains(one.role, Config(Path("natf.toml"), router=config)).undo


@pytest.mark.parametrize(
    ("setting", "forwards", "serves"),
    [(None, "1", True), (None, "0", False), (None, None, False), (True, "0", True), (False, "1", False)],
)
def test_inside_hosts_are_served_where_the_host_forwards_or_as_configured(
    tmp_path, monkeypatch, setting, forwards, serves
):
    if forwards is not None:
        (tmp_path / "net/ipv4").mkdir(parents=True)
        (tmp_path / "net/ipv4/ip_forward").write_text(f"{forwards}\n")
    monkeypatch.setattr(interfaces, "outer_interface", lambda name: WAN)
    system = Linux()
    system.settings = ProcSys(tmp_path)
    config = EnConfig(("a.b",), gateway=setting, tun="inside0", inside_queue=99, mark=255 << 24)
    plan = system.external_node(config).plan(WAN)
    text = "".join(step.shell() for step in plan.set_up)
    assert ("-o inside0 -j SNAT --to-source 203.0.113.1" in text) is serves
    assert ("--mark 0x1000000/0xff000000 -j NFQUEUE --queue-num 99" in text) is serves
    assert ("net/ipv4/conf/inside0/rp_filter" in [sysctl.name for sysctl in plan.sysctls]) is serves


def test_what_the_nat_makes_of_inside_hosts_follows_the_outer_address():
    side = LinuxEn(EnConfig(("a.b",)), WAN, gateway=True)
    side._from_inside = way = FromInside(None, "natf1", 240, None, WAN.address)
    moved = Interface(WAN.name, bytes((203, 0, 113, 9)))
    side.plan(moved)
    assert way.source == moved.address


def test_a_host_without_tun_devices_is_told_what_it_can_do_without(monkeypatch):
    def refuse(name, loss):
        raise NatfError(f"/dev/net/tun, interface {name}: the kernel has no TUN device: load the module tun")

    monkeypatch.setattr(platform_linux, "TunDevice", refuse)
    side = LinuxEn(EnConfig(("a.b",)), WAN, gateway=True)
    with ExitStack() as stack, pytest.raises(NatfError, match=r"load the module tun; gateway = false in \[en\] does"):
        side._open_inside(stack)


def test_a_daemon_that_is_restarted_leaves_its_stand_in_and_nothing_undone(log, tmp_path):
    one = plan.Plan("en", [], commands("one"), [], commands("undo"), stay=commands("stand in"))
    with Installed(one, tmp_path, ProcSys(tmp_path)) as installed:
        installed.stay()
    assert log == ["one", "stand in"]


def test_a_stand_in_that_cannot_be_is_no_reason_to_leave_rules_behind(log, tmp_path):
    one = plan.Plan("en", [], commands("one"), [], commands("undo"), stay=commands("fail"))
    with pytest.raises(CommandFailed), Installed(one, tmp_path, ProcSys(tmp_path)) as installed:
        installed.stay()
    assert log == ["one", "fail", "undo"]


def test_a_command_runs_beyond_the_reach_of_the_terminal():
    """A second Ctrl-C must not cut off the undoing."""
    done = run_process((sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"), None)
    assert (done.status, done.stdout) == (0, "True\n")


def test_a_program_that_is_not_there_has_status_127():
    assert run_process(("no-such-program-natf",), None) == Completed(127, "", "no-such-program-natf: not found")


def test_a_failure_of_many_lines_is_told_in_one():
    error = CommandFailed(("iptables-restore", "-w"), 2, "Bad argument\nError at line: 3\n\n")
    assert str(error) == "iptables-restore -w: exit status 2: Bad argument; Error at line: 3"
    assert str(CommandFailed(("true",), 1, " \n")) == "true: exit status 1: no message"


def test_a_program_that_cannot_be_run_does_not_end_the_undoing(tmp_path, monkeypatch):
    (tmp_path / "iptables").write_text("")  # half installed: no mode to run it
    monkeypatch.setenv("PATH", str(tmp_path))
    failures = runner.undo(commands("iptables", "second"))
    assert [failure.status for failure in failures] == [126, 127]


def test_output_in_any_encoding_is_read():
    """A comment in somebody's rule, say."""
    done = run_process((sys.executable, "-c", r"import os; os.write(1, b'caf\xe9 -j NATF\n')"), None)
    assert done.stdout == "caf\N{REPLACEMENT CHARACTER} -j NATF\n"


NO_NFT = "nft is not installed (Debian package nftables)"


@pytest.mark.parametrize(
    ("setting", "there", "used"), [(None, True, True), (None, False, False), (True, True, True), (False, True, False)]
)
def test_the_kernel_path_is_used_where_it_is_and_unless_it_is_forbidden(monkeypatch, caplog, setting, there, used):
    monkeypatch.setattr(platform_linux.runner, "check", lambda checks: [] if there else [NO_NFT])
    side = LinuxEn(EnConfig(("a.b",), kernel_path=setting), WAN)
    side._kernel_path = side._kernel_path and side._has_kernel_path()
    shell = "".join(step.shell() for step in side.plan(WAN).set_up)
    assert ("table ip natf_en" in shell) is used
    assert ("-t raw" in shell and "--queue-num 8711" in shell.partition("*raw")[2].partition("COMMIT")[0]) is not used
    assert (NO_NFT in caplog.text) is (setting is None and not there), "said once, aloud"


def test_a_kernel_path_that_is_demanded_and_cannot_be_is_an_error_and_seen_by_check(monkeypatch):
    monkeypatch.setattr(platform_linux.runner, "check", lambda checks: [NO_NFT])
    side = LinuxEn(EnConfig(("a.b",), kernel_path=True), WAN)
    with pytest.raises(NatfError, match=r"kernel_path = true in \[en\]: nft is not installed"):
        side._has_kernel_path()
    demanded = side.plan(WAN).checks[-1]
    assert demanded.judge(127, "sh: 1: nft: not found\n") == NO_NFT
    assert "no NAT by nftables here (status 1)" in str(demanded.judge(1, "Error: Operation not supported"))
    assert demanded.judge(0, "1\n") is None
    assert len(LinuxEn(EnConfig(("a.b",)), WAN).plan(WAN).checks) == len(side.plan(WAN).checks) - 1
