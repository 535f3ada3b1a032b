"""Ask of each event that nobody suggested: would the engine have had it in its list? The baselines?

Prequential: everything is judged on what was known before the event, and learned after it. The
engine is judged by the list that its user had; popularity and chain by counts of this process,
made from the same events, ranked at the moment of the event, which is to their advantage.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.items import NO_ROW, ItemIndex
from export.statistics import CHAIN_DEPTH, WEIGHT_ONE, Deltas, ItemStatistics
from stream.catalogue import Catalogue

METHODS = ("engine", "popularity", "chain", "chain + popularity")
HIT_PLACES = 10
#: Judged events that a rate is the mean of.
WINDOW = 500
#: From so many judged events on a rate is shown.
MIN_JUDGED = 30
#: Points of the picture; when they are full every second one goes, and they come half as often.
MAX_POINTS = 160
_FIRST_SPACING_MS = 2000
#: Users and items that the baselines know: memory is bounded, the longest unseen user goes first.
MAX_USERS = 4000
MAX_TAKEN = 1000
MAX_ITEMS = 200_000


@dataclass(frozen=True, slots=True)
class JudgedEvent:
    """An event that took an item. `listed`: the top of the list its user had; None: not judged."""

    user: str
    item_id: str
    event_ms: int
    written_ms: int
    weight: float
    listed: Sequence[str] | None


@dataclass(slots=True)
class _Past:
    """What the baselines know of a user: rows of the newest items, and of all that was taken."""

    newest_first: deque[int] = field(default_factory=lambda: deque(maxlen=CHAIN_DEPTH))
    taken: array[int] = field(default_factory=lambda: array("q"))

    def add(self, row: int) -> None:
        self.newest_first.appendleft(row)
        if row not in self.taken:
            self.taken.append(row)
            if len(self.taken) > MAX_TAKEN:
                del self.taken[0]


@dataclass(frozen=True, slots=True)
class RatePoint:
    """Hit rates of all METHODS over the last WINDOW judged events, at a moment."""

    at_ms: int
    rates: tuple[float, ...]


class HitRates:
    """HR@10 of engine and baselines over time. Memory is bounded."""

    def __init__(
        self,
        statistics: ItemStatistics,
        index: ItemIndex,
        catalogue: Catalogue,
        popularity_share: float,
        filters_seen: bool,
    ) -> None:
        self.points: list[RatePoint] = []
        self.judged = 0
        self.learned = 0
        self._statistics = statistics
        self._index = index
        self._catalogue = catalogue
        self._share = popularity_share
        self._filters_seen = filters_seen
        self._users: OrderedDict[str, _Past] = OrderedDict()
        self._hits: deque[tuple[bool, ...]] = deque(maxlen=WINDOW)
        self._spacing_ms = _FIRST_SPACING_MS

    def take(self, events: Sequence[JudgedEvent]) -> None:
        """Judge these events in turn, then learn from them; counts are those before the first."""
        if not events:
            return
        popularity = None
        rows, previous = [], []
        for event in events:
            if len(self._index) >= MAX_ITEMS:
                continue
            past = self._past(event.user)
            row = self._index.row(event.item_id)
            if event.listed is not None:
                if popularity is None:
                    popularity = self._popularity()
                self._judge(event, row, past, popularity)
            rows.append((row, event))
            previous.append(list(past.newest_first))
            past.add(row)
        self._learn(rows, previous)

    def rates(self) -> list[dict[str, float | str]]:
        """One entry a method: its rate over the window, and how far the engine is ahead of it.

        `ahead` is the paired difference engine - method, `ahead_within` the half-width of its
        95 % interval (normal approximation over events).
        """
        hits = np.array(self._hits, dtype=np.float64).reshape(-1, len(METHODS))
        count = len(hits)
        if count < MIN_JUDGED:
            return []
        found: list[dict[str, float | str]] = []
        for at, method in enumerate(METHODS):
            ahead = hits[:, 0] - hits[:, at]
            entry = {
                "rate": round(float(hits[:, at].mean()), 4),
                "ahead": round(float(ahead.mean()), 4),
                "ahead_within": round(1.96 * float(ahead.std()) / math.sqrt(count), 4),
            }
            found.append({"method": method, **entry})
        return found

    @property
    def in_window(self) -> int:
        """Judged events that the rates are of."""
        return len(self._hits)

    def _past(self, user: str) -> _Past:
        past = self._users.get(user)
        if past is None:
            past = self._users[user] = _Past()
            if len(self._users) > MAX_USERS:
                self._users.popitem(last=False)
        else:
            self._users.move_to_end(user)
        return past

    def _popularity(self) -> NDArray[np.float32]:
        """[V] shares of the shorter half-life, 0 for what may not be listed."""
        popularity: NDArray[np.float32] = self._statistics.popularity()[0].copy()
        self._catalogue.hide_unlisted(popularity)
        return popularity

    def _judge(
        self, event: JudgedEvent, row: int, past: _Past, popularity: NDArray[np.float32]
    ) -> None:
        size = max(len(popularity), row + 1)
        trend = np.zeros(size, dtype=np.float32)
        trend[: len(popularity)] = popularity
        chain = np.zeros(size, dtype=np.float32)
        rows, shares = self._statistics.chain(past.newest_first)
        within = rows < size
        np.add.at(chain, rows[within], shares[0][within])
        self._catalogue.hide_unlisted(chain)
        if self._filters_seen and past.taken:
            taken = np.array(past.taken)
            taken = taken[taken < size]
            trend[taken] = chain[taken] = 0.0
        both = np.float32(self._share) * trend + np.float32(1 - self._share) * chain
        assert event.listed is not None
        hits = (
            event.item_id in event.listed,
            _is_listed(trend, row),
            _is_listed(chain, row),
            _is_listed(both, row),
        )
        self._hits.append(hits)
        self.judged += 1
        self._add_point(event.written_ms)

    def _add_point(self, at_ms: int) -> None:
        if len(self._hits) < MIN_JUDGED:
            return
        if self.points and at_ms - self.points[-1].at_ms < self._spacing_ms:
            return
        count = len(self._hits)
        sums = [sum(hits[at] for hits in self._hits) for at in range(len(METHODS))]
        self.points.append(RatePoint(at_ms, tuple(round(total / count, 4) for total in sums)))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self._spacing_ms *= 2

    def _learn(self, rows: list[tuple[int, JudgedEvent]], previous: list[list[int]]) -> None:
        """Add to the counts, numbered in the order in which this process met the events."""
        count = len(rows)
        if not count:
            return
        table = np.full((count, CHAIN_DEPTH), NO_ROW, dtype=np.int64)
        for at, before in enumerate(previous):
            table[at, : len(before)] = before
        self._statistics.apply(
            Deltas(
                partition=0,
                offsets=np.arange(self.learned, self.learned + count, dtype=np.int64),
                items=np.array([row for row, _ in rows], dtype=np.int64),
                previous=table,
                times_ms=np.array([event.event_ms for _, event in rows], dtype=np.int64),
                weights=np.array(
                    [round(event.weight * WEIGHT_ONE) for _, event in rows], dtype=np.int64
                ),
            )
        )
        self.learned += count


def _is_listed(scores: NDArray[np.float32], row: int) -> bool:
    """Whether a row stands among the best HIT_PLACES; of equals the lower row comes first."""
    own = scores[row]
    if own <= 0:
        return False
    better = int((scores > own).sum()) + int((scores[:row] == own).sum())
    return better < HIT_PLACES
