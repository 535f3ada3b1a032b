"""Gather what the folded events of a partition add to the statistics, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.statistics import CHAIN_DEPTH
from stream.event_columns import KeptEvents, UserSpan
from stream.history import HistoryEvent
from stream.row_codec import EVENT, EVENT_BYTES, MERGED_OFFSET

_DEPTH_BYTES = CHAIN_DEPTH * EVENT_BYTES


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

    def joined(self, other: PartitionDeltas) -> PartitionDeltas:
        """These and others, by ascending offset."""
        offsets = np.concatenate([self.offsets, other.offsets])
        items = self.items + other.items
        order = np.argsort(offsets)
        return PartitionDeltas(
            offsets[order],
            [items[at] for at in order.tolist()],
            np.concatenate([self.previous, other.previous])[order],
            np.concatenate([self.times_ms, other.times_ms])[order],
            np.concatenate([self.weights, other.weights])[order],
        )


class DeltaBuilder:
    """Takes note of folded events, some users' at once and others one by one.

    `depth`: how many items before an event count, at most CHAIN_DEPTH.
    """

    def __init__(self, kept: KeptEvents, depth: int) -> None:
        self._kept = kept
        self._depth = depth
        self._histories: list[bytes] = []
        self._spans: list[UserSpan] = []
        self._items: list[str] = []
        self._events: list[tuple[int, int, int]] = []  # offset, time in ms, weight
        self._previous: list[list[int]] = []

    @property
    def has_any(self) -> bool:
        """Whether there is anything to add."""
        return bool(self._spans or self._events)

    def add_span(self, history: bytes, span: UserSpan) -> None:
        """Put in a user's kept events, which were put behind this history, all of them."""
        self._histories.append(history)
        self._spans.append(span)

    def add(self, item: str, event: HistoryEvent, previous: list[int], weight: int) -> None:
        """Put in one event; `previous` are hashes of the items before it, newest first."""
        self._items.append(item)
        self._events.append((event.offset, event.time_ms, weight))
        self._previous.append(previous)

    def build(self) -> PartitionDeltas:
        """All that was put in."""
        kept = self._kept
        is_in = np.zeros(len(kept.items), dtype=np.bool_)
        for span in self._spans:
            is_in[span.kept_begin : span.kept_end] = True
        packed = kept.packed[is_in]
        places = np.flatnonzero(is_in).tolist()
        counts = np.array([s.kept_end - s.kept_begin for s in self._spans], dtype=np.int64)
        whole = PartitionDeltas(
            packed["offset"],
            [kept.items[at] for at in places],
            _items_before(self._histories, counts, packed["item"], self._depth),
            packed["time_ms"],
            np.array([kept.weights[at] for at in places], dtype=np.int64),
        )
        return whole.joined(PartitionDeltas.of_events(self._items, self._events, self._previous))


def _items_before(
    olds: Sequence[bytes], counts: NDArray[np.int64], hashes: NDArray[np.uint64], depth: int
) -> NDArray[np.uint64]:
    """[k, CHAIN_DEPTH] the `depth` items before each of k new events, newest first; 0 for none, and
    for those that came with a merged user.

    Of each user: the history's EVENTs that the new ones are put behind, and how many those are.
    `hashes` are the new events' items, user by user.
    """
    ends = [old[-_DEPTH_BYTES:].rjust(_DEPTH_BYTES, b"\0") for old in olds]
    items = np.empty(len(olds) * CHAIN_DEPTH + len(hashes), dtype=np.uint64)
    user = np.repeat(np.arange(len(olds)), counts)
    at = np.arange(len(hashes)) + (user + 1) * CHAIN_DEPTH
    is_old = np.ones(len(items), dtype=np.bool_)
    is_old[at] = False
    old = np.frombuffer(b"".join(ends), dtype=EVENT)
    items[is_old] = np.where(old["offset"] == MERGED_OFFSET, 0, old["item"])
    items[at] = hashes
    distance = np.arange(1, CHAIN_DEPTH + 1)
    before: NDArray[np.uint64] = items[at[:, None] - distance]
    before[:, depth:] = 0
    return before
