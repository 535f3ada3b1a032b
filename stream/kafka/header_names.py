"""Lets aiokafka read records with header names that are no UTF-8.

Kafka takes any bytes as a name, and there are clients that send any. aiokafka raises at such a
record, without going on: it would be met again at every start, and its partition stand still.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from export.header_names import mend_names

#: Where a batch's size, what it counts, format, checksum and attributes stand, and its records.
_SIZE_AT, _SIZED_FROM, _MAGIC_AT, _CRC_AT, _ATTRIBUTES_AT = 8, 12, 16, 17, 21
_COUNT_AT, _RECORDS_AT = 57, 61
_NUMBER = struct.Struct(">i")


def mend_header_names() -> None:
    """From now on consumers of this process read such names with question marks in them."""
    aiokafka_fetcher.MemoryRecords = ReadableRecords


class ReadableRecords:
    """The record batches of one partition's answer, as aiokafka reads them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._records = MemoryRecords(data)
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> Any:
        """The next batch."""
        batch, begin = self._records.next_batch(), self._at
        (size,) = _NUMBER.unpack_from(self._data, begin + _SIZE_AT)
        self._at = begin + _SIZED_FROM + size
        if batch is None or self._data[begin + _MAGIC_AT] < 2:  # those have no headers
            return batch
        return _ReadableBatch(batch, self._data, begin, self._at)


class _ReadableBatch:
    """A batch of format 2."""

    def __init__(self, batch: Any, data: bytes, begin: int, end: int) -> None:
        self._batch, self._data, self._begin, self._end = batch, data, begin, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            # from its beginning: whoever reads it passes over offsets that it has had
            yield from MemoryRecords(self._mended()).next_batch()

    def _mended(self) -> bytes:
        batch = bytearray(self._data[self._begin : self._end])
        (count,) = _NUMBER.unpack_from(batch, _COUNT_AT)
        mend_names(batch, _RECORDS_AT, count)
        batch[_CRC_AT:_ATTRIBUTES_AT] = calc_crc32c(bytes(batch[_ATTRIBUTES_AT:])).to_bytes(4)
        return bytes(batch)
