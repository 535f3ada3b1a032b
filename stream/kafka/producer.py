"""Sends many records of one partition as whole aiokafka batches.

Faust makes a future, a sensor call and often a request for each record; here a batch has one
future, and the caller waits for all of them together before it writes to disk and acks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import repeat

from aiokafka.errors import DuplicateSequenceNumber, ProducerFenced
from aiokafka.structs import RecordMetadata
from faust.transport.drivers import aiokafka as driver

from export.errors import DriftlineError
from stream.kafka.connections import ACKNOWLEDGEMENT_S
from stream.kafka.epochs import ProducerEpoch

#: One record: key and value, either of which may be None.
KeyValue = tuple[bytes | None, bytes | None]

#: The headers of one record.
Headers = Sequence[tuple[str, bytes]]

#: Resolves to (base offset, number of records) when all in-sync replicas have the batch.
Delivery = asyncio.Future[tuple[int, int]]

#: What the record format adds to a record at most, without its headers, and once to a batch.
RECORD_OVERHEAD_BYTES = 36
BATCH_OVERHEAD_BYTES = 61
HEADER_OVERHEAD_BYTES = 10

#: Faust's 16 KiB cost 40 % of the throughput on a real broker; 512 KiB was the best measured.
MAX_BATCH_BYTES = 512 * 1024

#: Longest time from handing a batch over to its acknowledgement, with all attempts: that of Kafka's
#: own producer (delivery.timeout.ms).
DELIVERY_S = 120.0

#: The part of the wait for an acknowledgement in which the broker waits for replicas.
REPLICAS_SHARE = 0.8


class RecordTooLargeError(DriftlineError):
    """A record cannot be sent; nothing of the call was."""


class ChangelogFencedError(DriftlineError):
    """Rows are refused: their changelog partition has another owner."""


class BatchProducer(driver.Producer):  # type: ignore[misc]
    """Faust's producer, plus `send_records`.

    `epochs`: under which producer epoch to write to which partitions; of `fenced_topics`, others
        are not written to. `changelog_fence` keeps both.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.epochs: dict[tuple[str, int], ProducerEpoch] = {}
        self.fenced_topics: set[str] = set()

    def _new_producer(
        self, transactional_id: str | None = None
    ) -> driver.aiokafka.AIOKafkaProducer:
        """Faust's; the broker gives up on replicas before the producer does on the broker."""
        producer = super()._new_producer(transactional_id)
        producer._sender._request_timeout_ms = int(REPLICAS_SHARE * ACKNOWLEDGEMENT_S * 1000)
        return producer

    async def send_records(
        self,
        topic: str,
        partition: int,
        records: Sequence[KeyValue],
        *,
        timestamp_ms: int | Sequence[int],
        headers: Sequence[Headers] | None = None,
    ) -> list[Delivery]:
        """Hand records over for sending, in order; await the returned deliveries to know.

        `headers` has one entry for each record, as `timestamp_ms` may have. Deliveries come in the
        order of the records, together they cover all of them; no record means no delivery. Every
        delivery must be awaited: a failed one raises aiokafka's KafkaError, or
        ChangelogFencedError, there and nowhere else.

        Raises RecordTooLargeError, before anything is sent, when a record with its overhead
        is above `producer_max_request_size` (the broker's limit is `message.max.bytes`).
        """
        self._refuse_large(topic, records, headers)
        deliveries: list[Delivery] = []
        producer = self._ensure_producer()
        batch = producer.create_batch()
        append = batch.append
        with_headers = map(list, headers) if headers else repeat([])
        times_ms = repeat(timestamp_ms) if isinstance(timestamp_ms, int) else timestamp_ms
        for (key, value), of_record, ms in zip(records, with_headers, times_ms, strict=False):
            while append(timestamp=ms, key=key, value=value, headers=of_record) is None:
                deliveries.append(await self._send_batch(batch, topic, partition))
                batch = producer.create_batch()
                append = batch.append
        if batch.record_count():
            deliveries.append(await self._send_batch(batch, topic, partition))
        return deliveries

    async def _send_batch(
        self,
        batch: driver.aiokafka.producer.message_accumulator.BatchBuilder,
        topic: str,
        partition: int,
    ) -> Delivery:
        batch.close()
        count: int = batch.record_count()
        producer, epoch = self._ensure_producer(), self.epochs.get((topic, partition))
        if epoch is not None:
            sent = await epoch.send(producer, batch, topic, partition)
        elif topic in self.fenced_topics:
            raise ChangelogFencedError(f"partition {partition} of {topic!r} is not this worker's")
        else:
            sent = await producer.send_batch(batch, topic, partition=partition)
        delivery: Delivery = asyncio.get_running_loop().create_future()
        sent.add_done_callback(partial(_settle, delivery, count))
        return delivery

    def _refuse_large(
        self, topic: str, records: Sequence[KeyValue], headers: Sequence[Headers] | None
    ) -> None:
        limit: int = self.max_request_size
        if headers is not None and len(headers) != len(records):
            raise ValueError(f"{len(records)} records need as many headers, got {len(headers)}")
        largest = max((len(key or b"") + len(value or b"") for key, value in records), default=0)
        if headers is None and largest <= limit - record_bytes(None, None):
            return
        for (key, value), of_record in zip(records, headers or repeat(()), strict=False):
            size = record_bytes(key, value, of_record)
            if size > limit:
                raise RecordTooLargeError(
                    f"a record for {topic!r} may have {limit:,} bytes, got {size:,} "
                    f"(key {len(key or b''):,}, value {len(value or b''):,}): make it smaller, or "
                    "raise `max_request_bytes` and the broker's message.max.bytes"
                )


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers = ()) -> int:
    """The most bytes a record alone in a batch takes, uncompressed."""
    size = BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
    return size + sum(HEADER_OVERHEAD_BYTES + 4 * len(name) + len(text) for name, text in headers)


def _settle(delivery: Delivery, count: int, sent: asyncio.Future[RecordMetadata]) -> None:
    if delivery.done():  # the caller stopped waiting
        if not sent.cancelled():
            sent.exception()
    elif sent.cancelled():
        delivery.cancel()
    elif (error := sent.exception()) is not None:
        delivery.set_exception(_of_fence(error))
    elif (offset := sent.result().offset) < 0:  # there already, and the broker forgot where
        delivery.set_exception(DuplicateSequenceNumber())
    else:
        delivery.set_result((offset, count))


def _of_fence(error: BaseException) -> BaseException:
    if not isinstance(error, ProducerFenced):
        return error
    return ChangelogFencedError(
        "another worker has the changelog partition of these rows by now: they are dropped, that "
        "worker does the work. If this comes often, look for what keeps workers from Kafka"
    )
