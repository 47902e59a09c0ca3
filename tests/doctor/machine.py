"""A FreeBSD 14.2 made of what one printed (data/, from ipfw-commands.jsonl), for tests to break in one place."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.doctor import freebsd
from natf_bsd.doctor.facts import Answer, Host, Role, gather
from natf_bsd.doctor.kernel import SETTINGS
from natf_bsd.doctor.services import KNOBS
from natf_bsd.ops.interfaces import Interface
from natf_bsd.ops.process import Completed

RUN_DIR = Path("/var/run/natf")
OUTER = Interface("epair0b", bytes((203, 0, 113, 1)))
RECORDED = [
    json.loads(line)
    for line in (Path(__file__).with_name("data") / "freebsd_14_2_commands.jsonl").read_text().splitlines()
]

NATD = "divert 8668 ip4 from any to any via epair0b"
OPEN = "65535 set 31 allow ip from any to any\n"
PS = "JID   PID  PPID COMMAND\n"
SOCKSTAT = "sockstat -P divert"
PROCESSES = "ps -axww -o jid,pid,ppid,args"
RULES = "ipfw -S list"
NAT = "ipfw nat show config"
SYSCTL = " ".join(("sysctl", "-i", *SETTINGS))
SYSRC = " ".join(("sysrc", "-i", *KNOBS))


def recorded(command: str, *, last: bool = False) -> Completed:
    """What the command printed in the jail of the recordings' router, at its first or last time."""
    found = [one for one in RECORDED if " ".join(one["argv"]) == command and one["where"] == "vnet jail"]
    one = found[-1 if last else 0]
    return Completed(one["status"], one["stdout"], one["stderr"])


def printed(text: str) -> Completed:
    return Completed(0, text, "")


def sysctl_text() -> str:
    """The recorded values of what the doctor asks for, as `sysctl` prints them."""
    several = next(one["stdout"] for one in RECORDED if one["argv"][:2] == ["sysctl", "net.inet.ip.forwarding"])
    wanted = [line for line in several.splitlines() if line.partition(":")[0] in SETTINGS]
    jail, vnet = recorded("sysctl -n security.jail.jailed security.jail.vnet").stdout.split()
    release = recorded("sysctl -n kern.osreldate").stdout.strip()
    return "\n".join(
        [
            *wanted,
            f"kern.osreldate: {release}",
            f"security.jail.jailed: {jail}",
            f"security.jail.vnet: {vnet}",
            "security.bsd.see_other_uids: 1",
            "",
        ]
    )


class Machine:
    """The recordings' router with natd at rule 50, all well: `commands` by their words, `files` by their paths."""

    def __init__(self) -> None:
        number, _, arguments = recorded("ps -axo pid,comm,args -c").stdout.splitlines()[1].split(None, 2)
        self.commands = {
            SYSCTL: printed(sysctl_text()),
            "kldstat -q -m ipfw": recorded("kldstat -q -m ipfw"),
            "kldstat -q -m ipdivert": recorded("kldstat -q -m ipdivert"),
            "kldstat -q -m ipfw_nat": printed(""),
            "kldstat -q -m pf": recorded("kldstat -q -m pf"),
            RULES: printed(f"00050 set 0 {NATD}\n{OPEN}"),
            "ipfw table all list": printed(""),
            NAT: printed(""),
            PROCESSES: printed(f"{PS}    0   {number}     1 {arguments}\n"),
            SOCKSTAT: recorded(SOCKSTAT, last=True),
            "ifconfig": recorded("ifconfig"),
            "ifconfig epair0b": recorded("ifconfig epair0b"),
            "pfctl -s info": recorded("pfctl -s info"),
            "pfctl -v -s Interfaces": printed("epair0b\nepair1a\nlo0 (skip)\n"),
            SYSRC: printed(""),
        }
        self.files = {"/etc/resolv.conf": "nameserver 192.0.2.53\n"}

    def run(self, argv: tuple[str, ...], stdin: str | None) -> Completed:
        assert stdin is None, "looking needs no input"
        return self.commands.get(" ".join(argv)) or Completed(127, "", f"{argv[0]}: not found")

    def read(self, path: Path) -> str:
        if str(path) not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.files[str(path)]

    def set(self, name: str, value: str | None) -> None:
        """Change a kernel setting; None: this release has none."""
        lines = self.commands[SYSCTL].stdout.splitlines()
        kept = [line for line in lines if line.partition(":")[0] != name]
        assert len(kept) < len(lines), f"no setting {name}"
        self.commands[SYSCTL] = printed("\n".join([*kept, *([f"{name}: {value}"] if value is not None else []), ""]))

    def rules(self, *lines: str) -> None:
        """The rules, as `ipfw -S list` prints them; the open default rule if they have none of their own."""
        default = () if lines and lines[-1].startswith("65535") else (OPEN.strip(),)
        self.commands[RULES] = printed("".join(f"{line}\n" for line in (*lines, *default)))

    def processes(self, *lines: str) -> None:
        """Each "PID PPID COMMAND"."""
        self.commands[PROCESSES] = printed(PS + "".join(f"    0 {line}\n" for line in lines))

    def facts(self, host: Host) -> dict[str, Answer]:
        first = gather(freebsd.questions(host), self.run, self.read)
        return first | freebsd.more(host, first, self.run, self.read)


def router(process: int | None = None, **changes: object) -> Host:
    role = Role("router", RUN_DIR, OUTER, process=process)
    return Host(**{"root": True, "roles": (role,), "router": RouterConfig(), **changes})  # type: ignore[arg-type]


def external_node(process: int | None = None, **changes: object) -> Host:
    role = Role("en", RUN_DIR, OUTER, process=process)
    config = EnConfig(home_domains=("home.example.net",))
    return Host(**{"root": True, "roles": (role,), "en": config, **changes})  # type: ignore[arg-type]
