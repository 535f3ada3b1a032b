"""Give distinct numbers consecutive slots, through a hash table in numpy, a batch at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Marks an empty place of the table. No pair of rows is negative, and the hash of an item is this
#: one number with a probability of 2^-64.
_EMPTY = np.int64(-1)
#: 2^64 over the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class SlotTable:
    """Distinct keys to slots 0, 1, 2, ...: open addressing, linear probing, a batch at a time.

    At most half full, so that a key is found in about one and a half looks.
    """

    def __init__(self) -> None:
        self._bits = 13
        self._keys = np.full(1 << self._bits, _EMPTY)
        self._slots = np.zeros(1 << self._bits, dtype=np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def slots(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """([P] the slots of distinct keys, [P] which of them are new).

        New keys get the next slots, in the order in which they stand.
        """
        self._make_room(len(keys))
        places = self._places(keys)
        is_new = self._keys[places] == _EMPTY
        slots = self._slots[places]
        count = int(np.count_nonzero(is_new))
        if count:
            slots[is_new] = np.arange(self._count, self._count + count)
            self._count += count
            self._put(keys[is_new], slots[is_new], places[is_new])
        return slots, is_new

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """[N] the slots of any keys, -1 where one has none."""
        places = self._places(keys)
        is_there = (self._keys[places] == keys) & (keys != _EMPTY)
        return np.where(is_there, self._slots[places], -1)

    def _places(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """[P] where each key stands, or the empty place where it would."""
        mask = (1 << self._bits) - 1
        places = ((keys.view(np.uint64) * _GOLDEN) >> np.uint64(64 - self._bits)).view(np.int64)
        found = self._keys[places]
        left = np.flatnonzero((found != keys) & (found != _EMPTY))
        while len(left):
            places[left] = (places[left] + 1) & mask
            found = self._keys[places[left]]
            left = left[(found != keys[left]) & (found != _EMPTY)]
        return places

    def _put(
        self, keys: NDArray[np.int64], slots: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        """Enter keys that are not there; of several that want one place, one gets it."""
        while True:
            self._keys[places] = keys
            got = self._keys[places] == keys
            self._slots[places[got]] = slots[got]
            if got.all():
                return
            keys, slots = keys[~got], slots[~got]
            places = self._places(keys)

    def _make_room(self, count: int) -> None:
        if 2 * (self._count + count) <= len(self._keys):
            return
        is_taken = self._keys != _EMPTY
        keys, slots = self._keys[is_taken], self._slots[is_taken]
        self._bits = int(4 * (self._count + count) - 1).bit_length()
        self._keys = np.full(1 << self._bits, _EMPTY)
        self._slots = np.zeros(1 << self._bits, dtype=np.int64)
        self._put(keys, slots, self._places(keys))
