"""Give every item a stable 64-bit hash, and a dense row for as long as this process lives.

Rows on disk and messages between workers hold hashes: a release's row numbers change with every
training. Arrays in memory are indexed by dense rows, given in the order in which items were met.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from export.slot_table import SlotTable

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]

#: The row of an item that is not in the index.
NO_ROW = -1
#: From so many on, array operations find rows faster than a dictionary does.
_MANY_HASHES = 256


def item_hash(item_id: str) -> int:
    """The stable hash of an item: the first 8 bytes of BLAKE2b of its UTF-8 id, little-endian.

    Two of a million items share one with a probability of 3e-8.
    """
    digest = hashlib.blake2b(item_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def item_hashes(item_ids: Iterable[str]) -> list[int]:
    """The `item_hash` of each of these items."""
    return list(map(item_hash, item_ids))


class ItemIndex:
    """Item id <-> hash <-> dense row.

    Grows and never forgets: a row stays valid for as long as the process lives.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._row_of_id: dict[str, int] = {}
        self._row_of_hash: dict[int, int] = {}
        self._hash_of_id: dict[str, int] = {}
        self._hashes = np.zeros(1024, dtype=np.uint64)
        self._slots_of_hashes = SlotTable()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hashes(self) -> Hashes:
        """[V] the hash of each row."""
        return self._hashes[: len(self.ids)]

    def row(self, item_id: str) -> int:
        """The row of an item, a new one where it has none yet."""
        row = self._row_of_id.get(item_id)
        if row is not None:
            return row
        row = len(self.ids)
        if row == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        stable = item_hash(item_id)
        self._hashes[row] = stable
        self._row_of_id[item_id] = row
        self._row_of_hash[stable] = row
        self._hash_of_id[item_id] = stable
        self.ids.append(item_id)
        return row

    def rows(self, item_ids: Iterable[str]) -> Rows:
        """[N] the rows of these items, new ones where they have none yet."""
        ids = list(item_ids)
        try:
            return np.fromiter(map(self._row_of_id.__getitem__, ids), np.int64, len(ids))
        except KeyError:
            return np.fromiter(map(self.row, ids), np.int64, len(ids))

    def hash_of(self, item_id: str) -> int:
        """The hash of an item; one that was never met gets a row."""
        stable = self._hash_of_id.get(item_id)
        if stable is None:
            self.row(item_id)
            stable = self._hash_of_id[item_id]
        return stable

    def hashes_of(self, item_ids: Sequence[str]) -> list[int]:
        """The hash of each of these items; those that were never met get rows."""
        known = self._hash_of_id.__getitem__
        try:
            return list(map(known, item_ids))
        except KeyError:
            for item_id in item_ids:
                self.row(item_id)
        return list(map(known, item_ids))

    def rows_of_hashes(self, hashes: Sequence[int] | Hashes) -> Rows:
        """[N] the rows of these hashes, NO_ROW where an item was never met by its id."""
        if isinstance(hashes, np.ndarray) and len(hashes) >= _MANY_HASHES:
            return self._rows_of_many(hashes)
        known = self._row_of_hash
        values = hashes.tolist() if isinstance(hashes, np.ndarray) else hashes
        return np.fromiter(
            map(known.get, values, itertools.repeat(NO_ROW)), dtype=np.int64, count=len(values)
        )

    def _rows_of_many(self, hashes: Hashes) -> Rows:
        met = len(self._slots_of_hashes)
        if met < len(self.ids):  # rows are slots: both are given in the order of meeting
            self._slots_of_hashes.slots(self.hashes[met:].view(np.int64))
        return self._slots_of_hashes.find(hashes.view(np.int64))
