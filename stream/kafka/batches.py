"""What passes between the consumer and the stream: whole slices of one partition.

Faust hands over one event at a time and pays for each with tasks and futures. A slice costs the
same once for hundreds of records, which is where the batch layer's throughput comes from.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.structs import ConsumerRecord
from faust.types import TP

from export.decompress import MAX_BATCH_BYTES
from export.errors import DriftlineError

#: Exit code of a worker that crashed, or was told to stop, and did not end by itself in time. The
#: number of sysexits' EX_SOFTWARE; a supervisor should start the worker again.
FAILED_EXIT_CODE = 70

#: `source_watermark(partition)`: the last source offset applied to the state; None = none known.
SourceWatermark = Callable[[int], int | None]

#: `on_assigned(partitions)`: numbers of the partitions that this worker has now.
OnAssigned = Callable[[set[int]], None]

#: `fence(changelogs)`: let only this worker write to these partitions; gives the offset of the row
#: that it wrote to each. `release(partitions)`: they are not this worker's any more.
Fence = Callable[[Collection[TP]], Awaitable[Mapping[TP, int]]]
Release = Callable[[Collection[TP]], None]

#: `on_gap(tp, expected_offset, got_offset)`: records from expected to got - 1 cannot be read.
OnGap = Callable[[TP, int, int], None]


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one partition, keys and values as raw bytes, in offset order.

    Never empty. `generation_id` is that of the group when they were fetched, `behind` how many
    records of the partition came after them by then.
    """

    tp: TP
    records: Sequence[ConsumerRecord]
    generation_id: int
    behind: int = 0

    @property
    def first_offset(self) -> int:
        offset: int = self.records[0].offset
        return offset

    @property
    def last_offset(self) -> int:
        offset: int = self.records[-1].offset
        return offset


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How the batch layer reads.

    `batch_topics`: topics delivered as slices; each has one agent with concurrency 1 and is not
        compacted: every offset is expected, and a transaction's end comes as a refused record.
    `source_watermark`: where the state stands; without it only committed offsets count.
    `on_assigned`: told the batch topics' partitions of this worker after every rebalance, when
        their state is restored and before anything is delivered.
    `fence`, `release`: called for changelogs of row tables before it is asked where those of this
        worker end, and for all partitions that it gives back; without, former owners may write on.
    `on_gap`: told of every loss, after it was logged and counted. An exception ends the worker.
    `max_slice_records`: a fetched slice is cut to this, so that `record_batches(max_records)`
        overshoots by less.
    `max_batch_bytes`: a record batch of the batch topics that would become larger is not opened;
        a record that `bounded.refusal_in` knows comes in its place.
    `max_queued_slices`: fetching waits while an agent has so many slices before it.
    `end_within_s`: a worker that crashed, or was told to stop, and has not ended by then is ended
        with FAILED_EXIT_CODE; None leaves that to the caller, for apps inside another process.
    """

    batch_topics: frozenset[str]
    source_watermark: SourceWatermark | None = None
    on_assigned: OnAssigned | None = None
    fence: Fence | None = None
    release: Release | None = None
    on_gap: OnGap | None = None
    max_slice_records: int = 256
    max_batch_bytes: int = MAX_BATCH_BYTES
    max_queued_slices: int = 64
    end_within_s: float | None = 20.0

    def __post_init__(self) -> None:
        for name in ("max_slice_records", "max_batch_bytes", "max_queued_slices"):
            if (value := getattr(self, name)) < 1:
                raise BatchOptionsError(f"{name} must be 1 or more, got {value}")


class BatchOptionsError(DriftlineError):
    """The batch layer cannot run with these options."""


def exit_later(after_s: float) -> threading.Timer:
    """End the process with FAILED_EXIT_CODE after so many seconds, whatever it is doing then."""
    timer = threading.Timer(after_s, os._exit, (FAILED_EXIT_CODE,))
    timer.daemon = True
    timer.start()
    return timer
