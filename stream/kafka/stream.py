"""Gives an agent batches of records, and acks them when it comes back for more.

Faust's `take()` and its plain iteration ack, and commit, events whose agent raised: those are
lost. Here a batch is acked in one place only, after the body has run to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from faust.streams import Stream
from mode.utils.queues import ThrowableQueue

from export.errors import DriftlineError
from stream.kafka.batches import RecordBatch
from stream.kafka.consumer import BatchConsumer


class ConcurrentAgentError(DriftlineError):
    """Acks of a batch topic would come out of order."""


class BatchStream(Stream):  # type: ignore[misc]
    """Faust's stream, plus `record_batches`."""

    async def record_batches(
        self, max_records: int, within_s: float
    ) -> AsyncIterator[list[RecordBatch]]:
        """Yield slices of the assigned partitions, about `max_records` records together.

        A list is yielded when it has `max_records`, or `within_s` after its first slice was there;
        it is never empty, and the slices of one partition are in offset order. It may be longer by
        one slice.

        Guaranteed: a list is acked when the body asks for the next one, never before. If the body
        raises, it is not acked, and the worker ends; after its restart the list is read again.
        Slices fetched before a rebalance are dropped: their partition's owner reads them again.
        """
        if self.concurrency_index is not None:
            raise ConcurrentAgentError("an agent on a batch topic needs concurrency 1, got more")
        self._finalized = True
        is_started_here = await self.maybe_start()
        consumer: BatchConsumer = self.app.consumer
        try:
            while not self.should_stop:
                batches = self._of_this_generation(await self._gather(max_records, within_s))
                if not batches or not self.app.flow_control.is_active():
                    continue
                consumer.work_started(batches)
                yield batches
                for batch in self._of_this_generation(batches):
                    consumer.ack_offsets(batch.tp, batch.first_offset, batch.last_offset)
                consumer.work_ended()
        except StopAsyncIteration:  # how Faust wakes a stream that waits when its agent stops
            return
        finally:
            consumer.work_ended()
            self._channel_stop_iteration(self.channel)
            if is_started_here:
                await self.stop()
                self.service_reset()

    async def _gather(self, max_records: int, within_s: float) -> list[RecordBatch]:
        queue: ThrowableQueue = self.channel.queue
        consumer: BatchConsumer = self.app.consumer
        batches = [await queue.get()]
        consumer.slice_taken()
        count = len(batches[0].records)
        try:
            async with asyncio.timeout(within_s):
                while count < max_records:
                    batch: RecordBatch = await queue.get()
                    consumer.slice_taken()
                    batches.append(batch)
                    count += len(batch.records)
        except TimeoutError:
            pass
        return batches

    def _of_this_generation(self, batches: list[RecordBatch]) -> list[RecordBatch]:
        generation = self.app.consumer_generation_id
        return [batch for batch in batches if batch.generation_id == generation]
