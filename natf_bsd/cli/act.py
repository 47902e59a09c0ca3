"""`natf act`: the access control table of the router."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from natf_bsd import config as configuration
from natf_bsd.errors import NatfError
from natf_bsd.ops import act_file
from natf_bsd.tables import act as table
from natf_bsd.types import format_address


@click.group(short_help="Show and edit the access control table.")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path),
    help="The table's file; default: router.act of the configuration.",
)
@click.pass_context
def act(context: click.Context, file: Path | None) -> None:
    """Show and edit the access control table; a running router obeys at once.

    What is already connected stays so until its NAT mapping ends; a deny stops new connections and renewals.
    """
    context.obj = (context.obj, file)


def _place(obj: tuple[Path, Path | None]) -> tuple[Path, configuration.RouterConfig]:
    path, file = obj
    settings = configuration.RouterConfig()
    if file is None or path != configuration.DEFAULT_PATH or os.path.lexists(path):
        settings = configuration.load(path).router or settings
    place = file or settings.act
    if not os.path.lexists(place):
        raise NatfError(f"{place}: no such access control table; expected one, empty at first (touch {place})")
    return place, settings


def _edit(obj: tuple[Path, Path | None], change: Callable[[str, Path], str]) -> None:
    path, settings = _place(obj)
    act_file.edit(path, lambda text: change(text, path))
    if path.resolve() == settings.act.resolve():
        _tell(settings.run_dir / "router.sock")


def _tell(socket: Path) -> None:
    """Poke the running router; without it the daemon would notice within a second all the same."""
    from natf_bsd.ops.control import NoDaemon, ask

    try:
        ask(socket, "reload")
    except NoDaemon:
        return  # it reads the file when it starts
    except NatfError as error:
        click.echo(f"the file is changed; the router could not be told and looks within a second: {error}", err=True)


@act.command("list")
@click.pass_obj
def list_(obj: tuple[Path, Path | None]) -> None:
    """Print the table."""
    path, _ = _place(obj)
    entries = act_file.load(path)
    if not len(entries):
        click.echo(f"{path}: nobody is listed, so everybody is denied (natf act add NAME ADDRESS)", err=True)
    for entry in entries:
        services = " ".join(map(str, entry.services)) or "any"
        action = "allow" if entry.allow else "deny"
        click.echo(f"{entry.name:<20} {format_address(entry.address):<15} {action:<5} {services}")


@act.command()
@click.argument("name")
@click.argument("address")
@click.argument("services", nargs=-1)
@click.option("--deny", is_flag=True, help="Deny instead of allow.")
@click.pass_obj
def add(obj: tuple[Path, Path | None], name: str, address: str, services: tuple[str, ...], deny: bool) -> None:
    """Add the private host NAME at ADDRESS; SERVICES such as tcp/80,443 udp/5000-5010 limit what is reached,
    default any."""
    if misplaced := {"allow", "deny"}.intersection(services):
        raise click.UsageError(f"found {misplaced.pop()!r} among the services; allow is the default, --deny the other")
    action = "deny" if deny else "allow"
    _edit(obj, lambda text, path: table.add(text, path, name, address, action, services))


@act.command()
@click.argument("name")
@click.pass_obj
def allow(obj: tuple[Path, Path | None], name: str) -> None:
    """Let external nodes reach NAME, as far as its services in the table go."""
    _edit(obj, lambda text, path: table.set_action(text, path, name, True))


@act.command()
@click.argument("name")
@click.pass_obj
def deny(obj: tuple[Path, Path | None], name: str) -> None:
    """Refuse NAME from now on."""
    _edit(obj, lambda text, path: table.set_action(text, path, name, False))


@act.command()
@click.argument("name")
@click.pass_obj
def remove(obj: tuple[Path, Path | None], name: str) -> None:
    """Take NAME out of the table (no match denies)."""
    _edit(obj, lambda text, path: table.remove(text, path, name))
