"""Read `user-events` and `items` from Kafka between offsets, outside any consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from export.errors import DriftlineError
from export.kafka_batches import bound_batches
from models.intake import Intake
from models.settings import TrainerSettings

_log = logging.getLogger(__name__)

EVENTS, ITEMS = "user-events", "items"
#: A broker that is not there is given up after so long, at the start.
_BOOTSTRAP_TIMEOUT_MS = 8000

#: topic -> partition -> [from, to)
Offsets = dict[str, dict[str, tuple[int, int]]]


class BrokerError(DriftlineError):
    """Kafka cannot be used."""


class KafkaLog:
    """Feeds an `Intake` with both topics, each from its beginning or from given offsets on.

    `ends` gives for partitions of `user-events` the first offset that is not read any more; then
    reading `is_finished` once all are reached.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        intake: Intake,
        begins: Mapping[int, int] | None = None,
        ends: Mapping[int, int] | None = None,
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._events_topic, self._items_topic = settings.topic(EVENTS), settings.topic(ITEMS)
        self._consumer = self._connect()
        self._assigned = self._partitions()
        self._consumer.assign(self._assigned)
        first = self._consumer.beginning_offsets(self._assigned)
        self.begins: dict[TopicPartition, int] = {}
        for tp in self._assigned:
            wanted = (begins or {}).get(tp.partition, 0) if tp.topic == self._events_topic else 0
            self.begins[tp] = max(first[tp], wanted)
            self._consumer.seek(tp, self.begins[tp])
        self.positions = dict(self.begins)
        self._ends = self.end_offsets() | {
            tp: end
            for tp in self._assigned
            for partition, end in (ends or {}).items()
            if tp.topic == self._events_topic and tp.partition == partition
        }
        self._stops = ends is not None

    def poll(self, timeout_ms: int = 500) -> int:
        """Take what has come; returns how many records that were. A lost broker is waited for."""
        count = 0
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=5000)
        except KafkaError as error:
            _log.warning("cannot read: waiting", extra={"error": str(error)})
            time.sleep(timeout_ms / 1000)
            return 0
        for tp, records in fetched.items():
            take = self._intake.take_event
            if tp.topic == self._items_topic:
                take = self._intake.take_item
            for record in records:
                if self._stops and record.offset >= self._ends[tp]:
                    break
                take(record)
            self.positions[tp] = records[-1].offset + 1
            count += len(records)
        return count

    @property
    def is_finished(self) -> bool:
        """Whether everything is read up to the ends, or up to what was there at the start."""
        return all(self._position(tp) >= end for tp, end in self._ends.items())

    @property
    def wanted(self) -> int:
        """Records between begin and end, at most."""
        return sum(end - self.begins[tp] for tp, end in self._ends.items())

    def lag(self) -> int | None:
        """Records that are there and not read yet; None while the broker does not answer."""
        try:
            return sum(end - self._position(tp) for tp, end in self.end_offsets().items())
        except KafkaError:
            return None

    def end_offsets(self) -> dict[TopicPartition, int]:
        """The next offset that will be written, of every partition."""
        found: dict[TopicPartition, int] = self._consumer.end_offsets(self._assigned)
        return found

    def offsets(self) -> Offsets:
        """What has been read so far, for a release's lineage."""
        read: Offsets = {}
        for tp in self._assigned:
            end = self.positions[tp]
            if self._stops:
                end = min(end, self._ends[tp])
            read.setdefault(tp.topic, {})[str(tp.partition)] = (self.begins[tp], end)
        return read

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def _position(self, tp: TopicPartition) -> int:
        """Markers of transactions and compaction move the position on without a record."""
        position: int = self._consumer.position(tp)
        return position if position > self.positions[tp] else self.positions[tp]

    def _connect(self) -> Any:
        bound_batches(self._settings.max_batch_bytes)
        try:
            return KafkaConsumer(
                bootstrap_servers=self._settings.bootstrap,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
            )
        except (KafkaError, ValueError) as error:
            raise BrokerError(
                f"wanted a Kafka broker at {self._settings.bootstrap}, got: {error}; start it, or "
                "name another with --bootstrap"
            ) from error

    def _partitions(self) -> list[TopicPartition]:
        topics = {}
        for topic in (self._events_topic, self._items_topic):
            topics[topic] = self._consumer.partitions_for_topic(topic)
        missing = [topic for topic, partitions in topics.items() if not partitions]
        if missing:
            self._consumer.close()
            raise BrokerError(
                f"wanted topics {', '.join(topics)} at {self._settings.bootstrap}, got none named "
                f"{', '.join(missing)}; run `driftline topics create`, or check --prefix"
            )
        return [TopicPartition(t, p) for t, found in topics.items() for p in sorted(found)]
