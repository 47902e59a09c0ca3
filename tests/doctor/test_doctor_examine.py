"""The whole examination: facts gathered, every topic judged, nothing escapes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.doctor import freebsd, linux
from natf_bsd.doctor.examine import examine, freebsd_system, host_of, judge
from natf_bsd.doctor.facts import Answer, Host, gather
from natf_bsd.doctor.finding import Finding, Severity, exit_status, summary
from natf_bsd.errors import NatfError
from natf_bsd.ops import runtime
from natf_bsd.ops.process import Completed
from tests.doctor.machine import OUTER, Machine, external_node, router

OK, NOTE, WARNING, ERROR = Severity


def a_finding(severity):
    return Finding(severity, "natd", "not running", "service natd start")


@pytest.fixture
def configuration(tmp_path):
    act = tmp_path / "natf.act"
    act.write_text("alice 192.168.0.2 allow\n")
    path = tmp_path / "natf.toml"
    path.write_text(f'[router]\ninterface = "epair0b"\nact = "{act}"\nrun_dir = "{tmp_path}/run"\n')
    return path


def system(machine):
    made = freebsd_system(machine.run)
    return type(made)(made.questions, made.more, made.topics, made.outer, machine.run, machine.read)


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.mark.parametrize(
    ("severities", "status"),
    [([], 0), ([OK, NOTE], 0), ([OK, WARNING, NOTE], 1), ([WARNING, ERROR, OK], 2)],
)
def test_the_exit_status_is_that_of_the_worst_finding(severities, status):
    assert exit_status(map(a_finding, severities)) == status


def test_the_summary_counts_what_asks_for_something():
    assert summary([a_finding(one) for one in (OK, ERROR, NOTE, WARNING, ERROR)]) == "2 errors, 1 warning, 1 note"
    assert summary([a_finding(OK)]) == "nothing to do"


def test_a_finding_is_a_line_and_below_it_what_to_do():
    assert a_finding(ERROR).text() == "error    natd: not running\n         do: service natd start"
    assert Finding(OK, "natd", "runs").text() == "ok       natd: runs"


def test_the_recorded_router_is_well(machine, configuration, root):
    found = examine(configuration, system(machine))
    assert [(one.severity, one.title) for one in found] == [
        (OK, "configuration"),
        (OK, "access control table"),
        (OK, "ipfw"),
        (OK, "ipdivert"),
        (OK, "receive buffers"),
        (OK, "forwarding"),
        (OK, "outer interface of natf router"),
        (OK, "rules for natf router"),
        (OK, "natd of rule 00050"),
        (OK, "natd -deny_incoming"),
        (OK, "mapped flows"),
        (NOTE, "clock of the NAT"),
        (OK, "pf next to ipfw"),
        (NOTE, "natf router"),
        (NOTE, "natf_router"),
    ]


def test_a_host_where_no_command_works_is_told_so_and_nothing_fails(machine, configuration, root):
    machine.commands.clear()
    found = examine(configuration, system(machine))
    assert [one for one in found if one.found.startswith("not judged")] == []
    assert [one.title for one in found if one.severity is ERROR] == ["outer interface of natf router"]
    assert {"ipfw", "ipdivert", "kernel settings", "rules of ipfw", "rc.conf", "processes", "divert ports"} <= {
        one.title for one in found if one.severity is WARNING and one.found.startswith("not seen: ")
    }


def test_without_root_what_is_not_seen_is_a_note(machine, configuration, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1001)
    for command in ("ipfw -S list", "ipfw table all list", "ipfw nat show config"):
        machine.commands[command] = Completed(71, "", "ipfw: socket: Operation not permitted\n")
    machine.commands["pfctl -s info"] = Completed(1, "", "pfctl: /dev/pf: Permission denied\n")
    found = examine(configuration, system(machine))
    assert exit_status(found) == 0
    unseen = [one.title for one in found if one.remedy == "run natf doctor as root"]
    assert unseen == ["rules of ipfw", "pf next to ipfw"]


def test_looking_changes_nothing(machine, configuration, root):
    """Every command that is run, and nothing else, is one that only prints."""
    ran = []

    def run(argv, stdin):
        ran.append(" ".join(argv[:3]))
        return machine.run(argv, stdin)

    made = system(machine)
    examine(configuration, type(made)(made.questions, made.more, made.topics, made.outer, run, machine.read))
    assert sorted(set(ran)) == [
        "ifconfig",
        "ipfw -S list",
        "ipfw nat show",
        "ipfw table all",
        "kldstat -q -m",
        "pfctl -s info",
        "pfctl -v -s",
        "ps -axww -o",
        "sockstat -P divert",
        "sysctl -i kern.osreldate",
        "sysrc -i natf_en_enable",
    ]


def test_a_topic_that_fails_does_not_hide_the_others():
    def natd_flags(host, facts):
        raise KeyError("rules")

    found = judge([natd_flags, lambda host, facts: [a_finding(OK)]], router(), {})
    assert found == [
        Finding(WARNING, "natd flags", "not judged: KeyError: 'rules'", "please report this"),
        a_finding(OK),
    ]


def test_a_role_without_an_interface_or_with_a_lock_that_cannot_be_read_is_looked_at(tmp_path, monkeypatch):
    def nowhere(wanted):
        raise NatfError(f"there is no interface {wanted}")

    def refuse(run_dir, role):
        raise NatfError(f"{run_dir}/{role}.lock: Permission denied")

    monkeypatch.setattr(runtime.RoleLock, "holder", staticmethod(refuse))
    config = Config(tmp_path, EnConfig(("home.example.net",), interface="em9", run_dir=tmp_path))
    host = host_of(config, nowhere, is_configured=True)
    (role,) = host.roles
    assert (role.interface, role.trouble) == (None, "there is no interface em9")
    assert role.unseen == f"{tmp_path}/en.lock: Permission denied"
    assert not role.is_away


def test_a_running_daemon_is_seen_by_its_lock(tmp_path, root):
    with runtime.RoleLock(tmp_path, "router"):
        host = host_of(Config(tmp_path, router=RouterConfig(run_dir=tmp_path)), lambda _: OUTER, is_configured=True)
    assert host.roles[0].process is not None
    assert (host.configuration, host.interfaces) == (tmp_path, (OUTER,))


def test_a_program_that_cannot_be_run_is_an_answer():
    def run(argv, stdin):
        raise PermissionError(13, "Permission denied")

    answers = gather({"a": ("no", "run"), "b": Path("/nowhere")}, run, lambda path: Path("/nonexistent").read_text())
    assert (answers["a"].known, answers["a"].why) == (False, "no run: Permission denied")
    assert (answers["b"].missing, answers["b"].why) == (True, "/nowhere: No such file or directory")


BOTH = Host(
    root=True,
    roles=(*external_node(77).roles, *router().roles),
    en=EnConfig(home_domains=("home.example.net",)),
    router=RouterConfig(),
)
LINES = sorted(
    {line for one in Machine().commands.values() for line in one.stdout.splitlines()}
    | {"nameserver 2001:db8::1", "ipfw nat 1 config", "00060 set 5 nat 1 ip from any to any // natf", "table ip f {"}
)
TEXTS = st.lists(st.sampled_from(LINES) | st.text(max_size=30), max_size=6).map("\n".join)
# ipfw's tables are read by firewall/, which expects what ipfw prints.
NAMES = sorted({*freebsd.questions(BOTH), *linux.questions(BOTH), "checks en", "checks router"} - {"tables"})
ANSWERS = st.builds(Answer, st.just("it"), st.sampled_from([0, 1, 127]), TEXTS, TEXTS)


@pytest.mark.parametrize("topics", [freebsd.TOPICS, linux.TOPICS], ids=["freebsd", "linux"])
@limits(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(NAMES), ANSWERS, max_size=6))
def test_whatever_a_host_prints_is_judged(topics, facts):
    found = judge(topics, BOTH, {name: Answer(name, 0, "") for name in (*NAMES, "tables")} | facts)
    assert [one for one in found if one.found.startswith("not judged")] == []
    assert all(one.title and one.found for one in found)
    json.dumps([one.plain() for one in found])
