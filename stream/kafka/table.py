"""Rows of bytes by partition: RocksDB on disk, a compacted changelog behind it.

Faust's own table takes one row at a time, finds the partition through the event being processed,
and writes a row and its changelog offset apart. Here rows and offset are one write batch: what is
on disk is always the fold of the changelog up to exactly that offset, whenever the process dies.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import faust
import rocksdict
from aiokafka.structs import ConsumerRecord
from faust.stores import rocksdb
from faust.tables.table import Table
from faust.types import TP, EventT
from faust.types.tables import CollectionT

from export.errors import DriftlineError
from stream.kafka.marks import UNKNOWN, SourceMark, TopicMarks

#: A row: key and value; None deletes.
Row = tuple[bytes, bytes | None]

#: Key of the row that holds the last applied source offset. It goes through the changelog like
#: every other row, so that recovery restores it together with the state it speaks of.
SOURCE_KEY = b"\x00source"

#: Key of the row that is there while rows of the partition tell of postponed lists.
POSTPONED_KEY = b"\x00postponed"

#: Key of the row that an owner of the partition writes first (see `changelog_fence`). It is for the
#: broker: no disk keeps it.
FENCE_KEY = b"\x00fence"

#: Key of the fingerprint of the changelog that a database is a copy of, on disk alone. It is there
#: before the first row: the row that tells of the source may come last of all.
CHANGELOG_KEY = b"\x00changelog"

#: Keys that begin so are the table's own; no user's does.
_OWN = b"\x00"

#: Where Faust keeps the changelog offset that the database has; never in the changelog.
OFFSET_KEY: bytes = rocksdb.Store.offset_key

_PRODUCER = struct.Struct("<qh")
_FINGERPRINT = struct.Struct("<Q")

#: One cache for all partitions of a table. Faust's default is 2 GiB for each partition.
BLOCK_CACHE_BYTES = 64 * 1024**2

#: Memory for rows not yet in a file, two of these for each partition at most.
WRITE_BUFFER_BYTES = 16 * 1024**2

#: Faust's default is nearly all the process may open, for each partition.
MAX_OPEN_FILES = 256

#: Bits of bloom filter per row: about 1 % of the reads of new users touch the disk in vain.
BLOOM_BITS = 10.0


class ReservedKeyError(DriftlineError):
    """A row has a key that the table itself uses."""


class DamagedTableError(DriftlineError):
    """A database on disk is damaged; it is set aside at the next start."""


class RowTable(Table):  # type: ignore[misc]
    """Rows by partition, with the source offset they stand at.

    Made by `app.Table(name, partitions=N)` on an app with `Table=RowTable`; N must be the source
    topic's. Use only the methods here: the dict interface of Faust's table refuses.
    """

    #: Of which topics the rows must be.
    topics = TopicMarks()

    def __init__(
        self,
        app: faust.App,
        *,
        block_cache_bytes: int = BLOCK_CACHE_BYTES,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
        topics: TopicMarks | None = None,
        **kwargs: object,
    ) -> None:
        kwargs |= {"key_type": bytes, "value_type": bytes}
        super().__init__(app, **kwargs)
        self.block_cache_bytes = block_cache_bytes
        self.write_buffer_bytes = write_buffer_bytes
        self.topics = topics or self.topics

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows of these keys, in their order; None where there is none. Blocks on disk.

        Raises DamagedTableError when the database cannot be read.
        """
        store: RowStore = self.data
        return store.get_many(partition, keys)

    def write(self, partition: int, rows: Iterable[Row], changelog_offset: int) -> None:
        """Write rows that are in the changelog up to `changelog_offset`, in one RocksDB batch.

        Call it after the broker has acknowledged all of them, with the offset of the last. A row
        with value None is deleted. Blocks on disk. Raises DamagedTableError when the database on
        disk turns out to be damaged.
        """
        store: RowStore = self.data
        store.write(partition, rows, changelog_offset)

    def source_mark(self, partition: int) -> SourceMark | None:
        """How far the source is applied to the rows of this partition; None = no row yet.

        Raises ForeignStateError when they are of another source or changelog than there is now.
        """
        (packed,) = self.get_many(partition, [SOURCE_KEY])
        if packed is None:
            return None
        mark = SourceMark.unpack(packed)
        mark.require_same_topics(self.topics)
        return mark

    def source_watermark(self, partition: int) -> int | None:
        """The last source offset the rows of this partition contain; None = no row yet.

        Raises ForeignStateError as `source_mark` does.
        """
        mark = self.source_mark(partition)
        return None if mark is None else mark.offset

    def has_postponed(self, partition: int) -> bool:
        """Whether rows of this partition tell of postponed lists."""
        return self.get_many(partition, [POSTPONED_KEY]) != [None]

    def iter_rows(
        self, partition: int, after: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a partition in key order, without the table's own; or those after a key.

        Slow. The iterator shows the partition as it is now, whatever is written meanwhile.
        Raises DamagedTableError when the database cannot be read.
        """
        store: RowStore = self.data
        with store.marking_damage(partition):
            first = None if after is None else after + b"\x00"
            for key, value in store.db(partition).items(from_key=first):
                if key != OFFSET_KEY and not key.startswith(_OWN):
                    yield key, value

    def restore(self, partition: int, records: Sequence[ConsumerRecord]) -> None:
        """Apply changelog records, in offset order, in one RocksDB batch.

        Only the newest row of each key is written: it alone would be left in any case.
        """
        newest = {record.key: record.value for record in records}
        newest.pop(FENCE_KEY, None)
        self.write(partition, newest.items(), records[-1].offset)

    def drop(self, partition: int, reason: str) -> None:
        """Set the rows of a partition aside, to be built again from the changelog."""
        store: RowStore = self.data
        store.drop(partition, reason)

    def _new_store(self) -> RowStore:
        return RowStore(
            "rocksdb://",
            self.app,
            self,
            table_name=self.name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            loop=self.loop,
        )

    def __getitem__(self, key: object) -> object:
        raise NotImplementedError("a RowTable has no dict interface: use get_many and write")

    __setitem__ = __delitem__ = __getitem__


def source_row(offset: int, topics: TopicMarks | None = None, seq_floor: int = 0) -> Row:
    """The row that says: the state contains the source up to and including `offset`."""
    return SOURCE_KEY, SourceMark(offset, topics or TopicMarks(), seq_floor).pack()


def postponed_row(has_postponed: bool) -> Row:
    """The row that says whether rows of its partition tell of postponed lists."""
    return POSTPONED_KEY, b"1" if has_postponed else None


def fence_row(producer_id: int, epoch: int) -> Row:
    """The row under whose epoch the rows after it were written."""
    return FENCE_KEY, _PRODUCER.pack(producer_id, epoch)


class RowStore(rocksdb.Store):  # type: ignore[misc]
    """Faust's RocksDB store, written in whole batches, with bounded memory.

    A database that cannot be opened because it is damaged, or that is no copy of the changelog
    there is now, is renamed to `*.damaged` and built again from the changelog; the newest such one
    is kept for a look.
    """

    table: RowTable

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        with self.marking_damage(partition):
            values: list[bytes | None] = self.db(partition).get(list(keys))
        return values

    def write(self, partition: int, rows: Iterable[Row], changelog_offset: int) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in rows:
            if key == OFFSET_KEY:
                raise ReservedKeyError(f"a row may not have the key {key!r}: choose another")
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(OFFSET_KEY, b"%d" % changelog_offset)
        with self.marking_damage(partition):  # met while files are merged, it shows here
            self.db(partition).write(batch)

    def db(self, partition: int) -> rocksdict.Rdict:
        return self._db_for_partition(partition)

    def drop(self, partition: int, reason: str) -> None:
        """See RowTable.drop."""
        if partition in self._dbs:
            self._close(partition)
        self._set_aside(partition, reason)

    @contextlib.contextmanager
    def marking_damage(self, partition: int) -> Iterator[None]:
        """Damage that RocksDB meets in the block is put down, and raised as DamagedTableError.

        The next start sets the database aside: without the mark it would open the same files.
        """
        try:
            yield
        except Exception as error:
            if not _is_damage(error):
                raise
            self._damage_mark(partition).touch()
            raise DamagedTableError(
                f"partition {partition} of table {self.table_name!r} is damaged on disk: {error}. "
                "Start the worker again: the partition is built anew from the changelog"
            ) from error

    # -- what Faust calls -------------------------------------------------------------------

    def apply_changelog_batch(
        self, batch: Iterable[EventT], to_key: object, to_value: object
    ) -> None:
        by_partition: dict[int, list[EventT]] = {}
        for event in batch:
            by_partition.setdefault(event.message.partition, []).append(event)
        for partition, events in by_partition.items():
            rows = [(event.message.key, event.message.value) for event in events]
            self.write(partition, rows, events[-1].message.offset)

    def revoke_partitions(self, table: CollectionT, tps: set[TP]) -> None:
        for tp in tps:
            if tp.topic == self.table.changelog_topic_name and tp.partition in self._dbs:
                self._close(tp.partition)

    async def stop(self) -> None:
        for partition in list(self._dbs):
            self._close(partition)

    def persisted_offset(self, tp: TP) -> int | None:
        (offset,) = self.get_many(tp.partition, [OFFSET_KEY])
        return None if offset is None else int(offset)

    def _close(self, partition: int) -> None:
        """Damage that shows in closing is put down; the other databases are closed all the same."""
        with contextlib.suppress(DamagedTableError), self.marking_damage(partition):
            self._dbs.pop(partition).close()

    def _open_for_partition(self, partition: int) -> rocksdict.Rdict:
        path = self.partition_path(partition)
        if self._damage_mark(partition).exists():
            self._set_aside(partition, "it could not be read")
        try:
            database = rocksdict.Rdict(str(path), options=self._rocksdb_options())
            if (reason := self._why_unusable(database)) is None:
                return self._marked(database)
        except Exception as error:
            if not _is_damage(error):
                raise
            reason = str(error)
        self._set_aside(partition, reason)
        return self._marked(rocksdict.Rdict(str(path), options=self._rocksdb_options()))

    def _why_unusable(self, database: rocksdict.Rdict) -> str | None:
        """Why a database must be built again, which is closed then; None: it need not."""
        try:
            copied, source = database.get([CHANGELOG_KEY, SOURCE_KEY])
            marks = [] if source is None else [SourceMark.unpack(source).topics]
            if copied is not None:
                marks.append(TopicMarks(changelog=_FINGERPRINT.unpack(copied)[0]))
            if all(mark.may_be_of_changelog(self.table.topics) for mark in marks):
                return None
        except BaseException:
            database.close()
            raise
        database.close()
        return "it is a copy of a changelog that was deleted"

    def _marked(self, database: rocksdict.Rdict) -> rocksdict.Rdict:
        """The database, which says of which changelog it is a copy where that is known."""
        fingerprint = self.table.topics.changelog
        if fingerprint != UNKNOWN and database.get(CHANGELOG_KEY) is None:
            database.put(CHANGELOG_KEY, _FINGERPRINT.pack(fingerprint))
        return database

    def _set_aside(self, partition: int, reason: str) -> None:
        path = self.partition_path(partition)
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            path.rename(aside)
        self._damage_mark(partition).unlink(missing_ok=True)
        self.log.error(
            "A table partition on disk is damaged, or no copy of its changelog; it is built again "
            "from the changelog",
            extra={"path": str(path), "kept_as": str(aside), "reason": reason},
        )

    def _damage_mark(self, partition: int) -> Path:
        path: Path = self.partition_path(partition)
        return path.with_name(f"{path.name}.is-damaged")

    def _rocksdb_options(self) -> rocksdict.Options:
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(self._block_cache())
        blocks.set_bloom_filter(BLOOM_BITS, False)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_max_open_files(MAX_OPEN_FILES)
        options.set_write_buffer_size(self.table.write_buffer_bytes)
        options.set_max_write_buffer_number(2)
        return options

    def _block_cache(self) -> rocksdict.Cache:
        if not hasattr(self, "_cache"):
            self._cache = rocksdict.Cache(self.table.block_cache_bytes)
        return self._cache


def _is_damage(error: Exception) -> bool:
    """Whether RocksDB found bad or missing files; not a lock, a full disk or a closed database."""
    text = str(error)
    return text.startswith(("Corruption", "Invalid argument")) or "No such file" in text
