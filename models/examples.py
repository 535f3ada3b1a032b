"""Fold a log of events into examples: for each event, what was known just before it.

Live statistics move on in blocks of events: what is known before an event is what was known at the
start of its block, as in the engine, where events of the last instants are still under way. A user
stands only once in a block: what the user did before is always known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from export.features import gate_features
from export.items import NO_ROW, ItemIndex
from export.statistics import CHAIN_DEPTH, Deltas, ItemStatistics, StatisticsSettings
from models.event_log import EventColumns, Ints, no_events

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FoldSettings:
    """How much is kept."""

    #: Events between two positions of the statistics, at most.
    block_events: int = 32
    #: The newest events that histories are made of.
    max_events: int = 500_000
    #: The newest events that can be trained on: what was known before them is kept.
    max_examples: int = 120_000
    #: For the snapshots of popularity; with more items there are fewer snapshots.
    snapshot_bytes: int = 192 * 2**20
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)


@dataclass(frozen=True, slots=True)
class Examples:
    """N events, and for the last M of them what was known before. Numbers are places in [0, N).

    Row j of what is known belongs to event `first + j`.
    """

    events: EventColumns
    first: int  # N - M
    snapshots: Floats  # [n, 2, V] popularity
    snapshot_at: Ints  # [M] row of `snapshots`
    known_before: Ints  # [M] items whose first event is before this number were known
    first_event: Ints  # [V] number of an item's first event; N for those without, -1 if forgotten
    chain_ends: Ints  # [M + 1] entries of example j are [ends[j], ends[j + 1])
    chain_rows: NDArray[np.int32]  # [entries]
    chain_weights: Floats  # [2, entries]
    gate_features: Floats  # [M, GATE_FEATURES]

    def __len__(self) -> int:
        return len(self.events)

    @property
    def n_items(self) -> int:
        """V"""
        return len(self.first_event)


def newest(examples: Examples, count: int) -> Examples:
    """The same, with what was known kept for the newest `count` events only."""
    drop = max(len(examples.events) - count, examples.first) - examples.first
    if drop == 0:
        return examples
    entries = int(examples.chain_ends[drop])
    snapshot = int(examples.snapshot_at[drop]) if drop < len(examples.snapshot_at) else 0
    return replace(
        examples,
        first=examples.first + drop,
        snapshots=examples.snapshots[snapshot:],
        snapshot_at=examples.snapshot_at[drop:] - snapshot,
        known_before=examples.known_before[drop:],
        chain_ends=examples.chain_ends[drop:] - entries,
        chain_rows=examples.chain_rows[entries:],
        chain_weights=examples.chain_weights[:, entries:],
        gate_features=examples.gate_features[drop:],
    )


@dataclass
class _Block:
    """What was known before up to `block_events` events."""

    number: int  # of its first event, since the start of the log
    chain_ends: Ints
    chain_rows: NDArray[np.int32]
    chain_weights: Floats
    gate_features: Floats


#: The user of events that are not to be learned from.
NOBODY = 0


class ExampleFold:
    """Goes through a log once, in event-time order, and keeps what `Examples` need."""

    def __init__(self, index: ItemIndex, settings: FoldSettings | None = None) -> None:
        self.settings = settings or FoldSettings()
        self.statistics = ItemStatistics(index, self.settings.statistics)
        self.events = no_events()
        self.count = 0  # events folded since the start of the log
        self._blocks: list[_Block] = []
        self._snapshots: dict[int, Floats] = {}  # number of a block's first event -> [2, V]
        self._snapshot_every = 1  # blocks
        self._blocks_begun = 0
        self._first_event: dict[int, int] = {}
        self._recent: dict[int, list[int]] = {}  # user -> rows, oldest first
        self._newest_ms: dict[int, int] = {}
        self._lengths: dict[int, int] = {}

    def extend(self, events: EventColumns) -> Iterable[int]:
        """Fold events, all of which are newer than those before; yields how many after each block.

        Nothing is folded beyond what is drawn from the iterator.
        """
        for begin, end in _block_bounds(events.users, self.settings.block_events):
            self._fold(events.select(slice(begin, end)))
            yield end - begin
        self._remember(events)

    def forget(self, users: set[int]) -> None:
        """What these users did is no example and in no history any more; it stays counted."""
        events = self.events
        theirs = np.isin(events.users, np.fromiter(users, np.int64, len(users)))
        self.events = replace(
            events,
            users=np.where(theirs, NOBODY, events.users),
            weights=np.where(theirs, 0, events.weights),
        )
        for table in (self._recent, self._newest_ms, self._lengths):
            for user in users & table.keys():
                del table[user]

    def examples(self) -> Examples:
        """What is kept now, as arrays."""
        base = self.count - len(self.events)
        blocks = self._blocks
        sizes = np.array([len(b.gate_features) for b in blocks], dtype=np.int64)
        numbers = np.array([b.number for b in blocks], dtype=np.int64)
        starts = np.array(sorted(self._snapshots), dtype=np.int64)
        snapshots = np.zeros((len(starts), 2, len(self.statistics.index)), dtype=np.float32)
        for at, start in enumerate(starts.tolist()):
            kept = self._snapshots[start]
            snapshots[at, :, : kept.shape[1]] = kept
        first_event = np.full(len(self.statistics.index), len(self.events), dtype=np.int64)
        for row, number in self._first_event.items():
            first_event[row] = max(number - base, -1)
        entries = np.cumsum([0] + [len(b.chain_rows) for b in blocks])
        ends = [b.chain_ends[:-1] + at for b, at in zip(blocks, entries[:-1], strict=True)]
        return Examples(
            self.events,
            len(self.events) - int(sizes.sum()),
            snapshots,
            np.repeat(np.searchsorted(starts, numbers, side="right") - 1, sizes),
            np.repeat(numbers - base, sizes),
            first_event,
            np.concatenate([*ends, entries[-1:]]),
            np.concatenate([b.chain_rows for b in blocks]),
            np.concatenate([b.chain_weights for b in blocks], axis=1),
            np.concatenate([b.gate_features for b in blocks]),
        )

    def _fold(self, block: EventColumns) -> None:
        self._take_snapshot()
        previous = np.full((len(block), CHAIN_DEPTH), NO_ROW, dtype=np.int64)
        lengths = np.zeros(len(block), dtype=np.int64)
        gaps_ms = np.zeros(len(block), dtype=np.int64)
        strongest = np.zeros(len(block), dtype=np.float32)
        chains = []
        columns = (block.users, block.items, block.times_ms, block.weights)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for at, (user, item, time_ms, weight) in enumerate(rows):
            recent = self._recent.setdefault(user, [])
            newest_first = recent[::-1]
            previous[at, : len(newest_first)] = newest_first
            lengths[at] = self._lengths.get(user, 0)
            gaps_ms[at] = time_ms - 1 - self._newest_ms.get(user, time_ms - 1)
            to, weights = self.statistics.chain(newest_first)
            strongest[at] = weights[0].max(initial=0.0)
            chains.append((to.astype(np.int32), weights))
            recent.append(item)
            del recent[:-CHAIN_DEPTH]
            self._lengths[user] = int(lengths[at]) + 1
            self._newest_ms[user] = time_ms
            if weight:
                self._first_event.setdefault(item, self.count + at)
        self._blocks.append(
            _Block(
                self.count,
                np.cumsum([0] + [len(to) for to, _ in chains]),
                np.concatenate([to for to, _ in chains]),
                np.concatenate([weights for _, weights in chains], axis=1),
                gate_features(gaps_ms, lengths, strongest),
            )
        )
        self._learn(block, previous)

    def _learn(self, block: EventColumns, previous: Ints) -> None:
        counted = block.weights > 0
        offsets = np.arange(self.count, self.count + len(block))
        self.count += len(block)
        if counted.any():
            self.statistics.apply(
                Deltas(
                    0,
                    offsets[counted],
                    block.items[counted],
                    previous[counted],
                    block.times_ms[counted],
                    block.weights[counted],
                )
            )

    def _take_snapshot(self) -> None:
        """Keep the popularity at this block, or let the last snapshot stand for it.

        When the budget is spent, every second snapshot goes, and they are taken half as often.
        """
        self._blocks_begun += 1
        if (self._blocks_begun - 1) % self._snapshot_every:
            return
        self._snapshots[self.count] = self.statistics.popularity()
        kept_bytes = 2 * 4 * len(self.statistics.index) * len(self._snapshots)
        while kept_bytes > self.settings.snapshot_bytes and len(self._snapshots) > 2:
            self._snapshot_every *= 2
            self._snapshots = dict(list(self._snapshots.items())[::2])
            kept_bytes //= 2

    def _remember(self, events: EventColumns) -> None:
        """Add to what histories are made of, and forget what is too old."""
        self.events = self.events.followed_by(events)
        limit = self.settings.max_events
        if len(self.events) > limit + limit // 10:
            self.events = self.events.select(slice(-limit, None))
            kept = set(self.events.users.tolist())
            for table in (self._recent, self._newest_ms, self._lengths):
                for user in table.keys() - kept:
                    del table[user]
        oldest = self.count - min(self.settings.max_examples, len(self.events))
        while self._blocks and self._blocks[0].number < oldest:
            del self._blocks[0]
        if self._blocks:
            starts = [s for s in self._snapshots if s <= self._blocks[0].number]
            for start in starts[:-1]:
                del self._snapshots[start]


def _block_bounds(users: Ints, limit: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of blocks of at most `limit` events in which every user stands once."""
    begin, met = 0, set[int]()
    for at, user in enumerate(users.tolist()):
        if user in met or at - begin == limit:
            yield begin, at
            begin = at
            met.clear()
        met.add(user)
    if begin < len(users):
        yield begin, len(users)
