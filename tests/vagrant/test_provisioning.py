"""The provisioning scripts under a POSIX shell, with stand-ins for FreeBSD's commands: what they do to a new machine,
and that they do nothing to one that is as it should be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vagrant.machines import LAB, MACHINES, ROOT, SHELL_SCRIPTS, VAGRANT, environment, links

STAND_IN = Path(__file__).parent / "data" / "stand_in"
COMMANDS = ("sysrc", "pkg", "ifconfig", "route", "sysctl", "kenv", "hostname", "pw", "service", "make", "python3.11")
SHELL = shutil.which("dash") or "/bin/sh"
LOOKS = ("sysrc -in", "pkg -N", "pkg info", "route -n get", "sysctl -n", "kenv -q", "pw user show")
BOX_INTERFACE = {"eth0": "em1", "wan": "vtnet1", "lan": "vtnet2"}
"""What a box calls the interfaces of our links."""

LEASE = """
lease {
  interface "em0";
  option routers 10.0.2.2;
  option domain-name-servers 10.0.2.3,10.0.2.4;
}
"""


class Box:
    """A machine as its box is, right after the first boot."""

    def __init__(self, path: Path, machine: str) -> None:
        self.machine = machine
        self.root = path / "root"
        self.state = path / "state"
        self._bin = path / "bin"
        self._source = path / "source"
        self._bin.mkdir()
        for command in COMMANDS:
            (self._bin / command).symlink_to(STAND_IN)
        self._source.mkdir()
        for name in ("vagrant", "setup.cfg", "pyproject.toml", "Makefile", "tools"):
            (self._source / name).symlink_to(ROOT / name)
        for folder in ("natf_bsd", "rc.d", "etc", "docs"):
            self.write(self._source / folder / "file", "")
        self.write(self.root / "var/db/dhclient.leases.em0", LEASE)
        self.write(self.root / "etc/resolv.conf", "nameserver 10.0.2.3\n")
        self.write(self.root / "usr/libexec/ftpd", "").chmod(0o755)
        self.keep("interface", "em0", "ether 08:00:27:00:00:01\ninet 10.0.2.15 netmask")
        for link in links(machine):
            self.keep("interface", BOX_INTERFACE[link.name], f"ether {link.mac}")
        self.keep("route", "default", "10.0.2.2")
        self.keep("machine", "hostname", "freebsd")

    @staticmethod
    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def keep(self, kind: str, name: str, value: str) -> None:
        self.write(self.state / kind / name, f"{value}\n")

    def recall(self, kind: str) -> dict[str, str]:
        return {path.name: path.read_text().strip() for path in (self.state / kind).iterdir()}

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def step(self, step: str) -> subprocess.CompletedProcess[str]:
        settings = environment(self.machine) | {"NATF_SOURCE": str(self._source), "NATF_PYTHON": "python3.11"}
        own = {"NATF_ROOT": str(self.root), "STATE": str(self.state), "PATH": f"{self._bin}:{os.environ['PATH']}"}
        script = str(VAGRANT / "provision" / f"{step}.sh")
        return subprocess.run([SHELL, script], env=settings | own, capture_output=True, text=True, check=False)

    def provision(self) -> list[str]:
        """Every step in its turn; the calls that were more than a look."""
        calls = self.state / "calls"
        calls.unlink(missing_ok=True)
        for step in MACHINES[self.machine]["steps"]:
            done = self.step(step)
            assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
            assert done.stderr == "", step
        return [call for call in calls.read_text().splitlines() if not is_look(call)]


def is_look(call: str) -> bool:
    words = call.split()
    shows = words[0] == "ifconfig" and (words[1:] == ["-l", "ether"] or len(words) == 2)
    return shows or words == ["hostname"] or words[-1] == "status" or call.startswith(LOOKS)


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Box:
    return Box(tmp_path, request.param)


everywhere = pytest.mark.parametrize("box", MACHINES, indirect=True)


def at(*machines: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("box", machines, indirect=True)


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {str(p.relative_to(root)): (p.read_text(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_a_posix_shell_can_read_it(script: Path) -> None:
    subprocess.run([SHELL, "-n", str(script)], check=True)


@everywhere
def test_a_second_time_only_looks(box: Box) -> None:
    assert box.provision() != []
    before = snapshot(box.root)
    assert box.provision() == []
    assert snapshot(box.root) == before


@everywhere
def test_the_links_have_the_names_and_addresses_of_the_lab(box: Box) -> None:
    box.provision()
    interfaces = box.recall("interface")
    for link in links(box.machine):
        assert link.mac in interfaces[link.name]
        for address in link.addresses:
            assert f"inet {address.partition('/')[0]} " in interfaces[link.name]
        assert box.recall("rc")[f"ifconfig_{BOX_INTERFACE[link.name]}_name"] == link.name
    assert interfaces.keys() == {"em0", *(link.name for link in links(box.machine))}
    assert "10.0.2.15" in interfaces["em0"], "Vagrant's own way in"


@everywhere
def test_nothing_leads_out_of_the_lab(box: Box) -> None:
    box.provision()
    gateway = MACHINES[box.machine]["gateway"]
    assert box.recall("route")["default"] == gateway
    assert box.recall("rc")["defaultrouter"] == (gateway or "NO")
    assert "nameserver 203.0.113.53\n" in box.text("etc/resolv.conf")
    assert "10.0.2" not in box.text("etc/resolv.conf")


def test_dhcp_brings_back_neither_route_nor_name_server(tmp_path: Path) -> None:
    """The hook is sourced by dhclient-script(8) with the lease in these variables."""
    box = Box(tmp_path, "en")
    box.provision()
    lease = "new_routers=10.0.2.2 new_domain_name_servers=10.0.2.3 new_domain_name=lan new_ip_address=10.0.2.15"
    script = f'{lease}; . "{box.root}/etc/dhclient-enter-hooks"; set | grep "^new_"'
    done = subprocess.run([SHELL, "-euc", script], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if not line.endswith("=''")] == ["new_ip_address='10.0.2.15'"]


def test_a_package_that_is_missing_later_is_fetched_by_vagrants_interface(tmp_path: Path) -> None:
    box = Box(tmp_path, "alice")
    box.provision()
    (box.state / "package" / "curl").unlink()
    calls = box.provision()
    install = calls.index("pkg install -y curl")
    assert calls.index("route -nq add -inet default 10.0.2.2") < install
    assert calls.index("route -nq add -inet default 192.168.0.1") > install
    assert box.recall("route")["default"] == "192.168.0.1"
    assert "10.0.2" not in box.text("etc/resolv.conf")


def test_the_router_is_an_ordinary_one_with_natd_and_ours(tmp_path: Path) -> None:
    box = Box(tmp_path, "router")
    calls = box.provision()
    rc = box.recall("rc")
    del rc["ifconfig_wan"], rc["ifconfig_lan"]
    assert rc == {
        "defaultrouter": "203.0.113.254",
        "firewall_coscripts": "/usr/local/etc/rc.d/natf_router",
        "firewall_enable": "YES",
        "firewall_type": "open",
        "gateway_enable": "YES",
        "hostname": "router",
        "ifconfig_vtnet1_name": "wan",
        "ifconfig_vtnet2_name": "lan",
        "natd_enable": "YES",
        "natd_flags": "-deny_incoming",
        "natd_interface": "wan",
        "natf_router_enable": "YES",
    }
    assert calls.index("kenv net.inet.ip.fw.default_to_accept=1") < calls.index("service ipfw restart")
    assert calls.index("service ipfw restart") < calls.index("service natf_router restart")
    assert box.text("usr/local/etc/natf.act") == (VAGRANT / "hosts/router/natf.act").read_text()


def test_the_external_node_has_no_tso_and_no_nat(tmp_path: Path) -> None:
    box = Box(tmp_path, "en")
    box.provision()
    assert box.recall("sysctl") == {"net.inet.tcp.tso": "0"}
    assert box.text("etc/sysctl.conf") == "net.inet.tcp.tso=0\n"
    rc = box.recall("rc")
    assert (rc["natf_en_enable"], rc["firewall_coscripts"]) == ("YES", "/usr/local/etc/rc.d/natf_en")
    assert not [name for name in rc if "natd" in name or "gateway_" in name]


def test_the_second_router_has_both_roles(tmp_path: Path) -> None:
    box = Box(tmp_path, "router2")
    box.provision()
    rc = box.recall("rc")
    assert rc["firewall_coscripts"] == "/usr/local/etc/rc.d/natf_router /usr/local/etc/rc.d/natf_en"
    assert (rc["natf_en_enable"], rc["natf_router_enable"]) == ("YES", "YES")


@at("router", "en")
def test_a_new_configuration_restarts_what_reads_it(box: Box) -> None:
    box.provision()
    box.write(box.root / "usr/local/etc/natf.toml", "# edited\n")
    role = MACHINES[box.machine]["roles"][0]
    assert box.provision() == ["service ipfw restart", f"service natf_{role} restart"]
    assert "edited" not in box.text("usr/local/etc/natf.toml")


@at("router", "alice")
def test_a_changed_checkout_is_installed_and_what_runs_started_anew(box: Box) -> None:
    box.provision()
    box.write(box.root.parent / "source" / "natf_bsd" / "new.py", "")
    pip, make, *restarts = box.provision()
    assert pip.startswith("python3.11 -m pip install")
    assert make == f"make -s install DESTDIR={box.root} PREFIX=/usr/local"
    assert restarts == [{"router": "service natf_router restart", "alice": "service natf_lab restart"}[box.machine]]


def test_a_service_that_ended_is_started(tmp_path: Path) -> None:
    box = Box(tmp_path, "bob")
    box.provision()
    (box.state / "running" / "natf_lab").unlink()
    assert box.provision() == ["service natf_lab start"]


def test_what_is_served_where(tmp_path: Path) -> None:
    box = Box(tmp_path, "alice")
    box.provision()
    rc = box.recall("rc")
    assert rc["natf_lab_services"] == "http:alice:80 udp-echo:alice:5000"
    assert rc["ftpd_enable"] == "YES"
    assert box.recall("user").keys() == {"ftp"}


def test_a_system_without_ftpd_does_without(tmp_path: Path) -> None:
    """ftpd(8) of FreeBSD 14 says that it is deprecated."""
    box = Box(tmp_path, "alice")
    (box.root / "usr/libexec/ftpd").unlink()
    box.provision()
    assert "ftpd_enable" not in box.recall("rc")
    assert "natf_lab" in box.recall("running")


def test_the_silent_router_drops_echo_requests(tmp_path: Path) -> None:
    box = Box(tmp_path, "ddns")
    box.provision()
    rules = (box.root / box.recall("rc")["firewall_type"].lstrip("/")).read_text()
    assert "deny icmp from any to 203.0.113.81 in icmptypes 8" in rules
    assert rules.splitlines()[-1] == "add 65000 allow ip from any to any"
    assert box.recall("running").keys() == {"nsd", "ipfw", "natf_lab"}


def test_an_interface_that_is_not_there_is_named(tmp_path: Path) -> None:
    box = Box(tmp_path, "en")
    box.keep("interface", "em1", "ether 08:00:27:00:00:09")
    done = box.step("network")
    assert done.returncode != 0
    assert done.stderr == "en: no interface has the address 0a:4e:41:54:66:10 of machines.json, only: em0 em1\n"


def test_a_failed_installation_is_tried_again(tmp_path: Path) -> None:
    box = Box(tmp_path, "alice")
    pip = box.root.parent / "bin" / "python3.11"
    pip.unlink()
    box.write(pip, "#!/bin/sh\nexit 1\n").chmod(0o755)
    assert "pip could not install" in box.step("natf").stderr
    pip.unlink()
    pip.symlink_to(STAND_IN)
    assert any("pip install" in call for call in box.provision())


def test_the_python_of_machines_json_is_the_packages(tmp_path: Path) -> None:
    tag = f"py{LAB['python'].replace('.', '')}-"
    versioned = [name for name in LAB["packages"] if name.startswith("py") and "-" in name]
    assert versioned
    assert all(name.startswith(tag) for name in versioned)
    assert tag.replace("py", "python").rstrip("-") in LAB["packages"]
