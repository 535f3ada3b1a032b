"""What is handed over is on its way while the event loop folds the next batch."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aiokafka import AIOKafkaProducer
from batch_harness import new_topics
from kafka import KafkaConsumer, TopicPartition
from kafka_cluster import Broker

from stream.kafka.producer import BatchProducer
from stream.outbox import Outbox
from stream.storing import BatchEnd, Steps, Storing


class Sender(BatchProducer):
    """The worker's producer without Faust around it."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.max_request_size = 1024**2
        self.epochs, self.fenced_topics = {}, set()
        self._client = producer

    def _ensure_producer(self) -> AIOKafkaProducer:
        return self._client


def results(topic: str, value: bytes) -> BatchEnd:
    outbox = Outbox()
    outbox.add(topic, 0, None, value)
    return BatchEnd(outbox, {0: [(b"ada", value)]}, 0, lambda: None)


def test_the_broker_gets_a_batch_while_the_event_loop_is_kept(kafka: Broker, prefix: str) -> None:
    topic, changelog = f"{prefix}deltas", f"{prefix}rows-changelog"
    new_topics(kafka.bootstrap, topic, changelog)
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    tps = [TopicPartition(topic, 0), TopicPartition(changelog, 0)]
    consumer.assign(tps)
    consumer.seek_to_beginning(*tps)

    def until_there(count: int) -> set[tuple[str, bytes]]:
        """Blocks the loop, as a fold does."""
        found: set[tuple[str, bytes]] = set()
        for _ in range(20):
            for records in consumer.poll(timeout_ms=200).values():
                found |= {(record.topic, record.value) for record in records}
            if len(found) >= count:
                break
        return found

    async def act() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
        await producer.start()
        rows = SimpleNamespace(write=lambda *row: None, get_many=lambda *keys: [])
        steps = Steps(lambda: None, lambda step: None, lambda results, sent: None)
        storing = Storing(rows, changelog, Sender(producer).send_records, steps)
        await storing.begin(results(topic, b"0"))  # with this one it learns where the topics are
        await storing.finish()
        assert until_there(2) == {(topic, b"0"), (changelog, b"0")}

        await storing.begin(results(topic, b"1"))
        assert until_there(1) == {(topic, b"1")}
        await storing.begin(results(topic, b"2"))
        assert until_there(2) == {(changelog, b"1"), (topic, b"2")}
        await storing.finish()
        await producer.stop()

    asyncio.run(act())
    consumer.close()
