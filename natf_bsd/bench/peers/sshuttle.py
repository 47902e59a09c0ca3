"""sshuttle: connections to the home's network are caught and put through one SSH connection to its router."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natf_bsd.bench import load
from natf_bsd.bench.bed import ALICE, INSIDE, ROUTER, Bed
from natf_bsd.bench.peers import Peer, Reach, need

_PORT = 2222
_SEPARATION = Path("/run/sshd")
"""Where sshd wants an empty directory (Debian); the service's scripts make it as a rule."""


@contextmanager
def _run(bed: Bed) -> Iterator[Reach]:
    need(("sshuttle", "sshuttle"), ("sshd", "openssh-server"))
    made = not _SEPARATION.exists()
    _SEPARATION.mkdir(exist_ok=True)
    daemons = []
    try:
        key, configuration = bed.folder / "ssh.key", bed.folder / "sshd.conf"
        for file in key, bed.folder / "host.key":
            bed.run("en", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file))
        configuration.write_text(
            f"Port {_PORT}\nListenAddress {ROUTER}\nHostKey {bed.folder}/host.key\nAuthorizedKeysFile {key}.pub\n"
            f"StrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\nPidFile none\n"
        )
        daemons.append(bed.spawn("router", "/usr/sbin/sshd", "-D", "-e", "-f", str(configuration)))
        bed.wait_for(daemons[0], "Server listening")
        ssh = f"ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        user = os.environ.get("USER", "root")
        argv = ["sshuttle", "-e", ssh, "-r", f"{user}@{ROUTER}:{_PORT}", "--no-latency-control", INSIDE]
        daemons.append(bed.spawn("en", *argv))
        bed.wait_for(daemons[1], "Connected to server")
        yield Reach(f"{ALICE}:{load.OTHERS}", ("tcp",))
    finally:
        for daemon in reversed(daemons):
            daemon.stop()
        if made:
            _SEPARATION.rmdir()


PEER = Peer(
    "sshuttle",
    "encryption; both ends are who they claim; the home's network, by TCP and DNS only",
    "of the router an account and Python",
    "connect(), which is answered on the external node before anybody at home knows of it",
    _run,
)
