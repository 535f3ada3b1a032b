"""What a ranker reads of a user is what stands in his row and in the statistics, nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_strategies import (
    ITEMS,
    START_MS,
    Counted,
    counted_events,
    deltas_of,
    index_of,
    statistics_of,
)

from export.features import MAX_HISTORY, OTHER_TYPE, age_buckets, gate_features
from export.items import item_hash
from export.statistics import CHAIN_DEPTH, ItemStatistics
from stream.history import HistoryEvent, RowLimits, UserRow, hash32, hash64
from stream.requests import RankRequests, build_columns

TYPES = {hash32("click"): 1, hash32("like"): 2}
SIZE = len(ITEMS)


@st.composite
def users(draw: st.DrawFn, extra: tuple[str, ...] = ("never met",)) -> list[tuple[UserRow, int]]:
    """(row, request time) of users with histories of known and unknown items."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        row = UserRow(0)
        limits = RowLimits(max_history=draw(st.integers(1, 8)), max_taken=4)
        time_ms = START_MS
        for number in range(draw(st.integers(0, 10))):
            time_ms += draw(st.integers(0, 10**7))
            item = item_hash(draw(st.sampled_from([*ITEMS, *extra])))
            kind = hash32(draw(st.sampled_from(["click", "like", "wink"])))
            row.fold(HistoryEvent(hash64(str(number)), item, time_ms, number, kind), limits)
        found.append((row, time_ms + draw(st.integers(0, 10**8))))
    return found


def requests_of(
    rows: list[tuple[UserRow, int]], statistics: ItemStatistics, filters_seen: bool = True
) -> RankRequests:
    return build_columns(rows, statistics.index, statistics, TYPES, SIZE, filters_seen).requests


@given(users(), counted_events())
def test_a_user_reads_the_same_alone_and_among_others(rows, events):
    statistics = statistics_of([events])

    together = requests_of(rows, statistics)

    for at, row in enumerate(rows):
        alone = requests_of([row], statistics)
        for field in dataclasses.fields(RankRequests):
            one, many = getattr(alone, field.name), getattr(together, field.name)
            if field.name == "chain_weights":
                one, many = one[:, 0], many[:, at]
            else:
                one, many = one[0], many[at]
            padding = SIZE if field.name == "seen_rows" else 0
            width = np.shape(one)[-1] if np.ndim(one) else 0
            np.testing.assert_array_equal(one, many[..., :width] if width else many, field.name)
            assert not width or (many[..., width:] == padding).all()


@given(users(), counted_events())
def test_the_columns_hold_the_known_items_of_the_history_oldest_first(rows, events):
    statistics = statistics_of([events])
    row_of = {item_hash(item): number for number, item in enumerate(ITEMS)}

    requests = requests_of(rows, statistics)

    assert len(requests) == len(rows)
    for at, (row, request_ms) in enumerate(rows):
        kept = [event for event in row.history() if int(event["item"]) in row_of]
        length = requests.history_length[at]
        assert length == len(kept)
        assert requests.history_rows[at, :length].tolist() == [row_of[int(e["item"])] for e in kept]
        assert requests.history_types[at, :length].tolist() == [
            TYPES.get(int(event["type"]), OTHER_TYPE) for event in kept
        ]
        ages = np.array([request_ms - event["time_ms"] for event in kept], dtype=np.int64)
        buckets = requests.history_age_buckets[at]
        assert buckets[:length].tolist() == age_buckets(ages).tolist()
        assert not buckets[length:].any()


@given(users(), counted_events())
def test_the_chain_of_a_user_is_that_of_his_last_known_items(rows, events):
    statistics = statistics_of([events])

    requests = requests_of(rows, statistics)

    for at in range(len(rows)):
        length = requests.history_length[at]
        newest_first = requests.history_rows[at, :length][::-1].tolist()
        wanted_rows, wanted = statistics.chain(newest_first[:CHAIN_DEPTH])
        width = len(wanted_rows)
        assert requests.chain_rows[at, :width].tolist() == wanted_rows.tolist()
        np.testing.assert_array_equal(requests.chain_weights[:, at, :width], wanted)
        assert not requests.chain_weights[:, at, width:].any()


@given(users(), counted_events())
def test_what_was_taken_is_seen_unless_seen_items_are_allowed(rows, events):
    statistics = statistics_of([events])
    known = {item_hash(item): number for number, item in enumerate(ITEMS)}

    filtered = requests_of(rows, statistics)
    allowed = requests_of(rows, statistics, filters_seen=False)

    for at, (row, _) in enumerate(rows):
        taken = {known[h] for h in row.taken_items().tolist() if h in known}
        assert set(filtered.seen_rows[at].tolist()) - {SIZE} == taken
    assert (allowed.seen_rows == SIZE).all()


@given(users(), counted_events())
def test_the_gate_reads_the_gap_to_the_last_event_and_all_events_ever(rows, events):
    statistics = statistics_of([events])

    requests = requests_of(rows, statistics)

    gaps = [request_ms - row.newest_ms if len(row) else 0 for row, request_ms in rows]
    links = [weights.max(initial=0) for weights in requests.chain_weights[0]]
    wanted = gate_features(
        np.array(gaps, dtype=np.int64),
        np.array([row.events_total for row, _ in rows]),
        np.array(links, dtype=np.float32),
    )
    np.testing.assert_array_equal(requests.gate_features, wanted)


def test_items_that_came_after_the_rankings_size_are_left_out_everywhere():
    statistics = statistics_of([[Counted(0, 1, "item-1", ("item-0",), START_MS, 16)]])
    late = [Counted(0, 2, "late", ("item-0", "later"), START_MS, 16)]
    statistics.apply(*deltas_of(late, statistics.index))
    row = UserRow(0)
    for number, item in enumerate(["later", "item-0"]):
        event = HistoryEvent(hash64(item), item_hash(item), START_MS, number, hash32("click"))
        row.fold(event, RowLimits())

    requests = requests_of([(row, START_MS)], statistics)

    assert requests.history_rows.tolist() == [[0]]
    linked = requests.chain_rows[0][requests.chain_weights[0, 0] > 0]
    assert linked.tolist() == [1]
    assert requests.chain_rows.max() < SIZE and requests.seen_rows.max() <= SIZE


def test_a_user_without_events_has_columns_of_padding():
    statistics = statistics_of([])

    requests = requests_of([(UserRow(0), START_MS)], statistics)

    assert requests.history_length.tolist() == [0]
    assert requests.history_age_buckets.tolist() == [[0]]
    assert not requests.chain_weights.any() and not requests.gate_features.any()
    assert requests.seen_rows.tolist() == [[SIZE]]


@pytest.mark.parametrize("length", [MAX_HISTORY, MAX_HISTORY + 20])
def test_a_ranker_reads_no_more_than_the_newest_events(length):
    statistics = statistics_of([])
    statistics.index.rows(map(str, range(length)))
    row = UserRow(0)
    for number in range(length):
        event = HistoryEvent(hash64(str(number)), item_hash(str(number)), number, number, 1)
        row.fold(event, RowLimits(max_history=200))

    requests = build_columns(
        [(row, length)], statistics.index, statistics, {}, len(statistics.index), True
    ).requests

    assert requests.history_length.tolist() == [MAX_HISTORY]
    newest = index_of([*ITEMS, *map(str, range(length))]).row(str(length - 1))
    assert requests.history_rows[0, -1] == newest
