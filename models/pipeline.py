"""Make a trained model out of a corpus: from nothing (cold), or from a former one (warm).

What is chosen (the model's share of a list) is chosen on events that the weights had not seen, and
the figures of a release are those of these events.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.random import Generator
from torch import nn

from export.catalogue import ReleaseCatalogue
from models.config import DriftlineConfig
from models.corpus import Corpus
from models.evaluate import SHARES, Ranking, ShareEvidence, rank_examples, share_evidence
from models.event_log import Ints
from models.network import DriftlineModel
from models.sequences import BatchMaker
from models.train import Progress, TrainSettings, fit, fit_gate, learnable


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a model is trained. Defaults are those chosen in models/LOG.md."""

    seed: int = 1
    width: int = 32
    dropout: float = 0.4
    id_dropout: float = 0.3
    train: TrainSettings = field(default_factory=TrainSettings)
    #: The part of a cold training's events that only choose and measure, until the very end.
    validation_part: float = 0.1
    #: The first events are left out: before them too little is known to learn from.
    burn_in_part: float = 0.1
    #: When the newest events are learned at last: passes, rate, and older examples beside them.
    finish: TrainSettings = field(
        default_factory=lambda: TrainSettings(epochs=2, learning_rate=1e-3, warm_up_steps=10)
    )
    older_per_new: float = 1.0
    #: A warm training learns from so many of the newest events at most.
    max_new: int = 30_000


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that may be exported, and what it was measured on before it learned from it."""

    model: DriftlineModel
    catalogue: ReleaseCatalogue
    validation: Ranking
    evidence: ShareEvidence  # that `share` was chosen by
    share: float
    loss: float

    def former(self) -> Former:
        """What the next training goes on from."""
        return Former(self.model, self.catalogue, self.evidence)


@dataclass(frozen=True, slots=True)
class Former:
    """What a warm training goes on from."""

    model: DriftlineModel
    catalogue: ReleaseCatalogue
    evidence: ShareEvidence | None = None


@dataclass(frozen=True, slots=True)
class _Start:
    """A measured model that is about to learn the events from number `new_from` on."""

    model: DriftlineModel
    catalogue: ReleaseCatalogue
    validation: Ranking
    evidence: ShareEvidence
    new_from: int


def train_cold(
    corpus: Corpus, settings: PipelineSettings, progress: Progress = lambda n: None
) -> Trained:
    """Train from nothing.

    1. Hold out the newest events.
    2. Train the gate and then the rest on those before.
    3. Choose the model's share on what was held out, and measure there.
    4. Learn what was held out as well.
    """
    rng = _seeded(settings.seed)
    x = corpus.examples
    until = len(x) - int(len(x) * settings.validation_part)  # 1
    begin = max(x.first, int(len(x) * settings.burn_in_part))
    catalogue = corpus.catalogue(until)
    batches = corpus.batches(catalogue)
    model = new_model(catalogue, settings)
    fit_gate(model, batches, np.arange(begin, until), settings.train, rng)  # 2
    fit(model, batches, np.arange(begin, until), settings.train, rng, progress)
    validation = rank_examples(model, batches, np.arange(max(until, x.first), len(x)), SHARES)  # 3
    start = _Start(model, catalogue, validation, share_evidence(validation), until)
    return _finished(corpus, start, settings, rng, progress)  # 4


def train_warm(
    corpus: Corpus,
    former: Former,
    new_from: int,
    settings: PipelineSettings,
    progress: Progress = lambda n: None,
) -> Trained:
    """Go on from a former model; it has seen the events before number `new_from`.

    The share is chosen, and the figures measured, by ranking the new events with the former model:
    as stale as the one that is served. The former model itself is not changed.
    """
    rng = _seeded(settings.seed + new_from)
    x = corpus.examples
    new_from = max(new_from, x.first, len(x) - settings.max_new)
    batches = corpus.batches(former.catalogue)
    validation = rank_examples(former.model, batches, np.arange(new_from, len(x)), SHARES)
    evidence = share_evidence(validation).with_former(former.evidence)
    start = _Start(former.model, former.catalogue, validation, evidence, new_from)
    return _finished(corpus, start, settings, rng, progress)


def _finished(
    corpus: Corpus, start: _Start, settings: PipelineSettings, rng: Generator, progress: Progress
) -> Trained:
    """Learn the new events, beside a sample of older ones."""
    catalogue = corpus.catalogue(len(corpus.examples), start.catalogue)
    model = grown(start.model, catalogue)
    batches = corpus.batches(catalogue)
    numbers = _new_and_older(batches, start.new_from, settings, rng)
    loss = fit(model, batches, numbers, settings.finish, rng, progress)
    share = start.evidence.best_share()
    model.model_share.fill_(share)
    return Trained(model, catalogue, start.validation, start.evidence, share, loss)


def _new_and_older(
    batches: BatchMaker, new_from: int, settings: PipelineSettings, rng: Generator
) -> Ints:
    x = batches.examples
    new = learnable(batches, np.arange(new_from, len(x)))
    older = learnable(batches, np.arange(x.first, new_from))
    count = min(len(older), int(len(new) * settings.older_per_new))
    return np.concatenate([new, rng.choice(older, count, replace=False)])


def new_model(catalogue: ReleaseCatalogue, settings: PipelineSettings) -> DriftlineModel:
    """An untrained model with the tables of a catalogue."""
    config = DriftlineConfig(
        items=len(catalogue.items),
        attributes=len(catalogue.attributes),
        event_types=len(catalogue.event_types),
        width=settings.width,
        dropout=settings.dropout,
        id_dropout=settings.id_dropout,
    )
    return DriftlineModel(config)


def grown(model: DriftlineModel, catalogue: ReleaseCatalogue) -> DriftlineModel:
    """A copy of a model with tables for a catalogue that goes on from the model's own.

    The id of a new item starts at nothing, so that the item stays what its attributes say.
    """
    config = DriftlineConfig(**model.config.to_dict())
    config.items, config.attributes = len(catalogue.items), len(catalogue.attributes)
    config.event_types = len(catalogue.event_types)
    other = DriftlineModel(config)
    state = model.state_dict()
    with torch.no_grad():
        for name, weight in other.state_dict().items():
            kept = state[name]
            if weight.shape == kept.shape:
                weight.copy_(kept)
                continue
            if name.startswith("tower.id_"):
                weight.zero_()
            weight[: len(kept)] = kept
    return other


def _seeded(seed: int) -> Generator:
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(weight.numel() for weight in model.parameters())


def quick(settings: PipelineSettings, epochs: int) -> PipelineSettings:
    """The same settings with fewer passes, for tests and first trials."""
    return replace(settings, train=replace(settings.train, epochs=epochs))
