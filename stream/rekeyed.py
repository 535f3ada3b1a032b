"""Send records on that lie under a wrong key or on a wrong partition, so that each counts once.

A worker that dies after it has sent a copy, and before it has stored that it has done the original,
makes another copy. The ring of its user's event ids may have forgotten the first by then. So a copy
says where its original lay, and the state that folds it says, for each partition of originals, up
to which offset their copies are folded.

That is enough because copies arrive in order: those of one partition's originals go to another
partition by their offsets, and each request only when the one before it is acknowledged. So the
copy of a lower offset than one that is there is a repetition.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream.outbox import SendRecords
from stream.partitioner import partitions_of

#: The header of a copy: topic, partition and offset of the original, and which topic of that name.
REKEYED_FROM = "rekeyed-from"

#: A request is no larger, so that it is one batch for the broker: there whole, or not at all.
REQUEST_BYTES = 256 * 1024
#: The most that the record format adds to a copy with its header.
_OVERHEAD_BYTES = 512

#: Keys of the rows that say how far copies are folded begin so; the partition of the originals
#: follows.
_KEY = b"\x00copies-"
_OFFSET = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Misrouted:
    """A record whose key is not its user, or that lies on another partition than its key's."""

    key: bytes  # that it should have
    value: bytes
    partition: int  # where it lies
    offset: int
    sent_ms: int  # the time of its record, which is that of its copy: no later event is made of it


class WithHeaders(Protocol):
    """A record, as far as it is looked at here."""

    headers: Sequence[tuple[str, bytes | None]]


class Originals:
    """Writes and reads the header that names an original of one topic.

    `fingerprint` is that of the topic (stream.history.source_fingerprint): copies of copies, as of
    a topic that was mirrored with its headers, say nothing about this one's offsets.
    """

    def __init__(self, topic: str, fingerprint: int) -> None:
        self._topic, self._which = topic, f"{fingerprint:016x}"
        self._pattern = re.compile(
            re.escape(f"{topic}-").encode() + rb"(\d{1,9}):(\d{1,18})@" + self._which.encode()
        )

    def header(self, partition: int, offset: int) -> tuple[str, bytes]:
        """The header of a copy of the record there."""
        return REKEYED_FROM, f"{self._topic}-{partition}:{offset}@{self._which}".encode()

    def of(self, record: WithHeaders) -> tuple[int, int] | None:
        """Partition and offset of the original; None: this is no copy."""
        for name, value in record.headers:
            if name == REKEYED_FROM and (match := self._pattern.fullmatch(value or b"")):
                return int(match[1]), int(match[2])
        return None


def copies_key(partition: int) -> bytes:
    """Key of the row that says how far the copies of a partition's records are folded."""
    return _KEY + b"%d" % partition


def copies_row(partition: int, offset: int) -> tuple[bytes, bytes]:
    """The row that says: the copies of this partition's records up to this offset are folded."""
    return copies_key(partition), _OFFSET.pack(offset)


def folded_up_to(row: bytes | None) -> int:
    """The offset that such a row says; -1 without a row."""
    return -1 if row is None else int(_OFFSET.unpack(row)[0])


async def send_on(
    misrouted: Sequence[Misrouted],
    originals: Originals,
    partitions: int,
    send_records: SendRecords,
    topic: str,
) -> None:
    """Send the copies of a batch's misrouted records, and wait until all are acknowledged."""
    targets = partitions_of([record.key for record in misrouted], partitions)
    by_target: dict[int, list[Misrouted]] = defaultdict(list)
    for target, record in zip(targets, misrouted, strict=True):
        by_target[target].append(record)

    async def send_to(target: int, records: list[Misrouted]) -> None:
        for part in requests_of(records):
            deliveries = await send_records(
                topic,
                target,
                [(record.key, record.value) for record in part],
                timestamp_ms=[record.sent_ms for record in part],
                headers=[[originals.header(record.partition, record.offset)] for record in part],
            )
            await asyncio.gather(*deliveries)

    await asyncio.gather(*(send_to(target, records) for target, records in by_target.items()))


def requests_of(records: Iterable[Misrouted]) -> Iterator[list[Misrouted]]:
    """The records by partition and offset, in parts of at most REQUEST_BYTES or one record."""
    part: list[Misrouted] = []
    size = 0
    for record in sorted(records, key=lambda record: (record.partition, record.offset)):
        record_bytes = len(record.key) + len(record.value) + _OVERHEAD_BYTES
        if part and size + record_bytes > REQUEST_BYTES:
            yield part
            part, size = [], 0
        part.append(record)
        size += record_bytes
    if part:
        yield part
