"""Know of which topics the rows of this worker's partitions are, and where `seq` goes on.

State that belongs to a topic that was deleted ends the worker with FOREIGN_EXIT_CODE before it
reads an event: nothing is gone on with silently. State that is gone, as its changelog was deleted,
is built again from the source; the users' lists then begin above every `seq` that was ever sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from stream.history import source_fingerprint
from stream.kafka.fencing import end_process
from stream.kafka.marks import FOREIGN_EXIT_CODE, ForeignStateError, SourceMark, TopicMarks
from stream.kafka.own_rows import Row, source_row
from stream.settings import Settings
from stream.topics import FoundTopics, state_changelog

logger = logging.getLogger(__name__)


class MarkedRows(Protocol):
    """The users' rows, with what they say of themselves."""

    def source_mark(self, partition: int) -> SourceMark | None:
        """How far the source is applied; raises ForeignStateError for other topics' rows."""
        ...


def topic_marks(settings: Settings, found: FoundTopics) -> TopicMarks:
    """The fingerprints of source and changelog."""
    return TopicMarks(
        source_fingerprint(found.ids[settings.topic("user-events")], settings.partitions),
        source_fingerprint(found.ids[state_changelog(settings)], settings.partitions),
    )


class Origin:
    """What the worker's table says of itself, and writes down with every batch.

    `lists_ends` has the end of each partition of `recommendations`: no `seq` there can be higher,
    as each list takes an offset.
    """

    def __init__(
        self,
        rows: MarkedRows,
        topics: TopicMarks,
        lists_ends: dict[int, int],
        end: Callable[[int], None] = end_process,
    ) -> None:
        self._rows = rows
        self._topics = topics
        self._lists_ends = lists_ends
        self._end = end
        self._floors: dict[int, int] = {}

    def source_watermark(self, partition: int) -> int | None:
        """The last source offset the rows contain; ends the process if they are another topic's."""
        try:
            mark = self._rows.source_mark(partition)
        except ForeignStateError as error:
            refuse(error)
            self._end(FOREIGN_EXIT_CODE)
            raise
        return None if mark is None else mark.offset

    def assigned(self, partitions: Iterable[int]) -> None:
        """These partitions are this worker's, and their rows are complete."""
        marks = {partition: self._rows.source_mark(partition) for partition in partitions}
        self._floors = {
            partition: self._lists_ends.get(partition, 0) if mark is None else mark.seq_floor
            for partition, mark in marks.items()
        }

    def seq_floor(self, partition: int) -> int:
        """The `seq` after which the lists of a user who is new here begin."""
        return self._floors.get(partition, 0)

    def source_row(self, partition: int, offset: int) -> Row:
        """The row that says how far the source is applied, of which topics, and the floor."""
        return source_row(offset, self._topics, self.seq_floor(partition))


def refuse(error: ForeignStateError) -> None:
    """Say why this worker ends, and what is to be done."""
    logger.critical("The worker ends without writing: %s", error)
