"""Topics of a benchmark: made under a prefix of their own, filled, read back, and deleted."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from tqdm import tqdm

from export.errors import DriftlineError
from stream.bench.workload import partition_of
from stream.settings import Settings
from stream.topics import create_topics, state_changelog

_BATCH_BYTES = 256 * 1024
_IN_FLIGHT = 32
_GONE_TIMEOUT_S = 30.0


class Events(Protocol):
    """What a topic is filled with."""

    @property
    def events(self) -> int:
        """How many there are."""
        ...

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each, in the order of sending."""
        ...


class BenchTopicsError(DriftlineError):
    """The broker does not do what a benchmark needs."""


@contextmanager
def bench_topics(bootstrap: str, partitions: int) -> Iterator[Settings]:
    """Settings of an engine under a new prefix, its topics made; all of them deleted at the end."""
    prefix = f"driftline-bench-{uuid.uuid4().hex[:8]}-"
    settings = Settings(bootstrap=bootstrap, prefix=prefix, partitions=partitions)
    try:
        create_topics(settings)
        yield settings
    finally:
        _delete(settings, [])


def make_anew(settings: Settings, names: Sequence[str]) -> None:
    """Delete these topics and make them again, empty."""
    _delete(settings, list(names))
    create_topics(settings)


def written_by(settings: Settings) -> list[str]:
    """The topics that a run on the state path writes."""
    return [state_changelog(settings), settings.topic("item-statistics")]


async def fill(settings: Settings, workload: Events) -> None:
    """Send the workload to `user-events`, and wait until the broker has all of it."""
    topic = settings.topic("user-events")
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap, acks="all", max_batch_size=_BATCH_BYTES
    )
    await producer.start()
    batches = {partition: producer.create_batch() for partition in range(settings.partitions)}
    partitions: dict[bytes, int] = {}
    waiting: list[asyncio.Future[Any]] = []
    now_ms = int(time.time() * 1000)
    bar = tqdm(
        workload.records(), total=workload.events, unit="event", desc="fill", disable=quiet()
    )
    try:
        for key, value in bar:
            partition = partitions.get(key)
            if partition is None:
                partition = partitions[key] = partition_of(key, settings.partitions)
            while batches[partition].append(timestamp=now_ms, key=key, value=value) is None:
                full, batches[partition] = batches[partition], producer.create_batch()
                waiting.append(await producer.send_batch(full, topic, partition=partition))
                if len(waiting) >= _IN_FLIGHT:
                    await asyncio.gather(*waiting)
                    waiting.clear()
        for partition, batch in batches.items():
            if batch.record_count():
                waiting.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()


async def read_topic(settings: Settings, topic: str) -> AsyncIterator[Any]:
    """Every record of a topic, those of a partition in the order of their offsets."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap, group_id=None, enable_auto_commit=False
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, partition) for partition in range(settings.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        left = {tp for tp in tps if ends[tp]}
        while left:
            for tp, found in (await consumer.getmany(timeout_ms=1000)).items():
                for record in found:
                    yield record
                if found[-1].offset + 1 >= ends[tp]:
                    left.discard(tp)
    finally:
        await consumer.stop()


def quiet() -> bool:
    """Whether nobody watches a progress bar."""
    return not sys.stderr.isatty()


def for_run(settings: Settings, group: str) -> Settings:
    """The same engine with a group, and so a state, of its own."""
    return msgspec.structs.replace(settings, group=group)


def _delete(settings: Settings, names: list[str]) -> None:
    """Delete these topics, or all that have the prefix, and wait until they are gone."""
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap)
    try:
        # in it: others put something of their own before the names of their topics
        here = [n for n in _topics(admin) if settings.prefix in n]
        doomed = set(here) if not names else set(here) & set(names)
        if doomed:
            admin.delete_topics(sorted(doomed))
        deadline = time.monotonic() + _GONE_TIMEOUT_S
        while doomed & set(_topics(admin)):
            if time.monotonic() > deadline:
                raise BenchTopicsError(
                    f"wanted {', '.join(sorted(doomed))} deleted, they are still there after "
                    f"{_GONE_TIMEOUT_S:.0f} s: is delete.topic.enable off at the broker?"
                )
            time.sleep(0.1)
    except KafkaError as error:
        raise BenchTopicsError(f"topics of the benchmark cannot be deleted: {error}") from error
    finally:
        admin.close()


def _topics(admin: Any) -> list[str]:
    return [topic["name"] for topic in admin.describe_topics()]
