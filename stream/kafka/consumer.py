"""Reads Kafka for Faust in whole partition slices, and never skips an offset silently.

Topics named in the options arrive at their agent as `RecordBatch`; changelogs of row tables go
straight into RocksDB, a slice in one write. Nothing else is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence

from aiokafka.errors import IllegalStateError
from aiokafka.structs import ConsumerRecord
from faust.tables.recovery import RebalanceAgain
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.transports import TPorTopicSet
from mode.utils.queues import ThrowableQueue

from export.errors import DriftlineError
from stream.kafka.batches import BatchOptions, BatchOptionsError, RecordBatch, exit_later
from stream.kafka.consumer_thread import BatchConsumerThread
from stream.kafka.continuity import Continuity
from stream.kafka.restore import (
    begin_from_disk,
    begin_recovery,
    pass_over,
    restore,
    restored_offsets,
)
from stream.kafka.starting import require_source, require_state_beside, start_offset
from stream.kafka.table import RowTable

#: One wait for records; also how often a quiet consumer looks whether it should stop.
FETCH_WAIT_S = 1.0

#: The part of the rebalance timeout a batch in work may take; the rest is for commit and join.
HAND_OVER_SHARE = 0.75

#: A slice with more bytes than this waits until no other does: few large ones could fill memory.
LARGE_SLICE_BYTES = 1024**2


class PartitionsLostError(DriftlineError):
    """The group has given the partitions of the batch in work to another worker."""


class HandOverError(DriftlineError):
    """A batch was still in work when its partitions had to be given back."""


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's aiokafka consumer, delivering slices. `continuity` has its counters."""

    def __init__(self, transport: object, *args: object, **kwargs: object) -> None:
        options: BatchOptions = transport.options  # type: ignore[attr-defined]
        self.options = options
        self.continuity = Continuity(options.on_gap)
        self._acked_through: dict[TP, int] = {}
        self._seek_count = 0
        self._dropped: set[TP] = set()
        self._is_sought = False
        self._assignments = 0
        self._is_revoked = False
        #: Set when Faust has resumed after recovery: it empties every queue as it does.
        self._may_deliver = asyncio.Event()
        self._has_space = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._in_work: list[RecordBatch] = []
        self._work_generation: int | None = None
        self._exit_timer: threading.Timer | None = None
        super().__init__(transport, *args, **kwargs)

    # -- what the stream calls --------------------------------------------------------------

    def slice_taken(self) -> None:
        """The stream took a slice from its queue: there is room for another."""
        self._has_space.set()

    def work_started(self, batches: list[RecordBatch]) -> None:
        """The agent has these batches; partitions are not given back until `work_ended`."""
        self._in_work = batches
        self._work_generation = self.app.consumer_generation_id
        self._is_idle.clear()

    def work_ended(self) -> None:
        self._in_work = []
        self._work_generation = None
        self._is_idle.set()

    def ack_offsets(self, tp: TP, first: int, last: int) -> None:
        """Everything from `first` to `last` is done and may be committed; in offset order only."""
        if last + 1 > self._acked_through.get(tp, 0):
            self._acked_through[tp] = last + 1
            self._n_acked: int = self._n_acked + last - first + 1

    def is_delivering(self) -> bool:
        """Whether the partitions' rows are restored and none is being given back: only then may
        anything be done with them."""
        return self._may_deliver.is_set()

    def check_ownership(self) -> None:
        """Raise PartitionsLostError if the work under way belongs to another worker by now."""
        if self.has_lost_work():
            raise PartitionsLostError(
                f"work was begun in generation {self._work_generation}, the group is in "
                f"{self._generation()}: it is dropped, the partitions' new owner does it. If this "
                "comes often, make batches smaller or the session timeout longer"
            )

    def has_lost_work(self) -> bool:
        """Whether the group has given the work under way to another worker."""
        return self._work_generation is not None and self._work_generation != self._generation()

    def _generation(self) -> int:
        generation: int = self._thread._ensure_consumer()._coordinator.generation
        return generation

    def holds_partitions(self) -> bool:
        """Whether another worker could get what this one has, if this one stood still."""
        return bool(self._acked_through)

    # -- what health and metrics read -------------------------------------------------------

    def source_partitions(self) -> set[TP]:
        """The assigned partitions of the batch topics."""
        return {tp for tp in self.assignment() if tp.topic in self.options.batch_topics}

    def position_of(self, tp: TP) -> int | None:
        """The next offset to be done; None while reading has not started."""
        return self._acked_through.get(tp)

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- reading ----------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: driver.Service) -> None:
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                await self._drain_once()
        except (*self.consumer_stopped_errors, asyncio.CancelledError):
            if not self.transport.app.should_stop:
                raise
            self.log.info("Consumer stopped while the worker is shutting down")

    async def _drain_once(self) -> None:
        await self._read_dropped_again()
        seek_count = self._seek_count
        fetched, active = await self._wait_next_records(FETCH_WAIT_S)
        await asyncio.sleep(0)
        generation: int = self.app.consumer_generation_id
        for partition, records in (fetched or {}).items():
            tp = ensure_TP(partition)
            if not self._is_wanted(tp, active):
                self._dropped.add(tp)
            elif records:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                await self._deliver(tp, records, generation, seek_count)
        if self._commit_every is not None and self._n_acked >= self._commit_every:
            self._n_acked = 0
            await self.commit()

    async def _read_dropped_again(self) -> None:
        """Go back to what was fetched and not delivered.

        Records in flight while partitions are paused, sought or given back are dropped; whether
        the seek that follows a rebalance came before or after they were fetched is not known.
        """
        if not self._dropped:
            return
        dropped, self._dropped = self._dropped, set()
        for tp in dropped & self.assignment():
            if tp.topic in self.options.batch_topics:
                offset = self.continuity.next_offset(tp)  # None: perform_seek is to come
            else:
                offset = (restored_offsets(self.app.tables, tp) or {}).get(tp)
            if offset is not None:
                with contextlib.suppress(IllegalStateError):  # given back just now
                    await self._thread.seek_wait({tp: max(offset, 0)})

    async def _deliver(
        self, tp: TP, records: list[ConsumerRecord], generation: int, seek_count: int
    ) -> None:
        if tp.topic in self.options.batch_topics:
            await self._deliver_source(tp, records, generation)
        elif isinstance(self.app.tables._changelogs.get(tp.topic), RowTable):
            # around a seek, rows between what is applied and these may be missing
            is_in_place = seek_count == self._seek_count
            if not is_in_place or not await restore(
                self.app.tables, tp, records, lambda: self.flow_active
            ):
                self._dropped.add(tp)
        else:
            raise BatchOptionsError(
                f"{tp.topic!r} is neither a batch topic nor the changelog of a row table"
            )

    def _is_wanted(self, tp: TP, active: set[TP] | None) -> bool:
        if self.should_stop or not self.flow_active:
            return False
        return active is None or tp in active or tp in self._buffered_partitions

    async def _until_suspended(self, delivery: Coroutine[None, None, None]) -> None:
        await self.wait_first(delivery, self.suspend_flow.wait())

    # -- source slices ----------------------------------------------------------------------

    async def _deliver_source(self, tp: TP, records: list[ConsumerRecord], generation: int) -> None:
        await self._require_whole(tp, records[0].offset)
        admitted = self.continuity.admit(tp, records)
        if admitted:
            await self._until_suspended(self._queue_slices(tp, admitted, generation))
        if self.continuity.next_offset(tp) != records[-1].offset + 1:
            self._dropped.add(tp)

    async def _require_whole(self, tp: TP, first_offset: int) -> None:
        """Raises SourceTruncatedError where the partition ends before what was read of it.

        aiokafka reads such a partition from its beginning again, and what is new in it would be
        taken for what came before.
        """
        expected, end = self.continuity.next_offset(tp) or 0, self.highwater(tp)
        if first_offset < expected and end is not None and end < expected:
            ends = await self.highwaters(tp)
            require_source(tp, self.continuity.next_offset(tp) or 0, ends[tp])

    async def _queue_slices(
        self, tp: TP, records: Sequence[ConsumerRecord], generation: int
    ) -> None:
        await self._may_deliver.wait()
        queue = self._queue_of(tp)
        size = self.options.max_slice_records
        end: int = self.highwater(tp)
        for start in range(0, len(records), size):
            part = records[start : start + size]
            batch = RecordBatch(tp, part, generation, max(end - part[-1].offset - 1, 0))
            room = 1 if _value_bytes(batch) > LARGE_SLICE_BYTES else self.options.max_queued_slices
            while queue.qsize() >= room:
                self._has_space.clear()
                await self._has_space.wait()
            queue.force_put_nowait(batch)
            self.continuity.delivered(tp, batch.last_offset)

    def _queue_of(self, tp: TP) -> ThrowableQueue:
        channels = self.app.topics._tp_index[tp]
        if len(channels) != 1:
            raise BatchOptionsError(
                f"{tp.topic!r} is a batch topic and needs exactly one agent, got {len(channels)}"
            )
        (channel,) = channels
        return channel.queue

    # -- where reading starts ---------------------------------------------------------------

    async def highwaters(self, *partitions: TP) -> dict[TP, int]:
        """Where partitions end; of this worker's own changelogs, for everybody else.

        Faust asks it of them when it begins to recover, and of no others that it has.
        """
        tables = self.app.tables
        own = tables.recovery.active_tps.intersection(partitions)
        rows = self._of_row_tables(own)
        if own:
            begin_recovery(tables)
        fence = self.options.fence
        fenced_at = await fence(rows) if rows and fence is not None else {}
        ends: dict[TP, int] = await super().highwaters(*partitions)
        for tp in rows:
            begin_from_disk(tables, tp, fenced_at.get(tp, ends[tp]))
        for tp, offset in fenced_at.items():
            pass_over(tables, tp, offset)
        return ends

    async def source_ends(self, seconds: float, partitions: Collection[TP]) -> dict[TP, int]:
        """Where source partitions end. Raises TimeoutError where the broker does not answer."""
        thread: BatchConsumerThread = self._thread
        return await thread.highwaters_within(seconds, partitions)

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        """Where partitions begin. Faust asks it of changelogs before it seeks in them."""
        standbys = self._of_row_tables(
            self.app.tables.recovery.standby_tps.intersection(partitions)
        )
        if standbys:
            for tp, end in (await super().highwaters(*standbys)).items():
                begin_from_disk(self.app.tables, tp, end)
        begins: dict[TP, int] = await super().earliest_offsets(*partitions)
        return begins

    def _of_row_tables(self, changelogs: set[TP]) -> set[TP]:
        of = self.app.tables._changelogs
        return {tp for tp in changelogs if isinstance(of[tp.topic], RowTable)}

    async def perform_seek(self) -> None:
        """Put every source partition where its state and its committed offset say.

        Faust calls this when recovery is complete, so that the watermarks are known. What it
        resumes after that empties the queues: nothing may be in them. Raises RebalanceAgain where
        partitions were revoked meanwhile, of which Faust learns only when others are assigned.
        """
        assignments = self._assignments
        self._seek_count += 1
        await super().perform_seek()
        partitions = self.source_partitions()
        if partitions:
            require_state_beside(self.app, partitions)
            begins, ends = await asyncio.gather(
                self.earliest_offsets(*partitions), self.highwaters(*partitions)
            )
            self._require_assignment(assignments)
            starts = {tp: self._start_offset(tp, begins[tp]) for tp in partitions}
            for tp, start in starts.items():
                require_source(tp, start, ends[tp])
                # known before the seek, so that what is fetched right after it is not dropped
                self.continuity.start(tp, start)
                self._acked_through[tp] = start
            await self._thread.seek_wait(starts)
        self._require_assignment(assignments)
        if self.options.on_assigned is not None:
            self.options.on_assigned({tp.partition for tp in partitions})
        self._is_sought = True

    def _require_assignment(self, number: int) -> None:
        """Raises RebalanceAgain if the assignment of this number is no more."""
        if self._is_revoked or self._assignments != number:
            raise RebalanceAgain

    def resume_flow(self) -> None:
        super().resume_flow()
        if self._is_sought:
            self._may_deliver.set()

    def stop_flow(self) -> None:
        super().stop_flow()
        self._keep_back()
        if self.app.should_stop:
            self._end_in_time()

    def _keep_back(self) -> None:
        """Deliver nothing until partitions are sought and the flow is resumed."""
        self._is_sought = False
        self._may_deliver.clear()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        self._seek_count += 1
        await super().seek_wait(partitions)

    def _start_offset(self, tp: TP, begin: int) -> int:
        committed: int | None = self._committed_offset[tp]
        watermark_of = self.options.source_watermark
        if watermark_of is None:
            return begin if committed is None else committed
        return start_offset(tp, begin, committed, watermark_of(tp.partition))

    # -- commits and giving back ------------------------------------------------------------

    def _filter_tps_with_pending_acks(self, topics: TPorTopicSet | None = None) -> Iterator[TP]:
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp in self._acked_through:
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic in self.options.batch_topics:
            return self._acked_through.get(tp)
        offset: int | None = super()._new_offset(tp)
        return offset

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Faust stops the flow only of a worker that has partitions. To one that has none yet,
        # slices would be delivered before it resumes, and be lost as it empties its queues then
        self._is_revoked = True
        self._keep_back()
        await super().on_partitions_revoked(revoked)  # waits for the batch in work, and commits
        if self.options.release is not None:
            self.options.release(revoked)
        for tp in revoked:
            self.continuity.forget(tp)
            self._acked_through.pop(tp, None)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._assignments += 1
        self._is_revoked = False
        await super().on_partitions_assigned(assigned, generation_id)

    async def wait_empty(self) -> None:
        """Wait for the batch in work, so that its acks are in the commit that follows."""
        patience_s = HAND_OVER_SHARE * self.app.conf.broker_rebalance_timeout
        try:
            async with asyncio.timeout(patience_s):
                await self._is_idle.wait()
        except TimeoutError:
            raise HandOverError(
                f"a batch must be done within {patience_s:.0f} s when partitions are given back, "
                "and was not: make batches smaller (`batch_records`)"
            ) from None
        await super().wait_empty()

    def verify_event_path(self, now: float, tp: TP) -> None:
        if tp.topic not in self.options.batch_topics:  # those have the progress watchdog
            super().verify_event_path(now, tp)

    # -- failing ----------------------------------------------------------------------------

    async def on_task_error(self, exc: BaseException) -> None:
        """An agent raised: its batch stays unacked, the worker ends and is to be started again."""
        self.log.critical(
            "An agent failed; its batch is not acked. The worker ends, and reads it again after "
            "a restart: %r",
            exc,
            extra={"batches": [(*batch.tp, batch.first_offset) for batch in self._in_work]},
        )
        self.work_ended()
        self._end_in_time()
        await super().on_task_error(exc)

    async def on_stop(self) -> None:
        self._end_in_time()
        await super().on_stop()

    def _crash(self, reason: BaseException) -> None:
        self._end_in_time()
        super()._crash(reason)

    def _end_in_time(self) -> None:
        """A shutdown may hang, as without a broker: bound it, so that a supervisor can go on."""
        if self._exit_timer is None and self.options.end_within_s is not None:
            self._exit_timer = exit_later(self.options.end_within_s)


def _value_bytes(batch: RecordBatch) -> int:
    return sum(map(len, filter(None, [record.value for record in batch.records])))
