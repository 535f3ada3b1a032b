"""Turn a user's history and the live chain into what the model reads; the same for all who do it.

Whole-number arithmetic wherever a boundary could fall between two floating-point results: the
trainer and the worker must put an event into the same bucket.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: The newest events of a history that the model reads.
MAX_HISTORY = 50
#: Age buckets: 0 is padding, then the rounded log2 of the age in seconds plus one.
AGE_BUCKETS = 33
#: Values per user that the gate reads, see `gate_features`.
GATE_FEATURES = 7
#: The row of an event type that a release does not know; types of a release begin at 1.
OTHER_TYPE = 0


def age_buckets(ages_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Buckets 1 .. AGE_BUCKETS - 1 of ages in milliseconds, of any shape; below zero counts as 0.

    The bucket is 1 + round(log2(s + 1)) of the age s in whole seconds, found without a logarithm:
    log2 rounds up from n + 1/2, that is from (s + 1)^2 >= 2^(2n + 1).
    """
    seconds = np.minimum(np.maximum(ages_ms, 0) // 1000 + 1, 2**31)
    buckets: NDArray[np.int64] = 1 + np.searchsorted(_SQUARES, seconds * seconds, side="right")
    return np.minimum(buckets, AGE_BUCKETS - 1)


#: (s + 1)^2 from which the rounded log2 is 1, 2, 3, ...
_SQUARES = np.array([2 ** (2 * n + 1) for n in range(31)], dtype=np.int64)


def gate_features(
    gaps_ms: NDArray[np.int64],
    history_lengths: NDArray[np.int64],
    strongest_links: NDArray[np.float32],
) -> NDArray[np.float32]:
    """[B] gaps, lengths and strongest lasting shares of the chain -> [B, GATE_FEATURES].

    A user without a chain has a strongest link of 0; one without events a gap and a length of 0.
    """
    gap = np.log1p(np.maximum(gaps_ms, 0) / 1000.0) / 10.0
    columns = [
        gap,
        np.log1p(history_lengths) / 4.0,
        strongest_links > 0,
        history_lengths == 1,
        np.minimum(history_lengths, 5) / 5.0,
        gap * gap,
        strongest_links,
    ]
    return np.stack(columns, axis=1).astype(np.float32)
