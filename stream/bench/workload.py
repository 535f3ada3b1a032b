"""Make the events of a benchmark: real event bytes, users by a power law, the same for every run.

A few users have most of the events, as in every public log; that decides how often a batch meets
a user twice and how large the rows are that it writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kafka.partitioner import murmur2
from numpy.typing import NDArray

from export.datasets import Interaction, read_dataset
from stream.events import encode
from stream.replay import event_of

#: Items of generated events, and how steeply their popularity falls.
_ITEMS, _ITEM_EXPONENT = 10_000, 1.0
#: Generated events are so far apart: MovieTweetings' mean at its first 100,000 events.
_STEP_S = 155.0
_BEGIN_S = 1_365_000_000.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent: `events` of users drawn with probability rank^-exponent.

    A `hot_share` of them is one user's, whatever was drawn.

    Interactions are those of a data set, under other users, over and over until there are enough;
    without a `path` they are generated with the same fields.
    """

    events: int
    users: int = 100_000
    exponent: float = 1.1
    seed: int = 1
    path: Path | None = None
    data_format: str = "movietweetings"
    hot_share: float = 0.0

    def user_numbers(self) -> NDArray[np.int64]:
        """[events] the user of every event, 0 being the most active one."""
        rng = np.random.default_rng(self.seed)
        numbers = by_rank(rng, self.users, self.exponent, self.events)
        if self.hot_share:
            numbers[rng.random(self.events) < self.hot_share] = 0
        return numbers

    def interactions(self) -> list[Interaction]:
        """Interactions to draw from, in time order."""
        if self.path is not None:
            return read_dataset(self.path, self.data_format).interactions[: self.events]
        rng = np.random.default_rng(self.seed + 1)
        items = by_rank(rng, _ITEMS, _ITEM_EXPONENT, self.events)
        values = rng.integers(1, 11, self.events)
        return [
            Interaction("", f"{item:07d}", _BEGIN_S + number * _STEP_S, "rate", float(value))
            for number, (item, value) in enumerate(
                zip(items.tolist(), values.tolist(), strict=True)
            )
        ]

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of every event, in the order of sending."""
        interactions = self.interactions()
        span_s = interactions[-1].time_s - interactions[0].time_s + 1
        for number, user in enumerate(self.user_numbers().tolist()):
            again, place = divmod(number, len(interactions))
            source = interactions[place]
            event = event_of(
                "bench",
                number,
                source._replace(user=user_id(user), time_s=source.time_s + again * span_s),
            )
            yield user_id(user).encode(), encode(event)

    def events_within(self, seconds: float) -> float:
        """Events in so much of their own time, in the mean."""
        interactions = self.interactions()
        span_s = interactions[-1].time_s - interactions[0].time_s + 1
        return len(interactions) * seconds / span_s

    def event_types(self) -> list[str]:
        """The types that occur."""
        return sorted({interaction.type for interaction in self.interactions()})


def user_id(number: int) -> str:
    """The id of a user by number."""
    return f"user-{number}"


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's own partitioner puts a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def by_rank(rng: np.random.Generator, ranks: int, exponent: float, size: int) -> NDArray[np.int64]:
    """[size] ranks from 0 on, drawn with probability (rank + 1)^-exponent."""
    shares = np.arange(1, ranks + 1, dtype=np.float64) ** -exponent
    edges = np.cumsum(shares / shares.sum())
    return np.minimum(np.searchsorted(edges, rng.random(size)), ranks - 1).astype(np.int64)
