"""Count live popularity and item-to-item transitions, exactly, whatever the order of arrival.

Decay is forward decay in fixed-point integers (export.decay): integer addition does not depend on
the order, so two workers that have applied the same events hold the same bits.

What is added for an event comes as columns from the worker that folded it (`Deltas`), numbered by
its offset on the source partition. An offset at or below the partition's watermark was applied
before and is dropped, so a retried batch never counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from export.decay import EPOCH_HALF_LIVES, epochs_and_weights
from export.items import ItemIndex, Rows
from export.pair_counts import distinct_rows
from export.transitions import Transitions, event_levels

#: Milliseconds of a day.
DAY_MS = 86_400_000
#: How many items before an event it is linked to; the k-th before it with weight 1/k.
CHAIN_DEPTH = 5
#: Epochs of popularity kept: at least 24 half-lives, after which 6e-8 of a weight is left.
POPULARITY_EPOCHS = 3
#: Events that wait to be counted at most: more would keep the event loop for too long at once.
COUNTED_AT_ONCE = 4096
#: Event weights are whole sixteenths.
WEIGHT_ONE = 16


#: To drop a level takes 0.2 s for a million pairs, and nothing else is done meanwhile.
Pairs = Annotated[int, Meta(ge=1000, le=20_000_000)]


@dataclass(frozen=True, slots=True)
class StatisticsSettings:
    """Half-lives in milliseconds; the first popularity is the one that ranks without a model."""

    popularity_half_lives_ms: tuple[int, int] = (DAY_MS, 7 * DAY_MS)
    chain_half_life_ms: int = 14 * DAY_MS
    #: Strongest neighbours of an item that are read, by lasting and by decaying weight each.
    neighbours: int = 64
    #: Pairs of items whose transitions are held at most, half of them for each of two epochs; where
    #: there are more, those of a sample of the events.
    max_pairs: int = 4_000_000

    @classmethod
    def of(cls, settings: object) -> StatisticsSettings:
        """Those among the settings of a worker or a trainer: they have the same names there."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Deltas:
    """What N events of one source partition add, in the order of their offsets.

    Rows are those of the `ItemIndex` that the receiving statistics use.
    """

    partition: int
    offsets: NDArray[np.int64]  # [N] ascending
    items: Rows  # [N]
    previous: Rows  # [N, CHAIN_DEPTH], newest first, NO_ROW where there is none
    times_ms: NDArray[np.int64]  # [N]
    weights: NDArray[np.int64]  # [N] in sixteenths

    def after(self, watermark: int) -> Deltas:
        """Those above an offset."""
        new = int(np.searchsorted(self.offsets, watermark, side="right"))
        if new == 0:
            return self
        return Deltas(
            self.partition,
            self.offsets[new:],
            self.items[new:],
            self.previous[new:],
            self.times_ms[new:],
            self.weights[new:],
        )


class DecayedCounts:
    """Decayed sums of weights per item; the bits depend on the set of events only."""

    def __init__(self, half_life_ms: int) -> None:
        self.half_life_ms = half_life_ms
        self.sums: dict[int, NDArray[np.int64]] = {}  # epoch -> [>= V]

    def add(self, items: Rows, times_ms: NDArray[np.int64], weights: NDArray[np.int64]) -> None:
        """Add events: [N] rows, times and weights in sixteenths. Forgotten epochs are ignored."""
        epochs, decay = epochs_and_weights(times_ms, self.half_life_ms)
        amounts = decay * weights
        size = int(items.max()) + 1
        first, last = int(epochs.min()), int(epochs.max())
        for epoch in [first] if first == last else np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            np.add.at(self._sums_of(epoch, size), items[here], amounts[here])
        self._forget()

    def values(self, size: int) -> NDArray[np.float64]:
        """[size] sums as of the newest epoch; only their ratios have a meaning."""
        total = np.zeros(size)
        newest = max(self.sums, default=0)
        for epoch in sorted(self.sums):
            sums = self.sums[epoch][:size]
            total[: len(sums)] += sums * 2.0 ** (EPOCH_HALF_LIVES * (epoch - newest))
        return total

    def total(self) -> float:
        """The sum of all values, the same bits in whatever order the rows stand."""
        newest = max(self.sums, default=0)
        total = 0.0
        for epoch in sorted(self.sums):
            sums = self.sums[epoch]
            # in two halves: the sum over all items may need more than 63 bits
            whole = (int((sums >> 32).sum()) << 32) + int((sums & 0xFFFFFFFF).sum())
            total += whole * 2.0 ** (EPOCH_HALF_LIVES * (epoch - newest))
        return total

    def _sums_of(self, epoch: int, size: int) -> NDArray[np.int64]:
        sums = self.sums.get(epoch)
        if sums is None or len(sums) < size:
            grown = np.zeros(max(1024, 2 * size), dtype=np.int64)
            if sums is not None:
                grown[: len(sums)] = sums
            self.sums[epoch] = sums = grown
        return sums

    def _forget(self) -> None:
        newest = max(self.sums, default=0)
        for epoch in [e for e in self.sums if e <= newest - POPULARITY_EPOCHS]:
            del self.sums[epoch]


@dataclass
class ItemStatistics:
    """Everything live that is known of items: popularity, transitions, who was seen, how far.

    `watermarks` is the statistics position: source partition -> last offset applied. Equal
    positions over the same log mean equal statistics, bit for bit.
    """

    index: ItemIndex
    settings: StatisticsSettings = field(default_factory=StatisticsSettings)
    watermarks: dict[int, int] = field(default_factory=dict)
    newest_ms: int = 0
    events: int = 0

    def __post_init__(self) -> None:
        self._popularity = tuple(DecayedCounts(h) for h in self.settings.popularity_half_lives_ms)
        self._transitions = Transitions(self.settings.chain_half_life_ms, self.settings.max_pairs)
        self._cut: dict[int, tuple[Rows, NDArray[np.float32]]] = {}
        self._waiting: list[Deltas] = []
        self._waiting_events = 0

    @property
    def popularity_counts(self) -> tuple[DecayedCounts, ...]:
        """The counts of each half-life, with all that was applied."""
        self._count()
        return self._popularity

    @property
    def transitions(self) -> Transitions:
        """The transitions, with all that was applied."""
        self._count()
        return self._transitions

    @property
    def sums(self) -> int:
        """Sums of transitions that are held, but for what waits to be counted."""
        return self._transitions.sums

    @property
    def floor(self) -> int:
        """The highest floor of an epoch's pairs; 0 where they are those of all events."""
        return max(self._transitions.floors)

    def apply(self, *batches: Deltas) -> int:
        """Add what is above each partition's watermark; returns how many events that were.

        Of one partition, batches stand in the order of their offsets. Whoever reads afterwards
        sees them. They are counted when somebody does, or when some thousands wait: the array
        operations of a count cost nearly the same for few events as for many.
        """
        applied = 0
        for deltas in batches:
            deltas = deltas.after(self.watermarks.get(deltas.partition, -1))
            if len(deltas.offsets):
                self.watermarks[deltas.partition] = int(deltas.offsets[-1])
                self.newest_ms = max(self.newest_ms, int(deltas.times_ms.max()))
                self._waiting.append(deltas)
                applied += len(deltas.offsets)
        self.events += applied
        self._waiting_events += applied
        if self._waiting_events >= COUNTED_AT_ONCE:
            self._count()
        return applied

    def _count(self) -> None:
        """Count what waits."""
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_events = self._waiting, [], 0
        items, previous, times_ms, weights = (
            np.concatenate([getattr(deltas, name) for deltas in waiting])
            for name in ("items", "previous", "times_ms", "weights")
        )
        levels = np.concatenate([event_levels(d.partition, d.offsets) for d in waiting])
        for counts in self._popularity:
            counts.add(items, times_ms, weights)
        scale = self._transitions.scale
        changed = self._transitions.add(items, previous, times_ms, weights, levels)
        if self._transitions.scale != scale:
            self._cut.clear()
        if self._cut:
            for row in distinct_rows(changed).tolist():
                self._cut.pop(row, None)

    def popularity(self) -> NDArray[np.float32]:
        """[2, V] each half-life's share of every item; all zeros before the first event."""
        values = np.stack([counts.values(len(self.index)) for counts in self.popularity_counts])
        totals = np.array([[counts.total()] for counts in self.popularity_counts])
        shares: NDArray[np.float32] = (values / np.maximum(totals, 1.0)).astype(np.float32)
        return shares

    def chain(self, newest_first: Iterable[int]) -> tuple[Rows, NDArray[np.float32]]:
        """What usually comes before or after the last items of a user.

        Arguments: rows of the user's items, newest first (those after CHAIN_DEPTH are not read).

        Returns: ([K] rows, [2, K] lasting and decaying shares). The share of a neighbour is its
        part of all transitions of that item, times 1/k for the k-th newest item, scaled so that
        each kind sums to one. A row can stand more than once: its shares add up.
        """
        rows, shares = [], []
        for distance, row in enumerate(newest_first, start=1):
            if distance > CHAIN_DEPTH:
                break
            to, share = self.strongest(row)
            rows.append(to)
            shares.append(share / np.float32(distance))
        if not rows:
            return np.zeros(0, dtype=np.int64), np.zeros((2, 0), dtype=np.float32)
        weights = np.concatenate(shares, axis=1)
        totals = weights.sum(axis=1, keepdims=True)
        return np.concatenate(rows), weights / np.maximum(totals, np.float32(1e-30))

    def strongest(self, row: int) -> tuple[Rows, NDArray[np.float32]]:
        """The strongest neighbours of an item, in the order of their hashes; not to be changed.

        Neither which of equals are cut nor a rounded sum depends on the order of arrival.
        """
        return self.strongest_of([row])[0]

    def strongest_of(self, rows: Sequence[int]) -> list[tuple[Rows, NDArray[np.float32]]]:
        """`strongest` of several items; those that changed since they were read last, at once."""
        self._count()
        cut = self._cut
        changed = [row for row in dict.fromkeys(rows) if row not in cut]
        if changed:
            self._cut_anew(changed)
        return [cut[row] for row in rows]

    def _cut_anew(self, rows: list[int]) -> None:
        """Work out the strongest neighbours of distinct items."""
        to, weights, counts = self._transitions.neighbours_of(rows)
        hashes = self.index.hashes.take(to)
        order = _by_owner_and_hash(np.arange(len(rows)).repeat(counts), hashes)
        to, weights, hashes = to.take(order), weights.take(order, axis=1), hashes.take(order)
        ends = counts.cumsum()
        linked = np.flatnonzero(counts)
        totals = np.add.reduceat(weights, (ends - counts)[linked], axis=1) if len(to) else weights
        totals = np.maximum(totals, 1e-30).repeat(counts[linked], axis=1)
        shares = (weights / totals).astype(np.float32)
        limit = self.settings.neighbours
        begin = 0
        for row, end in zip(rows, ends.tolist(), strict=True):
            mine, my_shares = to[begin:end], shares[:, begin:end]
            if end - begin > limit:
                is_kept = np.zeros(end - begin, dtype=bool)
                for kind in weights[:, begin:end]:
                    is_kept[_largest(kind, hashes[begin:end], limit)] = True
                kept = is_kept.nonzero()[0]
                self._cut[row] = mine.take(kept), my_shares.take(kept, axis=1)
            else:  # copied: a view would keep the columns of all these items in memory
                self._cut[row] = mine.copy(), my_shares.copy()
            begin = end


def _by_owner_and_hash(owners: Rows, hashes: NDArray[np.uint64]) -> Rows:
    """[n] places in ascending order of owner, those of one owner in the order of their hashes."""
    bits = int(owners.max(initial=0)).bit_length()
    # both in one number, less the last bits of the hash: eight times as fast as by two columns
    keys = (owners.astype(np.uint64) << np.uint64(64 - bits)) if bits else np.uint64(0)
    keys = keys | (hashes >> np.uint64(bits))
    order = np.argsort(keys)
    keys = keys[order]
    if (keys[1:] == keys[:-1]).any():
        return np.lexsort((hashes, owners))
    return order


def _largest(values: NDArray[np.float64], ties: NDArray[np.uint64], count: int) -> Rows:
    """[count] places of the largest of more than `count` values; of equals the smallest `ties`."""
    cut = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > cut)
    equal = np.flatnonzero(values == cut)
    missing = count - len(above)
    if len(equal) > missing:
        equal = equal[np.argpartition(ties[equal], missing - 1)[:missing]]
    return np.concatenate([above, equal])
