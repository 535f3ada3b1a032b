"""Lists without a model: popularity and chain, mixed, as a slow and plain program says too."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.features import GATE_FEATURES
from export.items import item_hash
from stream.ranker import TIE_MARGIN, DeviceError, StatisticsRanker, available_providers
from stream.requests import LiveTensors, RankRequests


@st.composite
def rankings(draw: st.DrawFn) -> tuple[RankRequests, LiveTensors, float, int]:
    """Requests, live tensors, popularity's share and k."""
    users, size = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    width, seen = draw(st.integers(1, 6)), draw(st.integers(1, 6))

    # drawn by a generator of numpy: hypothesis takes long over many small numbers
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # few different weights, so that many scores are equal
    levels = draw(st.sampled_from([2, 5, 1000]))

    def weights(*shape: int) -> np.ndarray:
        return (rng.integers(0, levels, shape) / levels).astype(np.float32)

    nothing = np.zeros((users, 1), dtype=np.int64)
    requests = RankRequests(
        nothing,
        nothing,
        nothing,
        np.zeros(users, dtype=np.int64),
        np.zeros((users, GATE_FEATURES), dtype=np.float32),
        rng.integers(0, size, (users, width)),
        weights(2, users, width),
        rng.integers(0, size + 1, (users, seen)),
    )
    live = LiveTensors(
        weights(2, size),
        (rng.random(size) < 0.8).astype(np.float32),
        {},
        0,
    )
    return requests, live, draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])), draw(st.integers(1, 30))


def plain(
    requests: RankRequests, live: LiveTensors, share: float, user: int
) -> dict[int, tuple[float, float]]:
    """Row -> popularity and chain part, of what may be listed."""
    parts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row, popularity in enumerate(live.popularity[0].tolist()):
        parts[row][0] = share * popularity
    for row, weight in zip(
        requests.chain_rows[user].tolist(), requests.chain_weights[0, user].tolist(), strict=True
    ):
        parts[row][1] += (1 - share) * weight
    seen = set(requests.seen_rows[user].tolist())
    return {
        row: (popular, chained)
        for row, (popular, chained) in parts.items()
        if live.known[row] and row not in seen and popular + chained > 0
    }


@given(rankings())
def test_lists_hold_the_best_of_what_may_be_listed(ranking):
    requests, live, share, k = ranking
    size = len(live.known)
    hashes = np.array([item_hash(str(row)) for row in range(size)], dtype=np.uint64)

    ranked = StatisticsRanker(share).rank(requests, live, k)
    ordered = ranked.ordered(hashes, k)

    assert ranked.rows.shape == (len(requests), min(k + TIE_MARGIN, size))
    assert ordered.rows.shape == ordered.scores.shape == (len(requests), min(k, size))
    for user in range(len(requests)):
        wanted = plain(requests, live, share, user)
        totals = {row: sum(parts) for row, parts in wanted.items()}
        filled = np.flatnonzero(ordered.scores[user] > 1e-30)
        listed = ordered.rows[user, filled].tolist()
        scores = ordered.scores[user, filled].tolist()
        assert len(set(listed)) == len(listed)
        assert set(listed) <= set(wanted)
        assert scores == sorted(scores, reverse=True)
        best = sorted((t for t in totals.values() if t > 1e-30), reverse=True)[:k]
        assert scores == pytest.approx(best, rel=1e-5, abs=1e-7)
        for at, row in zip(filled.tolist(), listed, strict=True):
            assert scores[at] == pytest.approx(totals[row], rel=1e-5, abs=1e-7)
            popular, chained, modelled = ordered.parts[:, user, at].tolist()
            assert (popular, chained) == pytest.approx(wanted[row], rel=1e-4, abs=1e-6)
            assert modelled == 0


@given(rankings())
def test_equal_scores_stand_in_the_order_of_the_items_hashes(ranking):
    requests, live, share, _ = ranking
    hashes = np.array([item_hash(str(row)) for row in range(len(live.known))], dtype=np.uint64)

    ordered = StatisticsRanker(share).rank(requests, live, 40).ordered(hashes, 40)

    for scores, rows in zip(ordered.scores, ordered.rows, strict=True):
        pairs = [(-score, int(hashes[row])) for score, row in zip(scores, rows, strict=True)]
        assert pairs == sorted(pairs)


@given(rankings(), st.randoms(use_true_random=False))
def test_lists_do_not_depend_on_the_order_in_which_a_worker_met_the_items(ranking, random):
    requests, live, share, _ = ranking
    size = len(live.known)
    k = size  # no cut: which of more equals than the margin are cut is left open
    place = list(range(size))
    random.shuffle(place)
    to_other = np.array([*place, size])
    hashes = np.array([item_hash(str(row)) for row in range(size)], dtype=np.uint64)
    other_live = LiveTensors(np.empty_like(live.popularity), np.empty_like(live.known), {}, 0)
    other_live.popularity[:, place], other_live.known[place] = live.popularity, live.known
    other_hashes = np.empty_like(hashes)
    other_hashes[place] = hashes
    other = RankRequests(
        requests.history_rows,
        requests.history_types,
        requests.history_age_buckets,
        requests.history_length,
        requests.gate_features,
        to_other[requests.chain_rows],
        requests.chain_weights,
        to_other[requests.seen_rows],
    )

    one = StatisticsRanker(share).rank(requests, live, k).ordered(hashes, k)
    two = StatisticsRanker(share).rank(other, other_live, k).ordered(other_hashes, k)

    np.testing.assert_array_equal(to_other[one.rows], two.rows)
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.parts, two.parts)


def test_a_device_that_is_not_there_is_refused_with_what_is_there_and_what_to_do():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")

    with pytest.raises(DeviceError, match=r"CPUExecutionProvider.*set device = cpu"):
        available_providers("cuda")
    assert available_providers("cpu") == ["CPUExecutionProvider"]
