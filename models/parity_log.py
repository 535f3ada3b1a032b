"""Read an engine's log anew for `verify parity`: sampled lists, events, histories, catalogue.

Plain Python, and nothing of the workers' code. Which records are events is not judged again: what
is on dead-letters is none (`verify fold` checks that).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from tqdm import tqdm

from export.catalogue import attributes_of
from export.errors import DriftlineError
from export.event_types import EventRole

_BOOTSTRAP_TIMEOUT_MS = 5000

User = tuple[str, bool, str]  # tenant, whether it is a user_id, id


class ParityError(DriftlineError):
    """Lists cannot be compared with the log."""


@dataclass(frozen=True, slots=True)
class ParityPlan:
    """Where an engine is, and its settings that decide what is in its lists."""

    bootstrap: str
    prefix: str
    registry: str
    samples: int
    seed: int
    roles: Mapping[str, EventRole]
    max_history: int
    dedupe_ring: int
    max_lateness_ms: int
    popularity_half_lives_ms: tuple[int, int]
    chain_half_life_ms: int
    neighbours: int
    max_pairs: int


@dataclass(frozen=True, slots=True)
class SampledList:
    """A list as its decision tells it."""

    rec_id: str
    user: User
    partition: int
    applied_offset: int
    request_ms: int
    positions: dict[int, int]  # source partition -> last offset counted
    catalogue: int  # next offset of items
    release: tuple[str, int, str]  # name, version, sha256
    policy: str
    items: tuple[str, ...]
    scores: tuple[float, ...]


class LoggedEvent(NamedTuple):
    """An event that was folded, and the items before it, newest first."""

    partition: int
    offset: int
    item: str
    time_ms: int
    weight: int  # sixteenths
    previous: tuple[str, ...]  # empty for those that came with a merged user


class Wish(NamedTuple):
    """Something that a user does not want listed."""

    subject: str
    target: str
    until_ms: int


class HistoryEntry(NamedTuple):
    """An event in a user's history; a merged one has the offset of what brought it."""

    time_ms: int
    offset: int
    place: int  # among those with the same offset
    item: str
    type: str


@dataclass(slots=True)
class CatalogueVersion:
    """A record of items: what an item is from its offset on."""

    offset: int
    item: str
    attributes: tuple[str, ...]
    is_listable: bool
    is_deleted: bool = False
    subjects: frozenset[tuple[str, str]] = frozenset()  # its categories and creator


@dataclass(slots=True)
class EventLog:
    """All folded events, those of every user, and all records of items."""

    events: list[LoggedEvent] = field(default_factory=list)
    of_user: dict[User, list[HistoryEntry]] = field(default_factory=dict)  # in offset order
    catalogue: list[CatalogueVersion] = field(default_factory=list)
    forgotten: dict[User, list[int]] = field(default_factory=dict)  # offsets
    wishes: dict[User, list[tuple[int, list[Wish]]]] = field(default_factory=dict)  # from offsets
    taken: dict[User, list[tuple[int, str]]] = field(default_factory=dict)  # merged: offset, item

    def history(self, user: User, applied_offset: int) -> list[HistoryEntry]:
        """A user's events up to an offset, in the order of their times; all since the user was
        forgotten."""
        after = self._life_begin(user, applied_offset)
        entries = self.of_user.get(user, [])
        return sorted(entry for entry in entries if after < entry.offset <= applied_offset)

    def taken_before(self, user: User, applied_offset: int) -> list[str]:
        """Items that merged users had taken before what is known of their histories."""
        after = self._life_begin(user, applied_offset)
        return [item for at, item in self.taken.get(user, []) if after < at <= applied_offset]

    def _life_begin(self, user: User, applied_offset: int) -> int:
        return max((at for at in self.forgotten.get(user, []) if at <= applied_offset), default=-1)

    def wishes_at(self, user: User, applied_offset: int) -> list[Wish]:
        """What a user had asked for up to an offset."""
        found = [w for at, w in self.wishes.get(user, []) if at <= applied_offset]
        return found[-1] if found else []


def read_samples(plan: ParityPlan) -> list[SampledList]:
    """Up to `plan.samples` lists drawn evenly from all decisions."""
    rng = random.Random(plan.seed)
    drawn: list[bytes] = []
    for number, record in enumerate(_read(plan, "decisions")):
        if len(drawn) < plan.samples:
            drawn.append(record.value)
        elif (place := rng.randrange(number + 1)) < plan.samples:
            drawn[place] = record.value
    if not drawn:
        raise ParityError(
            f"wanted decisions on {plan.prefix}decisions, got none: serve lists first, "
            "with the setting decisions = true"
        )
    return [_sample(json.loads(value)) for value in drawn]


def _sample(message: dict[str, Any]) -> SampledList:
    known = "user_id" in message
    release = message["release"]
    return SampledList(
        message["rec_id"],
        (message["tenant"], known, message["user_id" if known else "anonymous_id"]),
        message["trigger"]["partition"],
        message["state"]["applied_offset"],
        message["request_time"],
        {int(p): offset for p, offset in message["positions"]["statistics"].items()},
        int(message["positions"]["catalogue"].get("0", 0)),
        (release["name"], release["version"], release["sha256"]),
        message["policy"]["version"],
        tuple(candidate["item_id"] for candidate in message["candidates"]),
        tuple(candidate["score"] for candidate in message["candidates"]),
    )


def sent_items(plan: ParityPlan, wanted: set[str]) -> dict[str, tuple[str, ...]]:
    """rec_id -> items as consumers got them, of those that are still on recommendations."""
    found = {}
    for record in _read(plan, "recommendations"):
        if record.value is not None:
            message = json.loads(record.value)
            if message["rec_id"] in wanted:
                found[message["rec_id"]] = tuple(i["item_id"] for i in message["items"])
    return found


def read_events(plan: ParityPlan) -> Iterator[Any]:
    """All records of user-events that are not on dead-letters, each partition in its order."""
    return _taken(plan, "user-events")


def read_catalogue(plan: ParityPlan) -> list[CatalogueVersion]:
    """All records of items that are not on dead-letters."""
    return [_catalogue_version(record) for record in _taken(plan, "items")]


def _taken(plan: ParityPlan, name: str) -> Iterator[Any]:
    refused = _refused(plan)
    for record in _read(plan, name):
        if (record.topic, record.partition, record.offset) not in refused:
            yield record


def _refused(plan: ParityPlan) -> set[tuple[str, int, int]]:
    found = set()
    for record in _read(plan, "dead-letters"):
        headers = {name: value.decode() for name, value in record.headers}
        found.add((headers["topic"], int(headers["partition"]), int(headers["offset"])))
    return found


def _catalogue_version(record: Any) -> CatalogueVersion:
    if record.value is None:
        name = record.key.decode(errors="replace")
        return CatalogueVersion(record.offset, name, (), False, is_deleted=True)
    item = json.loads(record.value)
    attributes = attributes_of(
        item.get("title", ""),
        item.get("categories", []),
        item.get("tags", []),
        item.get("creator_id", ""),
    )
    is_listable = item.get("available") is not False and item.get("hidden") is not True
    subjects = {("category", name) for name in item.get("categories", [])}
    subjects |= {("creator", item["creator_id"])} if item.get("creator_id") else set()
    return CatalogueVersion(
        record.offset,
        item["item_id"],
        tuple(attributes),
        is_listable,
        subjects=frozenset(subjects),
    )


def partitions_of(plan: ParityPlan, name: str) -> list[int]:
    """The partitions of a topic."""
    consumer = _consumer(plan)
    try:
        return sorted(consumer.partitions_for_topic(plan.prefix + name) or [])
    finally:
        consumer.close(autocommit=False)


def _read(plan: ParityPlan, name: str) -> Iterator[Any]:
    """All records of a topic, with a progress bar on a terminal."""
    topic = plan.prefix + name
    consumer = _consumer(plan)
    try:
        tps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or []]
        if not tps:
            raise ParityError(f"there is no topic {topic} at {plan.bootstrap}; see --prefix")
        consumer.assign(tps)
        begins, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
        consumer.seek_to_beginning(*tps)
        total = sum(ends[tp] - begins[tp] for tp in tps)
        with tqdm(total=total, desc=name, unit="rec", disable=None, leave=False) as bar:
            while any(consumer.position(tp) < ends[tp] for tp in tps):
                for tp, records in consumer.poll(timeout_ms=1000, max_records=5000).items():
                    bar.update(len(records))
                    yield from (record for record in records if record.offset < ends[tp])
    finally:
        consumer.close(autocommit=False)


def _consumer(plan: ParityPlan) -> Any:
    try:
        return KafkaConsumer(
            bootstrap_servers=plan.bootstrap,
            enable_auto_commit=False,
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
            max_partition_fetch_bytes=4 * 2**20,
        )
    except (KafkaError, ValueError, OSError) as error:
        raise ParityError(
            f"Kafka at {plan.bootstrap} cannot be used: {error!r}; start it, or set `bootstrap` "
            "(--bootstrap) to where it is"
        ) from error
