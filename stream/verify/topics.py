"""Read whole topics, from their beginning to where they end now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from tqdm import tqdm

from export.decompress import MAX_BATCH_BYTES
from export.errors import DriftlineError
from export.kafka_batches import bound_batches

_POLL_MS = 1000
#: kafka-python looks for a broker that is not there for 30 s otherwise.
_BOOTSTRAP_TIMEOUT_MS = 5000
#: Polls without a record and without progress after which the broker counts as gone.
_PATIENCE_POLLS = 30


class LogError(DriftlineError):
    """The log cannot be read as it must be."""


class KafkaLog:
    """The topics of one broker, read without a consumer group.

    As for workers, there is nothing in a record batch that becomes larger than `max_batch_bytes`.
    """

    def __init__(self, bootstrap: str, max_batch_bytes: int = MAX_BATCH_BYTES) -> None:
        self._bootstrap = bootstrap
        self._max_batch_bytes = max_batch_bytes

    def ends(self, topic: str) -> dict[int, int]:
        """Partition -> the offset that the next record will have."""
        with self._consumer() as consumer:
            tps = self._partitions(consumer, topic)
            return {tp.partition: end for tp, end in consumer.end_offsets(tps).items()}

    def begins(self, topic: str) -> dict[int, int]:
        """Partition -> the offset of the oldest record."""
        with self._consumer() as consumer:
            tps = self._partitions(consumer, topic)
            return {tp.partition: end for tp, end in consumer.beginning_offsets(tps).items()}

    def has(self, topic: str) -> bool:
        """Whether there is such a topic."""
        with self._consumer() as consumer:
            return topic in consumer.topics()

    def read(self, topic: str, label: str, first: Mapping[int, int] | None = None) -> Iterator[Any]:
        """All records of a topic that are there now, those of each partition in order.

        `first` has offsets to begin at, by partition; others are read from their beginning. Shows a
        progress bar on a terminal. Raises LogError if the broker stops to answer.
        """
        with self._consumer() as consumer:
            tps = self._partitions(consumer, topic)
            consumer.assign(tps)
            begins, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
            wanted = first or {}
            starts = {tp: min(max(begins[tp], wanted.get(tp.partition, 0)), ends[tp]) for tp in tps}
            for tp, start in starts.items():
                consumer.seek(tp, start)
            total = sum(ends[tp] - starts[tp] for tp in tps)
            behind = {tp for tp in tps if ends[tp] > starts[tp]}
            idle = 0
            with tqdm(total=total, desc=label, unit="rec", disable=None, leave=False) as bar:
                while behind:
                    fetched = consumer.poll(timeout_ms=_POLL_MS, max_records=5000)
                    for tp, records in fetched.items():
                        bar.update(len(records))
                        yield from (record for record in records if record.offset < ends[tp])
                    idle = 0 if fetched else idle + 1
                    if idle > _PATIENCE_POLLS:
                        raise LogError(f"{topic} at {self._bootstrap} gives no more records")
                    behind = {tp for tp in behind if consumer.position(tp) < ends[tp]}

    def committed(self, group: str, topic: str) -> dict[int, int | None]:
        """Partition -> the offset a consumer group goes on from."""
        with self._consumer(group_id=group) as consumer:
            tps = self._partitions(consumer, topic)
            return {tp.partition: consumer.committed(tp) for tp in tps}

    def fingerprint(self, topic: str) -> int:
        """The number by which rows name the topic they were folded from."""
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            (about,) = admin.describe_topics([topic])
        finally:
            admin.close()
        name = f"{about['topic_id']}/{len(about['partitions'])}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    def _consumer(self, **options: Any) -> _Closing:
        bound_batches(self._max_batch_bytes)
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=self._bootstrap,
                enable_auto_commit=False,
                bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
                max_partition_fetch_bytes=4 * 2**20,
                check_crcs=False,  # in Python they take longer than all that is read of the records
                **options,
            )
        except (KafkaError, ValueError, OSError) as error:
            raise LogError(
                f"Kafka at {self._bootstrap} cannot be used: {error!r}; start it, or set "
                "`bootstrap` (--bootstrap) to where it is"
            ) from error
        return _Closing(consumer)

    def _partitions(self, consumer: Any, topic: str) -> list[Any]:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise LogError(f"there is no topic {topic} at {self._bootstrap}; see --prefix, --group")
        return [TopicPartition(topic, number) for number in sorted(numbers)]


class _Closing:
    """Closes a consumer at the end of a block."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def __enter__(self) -> Any:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close(autocommit=False)
