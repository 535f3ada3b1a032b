"""The other yardstick: the raw loop's work with confluent-kafka (librdkafka) instead of aiokafka.

Run as a process by `driftline bench state`, with a `RawPlan` as its argument. The same reads,
rows, bytes and acknowledgements; librdkafka makes the requests in threads of its own. Needs the
extra `dev`.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import defaultdict
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from stream.bench.raw_loop import RawPlan, RawRows, outputs
from stream.kafka.consumer_thread import LONG_POLL_MS
from stream.kafka.producer import MAX_BATCH_BYTES

_FLUSH_TIMEOUT_S = 30.0


class ConfluentLoop:
    """One consumer, one producer, one database a partition."""

    def __init__(self, plan: RawPlan) -> None:
        self._plan = plan
        self._rows = RawRows(plan)
        self._is_stopped = False
        self._consumer = Consumer(
            {
                "bootstrap.servers": plan.bootstrap,
                "group.id": plan.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": LONG_POLL_MS,
            }
        )
        self._producer = Producer(
            {
                "bootstrap.servers": plan.bootstrap,
                "acks": "all",
                "linger.ms": 0,
                "batch.size": MAX_BATCH_BYTES,
                "batch.num.messages": 100_000,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._refused: list[KafkaError] = []

    def run(self) -> None:
        """Until SIGTERM."""
        signal.signal(signal.SIGTERM, self._stop)
        self._consumer.subscribe([self._plan.events])
        done: dict[int, int] = {}  # partition -> next offset
        committed_s = time.monotonic()
        while not self._is_stopped:
            records = self._consumer.consume(self._plan.batch_records, LONG_POLL_MS / 1000)
            by_partition: dict[int, list[Any]] = defaultdict(list)
            for record in records:
                if (error := record.error()) is not None:
                    raise KafkaException(error)
                by_partition[int(record.partition() or 0)].append(record)
            if by_partition:
                self._take(by_partition)
                done |= {number: found[-1].offset() + 1 for number, found in by_partition.items()}
            if time.monotonic() - committed_s >= self._plan.commit_interval_s and done:
                self._commit(done)
                committed_s = time.monotonic()
        self._consumer.close()
        self._rows.close()

    def _take(self, by_partition: dict[int, list[Any]]) -> None:
        now_ms = int(time.time() * 1000)
        changes = {}
        for partition, records in by_partition.items():
            keys = [record.key() for record in records]
            rows = self._rows.changed(partition, keys, records[-1].offset())
            changes[partition] = rows
            for key, value in rows:
                self._produce(self._plan.changelog, partition, key, value, now_ms)
            for output_key, output in outputs(self._plan, keys):
                self._produce(self._plan.deltas, partition, output_key, output, now_ms)
        if self._producer.flush(_FLUSH_TIMEOUT_S) or self._refused:
            raise KafkaException(*self._refused[:1])
        for partition, rows in changes.items():
            self._rows.write(partition, rows)

    def _produce(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, now_ms: int
    ) -> None:
        self._producer.produce(
            topic, value, key, partition, on_delivery=self._delivered, timestamp=now_ms
        )

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._refused.append(error)

    def _commit(self, done: dict[int, int]) -> None:
        offsets = [TopicPartition(self._plan.events, number, at) for number, at in done.items()]
        self._consumer.commit(offsets=offsets, asynchronous=True)

    def _stop(self, *_: object) -> None:
        self._is_stopped = True


if __name__ == "__main__":
    ConfluentLoop(msgspec.json.decode(sys.argv[1], type=RawPlan)).run()
