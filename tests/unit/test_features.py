"""Trainer and worker put an event into the same bucket, at every boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.features import AGE_BUCKETS, GATE_FEATURES, age_buckets, gate_features


@given(st.integers(0, 2**33 * 1000))
def test_the_bucket_is_the_rounded_logarithm_of_the_age_in_seconds(age_ms):
    seconds = age_ms // 1000 + 1
    # log2 rounds up from n + 1/2: compared in whole numbers, as floats fail at the boundary
    rounded = next(n for n in range(64) if seconds * seconds < 2 ** (2 * n + 1))

    bucket = age_buckets(np.array([age_ms]))[0]

    assert bucket == min(1 + rounded, AGE_BUCKETS - 1)
    assert abs(rounded - math.log2(seconds)) <= 0.5 + 1e-9


def test_an_event_after_the_request_counts_as_of_now():
    assert age_buckets(np.array([-1, -(2**60), 0])).tolist() == [1, 1, 1]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2))
def test_older_is_never_a_smaller_bucket_and_zero_is_left_for_padding(ages_ms):
    ages = np.sort(np.array(ages_ms))

    buckets = age_buckets(ages)

    assert (np.diff(buckets) >= 0).all()
    assert buckets.min() >= 1 and buckets.max() < AGE_BUCKETS


def test_buckets_keep_the_shape_they_are_asked_in():
    assert age_buckets(np.zeros((3, 5), dtype=np.int64)).shape == (3, 5)


@given(st.integers(-(2**40), 2**40), st.integers(0, 10**6), st.floats(0, 1, width=32))
def test_the_gate_reads_the_same_features_for_one_user_and_for_many(gap_ms, length, link):
    columns = np.array([gap_ms]), np.array([length]), np.array([link], dtype=np.float32)

    alone = gate_features(*columns)
    among = gate_features(*(np.repeat(column, 3) for column in columns))

    gap = math.log1p(max(gap_ms, 0) / 1000) / 10
    wanted = [
        gap,
        math.log1p(length) / 4,
        float(link > 0),
        float(length == 1),
        min(length, 5) / 5,
        gap * gap,
        link,
    ]
    assert alone.shape == (1, GATE_FEATURES) and alone.dtype == np.float32
    assert alone[0].tolist() == pytest.approx(wanted, rel=1e-6)
    assert (among == alone).all()
