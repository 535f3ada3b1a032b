"""Keep the lists that wait to be ranked, in bounded memory, the newest request first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from stream.folded_batch import TouchedUser
from stream.history import UserRow

#: Lists known in memory, about 50 MB; of more, the oldest are found again on disk.
MAX_POSTPONED = 100_000
_NO_ROW = UserRow(0)
#: Entries of the heaps that may be out of date before they are made anew.
_SPARE_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A postponed list, with the trigger it will name; its user's row is read when it is ranked."""

    user: TouchedUser
    not_before_s: float


class WaitingLists:
    """Postponed lists by user, in bounded memory; gives out those that may be ranked by now.

    Two heaps stand beside the dictionary: what may not be ranked yet, by when it may, and what
    may, the newest request first. An entry of a heap that is not the dictionary's is passed over.
    """

    def __init__(self) -> None:
        self._lists: dict[bytes, Waiting] = {}
        self._delayed: list[tuple[float, bytes]] = []
        self._ready: list[tuple[int, bytes]] = []
        self._in_partition: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._lists)

    def get(self, key: bytes) -> Waiting | None:
        """The list of one user, if it waits."""
        return self._lists.get(key)

    def put(self, user: TouchedUser, not_before_s: float) -> set[int]:
        """Let a list wait, in place of its user's former one.

        Returns: partitions of lists that were let go of, as there are more than MAX_POSTPONED.
        """
        self.remove(user.key)
        kept = replace(user, row=_NO_ROW, is_due=False, is_changed=False)
        self._lists[user.key] = Waiting(kept, not_before_s)
        self._in_partition[user.partition] += 1
        heapq.heappush(self._delayed, (not_before_s, user.key))
        dropped = self._keep_newest() if len(self._lists) > MAX_POSTPONED else set()
        if len(self._delayed) + len(self._ready) > 2 * len(self._lists) + _SPARE_ENTRIES:
            self._rebuild()
        return dropped

    def remove(self, key: bytes) -> None:
        """A list waits no longer."""
        waiting = self._lists.pop(key, None)
        if waiting is not None:
            self._in_partition[waiting.user.partition] -= 1

    def ready(self, now_s: float, but: Container[bytes], count: int) -> list[TouchedUser]:
        """Up to `count` users whose list may be ranked, the newest request first, less some.

        They are not given out again, and wait until `remove` is called.
        """
        self._let_ready(now_s)
        users: list[TouchedUser] = []
        present: list[tuple[int, bytes]] = []
        while self._ready and len(users) < count:
            entry = heapq.heappop(self._ready)
            newest_first, key = entry
            waiting = self._lists.get(key)
            if waiting is None or waiting.user.request_ms != -newest_first:
                continue
            if key in but:
                present.append(entry)
            else:
                users.append(waiting.user)
        for entry in present:
            heapq.heappush(self._ready, entry)
        return users

    def partitions_without(self, keys: Iterable[bytes]) -> set[int]:
        """Partitions that have lists waiting besides those of these users."""
        left = self._in_partition.copy()
        for key in keys:
            if (waiting := self._lists.get(key)) is not None:
                left[waiting.user.partition] -= 1
        return {partition for partition, count in left.items() if count > 0}

    def idle_s(self, now_s: float) -> float | None:
        """Seconds until a list may be ranked; None where none waits."""
        if not self._lists:
            return None
        self._let_ready(now_s)
        if self._ready:
            return 0.0
        return max(self._delayed[0][0] - now_s, 0.0) if self._delayed else 0.0

    def _let_ready(self, now_s: float) -> None:
        while self._delayed and self._delayed[0][0] <= now_s:
            not_before_s, key = heapq.heappop(self._delayed)
            waiting = self._lists.get(key)
            if waiting is not None and waiting.not_before_s == not_before_s:
                heapq.heappush(self._ready, (-waiting.user.request_ms, key))

    def _keep_newest(self) -> set[int]:
        """Let go of the older half; their rows tell of them, and are sought when there is time."""
        by_age = sorted(self._lists.values(), key=lambda waiting: waiting.user.request_ms)
        dropped = by_age[: len(by_age) // 2]
        for waiting in dropped:
            self.remove(waiting.user.key)
        self._rebuild()
        return {waiting.user.partition for waiting in dropped}

    def _rebuild(self) -> None:
        """Make the heaps anew, without entries of lists that wait no longer."""
        self._ready = []
        self._delayed = [(w.not_before_s, key) for key, w in self._lists.items()]
        heapq.heapify(self._delayed)
