"""Measure a model prequentially: every event is ranked from what was known before it.

Beside it stand the live baselines: decayed popularity, the chain, and their fixed mix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from models.event_log import Ints
from models.metrics import NOT_LISTED, Ranks, figures, paired_difference
from models.network import DriftlineModel
from models.sequences import BatchMaker
from models.train import Progress, known_items

#: The shares of the model in a list that are tried on the validation slice.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POPULARITY, CHAIN, BASELINE, MODEL = "popularity", "chain", "chain + popularity", "driftline"


@dataclass(frozen=True, slots=True)
class Ranking:
    """1-based ranks of the targets of N examples, by who ranked."""

    numbers: Ints  # [N]
    users: Ints  # [N]
    is_returning: NDArray[np.bool_]  # [N] whether the user has an earlier event
    ranks: dict[str, Ranks]  # name -> [N]
    by_share: dict[float, Ranks]  # share of the model -> [N]


@torch.no_grad()
def rank_examples(
    model: DriftlineModel | None,
    maker: BatchMaker,
    numbers: Ints,
    shares: tuple[float, ...] = (),
    batch_size: int = 256,
    progress: Progress = lambda n: None,
) -> Ranking:
    """Rank all examples by the baselines and, for each of `shares`, by the mix with the model.

    Negative events are left out: nobody wants them predicted.
    """
    numbers = numbers[maker.examples.events.weights[numbers] > 0]
    found: dict[str | float, Ranks] = {
        name: np.full(len(numbers), NOT_LISTED) for name in (POPULARITY, CHAIN, BASELINE)
    }
    found |= {share: np.full(len(numbers), NOT_LISTED) for share in shares}
    candidates = known_items(maker, numbers)
    order = np.argsort(maker.history_lengths[numbers], kind="stable")
    if model is not None:
        model.eval()
    for begin in range(0, len(numbers), batch_size):
        at = order[begin : begin + batch_size]
        for name, ranks in _rank_batch(model, maker, numbers[at], candidates, shares).items():
            found[name][at] = ranks
        progress(len(at))
    return Ranking(
        numbers,
        maker.examples.events.users[numbers],
        maker.history_lengths[numbers] > 0,
        {name: ranks for name, ranks in found.items() if isinstance(name, str)},
        {share: ranks for share, ranks in found.items() if not isinstance(share, str)},
    )


def _rank_batch(
    model: DriftlineModel | None,
    maker: BatchMaker,
    numbers: Ints,
    candidates: Ints,
    shares: tuple[float, ...],
) -> dict[str | float, Ranks]:
    batch = maker.batch(numbers, candidates)
    live = batch.live
    B, V = live.known.shape
    taken = torch.zeros(B, V + 1).scatter_(1, live.seen_rows, 1.0)[:, :V]
    allowed = (live.known - taken) > 0.5
    popularity = live.popularity[0]
    chain = torch.zeros(B, V).scatter_add_(1, live.chain_rows, live.chain_weights[0])
    part = model.config.popularity_share if model is not None else 0.7
    scores: dict[str | float, torch.Tensor] = {
        POPULARITY: popularity,
        CHAIN: chain,
        BASELINE: part * popularity + (1 - part) * chain,
    }
    if model is not None:
        learned = torch.softmax(model(batch.with_vectors(model.tower)), dim=-1)
        scores |= {s: (1 - s) * scores[BASELINE] + s * learned for s in shares}
    return {name: _ranks(score, allowed, batch.targets) for name, score in scores.items()}


def _ranks(scores: torch.Tensor, allowed: torch.Tensor, targets: torch.Tensor) -> Ranks:
    """[B] 1-based ranks; ties count against the target, one without a score is not listed."""
    scores = scores.masked_fill(~allowed, -1.0)
    own = scores.gather(1, targets.clamp(min=0)[:, None])
    ranks = (scores >= own * (1 - 1e-6)).sum(1)
    is_listed = (targets >= 0) & (own[:, 0] > 0)
    found: Ranks = torch.where(is_listed, ranks, NOT_LISTED).numpy()
    return found


@dataclass(frozen=True, slots=True)
class ShareEvidence:
    """What each of SHARES gains over chain + popularity, for returning users.

    Sums over events of the difference of hits at 10 and at 50, and of its square.
    """

    events: float
    gains: NDArray[np.float64]  # [SHARES, 2]
    squares: NDArray[np.float64]  # [SHARES, 2]

    def with_former(self, former: ShareEvidence | None) -> ShareEvidence:
        """Together with what a former training found, at half its weight: a slice is small."""
        if former is None:
            return self
        return ShareEvidence(
            self.events + former.events / 2,
            self.gains + former.gains / 2,
            self.squares + former.squares / 2,
        )

    def best_share(self, min_events: int = 200) -> float:
        """The share with the best sum of gains in HR@10 and HR@50.

        Left out are shares that lose more than a standard error in either. 0 if none gains, or if
        there are too few events to tell.
        """
        if self.events < min_events:
            return 0.0
        means = self.gains / self.events
        errors = np.sqrt(np.maximum(self.squares / self.events - means**2, 0.0) / self.events)
        total = np.where((means < -errors).any(axis=1), -1.0, means.sum(axis=1))
        best = int(total.argmax())
        return SHARES[best] if total[best] > 0 else 0.0


def share_evidence(ranking: Ranking) -> ShareEvidence:
    """What a ranking by all of SHARES shows."""
    which = ranking.is_returning
    baseline = ranking.ranks[BASELINE][which]
    hits = np.array(
        [[ranking.by_share[share][which] <= k for k in (10, 50)] for share in SHARES]
    ).astype(np.float64)  # [SHARES, 2, N]
    difference = hits - np.array([baseline <= k for k in (10, 50)])
    return ShareEvidence(float(which.sum()), difference.sum(axis=2), (difference**2).sum(axis=2))


def table(ranking: Ranking, share: float | None, returning: bool) -> dict[str, dict[str, float]]:
    """Figures by who ranked, for returning users or for everyone."""
    which = ranking.is_returning if returning else np.ones(len(ranking.numbers), dtype=bool)
    rows = {name: figures(ranks[which]) for name, ranks in ranking.ranks.items()}
    if share is not None:
        rows[MODEL] = figures(ranking.by_share[share][which])
    return rows


def differences(
    ranking: Ranking, share: float, rng: Generator
) -> dict[str, tuple[float, float, float]]:
    """HR@10 and HR@50 of the model minus chain + popularity, returning users, with intervals."""
    which = ranking.is_returning
    ours, theirs = ranking.by_share[share][which], ranking.ranks[BASELINE][which]
    users = ranking.users[which]
    return {f"HR@{k}": paired_difference(ours, theirs, users, k, rng) for k in (10, 50)}


def summary(ranking: Ranking, share: float, rng: Generator) -> dict[str, Any]:
    """All figures of a ranking as JSON; None for what is not a number.

    Differences to chain + popularity are (mean, lower, upper end of the 95 % interval).
    """
    return {
        "returning": _finite(table(ranking, share, returning=True)),
        "everyone": _finite(table(ranking, share, returning=False)),
        "minus chain + popularity": _finite(differences(ranking, share, rng)),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_finite(inner) for inner in value]
    return value if np.isfinite(value) else None
