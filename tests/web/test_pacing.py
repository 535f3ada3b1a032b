"""A broker that answers empty fetches at once is not asked in a tight loop, and no record waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from stream.demo.broker import embedded_broker
from stream.kafka.pacing import EMPTY_PAUSE_S, pace_empty_fetches
from stream.settings import Settings
from stream.topics import create_topics

pytest.importorskip("noida_db", reason="the embedded broker is not installed")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with embedded_broker(tmp_path) as address:
        settings = Settings(bootstrap=address, partitions=2)
        create_topics(settings)
        yield settings


@pytest.fixture
async def consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        "user-events", bootstrap_servers=settings.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    yield consumer
    await consumer.stop()


async def empty_fetches(consumer: AIOKafkaConsumer, for_s: float) -> int:
    """How many fetches an idle consumer makes in a time."""
    fetch, count = consumer._fetcher._proc_fetch_request, 0

    async def counted(*arguments: object) -> bool:
        nonlocal count
        count += 1
        return bool(await fetch(*arguments))

    consumer._fetcher._proc_fetch_request = counted
    await consumer.getmany(timeout_ms=int(for_s * 1000))
    consumer._fetcher._proc_fetch_request = fetch
    return count


async def test_an_idle_consumer_asks_seldom(consumer: AIOKafkaConsumer) -> None:
    unpaced = await empty_fetches(consumer, 1.0)
    pace_empty_fetches(consumer)
    paced = await empty_fetches(consumer, 1.0)

    assert paced <= 1.0 / EMPTY_PAUSE_S + 2
    assert unpaced > 2 * paced  # else the broker waits by itself, and pacing is needless


async def test_a_record_comes_after_one_pause_at_most(
    settings: Settings, consumer: AIOKafkaConsumer
) -> None:
    pace_empty_fetches(consumer)
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap)
    await producer.start()
    delays_s = []
    for number in range(20):
        await producer.send_and_wait("user-events", value=str(number).encode())
        sent = time.perf_counter()
        async with asyncio.timeout(5):
            record = await consumer.getone()
        assert record.value == str(number).encode()
        delays_s.append(time.perf_counter() - sent)
    await producer.stop()

    assert sorted(delays_s)[10] < 5 * EMPTY_PAUSE_S
