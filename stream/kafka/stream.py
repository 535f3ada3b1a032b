"""Gives an agent batches of records, and acks them when it comes back for more.

Faust's `take()` and its plain iteration ack, and commit, events whose agent raised: those are
lost. Here a batch is acked in one place only, after the body has run to its end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from faust.streams import Stream
from mode.utils.queues import ThrowableQueue

from export.errors import DriftlineError
from stream.kafka.batches import RecordBatch
from stream.kafka.consumer import BatchConsumer

#: Without events, so long until the next look whether there is other work: after a rebalance
#: there may be.
LOOK_S = 0.2


class ConcurrentAgentError(DriftlineError):
    """Acks of a batch topic would come out of order."""


class UnderWay(Protocol):
    """Lists that a body has taken and not yet done, when it asks for the next one."""

    @property
    def under_way(self) -> int:
        """How many of the newest."""
        ...

    async def finish(self) -> None:
        """Do them to their end."""
        ...


class BatchStream(Stream):  # type: ignore[misc]
    """Faust's stream, plus `record_batches`."""

    async def record_batches(
        self,
        max_records: int,
        within_s: float,
        idle_s: Callable[[], float | None] = lambda: None,
        work: UnderWay | None = None,
    ) -> AsyncIterator[list[RecordBatch]]:
        """Yield slices of the assigned partitions, about `max_records` records together.

        A list is yielded when it has `max_records`, or `within_s` after its first slice was there;
        the slices of one partition are in offset order. It may be longer by one slice. It is empty
        only where nothing is there to be read and `idle_s` says that other work may be done (in so
        many seconds; None: there is none): it is under the same protection as a batch, and never
        comes while rows are being restored.

        Guaranteed: a list is acked when the body asks for the next one and `work` does not count it
        as under way, never before. As long as one is, nothing is waited for: where there is no next
        list at once, `work` is finished first. If the body or `work` raises, lists that are not
        acked stay so, and the worker ends; after its restart they are read again.
        Slices fetched before a rebalance are dropped: their partition's owner reads them again.
        """
        if self.concurrency_index is not None:
            raise ConcurrentAgentError("an agent on a batch topic needs concurrency 1, got more")
        self._finalized = True
        is_started_here = await self.maybe_start()
        consumer: BatchConsumer = self.app.consumer
        yielded: deque[list[RecordBatch]] = deque()
        try:
            while not self.should_stop:
                if work is not None and yielded and not self._has_more():
                    await work.finish()
                    self._ack(yielded, 0)
                gathered = await self._gather(max_records, within_s, self._patience_s(idle_s))
                batches = self._of_this_generation(gathered)
                is_idle = not gathered and consumer.is_delivering() and idle_s() == 0
                if not (batches or is_idle) or not self.app.flow_control.is_active():
                    continue
                yielded.append(batches)
                consumer.work_started([batch for each in yielded for batch in each])
                yield batches
                self._ack(yielded, 0 if work is None else work.under_way)
        except StopAsyncIteration:  # how Faust wakes a stream that waits when its agent stops
            return
        finally:
            consumer.work_ended()
            self._channel_stop_iteration(self.channel)
            if is_started_here:
                await self.stop()
                self.service_reset()

    def _has_more(self) -> bool:
        """Whether another list can be had without waiting for it."""
        queue: ThrowableQueue = self.channel.queue
        return queue.qsize() > 0 and bool(self.app.flow_control.is_active())

    def _ack(self, yielded: deque[list[RecordBatch]], under_way: int) -> None:
        """Ack the lists that are done: all but the newest `under_way`."""
        consumer: BatchConsumer = self.app.consumer
        while len(yielded) > under_way:
            for batch in self._of_this_generation(yielded.popleft()):
                consumer.ack_offsets(batch.tp, batch.first_offset, batch.last_offset)
        if not yielded:
            consumer.work_ended()

    def _patience_s(self, idle_s: Callable[[], float | None]) -> float:
        """How long to wait for events before looking for other work."""
        consumer: BatchConsumer = self.app.consumer
        if not (self.app.flow_control.is_active() and consumer.is_delivering()):
            return LOOK_S
        wait_s = idle_s()
        return LOOK_S if wait_s is None else min(wait_s, LOOK_S)

    async def _gather(
        self, max_records: int, within_s: float, patience_s: float
    ) -> list[RecordBatch]:
        queue: ThrowableQueue = self.channel.queue
        consumer: BatchConsumer = self.app.consumer
        try:
            async with asyncio.timeout(patience_s):
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
