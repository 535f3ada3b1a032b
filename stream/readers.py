"""Read a whole topic for ever, outside any consumer group: every worker needs all of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from export.decompress import MAX_BATCH_BYTES
from stream.kafka.bounded import bound_fetches
from stream.kafka.pacing import pace_empty_fetches

#: A reader that gathers lets an answer wait at the broker for so many bytes, but no longer than so.
GATHERED_BYTES = 64 * 1024
GATHERING_MS = 200

#: Takes records of any partitions, those of each in the order of their offsets.
TakeRecords = Callable[[list[Any]], None]


class TopicReader(Service):  # type: ignore[misc]
    """Hands every record of a topic to `take`, from given positions on.

    `caught_up` is set once everything is read that was there at the start. A broker that goes away
    is waited for. `take` runs on the event loop and must not block. A record batch that would
    become larger than `max_batch_bytes` is not opened: `bounded.refusal_in` tells what came for it.

    One that `gathers` hands over many records at once, up to GATHERING_MS late, after it has caught
    up: every answer costs the same, whether it holds one small record or hundreds.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        take: TakeRecords,
        positions: dict[int, int] | None = None,
        max_records: int = 2000,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        gathers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.topic = topic
        self.caught_up = asyncio.Event()
        self.positions: dict[int, int] = dict(positions or {})
        self._bootstrap = bootstrap
        self._take = take
        self._max_records = max_records
        self._max_batch_bytes = max_batch_bytes
        self._gathers = gathers
        self._consumer: Any = None
        self._behind: dict[int, int] = {}  # partition -> end at the start, until it is reached

    @property
    def label(self) -> str:
        return f"{type(self).__name__}({self.topic})"

    async def on_start(self) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=GATHERING_MS,
        )
        bound_fetches(self._consumer, self._max_batch_bytes)
        await self._consumer.start()
        pace_empty_fetches(self._consumer)
        # before anything is assigned: a fetch that waits would keep these answers back
        partitions = await self._consumer._client._wait_on_metadata(self.topic)
        assigned = [TopicPartition(self.topic, number) for number in sorted(partitions)]
        begins = await self._consumer.beginning_offsets(assigned)
        ends = await self._consumer.end_offsets(assigned)
        self._consumer.assign(assigned)
        for tp in assigned:
            start = max(self.positions.get(tp.partition, 0), begins[tp])
            self.positions[tp.partition] = start
            self._consumer.seek(tp, start)
            if ends[tp] > start:
                self._behind[tp.partition] = ends[tp]
        if not self._behind:
            self._is_caught_up()

    def read_anew(self) -> None:
        """Go back to the beginning: the topic was deleted and made anew."""
        for tp in self._consumer.assignment() if self._consumer is not None else ():
            self.positions[tp.partition] = 0
            self._consumer.seek(tp, 0)

    async def on_stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    @Service.task  # type: ignore[untyped-decorator]
    async def _read(self) -> None:
        while not self.should_stop:
            try:
                fetched = await self._consumer.getmany(
                    timeout_ms=500, max_records=self._max_records
                )
            except KafkaError as error:
                self.log.warning("cannot read: waiting", extra={"error": str(error)})
                await self.sleep(1.0)
                continue
            for tp, records in fetched.items():
                self._take(records)
                self.positions[tp.partition] = records[-1].offset + 1
            if self._behind:
                await self._note_progress()
            await asyncio.sleep(0)

    async def _note_progress(self) -> None:
        for partition, end in list(self._behind.items()):
            # not by the last record: a transaction's marker may stand behind it
            if await self._consumer.position(TopicPartition(self.topic, partition)) >= end:
                del self._behind[partition]
        if not self._behind:
            self._is_caught_up()

    def _is_caught_up(self) -> None:
        self.caught_up.set()
        if self._gathers:  # not before: what is missing of a start is less than that
            self._consumer._fetcher._fetch_min_bytes = GATHERED_BYTES


async def wait_caught_up(readers: list[TopicReader], timeout_s: float) -> None:
    """Until every reader has read what was there at its start; raises TimeoutError after that."""
    deadline = time.monotonic() + timeout_s
    for reader in readers:
        await asyncio.wait_for(reader.caught_up.wait(), max(deadline - time.monotonic(), 0.01))
