"""A worker on the batch layer, small enough to see through: what the tests run as a process.

Each user's row lists the numbers of the user's events in the order they were folded, with the
source offset of the last one. A lost event is missing from a row, one applied twice is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import faust
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from mode import Worker

from stream.kafka.batches import BatchOptions, RecordBatch
from stream.kafka.consumer import BatchConsumer
from stream.kafka.fencing import LoopGuard
from stream.kafka.own_rows import FENCE_KEY, source_row
from stream.kafka.table import RowTable
from stream.kafka.watchdog import ProgressWatchdog
from stream.kafka.wiring import (
    BrokerLimits,
    changelog_fence_of,
    faust_settings,
    install,
    loop_guard,
)

PARTITIONS = 4
#: Of a worker that is given none.
SESSION_S = 6.0


class Plan:
    """What a test asks of the worker, as JSON on its command line."""

    def __init__(self, text: str) -> None:
        wishes = json.loads(text)
        self.bootstrap: str = wishes["bootstrap"]
        self.prefix: str = wishes["prefix"]
        self.directory = Path(wishes["directory"])
        self.events: Path = self.directory / f"{wishes.get('name', 'worker')}.log"
        self.session_s: float = wishes.get("session_s", SESSION_S)
        self.fail_on: str | None = wishes.get("fail_on")
        self.hold_file: str | None = wishes.get("hold_file")
        self.seek_hold_file: str | None = wishes.get("seek_hold_file")
        self.broken: str | None = wishes.get("broken")
        self.standbys: int = wishes.get("standbys", 0)
        self.instance: str = wishes.get("instance", "")
        self.settings: dict[str, object] = wishes.get("settings", {})
        self.end_within_s: float = wishes.get("end_within_s", 20.0)
        self.fenced: bool = wishes.get("fenced", True)

    def wait_while_there(self, file: str | None, word: str) -> None:
        """What is begun takes as long as the test's file is there."""
        if file is not None and Path(file).exists():
            self.tell(word)
            while Path(file).exists():
                time.sleep(0.02)

    def tell(self, word: str, **fields: object) -> None:
        """A line the test waits for."""
        with self.events.open("a") as out:
            out.write(json.dumps({"word": word, "at": time.time(), **fields}) + "\n")


def make_app(plan: Plan) -> tuple[faust.App, RowTable, LoopGuard]:
    limits = BrokerLimits(session_timeout_s=plan.session_s, heartbeat_s=plan.session_s / 4)
    app = faust.App(
        f"{plan.prefix}group",
        broker=f"kafka://{plan.bootstrap}",
        datadir=str(plan.directory / "data"),
        table_standby_replicas=plan.standbys,
        topic_partitions=PARTITIONS,
        consumer_group_instance_id=plan.instance or None,
        broker_commit_interval=0.3,
        **{**faust_settings(limits), **plan.settings},
    )
    tables: list[RowTable] = []
    fence = changelog_fence_of(app)

    def release(revoked: set[TP]) -> None:
        plan.tell("revoked")
        fence.release(revoked)

    install(
        app,
        BatchOptions(
            batch_topics=frozenset({f"{plan.prefix}events"}),
            source_watermark=lambda partition: tables[0].source_watermark(partition),
            on_gap=lambda tp, want, got: plan.tell("gap", p=tp.partition, want=want, got=got),
            fence=fence.take if plan.fenced else None,
            release=release,
            on_assigned=lambda partitions: plan.tell(
                "assigned", generation=app.consumer_generation_id, partitions=sorted(partitions)
            ),
            end_within_s=plan.end_within_s,
        ),
    )
    table: RowTable = app.Table("rows", partitions=PARTITIONS)
    tables.append(table)
    tell_of_restoring(plan, table)
    guard = loop_guard(app)
    events = app.topic(f"{plan.prefix}events", key_type=bytes, value_type=bytes)

    async def fold(stream: faust.Stream) -> None:
        async for batches in stream.record_batches(max_records=500, within_s=0.005):
            plan.tell("batch", offsets=[[b.tp.partition, b.first_offset] for b in batches])
            await fold_batches(plan, app, table, guard, batches)

    app.agent(events, name="fold")(fold)
    return app, table, guard


def hold_seeks(plan: Plan, consumer: BatchConsumer) -> None:
    """Where reading is to begin is looked at for as long as the test's file is there."""
    earliest_offsets = consumer.earliest_offsets

    async def held(*partitions: TP) -> dict[TP, int]:
        if any(tp.topic == f"{plan.prefix}events" for tp in partitions):
            await asyncio.to_thread(plan.wait_while_there, plan.seek_hold_file, "seeking")
        return await earliest_offsets(*partitions)

    consumer.earliest_offsets = held


def break_part(plan: Plan, consumer: BatchConsumer) -> None:
    """A part of aiokafka's fails from now on, as after an upgrade that has another name for it."""
    thread = consumer._thread
    fetching = thread._ensure_consumer()
    if plan.broken == "fetcher":
        fetching._fetcher._get_actions_per_node = None
    if plan.broken == "metadata":
        fetching._client._metadata_update = None
        thread.thread_loop.call_soon_threadsafe(fetching._client.force_metadata_update)


def tell_of_restoring(plan: Plan, table: RowTable) -> None:
    """A line for each slice of the changelog that is applied."""
    restore = table.restore

    def restore_and_tell(partition: int, records: Sequence[ConsumerRecord]) -> None:
        rows = sum(record.key != FENCE_KEY for record in records)  # one of these is the taker's own
        plan.tell("restored", p=partition, rows=rows, last=records[-1].offset)
        restore(partition, records)

    table.restore = restore_and_tell


async def fold_batches(
    plan: Plan, app: faust.App, table: RowTable, guard: LoopGuard, batches: list[RecordBatch]
) -> None:
    """Steps 2 to 6 of the design's order; the stream acks when this returns."""
    by_partition: dict[int, list] = {}
    for batch in batches:
        by_partition.setdefault(batch.tp.partition, []).extend(batch.records)
    pending = []
    for partition, records in by_partition.items():
        users = sorted({record.key for record in records})
        known = dict(zip(users, table.get_many(partition, users), strict=True))
        rows = {u: json.loads(row) if row else {"last": -1, "n": []} for u, row in known.items()}
        for record in records:
            row = rows[record.key]
            if record.offset > row["last"]:
                row["last"] = record.offset
                row["n"].append(int(record.value))
            if plan.fail_on is not None and record.value == plan.fail_on.encode():
                raise RuntimeError(f"told to fail on {plan.fail_on}")
        pending.append((partition, rows, records[-1].offset))
    await asyncio.to_thread(plan.wait_while_there, plan.hold_file, "held")
    guard.check()
    for partition, rows, last in pending:
        changed = [(user, json.dumps(row).encode()) for user, row in rows.items()]
        changed.append(source_row(last))
        now_ms = int(time.time() * 1000)
        deliveries = await app.producer.send_records(
            table.changelog_topic_name, partition, changed, timestamp_ms=now_ms
        )
        plan.tell("sent")
        done = await asyncio.gather(*deliveries)
        guard.check()
        table.write(partition, changed, max(base + count - 1 for base, count in done))


async def say_when_ready(plan: Plan, app: faust.App, table: RowTable) -> None:
    """Tell of every completed assignment."""
    told: object = None
    while True:
        await asyncio.sleep(0.05)
        consumer = app._consumer
        if consumer is None or not app.tables.actives_ready or app.rebalancing:
            continue
        state = (app.consumer_generation_id, sorted(tp.partition for tp in ready_at(consumer)))
        if state != told:
            told = state
            marks = {p: table.source_watermark(p) for p in state[1]}
            plan.tell("ready", generation=state[0], partitions=state[1], watermarks=marks)
            break_part(plan, consumer)


def ready_at(consumer: object) -> list[TP]:
    return [tp for tp in consumer.source_partitions() if consumer.position_of(tp) is not None]


def main() -> None:
    plan = Plan(sys.argv[1])
    (plan.directory / "data").mkdir(parents=True, exist_ok=True)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app, table, guard = make_app(plan)
    app.finalize()
    watchdog = ProgressWatchdog(app)

    @app.task
    async def ready() -> None:
        hold_seeks(plan, app.consumer)
        await say_when_ready(plan, app, table)

    plan.tell("start", pid=os.getpid())
    with contextlib.suppress(KeyboardInterrupt):
        Worker(guard, watchdog, app, loop=loop, loglevel="INFO").execute_from_commandline()


if __name__ == "__main__":
    main()
