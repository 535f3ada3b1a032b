"""Look at Kafka from outside: broker, topics, the consumer group, and what is live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.errors import KafkaError

from stream.doctor.fence import BROKER_SETTINGS, check_fence
from stream.doctor.findings import Finding
from stream.settings import Settings
from stream.topics import BrokerError, TopicsError, check_topics

_BOOTSTRAP_TIMEOUT_MS = 5000
_POLL_MS = 500
#: Polls in a row without a record after which a partition counts as read.
_PATIENCE_POLLS = 10
#: Events that wait for a group with members before it counts as behind.
_MUCH_LAG = 10_000


class KafkaLook:
    """Reads what is on the broker, as a consumer without a group; never writes."""

    def __init__(self, settings: Settings, admin: Any, consumer: Any) -> None:
        self._settings = settings
        self._admin = admin
        self._consumer = consumer

    def check_broker(self) -> Finding:
        """The cluster answers with its nodes."""
        cluster = self._admin.describe_cluster()
        nodes = len(cluster["brokers"])
        said = f"{self._settings.bootstrap} answers, {nodes} node{'s' * (nodes != 1)}"
        if self._settings.replication_factor > nodes:
            return Finding(
                "broker",
                "warn",
                f"{said}, `replication_factor` is {self._settings.replication_factor}",
                "start more nodes or lower it: topics cannot be created",
            )
        return Finding("broker", "ok", said)

    def check_fence(self) -> Finding:
        """Changelogs can be fenced, and stay it."""
        nodes = [node["broker_id"] for node in self._admin.describe_cluster()["brokers"]]
        wanted = ConfigResource("BROKER", str(nodes[0]), dict.fromkeys(BROKER_SETTINGS, ""))
        try:
            (found,) = self._admin.describe_configs([wanted], config_filter="all")[
                "broker"
            ].values()
        except (KafkaError, KeyError):  # of a broker that is not Kafka
            found = {}
        known = {name: int(found[name]["value"]) for name in BROKER_SETTINGS if name in found}
        has_coordinator = bool(self._consumer.partitions_for_topic("__transaction_state"))
        return check_fence(known, len(nodes), has_coordinator)

    def check_group(self) -> Finding:
        """Workers are members of the group, and it keeps up with user-events."""
        settings = self._settings
        group = settings.prefix + settings.group
        known = {found["group_id"] for found in self._admin.list_groups()}
        lag = self._lag(group) if group in known else 0
        described = self._admin.describe_groups([group])[group] if group in known else {}
        members = len(described.get("members", ()))
        said = f"{group}: {members} member{'s' * (members != 1)}, {lag:,} events behind"
        if not members:
            return Finding("group", "warn", said, "start one: driftline worker")
        state = described.get("group_state", "Stable")
        if state != "Stable":
            advice = "look again in a moment; if it stays so, see the workers' logs"
            return Finding("group", "warn", f"{said}, {state}", advice)
        if lag > _MUCH_LAG:
            return Finding("group", "warn", said, "start more workers, or see their logs")
        return Finding("group", "ok", said)

    def _lag(self, group: str) -> int:
        topic = self._settings.topic("user-events")
        begins, ends = self.bounds(topic)
        offsets = self._admin.list_group_offsets({group: None})[group]
        done = {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == topic}
        return sum(end - max(done.get(p, 0), begins[p]) for p, end in ends.items())

    def bounds(self, topic: str) -> tuple[dict[int, int], dict[int, int]]:
        """(partition -> oldest offset, partition -> end) of a topic."""
        numbers = self._consumer.partitions_for_topic(topic) or ()
        tps = [TopicPartition(topic, number) for number in sorted(numbers)]
        begins, ends = self._consumer.beginning_offsets(tps), self._consumer.end_offsets(tps)
        return (
            {tp.partition: offset for tp, offset in begins.items()},
            {tp.partition: offset for tp, offset in ends.items()},
        )

    def newest(self, topic: str, count: int) -> list[Any]:
        """About `count` of the newest records of a topic, as many of each partition."""
        begins, ends = self.bounds(topic)
        share = -(-count // max(len(ends), 1))
        first = {p: max(begins[p], end - share) for p, end in ends.items() if end > begins[p]}
        tps = {p: TopicPartition(topic, p) for p in first}
        self._consumer.assign(list(tps.values()))
        for partition, tp in tps.items():
            self._consumer.seek(tp, first[partition])
        records: list[Any] = []
        idle = 0
        while idle < _PATIENCE_POLLS and any(
            self._consumer.position(tp) < ends[p] for p, tp in tps.items()
        ):
            found = self._consumer.poll(timeout_ms=_POLL_MS, max_records=5000)
            idle = 0 if found else idle + 1
            for tp, of_partition in found.items():
                records += [r for r in of_partition if r.offset < ends[tp.partition]]
        return records


@contextmanager
def look_at_kafka(settings: Settings) -> Iterator[KafkaLook]:
    """A look at the broker of the settings. Raises KafkaError or OSError where it is not there."""
    admin = KafkaAdminClient(
        bootstrap_servers=settings.bootstrap,
        client_id="driftline-doctor",
        bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
    )
    try:
        consumer = KafkaConsumer(
            bootstrap_servers=settings.bootstrap,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
        )
        try:
            yield KafkaLook(settings, admin, consumer)
        finally:
            consumer.close(autocommit=False)
    finally:
        admin.close()


def check_needed_topics(settings: Settings) -> Finding:
    """All topics are there, with the partition counts and policies they must have."""
    try:
        check_topics(settings)
    except TopicsError as error:
        advice = (
            "`driftline topics create` makes those that are missing; for one that differs set "
            "`partitions` to what it has, or give the engine another `prefix`"
        )
        return Finding("topics", "fail", "; ".join(error.differences), advice)
    except (BrokerError, KafkaError) as error:
        return Finding("topics", "fail", f"the topics cannot be read: {error!r}", "see the broker")
    return Finding("topics", "ok", "all are there and as they must be")
