"""The command `natf`. Every command is thin: it parses, calls what can be called from Python by the same name, and
prints.

Imports of what a command needs stand inside it, so that `natf --help` and `natf act` need not load a daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from natf_bsd import __version__
from natf_bsd.config import DEFAULT_PATH
from natf_bsd.errors import NatfError


class _Group(click.Group):
    """Turns our own errors into one line on standard error and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NatfError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    envvar="NATF_CONFIG",
    help="Configuration file.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.version_option(__version__, prog_name="natf")
@click.pass_context
def main(context: click.Context, config: Path, verbose: bool) -> None:
    """NAT-f: reach hosts behind a NAT by name, from unmodified programs."""
    from natf_bsd.ops.runtime import set_up_logging

    set_up_logging(verbose)
    context.obj = config


def _register() -> None:
    from natf_bsd.cli import act, bench, daemons, ddns, doctor, lab

    for command in (
        daemons.en,
        daemons.router,
        daemons.status,
        daemons.cleanup,
        daemons.key,
        act.act,
        ddns.ddns,
        doctor.doctor,
        lab.lab,
        lab.demo,
        bench.bench,
    ):
        main.add_command(command)


_register()
