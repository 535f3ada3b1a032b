"""Read an engine's log anew for `verify parity`: sampled lists, events, histories, catalogue.

Plain Python, and nothing of the workers' code. Which records are events is not judged again: what
is on dead-letters is none (`verify fold` checks that).
"""

from __future__ import annotations

import bisect
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.partitioner import murmur2
from tqdm import tqdm

from export.catalogue import attributes_of
from export.errors import DriftlineError
from export.event_types import EventRole

_BOOTSTRAP_TIMEOUT_MS = 5000
_LINKS = 5
_FORGETTING = ("user_delete", "user_opt_out", "history_reset")
#: What a wish of this type is about; see CatalogueVersion.
_SUBJECTS = {"item_block": "item", "category_mute": "category", "creator_block": "creator"}
_MAX_WISHES = 256
_FOR_EVER_MS = 2**63 - 1

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
    previous: tuple[str, ...]


class Wish(NamedTuple):
    """Something that a user does not want listed."""

    subject: str
    target: str
    until_ms: int


class HistoryEntry(NamedTuple):
    """An event in a user's history."""

    time_ms: int
    offset: int
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

    def history(self, user: User, applied_offset: int) -> list[HistoryEntry]:
        """A user's events up to an offset, in the order of their times; all since the user was
        forgotten."""
        begins = [at for at in self.forgotten.get(user, []) if at <= applied_offset]
        after = max(begins, default=-1)
        entries = self.of_user.get(user, [])
        return sorted(entry for entry in entries if after < entry.offset <= applied_offset)

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


def read_log(plan: ParityPlan) -> EventLog:
    """Fold all of user-events and read all of items."""
    refused = _refused(plan)
    log = EventLog()
    fold = LogFold(plan, log, len(_partitions(plan, "user-events")))
    for record in _read(plan, "user-events"):
        if (record.topic, record.partition, record.offset) not in refused:
            fold.take(record)
    for record in _read(plan, "items"):
        if (record.topic, record.partition, record.offset) not in refused:
            log.catalogue.append(_catalogue_version(record))
    return log


def _refused(plan: ParityPlan) -> set[tuple[str, int, int]]:
    found = set()
    for record in _read(plan, "dead-letters"):
        headers = {name: value.decode() for name, value in record.headers}
        found.add((headers["topic"], int(headers["partition"]), int(headers["offset"])))
    return found


class LogFold:
    """Applies events in the order of the log to an EventLog, of a topic of so many partitions."""

    def __init__(self, plan: ParityPlan, log: EventLog, partitions: int) -> None:
        self._plan = plan
        self._log = log
        self._recent: dict[User, list[HistoryEntry]] = {}  # by time, at most max_history
        self._rings: dict[User, list[tuple[str, int]]] = {}  # event id, event time
        self._newest_ms: dict[User, int] = {}
        self._opted_out: set[User] = set()
        self._partitions = partitions

    def take(self, record: Any) -> None:
        """Take the next record of its partition, which is not refused."""
        fields = json.loads(record.value)
        if fields.get("schema") == "driftline.control/1":
            self._take_control(fields, record)
            return
        role = self._plan.roles.get(fields["type"])
        known = "user_id" in fields
        owner = fields["user_id" if known else "anonymous_id"]
        if role is None or role.role not in ("positive", "negative"):
            return
        if record.key != owner.encode() or self._lies_elsewhere(record):
            return
        user = (fields.get("tenant", "default"), known, owner)
        time_ms = min(fields["event_time"], record.timestamp)
        if user in self._opted_out or time_ms < self._horizon_ms(user):
            return
        if self._knows(user, fields["event_id"]):
            return
        self._newest_ms[user] = max(self._newest_ms.get(user, 0), time_ms)
        self._remember(user, fields["event_id"], time_ms)
        entry = HistoryEntry(time_ms, record.offset, fields["item_id"], fields["type"])
        weight = round(16 * role.weight) if role.role == "positive" else 0
        previous = self._insert(user, entry)
        self._log.of_user.setdefault(user, []).append(entry)
        self._log.events.append(
            LoggedEvent(record.partition, entry.offset, entry.item, time_ms, weight, previous)
        )

    def _take_control(self, fields: dict[str, Any], record: Any) -> None:
        user = (fields.get("tenant", "default"), True, fields["user_id"])
        if record.key != fields["user_id"].encode() or self._lies_elsewhere(record):
            return
        if self._knows(user, fields["event_id"]):
            return
        kind, wishes = fields["type"], self._log.wishes.setdefault(user, [])
        now_ms = min(fields["event_time"], record.timestamp)
        if kind in _FORGETTING:
            self._log.forgotten.setdefault(user, []).append(record.offset)
            self._recent.pop(user, None)
        if kind in ("user_delete", "user_opt_out"):
            self._rings.pop(user, None)
            self._newest_ms.pop(user, None)
        if kind == "user_opt_out":
            self._opted_out.add(user)
        elif kind in ("user_delete", "user_opt_in"):
            self._opted_out.discard(user)
        if kind == "user_delete":
            wishes.append((record.offset, []))
        elif kind in _SUBJECTS:
            before = wishes[-1][1] if wishes else []
            wishes.append((record.offset, _with_wish(before, fields, now_ms)))
        self._remember(user, fields["event_id"], max(now_ms, self._newest_ms.get(user, 0)))

    def _knows(self, user: User, event_id: str) -> bool:
        return any(event_id == known for known, _ in self._rings.get(user, []))

    def _remember(self, user: User, event_id: str, time_ms: int) -> None:
        ring = self._rings.setdefault(user, [])
        ring.append((event_id, time_ms))
        del ring[: max(len(ring) - self._plan.dedupe_ring, 0)]
        while ring and ring[0][1] < self._horizon_ms(user):
            del ring[0]

    def _horizon_ms(self, user: User) -> int:
        """Events of before are too late."""
        return self._newest_ms.get(user, 0) - self._plan.max_lateness_ms

    def _insert(self, user: User, entry: HistoryEntry) -> tuple[str, ...]:
        recent = self._recent.setdefault(user, [])
        place = bisect.bisect(recent, entry)
        previous = tuple(e.item for e in reversed(recent[max(place - _LINKS, 0) : place]))
        recent.insert(place, entry)
        del recent[: max(len(recent) - self._plan.max_history, 0)]
        return previous

    def _lies_elsewhere(self, record: Any) -> bool:
        return bool((murmur2(record.key) & 0x7FFFFFFF) % self._partitions != record.partition)


def _with_wish(before: list[Wish], fields: dict[str, Any], now_ms: int) -> list[Wish]:
    """The newest wishes that have not ended, each of one target once."""
    wish = Wish(_SUBJECTS[fields["type"]], fields["target"], fields.get("until", _FOR_EVER_MS))
    others = [other for other in before if other[:2] != wish[:2]]
    return [each for each in (*others, wish) if each.until_ms > now_ms][-_MAX_WISHES:]


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


def _partitions(plan: ParityPlan, name: str) -> list[int]:
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
