"""Count live popularity and item-to-item transitions, exactly, whatever the order of arrival.

Decay is forward decay (Cormode, Shkapenyuk, Srivastava & Xu, "Forward Decay: A Practical Time
Decay Model for Streaming Systems", ICDE 2009): an event adds 2^((t - start) / half-life) to a sum,
and old events need no touch. Here the sums are integers in fixed point, one for each epoch of
`EPOCH_HALF_LIVES` half-lives: integer addition does not depend on the order, so two workers that
have applied the same events hold the same bits, and an epoch is forgotten as a whole, by event
time alone.

What is added for an event comes as columns from the worker that folded it (`Deltas`), numbered by
its offset on the source partition. An offset at or below the partition's watermark was applied
before and is dropped, so a retried batch never counts twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.items import NO_ROW, ItemIndex, Rows

#: Milliseconds of a day.
DAY_MS = 86_400_000
#: How many items before an event it is linked to; the k-th before it with weight 1/k.
CHAIN_DEPTH = 5
#: An epoch of a decayed sum, in half-lives: weights span 2^12, so that a sum fits 63 bits.
EPOCH_HALF_LIVES = 12
#: Epochs of popularity kept: at least 24 half-lives, after which 6e-8 of a weight is left.
POPULARITY_EPOCHS = 3
#: Epochs of transitions kept: with a half-life of 14 days at least 168 and at most 336 days.
CHAIN_EPOCHS = 2
#: Event weights are whole sixteenths.
WEIGHT_ONE = 16
#: The least common multiple of 1..CHAIN_DEPTH: 1/k of it is whole.
_CHAIN_ONE = 60
_FRACTION_BITS = 12
_POWERS = np.array(
    [round(2.0 ** (16 + i / 2**_FRACTION_BITS)) for i in range(2**_FRACTION_BITS)], dtype=np.int64
)


@dataclass(frozen=True, slots=True)
class StatisticsSettings:
    """Half-lives in milliseconds; the first popularity is the one that ranks without a model."""

    popularity_half_lives_ms: tuple[int, int] = (DAY_MS, 7 * DAY_MS)
    chain_half_life_ms: int = 14 * DAY_MS
    #: Strongest neighbours of an item that are read, by lasting and by decaying weight each.
    neighbours: int = 64


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


class DecayedCounts:
    """Decayed sums of weights per item; the bits depend on the set of events only."""

    def __init__(self, half_life_ms: int) -> None:
        self.half_life_ms = half_life_ms
        self.sums: dict[int, NDArray[np.int64]] = {}  # epoch -> [>= V]

    def add(self, items: Rows, times_ms: NDArray[np.int64], weights: NDArray[np.int64]) -> None:
        """Add events: [N] rows, times and weights in sixteenths. Forgotten epochs are ignored."""
        epochs, decay = epochs_and_weights(times_ms, self.half_life_ms)
        amounts = decay * weights
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            np.add.at(self._sums_of(epoch, int(items.max()) + 1), items[here], amounts[here])
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


class Transitions:
    """Weights between items that were taken one after another, lasting and decaying.

    Both directions of a pair are kept. `lasting` counts every transition alike while its epoch is
    kept, `decaying` halves it with every half-life.
    """

    def __init__(self, half_life_ms: int) -> None:
        self.half_life_ms = half_life_ms
        self.newest_epoch = -(2**62)
        self._slot_of: dict[int, int] = {}  # from row << 32 | to row -> slot
        self._slots_from: dict[int, array[int]] = {}  # from row -> its slots
        self._to = np.zeros(4096, dtype=np.int64)
        # [slot, epoch modulo CHAIN_EPOCHS]
        self._lasting = np.zeros((4096, CHAIN_EPOCHS), dtype=np.int64)
        self._decaying = np.zeros((4096, CHAIN_EPOCHS), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._slot_of)

    def add(
        self, items: Rows, previous: Rows, times_ms: NDArray[np.int64], weights: NDArray[np.int64]
    ) -> Rows:
        """Link [N] items with their [N, CHAIN_DEPTH] previous ones; returns the rows changed."""
        epochs, decay = epochs_and_weights(times_ms, self.half_life_ms)
        self._advance(int(epochs.max()))
        linked = (previous != NO_ROW) & (previous != items[:, None])
        linked &= ((epochs > self.newest_epoch - CHAIN_EPOCHS) & (weights > 0))[:, None]
        event, distance = np.nonzero(linked)
        if not len(event):
            return event
        before, after = previous[event, distance], items[event]
        amount = (_CHAIN_ONE // (distance + 1)) * weights[event]
        keys = np.concatenate([(before << 32) | after, (after << 32) | before])
        amount, decayed, epoch = (
            np.tile(column, 2) for column in (amount, amount * decay[event], epochs[event])
        )
        distinct, inverse = np.unique(keys, return_inverse=True)
        slots = self._slots(distinct)[inverse]
        np.add.at(self._lasting, (slots, epoch % CHAIN_EPOCHS), amount)
        np.add.at(self._decaying, (slots, epoch % CHAIN_EPOCHS), decayed)
        return np.unique(distinct >> 32)

    def neighbours(self, row: int) -> tuple[Rows, NDArray[np.float64]]:
        """([n] rows, [2, n] lasting and decaying weights) of all that is linked with an item."""
        slots = self._slots_from.get(row)
        if slots is None:
            return np.zeros(0, dtype=np.int64), np.zeros((2, 0))
        at = np.frombuffer(slots, dtype=np.int64)
        lasting = self._lasting[at].sum(axis=1)
        decaying = self._decaying[at] @ self._scales()
        return self._to[at], np.stack([lasting.astype(np.float64), decaying])

    def _scales(self) -> NDArray[np.float64]:
        """[CHAIN_EPOCHS] what a column of `_decaying` is worth as of the newest epoch."""
        ages = (self.newest_epoch - np.arange(CHAIN_EPOCHS)) % CHAIN_EPOCHS
        return 2.0 ** (-EPOCH_HALF_LIVES * ages.astype(np.float64))

    def _slots(self, keys: Rows) -> Rows:
        """[P] the slots of distinct keys, new ones where they have none yet."""
        known = self._slot_of.get
        slots = np.array([known(key, -1) for key in keys.tolist()], dtype=np.int64)
        new = slots < 0
        if new.any():
            slots[new] = self._new_slots(keys[new])
        return slots

    def _new_slots(self, keys: Rows) -> Rows:
        first = len(self._slot_of)
        slots = np.arange(first, first + len(keys))
        while first + len(keys) > len(self._to):
            self._to = np.concatenate([self._to, np.zeros_like(self._to)])
            self._lasting = np.concatenate([self._lasting, np.zeros_like(self._lasting)])
            self._decaying = np.concatenate([self._decaying, np.zeros_like(self._decaying)])
        self._slot_of.update(zip(keys.tolist(), slots.tolist(), strict=True))
        self._to[slots] = keys & 0xFFFFFFFF
        order = np.argsort(keys >> 32, kind="stable")
        rows, begins = np.unique((keys >> 32)[order], return_index=True)
        for row, of_row in zip(rows.tolist(), np.split(slots[order], begins[1:]), strict=True):
            self._slots_from.setdefault(row, array("q")).frombytes(of_row.tobytes())
        return slots

    def _advance(self, epoch: int) -> None:
        """Move on to a newer epoch and forget the pairs that only forgotten epochs held."""
        if epoch <= self.newest_epoch:
            return
        steps = min(epoch - self.newest_epoch, CHAIN_EPOCHS)
        self.newest_epoch = epoch
        if not self._slot_of:
            return
        for step in range(steps):
            self._lasting[:, (epoch - step) % CHAIN_EPOCHS] = 0
            self._decaying[:, (epoch - step) % CHAIN_EPOCHS] = 0
        keys, lasting, decaying = self.columns()
        kept = lasting.any(axis=1)
        self.restore(keys[kept], lasting[kept], decaying[kept], epoch)

    def columns(self) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
        """All that is held: [P] from << 32 | to, [P, CHAIN_EPOCHS] lasting, the same decaying."""
        size = len(self._slot_of)
        keys = np.fromiter(self._slot_of, dtype=np.int64, count=size)
        return keys, self._lasting[:size].copy(), self._decaying[:size].copy()

    def restore(
        self, keys: Rows, lasting: NDArray[np.int64], decaying: NDArray[np.int64], epoch: int
    ) -> None:
        """Hold exactly these columns from now on."""
        capacity = max(4096, 2 * len(keys))
        self.newest_epoch = epoch
        self._to = np.zeros(capacity, dtype=np.int64)
        self._lasting = np.zeros((capacity, CHAIN_EPOCHS), dtype=np.int64)
        self._decaying = np.zeros((capacity, CHAIN_EPOCHS), dtype=np.int64)
        self._slot_of, self._slots_from = {}, {}
        if len(keys):
            self._new_slots(keys)
        self._lasting[: len(keys)] = lasting
        self._decaying[: len(keys)] = decaying


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
        self.popularity_counts = tuple(
            DecayedCounts(h) for h in self.settings.popularity_half_lives_ms
        )
        self.transitions = Transitions(self.settings.chain_half_life_ms)
        self._cut: dict[int, tuple[Rows, NDArray[np.float32]]] = {}

    def apply(self, *batches: Deltas) -> int:
        """Add what is above each partition's watermark; returns how many events that were.

        Of one partition, batches stand in the order of their offsets.
        """
        fresh = []
        for deltas in batches:
            deltas = deltas.after(self.watermarks.get(deltas.partition, -1))
            if len(deltas.offsets):
                self.watermarks[deltas.partition] = int(deltas.offsets[-1])
                fresh.append(deltas)
        if not fresh:
            return 0
        items, previous, times_ms, weights = (
            np.concatenate([getattr(deltas, name) for deltas in fresh])
            for name in ("items", "previous", "times_ms", "weights")
        )
        for counts in self.popularity_counts:
            counts.add(items, times_ms, weights)
        epoch = self.transitions.newest_epoch
        changed = self.transitions.add(items, previous, times_ms, weights)
        if self.transitions.newest_epoch != epoch:
            self._cut.clear()
        for row in changed.tolist():
            self._cut.pop(row, None)
        self.newest_ms = max(self.newest_ms, int(times_ms.max()))
        self.events += len(items)
        return len(items)

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
            to, share = self._strongest(row)
            rows.append(to)
            shares.append(share / np.float32(distance))
        if not rows:
            return np.zeros(0, dtype=np.int64), np.zeros((2, 0), dtype=np.float32)
        weights = np.concatenate(shares, axis=1)
        totals = weights.sum(axis=1, keepdims=True)
        return np.concatenate(rows), weights / np.maximum(totals, np.float32(1e-30))

    def links_read(self, row: int) -> int:
        """How many entries of a chain come from this item."""
        return len(self._strongest(row)[0])

    def _strongest(self, row: int) -> tuple[Rows, NDArray[np.float32]]:
        """The strongest neighbours of an item, in the order of their hashes.

        Neither which of equals are cut nor a rounded sum depends on the order of arrival.
        """
        cut = self._cut.get(row)
        if cut is not None:
            return cut
        to, weights = self.transitions.neighbours(row)
        by_hash = np.argsort(self.index.hashes[to])
        to, weights = to[by_hash], np.ascontiguousarray(weights[:, by_hash])
        shares = (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)).astype(
            np.float32
        )
        limit = self.settings.neighbours
        if len(to) > limit:
            ties = self.index.hashes[to]
            kept = np.union1d(*(_largest(kind, ties, limit) for kind in weights))
            to, shares = to[kept], np.ascontiguousarray(shares[:, kept])
        self._cut[row] = to, shares
        return to, shares


def _largest(values: NDArray[np.float64], ties: NDArray[np.uint64], count: int) -> Rows:
    """[count] places of the largest of more than `count` values; of equals the smallest `ties`."""
    cut = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > cut)
    equal = np.flatnonzero(values == cut)
    missing = count - len(above)
    if len(equal) > missing:
        equal = equal[np.argpartition(ties[equal], missing - 1)[:missing]]
    return np.concatenate([above, equal])
