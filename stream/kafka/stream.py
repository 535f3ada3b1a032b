"""Gives an agent batches of records, and acks them when it comes back for more.

Faust's `take()` and its plain iteration ack, and commit, events whose agent raised: those are
lost. Here a batch is acked in one place only, after the body has run to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from faust.streams import Stream
from mode.utils.queues import ThrowableQueue

from export.errors import DriftlineError
from stream.kafka.batches import RecordBatch
from stream.kafka.consumer import BatchConsumer

#: While a rebalance or a recovery pauses the flow: until the next look whether it goes on.
PAUSED_WAIT_S = 0.1


class ConcurrentAgentError(DriftlineError):
    """Acks of a batch topic would come out of order."""


class BatchStream(Stream):  # type: ignore[misc]
    """Faust's stream, plus `record_batches`."""

    async def record_batches(
        self,
        max_records: int,
        within_s: float,
        idle_s: Callable[[], float | None] = lambda: None,
    ) -> AsyncIterator[list[RecordBatch]]:
        """Yield slices of the assigned partitions, about `max_records` records together.

        A list is yielded when it has `max_records`, or `within_s` after its first slice was there;
        the slices of one partition are in offset order. It may be longer by one slice. It is empty
        only where nothing came for as long as `idle_s` says when it is asked: the body has time
        for other work, under the same protection as a batch. None: there is no such work.

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
                is_active = self.app.flow_control.is_active()
                patience_s = idle_s() if is_active else PAUSED_WAIT_S
                gathered = await self._gather(max_records, within_s, patience_s)
                batches = self._of_this_generation(gathered)
                if bool(batches) != bool(gathered) or not self.app.flow_control.is_active():
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

    async def _gather(
        self, max_records: int, within_s: float, idle_s: float | None
    ) -> list[RecordBatch]:
        queue: ThrowableQueue = self.channel.queue
        consumer: BatchConsumer = self.app.consumer
        try:
            async with asyncio.timeout(idle_s):
                batches: list[RecordBatch] = [await queue.get()]
        except TimeoutError:
            return []
        consumer.slice_taken()
        count = len(batches[0].records)
        try:
            async with asyncio.timeout(within_s):
                while count < max_records:
                    batch = await queue.get()
                    consumer.slice_taken()
                    batches.append(batch)
                    count += len(batch.records)
        except TimeoutError:
            pass
        return batches

    def _of_this_generation(self, batches: list[RecordBatch]) -> list[RecordBatch]:
        generation = self.app.consumer_generation_id
        return [batch for batch in batches if batch.generation_id == generation]
