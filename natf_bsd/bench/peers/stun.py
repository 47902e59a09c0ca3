"""coturn on the lab's public host, for TURN and for the STUN half of ICE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from natf_bsd.bench.bed import Bed
from natf_bsd.bench.peers import need

HOST: Final = "plain"
ADDRESS: Final = "203.0.113.80"
PORT: Final = 3478
USER, PASSWORD = "bench", "bench"

_CONFIGURATION = f"""\
listening-ip={ADDRESS}
relay-ip={ADDRESS}
listening-port={PORT}
lt-cred-mech
user={USER}:{PASSWORD}
realm=example.net
no-tls
no-dtls
no-cli
log-file=stdout
simple-log
"""


@contextmanager
def server(bed: Bed) -> Iterator[None]:
    need(("turnserver", "coturn"))
    configuration = bed.folder / "turnserver.conf"
    configuration.write_text(f"{_CONFIGURATION}pidfile={bed.folder}/turnserver.pid\nuserdb={bed.folder}/turn.db\n")
    daemon = bed.spawn(HOST, "turnserver", "-c", str(configuration))
    try:
        bed.wait_for(daemon, "Total General servers")
        yield
    finally:
        daemon.stop()
