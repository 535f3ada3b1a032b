"""Take a batch of events through the numbered steps: the order is the guarantee.

1. decode and validate; refused records become dead letters;
2. read the users' rows; what was applied before is not folded again, but its user is touched;
3. fold the rest;
4. rank the users whose list is due, in a thread; what is postponed is put down in its row;
5. send: first statistics deltas, lists, interests, decisions, dead letters and the next legs of
   merges, and wait until the broker has acknowledged all of them; then the changelog rows, and wait
   again. A row that says an event was applied must never exist without that event's deltas: it
   would be skipped as a replay, and its deltas would be lost;
6. write rows and changelog position to RocksDB in one batch a partition;
7. return: the source is acked, and offsets are committed up to there.

While a batch of which nothing but deltas goes out waits in step 5, the next one is read and folded,
on top of the rows that are under way, and rows that the changelog has may be written with those of
the next batches; `stream.storing` has the rules for that.

A crash anywhere leaves the source unacked. What is read again after it is either not in the rows,
and folded, or in the rows, and then all of its results have been sent, or its list is postponed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stream import metrics
from stream.events import encode
from stream.folded_batch import FoldedBatch, Slice, TouchedUser
from stream.guards import Guards
from stream.lists import RefreshContext, list_key
from stream.live import LiveParts
from stream.outbox import Outbox, SendRecords
from stream.partitioner import partitions_of
from stream.ranker import Ranker
from stream.ranking import Ranking
from stream.refresh_control import RefreshControl
from stream.rekeyed import Misrouted, copies_row, send_on
from stream.releases import ReleaseSwap
from stream.settings import Settings
from stream.state import Folder
from stream.statistics import delta_records
from stream.storing import BatchEnd, Rows, Steps, Storing
from stream.topics import state_changelog

#: Called with the name of each step as it is reached; a fault injector ends the process there.
OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TableRows:
    """Makes the rows that the table keeps for itself: how far the source is applied to a partition,
    and whether rows of it tell of postponed lists."""

    source: Callable[[int, int], tuple[bytes, bytes | None]]
    postponed: Callable[[bool], tuple[bytes, bytes | None]]


class BatchProcessor:
    """Does the steps of every batch of one worker, one batch at a time.

    `check` is called before anything is sent or written, and ends the process or raises where this
    worker may no longer do so.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        refreshes: RefreshControl,
        rows: Rows,
        live: LiveParts,
        send_records: SendRecords,
        table_rows: TableRows,
        check: Callable[[], None] = lambda: None,
        guards: Guards | None = None,
        on_step: OnStep = lambda _: None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._refreshes = refreshes
        self._live = live
        self._send_records = send_records
        self._table_rows = table_rows
        self._check = check
        self._storing = Storing(
            rows,
            state_changelog(settings),
            send_records,
            Steps(check, on_step, self._take_in_own_deltas),
        )
        self._guards = guards or Guards()
        self._on_step = on_step
        self._ranking = Ranking(settings, live, refreshes.is_worth_sending)
        self._ranks_with: Ranker | None = None

    async def process(self, slices: Sequence[Slice]) -> None:
        """Take a batch through steps 1 to 6; the caller acks it when this returns (7).

        Without slices there is time for lists that were postponed.
        """
        await self.take(slices)
        await self.finish()

    @property
    def under_way(self) -> int:
        """How many of the newest batches are not done yet, and must not be acked."""
        return self._storing.under_way

    async def finish(self) -> None:
        """Take all batches under way to the end of step 6; the caller acks them then (7)."""
        await self._storing.finish()

    async def take(self, slices: Sequence[Slice]) -> None:
        """Take a batch through steps 1 to 4, and begin step 5.

        A batch of which nothing but deltas goes out may be under way still when this returns; with
        every other one, all are done then. Whoever has no next batch to take calls `finish`.
        """
        begun = time.perf_counter()
        self._on_step("fold")
        self._refreshes.backlog.arrived(slices)
        if not slices:
            await self.finish()
            self._refreshes.look_for_postponed()
        batch = self._folder.fold(slices, self._storing.get_many)  # 1. 2. 3.
        if self._refreshes.may_list(batch):
            await self.finish()  # lists are of all that came before
        newest_ms = self._live.statistics.statistics.newest_ms
        self._refreshes.select(batch, newest_ms, self._storing.get_many)
        folded = time.perf_counter()
        self._on_step("rank")
        outbox = Outbox()
        # before the lists: those of this batch are of what came after
        self._take_away("recommendations", batch.no_list, outbox)
        self._take_away("interests", batch.no_interests, outbox)
        reasons, context = await self._rank(batch, outbox)  # 4.
        ranked = time.perf_counter()
        await self._add_deltas(batch, context, outbox)
        self._add_results(batch, context, outbox)
        if batch.misrouted:
            await self._send_on(batch.misrouted)  # 5.

        def done() -> None:
            self._on_step("ack")
            times = begun, folded, ranked, time.perf_counter()
            self._count(batch, reasons, times)

        await self._send_and_write(  # 5. 6.
            BatchEnd(outbox, self._changed_rows(batch), context.generated_at_ms, done)
        )
        records = sum(len(piece.records) for piece in slices)
        self._refreshes.done(batch, records, time.perf_counter() - begun)

    async def _send_and_write(self, end: BatchEnd) -> None:
        """Begin step 5, and do it and step 6 to their end where more than deltas goes out."""
        is_alone = not self._guards.ack_order or bool(
            end.results.topics() - {self._settings.topic("item-statistics")}
        )
        if is_alone:
            await self.finish()
        if not self._guards.ack_order:
            await self._storing.store(end)
            end.changes = {}
        await self._storing.begin(end)
        if is_alone:
            await self.finish()

    async def _rank(
        self, batch: FoldedBatch, outbox: Outbox
    ) -> tuple[Counter[str], RefreshContext]:
        """Step 4: the lists of all due users, and how many of them came of what."""
        due = [user for user in batch.users.values() if user.is_due]
        for user in due:
            user.is_changed |= user.row.is_postponed
            user.row.is_postponed = False
        return await self._ranking.add_lists(due, int(time.time() * 1000), outbox)

    def _take_away(self, topic: str, users: Iterable[TouchedUser], outbox: Outbox) -> None:
        """Say that there is nothing of these users on a topic any more."""
        for user in users:
            outbox.add(self._settings.topic(topic), user.partition, list_key(user), None)

    async def _add_deltas(
        self, batch: FoldedBatch, context: RefreshContext, outbox: Outbox
    ) -> None:
        """Put in the deltas; of those that need several records the last.

        The others are sent and acknowledged before: if one were lost and a later one was not, every
        reader would take it for one that was counted, and pass over it when it comes again.
        """
        topic = self._settings.topic("item-statistics")
        most_bytes = self._settings.max_request_bytes // 2
        for partition, deltas in batch.deltas.items():
            *first, last = delta_records(partition, deltas, most_bytes)
            for data in first:
                await self.finish()
                self._check()
                sent = await self._send_records(
                    topic, partition, [(None, data)], timestamp_ms=context.generated_at_ms
                )
                await asyncio.gather(*sent)
            outbox.add(topic, partition, None, last)

    def _add_results(self, batch: FoldedBatch, context: RefreshContext, outbox: Outbox) -> None:
        """Put in what a batch sends besides deltas, lists and changelog rows."""
        settings = self._settings
        if context.ranker is not self._ranks_with:
            self._ranks_with = context.ranker
            self._add_swap(batch, context, outbox)
        for letter in batch.dead_letters:
            key, value, headers = letter.kept_key(), letter.kept_value(), letter.headers()
            outbox.add(settings.topic("dead-letters"), 0, key, value, headers)
        own, topic = batch.own_records, settings.topic("user-events")
        targets = partitions_of([record.key for record in own], settings.partitions)
        for partition, record in zip(targets, own, strict=True):
            outbox.add(topic, partition, record.key, record.value, sent_ms=record.sent_ms)

    async def _send_on(self, misrouted: list[Misrouted]) -> None:
        """Send records to where they belong; acknowledged before any row says that it is done."""
        self._check()
        settings, originals = self._settings, self._folder.originals
        topic = settings.topic("user-events")
        send_records = self._send_records
        await send_on(misrouted, originals, settings.partitions, send_records, topic)

    def _add_swap(self, batch: FoldedBatch, context: RefreshContext, outbox: Outbox) -> None:
        """Put down from which offsets on this worker ranks with another release than before."""
        ranker = context.ranker
        swap = ReleaseSwap(
            "driftline.release-swap/1",
            ranker.name,
            ranker.version,
            ranker.sha256,
            {str(partition): offset for partition, offset in batch.first_offsets.items()},
            context.generated_at_ms,
        )
        topic = self._settings.topic("release-log")
        outbox.add(topic, 0, ranker.name.encode(), encode(swap))

    def _changed_rows(self, batch: FoldedBatch) -> dict[int, list[tuple[bytes, bytes | None]]]:
        """Partition -> rows to write, the last one tells how far the source is applied."""
        changes = batch.changed_rows()
        for partition, has_postponed in self._refreshes.changed_flags(batch).items():
            changes[partition].append(self._table_rows.postponed(has_postponed))
        # these speak of the rows before them, and must not be there without them
        for partition, copies in batch.copies.items():
            changes[partition] += [copies_row(*folded) for folded in copies.items()]
        for partition, legs in batch.legs.items():
            changes[partition] += legs
        for partition, offset in batch.last_offsets.items():
            changes[partition].append(self._table_rows.source(partition, offset))
        return changes

    def _take_in_own_deltas(
        self, outbox: Outbox, sent: dict[tuple[str, int], tuple[int, int]]
    ) -> None:
        topic = self._settings.topic("item-statistics")
        self._live.wrote_deltas(
            [
                (partition, sent[name, partition][0], records[0][1] or b"")
                for (name, partition), records in outbox.records.items()
                if name == topic
            ]
        )

    def _count(
        self,
        batch: FoldedBatch,
        reasons: Counter[str],
        times: tuple[float, float, float, float],
    ) -> None:
        metrics.BATCHES.inc()
        for outcome, count in batch.counts.items():
            metrics.EVENTS.labels(outcome).inc(count)
        if batch.dead_letters:
            metrics.DEAD_LETTERS.labels("user-events").inc(len(batch.dead_letters))
        if batch.misrouted:
            metrics.MISROUTED.inc(len(batch.misrouted))
        for reason, count in reasons.items():
            metrics.LISTS.labels(reason).inc(count)
        for step, begun, ended in zip(
            ("fold", "rank", "send_and_write"), times, times[1:], strict=False
        ):
            metrics.BATCH_SECONDS.labels(step).observe(ended - begun)
