"""Decay by fixed-point weights: whole numbers, the same on every machine and in every order.

Forward decay (Cormode, Shkapenyuk, Srivastava & Xu, "Forward Decay: A Practical Time Decay Model
for Streaming Systems", ICDE 2009): an event adds 2^((t - start) / half-life) to a sum, and old
events need no touch. Time is cut into epochs of EPOCH_HALF_LIVES half-lives, so that a sum fits an
integer, and an epoch is forgotten as a whole, by event time alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: An epoch of a decayed sum, in half-lives: weights span 2^12, so that a sum fits 63 bits.
EPOCH_HALF_LIVES = 12
_FRACTION_BITS = 12
_POWERS = np.array(
    [round(2.0 ** (16 + i / 2**_FRACTION_BITS)) for i in range(2**_FRACTION_BITS)], dtype=np.int64
)


def epochs_and_weights(
    times_ms: NDArray[np.int64], half_life_ms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([N] epoch, [N] fixed-point weight 2^16 .. 2^28 within the epoch) of event times.

    Whole numbers throughout: the same on every machine. Time counts in steps of a 4096th of the
    half-life.
    """
    steps = (times_ms << _FRACTION_BITS) // half_life_ms
    epoch_steps = EPOCH_HALF_LIVES << _FRACTION_BITS
    epochs = steps // epoch_steps
    within = steps - epochs * epoch_steps
    weights = _POWERS[within & (2**_FRACTION_BITS - 1)] << (within >> _FRACTION_BITS)
    return epochs, weights
