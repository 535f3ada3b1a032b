"""Fold a batch of raw records into users' rows: what is in it, what it changes, what it makes due.

Pure: records and stored rows go in, a `FoldedBatch` comes out; nothing is sent or written here.
Events of a user are applied in the order of their offsets, into a history that is ordered by event
time. So the state after an offset depends on the log alone, not on where batches were cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET

from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.statistics import WEIGHT_ONE
from stream.dead_letters import DeadLetter
from stream.events import (
    DEFAULT_SCENARIO,
    UserEvent,
    decode_control_event,
    decode_user_event,
)
from stream.guards import ALL_GUARDS, Guards
from stream.history import (
    HistoryEvent,
    RowLimits,
    UserRow,
    hash32,
    hash64,
    key_beginning,
    split_row_key,
)
from stream.partitioner import partitions_of
from stream.settings import Settings

NOT_A_NUMBER = float("nan")


class Record(Protocol):
    """What is read of a Kafka record."""

    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int


class TopicPartition(Protocol):
    """Where a slice lies."""

    @property
    def partition(self) -> int:
        """The partition's number."""
        ...


class Slice(Protocol):
    """Consecutive records of one partition, in the order of their offsets."""

    @property
    def tp(self) -> TopicPartition:
        """The slice's topic and partition."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """The records, keys and values as raw bytes."""
        ...

    @property
    def behind(self) -> int:
        """Records of the partition that came after these before they were read."""
        ...


#: Reads stored rows: partition and keys in, a row's bytes or None for each key out.
ReadRows = Callable[[int, list[bytes]], list[bytes | None]]


@dataclass(slots=True)
class TouchedUser:
    """A user with at least one event in the batch."""

    key: bytes
    owner: str
    is_known: bool
    tenant: str
    partition: int
    row: UserRow
    is_changed: bool = False
    is_due: bool = False
    reason: Literal["visit", "event", "backfill"] = "event"
    trigger_id: str = ""
    trigger_offset: int = -1
    request_ms: int = 0
    coalesced: int = 0

    @classmethod
    def of_row(cls, key: bytes, partition: int, row: UserRow) -> TouchedUser:
        """A user whose row says that a list is postponed; which event asked for it is not known."""
        tenant, is_known, owner = split_row_key(key)
        return cls(
            key, owner, is_known, tenant, partition, row, reason="backfill", request_ms=row.list_ms
        )

    def answers_also(self, earlier: TouchedUser) -> None:
        """Take over what an earlier list, which was never made, was to answer."""
        self.request_ms = max(self.request_ms, earlier.request_ms)
        self.coalesced += earlier.coalesced
        if earlier.reason == "visit" and self.reason != "visit":
            self.reason = "visit"
            self.trigger_id, self.trigger_offset = earlier.trigger_id, earlier.trigger_offset

    def becomes_due(self, event: UserEvent, offset: int, time_ms: int, is_visit: bool) -> None:
        """Take note of an event that asks for a list; the trigger is a visit, else the newest."""
        self.is_due = True
        self.coalesced += 1
        self.request_ms = max(self.request_ms, time_ms)
        if is_visit or self.reason != "visit":
            self.reason = "visit" if is_visit else "event"
            self.trigger_id, self.trigger_offset = event.event_id, offset


@dataclass(slots=True)
class PartitionDeltas:
    """What the folded events of one partition add to the statistics, one entry an event."""

    offsets: list[int] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    previous: list[Sequence[int]] = field(default_factory=list)
    times_ms: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    def add(
        self, offset: int, item: str, previous: Sequence[int], time_ms: int, weight: int
    ) -> None:
        """Put in one event; `previous` are hashes of the items before it, newest first."""
        self.offsets.append(offset)
        self.items.append(item)
        self.previous.append(previous)
        self.times_ms.append(time_ms)
        self.weights.append(weight)


@dataclass(slots=True)
class Misrouted:
    """A record whose key is not its user, or that lies on another partition than its key's."""

    key: bytes
    value: bytes


@dataclass(slots=True)
class FoldedBatch:
    """Everything a batch changes."""

    users: dict[bytes, TouchedUser] = field(default_factory=dict)
    deltas: dict[int, PartitionDeltas] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    misrouted: list[Misrouted] = field(default_factory=list)
    first_offsets: dict[int, int] = field(default_factory=dict)  # of each partition
    last_offsets: dict[int, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: str, events: int) -> None:
        """So many events ended like this."""
        if events:
            self.counts[outcome] += events


@dataclass(frozen=True, slots=True)
class _Kind:
    """What events of one type do, worked out once."""

    hash: int
    is_visit: bool
    is_kept: bool  # enters the history
    counts: bool  # changes a state or makes a list due
    refreshes: bool
    weight: int  # in sixteenths

    @classmethod
    def of(cls, name: str, role: EventRole) -> _Kind:
        """What a type with this role does."""
        is_kept = role.role in ("positive", "negative")
        return cls(
            hash32(name),
            role.role == "visit",
            is_kept,
            is_kept or role.role == "visit",
            role.refreshes,
            round(role.weight * WEIGHT_ONE) if role.role == "positive" else 0,
        )


#: A valid event with what folding it needs: offset, event, kind, event time in ms, key of its row,
#: record. A plain tuple: there is one for every event.
_Accepted = tuple[int, UserEvent, _Kind, int, bytes, Record]


class Folder:
    """Folds batches of one `user-events` topic.

    `fingerprint` names the topic (stream.history.source_fingerprint): a stored row of another one
    raises RowError. `hash_of_item` is export.items.item_hash or a cache of it.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partitions: int,
        fingerprint: int,
        hash_of_item: Callable[[str], int],
        guards: Guards = ALL_GUARDS,
    ) -> None:
        self._settings = settings
        self._kinds = {
            name: _Kind.of(name, role)
            for name, role in (DEFAULT_EVENT_TYPES | settings.event_types).items()
        }
        self._topic = topic
        self._partitions = partitions
        self._fingerprint = fingerprint
        self._hash_of_item = hash_of_item
        self._guards = guards
        self._limits = RowLimits(settings.max_history, settings.max_taken, settings.dedupe_ring)

    def fold(self, slices: Iterable[Slice], read_rows: ReadRows) -> FoldedBatch:
        """Steps 1 to 3 of a batch: decode and validate, read rows, fold.

        Slices of one partition stand in the order of their offsets.
        """
        batch = FoldedBatch()
        accepted: dict[int, list[_Accepted]] = {}
        for piece in slices:  # 1. decode and validate
            partition = piece.tp.partition
            accepted.setdefault(partition, []).extend(self._accepted(piece, batch))
            batch.first_offsets.setdefault(partition, piece.records[0].offset)
            batch.last_offsets[partition] = piece.records[-1].offset
        for partition, events in accepted.items():
            rows = self._read(partition, events, read_rows)  # 2. read rows
            self._fold_events(events, partition, rows, batch)  # 3. fold
        return batch

    def _accepted(self, piece: Slice, batch: FoldedBatch) -> list[_Accepted]:
        """The events of a slice, after putting down why there are none of some records."""
        events: list[_Accepted] = []
        kinds = self._kinds
        for record in piece.records:
            event = self._decode(record)
            if isinstance(event, str):
                batch.dead_letters.append(self._letter(event, piece.tp.partition, record))
                continue
            is_known = event.user_id is not UNSET
            owner = event.user_id if is_known else event.anonymous_id
            key = owner.encode()  # type: ignore[union-attr]  # _decode refuses events without one
            if record.key != key:
                batch.misrouted.append(Misrouted(key, record.value or b""))
                continue
            kind = kinds.get(event.type)
            if kind is None or not kind.counts:
                batch.counts["ignored" if kind else "unknown_type"] += 1
                continue
            event_ms, sent_ms = event.event_time, record.timestamp
            time_ms = event_ms if event_ms < sent_ms else sent_ms
            row_key = key_beginning(event.tenant, is_known) + key
            events.append((record.offset, event, kind, time_ms, row_key, record))
        return events

    def _letter(self, reason: str, partition: int, record: Record) -> DeadLetter:
        return DeadLetter(reason, self._topic, partition, record.offset, record.key, record.value)

    def _decode(self, record: Record) -> UserEvent | str:
        """The record's event, or why it is refused."""
        if record.value is None:
            return "no value: a user event is never null"
        if record.key is None:
            return "no key: the key of a user event is its user_id, else its anonymous_id"
        if len(record.value) > self._settings.max_event_bytes:
            return f"{len(record.value)} bytes: at most {self._settings.max_event_bytes} are taken"
        try:
            event = decode_user_event(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _is_control(record.value) or str(error)
        if event.user_id is UNSET and event.anonymous_id is UNSET:
            return "neither user_id nor anonymous_id"
        if event.event_time > record.timestamp + self._settings.max_future_ms:
            return (
                f"event_time {event.event_time} is more than {self._settings.max_future_ms} ms "
                "after the record's timestamp"
            )
        if event.item_id is UNSET and (kind := self._kinds.get(event.type)) and kind.is_kept:
            return f"no item_id: an event of type {event.type} is about an item"
        return event

    def _read(
        self, partition: int, events: list[_Accepted], read_rows: ReadRows
    ) -> dict[bytes, UserRow | None]:
        """The rows of the events' users, empty for new ones; None: they do not belong here."""
        users = {key: record.key or b"" for _, _, _, _, key, record in events}
        fingerprint = self._fingerprint
        rows: dict[bytes, UserRow | None] = {}
        new: list[bytes] = []
        for key, data in zip(users, read_rows(partition, list(users)), strict=True):
            if data is not None:
                rows[key] = UserRow.decode(data, fingerprint)
            else:
                new.append(key)
        wanted = partitions_of([users[key] for key in new], self._partitions)
        for key, right_one in zip(new, wanted, strict=True):
            rows[key] = UserRow(fingerprint) if right_one == partition else None
        return rows

    def _fold_events(
        self,
        events: list[_Accepted],
        partition: int,
        rows: dict[bytes, UserRow | None],
        batch: FoldedBatch,
    ) -> None:
        """Fold events that were not applied before; either way their user is touched."""
        users, limits, hash_of_item = batch.users, self._limits, self._hash_of_item
        skips_replays = self._guards.replay_skip
        deltas = PartitionDeltas()
        replayed = visits = duplicates = 0
        for accepted in events:
            offset, event, kind, time_ms, key, _ = accepted
            here = rows[key]  # None: on this partition nothing of the user may be folded
            user = users.get(key) if here is not None else None
            user = user or self._touched(accepted, partition, here, batch)
            if user is None:
                continue
            row = user.row
            if kind.refreshes and _is_home(event):
                user.becomes_due(event, offset, time_ms, kind.is_visit)
            if offset <= row.applied_offset and skips_replays:
                replayed += 1
                continue
            user.is_changed = True
            row.applied_offset = offset
            if kind.is_visit:
                visits += 1
                continue
            event_hash = hash64(event.event_id)
            if event_hash in row.ring and row.has_event(event_hash) and skips_replays:
                duplicates += 1
                continue
            item_id: str = event.item_id  # type: ignore[assignment]  # _decode refuses without one
            previous = row.fold(
                _history_event(event, event_hash, hash_of_item(item_id), time_ms, offset, kind),
                limits,
            )
            deltas.add(offset, item_id, previous, time_ms, kind.weight)
        if deltas.offsets:
            batch.deltas[partition] = deltas
        batch.count("folded", len(deltas.offsets))
        batch.count("replayed", replayed)
        batch.count("visits", visits)
        batch.count("duplicates", duplicates)

    def _touched(
        self, accepted: _Accepted, partition: int, row: UserRow | None, batch: FoldedBatch
    ) -> TouchedUser | None:
        """The user of an event, who had none in the batch before; None: belongs elsewhere."""
        _, event, _, _, key, record = accepted
        if row is None:
            batch.misrouted.append(Misrouted(record.key or b"", record.value or b""))
            return None
        is_known = event.user_id is not UNSET
        user = TouchedUser(key, event.owner() or "", is_known, event.tenant, partition, row)
        batch.users[key] = user
        return user


def _history_event(
    event: UserEvent, event_hash: bytes, item: int, time_ms: int, offset: int, kind: _Kind
) -> HistoryEvent:
    value, portion, session = event.value, event.portion, event.session_id
    return HistoryEvent(
        event_hash,
        item,
        time_ms,
        offset,
        kind.hash,
        NOT_A_NUMBER if value is UNSET else value,
        NOT_A_NUMBER if portion is UNSET else portion,
        0 if session is UNSET else hash32(session),
    )


def _is_home(event: UserEvent) -> bool:
    return event.scenario is UNSET or event.scenario == DEFAULT_SCENARIO


def _is_control(value: bytes) -> str:
    """Why a well-formed control event is refused; empty where it is none."""
    try:
        control = decode_control_event(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return f"not supported yet: control event {control.type}"
