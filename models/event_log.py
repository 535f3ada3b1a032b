"""Keep the newest events that a model learns from, as columns in event-time order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.items import ItemIndex, Rows, item_hash
from export.statistics import WEIGHT_ONE

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EventColumns:
    """N events. Users are 64-bit hashes, items rows of an `ItemIndex`, types rows from 1 on."""

    users: Ints
    items: Rows
    types: Ints
    times_ms: Ints
    weights: Ints  # in sixteenths; 0 for a negative event: history only

    def __len__(self) -> int:
        return len(self.users)

    def select(self, which: Ints | NDArray[np.bool_] | slice) -> EventColumns:
        """These events, in this order."""
        return EventColumns(
            self.users[which],
            self.items[which],
            self.types[which],
            self.times_ms[which],
            self.weights[which],
        )

    def followed_by(self, others: EventColumns) -> EventColumns:
        """These and then the others."""
        return EventColumns(
            np.concatenate([self.users, others.users]),
            np.concatenate([self.items, others.items]),
            np.concatenate([self.types, others.types]),
            np.concatenate([self.times_ms, others.times_ms]),
            np.concatenate([self.weights, others.weights]),
        )


def no_events() -> EventColumns:
    """Columns of length 0."""
    return EventColumns(*(np.zeros(0, dtype=np.int64) for _ in range(5)))


class EventBuffer:
    """Takes events one by one and gives them as columns sorted by event time.

    `types` are the names of the event types by row; row 0 stands for all others.
    """

    def __init__(self, index: ItemIndex) -> None:
        self.index = index
        self.types: list[str] = [""]
        self._type_rows: dict[str, int] = {}
        self._rows: list[tuple[int, int, int, int, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def append(
        self, owner: str, item: str, kind: str, time_ms: int, weight: int = WEIGHT_ONE
    ) -> None:
        """Take one event; `weight` in sixteenths, 0 for a negative event."""
        row = self._type_rows.get(kind)
        if row is None:
            row = self._type_rows[kind] = len(self.types)
            self.types.append(kind)
        self._rows.append((user_hash(owner), self.index.row(item), row, time_ms, weight))

    def take(self) -> EventColumns:
        """All events since the last call, in event-time order; equal times as they came."""
        rows, self._rows = self._rows, []
        if not rows:
            return no_events()
        columns = EventColumns(*np.array(rows, dtype=np.int64).T.copy())
        return columns.select(np.argsort(columns.times_ms, kind="stable"))


def user_hash(owner: str) -> int:
    """The signed 64-bit number that stands for a user."""
    stable = item_hash(owner)
    return stable - 2**64 if stable >= 2**63 else stable
