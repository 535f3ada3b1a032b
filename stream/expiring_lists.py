"""Find users whose list has expired, and who were here lately: their list is made anew.

Rows are gone through in key order, a few at a time and again and again, so nothing is kept in
memory and nothing is lost in a crash: a row tells when its user's list expires, and a list that was
sent and not written down yet is found once more. Whether a list has expired is a question of event
time; the clock that never leaps bounds only how many rows and lists a second are worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from stream.folded_batch import TouchedUser
from stream.history import OPTED_OUT, UserRow
from stream.settings import Settings

#: Rows of a partition after a key (None: from the first one), in key order.
RowsAfter = Callable[[int, bytes | None], Iterator[tuple[bytes, bytes]]]

#: Rows looked at in one go, about a millisecond, and seconds between two such looks.
SCANNED_ROWS = 200
LOOK_S = 0.05
#: After all partitions were gone through, so long until it is done again.
PASS_PAUSE_S = 5.0
#: Lists of one batch at most: about where ONNX Runtime's rate is highest.
MAX_LISTS = 16


class ExpiringLists:
    """Gives out users whose list has expired, at most `refresh_expiring` a second."""

    def __init__(
        self,
        settings: Settings,
        rows_after: RowsAfter,
        fingerprint: int,
        clock: Callable[[], float],
    ) -> None:
        self._lists_per_s = settings.refresh_expiring
        self._lifetime_ms = settings.list_lifetime_ms
        self._active_ms = settings.refresh_active_ms
        self._rows_after = rows_after
        self._fingerprint = fingerprint
        self._clock = clock
        self._partitions: list[int] = []  # still to be gone through in this pass
        self._mine: list[int] = []
        self._after: bytes | None = None
        self._look_at_s = clock()
        self._allowed = 0.0
        self._allowed_at_s = clock()

    def assigned(self, partitions: Iterable[int]) -> None:
        """This worker has these partitions now."""
        self._mine = sorted(partitions)
        self._partitions = list(self._mine)
        self._after = None

    def idle_s(self) -> float | None:
        """Seconds until there is something to look at; None: nothing ever is."""
        if not self._lists_per_s or not self._mine:
            return None
        until_allowed_s = (1 - self._may_list()) / self._lists_per_s
        return max(self._look_at_s - self._clock(), until_allowed_s, 0.0)

    def find(self, newest_ms: int, but: Container[bytes]) -> list[TouchedUser]:
        """Users whose list is to be made anew, less some; their rows are as they were read.

        `newest_ms` is the newest event time there is: the time for which the lists are asked.
        """
        if self.idle_s() != 0.0:
            return []
        self._look_at_s = self._clock() + LOOK_S
        if not self._partitions:
            self._partitions = list(self._mine)
        partition = self._partitions[0]
        most = min(int(self._may_list()), MAX_LISTS)
        rows = list(islice(self._rows_after(partition, self._after), SCANNED_ROWS))
        found: list[TouchedUser] = []
        for key, data in rows:
            self._after = key
            row = UserRow.decode(data, self._fingerprint)
            if key not in but and self._is_wanted(row, newest_ms):
                user = TouchedUser.of_row(key, partition, row)
                user.reason, user.request_ms, user.is_due = "ttl", newest_ms, True
                found.append(user)
                if len(found) == most:
                    break
        else:
            if len(rows) < SCANNED_ROWS:
                self._next_partition()
        self._allowed -= len(found)
        return found

    def _next_partition(self) -> None:
        self._partitions.pop(0)
        self._after = None
        if not self._partitions:
            self._look_at_s = self._clock() + PASS_PAUSE_S

    def _is_wanted(self, row: UserRow, newest_ms: int) -> bool:
        return bool(
            row.list_ms
            and not row.is_postponed
            and row.list_ms + self._lifetime_ms <= newest_ms
            and row.newest_ms + self._active_ms > newest_ms
            and row.silent_until != OPTED_OUT
        )

    def _may_list(self) -> float:
        """Lists that may be made by now; what was not used is kept for a second."""
        now_s = self._clock()
        grown = self._allowed + (now_s - self._allowed_at_s) * self._lists_per_s
        self._allowed = min(grown, max(self._lists_per_s, 1.0))
        self._allowed_at_s = now_s
        return self._allowed
