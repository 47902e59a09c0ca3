"""The platform of jails on a machine that only answers what it is told to answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from natf_bsd.errors import CommandFailed, NatfError
from natf_bsd.lab import jails, services
from natf_bsd.lab.figure3 import Figure3Lab
from natf_bsd.lab.jail_commands import Means, NatKind
from natf_bsd.lab.jails import JailPlatform
from natf_bsd.lab.platform import HostProcess, lab_platform
from natf_bsd.lab.topology import FIGURE1, FIGURE3
from natf_bsd.ops import resolvers
from natf_bsd.ops.process import Completed

JAILS = ("net_public", "net_private", "en", "router", "dns", "plain", "silent", "alice", "bob", "eve")
GENERIC = {"kern.features.vimage": "1", "security.jail.jailed": "0", "security.jail.children.max": "0"}
ALL = ("if_epair", "ipfw", "ipdivert", "ipfw_nat", "if_bridge")


class Machine:
    """A FreeBSD that has some jails, modules and settings, and loses what is removed."""

    def __init__(self, modules: Sequence[str] = ALL, settings: dict[str, str] = GENERIC) -> None:
        self.modules = modules
        self.settings = settings
        self.jails: list[str] = []
        self.wires = 0
        self.said: list[str] = []
        self.broken: str | None = None

    def run(self, argv: tuple[str, ...], stdin: str | None) -> Completed:
        self.said.append(" ".join(argv))
        if self.broken and self.broken in self.said[-1]:
            return Completed(1, "", "broken")
        match argv:
            case ("kldstat", "-q", "-m", module):
                return Completed(int(module not in self.modules), "", "")
            case ("sysctl", "-in", name):
                return Completed(0, f"{self.settings.get(name, '')}\n", "")
            case ("jls", "jid", "name"):
                return Completed(0, "".join(f"{n} {name}\n" for n, name in enumerate(self.jails, 1)), "")
            case ("jail", "-q", "-c", name, *_):
                self.jails.append(name.removeprefix("name="))
            case ("jail", "-R", name):
                self.jails.remove(name)
            case ("ifconfig", "epair", "create", *_):
                self.wires += 1
                return Completed(0, f"epair{self.wires}a\n", "")
            case ("jexec", "natf_t1_net_public", "ifconfig", "-g", "epair"):
                return Completed(0, "epair1a\nepair2a\n", "")
            case ("jexec", _, "ifconfig", "-g", "epair"):
                return Completed(1, "", "no such group")
            case ("ifconfig",):
                return Completed(0, "epair9a: flags=0\n\tdescription: natf:t1\n", "")
            case ("ps", *_):
                return Completed(0, "0 1 Is /sbin/init\n3 77 S natd -interface wan\n", "")
        return Completed(0, "", "")


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def platform(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JailPlatform:
    monkeypatch.setattr(jails, "ROOT", tmp_path)
    monkeypatch.delenv(jails.NAT_VARIABLE, raising=False)
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.2.3\n")
    monkeypatch.setattr(jails, "RESOLV_CONF", tmp_path / "resolv.conf")
    made = JailPlatform("t1", machine.run)
    made.run_dir.mkdir()
    return made


def test_up_makes_jails_then_wires_then_the_network(machine: Machine, platform: JailPlatform) -> None:
    platform.up(FIGURE1)
    assert machine.jails == [f"natf_t1_{name}" for name in JAILS]
    assert machine.wires == 9
    kinds = [said.split()[0] for said in machine.said if not said.startswith("kldstat")]
    assert kinds == ["jail"] * 10 + ["ifconfig"] * 9 + ["sh"] + ["jexec"] * 10
    assert platform.is_up(FIGURE1)


def test_a_lab_with_a_jail_missing_is_not_up(machine: Machine, platform: JailPlatform) -> None:
    assert not platform.is_up(FIGURE1)
    platform.up(FIGURE1)
    machine.jails.remove("natf_t1_net_private")
    assert not platform.is_up(FIGURE1)


def test_up_stops_at_the_first_failure(machine: Machine, platform: JailPlatform) -> None:
    machine.broken = "epair create"
    with pytest.raises(CommandFailed, match="ifconfig epair create description natf:t1: exit status 1: broken"):
        platform.up(FIGURE1)
    assert machine.said[-1] == "ifconfig epair create description natf:t1"


def test_down_removes_what_is_there_without_remembering(machine: Machine, platform: JailPlatform) -> None:
    machine.jails = ["natf_t1_net_public", "natf_t1_net_private", "www", "natf_t1_en"]
    machine.broken = "ps"  # nothing runs, as far as can be seen
    with pytest.raises(CommandFailed):
        platform.down(FIGURE1)
    machine.broken = None
    machine.jails.remove("natf_t1_en")  # whose identifier is that of natd's jail above
    machine.said.clear()
    platform.down(FIGURE1)
    removing = [said for said in machine.said if said.split()[-1] == "destroy" or "-vnet" in said or "-R" in said]
    assert removing == [
        "ifconfig epair1a -vnet natf_t1_net_public",
        "ifconfig epair1a destroy",
        "ifconfig epair2a -vnet natf_t1_net_public",
        "ifconfig epair2a destroy",
        "ifconfig epair9a destroy",
        "jail -R natf_t1_net_public",
        "jail -R natf_t1_net_private",
    ]
    assert machine.jails == ["www"]


def test_down_goes_on_after_a_failure_and_reports_it(machine: Machine, platform: JailPlatform) -> None:
    machine.jails = ["natf_t1_net_public"]
    machine.broken = "epair1a destroy"
    with pytest.raises(NatfError, match="ifconfig epair1a destroy: exit status 1: broken"):
        platform.down(FIGURE1)
    assert machine.jails == []


def test_processes_are_those_in_the_instances_jails(machine: Machine, platform: JailPlatform) -> None:
    machine.jails = ["www", "natf_t1_en", "natf_t1_router"]
    assert platform.processes() == [HostProcess("router", 77, "natd -interface wan")]


def test_without_jails_nobody_is_asked_for_processes(machine: Machine, platform: JailPlatform) -> None:
    machine.jails = ["www"]
    assert platform.processes() == []
    assert machine.said == ["jls jid name"]


def test_status_tells_what_the_lab_was_made_of(
    machine: Machine, platform: JailPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.description() == "vnet jails; switches: bridges; NAT: natd"
    monkeypatch.setenv(jails.NAT_VARIABLE, "ipfw-nat")
    machine.modules = ("if_epair", "ipfw", "ipfw_nat")
    platform.up(FIGURE1)
    monkeypatch.delenv(jails.NAT_VARIABLE)
    assert platform.description() == (
        "vnet jails; switches: forwarding jails with proxy ARP (kldload if_bridge gives bridges); NAT: ipfw-nat"
    )


def test_dns_is_served_under_the_machines_own_name_server(platform: JailPlatform, tmp_path: Path) -> None:
    assert platform.name_servers(FIGURE1) == {"dns": ["203.0.113.53", "10.0.2.3"]}
    (tmp_path / "resolv.conf").unlink()
    assert platform.name_servers(FIGURE1)["en"] == ["127.0.0.1"]


def test_in_a_home_names_are_relayed(platform: JailPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of its own on each host would tell alice true addresses, and no router would see the answer."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    lab = Figure3Lab("t1")
    started: dict[str, list[str]] = {}
    monkeypatch.setattr(lab, "platform", platform)
    monkeypatch.setattr(lab, "spawn", lambda host, argv, name: started.update({host: argv}))
    list(lab._start_name_servers(FIGURE3.zone))
    assert started.pop("dns") != services.relay_command(["127.0.0.1"], FIGURE3.nameserver)[0]
    assert len(started) == 7
    for argv in started.values():
        assert argv == services.relay_command(["127.0.0.1"], FIGURE3.nameserver)[0]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("nameserver 192.0.2.1\nnameserver 10.0.2.3\n", ("10.0.2.3", "192.0.2.1")),
        ("search example.net\n", ("127.0.0.1",)),
        ("nameserver 2001:db8::1\n", ()),
    ],
)
def test_the_name_servers_asked(tmp_path: Path, text: str, asked: tuple[str, ...]) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    assert jails.asked_name_servers(tmp_path / "resolv.conf") == asked


def test_without_a_resolv_conf_this_host_is_asked(tmp_path: Path) -> None:
    assert jails.asked_name_servers(tmp_path / "resolv.conf") == ("127.0.0.1",)
    assert resolvers.name_servers("") == {bytes((127, 0, 0, 1))}


def obstacle(machine: Machine, nat: NatKind = NatKind.IPFW_NAT) -> str | None:
    return jails.obstacle(nat, machine.run)


def test_a_generic_kernel_is_fit() -> None:
    assert obstacle(Machine()) is None


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("if_epair", "the kernel module if_epair is not loaded: kldload if_epair"),
        ("ipdivert", "the kernel module ipdivert is not loaded: kldload ipdivert"),
        ("ipfw_nat", "the kernel module ipfw_nat is not loaded: kldload ipfw_nat"),
        (
            "ipfw",
            "the kernel module ipfw is not loaded: "
            "first kenv net.inet.ip.fw.default_to_accept=1, or it cuts this machine off; then kldload ipfw",
        ),
    ],
)
def test_a_missing_module_is_named_with_the_way_to_get_it(missing: str, text: str) -> None:
    machine = Machine([module for module in ALL if module != missing])
    assert obstacle(machine) == text
    assert not any("kldload" in said for said in machine.said)


def test_natd_needs_no_ipfw_nat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(("if_epair", "ipfw", "ipdivert"))
    monkeypatch.setattr(jails, "SYSTEM_DIRS", str(tmp_path))
    assert obstacle(machine, NatKind.NATD) == "natd is not installed; NATF_LAB_NAT=ipfw-nat does without"
    (tmp_path / "natd").touch(mode=0o755)
    assert obstacle(machine, NatKind.NATD) is None


def test_a_kernel_without_vimage_says_so() -> None:
    assert (obstacle(Machine(settings={})) or "").startswith("this kernel has no vnet jails; expected GENERIC")


@pytest.mark.parametrize(
    ("vnet", "room", "fit"), [("1", "11", True), ("1", "10", False), ("0", "99", False), ("1", "", False)]
)
def test_in_a_jail_there_must_be_room_for_more(vnet: str, room: str, fit: bool) -> None:
    settings = GENERIC | {
        "security.jail.jailed": "1",
        "security.jail.vnet": vnet,
        "security.jail.children.max": room,
    }
    said = obstacle(Machine(settings=settings))
    assert said == (None if fit else f"this is a jail; it needs vnet and children.max=11 or more (found {room or 0})")


def test_an_unknown_nat_is_refused() -> None:
    assert jails.nat_kind({}) is NatKind.NATD
    assert jails.nat_kind({"NATF_LAB_NAT": "ipfw-nat"}) is NatKind.IPFW_NAT
    with pytest.raises(NatfError, match="NATF_LAB_NAT=pf: expected natd or ipfw-nat"):
        jails.nat_kind({"NATF_LAB_NAT": "pf"})


def test_labs_of_jails_need_root(platform: JailPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1001)
    assert platform.is_supported() == "labs of jails need root"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv(jails.NAT_VARIABLE, "pf")
    assert platform.is_supported() == "NATF_LAB_NAT=pf: expected natd or ipfw-nat"
    monkeypatch.setenv(jails.NAT_VARIABLE, "ipfw-nat")
    assert platform.is_supported() is None


def test_exec(platform: JailPlatform) -> None:
    argv = platform.exec_argv("en", ["ping", "-c1", "203.0.113.1"], Path("/tmp"))
    assert argv[:4] == ["jexec", "natf_t1_en", "sh", "-c"]
    more = f"/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:{platform.run_dir}/bin"
    assert argv[5:] == ["sh", "/tmp", more, "ping", "-c1", "203.0.113.1"]


def run_script(platform: JailPlatform, argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """What jexec(8) would become, here."""
    command = platform.exec_argv("en", argv, cwd)[2:]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}, cwd="/")


def test_the_script_of_exec_changes_directory_and_keeps_arguments(platform: JailPlatform, tmp_path: Path) -> None:
    done = run_script(platform, ["sh", "-c", 'pwd; echo "$PATH"; echo "$1"', "sh", "a  b$HOME"], tmp_path)
    assert done.stdout.splitlines()[0] == str(tmp_path)
    assert done.stdout.splitlines()[1].startswith("/usr/bin:/bin:/sbin:")
    assert done.stdout.splitlines()[2] == "a  b$HOME"
    assert run_script(platform, ["true"], tmp_path / "nowhere").returncode == 125


def test_stand_ins_are_programs(tmp_path: Path) -> None:
    jails.write_stand_ins(tmp_path / "bin")
    done = subprocess.run([tmp_path / "bin" / "python3", "-c", "print(6 * 7)"], capture_output=True, check=True)
    assert done.stdout == b"42\n"
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [tmp_path / "bin" / "curl", "-sS", "http://127.0.0.1:1/"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (7, b"")


def test_freebsd_gets_jails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    made = lab_platform("test-9")
    assert isinstance(made, JailPlatform)
    assert made.run_dir == Path("/var/run/natf-lab/test-9")
    assert made.location("en") == "natf_test-9_en"
    assert str(Means(True, NatKind.NATD, ())) == "vnet jails; switches: bridges; NAT: natd"
