"""Compare what is on item-statistics with what the folded events must add."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stream.verify.report import Check
from stream.verify.users import Delta, ExpectedState

_LINKS = 5
_VERSION = 1


@dataclass(slots=True)
class DeltaTopic:
    """What a reader of item-statistics has, who passes over what is below its watermarks."""

    effective: dict[tuple[int, int], int] = field(default_factory=dict)  # offset -> times
    watermarks: dict[int, int] = field(default_factory=dict)
    first_batch: dict[int, int] = field(default_factory=dict)  # partition -> last offset
    first_at_ms: int = 0
    passed_over: int = 0


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
        _note_first_batch(topic, record, deltas)
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


def _note_first_batch(topic: DeltaTopic, record: Any, deltas: list[Any]) -> None:
    """The first batch of all is ranked before anything is known: its lists may be empty."""
    if not topic.first_at_ms or record.timestamp < topic.first_at_ms:
        topic.first_batch.clear()
        topic.first_at_ms = record.timestamp
    if record.timestamp == topic.first_at_ms and deltas:
        topic.first_batch[record.partition] = deltas[-1][1]


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
        linked = tuple(link for link in links[at * _LINKS : (at + 1) * _LINKS] if link)
        yield source, offset, Delta(ids[place], linked, time_ms, weight)
