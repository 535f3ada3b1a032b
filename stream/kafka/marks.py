"""Say of which topics a partition's rows are, so that rows of other ones are never gone on with.

A topic that is deleted and made anew has the same name and begins at offset 0: to a worker that
knows only names, the first records of the new one look like records it has done long ago, and what
is left in the new changelog like a whole state. Kafka gives each topic an id of its own; the row
that tells how far the source is applied carries two fingerprints of ids along.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from export.errors import DriftlineError

#: Offset; fingerprints of source and changelog; floor of seq. In the beginning there was only the
#: offset.
_MARK = struct.Struct("<qQQq")
_OFFSET = struct.Struct("<q")

#: A fingerprint that says nothing: the broker tells no ids, or the row is of an older worker.
UNKNOWN = 0

#: Exit code of a worker whose state belongs to another topic. The number of sysexits' EX_CONFIG;
#: starting it again does not help, somebody has to look.
FOREIGN_EXIT_CODE = 78


class ForeignStateError(DriftlineError):
    """State belongs to a topic that is no more; going on with it would lose events silently."""


@dataclass(frozen=True, slots=True)
class TopicMarks:
    """Fingerprints of the source topic and of the changelog as they are now."""

    source: int = UNKNOWN
    changelog: int = UNKNOWN

    def may_be_of_changelog(self, now: TopicMarks) -> bool:
        """Whether both speak of one changelog, as far as is known."""
        return _may_be_same(self.changelog, now.changelog)


@dataclass(frozen=True, slots=True)
class SourceMark:
    """How far the source is applied, and of which topics that speaks.

    `seq_floor`: users who are new here begin above this; it is 0 unless the state was lost and
    built again, when they may have had lists before.
    """

    offset: int
    topics: TopicMarks = TopicMarks()
    seq_floor: int = 0

    @classmethod
    def unpack(cls, packed: bytes) -> SourceMark:
        """Read the value of a table's source row; one of an older worker has the offset alone."""
        if len(packed) == _OFFSET.size:
            return cls(*_OFFSET.unpack(packed))
        offset, source, changelog, seq_floor = _MARK.unpack(packed)
        return cls(offset, TopicMarks(source, changelog), seq_floor)

    def pack(self) -> bytes:
        """The value of a table's source row."""
        return _MARK.pack(self.offset, self.topics.source, self.topics.changelog, self.seq_floor)

    def require_same_topics(self, now: TopicMarks) -> None:
        """Raises ForeignStateError when it is known to speak of other topics."""
        if not _may_be_same(self.topics.source, now.source):
            raise ForeignStateError(SOURCE_REMADE)
        if not self.topics.may_be_of_changelog(now):
            raise ForeignStateError(CHANGELOG_REMADE)


def _may_be_same(known: int, now: int) -> bool:
    return UNKNOWN in (known, now) or known == now


SOURCE_REMADE = (
    "user-events is another topic, or has another partition count, than the one this state was "
    "built from: it was deleted and made anew. Going on would skip its events. To go on with the "
    "new topic stop all workers, delete the changelog and item-statistics, make them anew with "
    "`driftline topics create`, and start the workers: state and statistics are built from the new "
    "topic. See deploy/RUNBOOK.md"
)
CHANGELOG_REMADE = (
    "the changelog was deleted and made anew while workers wrote to it: what it holds is not the "
    "whole state. Stop all workers, delete the changelog once more, make it with `driftline topics "
    "create`, and start the workers: the state is built again from user-events. See "
    "deploy/RUNBOOK.md"
)
