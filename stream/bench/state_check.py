"""Look at what a run has written: is the state right, and how fast did it come about.

A figure of a run whose state is wrong is worth nothing. Times are those of the batches themselves,
which stand in the changelog's records: watching costs the run nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bench.raw_loop import count_in
from stream.bench.topics import read_topic
from stream.bench.workload import user_id
from stream.history import UserRow, row_key
from stream.kafka.own_rows import CHANGELOG_KEY, FENCE_KEY, OFFSET_KEY, POSTPONED_KEY, SOURCE_KEY
from stream.settings import Settings
from stream.statistics import DeltaRecord
from stream.topics import state_changelog
from stream.verify.rows import rows_on_disk

Contestant = Literal["raw", "outputs", "confluent", "driftline"]

#: The part of the events before the clock starts: topics made just now refuse the first requests.
WARM_UP_SHARE = 0.02
_OFFSET = np.dtype("<i8")


@dataclass(slots=True)
class Changelog:
    """What the changelog of a run holds, and when it was written."""

    rows: dict[bytes, bytes] = field(default_factory=dict)  # the newest of each key
    sources: dict[int, int] = field(default_factory=dict)  # partition -> last applied offset
    bytes: int = 0
    records: int = 0
    writes: int = 0  # of one partition each
    progress: list[tuple[int, int]] = field(default_factory=list)  # (time in ms, events applied)

    def timed(self) -> tuple[int, int, int]:
        """(events, begin in ms, end in ms) of the run without its warm-up."""
        self.progress.sort()
        total = sum(events for _, events in self.progress)
        done = 0
        for begin_ms, events in self.progress:
            done += events
            if done >= WARM_UP_SHARE * total:
                return total - done, begin_ms, self.progress[-1][0]
        return 0, 0, 0


async def read_changelog(settings: Settings) -> Changelog:
    """Read the state of a run that has ended."""
    log = Changelog()
    async for record in read_topic(settings, state_changelog(settings)):
        log.records += 1
        log.bytes += len(record.key) + len(record.value or b"")
        if record.key == FENCE_KEY:  # no disk keeps it
            continue
        if record.value is None:
            log.rows.pop(record.key, None)
            continue
        if record.key not in (SOURCE_KEY, POSTPONED_KEY):
            log.rows[record.key] = record.value
            continue
        log.writes += 1
        offset = int(np.frombuffer(record.value, dtype=_OFFSET)[0])
        applied = offset - log.sources.get(record.partition, -1)
        log.progress.append((record.timestamp, applied))
        log.sources[record.partition] = offset
    return log


async def read_deltas(settings: Settings, contestant: Contestant) -> tuple[int, int]:
    """(bytes, events) of the deltas of a run; those of raw loops hold no events."""
    size = events = 0
    decode = msgspec.msgpack.Decoder(DeltaRecord).decode
    async for record in read_topic(settings, settings.topic("item-statistics")):
        size += len(record.value)
        if contestant == "driftline":
            events += len(decode(record.value).offsets) // _OFFSET.itemsize
    return size, events


def state_errors(
    log: Changelog, users: NDArray[np.int64], data_dir: Path, contestant: Contestant, source: int
) -> Iterator[str]:
    """What is wrong with the state after events of these [N] users, on disk too; nothing if it is
    right. `source` is the fingerprint of the topic that rows speak of."""
    yield from row_errors(log, users, contestant, source)
    if dict(_rows_on_disk(data_dir)) != log.rows:
        yield "the rows on disk are not those of the changelog"


def row_errors(
    log: Changelog, users: NDArray[np.int64], contestant: Contestant, source: int
) -> Iterator[str]:
    """What is wrong with the rows in the changelog after events of these [N] users."""
    numbers, wanted = np.unique(users, return_counts=True)
    if len(log.rows) != len(numbers):
        yield f"wanted rows of {len(numbers)} users, got {len(log.rows)}"
    total = wrong = 0
    for number, count in zip(numbers.tolist(), wanted.tolist(), strict=True):
        row = log.rows.get(row_key("default", True, user_id(number)))
        if row is None:
            wrong += 1
            continue
        is_raw = contestant != "driftline"
        got = count_in(row) if is_raw else UserRow.decode(row, source).events_total
        total += got
        wrong += got != count
    if total != len(users):
        yield f"wanted {len(users)} events in the rows, got {total}"
    if wrong:
        yield f"{wrong} of {len(numbers)} users have another number of events than were sent"


def _rows_on_disk(data_dir: Path) -> Iterator[tuple[bytes, bytes]]:
    for path in sorted(data_dir.rglob("*.db")):
        for key, value in rows_on_disk(path).items():
            if key not in (SOURCE_KEY, POSTPONED_KEY, OFFSET_KEY, CHANGELOG_KEY):
                yield key, value
