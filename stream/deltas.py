"""Gather what the folded events of a partition add to the statistics, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from export.statistics import CHAIN_DEPTH
from stream.event_columns import KeptEvents
from stream.history import HistoryEvent


@dataclass(frozen=True, slots=True)
class PartitionDeltas:
    """What N folded events of one partition add to the statistics, by ascending offset."""

    offsets: NDArray[np.int64]  # [N]
    items: list[str]
    previous: NDArray[np.uint64]  # [N, CHAIN_DEPTH] hashes of items before, newest first; 0: none
    times_ms: NDArray[np.int64]  # [N]
    weights: NDArray[np.int64]  # [N] in sixteenths

    @classmethod
    def of_events(
        cls,
        items: list[str],
        events: Sequence[tuple[int, int, int]],
        previous: Sequence[list[int]],
    ) -> PartitionDeltas:
        """Deltas of single events: offset, time in ms and weight; up to CHAIN_DEPTH before each."""
        numbers = np.array(events, dtype=np.int64).reshape(-1, 3)
        padded = [hashes + [0] * (CHAIN_DEPTH - len(hashes)) for hashes in previous]
        before = np.array(padded, dtype=np.uint64).reshape(-1, CHAIN_DEPTH)
        return cls(numbers[:, 0], items, before, numbers[:, 1], numbers[:, 2])

    def select(self, which: slice) -> PartitionDeltas:
        """Some of them."""
        return PartitionDeltas(
            self.offsets[which],
            self.items[which],
            self.previous[which],
            self.times_ms[which],
            self.weights[which],
        )

    def take(self, places: NDArray[np.int64]) -> PartitionDeltas:
        """Those at these places."""
        return PartitionDeltas(
            self.offsets[places],
            [self.items[at] for at in places.tolist()],
            self.previous[places],
            self.times_ms[places],
            self.weights[places],
        )

    def joined(self, other: PartitionDeltas) -> PartitionDeltas:
        """These and others, by ascending offset; they need not stand so before."""
        both = PartitionDeltas(
            np.concatenate([self.offsets, other.offsets]),
            self.items + other.items,
            np.concatenate([self.previous, other.previous]),
            np.concatenate([self.times_ms, other.times_ms]),
            np.concatenate([self.weights, other.weights]),
        )
        return both.take(np.argsort(both.offsets))


def whole_deltas(
    kept: KeptEvents, is_in: NDArray[np.bool_], before: NDArray[np.uint64], spans: Sequence[slice]
) -> list[PartitionDeltas]:
    """Those of some of the kept events, for each of the spans that these come in.

    [K] which, and [K, CHAIN_DEPTH] hashes of the items before each, as in `kept.packed`.
    """
    previous = np.empty_like(before)
    previous[kept.order] = before
    deltas = PartitionDeltas(kept.offsets, kept.items, previous, kept.times_ms, kept.weights)
    ends = [span.stop for span in spans]
    if not is_in.all():
        places = np.sort(kept.order[is_in])
        deltas, ends = deltas.take(places), np.searchsorted(places, ends).tolist()
    return [deltas.select(slice(*span)) for span in pairwise([0, *ends])]


class DeltaBuilder:
    """Takes note of a partition's folded events: `whole` of many users, and others one by one."""

    def __init__(self, whole: PartitionDeltas | None) -> None:
        self._whole = whole if whole is not None and len(whole.offsets) else None
        self._items: list[str] = []
        self._events: list[tuple[int, int, int]] = []  # offset, time in ms, weight
        self._previous: list[list[int]] = []

    def add(self, item: str, event: HistoryEvent, previous: list[int], weight: int) -> None:
        """Put in one event; `previous` are hashes of the items before it, newest first."""
        self._items.append(item)
        self._events.append((event.offset, event.time_ms, weight))
        self._previous.append(previous)

    def build(self) -> PartitionDeltas | None:
        """All that was put in; None: nothing was."""
        if not self._events:
            return self._whole
        singles = PartitionDeltas.of_events(self._items, self._events, self._previous)
        return singles.joined(self._whole or PartitionDeltas.of_events([], [], []))
