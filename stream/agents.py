"""Take a batch of events through the numbered steps: the order is the guarantee.

1. decode and validate; refused records become dead letters;
2. read the users' rows; what was applied before is not folded again, but its user is touched;
3. fold the rest;
4. rank the users whose list is due, in a thread; what is postponed is put down in its row;
5. send: first statistics deltas, lists, interests, decisions and dead letters, and wait until the
   broker has acknowledged all of them; then the changelog rows, and wait again. A row that says
   an event was applied must never exist without that event's deltas: it would be skipped as a
   replay, and its deltas would be lost;
6. write rows and changelog position to RocksDB in one batch a partition;
7. return: the source is acked, and offsets are committed up to there.

A crash anywhere leaves the source unacked. What is read again after it is either not in the rows,
and folded, or in the rows, and then all of its results have been sent, or its list is postponed.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stream import metrics
from stream.control import hidden_rows
from stream.events import encode
from stream.guards import Guards
from stream.interests import user_interests
from stream.lists import (
    Refresh,
    RefreshContext,
    cloud_event_headers,
    list_key,
    list_policy,
    messages,
    state_digest,
)
from stream.live import LiveParts
from stream.outbox import Outbox, SendRecords
from stream.ranker import RankedLists, Ranker
from stream.reasons import reasons_of
from stream.refresh_control import RefreshControl
from stream.rekeyed import Misrouted, copies_row, send_on
from stream.releases import ReleaseSwap
from stream.requests import (
    NO_TENSORS,
    ChainOrigins,
    RankRequests,
    build_requests,
    chain_origins,
)
from stream.settings import Settings
from stream.state import FoldedBatch, Folder, Slice, TouchedUser
from stream.statistics import encode_deltas
from stream.topics import state_changelog

#: Called with the name of each step as it is reached; a fault injector ends the process there.
OnStep = Callable[[str], None]


class Rows(Protocol):
    """The users' rows on disk."""

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored rows, None where there is none."""
        ...

    def write(
        self, partition: int, rows: list[tuple[bytes, bytes | None]], changelog_offset: int
    ) -> None:
        """Write rows and the changelog position as one."""
        ...


@dataclass(frozen=True, slots=True)
class TableRows:
    """Makes the rows that the table keeps for itself: how far the source is applied, and whether
    rows of a partition tell of postponed lists."""

    source: Callable[[int], tuple[bytes, bytes | None]]
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
        self._rows = rows
        self._live = live
        self._send_records = send_records
        self._table_rows = table_rows
        self._check = check
        self._guards = guards or Guards()
        self._on_step = on_step
        self._policy = list_policy(settings)
        self._ranks_with: Ranker | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rank")

    async def process(self, slices: Sequence[Slice]) -> None:
        """Take a batch through steps 1 to 6; the caller acks it when this returns (7).

        Without slices there is time for lists that were postponed.
        """
        begun = time.perf_counter()
        self._on_step("fold")
        self._refreshes.backlog.arrived(slices)
        if not slices:
            self._refreshes.look_for_postponed()
        batch = self._folder.fold(slices, self._rows.get_many)  # 1. 2. 3.
        newest_ms = self._live.statistics.statistics.newest_ms
        self._refreshes.select(batch, newest_ms, self._rows.get_many)
        folded = time.perf_counter()
        self._on_step("rank")
        outbox = Outbox()
        # before the lists: those of this batch are of what came after
        self._take_away("recommendations", batch.no_list, outbox)
        self._take_away("interests", batch.no_interests, outbox)
        refreshes, context = await self._rank(batch, outbox)  # 4.
        ranked = time.perf_counter()
        self._add_results(batch, context, outbox)
        changes = self._changed_rows(batch)
        self._check()
        if not self._guards.ack_order:
            await self._store(changes, context.generated_at_ms)
        self._on_step("send")
        sent = await outbox.send(self._send_records, context.generated_at_ms)  # 5.
        if batch.misrouted:
            await self._send_on(batch.misrouted, context.generated_at_ms)
        self._take_in_own_deltas(outbox, sent)
        if self._guards.ack_order:
            await self._store(changes, context.generated_at_ms)
        self._on_step("ack")
        done = time.perf_counter()
        self._refreshes.done(batch, sum(len(piece.records) for piece in slices), done - begun)
        self._count(batch, refreshes, (begun, folded, ranked, done))

    async def _rank(
        self, batch: FoldedBatch, outbox: Outbox
    ) -> tuple[list[Refresh], RefreshContext]:
        """Step 4: the lists of all due users, in micro-batches, in a thread.

        While the thread ranks one micro-batch, the messages of the one before are made here.
        """
        due = [user for user in batch.users.values() if user.is_due]
        for user in due:
            user.is_changed |= user.row.is_postponed
            user.row.is_postponed = False
        live = self._live
        tensors = live.ranking_tensors() if due else NO_TENSORS
        context = RefreshContext(
            live.ranker,
            tensors,
            dict(live.catalogue_positions),
            self._policy,
            int(time.time() * 1000),
            live.index.ids,
            live.catalogue.columns(),
        )
        if not len(tensors.known):
            due = []
        size = self._settings.max_rank_batch
        micro_batches = [due[start : start + size] for start in range(0, len(due), size)]
        # all before the first wait: statistics and ranker move on while a thread ranks
        requests = [self._requests(users, context) for users in micro_batches]
        origins = [chain_origins(request, live.statistics.statistics) for request in requests]
        ranked = [self._ranked(request, context) for request in requests]
        refreshes: list[Refresh] = []
        for users, request, origin, lists in zip(
            micro_batches, requests, origins, ranked, strict=True
        ):
            ordered = (await lists).ordered(live.index.hashes, self._settings.list_length)
            made = refreshes_of(users, request, origin, ordered, context)
            if len(made) < len(users):
                self._take_away_empty(users, made, outbox)
            for refresh in made:
                if self._refreshes.is_worth_sending(refresh.user, live.index.hashes[refresh.rows]):
                    self._add_refresh(refresh, context, outbox)
                    refreshes.append(refresh)
        return refreshes, context

    def _requests(self, users: list[TouchedUser], context: RefreshContext) -> RankRequests:
        return build_requests(
            [(user.row, user.request_ms) for user in users],
            self._live.index,
            self._live.statistics.statistics,
            context.ranker.event_types,
            len(context.live.known),
            self._settings.seen_items == "filter",
            hidden_rows(self._live.index, self._live.catalogue),
        )

    def _ranked(
        self, requests: RankRequests, context: RefreshContext
    ) -> asyncio.Future[RankedLists]:
        """The lists of a micro-batch, which the thread ranks after those it was given before."""
        rank = functools.partial(
            context.ranker.rank, requests, context.live, self._settings.list_length
        )
        return asyncio.get_running_loop().run_in_executor(self._thread, rank)

    def _take_away(self, topic: str, users: Iterable[TouchedUser], outbox: Outbox) -> None:
        """Say that there is nothing of these users on a topic any more."""
        for user in users:
            outbox.add(self._settings.topic(topic), user.partition, list_key(user), None)

    def _take_away_empty(
        self, users: list[TouchedUser], made: list[Refresh], outbox: Outbox
    ) -> None:
        """A list of which nothing is left by its user's filters must not stay as it was."""
        metrics.EMPTY_LISTS.inc(len(users) - len(made))
        listed = {refresh.user.key for refresh in made}
        empty = [user for user in users if user.row.filters and user.key not in listed]
        self._take_away("recommendations", empty, outbox)

    def _add_results(self, batch: FoldedBatch, context: RefreshContext, outbox: Outbox) -> None:
        """Put in what a batch sends besides lists and changelog rows."""
        settings = self._settings
        for partition, deltas in batch.deltas.items():
            outbox.add(
                settings.topic("item-statistics"), partition, None, encode_deltas(partition, deltas)
            )
        if context.ranker is not self._ranks_with:
            self._ranks_with = context.ranker
            self._add_swap(batch, context, outbox)
        for letter in batch.dead_letters:
            key, value, headers = letter.kept_key(), letter.kept_value(), letter.headers()
            outbox.add(settings.topic("dead-letters"), 0, key, value, headers)

    async def _send_on(self, misrouted: list[Misrouted], now_ms: int) -> None:
        settings, originals = self._settings, self._folder.originals
        topic = settings.topic("user-events")
        send_records = self._send_records
        await send_on(misrouted, originals, settings.partitions, send_records, topic, now_ms)

    def _add_refresh(self, refresh: Refresh, context: RefreshContext, outbox: Outbox) -> None:
        """Put in a list with what goes with it, and enter it into its user's row."""
        settings, user = self._settings, refresh.user
        recommendation, decision = messages(refresh, context, settings)
        key = list_key(user)
        outbox.add(
            settings.topic("recommendations"),
            user.partition,
            key,
            encode(recommendation),
            cloud_event_headers(recommendation) if settings.cloud_events else None,
        )
        if decision is not None:
            outbox.add(settings.topic("decisions"), user.partition, key, encode(decision))
        row = user.row
        row.seq = refresh.seq
        row.list_ms = user.request_ms
        rec_id = bytes.fromhex(recommendation.rec_id)[:8]
        row.served_list(rec_id, self._live.index.hashes[refresh.rows])
        user.is_changed = True
        self._add_interests(refresh, [i.item_id for i in recommendation.items], key, outbox)

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

    def _add_interests(
        self, refresh: Refresh, listed: list[str], key: bytes, outbox: Outbox
    ) -> None:
        user, index = refresh.user, self._live.index
        rows = index.rows_of_hashes(user.row.history()["item"])
        history = [index.ids[row] for row in rows.tolist() if row >= 0]
        interests = user_interests(history, listed, refresh.scores.tolist(), self._live.catalogue)
        if (not interests.now and not interests.next) or (
            interests.digest() == user.row.interests_digest
        ):
            return
        user.row.interests_digest = interests.digest()
        message = encode(interests.message(user, refresh.seq))
        outbox.add(self._settings.topic("interests"), user.partition, key, message)

    def _changed_rows(self, batch: FoldedBatch) -> dict[int, list[tuple[bytes, bytes | None]]]:
        """Partition -> rows to write, the last one tells how far the source is applied."""
        changes: dict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        for user in batch.users.values():
            if user.is_changed:
                changes[user.partition].append((user.key, user.row.encode()))
        for partition, has_postponed in self._refreshes.changed_flags(batch).items():
            changes[partition].append(self._table_rows.postponed(has_postponed))
        # these speak of the rows before them, and must not be there without them
        for partition, copies in batch.copies.items():
            changes[partition] += [copies_row(*folded) for folded in copies.items()]
        for partition, offset in batch.last_offsets.items():
            changes[partition].append(self._table_rows.source(offset))
        return changes

    async def _store(
        self, changes: dict[int, list[tuple[bytes, bytes | None]]], now_ms: int
    ) -> None:
        """The end of step 5 and step 6: rows go to the changelog, and then to disk."""
        self._on_step("changelog")
        outbox = Outbox()
        topic = state_changelog(self._settings)
        for partition, rows in changes.items():
            outbox.records[topic, partition] = list(rows)
        sent = await outbox.send(self._send_records, now_ms)
        self._check()
        self._on_step("write")
        for partition, rows in changes.items():  # 6.
            _, changelog_offset = sent[topic, partition]
            self._rows.write(partition, rows, changelog_offset)

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
        refreshes: list[Refresh],
        times: tuple[float, float, float, float],
    ) -> None:
        metrics.BATCHES.inc()
        for outcome, count in batch.counts.items():
            metrics.EVENTS.labels(outcome).inc(count)
        if batch.dead_letters:
            metrics.DEAD_LETTERS.labels("user-events").inc(len(batch.dead_letters))
        if batch.misrouted:
            metrics.MISROUTED.inc(len(batch.misrouted))
        for reason, count in Counter(refresh.user.reason for refresh in refreshes).items():
            metrics.LISTS.labels(reason).inc(count)
        for step, begun, ended in zip(
            ("fold", "rank", "send_and_write"), times, times[1:], strict=False
        ):
            metrics.BATCH_SECONDS.labels(step).observe(ended - begun)


def refreshes_of(
    users: Sequence[TouchedUser],
    requests: RankRequests,
    origins: ChainOrigins,
    lists: RankedLists,
    context: RefreshContext,
) -> list[Refresh]:
    """The lists of users, less the places that hold nothing; none for whom nothing is left."""
    requests_ms = [user.request_ms for user in users]
    reasons = reasons_of(requests, origins, lists, requests_ms, context.item_ids, context.catalogue)
    sources = lists.parts.argmax(axis=0)  # [B, k]
    lengths = np.count_nonzero(lists.scores > 0, axis=1).tolist()
    return [
        Refresh(
            user,
            lists.rows[place, :length],
            lists.scores[place, :length],
            sources[place, :length],
            user.row.seq + 1,
            state_digest(user),
            reasons.of(place, length),
        )
        for place, (user, length) in enumerate(zip(users, lengths, strict=True))
        if length
    ]
