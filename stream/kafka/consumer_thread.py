"""Faust's thread with the aiokafka consumer: how it asks the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.kafka.batches import BatchOptions
from stream.kafka.bounded import bound_fetches
from stream.kafka.membership import Membership
from stream.kafka.pacing import pace_empty_fetches
from stream.kafka.plain import hand_over_plain
from stream.kafka.table import RowTable
from stream.kafka.tasks import crash_with

#: How long a fetch waits at the broker when there is nothing. Requests on a connection are answered
#: in order: at Faust's 1,500 ms a seek after a rebalance took seconds.
LONG_POLL_MS = 200
#: Bytes of an answer, of all partitions on a node: they must arrive within `ANSWER_S`, and what
#: came too late is asked for again from its beginning.
FETCH_BYTES = 8 * 1024**2


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's thread with the aiokafka consumer, that asks the broker more often."""

    async def on_start(self) -> None:
        """Start it, with a pause after fetches that a broker answers at once with nothing."""
        await super().on_start()
        consumer = self._ensure_consumer()
        Membership(consumer._coordinator, self.crash).follow()
        crash_with(consumer._fetcher._fetch_task, self.crash)
        crash_with(consumer._client._sync_task, self.crash)
        pace_empty_fetches(consumer)
        hand_over_plain(consumer, self._is_plain)

    async def highwaters_within(self, seconds: float, partitions: Collection[TP]) -> dict[TP, int]:
        """Where partitions end. Raises TimeoutError where the broker does not answer.

        A question that nobody waits for any more would hold one of the thread's two workers, which
        also fetch and commit, for as long as a partition has no leader.
        """

        async def ask() -> dict[TP, int]:
            async with asyncio.timeout(seconds):
                ends: dict[TP, int] = await self._highwaters(list(partitions))
                return ends

        found: dict[TP, int] = await self.call_thread(ask)
        return found

    def _is_plain(self, topic: str) -> bool:
        """Whether nothing of Faust's reads the records of a topic."""
        options: BatchOptions = self.consumer.options
        return topic in options.batch_topics or isinstance(
            self.app.tables._changelogs.get(topic), RowTable
        )

    def _create_worker_consumer(
        self, transport: driver.Transport
    ) -> driver.aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = LONG_POLL_MS
        consumer._fetch_max_bytes = FETCH_BYTES
        options: BatchOptions = self.consumer.options
        bound_fetches(consumer, options.max_batch_bytes, options.batch_topics, True)
        return consumer
