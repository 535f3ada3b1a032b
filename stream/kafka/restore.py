"""Applies changelog rows, a slice in one RocksDB write, in the place of Faust's one at a time.

Faust's recovery decides which changelogs are read, from where, and when they are complete; this
keeps its books. The last row of a slice and its offset are on disk together, so that a recovery
that is interrupted goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from aiokafka.structs import ConsumerRecord
from faust.tables.manager import TableManager
from faust.types import TP

from stream.kafka.table import RowTable

#: Changelog rows in one RocksDB write: some milliseconds, so that the event loop is not kept. The
#: more there are, the more of them are older rows of a key, which need not be written.
RESTORE_ROWS = 2048


async def restore(
    tables: TableManager, tp: TP, records: Sequence[ConsumerRecord], is_flowing: Callable[[], bool]
) -> bool:
    """Apply changelog records of a row table; end the recovery when they were the last.

    Rows already applied are left out. Returns: False when the flow was stopped in between; what
    is left then has to be read again.
    """
    offsets = restored_offsets(tables, tp)
    if offsets is None:
        return True  # not ours any more
    table: RowTable = tables._changelogs[tp.topic]
    applied = offsets.get(tp)
    if applied is not None and records[0].offset <= applied:
        records = [record for record in records if record.offset > applied]
    for start in range(0, len(records), RESTORE_ROWS):
        if not is_flowing():
            return False
        rows = records[start : start + RESTORE_ROWS]
        table.restore(tp.partition, rows)
        offsets[tp] = rows[-1].offset
        await asyncio.sleep(0)
    _tell_recovery(tables, tp)
    return True


def begin_recovery(tables: TableManager) -> None:
    """Forget that an earlier recovery has ended.

    Faust does so within five seconds, as its own reader of changelogs waits no longer for a row. It
    would take partitions that come sooner for recovered, without a row.
    """
    tables.recovery.signal_recovery_end.clear()


def drop_if_ahead(tables: TableManager, tp: TP, end: int) -> None:
    """Drop a copy on disk that has rows beyond the offset at which its changelog ended.

    The brokers have lost them, as where all lose power before the rows are on their disks. Who
    takes the partition next, without this copy, would not have them; so they are folded again.
    """
    offsets = restored_offsets(tables, tp)
    applied = None if offsets is None else offsets.get(tp)
    if offsets is not None and applied is not None and applied >= end:
        table: RowTable = tables._changelogs[tp.topic]
        table.drop(
            tp.partition, f"it has rows up to {applied}, which its changelog has lost from {end} on"
        )
        offsets[tp] = None


def pass_over(tables: TableManager, tp: TP, offset: int) -> None:
    """Take note of a row of the fence that this worker has written itself, if it has all before it:
    so a start with nothing else to be read need not read."""
    offsets = restored_offsets(tables, tp)
    if offsets is None or offset - 1 != (-1 if offsets.get(tp) is None else offsets[tp]):
        return
    table: RowTable = tables._changelogs[tp.topic]
    table.write(tp.partition, [], offset)
    offsets[tp] = offset


def restored_offsets(tables: TableManager, tp: TP) -> dict[TP, int | None] | None:
    """Where Faust notes how far changelogs like this one are applied; None = it is not ours."""
    recovery = tables.recovery
    offsets: dict[TP, int | None] | None = None
    if tp in recovery.active_tps:
        offsets = recovery.active_offsets
    elif tp in recovery.standby_tps:
        offsets = recovery.standby_offsets
    return offsets


def _tell_recovery(tables: TableManager, tp: TP) -> None:
    recovery = tables.recovery
    if tp in recovery.active_tps:
        recovery._active_events_received_at[tp] = monotonic()
    if recovery.in_recovery and not recovery.need_recovery():
        recovery.signal_recovery_end.set()
    elif not tables.standbys_ready and not recovery.standby_remaining_total():
        tables.on_standbys_ready()
