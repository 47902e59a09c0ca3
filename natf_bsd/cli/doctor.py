"""`natf doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(short_help="Look for what is in the way, and say what to do.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of findings.")
@click.pass_obj
def doctor(path: Path, as_json: bool) -> None:
    """Look at this host for what keeps NAT-f from working, and say what to do about it; change nothing.

    It looks with the eyes of the roles that are configured, or of both, and sees most as root. Exit status 0: all is
    well, 1: there are warnings, 2: there are errors.
    """
    from natf_bsd.doctor.examine import examine
    from natf_bsd.doctor.finding import exit_status, summary

    findings = examine(path)
    if as_json:
        click.echo(json.dumps([finding.plain() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(finding.text())
        click.echo(summary(findings))
    raise SystemExit(exit_status(findings))
