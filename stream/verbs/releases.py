"""Verbs for the releases of the registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from export.errors import DriftlineError
from stream.settings import Settings
from stream.verbs.options import setting_options

if TYPE_CHECKING:
    from stream.release_stages import ReleaseLine


@click.group()
def releases() -> None:
    """Look at the releases of a registry, and say which one is live."""


@releases.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@setting_options("bootstrap", "prefix", "registry", "release")
def releases_list(settings: Settings, as_json: bool) -> None:
    """A line for each release, oldest first, with its gates, and which one is live."""
    from stream import release_stages

    try:
        live = release_stages.live_release(settings)
    except DriftlineError as error:
        live = None
        click.echo(f"which one is live is not known: {error}", err=True)
    lines = release_stages.releases(settings, live)
    if as_json:
        click.echo(msgspec.json.encode(lines))
        return
    if not lines:
        click.echo(f"no release {settings.release} in {settings.registry}", err=True)
    for line in lines:
        click.echo(_text(line))


def _text(line: ReleaseLine) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(line.created_at / 1000))
    gates = ", ".join(f"{name} {value:+.4f}" for name, value in line.gates.items())
    words = [f"{line.items:,} items", gates, "" if line.holds else "refused by a gate"]
    return f"{'live' if line.is_live else '':<5}{line.version:>6}  {made}  " + "; ".join(
        word for word in words if word
    )


@releases.command("announce")
@click.argument("version", type=click.IntRange(1), required=False)
@click.option("--despite-gates", is_flag=True, help="One too that a gate has refused.")
@setting_options("bootstrap", "prefix", "registry", "release")
def releases_announce(settings: Settings, version: int | None, despite_gates: bool) -> None:
    """Say that a release is live, the newest if no VERSION is given: workers take it over.

    One older than the live one is a way back. A trainer that runs goes on releasing what it trains.
    """
    from export.registry import Registry
    from stream.release_stages import announce, require_gates

    release = Registry(Path(settings.registry)).open(settings.release, version)
    if not despite_gates:
        require_gates(release)
    announce(settings, release, "announced by hand")
    click.echo(
        f"{release.name}/{release.version} is live: each worker checks it and then ranks with it, "
        "or says in its log why not"
    )
