"""The verbs of `driftline bench`; those that need a whole engine are in `engine_commands`."""

from __future__ import annotations

import itertools
import signal
import sys
import tempfile
from pathlib import Path

import click
import msgspec

from export.datasets import FORMATS
from stream.bench import engine_commands
from stream.bench.options import (
    bootstrap_option,
    counts,
    end,
    events_option,
    json_option,
    partitions_option,
    release_option,
)
from stream.settings import Settings


@click.group()
def bench() -> None:
    """Measure this machine: ratios within one run count, not figures of different runs."""
    signal.signal(signal.SIGTERM, _end_in_order)


def _end_in_order(number: int, _: object) -> None:
    """Leave by an exception, so that topics are deleted and processes ended on the way."""
    sys.exit(128 + number)


for _command in engine_commands.COMMANDS:
    bench.add_command(_command)


@bench.command("check")
@bootstrap_option
@release_option
@click.option("--short", "is_short", is_flag=True, help="Minutes: small loads, one round each.")
@json_option
def check(bootstrap: str, path: Path | None, is_short: bool, as_json: bool) -> None:
    """All figures that have a bound, beside it. Exit code 1 where one misses it."""
    from export.release import open_release
    from stream.bench.check import check_bounds
    from stream.bench.whole_engine import bundled_release
    from stream.verbs.options import reported

    with reported():
        report = check_bounds(bootstrap, open_release(path or bundled_release()), is_short)
    end(report, as_json)


@bench.command("start")
@bootstrap_option
@partitions_option
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@json_option
def start(bootstrap: str, partitions: int, rounds: int, as_json: bool) -> None:
    """Seconds from the start of a worker's process until it is ready, on an empty state."""
    from stream.bench.starts import bench_start
    from stream.verbs.options import reported

    with reported():
        report = bench_start(bootstrap, partitions, rounds)
    end(report, as_json)


@bench.command("recovery")
@bootstrap_option
@click.option(
    "--events", type=click.IntRange(100), default=1_000_000, show_default=True, help="Folded."
)
@click.option("--users", type=click.IntRange(1), default=200_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@partitions_option
@json_option
def recovery(
    bootstrap: str, events: int, users: int, rounds: int, partitions: int, as_json: bool
) -> None:
    """A worker that starts again: with its disk, and on a wiped one, from the changelog.

    Exit code 1 if a recovered state was wrong.
    """
    from stream.bench.starts import bench_recovery
    from stream.bench.workload import Workload
    from stream.verbs.options import reported

    with reported():
        report = bench_recovery(bootstrap, Workload(events, users), partitions, rounds)
    end(report, as_json)


@bench.command("workers")
@bootstrap_option
@events_option
@click.option(
    "--workers",
    "numbers",
    callback=counts,
    default="1,2,4",
    show_default=True,
    help="How many share the partitions; each number in its turn.",
)
@click.option("--users", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1024, show_default=True)
@partitions_option
@json_option
def workers(
    bootstrap: str,
    events: int,
    numbers: list[int],
    users: int,
    batch: int,
    partitions: int,
    as_json: bool,
) -> None:
    """The state path of one worker, and of several that share the partitions.

    Exit code 1 if a state was wrong after its run.
    """
    from stream.bench.workers import bench_workers
    from stream.bench.workload import Workload
    from stream.verbs.options import reported

    with reported():
        report = bench_workers(bootstrap, Workload(events, users), numbers, batch, partitions)
    end(report, as_json)


@bench.command("state")
@bootstrap_option
@events_option
@click.option(
    "--batches",
    callback=counts,
    default="256,1024",
    show_default=True,
    help="Sizes of a batch in records, with commas between.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--users",
    callback=counts,
    default="100000",
    show_default=True,
    help="How many there are; several with commas, each a case of its own.",
)
@click.option(
    "--partitions",
    callback=counts,
    default="8",
    show_default=True,
    help="Of the topics; several with commas, each a case of its own.",
)
@click.option(
    "--hot-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Part of all events that is one user's.",
)
@click.option(
    "--exponent",
    type=click.FloatRange(0, 3),
    default=1.1,
    show_default=True,
    help="How steeply users' activity falls with their rank; 0: all are alike.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    help="Data set whose interactions are sent under drawn users; without it they are generated.",
)
@click.option("--format", "data_format", type=click.Choice(FORMATS), default="movietweetings")
@click.option(
    "--output-bytes",
    type=click.IntRange(0, 4096),
    default=0,
    show_default=True,
    help="Above 0, one more raw loop takes part: it sends so many for each event, not deltas.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a report of each case as JSON.")
def state(
    bootstrap: str,
    events: int,
    batches: list[int],
    rounds: int,
    users: list[int],
    partitions: list[int],
    hot_share: float,
    exponent: float,
    seed: int,
    data: Path | None,
    data_format: str,
    output_bytes: int,
    as_json: bool,
) -> None:
    """The state path beside raw loops, in turn: events/s and CPU for each event.

    Topics are made under a prefix of their own and deleted at the end. Exit code 1 if a state was
    wrong after its run.
    """
    from stream.bench.state import bench_state
    from stream.bench.workload import Workload
    from stream.verbs.options import reported

    all_hold = True
    for count, size in itertools.product(users, partitions):
        workload = Workload(events, count, exponent, seed, data, data_format, hot_share)
        with reported():
            report = bench_state(bootstrap, workload, batches, rounds, size, output_bytes)
        click.echo(msgspec.json.encode(report).decode() if as_json else report.as_table())
        all_hold &= report.holds
    sys.exit(0 if all_hold else 1)


@bench.command("rivals")
@bootstrap_option
@click.option(
    "--rival-events",
    "events",
    type=click.IntRange(100),
    default=200_000,
    show_default=True,
    help="Sent once; all but Faust go through them.",
)
@click.option(
    "--faust-events",
    type=click.IntRange(100),
    default=20_000,
    show_default=True,
    help="As many for Faust, at most as for the others.",
)
@click.option("--users", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1024, show_default=True, help="Records.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--quix",
    help="Python of an environment with quixstreams; `install` makes one for this run.",
)
@partitions_option
@json_option
def rivals(
    bootstrap: str,
    events: int,
    faust_events: int,
    users: int,
    batch: int,
    rounds: int,
    quix: str | None,
    partitions: int,
    as_json: bool,
) -> None:
    """Stock Faust and Quix Streams on the same topic: events/s and CPU for each event.

    Each keeps a row of as many bytes as a worker for every user, with a changelog, and sends as
    many bytes. Exit code 1 if a state was wrong after its run.
    """
    from stream.bench.rivals import RivalsPlan, bench_rivals, installed_quix
    from stream.bench.workload import Workload
    from stream.verbs.options import reported

    workload = Workload(events, users)
    with tempfile.TemporaryDirectory(prefix="driftline-quix-") as folder, reported():
        python = installed_quix(Path(folder)) if quix == "install" else quix
        plan = RivalsPlan(workload, faust_events, batch, rounds, partitions, python)
        report = bench_rivals(bootstrap, plan)
    end(report, as_json)


@bench.command("rank")
@click.option(
    "--release",
    "path",
    type=click.Path(path_type=Path),
    help="Folder of a release; without it the newest of the registry.",
)
@click.option("--registry", default=Settings().registry, show_default=True)
@click.option("--users", type=click.IntRange(64), default=2000, show_default=True)
@click.option("--items", type=click.IntRange(100), help="Catalogue; default the release's items.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def rank(
    path: Path | None, registry: str, users: int, items: int | None, device: str, as_json: bool
) -> None:
    """A release's graph alone and in the worker: users/s, and where the rest of the time goes."""
    from stream.bench.rank import bench_rank, find_release
    from stream.verbs.options import reported

    settings = Settings(registry=registry, device="cuda" if device == "cuda" else "cpu")
    with reported():
        report = bench_rank(find_release(path, settings), settings, users, items)
    click.echo(msgspec.json.encode(report).decode() if as_json else report.as_table())
