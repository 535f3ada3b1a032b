"""Work out live statistics at a position from the events themselves, with real-number decays.

The definitions are computed anew: nothing here is summed in fixed point or kept from one position
to the next.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.parity_log import LoggedEvent, ParityPlan

Floats = NDArray[np.float64]
#: Event times count in this part of a half-life.
_STEPS = 4096
_EPOCH_HALF_LIVES = 12
_POPULARITY_EPOCHS = 3
_CHAIN_EPOCHS = 2
#: One event in 8 is of level 1 or more, one in 64 of level 2 or more, ..., and none above 7.
_SAMPLING, _MAX_LEVEL = 8, 7


@dataclass(frozen=True, slots=True)
class Chain:
    """What is linked with a user's last items; an item can stand more than once."""

    items: NDArray[np.int64]  # [K]
    shares: Floats  # [2, K] lasting, decaying; each sums to one


class PlainStatistics:
    """Statistics over V items, numbered in `items`, of any part of a log."""

    def __init__(self, events: list[LoggedEvent], plan: ParityPlan) -> None:
        self.items = list(dict.fromkeys(event.item for event in events))
        self.number = {item: n for n, item in enumerate(self.items)}
        self.hashes = np.array([_hash(item) for item in self.items], dtype=np.uint64)
        self._plan = plan
        self._partition = np.array([e.partition for e in events], dtype=np.int64)
        self._offset = np.array([e.offset for e in events], dtype=np.int64)
        self._item = np.array([self.number[e.item] for e in events], dtype=np.int64)
        self._weight = np.array([e.weight / 16 for e in events])
        times = [e.time_ms for e in events]
        halves = (*plan.popularity_half_lives_ms, plan.chain_half_life_ms)
        # [3, N] ages in half-lives from the beginning of time, and epochs
        self._age = np.array([[t * _STEPS // h / _STEPS for t in times] for h in halves])
        self._epoch = np.floor(self._age / _EPOCH_HALF_LIVES)
        links: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        for at, event in enumerate(events):
            item = self.number[event.item]
            for distance, name in enumerate(event.previous, start=1):
                before = self.number.get(name, item)  # none: nothing is linked with it
                if before != item and event.weight:
                    links[before].append((item, at, event.weight / 16 / distance))
                    links[item].append((before, at, event.weight / 16 / distance))
        of_event = [(*sorted((item, to)), at) for item, f in links.items() for to, at, _ in f]
        #: [P, 3] each pair of items of an event, and the event's number
        self._pairs = np.array(sorted(set(of_event)), dtype=np.int64).reshape(-1, 3)
        self._level = np.array([_level(e.partition, e.offset) for e in events], dtype=np.int64)
        self._links = {
            item: tuple(np.array(column) for column in zip(*found, strict=True))
            for item, found in links.items()
        }

    def visible(self, positions: Mapping[int, int]) -> NDArray[np.bool_]:
        """[N] whether each event is counted at a position."""
        last = np.full(int(self._partition.max()) + 1, -1, dtype=np.int64)
        for partition, offset in positions.items():
            if partition < len(last):
                last[partition] = offset
        counted: NDArray[np.bool_] = self._offset <= last[self._partition]
        return counted

    def popularity(self, visible: NDArray[np.bool_]) -> Floats:
        """[2, V] shares."""
        shares = np.zeros((2, len(self.items)))
        for kind in range(2):
            counted = self._within_horizon(visible, kind, _POPULARITY_EPOCHS)
            decay = self._decays(counted, kind)
            sums = np.bincount(
                self._item[counted], decay * self._weight[counted], minlength=len(self.items)
            )
            shares[kind] = sums / max(sums.sum(), 1e-300)
        return shares

    def chain(self, newest_first: list[str], visible: NDArray[np.bool_]) -> Chain:
        """The neighbours of a user's last items; the k-th newest counts 1/k."""
        counted = self._within_horizon(visible, 2, _CHAIN_EPOCHS)
        newest = self._age[2][visible].max(initial=0.0)
        worth = self._worth(counted)
        items, shares = [], []
        for distance, name in enumerate(newest_first, start=1):
            found = self._neighbours(self.number.get(name, -1), worth, newest)
            if found is not None:
                items.append(found[0])
                shares.append(found[1] / distance)
        if not items:
            return Chain(np.zeros(0, dtype=np.int64), np.zeros((2, 0)))
        weights = np.concatenate(shares, axis=1)
        return Chain(np.concatenate(items), weights / weights.sum(axis=1, keepdims=True))

    def _neighbours(
        self, item: int, worth: Floats, newest: float
    ) -> tuple[NDArray[np.int64], Floats] | None:
        """([n] items, [2, n] shares): the strongest of each kind, shares of all."""
        if item not in self._links:
            return None
        to, at, amount = self._links[item]
        kept = worth[at] > 0
        if not kept.any():
            return None
        amount = amount * worth[at]
        others, place = np.unique(to[kept], return_inverse=True)
        decay = 2.0 ** (self._age[2][at[kept]] - newest)
        weights = np.stack(
            [np.bincount(place, amount[kept]), np.bincount(place, amount[kept] * decay)]
        )
        shares = weights / weights.sum(axis=1, keepdims=True)
        limit = self._plan.neighbours
        if len(others) > limit:
            hashes = self.hashes[others]
            strongest = [np.lexsort((hashes, -_rounded(kind)))[:limit] for kind in weights]
            chosen = np.union1d(*strongest)
            others, shares = others[chosen], shares[:, chosen]
        return others, shares

    def _worth(self, counted: NDArray[np.bool_]) -> Floats:
        """[N] how many events each one stands for: 0 below its epoch's floor.

        An epoch's floor is the lowest level from which on it has few enough pairs.
        """
        worth = counted.astype(np.float64)
        lower, higher, event = self._pairs[counted[self._pairs[:, 2]]].T
        pair, at_most = lower * len(self.items) + higher, self._plan.max_pairs // _CHAIN_EPOCHS
        for epoch in np.unique(self._epoch[2][event]):
            here = self._epoch[2][event] == epoch
            floor = 0
            while len(np.unique(pair[here & (self._level[event] >= floor)])) > at_most:
                floor += 1
            of_epoch = self._epoch[2] == epoch
            worth[of_epoch] *= np.where(self._level[of_epoch] >= floor, _SAMPLING**floor, 0)
        return worth

    def _within_horizon(
        self, visible: NDArray[np.bool_], kind: int, epochs: int
    ) -> NDArray[np.bool_]:
        newest = self._epoch[kind][visible].max(initial=0.0)
        kept: NDArray[np.bool_] = visible & (self._epoch[kind] > newest - epochs)
        return kept

    def _decays(self, counted: NDArray[np.bool_], kind: int) -> Floats:
        ages = self._age[kind][counted]
        decays: Floats = 2.0 ** (ages - ages.max(initial=0.0))
        return decays


def _rounded(values: Floats) -> Floats:
    """Sums that differ only by the order of their terms are equal."""
    return np.round(values, 9)


def _level(partition: int, offset: int) -> int:
    """Of an event, by the hash of its place (SplitMix64): a third of the zeros at its end."""
    bits = (partition * 0x9E3779B97F4A7C15 + offset) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    bits ^= bits >> 31
    return next((level for level in range(_MAX_LEVEL) if bits % 8 ** (level + 1)), _MAX_LEVEL)


def _hash(item: str) -> int:
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little")
