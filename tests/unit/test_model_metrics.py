"""Figures, and how sure their differences are."""

from __future__ import annotations

import math

import numpy as np

from models.evaluate import SHARES, ShareEvidence
from models.metrics import NOT_LISTED, figures, paired_difference


def test_hits_and_gains_are_those_of_the_definition() -> None:
    row = figures(np.array([1, 3, 11, NOT_LISTED]))

    assert row["HR@10"] == 0.5
    assert row["HR@50"] == 0.75
    assert math.isclose(row["NDCG@10"], (1 + 1 / math.log2(4)) / 4)


def test_no_events_have_no_figures() -> None:
    assert math.isnan(figures(np.zeros(0, dtype=np.int64))["HR@10"])


def test_a_clear_difference_excludes_zero_and_none_includes_it() -> None:
    rng = np.random.default_rng(1)
    users = rng.integers(0, 200, 2000)
    base = rng.integers(1, 100, 2000)

    same = paired_difference(base, base, users, 10, rng)
    mean, low, high = paired_difference(base // 2, base, users, 10, rng)

    assert same == (0.0, 0.0, 0.0)
    assert 0 < low <= mean <= high


def evidence(events: float, **gains: tuple[float, float]) -> ShareEvidence:
    sums = np.zeros((len(SHARES), 2))
    for share, gain in gains.items():
        sums[SHARES.index(int(share[1:]) / 10)] = np.array(gain) * events
    return ShareEvidence(events, sums, np.full((len(SHARES), 2), 0.04 * events))


def test_the_share_with_the_best_sum_of_gains_is_chosen() -> None:
    assert evidence(4000, _3=(0.01, 0.01), _5=(0.012, 0.016)).best_share() == 0.5


def test_a_share_that_loses_at_the_top_is_left_out() -> None:
    assert evidence(4000, _3=(0.01, 0.01), _9=(-0.02, 0.1)).best_share() == 0.3


def test_without_a_gain_or_without_events_the_model_has_no_share() -> None:
    assert evidence(4000).best_share() == 0.0
    assert evidence(100, _5=(0.5, 0.5)).best_share() == 0.0


def test_former_evidence_counts_half() -> None:
    both = evidence(1000, _3=(0.01, 0.01)).with_former(evidence(4000, _5=(0.02, 0.02)))

    assert both.events == 3000
    assert both.best_share() == 0.5
