"""Small made-up streams with a pattern that can be learned, and models trained on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.items import ItemIndex
from models.corpus import Corpus, Names, attributes_by_item
from models.event_log import EventBuffer
from models.examples import ExampleFold, FoldSettings
from models.pipeline import PipelineSettings
from models.train import TrainSettings

START_MS = 1_700_000_000_000
QUICK = PipelineSettings(
    width=16,
    train=TrainSettings(epochs=2, batch_size=64),
    finish=TrainSettings(epochs=1, batch_size=64, learning_rate=1e-3, warm_up_steps=5),
)


def made_up_events(
    events: int = 3000, users: int = 60, items: int = 120, seed: int = 1
) -> list[tuple[str, str, int]]:
    """(user, item, time): every user keeps to one of six kinds of items, most of the time."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(events):
        user = int(rng.integers(users))
        kind = user % 6 if rng.random() < 0.8 else int(rng.integers(6))
        item = 6 * int(min(rng.geometric(0.1), items // 6) - 1) + kind
        made.append((f"u{user}", f"i{item}", START_MS + number * 60_000))
    return made


def corpus_of(
    events: list[tuple[str, str, int]], filters_seen: bool = False, **fold: int
) -> Corpus:
    """The corpus of (user, item, time) events; an item's kind is its attribute."""
    index = ItemIndex()
    buffer = EventBuffer(index)
    for user, item, time_ms in events:
        buffer.append(user, item, "click", time_ms)
    folded = ExampleFold(index, replace(FoldSettings(), **fold))
    for _ in folded.extend(buffer.take()):
        pass
    kinds = {item: [f"kind:{int(item[1:]) % 6}"] for item in index.ids}
    names = Names(index.ids, buffer.types, attributes_by_item(kinds, index.ids))
    return Corpus(folded.examples(), names, filters_seen)
