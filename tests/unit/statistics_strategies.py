"""What the tests of the statistics draw: events of several partitions, as producers send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from export.items import NO_ROW, ItemIndex
from export.pair_counts import PairColumns, levels_of, rows_of
from export.statistics import CHAIN_DEPTH, DAY_MS, Deltas, ItemStatistics, StatisticsSettings

ITEMS = [f"item-{number}" for number in range(12)]
START_MS = 1_700_000_000_000
#: Short half-lives: drawn times then lie in several epochs, forgotten ones too.
SETTINGS = StatisticsSettings((DAY_MS, 7 * DAY_MS), 14 * DAY_MS, neighbours=3)
#: So few that drawn events are sampled.
FEW_PAIRS = replace(SETTINGS, max_pairs=8)


@dataclass(frozen=True)
class Counted:
    """One event as the statistics see it, with ids instead of rows."""

    partition: int
    offset: int
    item: str
    previous: tuple[str, ...]
    time_ms: int
    weight: int


@st.composite
def counted_events(draw: st.DrawFn, span_days: int = 400, max_size: int = 40) -> list[Counted]:
    """Events in one order of arrival: those of a partition by offset, partitions interleaved."""
    next_offset = [0, 0, 0]
    events = []
    for _ in range(draw(st.integers(1, max_size))):
        partition = draw(st.integers(0, 2))
        next_offset[partition] += draw(st.integers(1, 3))
        events.append(
            Counted(
                partition,
                next_offset[partition],
                draw(st.sampled_from(ITEMS)),
                tuple(draw(st.lists(st.sampled_from(ITEMS), max_size=CHAIN_DEPTH))),
                START_MS + draw(st.integers(0, span_days * DAY_MS)),
                draw(st.integers(0, 256)),
            )
        )
    return events


@st.composite
def cut_up(draw: st.DrawFn, events: list[Counted]) -> list[list[Counted]]:
    """The same events in another order across partitions, cut into batches."""
    waiting = [[e for e in events if e.partition == p] for p in range(3)]
    order = []
    while any(waiting):
        order.append(waiting[draw(st.sampled_from([p for p in range(3) if waiting[p]]))].pop(0))
    cuts = sorted(draw(st.sets(st.integers(1, max(len(order) - 1, 1)))) | {0, len(order)})
    return [order[a:b] for a, b in pairwise(cuts)]


def index_of(order: list[str]) -> ItemIndex:
    index = ItemIndex()
    index.rows(order)
    return index


def deltas_of(events: list[Counted], index: ItemIndex) -> list[Deltas]:
    """The columns of a batch, one for each partition."""
    batches = []
    for partition in sorted({event.partition for event in events}):
        mine = [event for event in events if event.partition == partition]
        previous = np.full((len(mine), CHAIN_DEPTH), NO_ROW, dtype=np.int64)
        for row, event in zip(previous, mine, strict=True):
            row[: len(event.previous)] = index.rows(event.previous)
        batches.append(
            Deltas(
                partition,
                np.array([event.offset for event in mine], dtype=np.int64),
                index.rows(event.item for event in mine),
                previous,
                np.array([event.time_ms for event in mine], dtype=np.int64),
                np.array([event.weight for event in mine], dtype=np.int64),
            )
        )
    return batches


def statistics_of(
    batches: list[list[Counted]], order: list[str] = ITEMS, settings: StatisticsSettings = SETTINGS
) -> ItemStatistics:
    """Statistics that have applied the batches, with items in the given order of rows."""
    statistics = ItemStatistics(index_of(order), settings)
    for batch in batches:
        statistics.apply(*deltas_of(batch, statistics.index))
    return statistics


def bits(statistics: ItemStatistics) -> dict[str, object]:
    """Everything the statistics tell, by item id, to the last bit."""
    ids = statistics.index.ids
    popularity = statistics.popularity()
    told: dict[str, object] = {
        "watermarks": dict(statistics.watermarks),
        "newest_ms": statistics.newest_ms,
        "events": statistics.events,
        "popularity": {item: popularity[:, row].tobytes() for row, item in enumerate(ids)},
    }
    for row, item in enumerate(ids):
        rows, shares = statistics.chain([row])
        told[item] = {ids[to]: shares[:, at].tobytes() for at, to in enumerate(rows.tolist())}
    told["scale"] = statistics.transitions.scale
    held = statistics.transitions.columns()
    told["pairs"], told["above floor"] = sums(held.pairs, ids), sums(held.above_floor, ids)
    return told


def sums(columns: PairColumns, names: Sequence[object]) -> dict[object, bytes]:
    """The bits of each pair's sums, by what its two rows are called."""
    rows = zip(*(side.tolist() for side in rows_of(columns.keys)), strict=True)
    return {
        (level, frozenset((names[one], names[other]))): lasting.tobytes() + decaying.tobytes()
        for level, (one, other), lasting, decaying in zip(
            levels_of(columns.keys).tolist(), rows, columns.lasting, columns.decaying, strict=True
        )
    }
