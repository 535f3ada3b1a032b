"""Sum weights of pairs of rows by epoch: columns, found through a hash table in numpy.

A dictionary costs a microsecond a pair and 200 bytes; here a batch's pairs are found, added and
counted in a few array operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.items import Rows
from export.slot_table import SlotTable

#: A key is a level, the lower row of a pair, and the higher one.
_ROW_BITS = 30
_ROW = (1 << _ROW_BITS) - 1
_LEVEL_SHIFT = 2 * _ROW_BITS


@dataclass(frozen=True, slots=True)
class PairColumns:
    """Sums of C pairs, each of which stands in one direction; a pair once at every level."""

    keys: Rows  # [C]
    lasting: NDArray[np.int64]  # [C, epochs]
    decaying: NDArray[np.int64]  # [C, epochs]

    def select(self, which: NDArray[Any]) -> PairColumns:
        """Those at some places, or where a mask is true."""
        return PairColumns(self.keys[which], self.lasting[which], self.decaying[which])


class PairCounts:
    """Whole-number sums, lasting and decaying, of pairs; `epochs` columns of each.

    A pair has a slot, 0, 1, 2, ... as they come, for as long as it is held.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._table = SlotTable()
        self.keys = np.zeros(4096, dtype=np.int64)  # [>= C]
        self.lasting = np.zeros((4096, epochs), dtype=np.int64)
        self.decaying = np.zeros((4096, epochs), dtype=np.int64)
        #: Of each epoch, slots with a sum that is not 0.
        self.held = np.zeros(epochs, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._table)

    def add(
        self, keys: Rows, epochs: Rows, amounts: NDArray[np.int64], decayed: NDArray[np.int64]
    ) -> tuple[Rows, Rows]:
        """Add [P] amounts above 0 to the sums of [P] keys, in ascending order, in these columns.

        Returns: (the distinct keys in ascending order, those of them that are new: they have got
        the next slots in that order).
        """
        is_first = np.ones(len(keys), dtype=bool)
        is_first[1:] = keys[1:] != keys[:-1]
        distinct = keys[is_first]
        size = len(self._table)
        slots, is_new = self._table.slots(distinct)
        new = distinct[is_new]
        if len(new):
            self._make_room(size + len(new))
            self.keys[size : size + len(new)] = new
        at = slots[np.cumsum(is_first) - 1] * self._epochs + epochs
        lasting = self.lasting.reshape(-1)
        begun = np.unique(at[lasting.take(at) == 0]) % self._epochs
        self.held += np.bincount(begun, minlength=self._epochs)
        np.add.at(lasting, at, amounts)
        np.add.at(self.decaying.reshape(-1), at, decayed)
        return distinct, new

    def columns(self) -> PairColumns:
        """All sums; views, which the next event changes."""
        size = len(self._table)
        return PairColumns(self.keys[:size], self.lasting[:size], self.decaying[:size])

    @classmethod
    def of(cls, columns: PairColumns) -> PairCounts:
        """Sums that hold what these columns have, but for pairs that have nothing left."""
        epochs = columns.lasting.shape[1]
        kept = np.flatnonzero(columns.lasting.any(axis=1))
        columns = columns.select(kept[np.argsort(columns.keys[kept])])
        counts = cls(epochs)
        size = len(columns.keys)
        if size:
            counts._make_room(size)
            counts._table.slots(columns.keys)
            counts.keys[:size] = columns.keys
            counts.lasting[:size] = columns.lasting
            counts.decaying[:size] = columns.decaying
            counts.held = np.count_nonzero(columns.lasting, axis=0)
        return counts

    def clear(self, epoch: int) -> None:
        """Make all sums of an epoch 0; their pairs keep their slots."""
        self.lasting[:, epoch] = 0
        self.decaying[:, epoch] = 0
        self.held[epoch] = 0

    def _make_room(self, size: int) -> None:
        self.keys = grown(self.keys, size)
        self.lasting = grown(self.lasting, size)
        self.decaying = grown(self.decaying, size)


def pair_keys(one: Rows, other: Rows, levels: NDArray[np.int64] | int = 0) -> Rows:
    """[C] the keys of pairs of rows below 2^30, alike in both directions; levels of 0 to 7."""
    lower = np.minimum(one, other) << _ROW_BITS
    return (levels << _LEVEL_SHIFT) | lower | np.maximum(one, other)


def rows_of(keys: Rows) -> tuple[Rows, Rows]:
    """([C] the lower row, [C] the higher one) of pairs."""
    return (keys >> _ROW_BITS) & _ROW, keys & _ROW


def levels_of(keys: Rows) -> NDArray[np.int64]:
    """[C] the levels in the keys."""
    return keys >> _LEVEL_SHIFT


def without_level(keys: Rows) -> Rows:
    """[C] the keys of the same pairs at level 0."""
    return keys & ((1 << _LEVEL_SHIFT) - 1)


def distinct_rows(keys: Rows) -> Rows:
    """The distinct rows of pairs, in ascending order."""
    return np.flatnonzero(np.bincount(np.concatenate(rows_of(keys))))


def grown(column: NDArray[Any], size: int, fill: int = 0) -> NDArray[Any]:
    """The column, or where it is shorter than `size` a copy of twice that."""
    if size <= len(column):
        return column
    longer = np.zeros((2 * size, *column.shape[1:]), dtype=column.dtype)  # costs nothing unused
    longer[: len(column)] = column
    if fill:
        longer[len(column) :] = fill
    return longer
