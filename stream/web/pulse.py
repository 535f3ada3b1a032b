"""Measure the engine from outside: rates, the way from a click to its list, and whether it answers.

Values in, values out: the clock is an argument, in milliseconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from msgspec import Struct

#: Seconds shown of events and lists a second.
SHOWN_SECONDS = 120
#: Rates are means of so many whole seconds.
_RATE_SECONDS = 10
#: Lists that the times are of, at most, and how much older than the newest one they may be.
_MAX_TIMES = 2000
_TIMES_MS = 60_000
#: Events whose lists are waited for, at most.
_MAX_WAITING = 20_000
#: Without any progress for so long while events wait, the worker has stopped answering.
SILENT_MS = 3000
#: The same where the group's committed offsets cannot be read.
SILENT_UNKNOWN_LAG_MS = 10_000


class SecondCounts:
    """How many came in each of the last seconds."""

    def __init__(self) -> None:
        self._counts: OrderedDict[int, int] = OrderedDict()

    def add(self, now_ms: int, count: int = 1) -> None:
        """Count so many at this moment."""
        second = now_ms // 1000
        self._counts[second] = self._counts.get(second, 0) + count
        while len(self._counts) > SHOWN_SECONDS + 2:
            self._counts.popitem(last=False)

    def series(self, now_ms: int) -> list[int]:
        """[SHOWN_SECONDS] counts of whole seconds, the last one complete."""
        now = now_ms // 1000
        return [self._counts.get(second, 0) for second in range(now - SHOWN_SECONDS, now)]

    def rate(self, now_ms: int) -> float:
        """Mean a second, of the last whole seconds."""
        return sum(self.series(now_ms)[-_RATE_SECONDS:]) / _RATE_SECONDS


class ListTimes:
    """From an event's record to its list's, by the records' timestamps."""

    def __init__(self) -> None:
        self._written: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._times: deque[tuple[int, int]] = deque(maxlen=_MAX_TIMES)  # (written, took) ms

    def note_event(self, partition: int, offset: int, written_ms: int) -> None:
        """An event was written."""
        self._written[partition, offset] = written_ms
        if len(self._written) > _MAX_WAITING:
            self._written.popitem(last=False)

    def note_list(self, partition: int, offset: int, written_ms: int) -> None:
        """The list that the event at this place made due was written."""
        begun_ms = self._written.pop((partition, offset), None)
        if begun_ms is None:
            return
        self._times.append((written_ms, max(written_ms - begun_ms, 0)))
        while self._times[0][0] < written_ms - _TIMES_MS:
            self._times.popleft()

    def percentiles(self, *shares: float) -> list[int] | None:
        """Milliseconds within which these shares of the last minute's lists came, if any did."""
        if not self._times:
            return None
        ordered = sorted(took_ms for _, took_ms in self._times)
        return [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in shares]

    def __len__(self) -> int:
        return len(self._times)


class WorkerState(Struct, frozen=True):
    """Whether lists come. `since_ms`: since when it is so; 0: as long as the page runs."""

    answers: bool
    since_ms: int
    silent_ms: int = 0  # how long the last silence was; while it lasts: so far


class WorkerWatch:
    """Tells that events come and nothing answers, and when it does again.

    Progress is a list, or committed offsets that move. Events wait if the group's lag is not 0;
    where that cannot be read, if one came after the last list.
    """

    def __init__(self) -> None:
        self.lag: int | None = None
        self._committed: int | None = None
        self._waiting_since_ms: int | None = None
        self._silent_since_ms: int | None = None
        self._last_change = WorkerState(True, 0)

    def note_events(self, now_ms: int) -> None:
        """An event came that a list is due for."""
        if self.lag is None and self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms

    def note_list(self, now_ms: int) -> None:
        """A list came."""
        self._note_progress(now_ms)
        if self.lag is None:
            self._waiting_since_ms = None

    def note_lag(self, now_ms: int, lag: int | None, committed: int | None) -> None:
        """How many events are not committed yet, and how many are; None: cannot be told."""
        if self.lag is None or lag is None:
            self._waiting_since_ms = None
        moved = committed is not None and self._committed is not None
        if moved and committed != self._committed:
            self._note_progress(now_ms)
        self.lag, self._committed = lag, committed
        if lag == 0:
            self._note_progress(now_ms)
            self._waiting_since_ms = None
        elif lag is not None and self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms

    def state(self, now_ms: int) -> WorkerState:
        """Whether it answers at this moment."""
        allowed_ms = SILENT_MS if self.lag is not None else SILENT_UNKNOWN_LAG_MS
        waiting = self._waiting_since_ms
        if self._silent_since_ms is None and waiting is not None and now_ms - waiting >= allowed_ms:
            self._silent_since_ms = waiting
        if self._silent_since_ms is None:
            return self._last_change
        return WorkerState(False, self._silent_since_ms, now_ms - self._silent_since_ms)

    def _note_progress(self, now_ms: int) -> None:
        if self._silent_since_ms is not None:
            self._last_change = WorkerState(True, now_ms, now_ms - self._silent_since_ms)
            self._silent_since_ms = None
        if self._waiting_since_ms is not None:
            self._waiting_since_ms = now_ms


class DeadLetterCounts:
    """How many records were refused for which reasons; the newest ones."""

    #: Different reasons that are counted each; those beyond are counted as one.
    MAX_REASONS = 50
    MAX_NEWEST = 8
    MAX_SHOWN = 300

    def __init__(self) -> None:
        self.total = 0
        self.newest: deque[dict[str, str | int]] = deque(maxlen=self.MAX_NEWEST)
        self._reasons: dict[str, int] = {}

    def take(self, headers: Iterable[tuple[str, bytes]], written_ms: int) -> None:
        """Count a record of dead-letters by its headers."""
        told = {name: value.decode(errors="replace") for name, value in headers}
        reason = told.get("reason", "no reason given")[: self.MAX_SHOWN]
        self.total += 1
        if reason not in self._reasons and len(self._reasons) >= self.MAX_REASONS:
            self._reasons["other reasons"] = self._reasons.get("other reasons", 0) + 1
        else:
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
        place = "/".join(told.get(name, "?")[:200] for name in ("topic", "partition", "offset"))
        self.newest.appendleft({"at": written_ms, "reason": reason, "place": place})

    def reasons(self, count: int = 10) -> list[tuple[str, int]]:
        """The most frequent reasons."""
        ordered = sorted(self._reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        return ordered[:count]
