"""What FreeBSD is asked, and which topics judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from natf_bsd.doctor import interfaces, kernel, leftovers, lookups, nat, pf, rules, services
from natf_bsd.doctor.facts import Answer, Facts, Host, Question, Read, Topic, gather
from natf_bsd.firewall import ipfw
from natf_bsd.ops.process import Run
from natf_bsd.ops.resolvers import RESOLV_CONF

_UNBOUND: Final = Path("/var/unbound/forward.conf")  # local-unbound-setup(8) writes it
_LOADABLE: Final = (*kernel.MODULES, kernel.KERNEL_PATH_MODULE, "pf")

TOPICS: Final[tuple[Topic, ...]] = (
    kernel.modules,
    kernel.kernel_settings,
    kernel.kernel_path,
    interfaces.outer,
    interfaces.names,
    interfaces.way_out,
    rules.places,
    nat.nat,
    rules.denials,
    kernel.clock,
    pf.pf,
    lookups.lookups,
    lookups.local_unbound,
    leftovers.daemons,
    leftovers.rules,
    leftovers.flows,
    leftovers.orphans,
    leftovers.ports,
    leftovers.divert_ports_unseen,
    services.rc_conf,
)


def questions(host: Host) -> dict[str, Question]:
    """Short names, and what is to be run or read. None of it changes anything."""
    return {
        "sysctl": ("sysctl", "-i", *kernel.SETTINGS),
        **{f"module {name}": ("kldstat", "-q", "-m", name) for name in _LOADABLE},
        "rules": ipfw.LIST_RULES.argv,
        "tables": ipfw.LIST_TABLES.argv,
        "nat instances": ("ipfw", "nat", "show", "config"),
        "processes": ("ps", "-axww", "-o", "jid,pid,ppid,args"),
        "divert ports": ("sockstat", "-P", "divert"),
        "interfaces": ("ifconfig",),
        **({"way out": ("route", "-n", "get", f"{host.en.virtual_prefix}.0.0.1")} if host.en else {}),
        "pf": ("pfctl", "-s", "info"),
        "pf interfaces": ("pfctl", "-v", "-s", "Interfaces"),
        "rc.conf": ("sysrc", "-i", *services.KNOBS),
        "resolv.conf": RESOLV_CONF,
        "unbound": _UNBOUND,
        **{f"pidfile {role.name}": Path(f"/var/run/natf_{role.name}.pid") for role in host.roles},
        **{f"journal {role.name}": role.run_dir / f"{role.name}.sysctl" for role in host.roles},
    }


def more(host: Host, facts: Facts, run: Run, read: Read) -> dict[str, Answer]:
    """What the first answers lead to."""
    return gather(nat.configuration_files(facts), run, read)
