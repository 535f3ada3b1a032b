"""State always, a refresh when it is worth it: which due lists are ranked now, and which later.

A list is postponed while nothing can be listed yet, while the worker is behind (ranking what waits
would take longer than `postpone_after_ms`), and an event's list also while its user's last one is
younger than `refresh_debounce_ms`. A postponed list is not lost: its user's row says so, on disk
and in the changelog, and it is ranked when there is time, the newest request first, from the state
its user has by then. So a backlog costs folding alone, and a user whose thousand events it held
gets one list. A list that would have expired by then is skipped and counted.

None of this changes a state or what a list holds, only when lists are made; so it alone may look
at the clock and at the length of the queue.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream import metrics
from stream.expiring_lists import ExpiringLists, RowsAfter
from stream.folded_batch import FoldedBatch, ReadRows, Slice, TouchedUser
from stream.history import MAX_SERVED, UserRow
from stream.row_codec import is_postponed
from stream.settings import Settings
from stream.waiting_lists import Waiting, WaitingLists

#: Postponed lists that are ranked in one go: about where ONNX Runtime's rate is highest, and few
#: enough that a visit which comes meanwhile hardly waits.
CATCH_UP_USERS = 16
#: Rows looked at in one go when the postponed lists of a partition are sought on disk.
_SCANNED_ROWS = 10_000
#: How much the newest batch counts in the time that a record takes.
_NEWEST_SHARE = 0.2


class Backlog:
    """Whether the worker is so far behind that lists have to wait."""

    def __init__(self, postpone_after_s: float, batch_records: int) -> None:
        self._postpone_after_s = postpone_after_s
        self._batch_records = batch_records
        self._behind: dict[int, int] = {}
        self._seconds_a_record = 0.0
        self.is_postponing = False

    def forget(self) -> None:
        """The partitions of this worker have changed."""
        self._behind.clear()
        self.is_postponing = False

    def arrived(self, slices: Sequence[Slice]) -> None:
        """Take note of a batch before it is done; an empty one says that nothing waits.

        Postponing begins when what is behind it would take too long with all of its lists, and
        ends when no more than one batch is behind.
        """
        if not slices:
            self._behind.clear()
        for piece in slices:
            self._behind[piece.tp.partition] = piece.behind
        behind = sum(self._behind.values())
        if self.is_postponing:
            self.is_postponing = behind > self._batch_records
        else:
            self.is_postponing = behind * self._seconds_a_record > self._postpone_after_s

    def done(self, records: int, seconds: float) -> None:
        """Learn from a batch how long a record takes when its lists are ranked."""
        if records and not self.is_postponing:
            share = _NEWEST_SHARE if self._seconds_a_record else 1.0
            self._seconds_a_record += share * (seconds / records - self._seconds_a_record)


class RefreshControl:
    """Keeps the lists of one worker that wait; `rows_after` finds those of before its start.

    `can_list` tells whether there is anything to list: before the first event nothing is.
    """

    def __init__(
        self,
        settings: Settings,
        rows_after: RowsAfter,
        fingerprint: int,
        can_list: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backlog = Backlog(settings.postpone_after_ms / 1000, settings.batch_records)
        self._debounce_ms = settings.refresh_debounce_ms
        self._min_change = settings.refresh_min_change
        self._lifetime_ms = settings.list_lifetime_ms
        self._rows_after = rows_after
        self._fingerprint = fingerprint
        self._can_list = can_list
        self._clock = clock
        self._waiting = WaitingLists()
        self._expiring = ExpiringLists(settings, rows_after, fingerprint, clock)
        self._seeks_expired = False
        #: Partitions whose rows may tell of lists that are not in `_waiting`.
        self._unscanned: set[int] = set()
        self._scan: tuple[int, bytes | None] | None = None  # partition, and the last key seen
        #: What the table says: partitions that have postponed lists.
        self._flagged: set[int] = set()

    def assigned(self, flagged: Mapping[int, bool]) -> None:
        """This worker has these partitions now; True: lists of it were postponed before."""
        self.backlog.forget()
        self._waiting = WaitingLists()
        self._scan = None
        self._flagged = {partition for partition, is_flagged in flagged.items() if is_flagged}
        self._unscanned = set(self._flagged)
        self._expiring.assigned(flagged)
        metrics.WAITING_LISTS.set(0)

    def select(self, batch: FoldedBatch, newest_ms: int, read_rows: ReadRows) -> None:
        """Decide which due users of a batch are ranked in it; add some that have waited.

        Afterwards `is_due` holds for those that are to be ranked, and the rows of the others say
        that their list is postponed.
        """
        now_s = self._clock()
        must_wait = self.backlog.is_postponing or not self._can_list()
        for user in batch.users.values():
            if not user.is_due:
                continue
            waiting = self._waiting.get(user.key)
            if waiting is not None:
                user.answers_also(waiting.user)
            # what comes late asks for a list as of the last one, not of before it
            user.request_ms = max(user.request_ms, user.row.list_ms)
            not_before_s = self._not_before_s(user, waiting, now_s)
            if not_before_s > now_s or must_wait:
                self._postpone(user, not_before_s)
        if not must_wait:
            self.add_waiting(batch, newest_ms, read_rows)
            if self._seeks_expired:
                for user in self._expiring.find(newest_ms, batch):
                    batch.users[user.key] = user

    def may_list(self, batch: FoldedBatch) -> bool:
        """Whether `select` may leave users of a batch to be ranked, or add some.

        It seeks expired lists, which it reads from disk, only where this has said yes.
        """
        self._seeks_expired = False
        if self.backlog.is_postponing or not self._can_list():
            return False
        self._seeks_expired = self._expiring.idle_s() == 0.0
        is_any_due = any(user.is_due for user in batch.users.values())
        return self._seeks_expired or len(self._waiting) > 0 or is_any_due

    def add_waiting(self, batch: FoldedBatch, newest_ms: int, read_rows: ReadRows) -> None:
        """Put up to CATCH_UP_USERS users into a batch whose list has waited, the newest first.

        `newest_ms` is the newest event time there is: what has expired by then is skipped.
        """
        by_partition: dict[int, list[TouchedUser]] = defaultdict(list)
        for user in self._waiting.ready(self._clock(), batch, CATCH_UP_USERS):
            by_partition[user.partition].append(user)
        for partition, users in by_partition.items():
            rows = read_rows(partition, [user.key for user in users])
            for user, data in zip(users, rows, strict=True):
                if data is not None:
                    user.row = UserRow.decode(data, self._fingerprint)
                    self._make_due(user, newest_ms)
                    batch.users[user.key] = user

    def is_worth_sending(self, user: TouchedUser, items: NDArray[np.uint64]) -> bool:
        """Whether a list, as hashes of its items, differs enough from its user's last one.

        A visit is always answered, and an expired list replaced. The share is that of new items
        among the first MAX_SERVED.
        """
        if user.reason in ("visit", "ttl") or not self._min_change or not user.row.served:
            return True
        first = items[:MAX_SERVED]
        new = len(first) - np.count_nonzero(np.isin(first, np.frombuffer(user.row.served, "<u8")))
        if new >= self._min_change * len(first):
            return True
        metrics.LISTS_SKIPPED.labels("unchanged").inc()
        return False

    def done(self, batch: FoldedBatch, records: int, seconds: float) -> None:
        """A batch of so many records is written: what was ranked in it waits no longer."""
        for user in batch.users.values():
            if not user.row.is_postponed:
                self._waiting.remove(user.key)
        self.backlog.done(records, seconds)
        metrics.WAITING_LISTS.set(len(self._waiting))

    def changed_flags(self, batch: FoldedBatch) -> dict[int, bool]:
        """Partition -> whether it has postponed lists after this batch, where that changes."""
        sent = [user.key for user in batch.users.values() if not user.row.is_postponed]
        has = self._waiting.partitions_without(sent) | self._unscanned
        if self._scan:
            has.add(self._scan[0])
        changed = {partition: partition in has for partition in has ^ self._flagged}
        self._flagged = has
        return changed

    def idle_s(self) -> float | None:
        """Seconds until there is something to do while no events come; None: nothing is."""
        if not self._can_list():
            return None
        if self._scan or (self._unscanned and not len(self._waiting)):
            return 0.0
        waits_s = (self._waiting.idle_s(self._clock()), self._expiring.idle_s())
        return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)

    def look_for_postponed(self) -> None:
        """Go on seeking, a part of the rows at a time, what was postponed and is not in memory."""
        if self._scan is None:
            if len(self._waiting) or not self._unscanned:
                return
            self._scan = self._unscanned.pop(), None
        partition, after = self._scan
        chunk = list(itertools.islice(self._rows_after(partition, after), _SCANNED_ROWS))
        for key, data in chunk:
            if is_postponed(data) and self._waiting.get(key) is None:
                row = UserRow.decode(data, self._fingerprint)
                self._wait(TouchedUser.of_row(key, partition, row), 0.0)
        self._scan = (partition, chunk[-1][0]) if chunk else None

    def _not_before_s(self, user: TouchedUser, waiting: Waiting | None, now_s: float) -> float:
        """When a due list may be ranked: its user's last one may be too young."""
        row = user.row
        if user.reason == "visit":
            return now_s
        if waiting is not None:
            return waiting.not_before_s
        if row.is_postponed or not row.list_ms:
            return now_s
        age_ms = max(user.request_ms - row.list_ms, 0)
        return now_s + max(self._debounce_ms - age_ms, 0) / 1000

    def _postpone(self, user: TouchedUser, not_before_s: float) -> None:
        if not user.row.is_postponed:
            metrics.LISTS_POSTPONED.inc()
        user.is_due = False
        user.is_changed = True
        user.row.is_postponed = True
        user.row.list_ms = user.request_ms
        if user.reason == "visit":
            # after a restart the row does not say what the list is for; so it is sent in any case
            user.row.served = b""
        self._wait(user, not_before_s)

    def _wait(self, user: TouchedUser, not_before_s: float) -> None:
        self._unscanned |= self._waiting.put(user, not_before_s)

    def _make_due(self, user: TouchedUser, newest_ms: int) -> None:
        row = user.row
        if not row.is_postponed:
            return
        user.is_due = row.list_ms + self._lifetime_ms > newest_ms
        if not user.is_due:
            row.is_postponed = False
            user.is_changed = True
            metrics.LISTS_SKIPPED.labels("expired").inc()
