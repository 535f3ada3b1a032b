"""The live statistics: the same bits whatever the order of arrival, and the formula's numbers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_strategies import (
    FEW_PAIRS,
    ITEMS,
    SETTINGS,
    START_MS,
    Counted,
    bits,
    counted_events,
    cut_up,
    deltas_of,
    index_of,
    statistics_of,
    sums,
)

from export.decay import EPOCH_HALF_LIVES, epochs_and_weights
from export.items import NO_ROW, item_hash
from export.slot_table import SlotTable
from export.statistics import (
    CHAIN_DEPTH,
    COUNTED_AT_ONCE,
    DAY_MS,
    POPULARITY_EPOCHS,
    DecayedCounts,
    Deltas,
    ItemStatistics,
    StatisticsSettings,
    _by_owner_and_hash,
)
from export.transitions import CHAIN_EPOCHS, SAMPLING, Transitions, event_levels

#: What the newest and the oldest time of a step differ by: 2^(1/4096) - 1.
STEP = 1.8e-4


@given(st.data())
def test_any_interleaving_and_any_batching_gives_the_same_bits(data):
    events = data.draw(counted_events())
    order = data.draw(st.permutations(ITEMS))
    batches = data.draw(cut_up(events))

    settings = data.draw(st.sampled_from([SETTINGS, FEW_PAIRS]))

    at_once = statistics_of([events], settings=settings)
    in_parts = statistics_of(batches, order, settings)

    assert bits(in_parts) == bits(at_once)


@given(st.data())
def test_reading_in_between_sees_all_that_was_applied_and_changes_no_bit(data):
    batches = data.draw(cut_up(data.draw(counted_events())))
    read_before = ItemStatistics(index_of(ITEMS), SETTINGS)
    for at, batch in enumerate(batches):
        read_before.apply(*deltas_of(batch, read_before.index))
        chains = [read_before.chain([row])[1].tobytes() for row in range(len(ITEMS))]

        anew = statistics_of(batches[: at + 1])
        anew.popularity()
        assert chains == [anew.chain([row])[1].tobytes() for row in range(len(ITEMS))]
        assert bits(read_before) == bits(statistics_of(batches[: at + 1]))


def test_what_nobody_reads_is_counted_all_the_same_when_thousands_wait(monkeypatch):
    counted: list[int] = []
    add = Transitions.add
    monkeypatch.setattr(
        Transitions,
        "add",
        lambda self, items, *rest: counted.append(len(items)) or add(self, items, *rest),
    )
    events = [Counted(0, at, ITEMS[at % 12], (ITEMS[at % 7],), START_MS, 16) for at in range(1000)]
    statistics = ItemStatistics(index_of(ITEMS), SETTINGS)

    for again in range(3 * COUNTED_AT_ONCE // 1000):
        moved = [replace(event, offset=1000 * again + event.offset) for event in events]
        statistics.apply(*deltas_of(moved, statistics.index))

    assert 0 < statistics.events - sum(counted) < COUNTED_AT_ONCE
    assert max(counted) < COUNTED_AT_ONCE + 1000


@given(st.data())
def test_decayed_counts_are_the_same_bits_in_any_order(data):
    events = data.draw(counted_events())
    shuffled = data.draw(st.permutations(events))

    def counted(order: list[Counted]) -> bytes:
        counts, index = DecayedCounts(DAY_MS), index_of(ITEMS)
        for event in order:
            (deltas,) = deltas_of([event], index)
            counts.add(deltas.items, deltas.times_ms, deltas.weights)
        return counts.values(len(ITEMS)).tobytes()

    assert counted(shuffled) == counted(events)


@given(st.data())
def test_transitions_are_the_same_bits_in_any_order(data):
    events = data.draw(counted_events(span_days=900))
    shuffled = data.draw(st.permutations(events))

    max_pairs = data.draw(st.integers(2, 40))

    def linked(order: list[Counted]) -> tuple[object, ...]:
        transitions, index = Transitions(14 * DAY_MS, max_pairs), index_of(ITEMS)
        for event in order:
            (deltas,) = deltas_of([event], index)
            levels = event_levels(deltas.partition, deltas.offsets)
            transitions.add(deltas.items, deltas.previous, deltas.times_ms, deltas.weights, levels)
            assert len(transitions) <= max_pairs
        held = transitions.columns()
        return transitions.scale, sums(held.pairs, ITEMS), sums(held.above_floor, ITEMS)

    assert linked(shuffled) == linked(events)


@given(st.data())
def test_what_is_sent_again_after_a_crash_changes_nothing(data):
    events = data.draw(counted_events())
    batches = data.draw(cut_up(events))
    again = data.draw(st.integers(0, len(batches) - 1))

    once = statistics_of(batches)
    twice = statistics_of(batches)
    applied = twice.apply(*deltas_of(batches[again], twice.index))

    assert applied == 0
    assert bits(twice) == bits(once)


def test_of_a_batch_that_overlaps_the_watermark_only_the_rest_counts():
    events = [Counted(0, offset, ITEMS[0], (), START_MS, 16) for offset in (3, 5, 9)]

    statistics = statistics_of([events[:2]])
    applied = statistics.apply(*deltas_of(events, statistics.index))

    assert applied == 1
    assert statistics.watermarks == {0: 9}
    assert bits(statistics) == bits(statistics_of([events]))


@given(counted_events(span_days=60))
def test_popularity_is_the_formula_of_decay_within_one_step(events):
    statistics = statistics_of([events])

    popularity = statistics.popularity()

    for kind, half_life_ms in enumerate(SETTINGS.popularity_half_lives_ms):
        newest = max(event.time_ms for event in events)
        wanted = dict.fromkeys(ITEMS, 0.0)
        for event in events:
            wanted[event.item] += event.weight * 2.0 ** ((event.time_ms - newest) / half_life_ms)
        total = sum(wanted.values())
        for row, item in enumerate(ITEMS):
            share = wanted[item] / total if total else 0.0
            # an event of a forgotten epoch is missing: it is worth 2^-24 of a new one at most
            lost = sum(event.weight for event in events) * 2.0**-24 / max(total, 1e-30)
            assert popularity[kind, row] == pytest.approx(share, rel=2.1 * STEP, abs=lost + 1e-12)


@given(counted_events(span_days=150))
def test_the_chain_is_the_formula_of_transitions_within_one_step(events):
    settings = StatisticsSettings(neighbours=len(ITEMS))
    statistics = statistics_of([events], settings=settings)
    newest = max(event.time_ms for event in events)

    wanted = [defaultdict(float), defaultdict(float)]
    for event in events:
        decay = 2.0 ** ((event.time_ms - newest) / settings.chain_half_life_ms)
        for distance, before in enumerate(event.previous, start=1):
            for pair in ((before, event.item), (event.item, before)):
                if before != event.item and event.weight:
                    wanted[0][pair] += event.weight / distance
                    wanted[1][pair] += event.weight / distance * decay

    for item in ITEMS:
        rows, shares = statistics.chain([statistics.index.row(item)])
        for kind in (0, 1):
            of_item = {to: w for (frm, to), w in wanted[kind].items() if frm == item}
            total = sum(of_item.values())
            found = {
                statistics.index.ids[row]: share
                for row, share in zip(rows.tolist(), shares[kind].tolist(), strict=True)
            }
            assert found == pytest.approx(
                {to: weight / total for to, weight in of_item.items()}, rel=2.1 * STEP, abs=1e-6
            )


def test_events_of_forgotten_epochs_count_no_more_whenever_they_arrive():
    epoch_ms = EPOCH_HALF_LIVES * DAY_MS
    newest_ms = START_MS // epoch_ms * epoch_ms
    horizon_ms = newest_ms - (POPULARITY_EPOCHS - 1) * epoch_ms

    def counted(*times_ms: int) -> list[float]:
        counts = DecayedCounts(DAY_MS)
        for row, time_ms in enumerate(times_ms):
            counts.add(np.array([row]), np.array([time_ms]), np.array([16]))
        return (counts.values(2) > 0).tolist()

    assert counted(horizon_ms - 1, newest_ms) == [False, True]
    assert counted(newest_ms, horizon_ms - 1) == [True, False]
    assert counted(horizon_ms, newest_ms) == [True, True]


def test_pairs_that_only_forgotten_epochs_held_take_no_memory():
    epoch_ms = EPOCH_HALF_LIVES * DAY_MS
    transitions = Transitions(DAY_MS, 1000)

    def add(before: int, after: int, time_ms: int) -> None:
        previous = np.array([[before] + [-1] * (CHAIN_DEPTH - 1)])
        one = np.array([16])
        transitions.add(np.array([after]), previous, np.array([time_ms]), one, np.array([0]))

    add(0, 1, START_MS)
    add(2, 3, START_MS + CHAIN_EPOCHS * epoch_ms)

    assert len(transitions) == 1
    assert len(transitions.neighbours(0)[0]) == 0
    assert transitions.neighbours(3)[0].tolist() == [2]


def test_of_more_pairs_than_may_be_held_those_of_a_sample_are_with_the_same_weights():
    rng = np.random.default_rng(3)
    index, limit, events = index_of([]), 20_000, 200_000
    index.rows([f"item-{number}" for number in range(2000)])
    statistics = ItemStatistics(index, StatisticsSettings(neighbours=8, max_pairs=limit))

    for begin in range(0, events, 1000):
        items = rng.integers(0, 2000, 1000)
        previous = np.full((1000, CHAIN_DEPTH), NO_ROW)
        previous[:, 0] = (items + 1) % 2000  # what usually comes before
        previous[:, 1] = rng.integers(0, 2000, 1000)  # and what comes once
        at = np.arange(begin, begin + 1000)
        statistics.apply(Deltas(0, at, items, previous, START_MS + at, np.full(1000, 16)))

    held = statistics.transitions
    assert statistics.floor == 2
    assert limit // CHAIN_EPOCHS // SAMPLING < len(held) <= limit // CHAIN_EPOCHS
    # half of all weight leads to the next item and the one before, of each item alike
    usual = [
        sum(weights[0][np.isin(to, [(row - 1) % 2000, (row + 1) % 2000])])
        for row in range(2000)
        for to, weights in [held.neighbours(row)]
    ]
    assert np.mean(usual) == pytest.approx(2 * 60 * 16 * events / 2000, rel=0.05)
    strongest = [set(statistics.strongest(row)[0].tolist()) for row in range(2000)]
    found = [len({(row - 1) % 2000, (row + 1) % 2000} & of) for row, of in enumerate(strongest)]
    assert np.mean(found) > 1.5


def test_one_event_in_eight_is_of_the_next_level_whatever_its_partition():
    levels = np.stack([event_levels(partition, np.arange(1 << 16)) for partition in range(8)])

    for level in range(1, 4):
        share = (levels >= level).mean(axis=1)
        assert share == pytest.approx(SAMPLING**-level, rel=0.3)
    assert (levels[0] != levels[1]).mean() > 0.2


@given(
    st.lists(st.integers(-(2**40), 2**42), min_size=1), st.sampled_from([1000, DAY_MS, 7 * DAY_MS])
)
def test_an_events_weight_doubles_with_every_half_life(times_ms, half_life_ms):
    times = np.array(times_ms)

    epochs, weights = epochs_and_weights(times, half_life_ms)
    later_epochs, later_weights = epochs_and_weights(times + half_life_ms, half_life_ms)

    doubled = weights.astype(object) * 2
    moved = later_weights.astype(object) * 2 ** (
        EPOCH_HALF_LIVES * (later_epochs - epochs).astype(object)
    )
    assert (moved == doubled).all()
    assert (weights >= 2**16).all() and (weights < 2**28).all()


@given(st.data())
def test_the_neighbours_that_are_read_are_the_strongest_of_each_kind_of_equals_by_hash(data):
    events = data.draw(counted_events(max_size=60))
    statistics = statistics_of([events], data.draw(st.permutations(ITEMS)))
    index = statistics.index

    for item in ITEMS:
        rows, weights = statistics.transitions.neighbours(index.row(item))
        ids = [index.ids[row] for row in rows.tolist()]
        wanted: set[str] = set()
        for kind in weights:
            ordered = sorted(range(len(ids)), key=lambda at: (-kind[at], item_hash(ids[at])))
            wanted |= {ids[at] for at in ordered[: SETTINGS.neighbours]}

        read, _ = statistics.chain([index.row(item)])

        assert {index.ids[row] for row in read.tolist()} == wanted


@given(st.data())
def test_neighbours_of_several_items_are_read_at_once_as_one_by_one(data):
    events = data.draw(counted_events(max_size=60))
    together, alone = statistics_of([events]), statistics_of([events])
    rows = [together.index.row(item) for item in ITEMS]

    found = together.strongest_of([*rows, rows[0]])

    for row, (to, shares) in zip([*rows, rows[0]], found, strict=True):
        wanted_to, wanted_shares = alone.strongest(row)
        assert to.tolist() == wanted_to.tolist()
        assert shares.tobytes() == wanted_shares.tobytes()


def test_what_is_kept_of_an_item_keeps_nothing_of_others_in_memory():
    pairs = [("item-1", "item-0"), ("item-3", "item-2")]
    events = [
        Counted(0, n, item, (before,), START_MS, 16) for n, (item, before) in enumerate(pairs)
    ]
    statistics = statistics_of([events])

    for to, shares in statistics.strongest_of(range(4)):
        assert len(to) == 1
        assert to.base is None
        assert shares.base is None


def test_neighbours_stand_in_the_order_of_their_hashes_whatever_bits_tell_them_apart():
    owners = np.array([0, 1, 1, 1, 2])
    hashes = np.array([7, 2**63 + 5, 2**63 + 4, 2**63 + 6, 0], dtype=np.uint64)

    assert _by_owner_and_hash(owners, hashes).tolist() == [0, 2, 1, 3, 4]


def test_the_chain_of_a_user_reads_his_last_items_only_the_nearer_ones_more():
    events = [
        Counted(0, 1, "item-1", ("item-0",), START_MS, 16),
        Counted(0, 2, "item-3", ("item-2",), START_MS, 16),
    ]
    statistics = statistics_of([events])

    rows, shares = statistics.chain([0, 2])
    beyond, _ = statistics.chain([4, 4, 4, 4, 4, 0])

    assert dict(zip(rows.tolist(), shares[0].tolist(), strict=True)) == pytest.approx(
        {1: 2 / 3, 3: 1 / 3}
    )
    assert len(beyond) == 0


def test_before_the_first_event_nothing_is_popular_and_nothing_is_linked():
    statistics = ItemStatistics(index_of(ITEMS))

    assert not statistics.popularity().any()
    assert statistics.popularity().shape == (2, len(ITEMS))
    assert statistics.chain([0])[1].shape == (2, 0)
    assert statistics.chain([])[1].shape == (2, 0)
    assert statistics.apply() == 0


@given(
    st.lists(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 300), max_size=400), max_size=8)
)
def test_a_slot_table_is_a_dictionary_of_keys_in_the_order_they_came(batches):
    table, expected = SlotTable(), {}
    for batch in batches:
        keys = np.unique(np.array(batch, dtype=np.int64))
        is_new_to_us = [key not in expected for key in keys.tolist()]
        for key in keys.tolist():
            expected.setdefault(key, len(expected))

        slots, is_new = table.slots(keys)

        assert slots.tolist() == [expected[key] for key in keys.tolist()]
        assert is_new.tolist() == is_new_to_us
        assert table.find(keys).tolist() == slots.tolist()
    asked = np.array([*expected, 301, 302], dtype=np.int64)
    assert table.find(asked).tolist() == [expected.get(key, -1) for key in asked.tolist()]
    assert len(table) == len(expected)


def test_a_slot_table_holds_keys_that_want_the_same_place():
    table = SlotTable()
    keys = np.arange(60_000, dtype=np.int64) << 32

    slots, _ = table.slots(keys)
    again, is_new = table.slots(keys)

    assert np.array_equal(slots, np.arange(60_000))
    assert np.array_equal(again, slots)
    assert not is_new.any()
