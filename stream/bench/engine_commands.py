"""The verbs of `driftline bench` that measure a whole engine, from click to list."""

from __future__ import annotations

from pathlib import Path

import click

from stream.bench.options import (
    bootstrap_option,
    end,
    items_option,
    json_option,
    numbers,
    partitions_option,
    release_option,
)


@click.command("latency")
@bootstrap_option
@release_option
@click.option(
    "--loads",
    callback=numbers,
    default="10,50,80",
    show_default=True,
    help="Percent of the measured maximum, with commas between.",
)
@click.option(
    "--wait-ms",
    "waits",
    callback=numbers,
    default="1",
    show_default=True,
    help="Values of the setting batch_wait_ms, with commas between.",
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Of each load."
)
@click.option("--users", type=click.IntRange(100), default=20_000, show_default=True)
@items_option
@partitions_option
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="SVG file to draw wait against latency into.",
)
@json_option
def latency(
    bootstrap: str,
    path: Path | None,
    loads: list[float],
    waits: list[float],
    seconds: float,
    users: int,
    items: int,
    partitions: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Event or visit to readable list, at shares of the maximum, which is measured first.

    Open loop: a late answer does not slow the sender. Exit code 1 if a state was wrong.
    """
    from export.release import open_release
    from stream.bench.curve import wait_curve
    from stream.bench.latency import LatencyPlan, bench_latency
    from stream.bench.whole_engine import bundled_release
    from stream.verbs.options import reported

    plan = LatencyPlan(loads, waits, seconds, users, items, partitions)
    with reported():
        report = bench_latency(bootstrap, open_release(path or bundled_release()), plan)
    if picture is not None:
        picture.write_text(wait_curve(report))
    end(report, as_json)


@click.command("failover")
@bootstrap_option
@release_option
@click.option("--users", type=click.IntRange(100), default=20_000, show_default=True)
@click.option("--session-timeout-s", type=click.FloatRange(2, 60), default=6.0, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@json_option
def failover(
    bootstrap: str,
    path: Path | None,
    users: int,
    session_timeout_s: float,
    rounds: int,
    as_json: bool,
) -> None:
    """One of two workers is killed, a standby takes over: the longest wait for a list."""
    from export.release import open_release
    from stream.bench.failover import bench_failover
    from stream.bench.whole_engine import bundled_release
    from stream.verbs.options import reported

    with reported():
        release = open_release(path or bundled_release())
        report = bench_failover(bootstrap, release, users, session_timeout_s, rounds)
    end(report, as_json)


@click.command("memory")
@bootstrap_option
@release_option
@click.option("--users", type=click.IntRange(100), default=100_000, show_default=True)
@items_option
@partitions_option
@click.option(
    "--minutes", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Of load."
)
@json_option
def memory(
    bootstrap: str,
    path: Path | None,
    users: int,
    items: int,
    partitions: int,
    minutes: float,
    as_json: bool,
) -> None:
    """Bytes of a user on disk and in the changelog; a worker's memory at 70 % of its maximum."""
    from export.release import open_release
    from stream.bench.memory import bench_memory
    from stream.bench.whole_engine import bundled_release
    from stream.verbs.options import reported

    with reported():
        release = open_release(path or bundled_release())
        report = bench_memory(bootstrap, release, users, items, partitions, minutes)
    end(report, as_json)


@click.command("soak")
@release_option
@click.option(
    "--minutes", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Of load."
)
@click.option(
    "--every-s",
    type=click.FloatRange(5),
    default=60.0,
    show_default=True,
    help="From one fault to the next.",
)
@click.option("--faults", help="Names with commas, as of `driftline chaos`; without it ten kinds.")
@click.option("--users", type=click.IntRange(5000), default=20_000, show_default=True)
@items_option
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--kafka-home",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of Apache Kafka; without it as for `driftline chaos`.",
)
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="SVG file to draw into."
)
@json_option
def soak(
    path: Path | None,
    minutes: float,
    every_s: float,
    faults: str | None,
    users: int,
    items: int,
    seed: int,
    kafka_home: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """70 % of the maximum with a fault of a worker a minute, on a Kafka of its own.

    Exit code 1 if lists did not come or came late, memory grew, or a state was wrong.
    """
    from export.release import open_release
    from stream.bench.soak import SOAK_FAULTS, SoakPlan, bench_soak
    from stream.bench.soak_picture import soak_picture
    from stream.bench.whole_engine import bundled_release
    from stream.chaos.run import chosen_faults
    from stream.verbs.options import reported

    with reported():
        names = chosen_faults(faults) if faults else SOAK_FAULTS
        plan = SoakPlan(minutes, every_s, tuple(names), users, items, seed, kafka_home)
        release = open_release(path or bundled_release())
        report = bench_soak(release, plan, lambda line: click.echo(line, err=True))
    if picture is not None:
        picture.write_text(soak_picture(report))
    end(report, as_json)


COMMANDS = (latency, failover, memory, soak)
