"""Folding records: what is refused, what counts once, what becomes due; cut into batches anyhow."""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
from collections import Counter
from itertools import pairwise
from unittest import mock

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
    body,
    control,
    partition_of,
    record,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.event_types import EventRole
from export.items import item_hash
from export.statistics import DAY_MS
from stream import whole_rows
from stream.folded_batch import FoldedBatch
from stream.guards import Guards
from stream.history import RowError, UserRow, hash32
from stream.settings import Settings
from stream.state import Folder, UsersOfBatch

#: Three users whose events lie on partition 1.
USERS = [name for n in range(50) if partition_of(name := f"user-{n}") == 1][:3]
ITEMS = [f"item-{number}" for number in range(5)]


def value(**fields: object) -> bytes:
    return json.dumps(body(**fields)).encode()


def part_of_merge(**columns: str) -> bytes:
    about = {"from_anonymous_id": "a", "asked_offset": 0, "request_id": "request-1"}
    about |= {"request_offset": 0, "part": 0}
    return value(schema="driftline.merge-part/1", **about, **columns)


REFUSED = {
    "no value": (None, "no value"),
    "not UTF-8": (b'{"event_id": "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"}', "utf-8"),
    "empty": (b"", "truncated"),
    "not JSON": (b"click!", "malformed"),
    "not an object": (b"[1, 2]", "Expected `object`"),
    "deep": (b"[" * 20_000, ""),
    "deep in a field that is read": (b'{"context": ' + b'{"a":' * 20_000, ""),
    "too long": (value(query="x" * 70_000), "at most 65536"),
    "no event_id": (value(event_id=None), "event_id"),
    "short event_id": (value(event_id="short"), "length >= 8"),
    "no type": (value(type=None), "type"),
    "no event_time": (value(event_time=None), "event_time"),
    "text as time": (value(event_time="now"), "Expected `int`"),
    "before 1970": (value(event_time=-62_135_596_800_000), ">= 0"),
    "year 9999": (value(event_time=253_402_300_799_000), "after the record's timestamp"),
    "a time beyond 64 bits": (value(event_time=10**30), ""),
    "NaN": (value(value=float("nan")), "malformed"),
    "infinity": (value(value=float("inf")), "malformed"),
    "value beyond float64": (b'{"value": 1e999, ' + value()[1:], "out of range"),
    "value beyond float32": (value(value=1e39), "value"),
    "portion above one": (value(portion=1.5), "portion"),
    "number as user": (value(user_id=7), "Expected `str`"),
    "empty user": (value(user_id=""), "length >= 1"),
    "user of 10 kB": (value(user_id="u" * 10_000), "length <= 256"),
    "nobody": (value(user_id=None), "neither user_id nor anonymous_id"),
    "no item": (value(item_id=None), "no item_id"),
    "no item for a dislike": (value(type="dislike", item_id=None), "no item_id"),
    "malformed type": (value(type="Click!"), "regex"),
    "type with a line end": (value(type="click\n"), "regex"),
    "malformed tenant": (value(tenant="a b"), "regex"),
    "other schema": (value(schema="driftline.event/2"), "schema"),
    "half a surrogate": (value().replace(b"item-1", b"\\ud800"), ""),
    "control event that nothing does yet": (
        value(schema="driftline.control/1", type="user_export"),
        "not supported yet: control event user_export",
    ),
    "merge of nobody": (
        value(schema="driftline.control/1", type="user_merge"),
        "no from_anonymous_id",
    ),
    "request to merge without an offset": (
        value(schema="driftline.merge-request/1", anonymous_id="ada", into_user_id="eve"),
        "",
    ),
    "part of a merge that is cut": (part_of_merge(events="AAAA"), "no whole entries"),
    "part of a merge with a time before 1970": (
        part_of_merge(ids=base64.b64encode(struct.pack("<8sq", b"an id is", -1)).decode()),
        "before 1970",
    ),
    "part of a merge with an infinite value": (
        part_of_merge(
            events=base64.b64encode(struct.pack("<QqqffII", 1, 2, 3, 1e999, 0.5, 0, 1)).decode()
        ),
        "none that an event can have",
    ),
    "part of a merge that is no base64": (part_of_merge(taken="!"), ""),
    "block of nothing": (value(schema="driftline.control/1", type="item_block"), "no target"),
    "control event of tomorrow": (
        value(schema="driftline.control/1", type="user_delete", event_time=NOW_MS + 2 * DAY_MS),
        "after the record's timestamp",
    ),
    "unknown control event": (value(schema="driftline.control/1", type="user_shout"), ""),
}


@pytest.mark.parametrize(
    "values",
    [
        [b"", value() + value(event_id="another-event")],
        [value()[:-1], b"," + value()[1:], value() + value(event_id="another-event")],
        [value() + value(event_id="another-event"), b" "],
    ],
)
def test_a_value_with_two_objects_does_not_make_up_for_one_with_none(values):
    store = Store()

    batch = store.fold(*(Record(b"ada", data, offset) for offset, data in enumerate(values)))

    assert len(batch.dead_letters) == len(values)
    assert batch.counts == {}


@pytest.mark.parametrize("name", REFUSED)
def test_a_record_that_breaks_the_contract_is_one_dead_letter_and_stops_nothing(name):
    data, reason = REFUSED[name]
    store = Store()

    batch = store.fold(record(1), Record(b"ada", data, 2), record(3))

    (letter,) = batch.dead_letters
    assert reason in letter.reason and letter.reason
    assert (letter.topic, letter.offset, letter.key, letter.value) == (
        "user-events",
        2,
        b"ada",
        data,
    )
    assert letter.partition == partition_of("ada")
    assert batch.counts == {"folded": 2}
    assert len(store.row("ada")) == 2


def test_a_record_without_a_key_is_refused():
    batch = Store().fold(dataclasses.replace(record(), key=None), partition=0)

    assert "no key" in batch.dead_letters[0].reason


@given(st.binary(max_size=60) | st.text().map(str.encode), st.binary(max_size=8) | st.none())
def test_no_bytes_whatsoever_raise(data, key):
    Store().fold(Record(key, data), partition=0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from([*body(), "value", "portion", "session_id", "tenant", "rec"]), json_values)
def test_no_value_of_any_field_raises(name, anything):
    data = json.dumps(body() | {name: anything}).encode()

    batch = Store().fold(Record(b"ada", data), partition=partition_of("ada"))

    outcomes = sum(batch.counts.values()) + len(batch.dead_letters) + len(batch.misrouted)
    assert outcomes == 1


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """One partition's log of three users: clicks, visits, dislikes, repeats, late ones, rubbish."""
    log = []
    sent_ms = NOW_MS - 5000
    for offset in range(draw(st.integers(1, 25))):
        if draw(st.integers(0, 9)) == 0:
            log.append(Record(b"ada", b"rubbish", offset))
            continue
        sent_ms += draw(st.integers(0, 2)) * 1000  # some events are ahead of their records
        kind = draw(st.sampled_from(["click", "click", "visit", "dislike", "impression", "wink"]))
        event = record(
            offset,
            draw(st.integers(0, offset)),
            user_id=draw(st.sampled_from(USERS)),
            type=kind,
            item_id=draw(st.sampled_from(ITEMS)),
            event_time=NOW_MS - draw(st.integers(-3, 5)) * 1000,
        )
        log.append(dataclasses.replace(event, timestamp=sent_ms))
    return log


class SingleFolder(Folder):
    """Folds each event by itself."""

    def _are_whole(self, users: UsersOfBatch, again: object) -> NDArray[np.bool_]:
        return np.zeros(len(users.columns.row_keys), dtype=np.bool_)


def run(
    log: list[Record], cuts: set[int], settings: Settings, folder: type[Folder] = Folder
) -> tuple[object, ...]:
    """Rows, deltas, dead letters and counts after folding the log in batches cut there."""
    store = Store(settings, folder=folder)
    deltas: list[tuple[object, ...]] = []
    dead, counts = [], {}
    bounds = sorted({0, *cuts, len(log)})
    for first, last in pairwise(bounds):
        batch = store.fold_slices([RecordSlice(Tp(1), log[first:last])])
        for columns in batch.deltas.values():
            rows = (np.asarray(getattr(columns, f.name)) for f in dataclasses.fields(columns))
            deltas += zip(*(row.tolist() for row in rows), strict=True)
        dead += [letter.offset for letter in batch.dead_letters]
        for name, count in batch.counts.items():
            counts[name] = counts.get(name, 0) + count
    return store.rows, deltas, dead, counts


@given(st.data())
def test_the_state_after_a_log_does_not_depend_on_where_batches_were_cut(data):
    log = data.draw(logs())
    cuts = data.draw(st.sets(st.integers(1, len(log))))
    settings = Settings(max_history=4, max_taken=3, dedupe_ring=data.draw(st.integers(0, 5)))

    assert run(log, cuts, settings) == run(log, set(), settings)


def moved(log: list[Record], partition: int) -> list[Record]:
    """The same, of users who belong to that partition."""
    names = [name for n in range(99) if partition_of(name := f"user-{n}") == partition]
    new = dict(zip(USERS, names, strict=False))
    records = []
    for each in log:
        owner = (each.key or b"").decode()
        if owner in new:
            event = json.loads(each.value or b"") | {"user_id": new[owner]}
            each = dataclasses.replace(
                each, key=new[owner].encode(), value=json.dumps(event).encode()
            )
        records.append(each)
    return records


def outcome(store: Store, batches: list[FoldedBatch]) -> tuple[object, ...]:
    """What batches have come to, whatever was in which of them."""
    deltas, counts = {}, Counter()
    for batch in batches:
        counts += batch.counts
        for partition, columns in batch.deltas.items():
            rows = (np.asarray(getattr(columns, f.name)) for f in dataclasses.fields(columns))
            deltas[partition] = [row.tolist() for row in rows]
    due = {key: (u.is_due, u.trigger_id) for batch in batches for key, u in batch.users.items()}
    letters = [(x.partition, x.offset) for batch in batches for x in batch.dead_letters]
    sent_on = [(x.partition, x.offset) for batch in batches for x in batch.misrouted]
    return store.rows, deltas, counts, due, sorted(letters), sorted(sent_on)


@given(st.data())
def test_partitions_folded_together_come_to_what_each_by_itself_comes_to(data):
    together, alone = Store(), Store()
    logs_of = {}
    for partition in data.draw(st.permutations(range(PARTITIONS))):
        log = data.draw(logs())
        logs_of[partition] = moved(log, partition) if data.draw(st.integers(0, 3)) else log
    cut = data.draw(st.integers(0, 10))

    for part in (slice(None, cut), slice(cut, None)):
        slices = [RecordSlice(Tp(p), log[part]) for p, log in logs_of.items() if log[part]]
        both = [together.fold_slices(slices)], [alone.fold_slices([each]) for each in slices]
        assert outcome(together, both[0]) == outcome(alone, both[1])


@given(st.data())
def test_events_of_a_user_folded_at_once_come_to_what_each_by_itself_comes_to(data):
    log = data.draw(logs())
    sizes = {"max_history": st.integers(1, 7), "max_taken": st.integers(0, 3)}
    settings = Settings(
        **{name: data.draw(size) for name, size in sizes.items()},
        dedupe_ring=data.draw(st.integers(0, 5)),
        max_lateness_ms=data.draw(st.sampled_from([0, 1000, 3000, DAY_MS])),
    )
    cuts = data.draw(st.sets(st.integers(1, len(log))))

    with mock.patch.object(whole_rows, "_LONG_RING", data.draw(st.sampled_from([0, 2, 64]))):
        assert run(log, cuts, settings) == run(log, cuts, settings, SingleFolder)


def test_an_id_from_ahead_stays_in_the_ring_while_younger_ones_of_a_batch_leave_it():
    log = [
        dataclasses.replace(at(offset, offset, said_ms), timestamp=NOW_MS - DAY_MS + sent_ms)
        for offset, (said_ms, sent_ms) in enumerate([(900, 100), (101, 101), (1150, 1150)])
    ]
    again = dataclasses.replace(log[0], offset=3, timestamp=log[2].timestamp)
    settings = Settings(max_lateness_ms=1000)

    rows, _, _, counts = run([*log, again], {3}, settings)

    assert counts["duplicates"] == 1
    assert (rows, counts) == run([*log, again], {3}, settings, SingleFolder)[::3]


@given(st.data())
def test_what_is_read_again_after_a_crash_is_not_folded_again_but_its_lists_are_due(data):
    log = data.draw(logs())
    store = Store()
    first = store.fold(*log, partition=1)
    rows = dict(store.rows)
    again = data.draw(st.integers(0, len(log) - 1))

    batch = store.fold(*log[again:], partition=1)

    assert store.rows == rows
    assert not batch.deltas and not batch.counts["folded"]
    due = {user.owner for user in batch.users.values() if user.is_due}
    assert due <= {user.owner for user in first.users.values() if user.is_due}
    if again == 0:
        assert due == {user.owner for user in first.users.values() if user.is_due}


def test_an_event_id_that_came_before_counts_once_whatever_its_offset():
    store = Store()

    batch = store.fold(record(1, 1), record(2, 1, item_id="item-2"), record(3, 3))

    assert batch.counts == {"folded": 2, "duplicates": 1}
    assert batch.deltas[partition_of("ada")].offsets.tolist() == [1, 3]
    assert store.row("ada").applied_offset == 3


def at(offset: int, number: int, time_ms: int, **fields: object) -> Record:
    """A click of a time of its own."""
    return record(offset, number, event_time=NOW_MS - DAY_MS + time_ms, **fields)


def test_an_event_that_is_too_late_is_counted_and_changes_nothing_but_the_offset():
    store = Store(Settings(max_lateness_ms=1000))
    store.fold(at(1, 1, 5000))
    before = store.row("ada")

    batch = store.fold(at(2, 2, 3999, item_id="item-2"), at(3, 3, 4000, type="unheard_of"))

    assert batch.counts == {"late": 1, "unknown_type": 1}
    assert not batch.deltas and not batch.dead_letters
    (user,) = batch.users.values()
    assert not user.is_due, "a list would be the same as before"
    after = store.row("ada")
    before.applied_offset = 2
    assert after.encode() == before.encode()


def test_an_event_that_is_as_late_as_it_may_be_is_folded_in_its_place():
    store = Store(Settings(max_lateness_ms=1000))

    batch = store.fold(at(1, 1, 5000), at(2, 2, 4000, item_id="item-2"))

    assert batch.counts == {"folded": 2}
    assert store.row("ada").history()["offset"].tolist() == [2, 1]


def test_a_visit_is_answered_however_late_it_comes():
    store = Store(Settings(max_lateness_ms=1000))

    batch = store.fold(at(1, 1, 5000), at(2, 2, 0, type="visit"))

    (user,) = batch.users.values()
    assert (user.is_due, user.reason, batch.counts["late"]) == (True, "visit", 0)


def test_an_event_that_was_in_time_at_its_turn_is_due_when_it_is_read_again():
    settings = Settings(
        max_lateness_ms=1000, event_types={"view": EventRole("positive", 1.0, False)}
    )
    store = Store(settings)
    log = [at(1, 1, 1000), at(2, 2, 5000, type="view")]
    (first,) = store.fold(*log).users.values()

    batch = store.fold(*log)

    (again,) = batch.users.values()
    assert first.is_due and again.is_due
    assert batch.counts == {"replayed": 2}


@pytest.mark.parametrize(("guarded", "outcome"), [(True, "late"), (False, "folded")])
def test_an_event_whose_id_has_aged_out_of_the_ring_is_too_late_or_without_the_guard_counts_twice(
    guarded, outcome
):
    store = Store(Settings(max_lateness_ms=1000), guards=Guards(lateness=guarded))

    batch = store.fold(at(1, 1, 1000), at(2, 2, 5000), at(3, 1, 1000))

    assert batch.counts == {"folded": 3} if outcome == "folded" else {"folded": 2, "late": 1}
    assert store.row("ada").events_total == (2 if guarded else 3)


@given(st.data())
def test_an_event_counts_once_however_often_and_late_it_comes(data):
    settings = Settings(max_lateness_ms=3, dedupe_ring=64)
    store = Store(settings)
    folded: list[int] = []
    sent_ms = NOW_MS - DAY_MS
    for offset in range(data.draw(st.integers(1, 40))):
        if data.draw(st.integers(0, 9)) == 0:
            store.fold(control(offset, "history_reset"))
            continue
        number = data.draw(st.integers(0, 15))
        event = at(offset, number, number // 2, item_id=f"item-{number}")
        sent_ms += data.draw(st.integers(0, 2))  # some events are ahead of their records
        batch = store.fold(dataclasses.replace(event, timestamp=sent_ms))
        folded += [number] * batch.counts["folded"]

    assert len(folded) == len(set(folded))


def test_without_the_guard_a_replay_is_folded_twice():
    store = Store(guards=Guards(replay_skip=False))

    store.fold(record(1))
    batch = store.fold(record(1))

    assert batch.counts == {"folded": 1}
    assert len(store.row("ada")) == 2


def test_what_an_event_adds_is_its_item_the_ones_before_its_time_and_its_weight():
    settings = Settings(event_types={"watch": EventRole("positive", 2.5)})
    clicks = [
        record(1, item_id="item-1"),
        record(2, item_id="item-2", type="dislike"),
        record(3, item_id="item-3", type="watch", value=4, portion=0.5, session_id="s"),
    ]

    store = Store(settings)
    batch = store.fold(*clicks)

    deltas = batch.deltas[partition_of("ada")]
    assert deltas.items == ["item-1", "item-2", "item-3"]
    assert deltas.previous.tolist() == [
        [0, 0, 0, 0, 0],
        [item_hash("item-1"), 0, 0, 0, 0],
        [item_hash("item-2"), item_hash("item-1"), 0, 0, 0],
    ]
    assert deltas.weights.tolist() == [16, 0, 40]
    assert deltas.times_ms.tolist() == [NOW_MS - 999, NOW_MS - 998, NOW_MS - 997]
    last = store.row("ada").history()[-1]
    assert (last["value"], last["portion"]) == (4.0, 0.5)
    assert (last["session"], last["type"]) == (hash32("s"), hash32("watch"))


@given(st.integers(0, DAY_MS))
def test_a_time_ahead_of_the_record_by_less_than_the_limit_is_set_back_to_it(ahead_ms):
    store = Store()

    batch = store.fold(record(event_time=NOW_MS + ahead_ms))

    assert store.row("ada").newest_ms == NOW_MS
    assert next(iter(batch.users.values())).request_ms == NOW_MS


def test_a_visit_asks_for_a_list_and_leaves_history_and_statistics_alone():
    store = Store()

    batch = store.fold(record(7, type="visit", item_id=None))

    (user,) = batch.users.values()
    assert (user.is_due, user.reason, user.trigger_id) == (True, "visit", "event-0007")
    assert not batch.deltas and len(user.row) == 0
    assert store.row("ada").applied_offset == 7


@pytest.mark.parametrize(
    ("kinds", "reason", "trigger"),
    [
        (["click", "click"], "event", 2),
        (["visit", "click"], "visit", 1),
        (["click", "visit", "click"], "visit", 2),
        (["visit", "visit", "click"], "visit", 2),
        (["click", "impression"], "event", 1),
    ],
)
def test_of_several_events_the_newest_visit_is_the_trigger_else_the_newest_event(
    kinds, reason, trigger
):
    records = [record(offset, type=kind) for offset, kind in enumerate(kinds, start=1)]

    (user,) = Store().fold(*records).users.values()

    assert (user.reason, user.trigger_id) == (reason, f"event-{trigger:04d}")
    assert user.trigger_offset == trigger
    assert user.coalesced == sum(kind != "impression" for kind in kinds)


def test_a_list_is_asked_for_as_of_the_latest_time_of_the_events():
    (user,) = (
        Store().fold(record(1, event_time=NOW_MS - 5), record(2, event_time=NOW_MS - 9)).users
    ).values()

    assert user.request_ms == NOW_MS - 5


def test_types_that_settings_do_not_know_or_ignore_are_counted_and_nothing_else():
    settings = Settings(event_types={"hover": EventRole("ignored")})
    kinds = ["wink", "hover", "impression"]

    batch = Store(settings).fold(*(record(at, type=kind) for at, kind in enumerate(kinds)))

    assert batch.counts == {"unknown_type": 1, "ignored": 2}
    assert not batch.users and not batch.deltas and not batch.dead_letters


def test_a_type_that_does_not_refresh_is_folded_and_makes_nothing_due():
    settings = Settings(event_types={"view": EventRole("positive", 1.0, False)})

    store = Store(settings)

    batch = store.fold(record(type="view"))

    assert len(store.row("ada")) == 1 and not batch.users


def test_an_event_of_another_scenario_is_folded_and_no_list_is_due():
    store = Store()

    batch = store.fold(record(scenario="kids"))

    assert len(store.row("ada")) == 1 and not batch.users


def test_a_record_under_another_key_than_its_user_is_sent_again_and_not_folded():
    store = Store()
    wrong = dataclasses.replace(record(), key=b"bob")

    batch = store.fold(wrong)

    assert [(m.key, m.value) for m in batch.misrouted] == [(b"ada", wrong.value)]
    assert not batch.users and not store.rows and not batch.dead_letters


def test_a_record_on_another_partition_than_its_keys_is_sent_again_and_not_folded():
    store = Store()
    elsewhere = (partition_of("ada") + 1) % PARTITIONS

    batch = store.fold(record(1), record(2), partition=elsewhere)

    assert [m.key for m in batch.misrouted] == [b"ada", b"ada"]
    assert not batch.users and not store.rows
    assert batch.last_offsets == {elsewhere: 2}


def test_known_and_anonymous_users_and_tenants_have_rows_of_their_own():
    store = Store()

    store.fold(
        record(1, item_id="item-1"),
        record(2, item_id="item-2", user_id=None, anonymous_id="ada"),
        record(3, item_id="item-3", tenant="shop"),
    )

    assert store.row("ada").taken_items().tolist() == [item_hash("item-1")]
    assert store.row("ada", is_known=False).taken_items().tolist() == [item_hash("item-2")]
    assert store.row("ada", tenant="shop").taken_items().tolist() == [item_hash("item-3")]


def test_an_event_with_both_ids_belongs_to_the_known_user():
    store = Store()

    store.fold(record(anonymous_id="device-1"))

    assert len(store.row("ada")) == 1


def test_slices_of_several_partitions_are_one_batch():
    names = {partition_of(name): name for name in (f"user-{n}" for n in range(50))}
    slices = [
        RecordSlice(Tp(partition), [record(5 + partition, user_id=name)])
        for partition, name in names.items()
    ]

    batch = Store().fold_slices(slices)

    assert batch.last_offsets == {partition: 5 + partition for partition in names}
    assert set(batch.deltas) == set(names)
    assert {user.partition for user in batch.users.values()} == set(names)


def test_a_stored_row_of_another_topic_stops_the_batch():
    store = Store()
    store.rows[partition_of("ada"), b"default\x1fu\x1fada"] = UserRow(FINGERPRINT + 1).encode()

    with pytest.raises(RowError, match="another topic"):
        store.fold(record())
