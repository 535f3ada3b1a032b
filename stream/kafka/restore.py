"""Applies changelog rows, a slice in one RocksDB write, in the place of Faust's one at a time.

Faust's recovery decides which changelogs are read, from where, and when they are complete; this
keeps its books. The last row of a slice and its offset are on disk together, so that a recovery
that is interrupted goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from aiokafka.structs import ConsumerRecord
from faust.tables.manager import TableManager
from faust.tables.recovery import ServiceStopped
from faust.types import TP

from export.errors import DriftlineError
from stream.kafka.table import RowTable

#: Changelog rows in one RocksDB write: some milliseconds, so that the event loop is not kept. The
#: more there are, the more of them are older rows of a key, which need not be written.
RESTORE_ROWS = 2048

#: The offset that Faust takes for no row at all. None would do as well until it is first compared.
_NOTHING = -1


class RecoveryTimeoutError(DriftlineError):
    """A step of a recovery took too long."""


def end_with_late_steps(recovery: Any) -> None:
    """Let a step that takes too long end the worker.

    Faust takes it for a stop: its loop ends without a word, and no recovery is ever begun again.
    """
    wait = recovery._wait

    async def wait_or_raise(step: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            await wait(step, timeout=timeout)
        except ServiceStopped:
            if recovery.should_stop:
                raise
            raise RecoveryTimeoutError(
                f"wanted a step of the recovery to take at most {timeout:.0f} s, and it did not "
                "end by then: look whether all brokers answer. The worker may be started again"
            ) from None

    recovery._wait = wait_or_raise


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


def begin_from_disk(tables: TableManager, tp: TP, end: int) -> None:
    """Have a recovery go on from where the copy on disk stands, and from nowhere else.

    What Faust knows of it may be of an earlier assignment, of a copy that was dropped since: rows
    before that would be missing for good. A copy that has rows beyond the offset at which its
    changelog ended is dropped: the brokers have lost them, as where all lose power before the rows
    are on their disks. Who takes the partition next, without this copy, would not have them; so
    they are folded again.
    """
    offsets = restored_offsets(tables, tp)
    if offsets is None:
        return
    table: RowTable = tables._changelogs[tp.topic]
    found: int | None = table.persisted_offset(tp)
    applied = _NOTHING if found is None else found
    if applied >= end:
        table.drop(
            tp.partition, f"it has rows up to {applied}, which its changelog has lost from {end} on"
        )
        applied = _NOTHING
    offsets[tp] = applied


def pass_over(tables: TableManager, tp: TP, offset: int) -> None:
    """Take note of a row of the fence that this worker has written itself, if it has all before it:
    so a start with nothing else to be read need not read."""
    offsets = restored_offsets(tables, tp)
    if offsets is None or offset - 1 != offsets[tp]:
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
