"""The training verbs of the command line: train, evaluate, trainer."""

from __future__ import annotations

import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from export.datasets import FORMATS
from export.errors import DriftlineError
from models.schedule import Schedule, parse_duration
from models.settings import TrainerSettings, load_trainer_settings


class WrongUse(click.ClickException):
    """Wrong use, or something that is needed is not there: exit code 2."""

    exit_code = 2


_BROKER: list[Any] = [
    click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings."),
    click.option("--bootstrap", help="Kafka, host:port; default 127.0.0.1:9092."),
    click.option("--prefix", help="Before every topic name; default none."),
]
_REGISTRY: list[Any] = [
    click.option("--registry", help="Folder of releases; default registry."),
    click.option("--release", help="Name of the releases; default driftline."),
]
_TRAINING: list[Any] = [
    click.option(
        "--repeats",
        type=click.Choice(["filter", "allow"]),
        help="Whether items already taken may be listed again; default: setting seen_items.",
    ),
    click.option("--seed", type=int, default=1, show_default=True),
    click.option(
        "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch."
    ),
]
_DATA: list[Any] = [
    click.option("--data", type=click.Path(path_type=Path), help="Folder or file of a data set."),
    click.option("--format", "data_format", type=click.Choice(FORMATS), help="Of --data."),
    click.option(
        "--events", type=click.IntRange(1), help="Only the first so many of --data; default all."
    ),
]
_JSON: list[Any] = [click.option("--json", "as_json", is_flag=True, help="Figures as JSON.")]

Command = Callable[..., None]


def _options(*groups: list[Any]) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def reporting(**options: Any) -> None:
            try:
                function(**options)
            except DriftlineError as error:
                raise WrongUse(str(error)) from error

        wrapped: Command = reporting
        for option in reversed([option for group in groups for option in group]):
            wrapped = option(wrapped)
        return wrapped

    return decorate


@click.command("train")
@_options(_DATA, _BROKER, _REGISTRY, _TRAINING, _JSON)
@click.option("--from", "begins", help="First offsets of user-events by partition: 0:100,1:90.")
@click.option("--to", "ends", help="Offsets before which to stop, likewise; default: the end.")
@click.option("--epochs", type=click.IntRange(1), help="Passes; default 5.")
@click.option("--width", type=click.IntRange(2), help="Of the vectors, an even number; default 32.")
def train(begins: str | None, ends: str | None, **options: Any) -> None:
    """Train a model from nothing on a data set or on a log, and write it as a release.

    Prints figures of the events that were held out, with the live baselines beside them.
    """
    from models import offline

    settings = _settings(options)
    if (options["data"] is None) == (options["bootstrap"] is None and options["config"] is None):
        raise WrongUse("wanted either --data with --format, or --bootstrap; got both or neither")
    if options["data"] is not None:
        corpus, offsets = offline.corpus_of_data(
            options["data"], _needed_format(options), options["events"], settings
        )
    else:
        corpus, offsets = offline.corpus_of_log(
            settings, offline.parse_offsets(begins), offline.parse_offsets(ends)
        )
    published = offline.train_release(
        corpus, offsets, settings, _pipeline(options), options["threads"]
    )
    if options["as_json"]:
        click.echo(msgspec.json.encode(published.metrics))
    else:
        from models.report import report

        title = (
            f"held out: the newest {published.metrics['everyone']['popularity']['n']:.0f} events"
        )
        click.echo(report(published.metrics, title))
        click.echo(f"release {published.release.path}")
    if published.refusals:
        click.echo("may not go live: " + "; ".join(published.refusals), err=True)
        sys.exit(1)


@click.command("evaluate")
@_options(_DATA, _TRAINING, _JSON)
@click.option("--learn", type=click.IntRange(100), help="Events learned first; default half.")
@click.option(
    "--retrain-every", type=click.IntRange(0), default=0, help="Events; default 0, never."
)
def evaluate(learn: int | None, retrain_every: int, **options: Any) -> None:
    """Play a data set: every event is ranked from what was known before it, then learned."""
    from models import offline

    if options["data"] is None:
        raise WrongUse("wanted --data with --format, got none")
    settings = _settings(options)
    corpus, _ = offline.corpus_of_data(
        options["data"], _needed_format(options), options["events"], settings
    )
    metrics = offline.evaluate(corpus, learn, retrain_every, _pipeline(options), options["threads"])
    if options["as_json"]:
        click.echo(msgspec.json.encode(metrics))
    else:
        from models.report import report

        click.echo(report(metrics, f"prequential, retrained every {retrain_every or 'never'}"))


@click.command("trainer")
@_options(_BROKER, _REGISTRY, _TRAINING)
@click.option("--every-events", type=click.IntRange(1), help="Train after so many new events.")
@click.option("--every", help="Train after so much time: 90s, 15m, 1h.")
@click.option("--min-events", type=click.IntRange(1), default=1000, show_default=True)
@click.option(
    "--nice", type=click.IntRange(0, 19), default=10, show_default=True, help="Of a training."
)
@click.option("--releases", type=click.IntRange(1), help="Stop after so many; default never.")
def trainer(
    every_events: int | None,
    every: str | None,
    min_events: int,
    nice: int,
    releases: int | None,
    **options: Any,
) -> None:
    """Read the log beside the workers, train when it is due, release and announce. For ever."""
    every_ms = None if every is None else parse_duration(every)
    schedule = Schedule(every_events, every_ms, min_events)
    settings = _settings(options)
    _set_up_logging()
    from models.trainer import Trainer, TrainingProcess

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    process = TrainingProcess(options["threads"], nice, options["seed"], releases)
    Trainer(settings, schedule, process).run(stop)


def _settings(options: dict[str, Any]) -> TrainerSettings:
    names = ("bootstrap", "prefix", "registry", "release")
    overrides = {name: options.get(name) for name in names}
    overrides["seen_items"] = options["repeats"]
    return load_trainer_settings(options.get("config"), overrides)


def _needed_format(options: dict[str, Any]) -> str:
    if options["data_format"] is None:
        raise WrongUse(f"wanted --format beside --data, one of {', '.join(FORMATS)}; got none")
    return str(options["data_format"])


def _pipeline(options: dict[str, Any]) -> Any:
    from models.pipeline import PipelineSettings, quick

    settings = PipelineSettings(seed=options["seed"], width=options.get("width") or 32)
    return quick(settings, options["epochs"]) if options.get("epochs") else settings


class _FieldFormatter(logging.Formatter):
    """Appends the fields of `extra` as name=value."""

    _standard = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{k}={v}" for k, v in record.__dict__.items() if k not in self._standard]
        return " ".join([super().format(record), *fields])


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    formatter = _FieldFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what fails is said by us


commands: list[click.Command] = [train, evaluate, trainer]

if __name__ == "__main__":
    click.Group(commands=commands)()
