"""What may go live, and what may not."""

from __future__ import annotations

import math

import numpy as np

from export.gate import failures, release_gates
from export.parity import rank_difference


def test_a_release_that_is_right_and_not_worse_may_go_live() -> None:
    gates = release_gates(1e-6, True, {"HR@50": (0.01, 0.005, 0.015), "HR@10": (0.0, 0.0, 0.0)})

    assert failures(gates) == []


def test_a_difference_within_the_interval_is_no_proof_of_being_worse() -> None:
    gates = release_gates(0.0, True, {"HR@10": (-0.002, -0.006, 0.002)})

    assert failures(gates) == []


def test_every_reason_against_a_release_is_named() -> None:
    gates = release_gates(math.inf, False, {"HR@50": (-0.02, -0.03, -0.01)})

    assert len(failures(gates)) == 3


def test_what_could_not_be_measured_stops_nothing() -> None:
    gates = release_gates(0.0, True, {"HR@10": (math.nan, math.nan, math.nan)})

    assert failures(gates) == []


def outputs(rows: list[int], scores: list[float]) -> dict[str, np.ndarray]:
    return {
        "rows": np.array([rows]),
        "scores": np.array([scores], dtype=np.float32),
        "parts": np.array([[scores], [[0.0] * len(scores)], [[0.0] * len(scores)]], np.float32),
    }


def test_items_of_equal_scores_may_stand_in_either_order() -> None:
    one = outputs([4, 7, 9, 2], [0.5, 0.2, 0.2, 0.1])
    other = outputs([4, 9, 7, 2], [0.5, 0.2, 0.2, 0.1])

    assert rank_difference(one, other) == 0.0


def test_another_item_is_never_equal() -> None:
    one = outputs([4, 7, 9], [0.5, 0.2, 0.1])
    other = outputs([5, 7, 9], [0.5, 0.2, 0.1])

    assert rank_difference(one, other) == math.inf


def test_what_is_not_a_number_is_never_equal() -> None:
    one = outputs([4, 7], [0.5, 0.2])

    assert rank_difference(one, outputs([4, 7], [math.nan, 0.2])) == math.inf
