"""A disk in memory under the worker's own table: what RocksDB promises, and no more.

A write batch is there whole or not at all. RocksDB writes files only now and then, or as it is
closed, and keeps no log here: the death of the process takes the newest batches with it, but never
an older one without all newer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from faust.types import TP

from stream.kafka.own_rows import OFFSET_KEY, Row
from stream.kafka.table import RowTable

#: Write batches after which a file is written, in the mean.
FLUSH_EVERY = 8


class Disk:
    """The databases of one worker, by partition; outlives its processes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._written: dict[int, list[dict[bytes, bytes | None]]] = {}
        self._flushed: dict[int, int] = {}

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
        if self._rng.randrange(FLUSH_EVERY) == 0:
            self._flushed[partition] = len(batches)

    def flush(self, partition: int) -> None:
        """All of a partition comes into files."""
        self._flushed[partition] = len(self._written.get(partition, ()))

    def lose_unflushed(self) -> None:
        """The process dies: a part of what was in no file is gone, the newest first."""
        for partition, batches in self._written.items():
            kept = self._rng.randint(self._flushed.get(partition, 0), len(batches))
            del batches[kept:]
            self._flushed[partition] = kept

    def drop(self, partition: int) -> None:
        """A partition is gone."""
        self._written.pop(partition, None)
        self._flushed.pop(partition, None)

    def wipe(self) -> None:
        """Everything is gone."""
        self._written.clear()
        self._flushed.clear()


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


class SimulatedStore:
    """In the place of the worker's RowStore."""

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

    def rows_from(self, partition: int, first: bytes | None) -> Iterable[tuple[bytes, bytes]]:
        rows = sorted(self.db(partition).rows.items())
        return [(key, value) for key, value in rows if first is None or key >= first]

    def persisted_offset(self, tp: TP) -> int | None:
        """The changelog offset that the rows stand at; None: there are none."""
        offset = self.db(tp.partition).rows.get(OFFSET_KEY)
        return None if offset is None else int(offset)

    def drop(self, partition: int, reason: str) -> None:
        """As the worker's RowStore; nobody looks at what is set aside."""
        self._open.pop(partition, None)
        self._disk.drop(partition)

    def revoke(self, partitions: Iterable[int]) -> None:
        """Close databases of partitions that others have now."""
        for partition in partitions:
            if self._open.pop(partition, None) is not None:
                self._disk.flush(partition)

    def die(self) -> None:
        """The process ends without closing anything."""
        self.is_closed = True
        self._disk.lose_unflushed()


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
