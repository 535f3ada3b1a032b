"""State knows its topics: what belongs to others is refused, and `seq` goes on above what was."""

from __future__ import annotations

import struct

import pytest
from folding import RecordSlice, Tp, record
from hypothesis import given
from hypothesis import strategies as st

from export.items import item_hash
from stream.kafka.marks import (
    FOREIGN_EXIT_CODE,
    UNKNOWN,
    ForeignStateError,
    SourceMark,
    TopicMarks,
)
from stream.kafka.own_rows import source_row
from stream.origin import Origin
from stream.settings import Settings
from stream.state import Folder

fingerprints = st.integers(0, 2**64 - 1)
NOW = TopicMarks(source=11, changelog=22)


@given(st.integers(-1, 2**62), fingerprints, fingerprints, st.integers(0, 2**62))
def test_a_mark_is_read_as_it_was_written(offset, source, changelog, floor):
    mark = SourceMark(offset, TopicMarks(source, changelog), floor)

    assert SourceMark.unpack(mark.pack()) == mark


def test_a_mark_of_an_older_worker_tells_the_offset_and_no_topics():
    mark = SourceMark.unpack(struct.pack("<q", 41))

    assert mark == SourceMark(41, TopicMarks(UNKNOWN, UNKNOWN), 0)
    mark.require_same_topics(NOW)


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        (TopicMarks(12, 22), "user-events is another topic"),
        (TopicMarks(11, 23), "the changelog was deleted and made anew"),
        (TopicMarks(12, 23), "user-events is another topic"),
    ],
)
def test_a_mark_of_other_topics_is_refused_with_what_to_do(topics, message):
    with pytest.raises(ForeignStateError, match=message) as raised:
        SourceMark(5, topics).require_same_topics(NOW)

    assert "driftline topics create" in str(raised.value)


def test_where_the_broker_tells_no_ids_nothing_is_refused():
    SourceMark(5, TopicMarks(12, 23)).require_same_topics(TopicMarks())
    SourceMark(5, TopicMarks()).require_same_topics(NOW)


class Rows:
    """Marks by partition, of which some are another topic's."""

    def __init__(self, **marks: SourceMark) -> None:
        self._marks = {int(name[1:]): mark for name, mark in marks.items()}

    def source_mark(self, partition: int) -> SourceMark | None:
        mark = self._marks.get(partition)
        if mark is not None:
            mark.require_same_topics(NOW)
        return mark


def test_state_of_another_topic_ends_the_process_before_anything_is_read():
    ended: list[int] = []
    rows = Rows(p0=SourceMark(5, NOW), p1=SourceMark(5, TopicMarks(12, 22)))
    origin = Origin(rows, NOW, {}, ended.append)

    assert origin.source_watermark(0) == 5
    assert origin.source_watermark(2) is None
    assert ended == []
    with pytest.raises(ForeignStateError):
        origin.source_watermark(1)
    assert ended == [FOREIGN_EXIT_CODE]


def test_without_state_seq_begins_above_all_lists_and_stays_there_after_a_restart():
    origin = Origin(Rows(), NOW, {0: 70, 1: 0})
    origin.assigned([0, 1])
    assert (origin.seq_floor(0), origin.seq_floor(1)) == (70, 0)

    key, packed = origin.source_row(0, 9)

    assert (key, packed) == source_row(9, NOW, 70)
    again = Origin(Rows(p0=SourceMark.unpack(packed)), NOW, {0: 5000})
    again.assigned([0])
    assert again.seq_floor(0) == 70


def test_who_is_new_begins_at_the_floor():
    settings = Settings(partitions=1)

    def hashes_of(items: list[str]) -> list[int]:
        return [item_hash(item) for item in items]

    folder = Folder(settings, "user-events", 1, 11, hashes_of, seq_floor=lambda partition: 70)
    click = record(0, user_id="ada", event_id="event-000000")

    batch = folder.fold([RecordSlice(Tp(0), [click], 0)], lambda _, keys: [None for _ in keys])

    assert [user.row.seq for user in batch.users.values()] == [70]
