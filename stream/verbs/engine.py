"""Verbs that run an engine: topics, worker, replay, live page, schemas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from stream.guards import GuardName
from stream.settings import Settings
from stream.verbs.options import WrongUse, setting_options


@click.group()
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


@click.command()
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
    type=click.Choice(get_args(GuardName)),
    help="Take one guard out. For tests of `verify fold` only: state will be wrong.",
)
def worker(settings: Settings, break_guard: Any) -> None:
    """Serve: fold events, rank, publish lists. Runs until it is stopped."""
    from stream.guards import ALL_GUARDS
    from stream.worker import run_worker

    sys.exit(run_worker(settings, ALL_GUARDS.without(break_guard)))


@click.command()
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


@click.command()
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


@click.command()
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
