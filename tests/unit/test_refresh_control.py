"""Lists that wait are made later, the newest first, and none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from folding import FINGERPRINT, NOW_MS, RecordSlice, Store, Tp, partition_of, record

from export.items import item_hash
from stream import waiting_lists
from stream.folded_batch import FoldedBatch, TouchedUser
from stream.history import OPTED_OUT, UserRow
from stream.refresh_control import CATCH_UP_USERS, RefreshControl
from stream.settings import Settings

START_MS = NOW_MS - 10_000
#: Users of one partition.
USERS = [name for n in range(400) if partition_of(name := f"user-{n}") == 0][:60]


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Worker:
    """The steps of a batch that concern lists; what is ranked is noted instead of sent."""

    settings: Settings = field(default_factory=Settings)
    store: Store = field(init=False)
    clock: Clock = field(default_factory=Clock)
    flags: dict[int, bool] = field(default_factory=dict)
    newest_ms: int = 0
    can_list: bool = True
    offset: int = 0
    ranked: list[str] = field(default_factory=list)
    last: dict[str, TouchedUser] = field(default_factory=dict)  # of each user who was ranked

    def __post_init__(self) -> None:
        self.store = Store(self.settings)
        self.start()

    def start(self) -> None:
        """As after a restart with the disk kept."""
        self.control = RefreshControl(
            self.settings, self.rows, FINGERPRINT, lambda: self.can_list, self.clock
        )
        self.control.assigned({0: self.flags.get(0, False)})

    def rows(self, partition: int, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        rows = sorted((key, data) for (at, key), data in self.store.rows.items() if at == partition)
        return iter([row for row in rows if after is None or row[0] > after])

    def batch(
        self, *users: str, kind: str = "click", behind: int = 0, seconds: float = 0.1
    ) -> None:
        """A batch with an event of each of these users, and so many records behind it."""
        first, self.offset = self.offset, self.offset + len(users)
        records = [
            record(
                first + n,
                user_id=user,
                type=kind,
                event_id=f"event-{first + n:06d}",
                event_time=START_MS + self.newest_ms,
            )
            for n, user in enumerate(users)
        ]
        self.newest_ms += 1
        slices = [RecordSlice(Tp(0), records, behind)]
        self.control.backlog.arrived(slices)
        self.finish(self.store.fold_slices(slices), len(records), seconds)

    def idle(self) -> None:
        self.control.backlog.arrived([])
        self.control.look_for_postponed()
        self.finish(FoldedBatch(), 0, 0.0)

    def idle_until_all_is_ranked(self) -> None:
        for _ in range(1000):
            if self.control.idle_s() is None:
                return
            self.idle()
        raise AssertionError("there is always something to do")

    def finish(self, batch: FoldedBatch, records: int, seconds: float) -> None:
        self.control.may_list(batch)
        self.control.select(batch, START_MS + self.newest_ms, self.store.read)
        due = [user for user in batch.users.values() if user.is_due]
        self.last |= {user.owner: user for user in due}
        for user in due:
            user.row.is_postponed = False
            user.row.list_ms = user.request_ms
            user.is_changed = True
        self.flags |= self.control.changed_flags(batch)
        for partition, rows in batch.changed_rows().items():
            self.store.rows |= {(partition, key): row for key, row in rows if row is not None}
        self.control.done(batch, records, seconds)
        self.ranked += [user.owner for user in due]

    def postponed(self) -> set[str]:
        return {user for user in USERS if self.has(user) and self.store.row(user).is_postponed}

    def has(self, user: str) -> bool:
        return (0, b"default\x1fu\x1f" + user.encode()) in self.store.rows


def behind_with(worker: Worker, users: list[str]) -> None:
    """Let lists of these users be postponed, each user's newer than the one's before."""
    worker.batch(USERS[-1], seconds=1.0)
    for user in users:
        worker.batch(user, behind=100_000)
    worker.ranked.clear()


def test_lists_wait_while_the_worker_is_behind_and_come_newest_first():
    worker = Worker()
    behind_with(worker, USERS[:40])
    assert worker.postponed() == set(USERS[:40])
    assert worker.flags == {0: True}

    worker.idle_until_all_is_ranked()

    assert worker.ranked[:CATCH_UP_USERS] == USERS[39 : 39 - CATCH_UP_USERS : -1]
    assert sorted(worker.ranked) == sorted(USERS[:40])
    assert worker.postponed() == set()
    assert worker.flags == {0: False}


def test_a_user_with_many_postponed_events_gets_one_list_that_names_the_visit():
    worker = Worker()
    worker.batch(USERS[-1], seconds=1.0)
    worker.batch(USERS[0], behind=100_000)
    worker.batch(USERS[0], kind="visit", behind=100_000)
    worker.batch(USERS[0], USERS[0], behind=100_000)
    worker.ranked.clear()

    worker.idle()

    assert worker.ranked.count(USERS[0]) == 1
    assert worker.last[USERS[0]].reason == "visit"
    assert worker.last[USERS[0]].coalesced == 4


def test_lists_do_not_wait_while_little_is_behind():
    worker = Worker()
    worker.batch(USERS[0], behind=100_000, seconds=1.0)  # how long a record takes is not known yet
    worker.batch(USERS[1], behind=0)
    assert worker.ranked == USERS[:2]

    worker.batch(USERS[2], behind=2)  # a record takes more than half a second
    assert worker.postponed() == {USERS[2]}

    worker.batch(USERS[3], behind=worker.settings.batch_records)  # the last batch but one
    assert worker.ranked[2:] == [USERS[3], USERS[2]]


def test_while_events_come_the_waiting_are_ranked_with_them():
    worker = Worker()
    behind_with(worker, USERS[:5])

    worker.batch(USERS[50])

    assert worker.ranked == [USERS[50], *USERS[4::-1]]


def test_a_list_that_would_have_expired_is_skipped():
    worker = Worker(Settings(list_lifetime_ms=10))
    behind_with(worker, USERS[:3])
    worker.newest_ms += 8  # now the first two would have expired

    worker.idle()

    assert worker.ranked == [USERS[2]]
    assert worker.postponed() == set()


def test_what_comes_late_asks_for_a_list_as_of_the_last_one():
    worker = Worker()
    worker.batch(USERS[0])
    last_ms = worker.last[USERS[0]].request_ms

    worker.newest_ms -= 1000
    worker.batch(USERS[0], kind="visit")

    assert worker.ranked == [USERS[0]] * 2
    assert worker.last[USERS[0]].request_ms == last_ms, "or it would expire before that one"


def test_a_postponed_list_lives_no_shorter_for_an_event_that_comes_late():
    worker = Worker(Settings(list_lifetime_ms=10))
    behind_with(worker, USERS[:1])
    worker.start()
    worker.batch(USERS[-1], seconds=1.0)
    worker.ranked.clear()

    worker.newest_ms -= 1000
    worker.batch(USERS[0], behind=100_000)
    worker.newest_ms += 1000
    worker.idle_until_all_is_ranked()

    assert worker.ranked == [USERS[0]]


def test_a_visit_before_there_is_anything_to_list_is_answered_once_there_is():
    worker = Worker(can_list=False)
    worker.batch(USERS[0], kind="visit")
    assert worker.ranked == []
    assert worker.control.idle_s() is None

    worker.can_list = True
    worker.idle()

    assert worker.ranked == [USERS[0]]
    assert worker.last[USERS[0]].reason == "visit"


def test_after_a_restart_postponed_lists_are_found_on_disk():
    worker = Worker()
    behind_with(worker, USERS[:30])

    worker.start()
    worker.idle_until_all_is_ranked()

    assert sorted(worker.ranked) == sorted(USERS[:30])
    assert worker.last[USERS[0]].reason == "backfill"
    assert worker.flags == {0: False}


def test_of_too_many_the_oldest_are_let_go_of_and_found_on_disk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting_lists, "MAX_POSTPONED", 10)
    worker = Worker()
    behind_with(worker, USERS[:50])
    assert len(worker.control._waiting) <= 10

    worker.idle_until_all_is_ranked()

    assert sorted(worker.ranked) == sorted(USERS[:50])
    assert worker.ranked[0] == USERS[49]


def test_the_order_kept_beside_the_lists_does_not_grow_with_a_hot_user():
    worker = Worker()
    behind_with(worker, USERS[:2])
    waiting = worker.control._waiting

    for number in range(3 * waiting_lists._SPARE_ENTRIES):
        waiting.put(TouchedUser(b"k", "k", True, "default", 0, None, request_ms=number), 0.0)

    assert len(waiting._delayed) + len(waiting._ready) <= waiting_lists._SPARE_ENTRIES + 10


class TestDebounce:
    def test_an_events_list_waits_until_the_last_one_is_old_enough(self):
        worker = Worker(Settings(refresh_debounce_ms=5000))
        worker.batch(USERS[0])
        for _ in range(3):
            worker.batch(USERS[0])

        assert worker.ranked == [USERS[0]]
        assert worker.control.idle_s() == pytest.approx(5, abs=0.01)

        worker.clock.now_s += 5
        worker.idle()

        assert worker.ranked == [USERS[0]] * 2
        assert worker.last[USERS[0]].coalesced == 3

    def test_a_visit_does_not_wait_and_answers_what_waited(self):
        worker = Worker(Settings(refresh_debounce_ms=5000))
        worker.batch(USERS[0])
        worker.batch(USERS[0])
        worker.batch(USERS[0], kind="visit")
        assert worker.ranked == [USERS[0]] * 2

        worker.clock.now_s += 60
        worker.idle()

        assert worker.ranked == [USERS[0]] * 2
        assert worker.control.idle_s() is None

    def test_without_it_nothing_waits(self):
        worker = Worker()
        for _ in range(3):
            worker.batch(USERS[0])

        assert worker.ranked == [USERS[0]] * 3


class TestSmallestChange:
    @staticmethod
    def is_sent(change: float, new: int, reason: str = "event") -> bool:
        worker = Worker(Settings(refresh_min_change=change))
        worker.batch(USERS[0])
        hashes = np.array([item_hash(f"item-{n}") for n in range(60)], dtype=np.uint64)
        user = worker.last[USERS[0]]
        user.reason = reason
        user.row.served_list(b"rec-id-1", hashes[:50])
        return worker.control.is_worth_sending(user, hashes[new : new + 50])

    def test_a_list_with_too_few_new_items_is_not_sent(self):
        assert not self.is_sent(0.2, new=0)
        assert not self.is_sent(0.2, new=3)

    def test_a_list_with_enough_new_items_is_sent(self):
        assert self.is_sent(0.2, new=4)
        assert self.is_sent(0.0, new=0)

    def test_a_visit_is_always_answered(self):
        assert self.is_sent(1.0, new=0, reason="visit")

    @pytest.mark.parametrize(("kind", "is_answered"), [("visit", True), ("click", False)])
    def test_a_visit_that_was_postponed_is_answered_after_a_restart_too(self, kind, is_answered):
        worker = Worker(Settings(refresh_min_change=1.0))
        worker.batch(USERS[0], seconds=1.0)
        items = np.array([item_hash(f"item-{n}") for n in range(50)], dtype=np.uint64)
        row = worker.store.row(USERS[0])
        row.served_list(b"rec-id-1", items)
        worker.store.rows[0, b"default\x1fu\x1f" + USERS[0].encode()] = row.encode()
        worker.batch(USERS[0], kind=kind, behind=100_000)

        worker.start()
        worker.idle_until_all_is_ranked()

        user = worker.last[USERS[0]]
        assert user.reason == "backfill"
        assert worker.control.is_worth_sending(user, items) == is_answered


class TestExpiring:
    """Lists last 1000 ms of event time here; users count as active for 5000 ms."""

    @staticmethod
    def worker(users: list[str], lists_per_s: float = 100.0) -> Worker:
        settings = Settings(
            list_lifetime_ms=1000, refresh_expiring=lists_per_s, refresh_active_ms=5000
        )
        worker = Worker(settings)
        worker.batch(*users)
        worker.ranked.clear()
        return worker

    @staticmethod
    def pass_time(worker: Worker, seconds: float) -> None:
        """Idle as the stream does: whenever there is something to do."""
        end_s = worker.clock.now_s + seconds
        while (wait_s := worker.control.idle_s()) is not None:
            worker.clock.now_s += max(wait_s, 0.001)
            if worker.clock.now_s > end_s:
                break
            worker.idle()
        worker.clock.now_s = end_s

    def test_an_expired_list_is_made_anew_once_for_the_newest_event_time(self):
        worker = self.worker(USERS[:3])
        self.pass_time(worker, 60)
        assert worker.ranked == [], "event time stands still"

        worker.newest_ms += 1000
        self.pass_time(worker, 60)

        assert sorted(worker.ranked) == sorted(USERS[:3])
        assert {user.reason for user in worker.last.values()} == {"ttl"}
        assert {user.request_ms for user in worker.last.values()} == {START_MS + worker.newest_ms}

        worker.newest_ms += 1000
        self.pass_time(worker, 60)
        assert len(worker.ranked) == 6

    def test_users_who_were_not_here_lately_are_left_alone(self):
        worker = self.worker(USERS[:2])
        worker.newest_ms += 4500
        worker.batch(USERS[1])
        worker.ranked.clear()
        worker.newest_ms += 1500

        self.pass_time(worker, 60)

        assert worker.ranked == [USERS[1]]

    def test_no_more_lists_a_second_are_made_than_may_be(self):
        worker = self.worker(USERS[:50], lists_per_s=4.0)
        worker.newest_ms += 1500

        self.pass_time(worker, 3)

        assert 11 <= len(worker.ranked) <= 4 * 3 + 4
        self.pass_time(worker, 30)
        assert sorted(worker.ranked) == sorted(USERS[:50])

    def test_a_list_that_was_sent_and_not_written_down_is_found_again_after_the_crash(self):
        worker = self.worker(USERS[:1])
        worker.newest_ms += 1000
        before = dict(worker.store.rows)
        self.pass_time(worker, 60)
        worker.store.rows = before

        worker.start()
        self.pass_time(worker, 60)

        assert worker.ranked == [USERS[0]] * 2

    def test_it_goes_on_while_events_come_and_waits_while_the_worker_is_behind(self):
        worker = self.worker(USERS[:1])
        worker.newest_ms += 1000
        worker.clock.now_s += 60
        worker.batch(USERS[5], behind=100_000, seconds=1.0)
        worker.batch(USERS[5], behind=100_000)
        assert USERS[0] not in worker.ranked[1:]

        worker.batch(USERS[5])

        assert USERS[0] in worker.ranked

    @pytest.mark.parametrize(("silent_until", "list_ms"), [(OPTED_OUT, START_MS), (7, 0)])
    def test_users_who_have_opted_out_or_were_deleted_get_none(self, silent_until, list_ms):
        worker = self.worker(USERS[:1])
        (key, data), *_ = worker.store.rows.items()
        row = UserRow.decode(data, FINGERPRINT)
        row.forget_user(silent_until)
        row.newest_ms, row.list_ms = START_MS, list_ms
        worker.store.rows[key] = row.encode()
        worker.newest_ms += 1000

        self.pass_time(worker, 60)

        assert worker.ranked == []

    def test_without_it_no_list_is_made_anew(self):
        worker = self.worker(USERS[:1], lists_per_s=0.0)
        worker.newest_ms += 1000

        assert worker.control.idle_s() is None
        worker.idle()
        assert worker.ranked == []
