"""Feeds records to a Folder as a worker does: reads stored rows, writes back what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka.partitioner import murmur2

from export.items import item_hashes
from stream.folded_batch import FoldedBatch
from stream.guards import ALL_GUARDS, Guards
from stream.history import UserRow, row_key, source_fingerprint
from stream.rekeyed import copies_row
from stream.settings import Settings
from stream.state import Folder

PARTITIONS = 4
FINGERPRINT = source_fingerprint("topic-id", PARTITIONS)
NOW_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Record:
    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = NOW_MS
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True)
class Tp:
    partition: int


@dataclass(frozen=True)
class RecordSlice:
    tp: Tp
    records: Sequence[Record]
    behind: int = 0


def partition_of(key: str) -> int:
    return (murmur2(key.encode()) & 0x7FFFFFFF) % PARTITIONS


def body(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A valid click; fields that are None are left out."""
    event = {
        "event_id": f"event-{number:04d}",
        "type": "click",
        "event_time": NOW_MS - 1000 + number,
        "user_id": "ada",
        "item_id": "item-1",
        **fields,
    }
    return {name: value for name, value in event.items() if value is not None}


def record(offset: int = 0, number: int | None = None, **fields: Any) -> Record:
    """A record of a valid event, keyed as it must be."""
    event = body(offset if number is None else number, **fields)
    key = event.get("user_id", event.get("anonymous_id"))
    return Record(key.encode(), json.dumps(event).encode(), offset)


def control(offset: int, kind: str, user: str = "ada", **fields: Any) -> Record:
    """A record of a control event."""
    wanted = {"schema": "driftline.control/1", "type": kind, "user_id": user, "item_id": None}
    return record(offset, **{"event_id": f"control-{offset:04d}", **wanted, **fields})


@dataclass
class Store:
    """A worker's rows, and what its batches came to."""

    settings: Settings = field(default_factory=Settings)
    guards: Guards = ALL_GUARDS
    rows: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    folder: type[Folder] = Folder

    def read(self, partition: int, keys: list[bytes]) -> list[bytes | None]:
        return [self.rows.get((partition, key)) for key in keys]

    def fold(self, *records: Record, partition: int | None = None) -> FoldedBatch:
        """Fold one batch of one partition, that of the first record's key if not told."""
        if partition is None:
            partition = partition_of((records[0].key or b"").decode(errors="replace"))
        return self.fold_slices([RecordSlice(Tp(partition), records)])

    def fold_slices(self, slices: Sequence[RecordSlice]) -> FoldedBatch:
        folder = self.folder(
            self.settings, "user-events", PARTITIONS, FINGERPRINT, item_hashes, self.guards
        )
        batch = folder.fold(slices, self.read)
        for partition, rows in batch.changed_rows().items():
            self.rows |= {(partition, key): row for key, row in rows if row is not None}
        for partition, copies in batch.copies.items():
            self.rows |= {(partition, k): v for k, v in (copies_row(*c) for c in copies.items())}
        for partition, legs in batch.legs.items():
            self.rows |= {(partition, key): row for key, row in legs}
        return batch

    def row(self, owner: str, tenant: str = "default", is_known: bool = True) -> UserRow:
        key = row_key(tenant, is_known, owner)
        return UserRow.decode(self.rows[partition_of(owner), key], FINGERPRINT)
