"""Every module of ours, tests included, can be imported on FreeBSD: what only Linux has is asked for when used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

AS_FREEBSD = """
import importlib, os, re, select, signal, socket, subprocess, sys, time, traceback
from pathlib import Path
import click, dns.message, dns.query, dns.rrset, dpkt, hypothesis.stateful, pytest, rich.console, tomlkit

LINUX_ONLY = {
    socket: r"[AP]F_(PACKET|NETLINK|VSOCK|ALG|TIPC|CAN|RDS)$|PACKET_|NETLINK_|SO_(MARK|BINDTODEVICE|(PEER|PASS)CRED)$",
    select: r"epoll$|EPOLL",
    signal: r"SIG(PWR|STKFLT|POLL|CLD)$",
    os: r"eventfd|memfd_create$|sched_(get|set)affinity$|splice$|setns$|unshare$|pidfd_open$|getrandom$|O_TMPFILE$",
    time: r"CLOCK_(BOOTTIME|TAI)$",
}
for module, pattern in LINUX_ONLY.items():
    for name in [name for name in dir(module) if re.match(pattern, name)]:
        delattr(module, name)
sys.modules["pyroute2"] = None
sys.platform = "freebsd14"
os.geteuid = lambda: 1001

def start(*args, **kwargs):
    raise AssertionError("a process is started")

subprocess.Popen.__init__ = os.fork = start
failed = []
for path in sorted(Path("natf_bsd").rglob("*.py")) + sorted(Path("tests").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    if path.stem == "__main__":
        continue
    try:
        importlib.import_module(name)
    except Exception:
        failed.append(f"{path}: {traceback.format_exc()}")
print(*failed, sep="\\n", end="")
sys.exit(bool(failed))
"""


def test_every_module_can_be_imported_where_nothing_of_linux_is() -> None:
    done = subprocess.run([sys.executable, "-c", AS_FREEBSD], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
