"""`natf en`, `natf router`, `natf status`, `natf cleanup`, `natf key`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from natf_bsd import config as configuration
from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.keys import make_key

if TYPE_CHECKING:
    from natf_bsd.firewall.plan import Plan

_ROLES = ("en", "router")


@click.group()
def en() -> None:
    """The external node."""


@en.command("run")
@click.option("--dry-run", is_flag=True, help="Print what would be set up and how it would be undone; change nothing.")
@click.pass_obj
def en_run(path: Path, dry_run: bool) -> None:
    """Run the external node until SIGTERM or SIGINT; then nothing of it is left on the host.

    SIGUSR1 is for a restart: the daemon ends, virtual addresses are refused, and the connections live on when it is
    started again.
    """
    settings = configuration.load(path).need_en()
    if dry_run:
        _show(_plan_of(settings))
        return
    from natf_bsd.en.daemon import EnDaemon

    EnDaemon(settings).run()


@en.command("check")
@click.pass_obj
def en_check(path: Path) -> None:
    """Say what would keep the external node from starting; change nothing. It may be running already."""
    _check("en", _plan_of(configuration.load(path).need_en()))


@en.command("reload")
@click.pass_obj
def en_reload(path: Path) -> None:
    """Have the running external node look at its firewall rules now, and set again what somebody has removed."""
    settings = configuration.load(path).need_en()
    _say_reloaded("en", _ask_reload(settings.run_dir / "en.sock"))


@click.group()
def router() -> None:
    """The NAT-f router."""


@router.command("run")
@click.option("--dry-run", is_flag=True, help="Print what would be set up and how it would be undone; change nothing.")
@click.pass_obj
def router_run(path: Path, dry_run: bool) -> None:
    """Run the router until SIGTERM or SIGINT; then nothing of it is left on the host. SIGHUP reads the ACT again."""
    settings = configuration.load(path).need_router()
    if dry_run:
        _show(_plan_of(settings))
        return
    from natf_bsd.router.daemon import RouterDaemon

    RouterDaemon(settings).run()


@router.command("check")
@click.pass_obj
def router_check(path: Path) -> None:
    """Say what would keep the router from starting; change nothing. It may be running already."""
    from natf_bsd.ops import act_file

    settings = configuration.load(path).need_router()
    act_file.load(settings.act)
    _check("router", _plan_of(settings))


@router.command("reload")
@click.pass_obj
def router_reload(path: Path) -> None:
    """Have the running router read its ACT again, and look at its firewall rules now: what somebody has removed is set
    again."""
    settings = configuration.load(path).need_router()
    answer = _ask_reload(settings.run_dir / "router.sock")
    click.echo(f"router: access control table of {answer['hosts']} hosts in force")
    _say_reloaded("router", answer)


def _plan_of(settings: configuration.EnConfig | configuration.RouterConfig) -> Plan:
    from natf_bsd.platforms import EnSide, RouterSide, this_platform

    platform = this_platform()
    side: EnSide | RouterSide
    if isinstance(settings, configuration.EnConfig):
        side = platform.external_node(settings)
    else:
        side = platform.router(settings)
    return side.plan(side.interface)


def _check(role: str, plan: Plan) -> None:
    from natf_bsd.firewall import runner
    from natf_bsd.ops.runtime import need_root

    need_root(f"natf {role} check")
    if problems := runner.check(plan.checks):
        raise NatfError("; ".join(problems))
    click.echo(f"{role}: nothing stands in the way")
    for note in plan.notes:
        click.echo(f"{role}: {note}")


def _ask_reload(socket: Path) -> dict[str, Any]:
    from natf_bsd.ops.control import ask

    return dict(ask(socket, "reload", firewall=True))


def _say_reloaded(role: str, answer: dict[str, Any]) -> None:
    click.echo(f"{role}: firewall rules {'set again' if answer['healed'] else 'were as they should be'}")


def _show(plan: Plan) -> None:
    from natf_bsd.firewall.command import shell

    click.echo("# set up")
    click.echo(shell(plan.set_up), nl=False)
    for sysctl in plan.sysctls:
        click.echo(sysctl.shell())
    click.echo("# undo")
    click.echo(shell(plan.undo), nl=False)
    if plan.sysctls:
        click.echo("# and the kernel settings get the values back that they had")
    for note in plan.notes:
        click.echo(f"# {note}")


@click.command(short_help="Show tables and counters.")
@click.argument("role", type=click.Choice(_ROLES), required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: tables, counters, settings, trace points.")
@click.option("--rows", type=click.IntRange(min=0), default=1000, show_default=True, help="Rows a table, at most.")
@click.pass_obj
def status(path: Path, role: str | None, as_json: bool, rows: int) -> None:
    """Show the tables and counters of the daemons that run here."""
    from natf_bsd.ops.control import NoDaemon, ask
    from natf_bsd.ops.render import render

    found = {}
    missing = []
    for name, run_dir in _run_dirs(path).items():
        if role in (name, None):
            try:
                found[name] = ask(run_dir / f"{name}.sock", "status", rows=rows)
            except NoDaemon as error:
                missing.append(error)
    if not found:
        raise NatfError("; ".join(map(str, missing)))
    for absent in missing:
        if absent.killed:
            click.echo(absent, err=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for tables in found.values():
        render(tables)


@click.command(short_help="Remove what a killed daemon left.")
@click.argument("role", type=click.Choice(_ROLES), required=False)
@click.pass_obj
def cleanup(path: Path, role: str | None) -> None:
    """Remove every rule, route and kernel setting a daemon that was killed has left behind; of both roles, or of ROLE.

    It goes by our marks, and works with a faulty configuration file too: then with the default run_dir and
    route_table.
    """
    from natf_bsd.firewall.installed import clean_up
    from natf_bsd.ops.runtime import need_root
    from natf_bsd.platforms import this_platform

    need_root("natf cleanup")
    try:
        settings = _load_or_defaults(path)
    except ConfigError as error:
        click.echo(f"{error}\ncleaning up with the default run directory and routing table", err=True)
        settings = configuration.Config(path)
    platform = this_platform()
    run_dirs = {name: run_dir for name, run_dir in _run_dirs_of(settings).items() if role in (name, None)}
    remains = {name: platform.remains(name, settings) for name in run_dirs}
    failures = clean_up(remains, run_dirs, platform.settings)
    for failure in failures:
        click.echo(f"not removed: {failure}", err=True)
    if failures:
        raise SystemExit(1)
    click.echo(f"rules, routes and kernel settings of natf{f' {role}' if role else ''} are removed")


@click.command(short_help="Make a shared key.")
@click.argument("file", type=click.Path(path_type=Path))
def key(file: Path) -> None:
    """Make a new shared key in FILE, for en.keys and router.keys; copy it to the other side by a safe way."""
    ident = make_key(file).ident.hex()
    click.echo(f"{file}: key {ident}, for en.keys on one side and router.keys on the other")


def _load_or_defaults(path: Path) -> configuration.Config:
    """A host without a configuration file has the defaults; a file that was named must be there."""
    if path == configuration.DEFAULT_PATH and not os.path.lexists(path):
        return configuration.Config(path)
    return configuration.load(path)


def _run_dirs(path: Path) -> dict[str, Path]:
    """Where each role keeps its socket; a host without a configuration file has the defaults."""
    return _run_dirs_of(_load_or_defaults(path))


def _run_dirs_of(settings: configuration.Config) -> dict[str, Path]:
    sections = {"en": settings.en, "router": settings.router}
    return {role: section.run_dir if section else configuration.RUN_DIR for role, section in sections.items()}
