"""Take out or swap one step or guard of the worker, so that the simulation must find errors.

Each mutant changes production code while it is in force, and nothing of the simulation. Two guards
have none, as no seed of thousands is harmed without them (`BatchConsumer.is_delivering`, and that a
worker without partitions keeps back what it gets): tests/unit/test_storing.py takes them out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from faust.types import TP

from stream import merge, state
from stream.agents import BatchProcessor
from stream.events import MergePart, Wish
from stream.guards import ALL_GUARDS, GuardName, Guards
from stream.history import RowLimits, UserRow
from stream.kafka import consumer, restore
from stream.kafka.batches import RecordBatch
from stream.kafka.changelog_fence import ChangelogFence
from stream.kafka.consumer import BatchConsumer
from stream.kafka.continuity import Continuity
from stream.kafka.fencing import LoopGuard
from stream.kafka.own_rows import OFFSET_KEY, SOURCE_KEY
from stream.kafka.stream import BatchStream
from stream.kafka.table import RowTable
from stream.outbox import Outbox, Sent
from stream.refresh_control import RefreshControl
from stream.rekeyed import Originals
from stream.simulate.store import SimulatedStore, SimulatedTable
from stream.storing import BatchEnd, Storing

#: Owner, name, and what stands in its place.
Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One thing that is not as it should be."""

    name: str
    what: str
    patches: Callable[[], list[Patch]] = list
    guards: Guards = ALL_GUARDS
    #: A guard that does this one's work too, and is out for it: alone that must not be found out.
    without: GuardName | None = None


@contextlib.contextmanager
def in_force(mutant: Mutant | None) -> Iterator[Guards]:
    """Put a mutant in the place of the right code; gives the guards to run with."""
    patches = mutant.patches() if mutant else []
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in patches]
    for owner, name, changed in patches:
        setattr(owner, name, changed)
    try:
        yield mutant.guards.without(mutant.without) if mutant else ALL_GUARDS
    finally:
        for owner, name, right in before:
            setattr(owner, name, right)


def _send_without_waiting(of_results: bool) -> Callable[[], list[Patch]]:
    """Results (or changelog rows) are handed over, and taken for acknowledged."""

    def patches() -> list[Patch]:
        right = Outbox.hand_over

        async def hand_over(self: Outbox, send_records: Any, now_ms: int) -> Sent:
            sent = await right(self, send_records, now_ms)
            is_changelog = any(topic.endswith("-changelog") for topic in self.topics())
            if is_changelog == of_results:
                return sent
            taken: dict[tuple[str, int], list[asyncio.Future[tuple[int, int]]]] = {}
            for where, records in self.records.items():
                taken[where] = [asyncio.get_running_loop().create_future()]
                taken[where][0].set_result((1 << 40, len(records)))
            return Sent(dict(taken))

        return [(Outbox, "hand_over", hand_over)]

    return patches


def _store_before_changelog() -> list[Patch]:
    right = Storing._send_rows

    async def _send_rows(self: Storing, end: BatchEnd) -> Sent:
        self._steps.reached("write")
        for partition, rows in end.changes.items():
            table = cast(SimulatedTable, self._rows)
            position = table.persisted_offset(TP(table.changelog_topic_name, partition))
            self._rows.write(partition, rows, position or 0)
        return await right(self, end)

    return [(Storing, "_send_rows", _send_rows)]


def _only_what_is_on_disk() -> list[Patch]:
    def get_many(self: Storing, partition: int, keys: list[bytes]) -> list[bytes | None]:
        return self._rows.get_many(partition, keys)

    return [(Storing, "get_many", get_many)]


def _lists_overtake() -> list[Patch]:
    async def _send_and_write(self: BatchProcessor, end: BatchEnd) -> None:
        await self._storing.begin(end)

    return [
        (BatchProcessor, "_send_and_write", _send_and_write),
        (RefreshControl, "may_list", lambda self, batch: False),
    ]


def _ack_first() -> list[Patch]:
    right = BatchStream.record_batches

    async def record_batches(self: BatchStream, *args: Any) -> AsyncIterator[list[RecordBatch]]:
        async for batches in right(self, *args):
            for batch in batches:
                self.app.consumer.ack_offsets(batch.tp, batch.first_offset, batch.last_offset)
            yield batches

    return [(BatchStream, "record_batches", record_batches), *_no_rewind()]


def _commit_beyond() -> list[Patch]:
    def _new_offset(self: BatchConsumer, tp: Any) -> int | None:
        return self.continuity.next_offset(tp)

    return [(BatchConsumer, "_new_offset", _new_offset)]


def _no_rewind() -> list[Patch]:
    def _start_offset(self: BatchConsumer, tp: Any, begin: int) -> int:
        committed: int | None = self._committed_offset[tp]
        return begin if committed is None else committed

    return [(BatchConsumer, "_start_offset", _start_offset)]


def _no_generation_check() -> list[Patch]:
    def _all(self: BatchStream, batches: list[RecordBatch]) -> list[RecordBatch]:
        return batches

    return [
        (BatchConsumer, "check_ownership", lambda self: None),
        (BatchStream, "_of_this_generation", _all),
    ]


def _no_continuity() -> list[Patch]:
    def admit(self: Continuity, tp: Any, records: Sequence[Any]) -> Sequence[Any]:
        return records

    return [(Continuity, "admit", admit)]


def _dropped_is_lost() -> list[Patch]:
    async def _read_dropped_again(self: BatchConsumer) -> None:
        self._dropped.clear()

    return [(BatchConsumer, "_read_dropped_again", _read_dropped_again)]


def _no_fence() -> list[Patch]:
    return [(LoopGuard, "_stood_still", lambda self, pause_s: None)]


def _no_ownership() -> list[Patch]:
    return [*_no_fence(), *_no_generation_check()]


def _no_ring() -> list[Patch]:
    return [(UserRow, "has_event", lambda self, event_id, hashed: False)]


def _impatient_ring() -> list[Patch]:
    right = UserRow.remember

    def remember(self: UserRow, event_hash: bytes, time_ms: int, limits: RowLimits) -> None:
        right(self, event_hash, time_ms, replace(limits, max_lateness_ms=0))

    return [(UserRow, "remember", remember)]


def _copies_unknown() -> list[Patch]:
    return [(Originals, "of", lambda self, record: None)]


def _another_id_each_time() -> list[Patch]:
    numbers = itertools.count()
    return [(merge, "_id_of", lambda *parts: f"merge-{next(numbers):032x}")]


def _nothing_overtakes() -> list[Patch]:
    right = merge.is_overtaken_by

    def is_overtaken_by(row: UserRow, wish: Wish, offset: int) -> bool:
        return not isinstance(wish, MergePart) and right(row, wish, offset)

    return [(state, "is_overtaken_by", is_overtaken_by)]


def _rows_apart_from_position() -> list[Patch]:
    def write(self: SimulatedStore, partition: int, rows: Any, changelog_offset: int) -> None:
        batch: dict[bytes, bytes | None] = dict(rows)
        marks = {key: batch.pop(key) for key in (SOURCE_KEY,) if key in batch}
        database = self.db(partition)
        database.write(marks | {OFFSET_KEY: b"%d" % changelog_offset})
        database.write(batch)

    return [(SimulatedStore, "write", write)]


def _former_recovery_counts() -> list[Patch]:
    return [(consumer, "begin_recovery", lambda tables: None)]


def _ahead_is_taken() -> list[Patch]:
    right = restore.begin_from_disk

    def begin_from_disk(tables: Any, tp: TP, end: int) -> None:
        right(tables, tp, 2**63)

    return [(consumer, "begin_from_disk", begin_from_disk)]


def _renew_blindly() -> list[Patch]:
    async def _renew_one(self: ChangelogFence, tp: TP) -> None:
        await self._fence(tp)

    return [(ChangelogFence, "_renew_one", _renew_one)]


def _no_source_row() -> list[Patch]:
    def source_watermark(self: RowTable, partition: int) -> int | None:
        found = self.data.db(partition).rows
        return (1 << 40) if found else None

    return [(RowTable, "source_watermark", source_watermark)]


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "replay-skip",
        "step 2 without: an event at or below a row's offset, or in its ring, is folded again",
        guards=ALL_GUARDS.without("replay-skip"),
    ),
    Mutant(
        "dedupe-ring",
        "step 2 without the ring: an event that was sent twice counts twice",
        _no_ring,
    ),
    Mutant(
        "ring-time",
        "step 2: the ring forgets ids whose events are not too late yet",
        _impatient_ring,
    ),
    Mutant(
        "lateness",
        "step 2 without: an event too far behind its user's newest one is folded",
        guards=ALL_GUARDS.without("lateness"),
    ),
    Mutant(
        "copies",
        "step 2 without: a misrouted record that was sent on twice counts twice",
        _copies_unknown,
    ),
    Mutant(
        "merge-ids",
        "step 2: a leg of a merge that is sent again has another id, and is done again",
        _another_id_each_time,
    ),
    Mutant(
        "merge-overtaken",
        "step 2: what a merge brings is taken though its user was forgotten meanwhile",
        _nothing_overtakes,
    ),
    Mutant(
        "ack-order",
        "step 5 swapped: rows go out before the results are acknowledged",
        guards=ALL_GUARDS.without("ack-order"),
    ),
    Mutant(
        "results-unacknowledged",
        "step 5 without waiting for the results",
        _send_without_waiting(of_results=True),
    ),
    Mutant(
        "rows-unacknowledged",
        "step 5 without waiting for the changelog",
        _send_without_waiting(of_results=False),
    ),
    Mutant("disk-first", "steps 5 and 6 swapped: disk before changelog", _store_before_changelog),
    Mutant(
        "rows-under-way",
        "step 2 while a batch is under way: its rows are read as they were before it",
        _only_what_is_on_disk,
    ),
    Mutant(
        "lists-overtake",
        "step 5: lists go out before the rows of the batch in front are stored",
        _lists_overtake,
    ),
    Mutant(
        "disk-not-atomic",
        "step 6 in two writes: the positions before the rows",
        _rows_apart_from_position,
    ),
    Mutant(
        "ack-first",
        "steps 6 and 7 swapped: acknowledged before it is done, and nothing rewinds",
        _ack_first,
    ),
    Mutant("commit-beyond", "step 7: what was delivered is committed, done or not", _commit_beyond),
    Mutant(
        "watermark",
        "deltas that come twice count twice",
        guards=ALL_GUARDS.without("watermark"),
    ),
    Mutant("rewind", "reading starts at the committed offset, whatever the state has", _no_rewind),
    Mutant("source-row", "the state's own offset is not looked at", _no_source_row),
    Mutant(
        "ownership",
        "unfenced: a worker that stood still goes on, whoever has its partitions by now",
        _no_ownership,
        without="changelog-fence",
    ),
    Mutant(
        "recovery-end",
        "partitions are taken for recovered because others were",
        _former_recovery_counts,
    ),
    Mutant(
        "ahead",
        "rows on disk are gone on with that their changelog has lost",
        _ahead_is_taken,
    ),
    Mutant(
        "renewal",
        "the changelog's fence is renewed though another worker has taken it",
        _renew_blindly,
    ),
    Mutant("continuity", "slices are taken as they come", _no_continuity),
    Mutant("dropped", "slices that came at a bad moment are not read again", _dropped_is_lost),
    Mutant(
        "fence",
        "unfenced: a worker that stood still goes on",
        _no_fence,
        without="changelog-fence",
    ),
    Mutant(
        "changelog-fence",
        "rows of a former owner that arrive late are taken",
        guards=ALL_GUARDS.without("changelog-fence"),
    ),
)
