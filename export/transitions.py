"""Count transitions between items: pairs of rows in columns, found through a hash table in numpy.

There are about ten pairs for every event and millions in all. A dictionary costs a microsecond a
pair and 200 bytes; here a batch's pairs are found, added and counted in a few array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from export.decay import EPOCH_HALF_LIVES, epochs_and_weights
from export.items import NO_ROW, Rows
from export.slot_table import SlotTable

#: Epochs of transitions kept: with a half-life of 14 days at least 168 and at most 336 days.
CHAIN_EPOCHS = 2
#: The least common multiple of 1..CHAIN_DEPTH: 1/k of it is whole.
_CHAIN_ONE = 60
#: The higher row of a pair's key.
_ROW_BITS = 0xFFFFFFFF

_NOTHING_KEPT: tuple[int, Rows] = (-1, np.zeros(0, dtype=np.int64))


class Transitions:
    """Weights between items that were taken one after another, lasting and decaying.

    A pair counts alike in both directions, and is held once, under its lower row. `lasting` counts
    every transition alike while its epoch is kept, `decaying` halves it with every half-life.

    A pair has a slot in the columns. The pairs of one item that are new in one batch stand one
    after another in `_links`; such runs of an item are linked, the newest first.
    """

    def __init__(self, half_life_ms: int) -> None:
        self.half_life_ms = half_life_ms
        self.newest_epoch = -(2**62)
        self._clear(0)

    def __len__(self) -> int:
        """Pairs, each direction for itself."""
        return 2 * len(self._table)

    def add(
        self, items: Rows, previous: Rows, times_ms: NDArray[np.int64], weights: NDArray[np.int64]
    ) -> Rows:
        """Link [N] items with their [N, CHAIN_DEPTH] previous ones; returns the pairs changed."""
        epochs, decay = epochs_and_weights(times_ms, self.half_life_ms)
        self._advance(int(epochs.max()))
        linked = (previous != NO_ROW) & (previous != items[:, None])
        linked &= ((epochs > self.newest_epoch - CHAIN_EPOCHS) & (weights > 0))[:, None]
        pairs = np.flatnonzero(linked)
        if not len(pairs):
            return pairs
        event, distance = np.divmod(pairs, previous.shape[1])
        before, after = previous.reshape(-1)[pairs], items[event]
        keys = (np.minimum(before, after) << 32) | np.maximum(before, after)
        amounts = (_CHAIN_ONE // (distance + 1)) * weights[event]
        order = np.argsort(keys)
        keys = keys[order]
        is_first = np.concatenate([[True], keys[1:] != keys[:-1]])
        distinct = keys[is_first]
        slots = self._slots(distinct)[np.cumsum(is_first) - 1]
        event, amounts = event[order], amounts[order]
        at = slots * CHAIN_EPOCHS + epochs[event] % CHAIN_EPOCHS
        np.add.at(self._lasting.reshape(-1), at, amounts)
        np.add.at(self._decaying.reshape(-1), at, amounts * decay[event])
        return cast(Rows, distinct)

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
        weights = np.empty((2, len(at)))
        weights[0] = sum(self._lasting.take(at, axis=0).T)  # far faster than over rows of two
        weights[1] = sum(self._decaying.take(at, axis=0).T * self._scales()[:, None])
        keys = self._keys.take(at)
        return (keys >> 32) + (keys & _ROW_BITS) - owners, weights, counts

    def _slots_of(self, row: int) -> Rows:
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

    def columns(self) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
        """All that is held: [P] from << 32 | to, [P, CHAIN_EPOCHS] lasting, the same decaying."""
        size = len(self._table)
        keys = self._keys[:size]
        both = np.concatenate([keys, ((keys & _ROW_BITS) << 32) | (keys >> 32)])
        return both, np.tile(self._lasting[:size], (2, 1)), np.tile(self._decaying[:size], (2, 1))

    def restore(
        self, keys: Rows, lasting: NDArray[np.int64], decaying: NDArray[np.int64], epoch: int
    ) -> None:
        """Hold exactly these columns from now on; they have every pair in both directions."""
        once = np.flatnonzero(keys >> 32 < keys & _ROW_BITS)
        self._hold(keys[once], lasting[once], decaying[once], epoch)

    def _hold(
        self, keys: Rows, lasting: NDArray[np.int64], decaying: NDArray[np.int64], epoch: int
    ) -> None:
        """Hold exactly these columns from now on; keys are as in `_keys`, in any order."""
        order = np.argsort(keys)
        self.newest_epoch = epoch
        self._clear(len(keys))
        if len(keys):
            self._slots(keys[order])
        self._lasting[: len(keys)] = lasting[order]
        self._decaying[: len(keys)] = decaying[order]

    def _clear(self, size: int) -> None:
        capacity = max(4096, 2 * size)
        self._table = SlotTable()
        self._keys = np.zeros(capacity, dtype=np.int64)  # lower row << 32 | higher row
        # [slot, epoch modulo CHAIN_EPOCHS]
        self._lasting = np.zeros((capacity, CHAIN_EPOCHS), dtype=np.int64)
        self._decaying = np.zeros((capacity, CHAIN_EPOCHS), dtype=np.int64)
        self._links = np.zeros(2 * capacity, dtype=np.int64)  # slots, two places for each
        self._runs = np.zeros((1024, 3), dtype=np.int64)  # begin, end in `_links`, run before or -1
        self._run_count = 0
        self._newest_run = np.full(1024, -1, dtype=np.int64)  # of each row
        # row -> newest of its runs that are in the slots beside it, which are those of all before
        self._kept_together: dict[int, tuple[int, Rows]] = {}

    def _slots(self, keys: Rows) -> Rows:
        """[P] the slots of distinct keys in ascending order, new ones where they have none yet."""
        first = len(self._table)
        slots, is_new = self._table.slots(keys)
        new = keys[is_new]
        if len(new):
            size = first + len(new)
            self._keys = _grown(self._keys, size)
            self._lasting = _grown(self._lasting, size)
            self._decaying = _grown(self._decaying, size)
            self._links = _grown(self._links, 2 * size)
            self._keys[first:size] = new
            self._link(new, first)
        return slots

    def _link(self, keys: Rows, first: int) -> None:
        """Put runs of new pairs, whose slots begin at `first`, before the older runs of their rows.

        Both rows of a pair get it.
        """
        rows = np.concatenate([keys >> 32, keys & _ROW_BITS])
        order = np.argsort(rows)
        rows = rows[order]
        self._links[2 * first : 2 * first + len(rows)] = first + order % len(keys)
        begins = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        of_row = rows[begins]
        if int(of_row[-1]) >= len(self._newest_run):
            self._newest_run = _grown(self._newest_run, int(of_row[-1]) + 1, -1)
        runs = np.arange(self._run_count, self._run_count + len(begins))
        self._run_count += len(begins)
        self._runs = _grown(self._runs, self._run_count)
        self._runs[runs, 0] = 2 * first + begins
        self._runs[runs, 1] = 2 * first + np.append(begins[1:], len(rows))
        self._runs[runs, 2] = self._newest_run[of_row]
        self._newest_run[of_row] = runs

    def _scales(self) -> NDArray[np.float64]:
        """[CHAIN_EPOCHS] what a column of `_decaying` is worth as of the newest epoch."""
        ages = (self.newest_epoch - np.arange(CHAIN_EPOCHS)) % CHAIN_EPOCHS
        return 2.0 ** (-EPOCH_HALF_LIVES * ages.astype(np.float64))

    def _advance(self, epoch: int) -> None:
        """Move on to a newer epoch and forget the pairs that only forgotten epochs held."""
        if epoch <= self.newest_epoch:
            return
        steps = min(epoch - self.newest_epoch, CHAIN_EPOCHS)
        self.newest_epoch = epoch
        if not len(self._table):
            return
        for step in range(steps):
            self._lasting[:, (epoch - step) % CHAIN_EPOCHS] = 0
            self._decaying[:, (epoch - step) % CHAIN_EPOCHS] = 0
        size = len(self._table)
        kept = np.flatnonzero(self._lasting[:size].any(axis=1))
        self._hold(self._keys[kept], self._lasting[kept], self._decaying[kept], epoch)


def rows_of_pairs(pairs: Rows) -> Rows:
    """The distinct rows of pairs as `Transitions.add` returns them."""
    return np.flatnonzero(np.bincount(np.concatenate([pairs >> 32, pairs & _ROW_BITS])))


def _grown(column: NDArray[np.int64], size: int, fill: int = 0) -> NDArray[np.int64]:
    """The column, or where it is shorter than `size` a copy of twice that."""
    if size <= len(column):
        return column
    grown = np.zeros((2 * size, *column.shape[1:]), dtype=np.int64)
    grown[: len(column)] = column
    if fill:
        grown[len(column) :] = fill
    return grown
