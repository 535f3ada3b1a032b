"""RocksDB under a table of rows: whole batches, bounded memory, damage found and set aside.

RocksDB keeps no log of its own: the changelog is the log, as with Kafka Streams. Rows gather in
memory and come to disk in whole batches, the older ones first; after a crash what was in memory is
read from the changelog again. So there is nothing on disk that could be put together wrongly: with
a log, a list of files that was cut short (MANIFEST) loses older rows and keeps newer ones.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rocksdict
from faust.stores import rocksdb
from faust.types import TP
from faust.types.tables import CollectionT
from mode import Service

from export.errors import DriftlineError
from stream.kafka.marks import UNKNOWN, SourceMark, TopicMarks
from stream.kafka.own_rows import CHANGELOG_KEY, OFFSET_KEY, SOURCE_KEY, Row

if TYPE_CHECKING:
    from stream.kafka.table import RowTable

#: One cache for all partitions of a table. Faust's default is 2 GiB for each partition.
BLOCK_CACHE_BYTES = 64 * 1024**2

#: Memory for rows that are in no file yet, of all partitions of a table: so much is to be read
#: again after a crash, and more where rows of a user came one after another.
WRITE_BUFFER_BYTES = 128 * 1024**2

#: What one partition may have of it. A quiet one's rows come to a file after so long.
PARTITION_BUFFER_BYTES = 16 * 1024**2
FLUSH_S = 600.0

#: In such steps memory is taken. With RocksDB's own, of a megabyte, the first rows of a hundred
#: partitions would fill it, and each write would make a file.
_ARENA_BYTES = 64 * 1024

#: Faust's default is nearly all the process may open, for each partition.
_MAX_OPEN_FILES = 256

#: Bits of bloom filter per row: about 1 % of the reads of new users touch the disk in vain.
_BLOOM_BITS = 10.0

_FINGERPRINT = struct.Struct("<Q")


class ReservedKeyError(DriftlineError):
    """A row has a key that the table itself uses."""


class DamagedTableError(DriftlineError):
    """A database on disk is damaged, and set aside at the next start; or it could not be closed,
    and lacks rows that were in memory, from which a recovery goes on."""


def open_rows(
    path: Path, cache: rocksdict.Cache, buffers: rocksdict.WriteBufferManager
) -> rocksdict.Rdict:
    """Open a partition's database, or make one, with the cache and the memory of all of them."""
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_bloom_filter(_BLOOM_BITS, False)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_max_open_files(_MAX_OPEN_FILES)
    options.set_write_buffer_manager(buffers)
    options.set_write_buffer_size(min(PARTITION_BUFFER_BYTES, buffers.get_buffer_size()))
    options.set_max_write_buffer_number(2)
    options.set_arena_block_size(_ARENA_BYTES)
    database = rocksdict.Rdict(str(path), options=options)
    without_log = rocksdict.WriteOptions()
    without_log.disable_wal = True
    database.set_write_options(without_log)
    return database


def row_buffers(size: int) -> rocksdict.WriteBufferManager:
    """The memory that partitions share for rows that are in no file yet."""
    return rocksdict.WriteBufferManager(size, False)  # writers are not to wait for it


class RowStore(rocksdb.Store):  # type: ignore[misc]
    """Faust's RocksDB store, written in whole batches, with bounded memory.

    A database that cannot be opened because it is damaged, or that is no copy of the changelog
    there is now, is renamed to `*.damaged` and built again from the changelog; the newest such one
    is kept for a look.
    """

    table: RowTable

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._shared: tuple[rocksdict.Cache, rocksdict.WriteBufferManager] | None = None
        #: Partitions whose rows in memory may be lost, until it is asked what the disk has.
        self._may_lack: set[int] = set()
        super().__init__(*args, **kwargs)

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        with self.marking_damage(partition):
            values: list[bytes | None] = self.db(partition).get(list(keys))
        return values

    def write(self, partition: int, rows: Iterable[Row], changelog_offset: int) -> None:
        if partition in self._may_lack:
            raise DamagedTableError(
                f"partition {partition} of table {self.table_name!r} could not be closed, and has "
                "lost the rows that were in memory: nothing is put behind them. Start the worker "
                "again: it reads them from the changelog"
            )
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

    def rows_from(self, partition: int, first: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """All rows from a key on, in key order; see RowTable.iter_rows."""
        with self.marking_damage(partition):
            database, last = self.db(partition), first
            for key, value in database.items(from_key=first):
                last = key
                yield key, value
            # at a block that cannot be read, rocksdict's items end as if there were no more
            rest = database.iter()
            rest.seek(last or b"")
            if rest.valid():
                rest.next()
            rest.status()

    def db(self, partition: int) -> rocksdict.Rdict:
        return self._db_for_partition(partition)

    def drop(self, partition: int, reason: str) -> None:
        """See RowTable.drop."""
        if partition in self._dbs:
            self._close(partition)
        self._set_aside(partition, reason)
        self._may_lack.discard(partition)

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

    def revoke_partitions(self, table: CollectionT, tps: set[TP]) -> None:
        for tp in tps:
            if tp.topic == self.table.changelog_topic_name and tp.partition in self._dbs:
                self._close(tp.partition)

    async def stop(self) -> None:
        await Service.stop(self)  # Faust's own stop leaves the service's tasks running
        with contextlib.suppress(Exception):  # it shows again in closing
            self._flush_all()  # at once; closing waits for each
        failed: Exception | None = None
        for partition in list(self._dbs):
            try:
                self._close(partition)
            except Exception as error:  # the others are closed all the same
                failed = failed or error
        if failed is not None:
            raise failed

    @Service.timer(FLUSH_S)  # type: ignore[untyped-decorator]
    async def _flush_quiet_ones(self) -> None:
        self._flush_all()

    def _flush_all(self) -> None:
        """Begin to write all rows to files."""
        for partition, database in self._dbs.items():
            with self.marking_damage(partition):
                database.flush(wait=False)

    def persisted_offset(self, tp: TP) -> int | None:
        (offset,) = self.get_many(tp.partition, [OFFSET_KEY])
        self._may_lack.discard(tp.partition)
        return None if offset is None else int(offset)

    def _close(self, partition: int) -> None:
        """Write what is in memory, and close; damage that shows as this is done is put down."""
        self._may_lack.add(partition)
        with contextlib.suppress(DamagedTableError), self.marking_damage(partition):
            self._dbs.pop(partition).close()
            self._may_lack.discard(partition)

    def _open_for_partition(self, partition: int) -> rocksdict.Rdict:
        path = self.partition_path(partition)
        if self._damage_mark(partition).exists():
            self._set_aside(partition, "it could not be read")
        try:
            database = self._opened(path)
            if (reason := self._why_unusable(database)) is None:
                return self._marked(database)
        except Exception as error:
            if not _is_damage(error):
                raise
            reason = str(error)
        self._set_aside(partition, reason)
        return self._marked(self._opened(path))

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

    def _opened(self, path: Path) -> rocksdict.Rdict:
        if self._shared is None:
            table = self.table
            self._shared = (
                rocksdict.Cache(table.block_cache_bytes),
                row_buffers(table.write_buffer_bytes),
            )
        return open_rows(path, *self._shared)


def _is_damage(error: Exception) -> bool:
    """Whether RocksDB found bad or missing files; not a lock, a full disk or a closed database."""
    text = str(error)
    return text.startswith(("Corruption", "Invalid argument")) or "No such file" in text
