"""Let kafka-python open every batch that a worker opens, and none that a worker refuses.

By itself it reads snappy, lz4 and zstd only where further packages are installed, decompresses a
batch whole, whatever it becomes, and raises at a header's name that is no UTF-8.
"""

from __future__ import annotations

import logging
from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import encode_varint

from export.decompress import MAX_BATCH_BYTES, BoundedDecompressor, DecompressionError
from export.header_names import mend_names

logger = logging.getLogger(__name__)


def bound_batches(max_batch_bytes: int = MAX_BATCH_BYTES) -> None:
    """From now on consumers of this process open batches, and read header names, so.

    In the place of a refused batch comes one record, at its last offset, without key and value.
    """
    decompressor = BoundedDecompressor(max_batch_bytes)

    class BoundedRecordBatch(DefaultRecordBatch):  # type: ignore[misc]
        _buffer: bytearray
        _pos: int
        _decompressed: bool

        def _maybe_uncompress(self) -> None:
            if not self._decompressed and self.compression_type:
                data = bytes(memoryview(self._buffer)[self._pos :])
                try:
                    records = decompressor.decompress(self.compression_type, data)
                except DecompressionError as error:
                    logger.error(
                        "A record batch is refused, its offsets %d to %d are passed over: %s",
                        self.base_offset,
                        self.base_offset + self.last_offset_delta,
                        error,
                    )
                    self._num_records = 1
                    records = _empty_record(self.last_offset_delta)
                self._buffer, self._pos = bytearray(records), 0
            self._decompressed = True

        def _read_msg(self, *arguments: Any) -> Any:
            try:
                return super()._read_msg(*arguments)
            except UnicodeDecodeError:
                self._buffer = bytearray(self._buffer)
                mend_names(self._buffer, self._pos, 1)
                return super()._read_msg(*arguments)

    memory_records.DefaultRecordBatch = BoundedRecordBatch


def _empty_record(offset_delta: int) -> bytes:
    body = bytearray(2)  # attributes, difference in time
    encode_varint(offset_delta, body.append)
    for number in (-1, -1, 0):  # no key, no value, no headers
        encode_varint(number, body.append)
    record = bytearray()
    encode_varint(len(body), record.append)
    return bytes(record + body)
