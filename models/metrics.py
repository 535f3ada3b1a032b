"""Hit rates and gains of ranked lists, and how sure a difference between two is."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Ranks = NDArray[np.int64]

#: The rank of an item that is not listed.
NOT_LISTED = 10**6


def hit_rate(ranks: Ranks, k: int) -> float:
    """The part of [N] 1-based ranks that is at most `k`; NaN for none."""
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def ndcg(ranks: Ranks, k: int) -> float:
    """Mean of 1 / log2(rank + 1) up to rank `k`, one relevant item each; NaN for none."""
    if not len(ranks):
        return float("nan")
    return float(np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0.0).mean())


def figures(ranks: Ranks) -> dict[str, float]:
    """The figures that are shown everywhere, with the number of events they are for."""
    return {
        "HR@10": hit_rate(ranks, 10),
        "NDCG@10": ndcg(ranks, 10),
        "HR@50": hit_rate(ranks, 50),
        "n": float(len(ranks)),
    }


def paired_difference(
    ours: Ranks, theirs: Ranks, users: NDArray[np.int64], k: int, rng: Generator, draws: int = 500
) -> tuple[float, float, float]:
    """Mean difference of hits at `k`, and the 2.5 and 97.5 percentiles of a bootstrap over users.

    [N] ranks of the same events, [N] whose they are. All events of a user are drawn together.
    """
    if not len(ours):
        return float("nan"), float("nan"), float("nan")
    difference = (ours <= k).astype(np.float64) - (theirs <= k)
    _, owner = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(owner, difference), np.bincount(owner)
    means = np.empty(draws)
    for draw in range(draws):
        drawn = rng.integers(0, len(sums), len(sums))
        means[draw] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def ranks_of(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> Ranks:
    """[B] 1-based ranks of the targets in [B, V] scores; ties count against them.

    A target that is not on the axis (-1) or has no score above 0 is not listed.
    """
    places = np.maximum(targets, 0)[:, None]
    own = np.take_along_axis(scores, places, axis=1)
    ranks = (scores >= own * (1 - 1e-6)).sum(axis=1)
    return np.where((targets >= 0) & (own[:, 0] > 0), ranks, NOT_LISTED)
