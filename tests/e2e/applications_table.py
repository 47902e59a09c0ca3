"""Run every application of `application_servers` and print docs/applications.md's table:

python -m tests.e2e.applications_table

An outcome is that of a client run here and now, once without NAT-f and once for each way to register names.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from natf_bsd.lab.figure1 import Figure1Lab
from tests.e2e.application_servers import APPLICATIONS, Application, ApplicationServers, has_gone_well, missing_for
from tests.e2e.name_servers import AUTHORITY, ZONE, NameServers, missing
from tests.lab_platform import own_lab

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "applications.md"

PATTERNS = {"wildcard A": "wildcard", "wildcard CNAME": "alias", "one A record per host": "each"}
"""The paper's table 3, by their names in the zone of `name_servers`."""


def outcome(servers: ApplicationServers, application: Application, domain: str) -> str:
    if reason := missing_for(application):
        return f"not tried ({reason})"
    done = servers.run(application, domain)
    return application.outcome if has_gone_well(application, done) else f"fails ({done.returncode})"


def columns(lab: Figure1Lab, directory: Path) -> Iterator[tuple[str, list[str]]]:
    """Title and cells, one by one as they come to be known."""
    NameServers(lab, directory).start_authority()
    (lab.run_dir / "etc" / "en" / "resolv.conf").write_text(f"nameserver {AUTHORITY}\n")
    servers = ApplicationServers(lab, directory)
    yield "application", list(APPLICATIONS)
    yield "protocol", [application.protocol for application in APPLICATIONS.values()]
    yield "server", [application.server for application in APPLICATIONS.values()]
    yield "client", [application.client for application in APPLICATIONS.values()]
    yield "without NAT-f", [outcome(servers, application, f"each.{ZONE}") for application in APPLICATIONS.values()]
    lab.start_router()
    lab.start_en(home_domains=[f"{label}.{ZONE}" for label in PATTERNS.values()])
    for pattern, label in PATTERNS.items():
        cells = [outcome(servers, application, f"{label}.{ZONE}") for application in APPLICATIONS.values()]
        yield pattern, cells


def markdown(found: Sequence[tuple[str, list[str]]]) -> Iterator[str]:
    titles, cells = zip(*found, strict=True)
    for row in titles, ["---"] * len(titles), *zip(*cells, strict=True):
        yield f"| {' | '.join(row)} |\n"


def main() -> None:
    if reason := Figure1Lab.is_supported() or missing("named", "dnssec-keygen"):
        sys.exit(reason)
    with own_lab(Figure1Lab) as lab, lab, tempfile.TemporaryDirectory() as directory:
        sys.stdout.writelines(markdown(list(columns(lab, Path(directory)))))


if __name__ == "__main__":
    main()
