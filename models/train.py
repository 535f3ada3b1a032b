"""Train a model: first the gate over the live experts, then, with the gate frozen, the residual.

Trained on together with the transformer the gate runs away to the expert that knows nothing, and
everything gets worse (models/LOG.md); so it is trained first, by likelihood, and then left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from models.event_log import Ints
from models.losses import expert_shares, gate_loss, next_item_loss
from models.network import DriftlineModel
from models.sequences import BatchMaker

#: Called with the number of examples that were learned from.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How long and how fast a model learns."""

    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warm_up_steps: int = 50
    gate_epochs: int = 3
    gate_learning_rate: float = 2e-3
    #: Up to so many known items the loss sums over all of them. Above, over those that the live
    #: parts of the batch hold most of, and over a sample that stands for the rest.
    full_softmax_items: int = 12_000
    likely: int = 1536
    negatives: int = 1024


def learnable(maker: BatchMaker, numbers: Ints, needs_history: bool = True) -> Ints:
    """Those of the examples that a model can learn from.

    The target was known, may be listed and is a positive event; with `needs_history` the user has
    an earlier event.
    """
    ok = maker.was_known(numbers) & (maker.examples.events.weights[numbers] > 0)
    if maker.filters_seen:
        ok &= ~maker.was_seen(numbers)
    if needs_history:
        ok &= maker.history_lengths[numbers] > 0
    return numbers[ok]


def fit_gate(
    model: DriftlineModel,
    maker: BatchMaker,
    numbers: Ints,
    settings: TrainSettings,
    rng: Generator,
) -> None:
    """Train the gate alone, by the likelihood of its mix."""
    numbers = learnable(maker, numbers, needs_history=False)
    if not len(numbers):
        return
    features, shares, allowed = _expert_table(maker, numbers, settings.batch_size)
    optimizer = torch.optim.Adam(model.gate.parameters(), lr=settings.gate_learning_rate)
    for _ in range(settings.gate_epochs):
        order = torch.from_numpy(rng.permutation(len(numbers)))
        for at in torch.split(order, settings.batch_size):
            optimizer.zero_grad()
            gate_loss(model, features[at], shares[at], allowed[at]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _expert_table(maker: BatchMaker, numbers: Ints, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, GATE_FEATURES], [N, EXPERTS], [N, EXPERTS]: see `gate_loss`."""
    candidates = known_items(maker, numbers)
    columns = []
    order = np.argsort(maker.history_lengths[numbers], kind="stable")
    for begin in range(0, len(numbers), size):
        batch = maker.batch(numbers[order[begin : begin + size]], candidates)
        B, V = batch.live.known.shape
        seen = torch.zeros(B, V + 1).scatter_(1, batch.live.seen_rows, 1.0)
        seen[:, V] = 0
        columns.append((batch.live.gate_features, *expert_shares(batch.live, batch.targets, seen)))
    features, shares, allowed = (torch.cat(column) for column in zip(*columns, strict=True))
    return features, shares, allowed


def known_items(maker: BatchMaker, numbers: Ints) -> Ints:
    """Rows of all items that were known before the last of these examples."""
    x = maker.examples
    rows: Ints = np.flatnonzero(x.first_event < x.known_before[numbers - x.first].max(initial=0))
    return rows


def fit(
    model: DriftlineModel,
    maker: BatchMaker,
    numbers: Ints,
    settings: TrainSettings,
    rng: Generator,
    progress: Progress = lambda n: None,
) -> float:
    """Train everything but the gate on these examples; returns the last epoch's mean loss."""
    numbers = learnable(maker, numbers)
    if not len(numbers):
        return math.nan
    weights = [p for name, p in model.named_parameters() if not name.startswith("gate.")]
    optimizer = torch.optim.AdamW(
        weights, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * math.ceil(len(numbers) / settings.batch_size)
    candidates = known_items(maker, numbers)
    model.train()
    step, total = 0, 0.0
    for _ in range(settings.epochs):
        total = 0.0
        for at in _batches(numbers, maker.history_lengths, settings.batch_size, rng):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, steps, settings)
            loss = _loss(model, maker, at, candidates, settings, rng)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            step, total = step + 1, total + loss.item() * len(at)
            progress(len(at))
    model.eval()
    return total / len(numbers)


def _loss(
    model: DriftlineModel,
    maker: BatchMaker,
    numbers: Ints,
    known: Ints,
    settings: TrainSettings,
    rng: Generator,
) -> Tensor:
    ranked, stands_for = known, None
    if len(known) > settings.full_softmax_items:
        ranked, stands_for = sampled_items(maker, numbers, known, settings, rng)
    batch = maker.batch(numbers, ranked)
    kept = (torch.rand(len(batch.id_rows)) >= model.config.id_dropout).float()
    logits = model(batch.with_vectors(model.tower, kept))
    if stands_for is not None:
        logits = logits + torch.from_numpy(np.log(stands_for)).to(logits.dtype)
    return next_item_loss(logits, batch.targets)


def sampled_items(
    maker: BatchMaker, numbers: Ints, known: Ints, settings: TrainSettings, rng: Generator
) -> tuple[Ints, NDArray[np.float64]]:
    """([C] rows, [C] how many items each stands for) whose sum of exp(logits) is that of `known`.

    The targets and the items that popularity and chain of the batch hold most of stand for
    themselves; a uniform sample stands for the rest, so that the expected sum is exact.
    """
    mass = maker.live_mass(numbers)[known]
    is_certain = np.isin(known, maker.examples.events.items[numbers])
    likely = min(settings.likely, len(known))
    is_certain[np.argpartition(-mass, likely - 1)[:likely]] = True
    certain, rest = known[is_certain], known[~is_certain]
    drawn = rng.choice(rest, min(settings.negatives, len(rest)), replace=False)
    each = len(rest) / max(len(drawn), 1)
    rows = np.concatenate([certain, drawn])
    return rows, np.concatenate([np.ones(len(certain)), np.full(len(drawn), each)])


def _schedule(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm_up = min(1.0, (step + 1) / settings.warm_up_steps)
    return warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(numbers: Ints, lengths: Ints, size: int, rng: Generator) -> Iterator[Ints]:
    """All examples once, in a random order, those of similar lengths together."""
    shuffled = rng.permutation(numbers)
    for begin in range(0, len(shuffled), 16 * size):
        part = shuffled[begin : begin + 16 * size]
        part = part[np.argsort(np.minimum(lengths[part], 50), kind="stable")]
        batches = [part[at : at + size] for at in range(0, len(part), size)]
        for at in rng.permutation(len(batches)).tolist():
            yield batches[at]
