"""The rows that a table of rows keeps for itself, beside those of the users."""

from __future__ import annotations

import struct

from faust.stores import rocksdb

from stream.kafka.marks import SourceMark, TopicMarks

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

#: Where Faust keeps the changelog offset that the database has; never in the changelog.
OFFSET_KEY: bytes = rocksdb.Store.offset_key

#: Keys that begin so are the table's own; no user's does. All others lie behind FIRST_OTHER.
_OWN = b"\x00"
FIRST_OTHER = b"\x01"
_PRODUCER = struct.Struct("<qh")


def is_own(key: bytes) -> bool:
    """Whether a key is one of the table's own."""
    return key == OFFSET_KEY or key.startswith(_OWN)


def source_row(offset: int, topics: TopicMarks | None = None, seq_floor: int = 0) -> Row:
    """The row that says: the state contains the source up to and including `offset`."""
    return SOURCE_KEY, SourceMark(offset, topics or TopicMarks(), seq_floor).pack()


def postponed_row(has_postponed: bool) -> Row:
    """The row that says whether rows of its partition tell of postponed lists."""
    return POSTPONED_KEY, b"1" if has_postponed else None


def fence_row(producer_id: int, epoch: int) -> Row:
    """The row under whose epoch the rows after it were written."""
    return FENCE_KEY, _PRODUCER.pack(producer_id, epoch)
