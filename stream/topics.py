"""Say which topics the engine needs, create them, and check that they are as they must be.

Nothing here changes a topic that is there: a partition count decides where every user's events
lie, and changing it would tear state and events apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import ConfigResource, KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError

from export.errors import DriftlineError
from stream.settings import Settings

#: The users' rows; the name of its changelog follows from it.
STATE_TABLE = "user-state"
_FOREVER = "-1"
#: Kafka compacts no segment that is written to: at its gigabyte a recovery would read most rows
#: many times over.
_ROWS_SEGMENT_BYTES = 64 * 2**20
#: How old a record may be when it is sent, in milliseconds (Kafka 3.6 or newer).
_OLDEST = "message.timestamp.before.max.ms"
_UNLIMITED = 2**63 - 1
#: Without an answer by then Kafka counts as not there.
_BOOTSTRAP_TIMEOUT_MS = 5000


class TopicsError(DriftlineError):
    """Topics are missing or not as they must be; the message lists every difference."""

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.differences = list(differences)


class BrokerError(DriftlineError):
    """Kafka cannot be reached, or refused what was asked."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it must be."""

    name: str
    partitions: int
    configs: dict[str, str]


def fenced_beside(settings: Settings) -> list[str]:
    """Topics of which each partition has one writer, the owner of that number's state, and in which
    the newest record of a key counts."""
    return [settings.topic("recommendations"), settings.topic("interests")]


@dataclass(frozen=True, slots=True)
class FoundTopics:
    """Topics that are as they must be.

    `ids`: full name -> the id that Kafka gave it, another one when it is made anew.
    `lists_ends`: partition of `recommendations` -> its end.
    """

    ids: Mapping[str, str]
    lists_ends: dict[int, int]


def state_changelog(settings: Settings) -> str:
    """The changelog of the users' rows."""
    return f"{settings.prefix}{settings.group}-{STATE_TABLE}-changelog"


def required_topics(settings: Settings) -> list[TopicSpec]:
    """All topics of an engine with these settings."""
    keep = {"retention.ms": str(settings.retention_ms)}
    delete = {"cleanup.policy": "delete", **keep}
    compact = {"cleanup.policy": "compact"}
    both = {"cleanup.policy": "compact,delete", **keep}
    forever = {"cleanup.policy": "delete", "retention.ms": _FOREVER}
    rows = {**compact, "segment.bytes": str(_ROWS_SEGMENT_BYTES)}
    of_users = settings.partitions
    return [
        TopicSpec(settings.topic(name), partitions, configs)
        for name, partitions, configs in (
            ("user-events", of_users, delete),
            ("items", 1, compact),
            ("recommendations", of_users, both),
            ("trending", 1, compact),
            ("interests", of_users, compact),
            ("decisions", of_users, delete),
            ("item-statistics", of_users, delete),
            ("model-releases", 1, compact),
            ("release-log", 1, forever),
            ("dead-letters", 1, delete),
        )
    ] + [TopicSpec(state_changelog(settings), of_users, rows)]


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing; returns their names.

    Raises TopicsError if one that is there differs, BrokerError if Kafka cannot be used.
    """
    with _admin(settings) as admin:
        present = _describe(admin)
        missing = [spec for spec in required_topics(settings) if spec.name not in present]
        _create(admin, settings, missing)
    check_topics(settings)
    return [spec.name for spec in missing]


def create_topic(settings: Settings, spec: TopicSpec) -> None:
    """Create one topic that is missing, of those that not every engine has.

    Raises BrokerError if Kafka cannot be used.
    """
    with _admin(settings) as admin:
        if spec.name not in _describe(admin):
            _create(admin, settings, [spec])


def _create(admin: Any, settings: Settings, specs: list[TopicSpec]) -> None:
    if specs:
        admin.create_topics(
            {
                spec.name: {
                    "num_partitions": spec.partitions,
                    "replication_factor": settings.replication_factor,
                    "configs": spec.configs,
                }
                for spec in specs
            },
            wait_for_metadata=True,
        )


def check_topics(settings: Settings) -> str:
    """See that all topics are as they must be; returns the topic id of user-events.

    Raises as `find_topics` does.
    """
    with _admin(settings) as admin:
        return _checked_ids(admin, settings)[settings.topic("user-events")]


def find_topics(settings: Settings) -> FoundTopics:
    """See that all topics are as they must be, and which they are.

    Raises TopicsError listing every difference, BrokerError if Kafka cannot be used.
    """
    with _admin(settings) as admin:
        ids = _checked_ids(admin, settings)
        lists = settings.topic("recommendations")
        tps = [TopicPartition(lists, partition) for partition in range(settings.partitions)]
        ends = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.LATEST))
    return FoundTopics(ids, {tp.partition: at.offset for tp, at in ends.items()})


def topic_ids(admin: Any, names: Sequence[str]) -> dict[str, str]:
    """Name -> id of the topics that are there, of these."""
    wanted = set(names)
    return {
        topic["name"]: _id_of(topic)
        for topic in admin.describe_topics(list(names))
        if topic["name"] in wanted and not topic["error_code"]
    }


def _checked_ids(admin: Any, settings: Settings) -> dict[str, str]:
    present = _describe(admin)
    specs = required_topics(settings)
    wrong = list(_differences(admin, specs, present))
    if wrong:
        raise TopicsError(
            "\n".join(
                [
                    f"The topics at {settings.bootstrap} are not as they must be:",
                    *wrong,
                    "Missing ones are made by `driftline topics create`. One that differs stays as "
                    "it is: set `partitions` to what it has, or give the engine another `prefix`.",
                ]
            ),
            [line.strip() for line in wrong],
        )
    return {spec.name: _id_of(present[spec.name]) for spec in specs}


def _id_of(topic: dict[str, Any]) -> str:
    """The topic's id; of a broker that gives none always the same one."""
    return str(topic.get("topic_id") or uuid.UUID(int=0))


def _differences(
    admin: Any, specs: list[TopicSpec], present: dict[str, dict[str, Any]]
) -> Iterator[str]:
    there = [spec for spec in specs if spec.name in present]
    yield from (f"  {spec.name}: missing" for spec in specs if spec.name not in present)
    configs = _configs(admin, [spec.name for spec in there])
    for spec in there:
        config = configs.get(spec.name, {})
        count = len(present[spec.name]["partitions"])
        if count != spec.partitions:
            yield f"  {spec.name}: wanted {spec.partitions} partitions, got {count}"
        wanted = set(spec.configs["cleanup.policy"].split(","))
        policy = config.get("cleanup.policy")
        if policy and (got := set(policy.replace(" ", "").split(","))) != wanted:
            yield (
                f"  {spec.name}: wanted cleanup.policy {','.join(sorted(wanted))}, "
                f"got {','.join(sorted(got))}"
            )
        oldest = config.get(_OLDEST)
        if oldest and int(oldest) < _UNLIMITED:
            yield (
                f"  {spec.name}: wanted no limit of {_OLDEST}, got {oldest}: what a worker sends "
                "there is as old as what it follows from, and would be refused"
            )


def _configs(admin: Any, names: list[str]) -> dict[str, dict[str, str]]:
    """Topic -> its settings and their values, as far as the broker tells."""
    if not names:
        return {}
    resources = [ConfigResource("TOPIC", name) for name in names]
    found = admin.describe_configs(resources, config_filter="all")
    configs: dict[str, dict[str, str]] = {}
    for of_type in found.values():
        for topic, settings in of_type.items():
            values = {
                name: setting.get("value") if isinstance(setting, dict) else setting
                for name, setting in settings.items()
            }
            configs[topic] = {name: str(value) for name, value in values.items() if value}
    return configs


def _describe(admin: Any) -> dict[str, dict[str, Any]]:
    return {topic["name"]: topic for topic in admin.describe_topics()}


@contextmanager
def _admin(settings: Settings) -> Iterator[Any]:
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=settings.bootstrap,
            client_id="driftline-admin",
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
        )
    except (KafkaError, ValueError, OSError) as error:
        raise BrokerError(_unreachable(settings, error)) from error
    try:
        yield admin
    except KafkaError as error:
        raise BrokerError(_unreachable(settings, error)) from error
    finally:
        admin.close()


def _unreachable(settings: Settings, error: Exception) -> str:
    return (
        f"Kafka at {settings.bootstrap} cannot be used: {error or type(error).__name__}. "
        "Start it, or set `bootstrap` (DRIFTLINE_BOOTSTRAP, --bootstrap) to where it is."
    )
