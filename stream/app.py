"""Put a worker together: the only module that configures Faust."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from faust.types import TP
from mode import Service

from stream import metrics
from stream.agents import BatchProcessor, TableRows
from stream.guards import ALL_GUARDS, Guards
from stream.kafka.batches import BatchOptions, RecordBatch
from stream.kafka.changelog_fence import ChangelogFence
from stream.kafka.fencing import LoopGuard
from stream.kafka.own_rows import postponed_row
from stream.kafka.producer import Delivery, Headers, KeyValue
from stream.kafka.stream import BatchStream
from stream.kafka.table import RowTable
from stream.kafka.watchdog import STUCK_END_S, ProgressWatchdog
from stream.kafka.wiring import (
    BrokerLimits,
    changelog_fence_of,
    faust_settings,
    install,
    loop_guard,
)
from stream.live import LiveParts, statistics_source
from stream.origin import Origin, topic_marks
from stream.refresh_control import RefreshControl
from stream.refused import RefusingFolder
from stream.settings import Settings
from stream.shared_outputs import SharedOutputs
from stream.statistics import StatisticsTopics
from stream.topic_watch import TopicWatch
from stream.topics import STATE_TABLE, FoundTopics, fenced_beside

#: "STEP:N" ends the process with SIGKILL when it reaches that step for the Nth time.
CRASH_VARIABLE = "DRIFTLINE_TEST_CRASH"


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """The services of one worker, in the order in which they start."""

    fence: LoopGuard
    changelog_fence: ChangelogFence
    watchdog: ProgressWatchdog
    topics: TopicWatch
    live: LiveParts
    shared: SharedOutputs
    app: faust.App

    def services(self) -> list[Service]:
        """All of them; statistics, catalogue and release are there before the app joins."""
        return [
            self.fence,
            self.changelog_fence,
            self.watchdog,
            self.topics,
            self.live,
            self.shared,
            self.app,
        ]


def build_worker(
    settings: Settings, found: FoundTopics, guards: Guards = ALL_GUARDS
) -> WorkerParts:
    """A whole worker on the topics that were found. Needs a current event loop.

    Raises ForeignStateError where saved statistics are of another topic.
    """
    app = _faust_app(settings)
    events = settings.topic("user-events")
    marks = topic_marks(settings, found)
    changelog_fence = changelog_fence_of(app, fenced_beside(settings))

    def on_assigned(partitions: set[int]) -> None:
        origin.assigned(partitions)
        refreshes.assigned({partition: table.has_postponed(partition) for partition in partitions})

    install(
        app,
        BatchOptions(
            frozenset({events}),
            source_watermark=lambda partition: origin.source_watermark(partition),
            on_assigned=on_assigned,
            fence=changelog_fence.take if guards.changelog_fence else None,
            release=changelog_fence.release,
            on_gap=lambda tp, wanted, got: metrics.RECORDS_LOST.inc(got - wanted),
            max_slice_records=settings.batch_records,
            max_batch_bytes=settings.max_batch_bytes,
        ),
    )
    table: RowTable = app.Table(
        STATE_TABLE,
        partitions=settings.partitions,
        block_cache_bytes=settings.block_cache_bytes,
        write_buffer_bytes=settings.write_buffer_bytes,
        topics=marks,
    )
    origin = Origin(table, marks, found.lists_ends)
    deltas = found.ids[settings.topic("item-statistics")]
    live = LiveParts(settings, guards, StatisticsTopics(found.ids[events], deltas))
    fence = loop_guard(app)
    refreshes = RefreshControl(
        settings,
        table.iter_rows,
        marks.source,
        can_list=lambda: live.statistics.statistics.events > 0,
    )
    processor = BatchProcessor(
        settings,
        RefusingFolder(
            settings,
            events,
            settings.partitions,
            marks.source,
            live.index.hashes_of,
            guards,
            origin.seq_floor,
        ),
        refreshes,
        table,
        live,
        _sender(app),
        TableRows(origin.source_row, postponed_row),
        fence.check,
        guards,
        crash_on_request(os.environ.get(CRASH_VARIABLE, "")),
    )

    async def fold_user_events(stream: BatchStream) -> None:
        within_s = settings.batch_wait_ms / 1000
        slices: list[RecordBatch]
        batches = stream.record_batches(
            settings.batch_records, within_s, refreshes.idle_s, processor
        )
        async for slices in batches:
            await processor.take(slices)

    topic = app.topic(events, key_type=bytes, value_type=bytes)
    app.agent(topic, name="fold-user-events")(fold_user_events)
    shared = SharedOutputs(
        settings,
        live,
        _sender(app),
        lambda: (
            not app.should_stop  # the producer stops before the outputs do
            and bool(app.tables.actives_ready)
            and TP(events, 0) in app.consumer.assignment()
        ),
        statistics_source(settings),
    )
    topics = TopicWatch(settings, found, live.made_anew)
    watchdog = ProgressWatchdog(app, end_after_s=STUCK_END_S)
    return WorkerParts(fence, changelog_fence, watchdog, topics, live, shared, app)


def _faust_app(settings: Settings) -> faust.App:
    limits = BrokerLimits(
        session_timeout_s=settings.session_timeout_s,
        heartbeat_s=settings.heartbeat_interval_s,
        max_request_bytes=settings.max_request_bytes,
    )
    name = settings.prefix + settings.group
    brokers = ";".join(f"kafka://{address}" for address in settings.bootstrap.split(","))
    return faust.App(
        name,
        broker=brokers,
        datadir=str(Path(settings.data_dir) / name),
        loop=asyncio.get_event_loop(),
        topic_partitions=settings.partitions,
        broker_commit_interval=settings.commit_interval_s,
        consumer_group_instance_id=settings.instance or None,
        table_standby_replicas=settings.standby_replicas,
        **faust_settings(limits),
    )


def _sender(app: faust.App) -> Callable[..., Any]:
    async def send_records(
        topic: str,
        partition: int,
        records: Sequence[KeyValue],
        *,
        timestamp_ms: int | Sequence[int],
        headers: Sequence[Headers] | None = None,
    ) -> list[Delivery]:
        deliveries: list[Delivery] = await app.producer.send_records(
            topic, partition, records, timestamp_ms=timestamp_ms, headers=headers
        )
        return deliveries

    return send_records


def crash_on_request(wish: str) -> Callable[[str], None]:
    """For tests of exactness: end the process without warning at a step that the wish names."""
    step, _, number = wish.partition(":")
    left = int(number or 1)

    def on_step(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return on_step
