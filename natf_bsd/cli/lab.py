"""`natf lab`: the paper's figure 1 on this machine; `natf demo`: that, or figure 3."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from natf_bsd.errors import NatfError

if TYPE_CHECKING:
    from natf_bsd.lab.story import Story


@click.group(short_help="Figure 1 as a network on this machine.")
def lab() -> None:
    """The paper's figure 1 as network namespaces (Linux) or vnet jails (FreeBSD): an external node, a router, a name
    server, alice, bob and eve."""


@lab.command()
@click.option(
    "--daemons/--no-daemons", default=True, show_default=True, help="Start natf in the external node and router too."
)
def up(daemons: bool) -> None:
    """Build the lab and leave it running."""
    from natf_bsd.lab.figure1 import Figure1Lab

    figure = Figure1Lab()
    figure.up()
    if daemons:
        if not figure.is_running("router"):
            figure.start_router()
        if not figure.is_running("en"):
            figure.start_en()
    client = "curl" if shutil.which("curl") else "fetch -qo -"
    click.echo(f"the lab is up; try: natf lab exec en {client} http://alice.home.example.net/")


@lab.command()
def down() -> None:
    """Remove the lab, whatever state it is in."""
    from natf_bsd.lab.figure1 import Figure1Lab

    Figure1Lab().down()


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("host")
@click.argument("command", nargs=-1, required=True)
def exec_(host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on a HOST of the lab (en, router, alice, bob, eve, ...); its exit status is ours."""
    from natf_bsd.lab.figure1 import Figure1Lab

    done = Figure1Lab().exec(host, list(command), check=False, capture_output=False)
    sys.exit(done.returncode)


@lab.command()
def status() -> None:
    """Show what runs in the lab."""
    from natf_bsd.lab.figure1 import Figure1Lab

    click.echo(Figure1Lab().status())


@click.command(short_help="Tell the whole story, here.")
@click.option("--figure", type=click.Choice(("1", "3")), default="1", help="Of the paper; 3: from private to private.")
@click.option("--in-memory", is_flag=True, help="Tell the story on the in-memory fabric even where a lab is possible.")
def demo(figure: str, in_memory: bool) -> None:
    """Tell the whole story on this machine, step by step with times, and leave nothing behind."""
    from natf_bsd.lab.figure1 import Figure1Lab

    # As Control-C: the lab is taken down on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)

    reason = (
        "--in-memory was given" if in_memory else Figure1Lab.is_supported() or Figure1Lab().platform.lacks_for_daemons()
    )
    if reason is None:
        failed = _story(figure, click.echo).run()
    elif figure != "1":
        raise NatfError(f"figure {figure} is told with real hosts only: {reason}")
    else:
        from natf_bsd.lab.demo_memory import tell

        failed = tell(click.echo, reason)
    if failed:
        raise NatfError("the demo failed: " + "; ".join(failed))


def _story(figure: str, say: Callable[[str], object]) -> Story:
    from natf_bsd.lab.demo import Demo
    from natf_bsd.lab.demo_figure3 import Demo3

    return Demo3(say) if figure == "3" else Demo(say)
