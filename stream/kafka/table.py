"""Rows of bytes by partition: RocksDB on disk, a compacted changelog behind it.

Faust's own table takes one row at a time, finds the partition through the event being processed,
and writes a row and its changelog offset apart. Here rows and offset are one write batch: what is
on disk is always the fold of the changelog up to exactly that offset, whenever the process dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import faust
from aiokafka.structs import ConsumerRecord
from faust.tables.table import Table

from stream.kafka.marks import SourceMark, TopicMarks
from stream.kafka.own_rows import FENCE_KEY, FIRST_OTHER, POSTPONED_KEY, SOURCE_KEY, Row, is_own
from stream.kafka.row_store import BLOCK_CACHE_BYTES, WRITE_BUFFER_BYTES, RowStore


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
        disk turns out to be damaged, or lacks rows as it could not be closed before.
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
        first = FIRST_OTHER if after is None else after + b"\x00"
        for key, value in store.rows_from(partition, first):
            if not is_own(key):
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
