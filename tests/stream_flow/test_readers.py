"""A reader gets the whole of its topic, whether or not anything else asked for its metadata."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaProducer
from kafka_cluster import Broker

from stream.readers import GATHERING_MS, TopicReader, wait_caught_up


def filled_topic(bootstrap: str, topic: str, partitions: int, records: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics(
        {topic: {"num_partitions": partitions, "replication_factor": 1}}, wait_for_metadata=True
    )
    admin.close()
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for number in range(records):
        producer.send(topic, value=b"%d" % number, partition=number % partitions)
    producer.close()


async def read_all(bootstrap: str, topic: str, positions: dict[int, int]) -> list[bytes]:
    got: list[Any] = []
    reader = TopicReader(bootstrap, topic, got.extend, positions)
    await reader.start()
    await wait_caught_up([reader], timeout_s=20)
    await reader.stop()
    return sorted((record.value for record in got), key=int)


def test_every_record_of_every_partition_is_there_once_caught_up(
    kafka: Broker, prefix: str
) -> None:
    topic = f"{prefix}whole"
    filled_topic(kafka.bootstrap, topic, partitions=3, records=90)

    got = asyncio.run(read_all(kafka.bootstrap, topic, {}))

    assert got == [b"%d" % number for number in range(90)]


def test_reading_goes_on_from_the_positions_that_are_given(kafka: Broker, prefix: str) -> None:
    topic = f"{prefix}rest"
    filled_topic(kafka.bootstrap, topic, partitions=2, records=20)

    got = asyncio.run(read_all(kafka.bootstrap, topic, {0: 4, 1: 10}))

    assert got == [b"8", b"10", b"12", b"14", b"16", b"18"]


def test_an_empty_topic_is_caught_up_at_once(kafka: Broker, prefix: str) -> None:
    topic = f"{prefix}empty"
    filled_topic(kafka.bootstrap, topic, partitions=2, records=0)

    assert asyncio.run(read_all(kafka.bootstrap, topic, {})) == []


def test_a_reader_that_gathers_hands_over_many_small_records_at_once_and_soon(
    kafka: Broker, prefix: str
) -> None:
    topic = f"{prefix}gathered"
    filled_topic(kafka.bootstrap, topic, partitions=1, records=5)
    answers: list[int] = []

    async def act() -> float:
        all_there = asyncio.Event()

        def take(records: list[Any]) -> None:
            answers.append(len(records))
            if sum(answers) == 45:
                all_there.set()

        reader = TopicReader(kafka.bootstrap, topic, take, gathers=True)
        await reader.start()
        await wait_caught_up([reader], timeout_s=20)
        assert sum(answers) == 5
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
        await producer.start()
        begun = time.monotonic()
        for number in range(40):
            await producer.send_and_wait(topic, b"%d" % number)
        took_s = time.monotonic() - begun
        await asyncio.wait_for(all_there.wait(), 20)
        await producer.stop()
        await reader.stop()
        return took_s

    took_s = asyncio.run(act())

    # that of the start, one to a fetch from before it had caught up, the last, and those between
    assert len(answers) <= 3 + took_s / (GATHERING_MS / 1000)
