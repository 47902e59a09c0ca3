"""`natf ddns`: the home's address records, kept at the router's address."""

from __future__ import annotations

from pathlib import Path

import click

from natf_bsd import config as configuration


@click.group(short_help="The home's DNS records, kept at this router's address.")
def ddns() -> None:
    """Keep the home's address records at this router's address, by RFC 2136 updates with a TSIG key; section [ddns] of
    the configuration. Whoever has a provider's own client for that needs none of it."""


@ddns.command()
@click.pass_obj
def run(path: Path) -> None:
    """Follow the outer interface's address until SIGTERM or SIGINT."""
    from natf_bsd.ddns.daemon import DdnsDaemon

    DdnsDaemon(configuration.load(path).need_ddns()).run()


@ddns.command()
@click.pass_obj
def check(path: Path) -> None:
    """Say what is wrong with section [ddns] and its key; ask nobody."""
    settings = configuration.load(path).need_ddns()
    click.echo(f"ddns: nothing stands in the way of {', '.join(settings.names)}")


@ddns.command()
@click.option("--remove", is_flag=True, help="Leave the names without an address.")
@click.pass_obj
def update(path: Path, remove: bool) -> None:
    """Bring the records up to date now, once, and say what was done."""
    from natf_bsd.ddns import update
    from natf_bsd.ddns.daemon import bring_up_to_date, public_address
    from natf_bsd.ops.interfaces import outer_interface
    from natf_bsd.types import format_address

    settings = configuration.load(path).need_ddns()
    names = ", ".join(settings.names)
    if remove:
        update.put(settings, None)
        click.echo(f"{names}: no address any more")
        return
    address = public_address(settings, outer_interface)
    done = "now" if bring_up_to_date(settings, address) else "already"
    click.echo(f"{names}: {done} {format_address(address)}")
