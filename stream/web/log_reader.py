"""Read several topics with one consumer of no group: first what is there, then what comes.

What was there before is handed over in the order of the records' times, across topics, so that a
list of the past lies before the events that came after it, as it did when they were written.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from mode import Service

from export.errors import DriftlineError
from stream.kafka.bounded import bound_fetches
from stream.kafka.pacing import pace_empty_fetches

#: Records taken in one go, so that viewers are served in between.
_CHUNK = 100
#: Between two looks for a topic that was not there.
_LOOK_AGAIN_S = 3.0
_START_TIMEOUT_S = 20.0

#: Takes records of any topics, in order of time.
TakeRecords = Callable[[list[Any]], None]


class MissingTopicsError(DriftlineError):
    """Topics that the page reads are not there."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One topic to read.

    `newest`: how many of its records are read of those that are there, in all; None: all of them.
    `is_first`: handed over before all else, as a catalogue must be. `may_be_missing`: looked for
    again from time to time.
    """

    topic: str
    newest: int | None
    is_first: bool = False
    may_be_missing: bool = False


class LogReader(Service):  # type: ignore[misc]
    """Hands records to `take`, on the event loop; `caught_up` once those of the start are taken.

    A broker that goes away is waited for. Raises MissingTopicsError at the start where a topic
    that must be there is not.
    """

    def __init__(
        self, bootstrap: str, readings: Iterable[Reading], take: TakeRecords, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.caught_up = asyncio.Event()
        self.consumer: Any = None
        self._bootstrap = bootstrap
        self._readings = {reading.topic: reading for reading in readings}
        self._take = take
        self._positions: dict[TopicPartition, int] = {}
        self._missing: set[str] = set()
        self._looked_at = 0.0

    async def on_start(self) -> None:
        self.consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        bound_fetches(self.consumer)
        await asyncio.wait_for(self.consumer.start(), _START_TIMEOUT_S)
        pace_empty_fetches(self.consumer)
        self._missing = set(self._readings)
        await self._assign_found()
        needed = [t for t in self._missing if not self._readings[t].may_be_missing]
        if needed:
            raise MissingTopicsError(
                f"wanted the topics {', '.join(sorted(needed))} at {self._bootstrap}, and they are "
                "not there; make them with `driftline topics create`, or set `bootstrap` and "
                "`prefix` to those of the engine"
            )

    async def on_stop(self) -> None:
        if self.consumer is not None:
            await self.consumer.stop()

    def partitions_of(self, topic: str) -> list[TopicPartition]:
        """The partitions of a topic that are read."""
        return [tp for tp in self._positions if tp.topic == topic]

    async def _assign_found(self) -> None:
        """Read what is there of the missing topics from their newest records on."""
        self._looked_at = asyncio.get_running_loop().time()
        there = self._missing & set(await self.consumer.topics())
        if not there:
            return
        new = await self._partitions(sorted(there))
        begins = await self.consumer.beginning_offsets(new)
        ends = await self.consumer.end_offsets(new)
        for tp in new:
            newest = self._readings[tp.topic].newest
            of_topic = sum(other.topic == tp.topic for other in new)
            first = begins[tp] if newest is None else ends[tp] - -(-newest // of_topic)
            self._positions[tp] = max(first, begins[tp])
        self.consumer.assign(list(self._positions))
        for tp, position in self._positions.items():
            self.consumer.seek(tp, position)
        self._missing -= there

    async def _partitions(self, topics: list[str]) -> list[TopicPartition]:
        """The partitions of topics that are there: the consumer knows those it reads only."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            await admin.start()
            told = await admin.describe_topics(topics)
        finally:
            await admin.close()
        return [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in told
            for partition in topic["partitions"]
        ]

    @Service.task  # type: ignore[untyped-decorator]
    async def _read(self) -> None:
        await self._read_backlog()
        self.caught_up.set()
        while not self.should_stop:
            await self._hand_over(in_time_order((await self._fetched()).values()))
            loop = asyncio.get_running_loop()
            if self._missing and loop.time() - self._looked_at > _LOOK_AGAIN_S:
                try:
                    await self._assign_found()
                except KafkaError as error:
                    self.log.warning("cannot look for topics", extra={"error": str(error)})

    async def _read_backlog(self) -> None:
        """All that is there at the start; a catalogue at once, the rest in order of time."""
        ends = await self.consumer.end_offsets(list(self._positions))
        held: dict[TopicPartition, list[Any]] = {}
        while not self.should_stop and any(self._positions[tp] < ends[tp] for tp in ends):
            for tp, records in (await self._fetched()).items():
                if self._readings[tp.topic].is_first:
                    await self._hand_over(records)
                else:
                    held.setdefault(tp, []).extend(records)
        await self._hand_over(in_time_order(held.values()))

    async def _fetched(self) -> dict[TopicPartition, list[Any]]:
        try:
            fetched: dict[TopicPartition, list[Any]] = await self.consumer.getmany(
                timeout_ms=500, max_records=2000
            )
        except KafkaError as error:
            self.log.warning("cannot read: waiting", extra={"error": str(error)})
            await self.sleep(1.0)
            return {}
        for tp, records in fetched.items():
            self._positions[tp] = records[-1].offset + 1
        return fetched

    async def _hand_over(self, records: Iterable[Any]) -> None:
        chunk: list[Any] = []
        for record in records:
            chunk.append(record)
            if len(chunk) == _CHUNK:
                self._take(chunk)
                chunk = []
                await asyncio.sleep(0)
        if chunk:
            self._take(chunk)
        await asyncio.sleep(0)


def in_time_order(partitions: Iterable[list[Any]]) -> Iterator[Any]:
    """Records of several partitions by their timestamps; those of one keep their order.

    A timestamp below an earlier one of its partition counts as that earlier one.
    """
    return (record for _, record in heapq.merge(*map(_timed, partitions), key=lambda x: x[0]))


def _timed(records: list[Any]) -> Iterator[tuple[int, Any]]:
    latest = 0
    for record in records:
        latest = max(latest, record.timestamp)
        yield latest, record
