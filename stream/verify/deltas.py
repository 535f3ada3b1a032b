"""Compare what is on item-statistics with what the folded events must add."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stream.verify.report import Check
from stream.verify.users import Delta, ExpectedState, without_end

_LINKS = 5
_VERSION = 1


@dataclass(slots=True)
class DeltaTopic:
    """What a reader of item-statistics has, who passes over what is below its watermarks."""

    effective: dict[tuple[int, int], int] = field(default_factory=dict)  # offset -> times
    watermarks: dict[int, int] = field(default_factory=dict)
    first_at_ms: dict[int, int] = field(default_factory=dict)  # partition -> its first record
    first_ends: dict[int, int] = field(default_factory=dict)  # partition -> that one's last offset
    second_begins: dict[int, int] = field(default_factory=dict)  # and the next one's first
    passed_over: int = 0

    def is_in_first_batch(self, partition: int, offset: int) -> bool:
        """Whether an event was in the first batch of all, before which nothing was known.

        Visits between the last delta of that batch and the first one of the next count as in it.
        """
        if self.first_at_ms.get(partition) != min(self.first_at_ms.values(), default=0):
            return False
        end = self.first_ends[partition]
        return offset < max(self.second_begins.get(partition, 0), end + 1)


def check_deltas(records: Iterable[Any], expected: ExpectedState) -> tuple[Check, DeltaTopic]:
    """Each folded event's delta must count once for a reader, and every copy must be right."""
    check = Check("deltas", "events", len(expected.deltas))
    topic = DeltaTopic()
    for record in records:
        try:
            deltas = list(decode(record.value))
        except (ValueError, IndexError, TypeError, struct.error) as error:
            check.miss(f"record {record.partition}/{record.offset} cannot be read: {error}")
            continue
        _note_first_records(topic, record, deltas)
        _read(check, topic, record.partition, deltas, expected)
    for where in expected.deltas.keys() - topic.effective.keys():
        check.lose(f"the delta of the event at {where} counts nowhere")
    for where, times in topic.effective.items():
        if where not in expected.deltas:
            check.miss(f"a delta of {where}, where no event is folded")
        elif times > 1:
            check.repeat(f"the delta of the event at {where} counts {times} times", times - 1)
    if topic.passed_over:
        check.notes.append(f"{topic.passed_over:,} came again after a crash and do not count")
    return check, topic


def _read(
    check: Check,
    topic: DeltaTopic,
    partition: int,
    deltas: list[tuple[int, int, Delta]],
    expected: ExpectedState,
) -> None:
    for source, offset, delta in deltas:
        where = (source, offset)
        if source != partition:
            check.miss(f"the delta of {where} lies on partition {partition}")
        wanted = expected.deltas.get(where)
        if wanted is not None and wanted != delta:
            check.miss(f"the delta of {where}: wanted {wanted}, got {delta}")
        if offset <= topic.watermarks.get(source, -1):
            topic.passed_over += 1
        else:
            topic.effective[where] = topic.effective.get(where, 0) + 1
    for source, offset, _ in deltas:  # a record counts as a whole
        topic.watermarks[source] = max(topic.watermarks.get(source, -1), offset)


def _note_first_records(topic: DeltaTopic, record: Any, deltas: list[Any]) -> None:
    """Records of one batch have one timestamp."""
    if not deltas:
        return
    partition = record.partition
    if record.timestamp == topic.first_at_ms.setdefault(partition, record.timestamp):
        topic.first_ends[partition] = deltas[-1][1]
    else:
        topic.second_begins.setdefault(partition, deltas[0][1])


def decode(data: bytes) -> Iterator[tuple[int, int, Delta]]:
    """Source partition, offset and delta of every entry of a record."""
    version, source, ids, places, offsets, previous, times, weights = msgspec.msgpack.decode(data)
    if version != _VERSION:
        raise ValueError(f"version {version}")
    count = len(offsets) // 8
    links = struct.unpack(f"<{count * _LINKS}Q", previous)
    for at, (place, offset, time_ms, weight) in enumerate(
        zip(
            struct.unpack(f"<{count}I", places),
            struct.unpack(f"<{count}q", offsets),
            struct.unpack(f"<{count}q", times),
            struct.unpack(f"<{count}H", weights),
            strict=True,
        )
    ):
        linked = without_end(links[at * _LINKS : (at + 1) * _LINKS])
        yield source, offset, Delta(ids[place], linked, time_ms, weight)
