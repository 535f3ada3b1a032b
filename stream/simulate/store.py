"""A disk in memory under the worker's own table: what RocksDB promises, and no more.

A write batch is there whole or not at all. It survives the death of the process, as it is in the
operating system's memory then; RocksDB syncs its log only now and then, so the death of the machine
takes the newest batches with it, but never an older one without all newer.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Sequence

from stream.kafka.table import OFFSET_KEY, Row, RowTable

#: Write batches after which the log is synced, in the mean.
SYNC_EVERY = 8


class Disk:
    """The databases of one worker, by partition; outlives its processes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._written: dict[int, list[dict[bytes, bytes | None]]] = {}
        self._synced: dict[int, int] = {}

    def rows(self, partition: int) -> dict[bytes, bytes]:
        """All rows of a partition."""
        rows: dict[bytes, bytes] = {}
        for batch in self._written.get(partition, ()):
            for key, value in batch.items():
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
        return rows

    def write(self, partition: int, batch: dict[bytes, bytes | None]) -> None:
        """One write batch."""
        batches = self._written.setdefault(partition, [])
        batches.append(batch)
        if self._rng.randrange(SYNC_EVERY) == 0:
            self._synced[partition] = len(batches)

    def lose_power(self) -> None:
        """The machine dies: a part of what was not synced is gone, the newest first."""
        for partition, batches in self._written.items():
            kept = self._rng.randint(self._synced.get(partition, 0), len(batches))
            del batches[kept:]

    def drop(self, partition: int) -> None:
        """A partition is gone."""
        self._written.pop(partition, None)
        self._synced.pop(partition, None)

    def wipe(self) -> None:
        """Everything is gone."""
        self._written.clear()
        self._synced.clear()


class Database:
    """One open partition: its rows in memory, its batches on the disk."""

    def __init__(self, disk: Disk, partition: int) -> None:
        self._disk, self._partition = disk, partition
        self.rows = disk.rows(partition)

    def write(self, batch: dict[bytes, bytes | None]) -> None:
        self._disk.write(self._partition, batch)
        for key, value in batch.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value

    def items(self, from_key: bytes | None = None) -> Iterable[tuple[bytes, bytes]]:
        rows = self.rows.items()
        return [(key, value) for key, value in rows if from_key is None or key >= from_key]


class SimulatedStore:
    """In the place of the worker's RowStore; `close` as the process ends."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: dict[int, Database] = {}
        self.is_closed = False

    def db(self, partition: int) -> Database:
        """The database of a partition; opened when it is first asked for."""
        if partition not in self._open:
            self._open[partition] = Database(self._disk, partition)
        return self._open[partition]

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = self.db(partition).rows
        return [rows.get(key) for key in keys]

    def write(self, partition: int, rows: Iterable[Row], changelog_offset: int) -> None:
        assert not self.is_closed, "a dead process writes"
        batch: dict[bytes, bytes | None] = dict(rows)
        batch[OFFSET_KEY] = b"%d" % changelog_offset
        self.db(partition).write(batch)

    def marking_damage(self, partition: int) -> contextlib.AbstractContextManager[None]:
        """This disk forgets, but damages nothing."""
        return contextlib.nullcontext()

    def persisted_offset(self, partition: int) -> int:
        """The changelog offset that the rows stand at; -1: none."""
        return int(self.db(partition).rows.get(OFFSET_KEY, b"-1"))

    def drop(self, partition: int, reason: str) -> None:
        """As the worker's RowStore; nobody looks at what is set aside."""
        self._open.pop(partition, None)
        self._disk.drop(partition)

    def revoke(self, partitions: Iterable[int]) -> None:
        """Close databases of partitions that others have now."""
        for partition in partitions:
            self._open.pop(partition, None)


class SimulatedTable(RowTable):
    """The worker's own table over a simulated store."""

    def __init__(self, changelog: str, disk: Disk) -> None:
        # Faust's part of the table is not wanted: it opens RocksDB, and topics
        self._changelog = changelog
        self._simulated = SimulatedStore(disk)

    @property
    def data(self) -> SimulatedStore:
        return self._simulated

    @property
    def changelog_topic_name(self) -> str:
        return self._changelog
