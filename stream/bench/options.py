"""Options that several verbs of `driftline bench` have, and how a verb ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from stream.settings import Settings


def counts(ctx: click.Context, option: click.Parameter, text: str) -> list[int]:
    """Whole numbers above zero, with commas between."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise click.BadParameter(f"wanted numbers such as 256,1024, got {text!r}", ctx, option)
    return found


def numbers(ctx: click.Context, option: click.Parameter, text: str) -> list[float]:
    """Numbers from zero on, with commas between."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= number < 10_000 for number in found):
        raise click.BadParameter(f"wanted numbers such as 0,1,5, got {text!r}", ctx, option)
    return found


bootstrap_option = click.option(
    "--bootstrap", default=Settings().bootstrap, show_default=True, help="Kafka; a real one."
)
events_option = click.option(
    "--events", type=click.IntRange(100), default=1_000_000, show_default=True, help="Sent once."
)
partitions_option = click.option(
    "--partitions", type=click.IntRange(1), default=8, show_default=True, help="Of the topics."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
release_option = click.option(
    "--release",
    "path",
    type=click.Path(path_type=Path),
    help="Folder of a release; without it the one that comes with the package.",
)
items_option = click.option(
    "--items",
    type=click.IntRange(100),
    default=12_000,
    show_default=True,
    help="Catalogue; new items are added to the release's.",
)


def end(report: Any, as_json: bool) -> None:
    """Print a report; exit code 1 if it does not hold."""
    click.echo(msgspec.json.encode(report).decode() if as_json else report.as_table())
    sys.exit(0 if report.holds else 1)
