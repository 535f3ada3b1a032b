"""Verbs that show the engine at work: demo, sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export.datasets import FORMATS
from stream.verbs.options import reported


@click.command()
@click.option("--bootstrap", help="A Kafka of yours, HOST:PORT, instead of the embedded broker.")
@click.option("--clicks", type=click.IntRange(1), default=24, show_default=True, help="In all.")
@click.option(
    "--pace-s",
    type=click.FloatRange(0),
    default=0.9,
    show_default=True,
    help="Seconds from one click to the next.",
)
def sample(bootstrap: str | None, clicks: int, pace_s: float) -> None:
    """See it work: a broker, a worker, some users, and their lists as they come. Half a minute."""
    from stream.demo.sample import SamplePlan, run_sample

    with reported():
        run_sample(SamplePlan(bootstrap, clicks, pace_s), click.echo)


@click.command()
@click.option("--bootstrap", help="A Kafka of yours, HOST:PORT, instead of the embedded broker.")
@click.option(
    "--users", type=click.IntRange(1), default=40, show_default=True, help="Users that act."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Visits and clicks a second, of all users.",
)
@click.option(
    "--past",
    type=click.IntRange(0),
    default=4000,
    show_default=True,
    help="Clicks of the last four weeks, sent at the start.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the simulated users.")
@click.option(
    "--data",
    nargs=2,
    type=(click.Choice(FORMATS), click.Path(path_type=Path)),
    metavar="FORMAT PATH",
    help="Play a data set instead of simulated users: movietweetings FOLDER, jsonl FILE.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="New folder for all files, kept at the end; default a temporary one.",
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=0, help="Of the page; default a free one."
)
@click.option("--page/--no-page", "has_page", default=True, help="Whether the live page is shown.")
@click.option("--open", "opens_browser", is_flag=True, help="Open the page in a browser.")
def demo(users: int, past: int, seed: int, **options: Any) -> None:
    """See it live: broker, worker, simulated users and the page, until Ctrl-C."""
    from stream.demo.demo import DemoPlan, run_demo
    from stream.demo.players import CrowdSettings

    with reported():
        run_demo(DemoPlan(crowd=CrowdSettings(users, past, seed), **options), click.echo)


@click.command("demo-release")
@click.option(
    "--registry",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of releases to write it into.",
)
def demo_release(registry: Path) -> None:
    """Train the demo's release again, on simulated users. Needs the extra train."""
    from stream.demo.release import build_release

    with reported():
        click.echo(build_release(registry))
