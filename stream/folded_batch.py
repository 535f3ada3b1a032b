"""What passes through the folding of a batch: slices of records in, what they change out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stream.dead_letters import DeadLetter
from stream.decoding import Record
from stream.deltas import PartitionDeltas
from stream.history import UserRow, split_row_key
from stream.merge import OwnRecord
from stream.rekeyed import Misrouted


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
    reason: Literal["visit", "event", "backfill", "ttl"] = "event"
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
class FoldedBatch:
    """Everything a batch changes."""

    #: By row key; less those in `rows`.
    users: dict[bytes, TouchedUser] = field(default_factory=dict)
    #: Partition -> row key -> new row, of users of whom nothing else is to be done.
    rows: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    deltas: dict[int, PartitionDeltas] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    misrouted: list[Misrouted] = field(default_factory=list)
    own_records: list[OwnRecord] = field(default_factory=list)
    no_list: list[TouchedUser] = field(default_factory=list)  # the former one is taken away
    no_interests: list[TouchedUser] = field(default_factory=list)
    first_offsets: dict[int, int] = field(default_factory=dict)  # of each partition
    last_offsets: dict[int, int] = field(default_factory=dict)
    #: Partition -> offsets of copies, and of legs of merges, that came before.
    repetitions: dict[int, set[int]] = field(default_factory=dict)
    #: Partition -> partition of originals -> offset up to which their copies are folded.
    copies: dict[int, dict[int, int]] = field(default_factory=dict)
    #: Partition -> rows that say where legs of merges have come.
    legs: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def __contains__(self, key: object) -> bool:
        """Whether the user of a row key has events in the batch, or was put into it."""
        return key in self.users or any(key in rows for rows in self.rows.values())

    def changed_rows(self) -> dict[int, list[tuple[bytes, bytes | None]]]:
        """Partition -> key and value of the users' rows to write."""
        changes: dict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        for partition, rows in self.rows.items():
            changes[partition] += rows.items()
        for user in self.users.values():
            if user.is_changed:
                changes[user.partition].append((user.key, user.row.encode()))
        return changes

    def count(self, outcome: str, events: int) -> None:
        """So many events ended like this."""
        if events:
            self.counts[outcome] += events
