"""Count transitions between items, in bounded memory, and the same whatever the order of arrival.

There are about five pairs of items for every event, and millions in all. Which of them are held
depends on the set of events alone: every event has a level, drawn by its place in the log. One
event in SAMPLING is of level 1 or more, one in SAMPLING^2 of level 2 or more, and so on. Where the
pairs of an epoch become too many, the lowest level counts no more: the epoch's floor rises. What is
left is a sample of the events, each worth SAMPLING^floor. A floor only rises while its epoch is
held, and what an event of a higher level adds is held by itself as well: so an event that counts
has counted from the beginning (after Gibbons, "Distinct Sampling for Highly-Accurate Answers to
Distinct Values Queries and Event Reports", VLDB 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.decay import EPOCH_HALF_LIVES, epochs_and_weights
from export.items import NO_ROW, Rows
from export.pair_counts import (
    PairColumns,
    PairCounts,
    grown,
    levels_of,
    pair_keys,
    rows_of,
    without_level,
)

#: Epochs of transitions kept: with a half-life of 14 days at least 168 and at most 336 days.
CHAIN_EPOCHS = 2
#: One event in so many is of the next level.
SAMPLING = 8
#: The highest level.
MAX_LEVEL = 7
#: The least common multiple of 1..CHAIN_DEPTH: 1/k of it is whole.
_CHAIN_ONE = 60
#: So many pairs above the floor wait: array operations cost the same for few as for many.
_COUNTED_AT_ONCE = 4096
_GOLDEN = 0x9E3779B97F4A7C15
_64_BITS = 2**64 - 1

_NOTHING_KEPT: tuple[int, NDArray[np.int32]] = (-1, np.zeros(0, dtype=np.int32))


def event_levels(partition: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] levels of a partition's events, 0..MAX_LEVEL: a third of the zeros at a hash's end.

    The hash is the finalizer of SplitMix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom
    Number Generators", OOPSLA 2014).
    """
    bits = offsets.astype(np.uint64) + np.uint64(partition * _GOLDEN & _64_BITS)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    zeros = np.bitwise_count(~bits & (bits - np.uint64(1))).astype(np.int64)
    return np.minimum(zeros // (SAMPLING.bit_length() - 1), MAX_LEVEL)


@dataclass(frozen=True, slots=True)
class TransitionColumns:
    """All that is held. A column of an epoch stands at the epoch modulo CHAIN_EPOCHS."""

    pairs: PairColumns
    above_floor: PairColumns  # what is of levels above the floor, by level
    newest_epoch: int
    floors: tuple[int, ...]  # [CHAIN_EPOCHS]


class Transitions:
    """Weights between items that were taken one after another, lasting and decaying.

    A pair counts alike in both directions, and is held once. `lasting` counts every transition
    alike while its epoch is kept, `decaying` halves it with every half-life. At most `max_pairs`
    are held, half of them for each of two epochs, and beside a pair what it has of each level above
    the floor: of pairs with few links hardly anything, of one with hundreds three sums.

    The pairs of one item that are new in one batch stand one after another in `_links`; such runs
    of an item are linked, the newest first.
    """

    def __init__(self, half_life_ms: int, max_pairs: int) -> None:
        self.half_life_ms = half_life_ms
        self.newest_epoch = -(2**62)
        self.floors = [0] * CHAIN_EPOCHS
        self._max_of_epoch = max_pairs // CHAIN_EPOCHS
        self._waiting: list[tuple[NDArray[np.int64], ...]] = []
        self._hold(PairCounts(CHAIN_EPOCHS), PairCounts(CHAIN_EPOCHS))

    def __len__(self) -> int:
        """Pairs that are held."""
        return len(self._pairs)

    @property
    def sums(self) -> int:
        """What takes memory: pairs, and what is above their floors."""
        return len(self._pairs) + len(self._above_floor)

    @property
    def scale(self) -> tuple[int, ...]:
        """Changes whenever the weights of all pairs do."""
        return (self.newest_epoch, *self.floors)

    def add(
        self,
        items: Rows,
        previous: Rows,
        times_ms: NDArray[np.int64],
        weights: NDArray[np.int64],
        levels: NDArray[np.int64],
    ) -> Rows:
        """Link [N] items with their [N, CHAIN_DEPTH] previous ones; returns the pairs changed."""
        epochs, decay = epochs_and_weights(times_ms, self.half_life_ms)
        self._advance(int(epochs.max()))
        columns = epochs % CHAIN_EPOCHS
        floors = np.array(self.floors)[columns]
        is_counted = (epochs > self.newest_epoch - CHAIN_EPOCHS) & (weights > 0)
        is_counted &= levels >= floors
        linked = (previous != NO_ROW) & (previous != items[:, None]) & is_counted[:, None]
        pairs = np.flatnonzero(linked)
        if not len(pairs):
            return pairs
        event, distance = np.divmod(pairs, previous.shape[1])
        keys = pair_keys(previous.reshape(-1)[pairs], items[event])
        amounts = (_CHAIN_ONE // (distance + 1)) * weights[event]
        order = np.argsort(keys)
        keys, event, amounts = keys[order], event[order], amounts[order]
        first = len(self._pairs)
        changed, new = self._pairs.add(keys, columns[event], amounts, amounts * decay[event])
        if len(new):
            self._link(new, first)
        above = np.flatnonzero((levels > floors)[event])
        if len(above):
            of = event[above]
            keys = pair_keys(*rows_of(keys[above]), levels[of])
            self._wait(keys, columns[of], amounts[above], (amounts * decay[event])[above])
        for column in np.flatnonzero(self._pairs.held > self._max_of_epoch).tolist():
            self._raise_floor(column)
        return changed

    def neighbours(self, row: int) -> tuple[Rows, NDArray[np.float64]]:
        """([n] rows, [2, n] lasting and decaying weights) of all that is linked with an item."""
        others, weights, _ = self.neighbours_of([row])
        return others, weights

    def neighbours_of(self, rows: Sequence[int]) -> tuple[Rows, NDArray[np.float64], Rows]:
        """`neighbours` of R items, one item's behind another's, and [R] how many each has."""
        found = [self._slots_of(row) for row in rows]
        counts = np.array([len(at) for at in found], dtype=np.int64)
        at = np.concatenate(found)
        owners = np.array(rows, dtype=np.int64).repeat(counts)
        held, (lasting, decaying) = self._pairs, self._scales()
        weights = np.empty((2, len(at)))
        # far faster than over rows of two
        weights[0] = sum(held.lasting.take(at, axis=0).T * lasting[:, None])
        weights[1] = sum(held.decaying.take(at, axis=0).T * decaying[:, None])
        lower, higher = rows_of(held.keys.take(at))
        return lower + higher - owners, weights, counts

    def columns(self) -> TransitionColumns:
        """All that is held; views, which the next event changes."""
        return TransitionColumns(
            self._pairs.columns(),
            self._count_above_floor().columns(),
            self.newest_epoch,
            tuple(self.floors),
        )

    def restore(self, saved: TransitionColumns) -> None:
        """Hold exactly these columns from now on."""
        self.newest_epoch, self.floors = saved.newest_epoch, list(saved.floors)
        self._hold(PairCounts.of(saved.pairs), PairCounts.of(saved.above_floor))

    def _wait(self, *columns: NDArray[np.int64]) -> None:
        """Count what is above the floor when there are many: nothing reads it before."""
        self._waiting.append(columns)
        self._waiting_pairs += len(columns[0])
        if self._waiting_pairs >= _COUNTED_AT_ONCE:
            self._count_above_floor()

    def _count_above_floor(self) -> PairCounts:
        if self._waiting:
            keys, *columns = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
            self._waiting, self._waiting_pairs = [], 0
            order = np.argsort(keys)
            self._above_floor.add(keys[order], *(column[order] for column in columns))
        return self._above_floor

    def _hold(self, pairs: PairCounts, above_floor: PairCounts) -> None:
        """Hold exactly these pairs from now on."""
        self._pairs, self._above_floor = pairs, above_floor
        self._waiting = []
        self._waiting_pairs = 0
        self._links = np.zeros(8192, dtype=np.int32)  # slots, two places for each
        self._runs = np.zeros((1024, 3), dtype=np.int32)  # begin, end in `_links`, run before or -1
        self._run_count = 0
        self._newest_run = np.full(1024, -1, dtype=np.int64)  # of each row
        # row -> newest of its runs that are in the slots beside it, which are those of all before
        self._kept_together: dict[int, tuple[int, NDArray[np.int32]]] = {}
        if len(pairs):
            self._link(pairs.columns().keys, 0)

    def _slots_of(self, row: int) -> NDArray[np.int32]:
        """The slots of all pairs of a row.

        They are kept together: a popular item has as many runs as there were batches, and would
        take longer to read with each of them.
        """
        newest = int(self._newest_run[row]) if row < len(self._newest_run) else -1
        kept_until, kept = self._kept_together.get(row, _NOTHING_KEPT)
        if newest == kept_until:
            return kept
        runs, run = [], newest
        while run != kept_until:
            begin, end, run = self._runs[run].tolist()
            runs.append(self._links[begin:end])
        slots = np.concatenate([*runs, kept])
        self._kept_together[row] = newest, slots
        return slots

    def _link(self, keys: Rows, first: int) -> None:
        """Put runs of new pairs, whose slots begin at `first`, before the older runs of their rows.

        Both rows of a pair get it.
        """
        rows = np.concatenate(rows_of(keys))
        order = np.argsort(rows)
        rows = rows[order]
        end = 2 * first + len(rows)
        self._links = grown(self._links, end)
        self._links[2 * first : end] = first + order % len(keys)
        begins = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        of_row = rows[begins]
        if int(of_row[-1]) >= len(self._newest_run):
            self._newest_run = grown(self._newest_run, int(of_row[-1]) + 1, -1)
        runs = np.arange(self._run_count, self._run_count + len(begins))
        self._run_count += len(begins)
        self._runs = grown(self._runs, self._run_count)
        self._runs[runs, 0] = 2 * first + begins
        self._runs[runs, 1] = 2 * first + np.append(begins[1:], len(rows))
        self._runs[runs, 2] = self._newest_run[of_row]
        self._newest_run[of_row] = runs

    def _scales(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[CHAIN_EPOCHS] what lasting and what decaying sums are worth as of the newest epoch."""
        ages = (self.newest_epoch - np.arange(CHAIN_EPOCHS)) % CHAIN_EPOCHS
        lasting = float(SAMPLING) ** np.array(self.floors)
        return lasting, lasting * 2.0 ** (-EPOCH_HALF_LIVES * ages.astype(np.float64))

    def _raise_floor(self, column: int) -> None:
        """Count the events of higher levels alone, until an epoch's pairs are few enough."""
        above = self._count_above_floor().columns()
        above = above.select(above.lasting[:, column] > 0)
        levels, keys = levels_of(above.keys), without_level(above.keys)
        floor = self.floors[column] + 1
        while len(np.unique(keys[levels >= floor])) > self._max_of_epoch:
            floor += 1
        self.floors[column] = floor
        self._pairs.clear(column)
        counted = np.flatnonzero(levels >= floor)
        counted = counted[np.argsort(keys[counted])]
        if len(counted):
            self._pairs.add(
                keys[counted],
                np.full(len(counted), column),
                above.lasting[counted, column],
                above.decaying[counted, column],
            )
        left = self._above_floor.columns()  # views: what is written here is what is held
        is_dropped = levels_of(left.keys) <= floor
        left.lasting[is_dropped, column] = 0
        left.decaying[is_dropped, column] = 0
        self._hold_what_is_left()

    def _advance(self, epoch: int) -> None:
        """Move on to a newer epoch and forget the pairs that only forgotten epochs held."""
        if epoch <= self.newest_epoch:
            return
        steps = min(epoch - self.newest_epoch, CHAIN_EPOCHS)
        self.newest_epoch = epoch
        for step in range(steps):
            column = (epoch - step) % CHAIN_EPOCHS
            self.floors[column] = 0
            self._pairs.clear(column)
            self._count_above_floor().clear(column)
        if len(self._pairs):
            self._hold_what_is_left()

    def _hold_what_is_left(self) -> None:
        above = self._count_above_floor()
        self._hold(PairCounts.of(self._pairs.columns()), PairCounts.of(above.columns()))
