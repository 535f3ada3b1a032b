"""Verbs that check the engine: doctor, verify, simulate, chaos."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from stream.settings import Settings
from stream.verbs.options import reported, setting_options


@click.command()
@setting_options(
    "bootstrap",
    "prefix",
    "group",
    "partitions",
    "data_dir",
    "registry",
    "release",
    "device",
    "model",
    "metrics_port",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Newest records of user-events that are looked at.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(settings: Settings, sample: int, as_json: bool) -> None:
    """Look at machine, packages, Kafka and registry: a line each, with what to do.

    Writes nothing. Exit code 1 if something must be put right.
    """
    from stream.doctor.examine import examine
    from stream.doctor.findings import as_json as report
    from stream.doctor.findings import has_failed

    findings = []
    for finding in examine(settings, sample):
        findings.append(finding)
        if not as_json:
            click.echo(finding.as_line())
    if as_json:
        click.echo(msgspec.json.encode(report(findings)))
    sys.exit(1 if has_failed(findings) else 0)


@click.group()
def verify() -> None:
    """Check what an engine keeps and sends against its log, with code of its own."""


@verify.command("fold")
@setting_options("bootstrap", "prefix", "group", "registry")
@click.option(
    "--data-dir",
    "data_dirs",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A stopped worker's data directory, to look at its disk too; may be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify_fold(settings: Settings, data_dirs: tuple[Path, ...], as_json: bool) -> None:
    """Compare rows, statistics and lists with an independent fold of the log.

    The engine must be at rest. Exit code 1 if anything is lost, twice or wrong.
    """
    from stream.verify import fold

    report = fold.verify_fold(settings, list(data_dirs))
    click.echo(msgspec.json.encode(report.as_json()) if as_json else report.as_table())
    sys.exit(0 if report.holds else 1)


@verify.command("parity")
@setting_options("bootstrap", "prefix", "registry")
@click.option(
    "--samples", type=click.IntRange(1), default=1000, show_default=True, help="Lists compared."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the draw of lists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify_parity(settings: Settings, samples: int, seed: int, as_json: bool) -> None:
    """Compare lists with what plain Python and torch make of the log and the releases.

    Exit code 1 if a list has other items, or a score that differs by more than 1e-4.
    """
    from stream.verify.parity import compare

    report = compare(settings, samples, seed)
    click.echo(msgspec.json.encode(report.as_json()) if as_json else report.as_table())
    sys.exit(0 if report.holds else 1)


@click.command()
@click.option(
    "--seeds", type=click.IntRange(1), default=100, show_default=True, help="Runs, each of a seed."
)
@click.option("--seed", "first", type=click.IntRange(0), default=0, help="First; default 0.")
@click.option("--mutate", metavar="all|NAME", help="Break the worker so; a seed must find it out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
def simulate(seeds: int, first: int, mutate: str | None, as_json: bool) -> None:
    """Check exactness: the worker's code under crashes and delays drawn from seeds, no Kafka."""
    from stream.simulate.command import run

    with reported():
        sys.exit(run(seeds, first, mutate, as_json))


@click.command()
@click.option("--faults", default="all", show_default=True, help="all, or names with commas.")
@click.option(
    "--nodes", type=click.Choice(["1", "3"]), default="1", show_default=True, help="Of Kafka."
)
@click.option("--workers", type=click.IntRange(1, 3), default=2, show_default=True)
@click.option(
    "--each", type=click.IntRange(1), default=20, show_default=True, help="Faults of each kind."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="Inject none after so long, and judge what has struck; default: until all have.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    help="Events a second while faults strike.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--break-guard",
    "guards",
    default="all",
    show_default=True,
    help="Guards of the control runs: all, none, or names with commas.",
)
@click.option(
    "--kafka-home",
    type=click.Path(path_type=Path),
    help="Folder of Kafka with its libs; default KAFKA_HOME, else ../shared/kafka.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="New folder for all files, kept at the end; default a temporary one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def chaos(nodes: str, as_json: bool, **options: Any) -> None:
    """Kill, stop, cut off and damage workers and brokers under load, and check the result.

    Starts brokers and workers of its own. Exit code 1 if anything is lost, twice or wrong, if no
    row on disk could be compared, if the run was broken off, if a kind of fault did not strike
    often enough, or if a control run's harm was not found out.
    """
    from stream.chaos.run import ChaosPlan, run_chaos

    with reported():
        report = run_chaos(
            ChaosPlan(nodes=int(nodes), **options), lambda line: click.echo(line, err=True)
        )
    click.echo(msgspec.json.encode(report.as_json()) if as_json else report.as_table())
    sys.exit(0 if report.holds else 1)
