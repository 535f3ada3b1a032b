"""Train and evaluate once, from a data set on disk or from a log: what the command line calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from export.catalogue import attributes_of
from export.datasets import read_dataset
from export.errors import DriftlineError
from export.items import ItemIndex
from export.registry import Registry
from models.corpus import Corpus, Names, attributes_by_item
from models.evaluate import summary
from models.event_log import EventBuffer
from models.examples import ExampleFold, FoldSettings
from models.intake import Intake
from models.log_source import KafkaLog, Offsets
from models.pipeline import PipelineSettings, train_cold
from models.prequential import CHOSEN, Play, play
from models.publish import Origin, Published, publish
from models.settings import TrainerSettings


class OffsetsError(DriftlineError):
    """Offsets on the command line cannot be read."""


class TooFewEventsError(DriftlineError):
    """There is not enough to learn from."""


#: Fewer events than these make no model.
_LEAST_EVENTS = 100


def corpus_of_data(
    path: Path, data_format: str, events: int | None, settings: TrainerSettings
) -> tuple[Corpus, Offsets]:
    """The first `events` of a data set; types that settings do not know count as positive."""
    data = read_dataset(path, data_format)
    interactions = data.interactions[:events]
    index = ItemIndex()
    buffer = EventBuffer(index)
    for event in interactions:
        role = settings.role_of(event.type)
        if role is not None and role.role not in ("positive", "negative"):
            continue
        weight = 16 if role is None else round(role.weight * 16) * (role.role == "positive")
        buffer.append(event.user, event.item, event.type, int(event.time_s * 1000), weight)
    attributes = {
        item: attributes_of(about.title, about.categories, (), "")
        for item, about in data.items.items()
    }
    corpus = _folded(buffer, index, attributes, settings)
    return corpus, {str(path): {"0": (0, len(interactions))}}


def corpus_of_log(
    settings: TrainerSettings, begins: dict[int, int] | None, ends: dict[int, int] | None
) -> tuple[Corpus, Offsets]:
    """What `user-events` holds between offsets by partition; without: from first to last."""
    index = ItemIndex()
    intake = Intake(settings, index)
    source = KafkaLog(settings, intake, begins, ends or {})
    with _bar(source.wanted, "records", "reading") as bar:
        while not source.is_finished:
            bar.update(source.poll())
    offsets = source.offsets()
    source.close()
    forgotten = intake.take_forgotten()
    return _folded(intake.buffer, index, intake.attributes, settings, forgotten), offsets


def _folded(
    buffer: EventBuffer,
    index: ItemIndex,
    attributes: Any,
    settings: TrainerSettings,
    forgotten: Collection[int] = (),
) -> Corpus:
    if len(buffer) < _LEAST_EVENTS:
        raise TooFewEventsError(
            f"wanted at least {_LEAST_EVENTS} events to learn from, got {len(buffer)}; wait for "
            "more, or name another data set or --prefix"
        )
    fold = ExampleFold(index, FoldSettings(statistics=settings.statistics))
    with _bar(len(buffer), "events", "folding") as bar:
        for count in fold.extend(buffer.take()):
            bar.update(count)
    fold.forget(set(forgotten))
    names = Names(index.ids, buffer.types, attributes_by_item(attributes, index.ids))
    return Corpus(fold.examples(), names, settings.seen_items == "filter")


def train_release(
    corpus: Corpus,
    offsets: Offsets,
    settings: TrainerSettings,
    pipeline: PipelineSettings,
    threads: int,
) -> Published:
    """Train from nothing and write the next release of the registry."""
    torch.set_num_threads(threads)
    with _bar(None, "examples", "training") as bar:
        trained = train_cold(corpus, pipeline, bar.update)
    origin = Origin(offsets, None, time.time_ns() // 1_000_000)
    registry = Registry(Path(settings.registry))
    return publish(trained, corpus, pipeline, origin, registry, settings.release)


def evaluate(
    corpus: Corpus,
    learn: int | None,
    retrain_every: int,
    pipeline: PipelineSettings,
    threads: int,
) -> dict[str, Any]:
    """Figures of all events after the first `learn` (default: half), with the baselines."""
    torch.set_num_threads(threads)
    total = len(corpus.examples)
    how = Play(total // 2 if learn is None else learn, retrain_every)
    if not _LEAST_EVENTS <= how.learn < total:
        raise TooFewEventsError(f"wanted --learn from {_LEAST_EVENTS} to {total}, got {how.learn}")
    with _bar(total - how.learn, "events", "ranking") as bar:
        ranking = play(corpus, how, pipeline, bar.update, bar.write)
    return summary(ranking, CHOSEN, np.random.default_rng(pipeline.seed))


def parse_offsets(text: str | None) -> dict[int, int] | None:
    """Offsets by partition of "0:100,1:90"; raises OffsetsError for anything else."""
    if text is None:
        return None
    try:
        pairs = [piece.split(":") for piece in text.split(",")]
        return {int(partition): int(offset) for partition, offset in pairs}
    except ValueError as error:
        raise OffsetsError(
            f"wanted offsets by partition such as 0:100,1:90, got {text!r}"
        ) from error


def _bar(total: int | None, unit: str, what: str) -> Any:
    """A progress bar on a terminal, nothing elsewhere."""
    return tqdm(total=total, unit=" " + unit, desc=what, disable=None, file=sys.stderr)
