"""`natf bench`: what NAT-f costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_PARTS = ("setup", "latency", "rate", "throughput", "user_space", "peers", "distance", "scale")


@click.command(short_help="Measure what NAT-f costs, here.")
@click.argument("parts", nargs=-1, type=click.Choice((*_PARTS, "profile")))
@click.option("--quick", is_flag=True, help="Less of everything, and no distance: under two minutes.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Write report.json and report.md there too."
)
def bench(parts: tuple[str, ...], quick: bool, output: Path | None) -> None:
    """Measure PARTS (all by default) on the lab of figure 1, beside a static port
    forward of the same router, and print the report. Linux, as root. Nothing is left behind.

    The part "profile", by itself, tells where the daemons' time goes while flows are set up.
    """
    from natf_bsd.bench import bed, measure, profile, report
    from natf_bsd.bench.peers.measure import distance, peers

    effort = measure.QUICK if quick else measure.WHOLE
    if "profile" in parts:
        click.echo("".join(profile.markdown(profile.profile(effort.pairs * effort.rounds))))
        return
    wanted = parts or tuple(part for part in _PARTS if not (quick and part == "distance"))
    found: dict[str, Any] = {"command": report.command_line(), "machine": report.circumstances()}
    found["machine"]["out of sleep"] = measure.out_of_sleep()

    def say(text: object) -> None:
        click.echo(f"... {text}", err=True)

    if set(wanted) - {"distance", "scale"}:
        with bed.made() as ground:
            for name in wanted:
                if name == "peers":
                    found[name] = peers(ground, effort, say)
                elif name not in ("distance", "scale"):
                    found[name] = getattr(measure, name)(ground, effort, say)
    if "distance" in wanted:
        found["distance"] = distance(effort, say)
    if "scale" in wanted:
        found["scale"] = measure.scale(effort, say)
    click.echo("".join(report.markdown(found)))
    if output is not None:
        for path in report.write(found, output):
            click.echo(f"wrote {path}", err=True)
