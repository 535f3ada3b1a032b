"""Play a stream: rank every event before it is learned, retrain on the way as the trainer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from models.corpus import Corpus
from models.evaluate import Ranking, rank_examples
from models.examples import Examples
from models.metrics import Ranks
from models.pipeline import PipelineSettings, Trained, train_cold, train_warm
from models.train import Progress

#: The share under which the mix with each release's own chosen share is kept.
CHOSEN = -1.0


@dataclass(frozen=True, slots=True)
class Play:
    """What is played: events from number `learn` on are ranked, those before are learned first.

    `retrain_every` events there is a warm training; 0: the first weights serve to the end.
    """

    learn: int
    retrain_every: int = 0


def play(
    corpus: Corpus,
    how: Play,
    settings: PipelineSettings,
    progress: Progress = lambda n: None,
    note: Callable[[str], None] = lambda text: None,
) -> Ranking:
    """Ranks of all events from `how.learn` on. Nothing is ranked by what has seen it."""
    total = len(corpus.examples)
    trained = train_cold(corpus_until(corpus, how.learn), settings)
    note(f"trained on {how.learn} events, model share {trained.share}")
    rankings = []
    step = how.retrain_every or total
    for begin in range(how.learn, total, step):
        end = min(begin + step, total)
        rankings.append(_ranked(corpus, trained, begin, end, progress))
        if end < total:
            seen = corpus_until(corpus, end)
            trained = train_warm(seen, trained.former(), begin, settings)
            note(f"retrained on {end} events, model share {trained.share}")
    return _joined(rankings)


def _ranked(corpus: Corpus, trained: Trained, begin: int, end: int, progress: Progress) -> Ranking:
    numbers = np.arange(begin, end)
    batches = corpus.batches(trained.catalogue)
    ranking = rank_examples(trained.model, batches, numbers, (trained.share,), progress=progress)
    return replace(ranking, by_share={CHOSEN: ranking.by_share[trained.share]})


def corpus_until(corpus: Corpus, count: int) -> Corpus:
    """What was there after the first `count` events."""
    return replace(corpus, examples=until(corpus.examples, count))


def until(examples: Examples, count: int) -> Examples:
    """The examples of the first `count` events."""
    x, known = examples, count - examples.first
    entries = int(x.chain_ends[known])
    return replace(
        x,
        events=x.events.select(slice(0, count)),
        snapshot_at=x.snapshot_at[:known],
        known_before=x.known_before[:known],
        first_event=np.where(x.first_event < count, x.first_event, count),
        chain_ends=x.chain_ends[: known + 1],
        chain_rows=x.chain_rows[:entries],
        chain_weights=x.chain_weights[:, :entries],
        gate_features=x.gate_features[:known],
    )


def _joined(rankings: list[Ranking]) -> Ranking:
    def join(tables: list[Mapping[str, Ranks]]) -> dict[str, Ranks]:
        return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}

    return Ranking(
        np.concatenate([r.numbers for r in rankings]),
        np.concatenate([r.users for r in rankings]),
        np.concatenate([r.is_returning for r in rankings]),
        join([r.ranks for r in rankings]),
        {CHOSEN: np.concatenate([r.by_share[CHOSEN] for r in rankings])},
    )
