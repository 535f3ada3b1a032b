"""Fold a batch of raw records into users' rows: what is in it, what it changes, what it makes due.

Pure: records and stored rows go in, a `FoldedBatch` comes out; nothing is sent or written here.
Events of a user are applied in the order of their offsets, into a history that is ordered by event
time. So the state after an offset depends on the log alone, not on where batches were cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msgspec import UNSET

from stream.control import apply_control, asks_for_list, takes_interests_away, takes_list_away
from stream.dead_letters import DeadLetter
from stream.decoding import CONTROL, EventDecoder, Kind, Record, kinds_of
from stream.events import DEFAULT_SCENARIO, ControlEvent, UserEvent
from stream.guards import ALL_GUARDS, Guards
from stream.history import (
    HistoryEvent,
    RowLimits,
    UserRow,
    hash32,
    id_hash,
    key_beginning,
    split_row_key,
)
from stream.partitioner import partitions_of
from stream.rekeyed import Misrouted, Originals, copies_key, folded_up_to
from stream.settings import Settings

NOT_A_NUMBER = float("nan")
_FOR_EVER_MS = 2**63
NO_OFFSETS: AbstractSet[int] = frozenset()


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
    is_forgotten: bool = False  # in this batch: earlier lists that wait are to answer nothing more

    @classmethod
    def of_row(cls, key: bytes, partition: int, row: UserRow) -> TouchedUser:
        """A user whose row says that a list is postponed; which event asked for it is not known."""
        tenant, is_known, owner = split_row_key(key)
        return cls(
            key, owner, is_known, tenant, partition, row, reason="backfill", request_ms=row.list_ms
        )

    def answers_also(self, earlier: TouchedUser) -> None:
        """Take over what an earlier list, which was never made, was to answer."""
        if self.is_forgotten:
            return
        self.request_ms = max(self.request_ms, earlier.request_ms)
        self.coalesced += earlier.coalesced
        if earlier.reason == "visit" and self.reason != "visit":
            self.reason = "visit"
            self.trigger_id, self.trigger_offset = earlier.trigger_id, earlier.trigger_offset

    def becomes_due(self, event_id: str, offset: int, time_ms: int, is_visit: bool) -> None:
        """Take note of an event that asks for a list; the trigger is a visit, else the newest."""
        self.is_due = True
        self.coalesced += 1
        self.request_ms = max(self.request_ms, time_ms)
        if is_visit or self.reason != "visit":
            self.reason = "visit" if is_visit else "event"
            self.trigger_id, self.trigger_offset = event_id, offset

    def is_no_longer_due(self) -> None:
        """What asked for a list up to now is forgotten."""
        self.is_due, self.is_forgotten = False, True
        self.reason, self.trigger_id, self.trigger_offset = "event", "", -1
        self.request_ms = self.coalesced = 0


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
class FoldedBatch:
    """Everything a batch changes."""

    users: dict[bytes, TouchedUser] = field(default_factory=dict)
    deltas: dict[int, PartitionDeltas] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    misrouted: list[Misrouted] = field(default_factory=list)
    no_list: list[TouchedUser] = field(default_factory=list)  # the former one is taken away
    no_interests: list[TouchedUser] = field(default_factory=list)
    first_offsets: dict[int, int] = field(default_factory=dict)  # of each partition
    last_offsets: dict[int, int] = field(default_factory=dict)
    #: Partition -> offsets of copies there that came before.
    repetitions: dict[int, set[int]] = field(default_factory=dict)
    #: Partition -> partition of originals -> offset up to which their copies are folded.
    copies: dict[int, dict[int, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: str, events: int) -> None:
        """So many events ended like this."""
        if events:
            self.counts[outcome] += events


#: A valid event with what folding it needs: offset, event, kind, event time in ms, key of its row,
#: record. A plain tuple: there is one for every event.
_Accepted = tuple[int, UserEvent | ControlEvent, Kind, int, bytes, Record]


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
        self._kinds = kinds_of(settings)
        self._decode = EventDecoder(settings, self._kinds).decode
        self._topic = topic
        self._partitions = partitions
        self._fingerprint = fingerprint
        self._hash_of_item = hash_of_item
        self._guards = guards
        self.originals = Originals(topic, fingerprint)
        self._limits = RowLimits(
            settings.max_history,
            settings.max_taken,
            settings.dedupe_ring,
            settings.max_lateness_ms,
        )
        self._max_lateness_ms = settings.max_lateness_ms if guards.lateness else _FOR_EVER_MS

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
            self._tell_copies(partition, events, rows, read_rows, batch)
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
            is_control = isinstance(event, ControlEvent)
            is_known = event.user_id is not UNSET
            owner = event.user_id if is_known else event.anonymous_id  # type: ignore[union-attr]
            key = owner.encode()  # type: ignore[union-attr]  # events without one are refused
            if record.key != key:
                value, where = record.value or b"", piece.tp.partition
                batch.misrouted.append(Misrouted(key, value, where, record.offset))
                continue
            kind = CONTROL if is_control else kinds.get(event.type)
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

    def _tell_copies(
        self,
        partition: int,
        events: list[_Accepted],
        rows: dict[bytes, UserRow | None],
        read_rows: ReadRows,
        batch: FoldedBatch,
    ) -> None:
        """Tell which copies of misrouted records came before, and how far they come with these."""
        copies = [
            (offset, original)
            for offset, _, _, _, key, record in events
            if record.headers and rows[key] is not None and (original := self.originals.of(record))
        ]
        if not copies:
            return
        sources = sorted({source for _, (source, _) in copies})
        kept = read_rows(partition, [copies_key(source) for source in sources])
        known = {source: folded_up_to(row) for source, row in zip(sources, kept, strict=True)}
        again = batch.repetitions.setdefault(partition, set())
        for offset, (source, original_offset) in copies:
            if original_offset <= known[source]:
                again.add(offset)
            else:
                known[source] = original_offset
        batch.copies[partition] = known

    def _fold_events(
        self,
        events: list[_Accepted],
        partition: int,
        rows: dict[bytes, UserRow | None],
        batch: FoldedBatch,
    ) -> None:
        """Fold events that were not applied before; either way their user is touched.

        An event that is too far behind its user's newest one is passed over, and makes nothing due.
        Whether an event that is read again was, its row does not tell: its user gets a list.
        """
        users, limits, hash_of_item = batch.users, self._limits, self._hash_of_item
        skips_replays, max_lateness_ms = self._guards.replay_skip, self._max_lateness_ms
        repetitions = batch.repetitions.get(partition, NO_OFFSETS)
        deltas = PartitionDeltas()
        replayed = visits = duplicates = late = 0
        for accepted in events:
            offset, event, kind, time_ms, key, _ = accepted
            here = rows[key]  # None: on this partition nothing of the user may be folded
            user = users.get(key) if here is not None else None
            user = user or self._touched(accepted, partition, here, batch)
            if user is None:
                continue
            row = user.row
            if isinstance(event, ControlEvent) or offset <= row.silent_until:
                self._fold_beside(accepted, user, batch)
                continue
            is_replayed = offset <= row.applied_offset and skips_replays
            is_late = time_ms < row.newest_ms - max_lateness_ms and kind.is_kept
            if kind.refreshes and (is_replayed or not is_late) and _is_home(event):
                user.becomes_due(event.event_id, offset, time_ms, kind.is_visit)
            if is_replayed:
                replayed += 1
                continue
            user.is_changed = True
            row.applied_offset = offset
            if kind.is_visit:
                visits += 1
                continue
            if is_late:
                late += 1
                continue
            event_hash = id_hash(event.event_id)
            is_known = (event_hash in row.ring or row.has_old_ids) and row.has_event(
                event.event_id, event_hash
            )
            if (is_known or offset in repetitions) and skips_replays:
                duplicates += 1
                continue
            item_id: str = event.item_id  # type: ignore[assignment]  # refused without one
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
        batch.count("late", late)

    def _fold_beside(self, accepted: _Accepted, user: TouchedUser, batch: FoldedBatch) -> None:
        """Take what does not enter the history: control events, and events that make nothing due
        as they came before their user was forgotten, or while the user had opted out."""
        offset, event, _, time_ms, _, _ = accepted
        row, skips_replays = user.row, self._guards.replay_skip
        control = event if isinstance(event, ControlEvent) else None
        if control and asks_for_list(control) and offset > row.silent_until:
            user.becomes_due(event.event_id, offset, time_ms, is_visit=False)
        if offset <= row.applied_offset and skips_replays:
            batch.counts["replayed"] += 1
            return
        user.is_changed = True
        row.applied_offset = offset
        if control is None:
            batch.counts["opted_out"] += 1
        elif skips_replays and (
            row.has_event(event.event_id, id_hash(event.event_id))
            or offset in batch.repetitions.get(user.partition, NO_OFFSETS)
        ):
            batch.counts["duplicates"] += 1
        else:
            batch.counts["control"] += 1
            self._control(control, user, time_ms, offset, batch)

    def _control(
        self, event: ControlEvent, user: TouchedUser, time_ms: int, offset: int, batch: FoldedBatch
    ) -> None:
        """Do what a control event asks for the first time."""
        apply_control(user.row, event, time_ms, offset, self._limits)
        if takes_interests_away(event):
            batch.no_interests.append(user)
        if takes_list_away(event):
            user.is_no_longer_due()
            batch.no_list.append(user)

    def _touched(
        self, accepted: _Accepted, partition: int, row: UserRow | None, batch: FoldedBatch
    ) -> TouchedUser | None:
        """The user of an event, who had none in the batch before; None: belongs elsewhere."""
        offset, event, _, _, key, record = accepted
        owner = record.key or b""
        if row is None:
            batch.misrouted.append(Misrouted(owner, record.value or b"", partition, offset))
            return None
        is_known = event.user_id is not UNSET
        user = TouchedUser(key, owner.decode(), is_known, event.tenant, partition, row)
        batch.users[key] = user
        return user


def _history_event(
    event: UserEvent, event_hash: bytes, item: int, time_ms: int, offset: int, kind: Kind
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
