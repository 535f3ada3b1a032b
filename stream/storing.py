"""Take what batches send and change through steps 5 and 6: the end of one while the next begins.

Every wait for the broker is a round trip, and a batch needs two of them, one after the other. So
the worker folds the next batch meanwhile, and then sends the rows of one batch together with the
deltas of the next. What that may not change:

- rows are sent when all of their batch's results are acknowledged, and written when they are
  acknowledged themselves;
- batches do each step in their order;
- rows that the changelog has may wait in memory, as long as batches follow each other: a user's
  newer row then takes the place of the older one before either is written. A crash costs reading
  them from the changelog; what is on disk is the fold of the changelog up to its position, as ever;
- who reads rows sees those of the batches under way;
- only deltas go out before the batch in front is written, never a list: a crash would take back
  the rows, and with them the `seq` of a list that consumers have by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stream.outbox import Outbox, SendRecords, Sent

#: A row: key and value; None deletes.
Row = tuple[bytes, bytes | None]

#: Rows that wait to be written are so large at most; to write them then takes some tens of
#: milliseconds.
_WAITING_BYTES = 16 * 1024**2

#: Turns of the event loop that aiokafka's sender needs until a request is on its way.
_HAND_OVER_TURNS = 4


class Rows(Protocol):
    """The users' rows on disk."""

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored rows, None where there is none."""
        ...

    def write(self, partition: int, rows: list[Row], changelog_offset: int) -> None:
        """Write rows and the changelog position as one."""
        ...


@dataclass(frozen=True, slots=True)
class Steps:
    """What is done on the way besides sending and writing.

    `check` is called before anything is sent or written, and ends the process or raises where this
    worker may no longer do so. `reached` is told the name of each step. `acknowledged` gets a
    batch's results, and where they lie now.
    """

    check: Callable[[], None]
    reached: Callable[[str], None]
    acknowledged: Callable[[Outbox, dict[tuple[str, int], tuple[int, int]]], None]


@dataclass(slots=True)
class BatchEnd:
    """What a batch sends and changes; `done` is called when the changelog has its rows."""

    results: Outbox
    changes: dict[int, list[Row]]
    now_ms: int
    done: Callable[[], None]
    _by_key: dict[int, dict[bytes, bytes | None]] = field(default_factory=dict)

    def rows_of(self, partition: int) -> dict[bytes, bytes | None]:
        """The changed rows of a partition by their keys."""
        rows = self._by_key.get(partition)
        if rows is None:
            rows = self._by_key[partition] = dict(self.changes.get(partition, ()))
        return rows


class Storing:
    """The ends of the batches of one worker; at most two are under way at a time."""

    def __init__(self, rows: Rows, changelog: str, send_records: SendRecords, steps: Steps) -> None:
        self._rows = rows
        self._changelog = changelog
        self._send_records = send_records
        self._steps = steps
        self._results: tuple[BatchEnd, Sent] | None = None  # whose results are on the way
        self._stored: tuple[BatchEnd, Sent] | None = None  # whose rows are, the batch before
        self._waiting: dict[int, dict[bytes, bytes | None]] = {}  # rows to write, by partition
        self._positions: dict[int, int] = {}  # changelog offsets that they stand at
        self._waiting_bytes = 0

    @property
    def under_way(self) -> int:
        """How many of the newest batches are not done yet."""
        return (self._results is not None) + (self._stored is not None)

    def get_many(self, partition: int, keys: list[bytes]) -> list[bytes | None]:
        """Rows as they are after all batches, those under way too."""
        changes = [self._waiting.get(partition, {})]
        changes += (end[0].rows_of(partition) for end in (self._stored, self._results) if end)
        found: dict[bytes, bytes | None] = {}
        for changed in filter(None, changes):  # the newest has the last word
            found.update((key, changed[key]) for key in keys if key in changed)
        if not found:
            return self._rows.get_many(partition, keys)
        missing = [key for key in keys if key not in found]
        if missing:
            found.update(zip(missing, self._rows.get_many(partition, missing), strict=True))
        return [found[key] for key in keys]

    async def begin(self, end: BatchEnd) -> None:
        """Begin step 5 of a batch; those before it go on as far as one wait takes them."""
        await self._go_on(end)
        for _ in range(_HAND_OVER_TURNS):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Take all batches under way to the end of step 6."""
        while self.under_way:
            await self._go_on(None)

    async def store(self, end: BatchEnd) -> None:
        """Send and write the rows of a batch, whatever becomes of its results."""
        await self._take_in(end, await self._send_rows(end))
        self._write()

    async def _go_on(self, new: BatchEnd | None) -> None:
        """Wait for all that is on the way, and send what may follow it: one round trip."""
        results, stored = self._results, self._stored
        if results is not None:
            end, sent = results
            self._steps.acknowledged(end.results, await sent.acknowledged())
        if stored is not None:
            end, sent = stored
            await self._take_in(end, sent)
            if new is None or self._waiting_bytes > _WAITING_BYTES:
                self._write()
            self._stored = None
            end.done()
        if results is not None:
            end, _ = results
            self._results, self._stored = None, (end, await self._send_rows(end))
        if new is not None:
            self._steps.check()
            self._steps.reached("send")
            self._results = new, await new.results.hand_over(self._send_records, new.now_ms)  # 5.

    async def _send_rows(self, end: BatchEnd) -> Sent:
        """The end of step 5."""
        self._steps.check()
        self._steps.reached("changelog")
        outbox = Outbox()
        for partition, rows in end.changes.items():
            outbox.records[self._changelog, partition] = list(rows)
        return await outbox.hand_over(self._send_records, end.now_ms)

    async def _take_in(self, end: BatchEnd, sent: Sent) -> None:
        """Have rows wait to be written, when the changelog has them."""
        offsets = await sent.acknowledged()
        for partition in end.changes:
            rows = end.rows_of(partition)
            self._waiting.setdefault(partition, {}).update(rows)
            _, self._positions[partition] = offsets[self._changelog, partition]
            self._waiting_bytes += sum(map(len, filter(None, rows.values())))

    def _write(self) -> None:
        """Step 6, of all rows that wait."""
        if not self._waiting:
            return
        self._steps.check()
        self._steps.reached("write")
        for partition, rows in self._waiting.items():  # 6.
            self._rows.write(partition, list(rows.items()), self._positions[partition])
        self._waiting, self._positions, self._waiting_bytes = {}, {}, 0
