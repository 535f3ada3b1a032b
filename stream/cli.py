"""The command `driftline`: one verb for everything a user of the engine does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec

from export.datasets import FORMATS
from export.errors import DriftlineError
from stream.bench.commands import bench
from stream.settings import Settings, load_settings

#: Verbs of `models.cli`, and the packages that they need and a worker lacks.
_TRAINING_VERBS = ("train", "evaluate", "trainer")
_TRAINING_PACKAGES = ("torch", "transformers", "safetensors", "onnx", "onnxscript")


class Verbs(click.Group):
    """Offers the training verbs; where their packages are not installed they say so."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the alphabet's order."""
        return sorted([*super().list_commands(ctx), *_TRAINING_VERBS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb; one of training is looked up in `models`."""
        if cmd_name not in _TRAINING_VERBS:
            return super().get_command(ctx, cmd_name)
        missing = [name for name in _TRAINING_PACKAGES if find_spec(name) is None]
        if missing:
            return _missing(cmd_name, missing)
        from models.cli import commands

        return next((c for c in commands if c.name == cmd_name), None)


def _missing(verb: str, packages: list[str]) -> click.Command:
    """A verb that only says what it needs."""

    @click.command(verb, context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def say_so(rest: tuple[str, ...]) -> None:
        """Needs the trainer's packages."""
        raise WrongUse(
            f"`driftline {verb}` needs {', '.join(packages)}: install driftline[train,cpu]"
        )

    return say_so


class WrongUse(click.ClickException):
    """Wrong use or a missing device: exit code 2."""

    exit_code = 2


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options --config and one for each named setting; the function gets `settings`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapped(config: Path | None, **options: Any) -> None:
            chosen = {name: options.pop(name) for name in names}
            with reported():
                function(load_settings(config, chosen), **options)

        command: Callable[..., None] = wrapped
        for name in reversed(names):
            default = msgspec.to_builtins(getattr(Settings(), name))
            command = click.option(
                "--" + name.replace("_", "-"), name, help=f"Setting {name}; default {default}."
            )(command)
        config_help = "TOML file of settings; DRIFTLINE_* variables and options override it."
        return click.option("--config", type=click.Path(path_type=Path), help=config_help)(command)

    return decorate


class reported:  # noqa: N801 - reads as a statement: with reported()
    """Errors that Driftline raises on purpose end with their message and exit code 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DriftlineError):
            raise WrongUse(str(error)) from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="driftline")
def main() -> None:
    """Driftline: a click in, a refreshed recommendation list out."""


main.add_command(bench)


@main.group()
def topics() -> None:
    """Create the engine's topics, or check them."""


@topics.command("create")
@setting_options("bootstrap", "prefix", "group", "partitions", "replication_factor", "retention_ms")
def topics_create(settings: Settings) -> None:
    """Create the topics that are missing; those that are there must fit."""
    from stream.topics import create_topics

    created = create_topics(settings)
    click.echo("\n".join(f"created {name}" for name in created) or "all topics are there")


@topics.command("check")
@setting_options("bootstrap", "prefix", "group", "partitions")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def topics_check(settings: Settings, as_json: bool) -> None:
    """See that all topics are there and as they must be."""
    from stream.topics import TopicsError, check_topics

    try:
        check_topics(settings)
    except TopicsError as error:
        if not as_json:
            raise
        click.echo(msgspec.json.encode({"ok": False, "differences": error.differences}))
        sys.exit(2)
    ok = msgspec.json.encode({"ok": True, "differences": []})
    click.echo(ok if as_json else "all topics are as they must be")


@main.command()
@setting_options(
    "bootstrap",
    "prefix",
    "group",
    "instance",
    "partitions",
    "data_dir",
    "registry",
    "release",
    "device",
    "model",
    "seen_items",
    "batch_records",
    "batch_wait_ms",
    "metrics_port",
    "log_level",
)
@click.option(
    "--break-guard",
    type=click.Choice(["replay-skip", "ack-order", "watermark"]),
    help="Take one guard out. For tests of `verify fold` only: state will be wrong.",
)
def worker(settings: Settings, break_guard: Any) -> None:
    """Serve: fold events, rank, publish lists. Runs until it is stopped."""
    from stream.guards import ALL_GUARDS
    from stream.worker import run_worker

    sys.exit(run_worker(settings, ALL_GUARDS.without(break_guard)))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "data_format",
    required=True,
    type=click.Choice(["movietweetings", "rsc15", "jsonl"]),
)
@click.option("--rate", type=click.FloatRange(min=0.01), help="Events a second.")
@click.option("--max", "at_maximum", is_flag=True, help="As fast as Kafka takes them (default).")
@click.option("--from", "first", type=click.IntRange(0), default=0, help="Events passed over.")
@click.option("--to", "last", type=click.IntRange(1), help="Events in all, those passed over too.")
@click.option("--items/--no-items", default=True, help="Whether to send the catalogue first.")
@setting_options("bootstrap", "prefix")
def replay(settings: Settings, path: Path, data_format: str, **options: Any) -> None:
    """Send a data set as events, and its catalogue as items.

    Original times go into event_time; the records themselves are of today.
    """
    from stream.replay import ReplayPlan, replay_data

    if options.pop("at_maximum") and options["rate"]:
        raise WrongUse("--rate and --max exclude each other")
    plan = ReplayPlan(
        path, data_format, options["rate"], options["first"], options["last"], options["items"]
    )
    click.echo(replay_data(settings, plan))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0: a free one."
)
@click.option("--read-only", is_flag=True, help="Nobody can click: the page writes nothing.")
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    help="Another name that the page is opened by, as through a proxy; may be given again.",
)
@setting_options("bootstrap", "prefix", "group", "release", "log_level")
def page(settings: Settings, host: str, port: int, read_only: bool, names: tuple[str, ...]) -> None:
    """Show the engine live in a browser: your own list, any user, how good and how fast it is."""
    from stream.web.serve import PageOptions, run_page

    run_page(settings, PageOptions(host, port, read_only, names), click.echo)


@main.command()
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


@main.command()
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


@main.command()
@click.option(
    "--seeds", type=click.IntRange(1), default=100, show_default=True, help="Runs, each of a seed."
)
@click.option("--seed", "first", type=click.IntRange(0), default=0, help="First; default 0.")
@click.option("--mutate", metavar="all|NAME", help="Break the worker so; a seed must find it out.")
@click.option("--long-cuts", is_flag=True, help="Cut workers off for longer than their session.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
def simulate(seeds: int, first: int, mutate: str | None, long_cuts: bool, as_json: bool) -> None:
    """Check exactness: the worker's code under crashes and delays drawn from seeds, no Kafka."""
    from stream.simulate.command import run

    with reported():
        sys.exit(run(seeds, first, mutate, long_cuts, as_json))


@main.command()
@click.option("--faults", default="all", show_default=True, help="all, or names with commas.")
@click.option(
    "--nodes", type=click.Choice(["1", "3"]), default="1", show_default=True, help="Of Kafka."
)
@click.option("--workers", type=click.IntRange(1, 3), default=2, show_default=True)
@click.option(
    "--each", type=click.IntRange(1), default=20, show_default=True, help="Faults of each kind."
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

    Starts brokers and workers of its own. Exit code 1 if anything is lost, twice or wrong, if a
    kind of fault did not strike often enough, or if a control run's harm was not found out.
    """
    from stream.chaos.run import ChaosPlan, run_chaos

    with reported():
        report = run_chaos(
            ChaosPlan(nodes=int(nodes), **options), lambda line: click.echo(line, err=True)
        )
    click.echo(msgspec.json.encode(report.as_json()) if as_json else report.as_table())
    sys.exit(0 if report.holds else 1)


@main.command("demo-release")
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


@main.command()
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


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs and options.

    For bash: eval "$(driftline completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; for fish:
    driftline completion fish > ~/.config/fish/completions/driftline.fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # the choices are those that click has
    click.echo(kind(main, {}, "driftline", "_DRIFTLINE_COMPLETE").source())


@main.command()
@click.option(
    "--write", type=click.Path(path_type=Path), help="Folder to write one file a message into."
)
def schemas(write: Path | None) -> None:
    """Print the JSON Schemas of all messages, or write them into a folder."""
    from stream.schemas import all_schemas, write_schemas

    if write is None:
        click.echo(msgspec.json.format(msgspec.json.encode(all_schemas())).decode())
    else:
        write_schemas(write)


@main.group("dead-letters")
def dead_letters() -> None:
    """Look at refused records, and send them again once the fault is mended."""


def letter_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options that say which dead letters are meant; the function gets `wanted`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> None:
        from stream.redrive.verbs import Wanted

        names = ("reason", "topic", "since", "limit")
        function(*args, wanted=Wanted(**{name: options.pop(name) for name in names}), **options)

    command: Callable[..., None] = wrapped
    for option in (
        click.option("--limit", type=click.IntRange(1), help="Most letters; default all."),
        click.option("--since", metavar="AGE|TIME", help="Written since: 90m, 2h, 3d, 2026-01-31."),
        click.option(
            "--topic",
            type=click.Choice(["user-events", "items"]),
            help="Refused there; default both.",
        ),
        click.option("--reason", metavar="TEXT", help="Refused for a reason with this text in it."),
    ):
        command = option(command)
    return command


@dead_letters.command("list")
@letter_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("bootstrap", "prefix", "group")
def dead_letters_list(settings: Settings, wanted: Any, as_json: bool) -> None:
    """Count dead letters by reason; with --limit, list that many, newest first."""
    from stream.redrive.verbs import list_letters

    list_letters(settings, wanted, as_json)


@dead_letters.command("show")
@click.argument("position", metavar="PARTITION:OFFSET")
@click.option("--raw", is_flag=True, help="Print nothing but the bytes of the value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("bootstrap", "prefix", "group")
def dead_letters_show(settings: Settings, position: str, raw: bool, as_json: bool) -> None:
    """Print one dead letter: headers, key and value. `list --limit` names positions."""
    from stream.redrive.verbs import show_letter

    partition, _, offset = position.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise WrongUse(f"wanted PARTITION:OFFSET such as 0:17, got {position!r}")
    if raw and as_json:
        raise WrongUse("--raw and --json exclude each other")
    show_letter(settings, (int(partition), int(offset)), raw, as_json)


@dead_letters.command("redrive")
@letter_options
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Send without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes to send.")
@setting_options("bootstrap", "prefix", "group", "replication_factor")
def dead_letters_redrive(settings: Settings, wanted: Any, **options: bool) -> None:
    """Send refused records again to where they were refused, each once, to be judged anew.

    May be run again at any time, also after a crash: what was sent is not sent twice.
    """
    from stream.redrive.verbs import redrive_letters

    redrive_letters(settings, wanted, **options)


@main.group()
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
