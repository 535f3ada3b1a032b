"""Exchange what events add to the live statistics, so that every worker holds the same counts.

The worker that folds an event publishes its deltas on `item-statistics`, on the partition with the
number of the source partition; every worker reads all of them. A record holds the deltas of one
batch as columns. Those of one source partition come in the order of the log, perhaps more than
once; the watermark in `ItemStatistics` makes each count once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from msgspec import Struct

from export.errors import DriftlineError
from export.items import NO_ROW, ItemIndex
from export.statistics import CHAIN_DEPTH, Deltas, ItemStatistics
from stream.deltas import PartitionDeltas
from stream.guards import ALL_GUARDS, Guards

DELTAS_VERSION = 1


class DeltasError(DriftlineError):
    """A record on item-statistics cannot be read."""


class DeltaRecord(Struct, frozen=True, array_like=True):
    """One batch's deltas of one source partition on the wire, in MessagePack.

    Columns are little-endian arrays. `previous` holds item hashes, 0 where there is none: their
    ids stood in earlier records of the same partition.
    """

    version: int
    partition: int
    items: list[str]  # the distinct items
    item_at: bytes  # [N] uint32: place in `items`
    offsets: bytes  # [N] int64
    previous: bytes  # [N, CHAIN_DEPTH] uint64, newest first
    times_ms: bytes  # [N] int64
    weights: bytes  # [N] uint16, sixteenths


_decode = msgspec.msgpack.Decoder(DeltaRecord).decode
_encode = msgspec.msgpack.Encoder().encode


def delta_records(partition: int, deltas: PartitionDeltas, max_bytes: int) -> list[bytes]:
    """One batch's deltas: a record, or several in order where it would be larger than this."""
    data = encode_deltas(partition, deltas)
    half = len(deltas.items) // 2
    if len(data) <= max_bytes or not half:
        return [data]
    halves = deltas.select(slice(0, half)), deltas.select(slice(half, None))
    return [record for part in halves for record in delta_records(partition, part, max_bytes)]


def encode_deltas(partition: int, deltas: PartitionDeltas) -> bytes:
    """The record of these deltas."""
    place: dict[str, int] = {}
    item_at = [place.setdefault(item, len(place)) for item in deltas.items]
    record = DeltaRecord(
        DELTAS_VERSION,
        partition,
        list(place),
        np.array(item_at, dtype="<u4").tobytes(),
        deltas.offsets.astype("<i8").tobytes(),
        deltas.previous.astype("<u8").tobytes(),
        deltas.times_ms.astype("<i8").tobytes(),
        deltas.weights.astype("<u2").tobytes(),
    )
    return _encode(record)


def decode_deltas(data: bytes | None, index: ItemIndex) -> Deltas:
    """The deltas of a record, with rows of `index`; items that were never met get one.

    Raises DeltasError if the bytes are no such record.
    """
    if data is None:
        raise DeltasError("wanted a record of deltas, got none")
    try:
        record = _decode(data)
        if record.version != DELTAS_VERSION:
            raise DeltasError(
                f"wanted deltas of version {DELTAS_VERSION}, got {record.version}: run one version "
                "of driftline on all workers of a group"
            )
        items = index.rows(record.items)[np.frombuffer(record.item_at, dtype="<u4")]
        hashes = np.frombuffer(record.previous, dtype="<u8")
        previous = index.rows_of_hashes(hashes)
        previous[hashes == 0] = NO_ROW
        deltas = Deltas(
            record.partition,
            np.frombuffer(record.offsets, dtype="<i8"),
            items,
            previous.reshape(len(items), CHAIN_DEPTH),
            np.frombuffer(record.times_ms, dtype="<i8"),
            np.frombuffer(record.weights, dtype="<u2").astype(np.int64),
        )
    except (msgspec.MsgspecError, ValueError, IndexError, RecursionError) as error:
        raise DeltasError(f"wanted a record of deltas, got {data[:40]!r}: {error}") from error
    if {len(items), len(deltas.offsets), len(deltas.times_ms), len(deltas.weights)} != {len(items)}:
        raise DeltasError(f"wanted columns of {len(items)} events each, got some longer or shorter")
    return deltas


@dataclass(frozen=True, slots=True)
class StatisticsTopics:
    """Kafka's ids of `user-events` and `item-statistics`."""

    events: str
    deltas: str


class LiveStatistics:
    """This worker's copy of the statistics, and how far it has read the topic they come on.

    `positions` holds the next offset to read of each partition of `item-statistics`, as it was at
    `topics` (None: not known). Without `guards.watermark` deltas that come twice count twice.
    """

    def __init__(
        self,
        statistics: ItemStatistics,
        positions: dict[int, int] | None = None,
        guards: Guards = ALL_GUARDS,
        topics: StatisticsTopics | None = None,
    ) -> None:
        self.statistics = statistics
        self.topics = topics
        self.guards = guards
        self.positions = positions or {}
        self.refused = 0

    def read(self, records: Iterable[tuple[int, int, bytes | None]]) -> None:
        """Apply (partition, offset, value) records in order, but those applied before."""
        batches = []
        for partition, offset, value in records:
            if offset < self.positions.get(partition, 0):
                continue
            self.positions[partition] = offset + 1
            try:
                batches.append(decode_deltas(value, self.statistics.index))
            except DeltasError:
                self.refused += 1
        if batches and self.guards.watermark:
            self.statistics.apply(*batches)
        for deltas in () if self.guards.watermark else batches:
            self._apply_again(deltas)

    def deltas_made_anew(self, topic_id: str) -> None:
        """`item-statistics` was deleted and made anew: it is read from its beginning.

        What was counted stays; a delta that comes again on the new topic is not counted twice.
        """
        self.positions.clear()
        if self.topics is not None:
            self.topics = replace(self.topics, deltas=topic_id)

    def _apply_again(self, deltas: Deltas) -> None:
        """Count deltas whether they were counted before or not."""
        watermark = self.statistics.watermarks.pop(deltas.partition, -1)
        self.statistics.apply(deltas)
        counted = self.statistics.watermarks.get(deltas.partition, -1)
        self.statistics.watermarks[deltas.partition] = max(watermark, counted)

    def wrote(self, records: Iterable[tuple[int, int, bytes]]) -> None:
        """Apply records that this worker wrote itself, without waiting to read them back.

        Only where nothing is missing between what was read and the record: otherwise reading
        gets there by itself.
        """
        self.read(
            (partition, offset, value)
            for partition, offset, value in records
            if offset == self.positions.get(partition, 0)
        )
