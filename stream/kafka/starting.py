"""Decide at which offset a source partition is read first: the state says it, not the group alone.

A commit may have run ahead of changelog rows that were lost, or may never have happened.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import faust
from faust.types import TP

from export.errors import DriftlineError
from stream.kafka.marks import ForeignStateError
from stream.kafka.table import RowTable

logger = logging.getLogger(__name__)


class SourceTruncatedError(ForeignStateError):
    """The source ends before what the state has already applied."""


class PartitionsApartError(DriftlineError):
    """A source partition is here and its state is not."""


def start_offset(tp: TP, begin: int, committed: int | None, watermark: int | None) -> int:
    """The smaller of the committed offset and the one after the state's watermark.

    Without a state it is `begin`, where the partition begins; if there is a commit all the same,
    the log says that the state was lost.
    """
    if watermark is not None:
        return watermark + 1 if committed is None else min(committed, watermark + 1)
    if committed is not None:
        logger.error(
            "The group has committed offset %d of %s and there is no state, as if its changelog "
            "was lost: it is built again from the beginning of the source",
            committed,
            tp,
        )
    return begin


def require_source(tp: TP, start: int, end: int) -> None:
    """Raises SourceTruncatedError for a partition that ends before it is to be read."""
    if start > end:
        raise SourceTruncatedError(
            f"{tp} should be read from offset {start}, but ends at {end}: the topic was truncated "
            "or made anew. Restore it; or stop all workers, delete the changelog and "
            "item-statistics, remove the snapshots of the statistics, run `driftline topics "
            "create`, and start the workers (see deploy/RUNBOOK.md)"
        )


def require_state_beside(app: faust.App, partitions: Collection[TP]) -> None:
    """Raises PartitionsApartError if a source partition is here and one of a table's is not."""
    actives = app.assignor.assigned_actives()
    for table in app.tables.values():
        if not isinstance(table, RowTable):
            continue
        for tp in partitions:
            if TP(table.changelog_topic_name, tp.partition) not in actives:
                raise PartitionsApartError(
                    f"{tp} is assigned here and partition {tp.partition} of "
                    f"{table.changelog_topic_name!r} is not: both topics need the same number of "
                    "partitions; create them with the `driftline topics` command"
                )
