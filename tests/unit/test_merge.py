"""Merging users: each leg once, whatever crashes and in whatever order partitions are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from folding import (
    FINGERPRINT,
    NOW_MS,
    PARTITIONS,
    Record,
    Store,
    body,
    control,
    partition_of,
    record,
)
from hypothesis import given
from hypothesis import strategies as st

from export.event_types import DEFAULT_EVENT_TYPES
from export.items import item_hash
from models.parity_fold import LogFold
from models.parity_log import EventLog, ParityPlan
from stream.events import MergePart, decode_merge_part, decode_merge_request, encode
from stream.history import RowLimits, UserRow, id_hash
from stream.kafka.own_rows import is_own, source_row
from stream.merge import Turn, fold_wish
from stream.row_codec import EVENT, LATEST_MS, RING_ENTRY_STRUCT
from stream.settings import Settings
from stream.statistics import encode_deltas
from stream.verify.deltas import check_deltas
from stream.verify.events import EventRules, Refused, SentOn
from stream.verify.merges import MergeLog, check_merges
from stream.verify.merges import MergePart as FoundPart
from stream.verify.merges import MergeRequest as FoundRequest
from stream.verify.rows import Changelog, check_rows
from stream.verify.users import ExpectedState, without_end

KNOWN, ANONYMOUS = "ada", next(n for n in map(str, range(99)) if partition_of(n) == 3)
SETTINGS = Settings(partitions=PARTITIONS, max_history=6, max_taken=5, dedupe_ring=64)


@dataclass(frozen=True)
class Placed(Record):
    partition: int = 0


def click(number: int, time_ms: int | None = None, *, known: bool, **fields: object) -> Record:
    who = {} if known else {"user_id": None, "anonymous_id": ANONYMOUS}
    at_ms = NOW_MS - 100_000 + (number if time_ms is None else time_ms) * 1000
    return record(0, number, item_id=f"item-{number}", event_time=at_ms, **who, **fields)


def merge(number: int = 0, anonymous: str = ANONYMOUS) -> Record:
    event_id = f"merge-{number:04d}"
    return control(0, "user_merge", KNOWN, event_id=event_id, from_anonymous_id=anonymous)


@dataclass
class Log:
    """user-events and a worker's rows: what the worker sends itself comes at the end of the log."""

    settings: Settings = SETTINGS
    records: dict[int, list[Placed]] = field(default_factory=dict)
    in_order: list[Placed] = field(default_factory=list)
    done: dict[int, int] = field(default_factory=dict)
    deltas: list[Placed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.settings)

    def send(self, *records: Record) -> None:
        for sent in records:
            partition = partition_of((sent.key or b"").decode())
            log = self.records.setdefault(partition, [])
            placed = Placed(sent.key, sent.value, len(log), sent.timestamp, partition=partition)
            log.append(placed)
            self.in_order.append(placed)

    def fold(self, partition: int, crash: bool = False) -> None:
        """The next record of a partition; in a crash its results go out, and its row does not."""
        at = self.done.get(partition, 0)
        if at >= len(self.records.get(partition, ())):
            return
        rows = dict(self.store.rows)
        batch = self.store.fold(self.records[partition][at], partition=partition)
        for of, columns in batch.deltas.items():
            value = encode_deltas(of, columns)
            self.deltas.append(Placed(None, value, len(self.deltas), partition=of))
        self.send(*(Record(o.key, o.value, timestamp=o.sent_ms) for o in batch.own_records))
        if crash:
            self.store.rows = rows
        else:
            self.done[partition] = at + 1

    def settle(self) -> None:
        while any(self.done.get(p, 0) < len(log) for p, log in self.records.items()):
            for partition in list(self.records):
                self.fold(partition)

    def row(self, *, known: bool) -> UserRow:
        return self.store.row(KNOWN if known else ANONYMOUS, is_known=known)

    def check(self) -> None:
        """The rows, deltas and own records are those that an independent fold wants."""
        expected, found = ExpectedState(self.settings), MergeLog()
        rules = EventRules(self.settings, PARTITIONS)
        for placed in self.in_order:
            judged = rules.judge(placed)
            assert judged is not None and not isinstance(judged, Refused | SentOn)
            expected.apply(judged, placed.partition, placed.offset)
            if isinstance(judged, FoundRequest | FoundPart):
                found.take(judged)
        rows = [Sent(p, key, value) for (p, key), value in self.store.rows.items()]
        ends = {partition: len(log) for partition, log in self.records.items()}
        rows += [Sent(p, *source_row(end - 1)) for p, end in ends.items()]
        checks = [
            check_rows(Changelog.of(rows, {}), expected, FINGERPRINT, ends)[0],
            check_deltas(self.deltas, expected)[0],
            check_merges(found, expected.merges),
        ]
        for check in checks:
            assert check.holds, check.told
        self.check_parity(expected)

    def check_parity(self, expected: ExpectedState) -> None:
        """The check of lists links the same events, and knows the same histories."""
        found, settings = EventLog(), self.settings
        plan = ParityPlan(
            *("", "", "", 0, 0, DEFAULT_EVENT_TYPES, settings.max_history, settings.dedupe_ring),
            *(settings.max_lateness_ms, settings.popularity_half_lives_ms),
            *(settings.chain_half_life_ms, settings.neighbours, settings.max_pairs),
        )
        fold = LogFold(plan, found, PARTITIONS)
        for placed in self.in_order:
            fold.take(placed)
        fold.finish()
        assert {(e.partition, e.offset): links(e.previous) for e in found.events} == {
            place: delta.previous for place, delta in expected.deltas.items()
        }
        for known, owner in ((True, KNOWN), (False, ANONYMOUS)):
            if ("default", "u" if known else "a", owner) in expected.users:
                history = found.history(("default", known, owner), 10**9)
                wanted = items(self.row(known=known))
                assert [entry.item for entry in history[-settings.max_history :]] == wanted


@dataclass(frozen=True)
class Sent:
    partition: int
    key: bytes
    value: bytes | None
    offset: int = 0


def links(previous: tuple[str, ...]) -> tuple[int, ...]:
    return without_end(tuple(item_hash(item) if item else 0 for item in previous))


def items(row: UserRow) -> list[str]:
    names = {item_hash(f"item-{number}"): f"item-{number}" for number in range(100)}
    return [names[item] for item in row.history()["item"].tolist()]


def test_histories_become_one_in_event_time_order_and_the_anonymous_user_starts_anew():
    log = Log()
    log.send(*(click(n, known=n % 2 == 0) for n in range(6)))
    log.settle()
    before = log.row(known=False)

    log.send(merge())
    log.settle()

    assert items(log.row(known=True)) == [f"item-{n}" for n in range(6)]
    assert log.row(known=True).events_total == 6
    after = log.row(known=False)
    assert (len(after), after.taken, after.served, after.events_total) == (0, b"", b"", 0)
    assert after.seq == before.seq and after.newest_ms == before.newest_ms
    log.check()


def test_a_list_follows_and_that_of_the_anonymous_user_is_taken_away():
    log = Log()
    log.send(click(1, known=False))
    log.settle()
    ask = log.store.fold(merge())
    (request,) = ask.own_records

    given = log.store.fold(Record(request.key, request.value, 1))
    (part,) = given.own_records
    taken = log.store.fold(Record(part.key, part.value, 1))

    assert not any(user.is_due for user in ask.users.values()), "nothing has changed yet"
    (gone,) = given.users.values()
    assert given.no_list == given.no_interests == [gone] and not gone.is_due
    assert (gone.is_known, gone.owner) == (False, ANONYMOUS)
    (user,) = taken.users.values()
    assert (user.is_due, user.reason) == (True, "event")
    assert not taken.deltas, "nothing is counted again"


@pytest.mark.parametrize("wish_ms", [NOW_MS - 200_000, NOW_MS])
def test_merged_events_keep_their_times_and_the_legs_have_theirs_from_the_log(wish_ms):
    log = Log()
    log.send(*(click(n, known=False) for n in range(3)), replace(merge(), timestamp=wish_ms))
    times_ms = [NOW_MS - 100_000 + n * 1000 for n in range(3)]

    log.settle()

    assert log.row(known=True).history()["time_ms"].tolist() == times_ms
    request, part = log.in_order[4:]
    assert request.timestamp == wish_ms
    assert part.timestamp == max(wish_ms, times_ms[-1])
    log.check()


def test_what_was_taken_before_the_histories_and_the_newest_ids_go_over_too():
    log = Log(small(max_history=2))
    log.send(*(click(n, known=False) for n in range(5)), click(9, 0, known=True))
    log.settle()

    log.send(merge())
    log.settle()

    row = log.row(known=True)
    assert items(row) == ["item-3", "item-4"]
    wanted = {item_hash(f"item-{n}") for n in (0, 1, 2, 3, 4, 9)}
    assert set(row.taken_items().tolist()) == wanted
    log.send(click(4, known=True), click(4, known=False))
    log.settle()
    assert len(log.deltas) == 6, "the same event counts once, under either name"
    log.check()


def small(**fields: object) -> Settings:
    return Settings(**{"partitions": PARTITIONS, "max_history": 6, "max_taken": 5} | fields)


def test_a_merge_that_is_sent_twice_merges_once_and_a_later_one_only_what_is_new():
    log = Log()
    log.send(click(1, known=False), merge(), merge())
    log.settle()
    log.send(click(2, known=False), merge(), click(3, known=False))
    log.settle()
    once = items(log.row(known=True))

    log.send(merge(1))
    log.settle()

    assert once == ["item-1"], "the same event_id asks once"
    assert items(log.row(known=True)) == ["item-1", "item-2", "item-3"]
    assert len(log.row(known=False)) == 0
    log.check()


def test_a_merge_of_long_ago_is_not_done_once_more_when_the_changelog_is_lost():
    log = Log(small(dedupe_ring=2))
    log.send(click(1, known=False), merge())
    log.settle()
    log.send(*(click(n, known=True) for n in (2, 3, 4)))  # the ring forgets the merge
    log.send(*(click(n, known=False) for n in (5, 6, 7)))
    log.settle()
    before = [log.row(known=known).encode() for known in (True, False)]

    log.store.rows.clear()
    log.done.clear()
    log.settle()  # all is folded from the beginning, and all legs are sent once more

    legs = [r for r in log.in_order if b"driftline.merge" in (r.value or b"")]
    assert len(legs) == 4
    assert items(log.row(known=True)) == [f"item-{n}" for n in (1, 2, 3, 4)]
    assert log.row(known=True).events_total == 4
    assert items(log.row(known=False)) == [f"item-{n}" for n in (5, 6, 7)]
    after = [log.row(known=known) for known in (True, False)]
    for old, row in zip(before, after, strict=True):
        old_row = UserRow.decode(old, FINGERPRINT)
        assert (row.events, row.taken, row.ring) == (old_row.events, old_row.taken, old_row.ring)
    log.check()


def test_a_user_without_events_hands_over_nothing():
    log = Log()

    log.send(click(1, known=True), merge())
    log.settle()

    assert items(log.row(known=True)) == ["item-1"]
    assert not [r for r in log.in_order if b"merge-part" in (r.value or b"")]
    log.check()


@pytest.mark.parametrize("kind", ["user_delete", "user_opt_out", "history_reset"])
def test_what_comes_after_its_user_has_gone_is_passed_over(kind):
    log = Log()
    log.send(click(1, known=False), merge(), control(0, kind, KNOWN))
    log.settle()

    row = log.row(known=True)

    assert (len(row), row.taken) == (0, b"")
    log.check()


@pytest.mark.parametrize("max_event_bytes", [8192, 65_536])
def test_no_part_is_too_large_to_be_folded_whatever_a_row_holds(max_event_bytes):
    name = "\x01" * 256  # six bytes each in JSON
    settings = Settings(max_event_bytes=max_event_bytes)
    limits = RowLimits(max_history=200, max_taken=8000, dedupe_ring=1024)
    row = UserRow(FINGERPRINT)
    events = np.zeros(limits.max_history, dtype=EVENT)
    events["item"] = np.arange(limits.max_history)
    taken = np.arange(limits.max_taken, dtype="<u8").tobytes()
    row.take_over(events, taken, limits)
    for number in range(limits.dedupe_ring):
        row.remember(id_hash(str(number)), number, limits)
    before = UserRow.decode(row.encode(), FINGERPRINT)
    request = {"anonymous_id": name, "into_user_id": name, "asked_offset": 2**63 - 1}
    wish = decode_merge_request(
        json.dumps(body(schema="driftline.merge-request/1", tenant="t" * 32, **request)).encode()
    )

    own = fold_wish(row, wish, Turn(1, NOW_MS, NOW_MS), limits, max_event_bytes)

    other = UserRow(FINGERPRINT)
    for number, each in enumerate(own):
        assert len(each.value) <= max_event_bytes
        part = decode_merge_part(each.value)
        assert not fold_wish(other, part, Turn(number, NOW_MS, NOW_MS), limits, max_event_bytes)
    assert other.taken == before.taken and len(other) == len(before)
    assert other.history()["item"].tolist() == before.history()["item"].tolist()
    ids = [entry for entry, _ in RING_ENTRY_STRUCT.iter_unpack(before.ring)][
        -limits.dedupe_ring // 2 :
    ]
    known = [entry for entry, _ in RING_ENTRY_STRUCT.iter_unpack(other.ring)]
    assert [entry for entry in known if entry in ids] == ids
    assert settings.max_event_bytes == max_event_bytes


def test_a_forged_part_can_set_no_time_of_an_event_after_its_record():
    events = np.zeros(1, dtype=EVENT)
    events["time_ms"], events["item"] = NOW_MS * 2, 7
    ids = RING_ENTRY_STRUCT.pack(b"an id is", 2**63 - 1)
    part = MergePart(
        *("driftline.merge-part/1", "forged-0001", NOW_MS, KNOWN, ANONYMOUS, 0, "no-request", 0, 0),
        events=events.tobytes(),
        ids=ids,
    )
    log = Log()
    log.send(Record(KNOWN.encode(), encode(part)))
    log.settle()

    row = log.row(known=True)

    assert row.newest_ms == NOW_MS == row.history()["time_ms"][0]
    assert [ms for _, ms in RING_ENTRY_STRUCT.iter_unpack(row.ring)] == [LATEST_MS, NOW_MS]


@given(st.data())
def test_whatever_crashes_and_whichever_partition_is_ahead_rows_are_the_fold_of_the_log(data):
    ring = data.draw(st.sampled_from([4, 16, 64]))
    log = Log(small(dedupe_ring=ring, max_lateness_ms=20_000))
    partitions = (partition_of(KNOWN), partition_of(ANONYMOUS))
    for number in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(["click", "click", "click", "merge", "wish", "again"]))
        if what == "click":
            late = data.draw(st.integers(0, 30))
            log.send(click(number, number - late, known=data.draw(st.booleans())))
        elif what == "merge":
            log.send(merge(data.draw(st.integers(0, 3))))
        elif what == "again" and log.in_order:
            again = data.draw(st.sampled_from(log.in_order))
            log.send(Record(again.key, again.value))
        else:
            kinds = ["history_reset", "user_delete", "user_opt_out", "user_opt_in"]
            log.send(control(number, data.draw(st.sampled_from(kinds)), KNOWN))
        for _ in range(data.draw(st.integers(0, 3))):
            log.fold(data.draw(st.sampled_from(partitions)), crash=data.draw(st.booleans()))

    log.settle()

    log.check()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=20))
def test_every_click_counts_once_and_is_in_one_of_the_rows(turns):
    log = Log(small(max_history=50))
    for number, (known, folds) in enumerate(turns):
        log.send(click(number, known=known))
        if folds:
            log.send(merge(folds))
        for _ in range(folds):
            log.fold(partition_of(KNOWN), crash=folds == 2)
            log.fold(partition_of(ANONYMOUS), crash=folds == 3)

    log.settle()

    both = items(log.row(known=True)) if log.in_order and KNOWN in told(log) else []
    both += items(log.row(known=False)) if ANONYMOUS in told(log) else []
    assert sorted(both) == sorted(f"item-{number}" for number in range(len(turns)))


def told(log: Log) -> set[str]:
    return {key.decode().split("\x1f")[2] for _, key in log.store.rows if not is_own(key)}
