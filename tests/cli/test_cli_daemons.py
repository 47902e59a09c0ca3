"""`natf en run`, `natf router run`, `natf cleanup`, `natf key`, and the help: all that needs no kernel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from natf_bsd import __version__, platforms
from natf_bsd.config import Config, RouterConfig
from natf_bsd.datapath.ebpf import vat
from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.firewall import runner
from natf_bsd.firewall.command import Command
from natf_bsd.firewall.linux_host_rules import HostRules
from natf_bsd.keys import load_key
from natf_bsd.ops import interfaces, runtime
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.process import Completed
from natf_bsd.ops.runtime import RoleLock
from natf_bsd.platforms import linux as linux_platform
from natf_bsd.platforms.linux import Linux, LinuxEn

COMMANDS = [
    [],
    ["en"],
    ["en", "run"],
    ["en", "check"],
    ["en", "reload"],
    ["router"],
    ["router", "run"],
    ["router", "check"],
    ["router", "reload"],
    ["act"],
    ["act", "list"],
    ["act", "add"],
    ["act", "allow"],
    ["act", "deny"],
    ["act", "remove"],
    ["status"],
    ["cleanup"],
    ["key"],
    ["lab"],
    ["lab", "up"],
    ["lab", "down"],
    ["lab", "exec"],
    ["lab", "status"],
    ["demo"],
    ["doctor"],
]


@pytest.fixture(autouse=True)
def linux(monkeypatch):
    """Its plans and remains, wherever this runs: those of FreeBSD are tested on its model. A host without rules of its
    own, and without eBPF."""
    monkeypatch.setattr(platforms, "this_platform", Linux)
    monkeypatch.setattr(linux_platform, "_host_rules", lambda config: HostRules(None))
    monkeypatch.setattr(vat, "obstacle", lambda interface, **options: "not here")


@pytest.fixture
def outer(monkeypatch):
    """A fake outer interface; yields which one was asked for."""
    asked = []

    def outer_interface(wanted):
        asked.append(wanted)
        return Interface(wanted or "eth0", bytes((203, 0, 113, 1)))

    monkeypatch.setattr(interfaces, "outer_interface", outer_interface)
    return asked


@pytest.fixture
def nothing_runs(monkeypatch):
    """No process may be started: a command that only looks or refuses needs none."""
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail(f"ran {arguments}"))


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(runtime, "need_root", lambda what: None)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(host, command, option):
    text = host.good(*command, option)
    assert text.startswith(f"Usage: natf {' '.join(command)}".rstrip())
    assert re.search(r"\n\n  [A-Z][^\n]*", text), "a sentence"


def test_the_list_of_commands_is_complete(host):
    text = host.good("--help")
    for command in ("act", "cleanup", "demo", "doctor", "en", "key", "lab", "router", "status"):
        assert re.search(rf"^  {command} +[A-Z]", text, re.MULTILINE)


def test_the_version(host):
    assert host.good("--version") == f"natf, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["frobnicate"], ["act", "frobnicate"], ["--nonsense"], ["act", "add"]])
def test_a_mistake_of_usage_has_status_2(host, arguments):
    assert host.natf(*arguments).exit_code == 2


def test_help_loads_no_daemon():
    """Nor the kernel's interfaces: the commands people type most answer at once."""
    script = (
        "import sys; from click.testing import CliRunner; from natf_bsd.cli import main;"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0;"
        "heavy = ('pyroute2', 'rich', 'dns', 'natf_bsd.en', 'natf_bsd.lab');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_module_runs_as_a_command_with_errors_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "natf_bsd.cli", "--config", str(tmp_path / "none"), "en", "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: {tmp_path}/none: No such file or directory; expected the configuration file (--config names another)\n"
    )


def test_the_configuration_may_be_named_by_the_environment(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "natf_bsd.cli", "status"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NATF_CONFIG": str(tmp_path / "none")},
    )
    assert f"{tmp_path}/none: No such file" in done.stderr


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_dry_run_prints_the_plan_and_changes_nothing(host, outer, nothing_runs, role):
    before = sorted(host.folder.rglob("*"))
    text = host.good(role, "run", "--dry-run")
    set_up, undo = text.removeprefix("# set up\n").split("# undo\n")
    chain = {"en": "NATF-EN-OUTPUT", "router": "NATF-RT-FORWARD"}[role]
    assert f":{chain} - [0:0]" in set_up
    assert f"iptables -w 10 -t filter -X {chain} || true\n" in undo
    assert outer == [None]
    assert sorted(host.folder.rglob("*")) == before


def test_a_dry_run_says_what_the_configuration_says(host, outer, nothing_runs):
    host.configure(
        en="virtual_prefix = 241\nout_queue = 99\nmark = 0x4f",
        router='interface = "wan"\ntun = "hairpin"\nroute_table = 99\ncontrol_queue = 98\nmark = 0x51',
    )
    en, router = host.good("en", "run", "--dry-run"), host.good("router", "run", "--dry-run")
    assert "-d 241.0.0.0/8 -j NFQUEUE --queue-num 99 --queue-bypass" in en
    assert "--mark 0x4f000000/0xff000000" in en
    assert "240.0.0.0" not in en
    assert "-i wan -p icmp" in router
    assert "--queue-num 98" in router
    assert "-o hairpin -p udp -j SNAT --to-source 203.0.113.1:" in router
    assert "ip -4 route replace default dev hairpin table 99" in router
    assert "--mark 0x51000000/0xff000000" in router
    assert router.endswith("# and the kernel settings get the values back that they had\n")
    assert outer == [None, "wan"]


def test_a_dry_run_tells_where_flows_would_be_translated(host, outer, nothing_runs, monkeypatch):
    by_the_nat = host.good("en", "run", "--dry-run")
    assert by_the_nat.endswith("# flows are translated by netfilter's NAT, not at eth0: not here\n")
    assert "chain unknown" not in by_the_nat
    monkeypatch.setattr(vat, "obstacle", lambda interface, **options: None)
    at_interface = host.good("en", "run", "--dry-run")
    assert "# flows are translated at eth0: tc filters natf_out and natf_in of clsact, removed at exit" in at_interface
    assert "chain unknown" in at_interface
    monkeypatch.setattr(linux_platform, "_host_rules", lambda config: HostRules("a rule of its own"))
    assert "NAT, not at eth0: a rule of its own" in host.good("en", "run", "--dry-run")
    host.configure(en="kernel_path = false")
    assert "translated" not in host.good("en", "run", "--dry-run")


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_dry_run_is_text_a_shell_can_read(host, outer, role):
    text = host.good(role, "run", "--dry-run")
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_dry_run_without_an_interface_says_so(host, monkeypatch, role):
    def missing(wanted):
        raise NatfError("no IPv4 default route; name the outer interface (interface = in the configuration)")

    monkeypatch.setattr(interfaces, "outer_interface", missing)
    assert host.refused(role, "run", "--dry-run").startswith("no IPv4 default route; name the outer interface")


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_check_says_all_that_stands_in_the_way(host, outer, root, monkeypatch, role):
    (host.folder / "natf.act").touch()
    checked = []
    monkeypatch.setattr(runner, "check", lambda checks: checked.extend(checks) or ["no rules", "no forwarding"])
    assert host.refused(role, "check") == "no rules; no forwarding"
    assert checked, "the probes of the plan"
    monkeypatch.setattr(runner, "check", lambda checks: [])
    note = "en: flows are translated by netfilter's NAT, not at eth0: not here\n" if role == "en" else ""
    assert host.good(role, "check") == f"{role}: nothing stands in the way\n{note}"


def test_a_check_of_the_router_reads_its_access_control_table(host, outer, root, nothing_runs):
    host.act.write_text("alice 192.168.0.2 maybe\n")
    assert host.refused("router", "check").startswith(f"{host.act}:1: ")


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_reload_without_a_daemon_says_so(host, role):
    assert host.refused(role, "reload").startswith(f"no daemon is running at {host.run_dir}/{role}.sock")


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_daemon_needs_its_section(host, role):
    host.config.write_text("")
    message = host.refused(role, "run")
    assert message.startswith(f"{host.config}:1: no [{role}] section; expected one")


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_daemon_needs_root(host, monkeypatch, role):
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 1000)
    assert host.refused(role, "run") == f"natf {role} run needs root: packets are taken from and given to the kernel"


@pytest.mark.parametrize("role", ["en", "router"])
def test_a_second_daemon_of_a_role_is_told_of_the_first(host, root, nothing_runs, role):
    with RoleLock(host.run_dir, role):
        message = host.refused(role, "run")
    assert message == f"natf {role} already runs here (process {os.getpid()}, {host.run_dir}/{role}.lock)"


def test_cleanup_needs_root(host, monkeypatch):
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 1000)
    assert host.refused("cleanup").startswith("natf cleanup needs root")


@pytest.mark.parametrize("role", ["en", "router"])
def test_cleanup_takes_nothing_from_a_daemon_that_lives(host, root, nothing_runs, role):
    with RoleLock(host.run_dir, role):
        message = host.refused("cleanup")
    assert message == (f"natf {role} is running (process {os.getpid()}); stop it first, it then leaves nothing behind")


def test_cleanup_takes_nothing_from_a_daemon_that_only_just_starts(host, root, nothing_runs):
    with RoleLock(host.run_dir, "en"):
        (host.run_dir / "en.lock").write_text("")
        assert host.refused("cleanup").startswith("natf en is running (just started); stop it first")


def test_cleanup_undoes_both_roles_while_no_daemon_can_start(host, root, monkeypatch):
    host.configure(router="route_table = 99")
    (host.run_dir / "en.sock").touch()
    (host.run_dir / "router.sock").touch()
    ran = []

    def run_process(argv, stdin):
        assert [RoleLock.holder(host.run_dir, role) for role in ("en", "router")] == [os.getpid()] * 2
        if argv in ran:
            return Completed(1, "", "there is no other")
        ran.append(argv)
        return Completed(0, "", "")

    undo = runner.undo
    monkeypatch.setattr(runner, "undo", lambda commands: undo(commands, run_process))
    assert host.good("cleanup") == "rules, routes and kernel settings of natf are removed\n"
    expected = [
        Linux().remains(role, Config(Path("natf.toml"), router=RouterConfig(route_table=99))).undo
        for role in ("en", "router")
    ]
    assert ran == [command.argv for undo in expected for command in undo]
    assert ("ip", "-4", "route", "flush", "table", "99", "proto", "78") in ran
    assert sorted(path.name for path in host.run_dir.iterdir()) == ["en.lock", "router.lock"]


def test_cleanup_of_one_role_leaves_a_living_daemon_of_the_other_alone(host, root, monkeypatch):
    ran = []
    monkeypatch.setattr(runner, "undo", lambda commands: ran.extend(commands) or [])
    with RoleLock(host.run_dir, "router"):
        assert host.good("cleanup", "en") == "rules, routes and kernel settings of natf en are removed\n"
    assert ran == Linux().remains("en", Config(Path("natf.toml"))).undo


def test_cleanup_names_what_it_could_not_remove_and_goes_on(host, root, monkeypatch):
    failure = CommandFailed(("iptables", "-X"), 4, "Another app is holding the lock\n")
    of_the_router = Linux().remains("router", Config(Path("natf.toml"))).undo
    monkeypatch.setattr(runner, "undo", lambda commands: [failure] if commands == of_the_router else [])
    (host.run_dir / "en.sysctl").write_text("not json")
    (host.run_dir / "router.sock").touch()
    result = host.natf("cleanup")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "not removed: iptables -X: exit status 4: Another app is holding the lock",
        f"not removed: {host.run_dir}/en.sysctl: not a record of kernel settings; restore by hand and delete it",
    ]
    assert not (host.run_dir / "router.sock").exists()


def test_a_key_is_made_that_can_be_used(host):
    file = host.folder / "home.key"
    text = host.good("key", str(file))
    key = load_key(file)
    assert text == f"{file}: key {key.ident.hex()}, for en.keys on one side and router.keys on the other\n"
    assert len(key.secret) == 32
    assert key.secret.hex() not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_keys_are_different(host):
    for name in ("a", "b"):
        host.good("key", str(host.folder / name))
    assert load_key(host.folder / "a") != load_key(host.folder / "b")


def test_no_key_is_overwritten(host):
    file = host.folder / "home.key"
    file.write_text("precious")
    assert host.refused("key", str(file)) == f"{file}: exists already; expected a new file, no key is overwritten"
    assert file.read_text() == "precious"


def test_a_place_without_room_for_a_key_is_named(host):
    file = host.folder / "none" / "home.key"
    assert host.refused("key", str(file)) == (f"{file}: No such file or directory; expected to make the key file there")


def test_a_failed_command_is_told_in_one_line(host, outer, monkeypatch):
    def plan(side, interface):
        raise CommandFailed(("iptables-restore", "--test"), 2, "line 3 failed\ntry --help\n")

    monkeypatch.setattr(LinuxEn, "plan", plan)
    assert host.refused("en", "run", "--dry-run") == (
        "iptables-restore --test: exit status 2: line 3 failed; try --help"
    )


def test_commands_are_shown_as_a_shell_takes_them():
    assert Command(("echo", "a b")).shell() == "echo 'a b'"
