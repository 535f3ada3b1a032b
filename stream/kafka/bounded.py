"""Opens fetched record batches before aiokafka does, and puts a mark in the place of refused ones.

aiokafka decompresses a batch whole, whatever it becomes. Here each compressed batch is decompressed
with a bound and handed on uncompressed. One that would become too large, or cannot be decompressed,
is replaced by a batch of a single record at its last offset, without a key: so the offsets go on,
the record takes the way of every refused one, and `refusal_in` its value tells what it stands for.

aiokafka passes over the marker at the end of a transaction without a word, and an offset is missing
for whoever expects each. Where that is asked for, a marker is refused like a batch.
"""

from __future__ import annotations

import logging
import secrets
import struct
from collections.abc import Collection
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from export.decompress import MAX_BATCH_BYTES, BoundedDecompressor, DecompressionError

logger = logging.getLogger(__name__)

#: A mark's value begins so. Other processes do not know it: no producer can send a mark.
_MARK = b"driftline-refused-" + secrets.token_bytes(16)

_SIZE_AND_MAGIC = struct.Struct(">8xi4xb")
_SIZE_END = 12  # what the size counts comes after it
_MAGIC_END = 17
_HEADER_BYTES = 61
_CRC_AT, _ATTRIBUTES_AT = 17, 21
_V2 = struct.Struct(">q8x1xIhiqqqhi4x")  # base, crc, attributes, last delta, times, producer
_CODEC_BITS = 0x07
_CONTROL_BIT = 0x20
_TRANSACTIONAL_BIT = 0x10
_MARK_BYTES = 4096


#: Why a transaction's marker is refused.
TRANSACTION_END = (
    "the end of a transaction: its events are folded whether it was committed or not; "
    "let producers send without transactions"
)


class Refusal(msgspec.Struct, frozen=True):
    """A batch that was not read: its offsets from `first` to `last`, its size as it was sent."""

    first: int
    last: int
    compressed_bytes: int
    reason: str


def refusal_in(value: bytes | None) -> Refusal | None:
    """The batch that a record with this value stands for, if it is a mark."""
    if value is None or not value.startswith(_MARK):
        return None
    return msgspec.json.decode(value[len(_MARK) :], type=Refusal)


def bound_fetches(
    consumer: AIOKafkaConsumer,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    topics: Collection[str] | None = None,
    is_each_offset_expected: bool = False,
) -> None:
    """Let a consumer that is not started yet open no batch larger than this, of these topics.

    None: of all topics. Refused batches are logged; their marks come as records. Where each offset
    is expected, those of transactions' ends come so too: not for one that reads committed records
    only, which needs the ends themselves.
    """
    bound = FetchBound(max_batch_bytes, is_each_offset_expected)
    send = consumer._client.send

    async def send_bounded(node_id: int, request: Any, **options: Any) -> Any:
        response = await send(node_id, request, **options)
        if isinstance(request, FetchRequest):
            begins = {
                (topic, partition[0]): partition[1]
                for topic, partitions in request.topics
                for partition in partitions
            }
            response.topics = bound.opened_topics(response.topics, begins, topics)
        return response

    consumer._client.send = send_bounded


class FetchBound:
    """Opens the batches of one consumer's fetches."""

    def __init__(self, max_batch_bytes: int, is_each_offset_expected: bool = False) -> None:
        self._is_each_offset_expected = is_each_offset_expected
        self._decompressor = BoundedDecompressor(max_batch_bytes)
        self._told: dict[tuple[str, int], int] = {}  # last refused batch of a partition, logged

    def opened_topics(
        self, answer: Any, begins: dict[tuple[str, int], int], topics: Collection[str] | None
    ) -> list[Any]:
        """The topics of a fetch answer with all batches opened.

        All of them are in memory at once: what is to be opened after the bound is reached is left
        out, and fetched again. `begins` has the offsets asked for.
        """
        left = self._decompressor.max_bytes
        opened_topics = []
        for topic, partitions in answer or ():
            if topics is None or topic in topics:
                opened = []
                for partition, *about, data in partitions:
                    begin = begins.get((topic, partition), 0)
                    if data:
                        data, used = self.opened(topic, partition, begin, data, left)
                        left -= used
                    opened.append((partition, *about, data))
                partitions = opened
            opened_topics.append((topic, partitions))
        return opened_topics

    def opened(
        self, topic: str, partition: int, begin: int, data: bytes, room: int
    ) -> tuple[bytes, int]:
        """The batches of one partition, opened, and how many bytes those were that were compressed.

        Ends before the first compressed batch for which there is no room left.
        """
        pieces: list[bytes] = []
        at, kept_from, used = 0, 0, 0
        while at + _MAGIC_END <= len(data):
            size, magic = _SIZE_AND_MAGIC.unpack_from(data, at)
            end = at + _SIZE_END + size
            if size < 0 or end > len(data):
                break
            codec = _codec(data, at, magic)
            if codec:
                if used >= room:
                    pieces.append(data[kept_from:at])
                    return b"".join(pieces), used
                batch = data[at:end]
                opened = self._open(topic, partition, begin, batch, magic, codec)
                used += len(opened)
                pieces += (data[kept_from:at], opened)
                kept_from = end
            elif self._is_each_offset_expected and _is_control(data, at, magic):
                first, last = _offsets(data[at:end], magic)
                refusal = Refusal(first, last, end - at, TRANSACTION_END)
                pieces += (data[kept_from:at], _mark(data[at:end], magic, refusal))
                kept_from = end
            at = end
        if not pieces:
            return data, used
        pieces.append(data[kept_from:])
        return b"".join(pieces), used

    def _open(
        self, topic: str, partition: int, begin: int, batch: bytes, magic: int, codec: int
    ) -> bytes:
        try:
            if magic < 2:
                self._decompressor.decompress(codec, _legacy_value(batch, magic))
                return batch
            if calc_crc32c(batch[_ATTRIBUTES_AT:]) != _V2.unpack_from(batch)[1]:
                return batch  # aiokafka refuses it
            records = self._decompressor.decompress(codec, batch[_HEADER_BYTES:])
        except DecompressionError as error:
            first, last = _offsets(batch, magic)
            refusal = Refusal(begin if magic < 2 else first, last, len(batch), str(error))
            self._tell(topic, partition, refusal)
            return _mark(batch, magic, refusal)
        return _uncompressed(batch, records)

    def _tell(self, topic: str, partition: int, refusal: Refusal) -> None:
        if self._told.get((topic, partition)) == refusal.last:
            return
        self._told[topic, partition] = refusal.last
        logger.error(
            "A record batch is refused, its offsets are passed over: %s",
            refusal.reason,
            extra={
                "topic": topic,
                "partition": partition,
                "first_offset": refusal.first,
                "last_offset": refusal.last,
            },
        )


def _codec(data: bytes, at: int, magic: int) -> int:
    """The codec's number; in both formats the attributes' lowest bits."""
    byte = at + (_ATTRIBUTES_AT + 1 if magic >= 2 else _MAGIC_END)
    return data[byte] & _CODEC_BITS if byte < len(data) else 0


def _is_control(data: bytes, at: int, magic: int) -> bool:
    """Whether a batch is the end of a transaction; formats before 2 have none."""
    byte = at + _ATTRIBUTES_AT + 1
    return magic >= 2 and byte < len(data) and bool(data[byte] & _CONTROL_BIT)


def _offsets(batch: bytes, magic: int) -> tuple[int, int]:
    """First and last offset; of the old format only the last is written down."""
    if magic < 2:
        (last,) = struct.unpack_from(">q", batch)
        return last, last
    base, _, _, last_delta, *_ = _V2.unpack_from(batch)
    return base, base + last_delta


def _legacy_value(batch: bytes, magic: int) -> bytes:
    """The compressed messages inside a message of format 0 or 1."""
    at = _MAGIC_END + 1 + (8 if magic else 0)
    try:
        (key_bytes,) = struct.unpack_from(">i", batch, at)
        at += 4 + max(key_bytes, 0)
        (value_bytes,) = struct.unpack_from(">i", batch, at)
    except struct.error as error:
        raise DecompressionError(f"{len(batch)} bytes are too short for a message") from error
    return batch[at + 4 : at + 4 + max(value_bytes, 0)]


def _uncompressed(batch: bytes, records: bytes) -> bytes:
    """The same batch with its records as they are."""
    (_, _, attributes, *_) = _V2.unpack_from(batch)
    rest = struct.pack(">h", attributes & ~_CODEC_BITS) + batch[_ATTRIBUTES_AT + 2 : _HEADER_BYTES]
    rest += records
    size = struct.pack(">i", _ATTRIBUTES_AT + len(rest) - _SIZE_END)
    return batch[:8] + size + batch[_SIZE_END:_CRC_AT] + struct.pack(">I", calc_crc32c(rest)) + rest


def _mark(batch: bytes, magic: int, refusal: Refusal) -> bytes:
    """A batch of the same format, offsets and transaction with one record, at its end."""
    value = _MARK + msgspec.json.encode(refusal)
    if magic < 2:
        old = LegacyRecordBatchBuilder(magic, 0, _MARK_BYTES)
        old.append(0, 0 if magic else None, None, value)
        return batch[:8] + bytes(old.build()[8:])
    _, _, attributes, delta, timestamp_ms, _, *producer = _V2.unpack_from(batch)
    is_transactional = int(bool(attributes & _TRANSACTIONAL_BIT))
    builder = DefaultRecordBatchBuilder(magic, 0, is_transactional, *producer, _MARK_BYTES)
    builder.append(delta, max(timestamp_ms, 0), None, value, [])
    return batch[:8] + bytes(builder.build()[8:])
