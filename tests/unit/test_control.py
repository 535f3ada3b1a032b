"""Control events: each is done once, in the order of the clicks, and nothing comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folding import (
    FINGERPRINT,
    NOW_MS,
    PARTITIONS,
    Record,
    RecordSlice,
    Store,
    Tp,
    control,
    partition_of,
    record,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from live_parts import live_of
from statistics_strategies import Counted, statistics_of

from export.items import ItemIndex, item_hash, item_hashes
from export.statistics import DAY_MS
from stream.agents import BatchProcessor, TableRows
from stream.catalogue import Catalogue
from stream.control import MAX_FILTERS, group_key, hidden_rows, with_filter
from stream.history import OPTED_OUT, RowLimits, UserRow, hash64, id_hash
from stream.ranker import StatisticsRanker
from stream.refresh_control import RefreshControl
from stream.row_codec import FILTER, RING_ENTRY_BYTES, RING_ENTRY_STRUCT, UNTIMED
from stream.settings import Settings
from stream.state import Folder
from stream.verify.deltas import DeltaTopic
from stream.verify.events import EventRules, Refused, SentOn
from stream.verify.lists import SentLists, applied_offsets, check_interests, check_lists
from stream.verify.rows import Changelog, check_rows
from stream.verify.users import ExpectedState

GOLDEN = Path(__file__).parent / "golden" / "user_row.v2.bin"
ITEMS = [f"item-{number}" for number in range(8)]
SETTINGS = Settings(partitions=PARTITIONS, max_history=4, dedupe_ring=6)
#: Users of one partition.
USERS = [name for n in range(50) if partition_of(name := f"user-{n}") == 0][:2]


def seen(event_id: str, time_ms: int) -> bytes:
    """An entry of the ring."""
    return RING_ENTRY_STRUCT.pack(id_hash(event_id), time_ms)


# -- rows -----------------------------------------------------------------------------------


def test_a_reset_forgets_what_the_user_did_and_keeps_seq_ring_and_offset():
    store = Store(Settings(max_history=2))
    store.fold(*(record(n, item_id=f"item-{n}") for n in range(4)))
    before = with_seq(store, 7)

    batch = store.fold(control(4, "history_reset"))

    row = store.row("ada")
    assert (len(row), row.taken, row.served, row.events_total) == (0, b"", b"", 0)
    assert (row.seq, row.applied_offset) == (7, 4)
    assert row.ring == before.ring + seen("control-0004", NOW_MS - 996)
    assert row.newest_ms == before.newest_ms, "what was too late before is too late still"
    (user,) = batch.users.values()
    assert (user.is_due, user.trigger_id) == (True, "control-0004")
    assert batch.no_interests == [user] and not batch.no_list


def test_a_deleted_users_row_holds_seq_offset_and_ids_and_nothing_that_the_user_did():
    store = Store()
    store.fold(*(record(n, item_id=f"item-{n}") for n in range(4)))
    store.fold(control(4, "item_block", target="item-7"))
    before = with_seq(store, 7)

    batch = store.fold(record(5), control(6, "user_delete"))

    row = store.row("ada")
    wanted = UserRow(FINGERPRINT)
    wanted.seq, wanted.applied_offset, wanted.silent_until = 7, 6, 6
    wanted.newest_ms = NOW_MS - 995
    ids = seen("event-0005", NOW_MS - 995) + seen("control-0006", NOW_MS - 994)
    wanted.ring = before.ring + ids
    assert row.encode() == wanted.encode()
    (user,) = batch.users.values()
    assert not user.is_due
    assert batch.no_list == batch.no_interests == [user]


def test_what_comes_after_a_deletion_starts_anew_and_what_came_before_does_not_come_back():
    store = Store()
    log = [record(1), control(2, "user_delete"), record(3, item_id="item-3")]
    store.fold(*log)
    rows = dict(store.rows)

    alone = store.fold(log[0])
    all_again = store.fold(*log)

    assert store.rows == rows
    assert store.row("ada").history()["item"].tolist() == [item_hash("item-3")]
    (user,) = alone.users.values()
    assert not user.is_due, "a click of before the deletion asks for no list when read again"
    (user,) = all_again.users.values()
    assert (user.is_due, user.trigger_offset) == (True, 3)
    assert not all_again.no_list, "nothing may take the list away that was sent since"
    assert all_again.counts == {"replayed": 3}


@pytest.mark.parametrize("wishes", [["user_delete"], ["user_opt_out", "user_opt_in"]])
def test_a_click_that_is_sent_again_after_its_user_was_forgotten_does_not_come_back(wishes):
    store = Store()
    click = record(1)
    store.fold(click, *(control(2 + n, wish) for n, wish in enumerate(wishes)))

    batch = store.fold(record(5, number=1), record(6, event_time=NOW_MS - 2 * DAY_MS))

    assert batch.counts == {"duplicates": 1, "late": 1}
    assert not batch.deltas
    assert len(store.row("ada")) == 0


@pytest.mark.parametrize("wishes", [["user_delete"], ["user_opt_out", "user_opt_in"]])
def test_who_was_forgotten_gets_no_list_for_what_came_before(wishes):
    store = Store()
    store.fold(record(1), *(control(2 + n, wish) for n, wish in enumerate(wishes)))
    again, late = record(5, number=1), record(6, event_time=NOW_MS - 2 * DAY_MS)

    at_first, read_again = store.fold(again, late), store.fold(again, late)
    later = store.fold(record(7))

    due = [[user.is_due for user in b.users.values()] for b in (at_first, read_again, later)]
    assert due == [[False], [False], [True]]


def test_a_deletion_that_was_sent_twice_deletes_once():
    store = Store()

    again = control(3, "user_delete", event_id="control-0001")
    batch = store.fold(control(1, "user_delete"), record(2), again)

    assert len(store.row("ada")) == 1
    assert batch.counts == {"control": 1, "folded": 1, "duplicates": 1}
    assert store.row("ada").applied_offset == 3


def test_who_has_opted_out_is_not_followed_until_opting_in():
    store = Store()
    store.fold(record(1), control(2, "item_block", target="item-5"))

    batch = store.fold(
        control(3, "user_opt_out"),
        record(4),
        record(5, type="visit"),
        control(6, "history_reset"),
        control(7, "category_mute", target="jazz"),
    )

    row = store.row("ada")
    assert (len(row), row.silent_until, row.applied_offset) == (0, OPTED_OUT, 7)
    (user,) = batch.users.values()
    assert not user.is_due and not batch.deltas
    assert batch.counts == {"control": 3, "opted_out": 2}
    assert len(row.filters) == 2 * FILTER.size, "what is not to be listed is known all the time"

    batch = store.fold(control(8, "user_opt_in"), record(9, item_id="item-2"))

    assert store.row("ada").history()["offset"].tolist() == [9]
    (user,) = batch.users.values()
    assert (user.is_due, user.trigger_offset) == (True, 9)


def test_opting_in_without_having_opted_out_changes_nothing():
    store = Store()
    store.fold(record(1), control(2, "user_opt_in"))

    row = store.row("ada")
    assert (len(row), row.silent_until, row.filters) == (1, -1, b"")


def test_an_anonymous_user_and_one_of_another_tenant_are_not_meant():
    store = Store()
    store.fold(record(1, user_id=None, anonymous_id="ada"), record(2, tenant="shop"), record(3))

    store.fold(control(4, "user_delete"))

    assert len(store.row("ada", is_known=False)) == len(store.row("ada", tenant="shop")) == 1
    assert len(store.row("ada")) == 0


def with_seq(store: Store, seq: int) -> UserRow:
    """Enter lists into the stored row, as a worker does after ranking."""
    row = store.row("ada")
    row.seq, row.list_ms, row.interests_digest, row.is_postponed = seq, NOW_MS, 9, True
    row.served_list(b"12345678", np.arange(3, dtype=np.uint64))
    (where,) = store.rows
    store.rows[where] = row.encode()
    return row


# -- filters --------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 20))
    )
)
def test_filters_are_the_newest_of_each_target_that_have_not_ended(wishes):
    filters = b""
    wanted: dict[tuple[int, bytes], int] = {}

    for kind, name, until_ms, now_ms in wishes:
        filters = with_filter(filters, kind, hash64(name), until_ms, now_ms)
        wanted.pop((kind, hash64(name)), None)
        wanted = {key: end for key, end in wanted.items() if end > now_ms}
        if until_ms > now_ms:
            wanted[kind, hash64(name)] = until_ms

    assert [f[:2] for f in FILTER.iter_unpack(filters)] == list(wanted)
    assert [f[2] for f in FILTER.iter_unpack(filters)] == list(wanted.values())


def test_of_too_many_filters_the_newest_are_kept():
    filters = b""
    for number in range(MAX_FILTERS + 10):
        filters = with_filter(filters, 1, hash64(str(number)), 2**62, 0)

    targets = [target for _, target, _ in FILTER.iter_unpack(filters)]
    assert targets == [hash64(str(number)) for number in range(10, MAX_FILTERS + 10)]


def catalogue_of(index: ItemIndex) -> Catalogue:
    """item-0 and item-1 are jazz, items of even number by ann."""
    catalogue = Catalogue(index)
    for number, item in enumerate(ITEMS):
        about = {"categories": ["jazz"] if number < 2 else ["rock"]}
        about |= {"creator_id": "ann"} if number % 2 == 0 else {}
        put(catalogue, item, 1, **about)
    return catalogue


def put(catalogue: Catalogue, item: str, version: int, **about: object) -> None:
    value = json.dumps({"item_id": item, "version": version, **about}).encode()
    assert catalogue.take(item.encode(), value) is None


@pytest.mark.parametrize(
    ("wish", "hidden"),
    [
        ({"kind": "item_block", "target": "item-3"}, {"item-3"}),
        ({"kind": "item_block", "target": "never met"}, set()),
        ({"kind": "category_mute", "target": "jazz"}, {"item-0", "item-1"}),
        ({"kind": "category_mute", "target": "ann"}, set()),
        ({"kind": "creator_block", "target": "ann"}, set(ITEMS[::2])),
        ({"kind": "item_block", "target": "item-3", "until": NOW_MS + 5}, {"item-3"}),
        ({"kind": "category_mute", "target": "jazz", "until": NOW_MS}, set()),
    ],
)
def test_what_is_not_to_be_listed_is_hidden_until_it_ends(wish, hidden):
    index = ItemIndex()
    catalogue = catalogue_of(index)
    store = Store()
    store.fold(control(1, event_time=NOW_MS - 9, **wish))

    rows = hidden_rows(index, catalogue)(store.row("ada"), NOW_MS)

    assert {index.ids[row] for row in rows.tolist() if row >= 0} == hidden


def test_the_groups_of_items_follow_the_catalogue():
    index = ItemIndex()
    catalogue = catalogue_of(index)

    put(catalogue, "item-0", 2, categories=["rock", "blues"])
    put(catalogue, "item-1", 0, categories=["opera"])
    catalogue.take(b"item-2", None)

    def names(group: str, name: str) -> set[str]:
        return {index.ids[row] for row in catalogue.rows_in(group_key(group, name))}

    assert names("category", "jazz") == {"item-1"}
    assert names("category", "blues") == {"item-0"}
    assert names("category", "rock") == {"item-0", *ITEMS[3:]}
    assert names("creator", "ann") == {"item-4", "item-6"}
    assert names("category", "opera") == set()


# -- bytes ----------------------------------------------------------------------------------


def golden_row() -> UserRow:
    row = UserRow(FINGERPRINT)
    row.applied_offset, row.seq, row.silent_until = 1005, 42, 1001
    row.ring, row.has_old_ids = b"event-id" + UNTIMED, True
    row.filters = FILTER.pack(1, b"an-item!", 1_800_000_000_000)
    row.filters += FILTER.pack(2, b"category", 2**63 - 1)
    return row


def test_rows_of_codec_version_2_are_read_for_ever_and_written_as_version_3():
    data = GOLDEN.read_bytes()

    back = UserRow.decode(data, FINGERPRINT)

    assert (data[0], back.encode()[0]) == (2, 3)
    assert back.encode() == golden_row().encode()
    assert (back.silent_until, back.seq) == (1001, 42)
    assert back.filters == golden_row().filters


@given(st.integers(0, len(GOLDEN.read_bytes()) - 1))
def test_cut_bytes_of_version_2_are_refused(length):
    data = GOLDEN.read_bytes()

    with pytest.raises(Exception, match="wanted a row"):
        UserRow.decode(data[:length], FINGERPRINT)


def test_the_largest_row_has_the_size_that_is_said():
    row = UserRow(FINGERPRINT)
    limits = RowLimits(max_history=200, max_taken=8000, dedupe_ring=1024)
    row.events = b"e" * 40 * limits.max_history
    row.ring = b"r" * RING_ENTRY_BYTES * limits.dedupe_ring
    row.taken, row.served, row.rec_ids = b"t" * 8 * limits.max_taken, b"s" * 160, b"r" * 32
    row.filters = b"f" * FILTER.size * MAX_FILTERS

    assert len(row.encode()) == 94_792


# -- whole batches --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A record that a worker sent."""

    partition: int
    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = NOW_MS
    headers: tuple = ()


class CrashError(Exception):
    pass


@dataclass
class Engine:
    """The steps of batches, on rows and topics in memory; `crash_at` ends a batch at a step."""

    settings: Settings = SETTINGS
    rows: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    sent: dict[str, list[Sent]] = field(default_factory=dict)
    crash_at: str = ""

    def __post_init__(self) -> None:
        past = [Counted(0, n, item, (), NOW_MS - 10**6, 16) for n, item in enumerate(ITEMS)]
        statistics = statistics_of([past])
        catalogue = catalogue_of(statistics.index)
        self.live = live_of(statistics, NOW_MS, StatisticsRanker(0.5), catalogue)
        self.start()

    def start(self) -> None:
        """A worker that knows nothing but the rows."""
        refreshes = RefreshControl(self.settings, lambda partition: iter(()), FINGERPRINT)
        self.processor = BatchProcessor(
            self.settings,
            Folder(self.settings, "user-events", PARTITIONS, FINGERPRINT, item_hashes),
            refreshes,
            self,
            self.live,
            self.send_records,
            TableRows(lambda _, offset: (b"source", b""), lambda has: (b"postponed", b"")),
            on_step=self.reached,
        )

    def reached(self, step: str) -> None:
        if step == self.crash_at:
            raise CrashError

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.rows.get((partition, key)) for key in keys]

    def write(self, partition: int, rows: list[tuple[bytes, bytes]], offset: int) -> None:
        own = (b"source", b"postponed")
        self.rows |= {(partition, key): data for key, data in rows if key not in own}

    async def send_records(
        self, topic: str, partition: int, records: Sequence[Any], **_: Any
    ) -> list[asyncio.Future[tuple[int, int]]]:
        self.sent.setdefault(topic, []).extend(Sent(partition, *pair) for pair in records)
        delivery = asyncio.get_running_loop().create_future()
        delivery.set_result((0, len(records)))
        return [delivery]

    def process(self, records: Sequence[Record], partition: int = 0, crash_at: str = "") -> None:
        """One batch; a crash starts another worker."""
        self.crash_at = crash_at
        try:
            asyncio.run(self.processor.process([RecordSlice(Tp(partition), records)]))
        except CrashError:
            self.start()

    def told(self, topic: str) -> list[Any]:
        return [s.value and json.loads(s.value) for s in self.sent.get(topic, [])]


@pytest.mark.parametrize("kind", ["user_delete", "user_opt_out"])
def test_who_goes_has_list_and_interests_taken_away(kind):
    engine, user = Engine(), USERS[0]
    engine.process([record(1, user_id=user)])
    assert engine.told("recommendations")[-1] and engine.told("interests")[-1]

    engine.process([record(2, user_id=user), control(3, kind, user)])

    assert engine.told("recommendations")[-1] is None
    assert engine.told("interests")[-1] is None
    assert engine.sent["recommendations"][-1].key == user.encode()


def test_the_list_of_a_new_life_comes_after_the_old_one_was_taken_away_and_counts_on():
    engine, user = Engine(), USERS[0]
    engine.process([record(1, user_id=user)])

    engine.process([control(2, "user_delete", user), record(3, user_id=user, item_id="item-4")])

    first, taken_away, new = engine.told("recommendations")
    assert (first["seq"], taken_away, new["seq"]) == (1, None, 2)
    assert "item-1" in {item["item_id"] for item in new["items"]}, "it is not known as taken"
    assert engine.told("interests")[-2:] == [None, engine.told("interests")[-1]]


@pytest.mark.parametrize(
    ("kind", "target", "hidden"),
    [
        ("item_block", "item-3", {"item-3"}),
        ("category_mute", "jazz", {"item-0", "item-1"}),
        ("creator_block", "ann", set(ITEMS[::2])),
    ],
)
@pytest.mark.parametrize("seen_items", ["filter", "allow"])
def test_a_wish_makes_a_list_without_what_is_not_wanted(kind, target, hidden, seen_items):
    changed = {"seen_items": seen_items, "refresh_min_change": 1.0}
    engine, user = Engine(Settings(partitions=PARTITIONS, **changed)), USERS[0]
    engine.process([record(1, user_id=user, item_id="item-7")])

    engine.process([control(2, kind, user, target=target)])

    before, after = (
        {item["item_id"] for item in told["items"]} for told in engine.told("recommendations")
    )
    assert after == before - hidden != before


def test_a_list_of_which_wishes_leave_nothing_is_taken_away():
    engine, user = Engine(), USERS[0]
    engine.process([record(1, user_id=user, item_id="item-7")])

    engine.process([control(2 + n, "item_block", user, target=i) for n, i in enumerate(ITEMS)])

    assert engine.told("recommendations")[-1] is None


CONTROLS = [
    "history_reset",
    "user_delete",
    "user_opt_out",
    "user_opt_in",
    "item_block",
    "category_mute",
]


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """One partition's log of two users: clicks, visits and wishes, some of them sent twice."""
    log = []
    for offset in range(draw(st.integers(2, 14))):
        user, number = draw(st.sampled_from(USERS)), draw(st.integers(0, offset))
        if draw(st.booleans()):
            kind = draw(st.sampled_from(["click", "click", "visit"]))
            item = draw(st.sampled_from(ITEMS[:6]))
            log.append(record(offset, number, user_id=user, type=kind, item_id=item))
        else:
            kind = draw(st.sampled_from(CONTROLS))
            target = draw(st.sampled_from([*ITEMS[:6], "jazz", "rock"]))
            event_id = f"control-{number:04d}"
            log.append(control(offset, kind, user, target=target, event_id=event_id))
    return log


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_crashes_rows_and_topics_are_in_the_end_what_the_log_asks_for(data):
    log, engine = data.draw(logs()), Engine()
    committed = 0
    for _ in range(data.draw(st.integers(0, 4))):  # batches that end before their commit, or not
        end = data.draw(st.integers(committed + 1, len(log)))
        crash_at = data.draw(st.sampled_from(["", "rank", "send", "changelog", "write", "ack"]))
        engine.process(log[committed:end], crash_at=crash_at)
        committed = committed if crash_at else end
        if committed == len(log):
            break
    else:
        engine.process(log[committed:])

    expected, rules = ExpectedState(SETTINGS), EventRules(SETTINGS, PARTITIONS)
    for placed in log:
        judged = rules.judge(Sent(0, placed.key, placed.value, placed.offset))
        assert judged and not isinstance(judged, Refused | SentOn)
        expected.apply(judged, 0, placed.offset)
    rows = [Sent(p, key, value) for (p, key), value in engine.rows.items()]
    check, stored = check_rows(Changelog.of(rows, {}), expected, FINGERPRINT, {})
    lists = SentLists.of(engine.sent.get("recommendations", []))
    applied = applied_offsets(engine.sent.get("decisions", []), lists)
    sent = check_lists(lists, applied, expected, stored, DeltaTopic())
    interests = check_interests(engine.sent.get("interests", []), expected)
    for found in (check, sent, interests):
        assert found.holds, found.told


def test_a_list_that_waited_when_its_user_was_forgotten_is_not_answered_later():
    store = Store()
    (waiting,) = store.fold(record(1, type="visit")).users.values()

    (user,) = store.fold(control(2, "user_delete"), record(3)).users.values()
    user.answers_also(waiting)

    assert (user.reason, user.trigger_offset, user.coalesced) == ("event", 3, 1)
