"""The yardstick: consume, read, write and send with aiokafka and RocksDB, and nothing else.

Run as a process by `driftline bench state`, with a `RawPlan` as its argument. For every batch it
reads and writes one row for each distinct user, sends the same changelog rows and as many bytes of
deltas as a worker, and waits for the broker. It decodes no event, folds none and knows none twice.
All of a batch is sent at once: the order that a worker keeps costs a wait more. With
`output_bytes`, a record of that size is sent for each event, in place of the batch's deltas.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import rocksdict
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from msgspec import Struct

from stream.history import RowLimits, row_key
from stream.kafka.consumer_thread import LONG_POLL_MS
from stream.kafka.own_rows import source_row
from stream.kafka.producer import MAX_BATCH_BYTES
from stream.kafka.row_store import (
    BLOCK_CACHE_BYTES,
    WRITE_BUFFER_BYTES,
    open_rows,
    row_buffers,
)
from stream.row_codec import EVENT_BYTES, HASH_BYTES, HEADER, RING_ENTRY_BYTES

#: Bytes of deltas for an event: its columns, and its part of the batch's distinct items.
DELTA_BYTES = 68
#: Events of a user in the row's first bytes: with it a row has the size that a worker's has.
_COUNT = struct.Struct("<I")
_KEY_BEGIN = row_key("default", True, "")
_LIMITS = RowLimits()
FILLER = bytes(range(256)) * 128

Row = tuple[bytes, bytes | None]


class RawPlan(Struct, frozen=True):
    """Where to read and write; the same topics as a worker of this group would use."""

    bootstrap: str
    events: str
    changelog: str
    deltas: str
    group: str
    data_dir: str
    batch_records: int
    commit_interval_s: float
    max_request_bytes: int
    ring_records: int  # of a partition whose ids a worker knows at one time
    output_bytes: int = 0  # of a record for each event; 0: deltas of the batch


def row_of(count: int, ids: int) -> bytes:
    """Bytes as many as a worker keeps of a user with so many events, all of other items, of which
    the ids of so many are young enough to be in the ring."""
    kept = min(count, _LIMITS.max_history)
    taken, ring = min(count - kept, _LIMITS.max_taken), min(ids, _LIMITS.dedupe_ring)
    size = HEADER.size + kept * EVENT_BYTES + ring * RING_ENTRY_BYTES + taken * HASH_BYTES
    return _COUNT.pack(count) + FILLER[_COUNT.size : size]


def count_in(row: bytes) -> int:
    """How many events a row stands for."""
    count: int = _COUNT.unpack_from(row)[0]
    return count


def outputs(plan: RawPlan, keys: list[bytes]) -> list[tuple[bytes | None, bytes]]:
    """What is sent for events with these keys, besides rows: deltas, or a record for each."""
    if plan.output_bytes:
        return [(key, FILLER[: plan.output_bytes]) for key in keys]
    size = DELTA_BYTES * len(keys)
    return [(None, (FILLER * (size // len(FILLER) + 1))[:size])]


class RawRows:
    """One database a partition, with rows of as many bytes as a worker's."""

    def __init__(self, plan: RawPlan) -> None:
        self._folder = Path(plan.data_dir)
        self._ring_records = plan.ring_records
        self._cache = rocksdict.Cache(BLOCK_CACHE_BYTES)
        self._buffers = row_buffers(WRITE_BUFFER_BYTES)
        self._databases: dict[int, Any] = {}

    def changed(self, partition: int, users: list[bytes], last_offset: int) -> list[Row]:
        """The new row of each distinct user of these events, and the source row.

        A user's part of the ids is taken to be that of all events so far.
        """
        share = min(self._ring_records / (last_offset + 1), 1.0)
        counts = Counter(users)
        keys = [_KEY_BEGIN + user for user in counts]
        stored = self._database(partition).get(keys)
        totals = [
            count + (count_in(row) if row else 0)
            for row, count in zip(stored, counts.values(), strict=True)
        ]
        rows: list[Row] = [
            (key, row_of(total, max(round(total * share), 1)))
            for key, total in zip(keys, totals, strict=True)
        ]
        rows.append(source_row(last_offset))
        return rows

    def write(self, partition: int, rows: list[Row]) -> None:
        """All of them in one batch."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
        self._database(partition).write(batch)

    def close(self) -> None:
        """Close what was opened."""
        for database in self._databases.values():
            database.close()

    def _database(self, partition: int) -> Any:
        if partition not in self._databases:
            path = self._folder / f"{partition}.db"
            self._databases[partition] = open_rows(path, self._cache, self._buffers)
        return self._databases[partition]


class RawLoop:
    """One consumer, one producer, and the rows."""

    def __init__(self, plan: RawPlan) -> None:
        self._plan = plan
        self._rows = RawRows(plan)
        self._stopped = asyncio.Event()
        self._consumer = AIOKafkaConsumer(
            plan.events,
            bootstrap_servers=plan.bootstrap,
            group_id=plan.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=LONG_POLL_MS,
        )
        self._producer = AIOKafkaProducer(
            bootstrap_servers=plan.bootstrap,
            acks="all",
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=plan.max_request_bytes,
        )

    async def run(self) -> None:
        """Until SIGTERM."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopped.set)
        await self._producer.start()
        await self._consumer.start()
        committed_s = time.monotonic()
        while not self._stopped.is_set():
            fetched = await self._consumer.getmany(
                timeout_ms=LONG_POLL_MS, max_records=self._plan.batch_records
            )
            if fetched:
                await self._take(fetched)
            if time.monotonic() - committed_s >= self._plan.commit_interval_s:
                await self._consumer.commit()
                committed_s = time.monotonic()
        await self._consumer.stop()
        await self._producer.stop()
        self._rows.close()

    async def _take(self, fetched: dict[Any, list[Any]]) -> None:
        now_ms = int(time.time() * 1000)
        changes: dict[int, list[Row]] = {}
        acknowledged: list[Any] = []
        for tp, records in fetched.items():
            keys = [record.key for record in records]
            rows = self._rows.changed(tp.partition, keys, records[-1].offset)
            changes[tp.partition] = rows
            for topic, sent in (
                (self._plan.changelog, rows),
                (self._plan.deltas, outputs(self._plan, keys)),
            ):
                acknowledged += await self._send(topic, tp.partition, sent, now_ms)
        await asyncio.gather(*acknowledged)
        for partition, rows in changes.items():
            self._rows.write(partition, rows)

    async def _send(
        self,
        topic: str,
        partition: int,
        records: Iterable[tuple[bytes | None, bytes | None]],
        ms: int,
    ) -> list[Any]:
        futures = []
        batch = self._producer.create_batch()
        for key, value in records:
            while batch.append(timestamp=ms, key=key, value=value) is None:
                futures.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
        futures.append(await self._producer.send_batch(batch, topic, partition=partition))
        return futures


async def _run(plan: RawPlan) -> None:
    await RawLoop(plan).run()


if __name__ == "__main__":
    uvloop.run(_run(msgspec.json.decode(sys.argv[1], type=RawPlan)))
