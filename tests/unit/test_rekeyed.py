"""A record that was sent on counts once, however often its copy comes, and whatever between."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from folding import FINGERPRINT, PARTITIONS, Record, Store, control, partition_of, record
from hypothesis import given
from hypothesis import strategies as st

from stream.rekeyed import (
    REQUEST_BYTES,
    Misrouted,
    Originals,
    copies_key,
    folded_up_to,
    requests_of,
    send_on,
)
from stream.settings import Settings
from stream.verify.events import EventRules
from stream.verify.fold import Copies
from stream.verify.users import ExpectedState

ORIGINALS = Originals("user-events", FINGERPRINT)
HERE = partition_of("ada")
WRONG = (HERE + 1) % PARTITIONS
NO_RING = Settings(dedupe_ring=0)


def copy(offset: int, original: int, source: int = WRONG, **fields: object) -> Record:
    """A copy of the event with its original's number."""
    made = record(offset, number=1000 * source + original, **fields)
    return replace(made, headers=(ORIGINALS.header(source, original),))


def test_a_copy_that_comes_again_is_touched_and_not_folded():
    store = Store(NO_RING)
    store.fold(copy(1, 7), copy(2, 8), record(3))

    batch = store.fold(copy(4, 7), copy(5, 8), copy(6, 9))

    assert batch.counts == {"duplicates": 2, "folded": 1}
    (user,) = batch.users.values()
    assert (user.is_due, user.coalesced) == (True, 3)
    assert store.row("ada").events_total == 4
    assert store.row("ada").applied_offset == 6


def test_it_is_told_within_one_batch_and_for_each_partition_of_originals_alone():
    store = Store(NO_RING)
    other = (HERE + 2) % PARTITIONS

    batch = store.fold(copy(1, 7), copy(2, 7), copy(3, 5, other), copy(4, 5, other), copy(5, 8))

    assert batch.counts == {"folded": 3, "duplicates": 2}
    assert batch.copies == {HERE: {WRONG: 8, other: 5}}


def test_a_control_event_that_comes_again_is_not_done_again():
    store = Store(NO_RING)
    reset = replace(control(1, "history_reset"), headers=(ORIGINALS.header(WRONG, 7),))
    store.fold(reset, record(2), record(3))

    batch = store.fold(replace(reset, offset=4))

    assert batch.counts == {"duplicates": 1}
    assert store.row("ada").events_total == 2


def test_a_copy_that_is_read_again_counts_for_those_after_it():
    """Rows may be in the changelog and the row of the copies not, which comes after them."""
    store = Store(NO_RING)
    store.fold(copy(1, 7))
    del store.rows[HERE, copies_key(WRONG)]

    store.fold(copy(1, 7))
    batch = store.fold(copy(2, 7))

    assert batch.counts == {"duplicates": 1}
    assert folded_up_to(store.rows[HERE, copies_key(WRONG)]) == 7


def test_what_is_no_copy_of_this_topic_is_told_by_its_id_alone():
    mirrored = Originals("user-events", FINGERPRINT + 1).header(WRONG, 7)
    forged = [
        ("rekeyed-from", b"user-events-1"),
        ("rekeyed-from", b""),
        ("another", b"x"),
        mirrored,
    ]
    store = Store(NO_RING)

    batch = store.fold(*(replace(record(n), headers=(h,)) for n, h in enumerate(forged * 2)))

    assert batch.counts == {"folded": 8}
    assert batch.copies == {}


def test_misrouted_records_say_where_they_lie():
    store = Store()
    strayed = replace(record(4, user_id="ada"), key=b"bob")

    batch = store.fold(strayed, record(3), partition=WRONG)

    assert [(m.key, m.partition, m.offset) for m in batch.misrouted] == [
        (b"ada", WRONG, 4),
        (b"ada", WRONG, 3),
    ]


async def test_copies_go_out_in_the_order_of_their_originals_and_one_request_at_a_time():
    under_way = 0
    sent: list[tuple[int, list[int]]] = []

    async def send_records(topic, partition, records, *, timestamp_ms, headers):
        nonlocal under_way
        offsets = [ORIGINALS.of(SimpleNamespace(headers=each))[1] for each in headers]
        sent.append((partition, offsets))
        assert timestamp_ms == [10 * offset for offset in offsets], "as their originals"
        under_way += 1
        assert under_way == 1

        async def acknowledge() -> tuple[int, int]:
            nonlocal under_way
            under_way -= 1
            return 0, len(records)

        return [acknowledge()]

    large = bytes(REQUEST_BYTES // 3)
    misrouted = [Misrouted(b"ada", large, WRONG, offset, 10 * offset) for offset in (9, 3, 7, 5, 8)]

    await send_on(misrouted, ORIGINALS, PARTITIONS, send_records, "user-events")

    assert sent == [(HERE, [3, 5]), (HERE, [7, 8]), (HERE, [9])]


@given(st.lists(st.integers(0, REQUEST_BYTES + 10), max_size=12))
def test_requests_hold_all_in_order_and_are_no_larger_than_a_batch(sizes):
    records = [Misrouted(b"k", bytes(size), 0, offset, 0) for offset, size in enumerate(sizes)]

    parts = list(requests_of(reversed(records)))

    assert [r for part in parts for r in part] == records
    for part in parts:
        assert len(part) == 1 or sum(len(r.value) for r in part) < REQUEST_BYTES


#: What a worker sends on: it goes back after some, and dies after more.
ways = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5)


@given(ways, st.integers(0, 2), st.lists(st.integers(1, 4), min_size=1, max_size=40))
def test_however_copies_come_again_each_original_is_folded_once_as_the_checker_says(
    ways, ring, cuts
):
    settings = Settings(dedupe_ring=ring)
    arrived: list[int] = []
    reached = 0  # what is sent on first never goes beyond the next one
    for back, ahead in ways:
        begin = max(reached - back, 0)
        arrived += range(begin, begin + ahead)
        reached = max(reached, begin + ahead)
    records = [copy(offset, original) for offset, original in enumerate(arrived)]
    store, left = Store(settings), list(records)

    for cut in cuts * len(records):
        if left:
            store.fold(*left[:cut])
            left = left[cut:]
    expected, copies = ExpectedState(settings), Copies("user-events", FINGERPRINT)
    rules = EventRules(settings, PARTITIONS)
    for each in records:
        each = SimpleNamespace(**body_of(each), partition=HERE)
        expected.apply(rules.judge(each), HERE, each.offset, copies.came_before(each))

    if records:
        row = store.row("ada")
        assert row.events_total == len(set(arrived))
        assert row.events_total == expected.users["default", "u", "ada"].events_total
        assert row.applied_offset == len(arrived) - 1


def body_of(made: Record) -> dict[str, object]:
    return {
        name: getattr(made, name) for name in ("key", "value", "offset", "timestamp", "headers")
    }
