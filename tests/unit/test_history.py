"""A user's row: what is folded into it is all there, in order, within bounds, and comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.statistics import CHAIN_DEPTH
from stream import history
from stream.history import (
    MAX_REC_IDS,
    MAX_SERVED,
    HistoryEvent,
    RowLimits,
    UserRow,
    hash32,
    hash64,
    id_hash,
    row_key,
    source_fingerprint,
    taken_after,
)
from stream.row_codec import (
    CODEC_VERSION,
    FILTER,
    HASH_BYTES,
    HEADER,
    RING_ENTRY_BYTES,
    RING_ENTRY_STRUCT,
    UNTIMED,
    RowError,
)

GOLDEN = Path(__file__).parent / "golden"
FINGERPRINT = source_fingerprint("4L6g3nShT-eMCtK--X86sw", 8)
LARGEST = RowLimits(max_history=200, max_taken=8000, dedupe_ring=1024)

hashes = st.integers(0, 2**64 - 1)
float32s = st.floats(width=32, allow_nan=True)


@st.composite
def history_events(draw: st.DrawFn, max_size: int = 30, items: int = 8) -> list[HistoryEvent]:
    """New events in the order of their offsets; times may come late or be equal."""
    count = draw(st.integers(0, max_size))
    return [
        HistoryEvent(
            id_hash(f"event-{number}"),
            draw(st.integers(1, items)),
            draw(st.integers(0, 20)) * 1000,
            number * 2,
            draw(st.integers(1, 2**32 - 1)),
            draw(float32s),
            draw(float32s),
            draw(st.integers(0, 2**32 - 1)),
        )
        for number in range(count)
    ]


def folded(events: Iterable[HistoryEvent], limits: RowLimits = RowLimits()) -> UserRow:  # noqa: B008
    row = UserRow(FINGERPRINT)
    for event in events:
        row.fold(event, limits)
    return row


@given(history_events(), hashes, st.integers(0, 2**63), st.binary(min_size=8, max_size=8))
def test_a_stored_row_comes_back_as_it_was(events, digest, seq, rec_id):
    row = folded(events, RowLimits(max_history=5, max_taken=3, dedupe_ring=4))
    row.seq, row.interests_digest, row.list_ms = seq, digest, 17
    row.served_list(rec_id, np.arange(30, dtype=np.uint64))

    back = UserRow.decode(row.encode(), FINGERPRINT)

    for name in UserRow.__slots__:
        assert getattr(back, name) == getattr(row, name), name
    assert back.encode() == row.encode()


def golden_row() -> UserRow:
    """Every field that rows of version 1 have, with a value of its own."""
    row = UserRow(FINGERPRINT)
    limits = RowLimits(max_history=3, max_taken=2, dedupe_ring=4)
    for number in range(6):
        row.fold(
            HistoryEvent(
                id_hash(f"golden-{number}"),
                0x0102030405060708 + number,
                1_700_000_000_000 + number * 60_000,
                1_000 + number,
                hash32("watch"),
                3.5 if number % 2 else math.nan,
                0.25,
                hash32(f"session-{number // 3}"),
            ),
            limits,
        )
    row.seq = 42
    row.list_ms = 1_700_000_999_999
    row.interests_digest = 0xFEDCBA9876543210
    row.served_list(b"rec-id-1", np.array([7, 8, 9], dtype=np.uint64))
    row.served_list(b"rec-id-2", np.array([10, 11], dtype=np.uint64))
    return row


def test_rows_of_codec_version_1_are_read_for_ever_and_written_as_version_3():
    data = (GOLDEN / "user_row.v1.bin").read_bytes()
    wanted = golden_row()
    wanted.ring = b"".join(hash64(f"golden-{number}") + UNTIMED for number in range(2, 6))
    wanted.has_old_ids = True

    back = UserRow.decode(data, FINGERPRINT)

    assert (data[0], back.encode()[0]) == (1, 3)
    assert back.encode() == wanted.encode()
    assert (back.seq, back.applied_offset, back.events_total) == (42, 1005, 6)
    assert back.history()["item"].tolist() == [0x010203040506070B + n for n in range(3)]
    assert back.history()["value"].tolist()[0] == 3.5
    assert back.taken_items().tolist()[3:] == [0x0102030405060709, 0x010203040506070A]
    assert back.rec_ids == b"rec-id-1rec-id-2"
    assert knows(back, "golden-2") and not knows(back, "golden-1")


def newest_golden_row() -> UserRow:
    """Every field of the codec with a value of its own."""
    row = golden_row()
    row.silent_until = 1001
    row.is_postponed = True
    row.filters = FILTER.pack(1, b"an-item!", 1_800_000_000_000)
    row.filters += FILTER.pack(2, b"category", 2**63 - 1)
    return row


def test_rows_of_codec_version_3_are_written_and_read_for_ever_as_they_once_were():
    data = (GOLDEN / "user_row.v3.bin").read_bytes()

    back = UserRow.decode(data, FINGERPRINT)

    assert newest_golden_row().encode() == data == back.encode()
    assert data[0] == CODEC_VERSION == 3
    for name in UserRow.__slots__:
        assert getattr(back, name) == getattr(newest_golden_row(), name), name


@given(history_events(max_size=10), st.integers(0, 3), st.integers(0, 3))
def test_a_row_is_whole_words_in_columns_that_numpy_can_gather(events, lists, filters):
    row = folded(events, RowLimits(max_history=4, max_taken=3, dedupe_ring=6))
    for number in range(lists):
        row.served_list(id_hash(str(number)), np.arange(number, dtype=np.uint64))
    row.filters = b"".join(FILTER.pack(1, id_hash(str(n)), n) for n in range(filters))

    words = np.frombuffer(row.encode(), dtype="<u8")

    n_events, n_ring = len(row), len(row.ring) // RING_ENTRY_BYTES
    n_hashes = (len(row.taken) + len(row.served) + len(row.rec_ids)) // 8
    assert HEADER.size == 9 * 8 and len(row.encode()) % 8 == 0
    assert words[3:6].view("<i8").tolist() == [row.applied_offset, row.seq, row.newest_ms]
    begin, end = 9, 9 + 5 * n_events
    assert words[begin:end].reshape(-1, 5)[:, 0].tolist() == row.history()["item"].tolist()
    begin, end = end, end + 2 * n_ring
    ring = words[begin:end].reshape(-1, 2)
    newest = events[len(events) - n_ring :]
    assert ring[:, 1].tolist() == [event.time_ms for event in newest]
    assert ring[:, 0].tobytes() == b"".join(event.event_hash for event in newest)
    begin = end + n_hashes
    assert words[begin:].reshape(-1, 3)[:, 2].tolist() == list(range(filters))


def knows(row: UserRow, event_id: str) -> bool:
    return row.has_event(event_id, id_hash(event_id))


@given(st.integers(4, 12))
def test_ids_of_older_versions_are_known_until_newer_ones_have_taken_their_places(ring):
    row = UserRow.decode((GOLDEN / "user_row.v1.bin").read_bytes(), FINGERPRINT)
    limits = RowLimits(dedupe_ring=ring, max_lateness_ms=1)
    old = [f"golden-{number}" for number in range(2, 6)]

    for number in range(ring + 1):
        at_ms = row.newest_ms + 1000
        row.fold(HistoryEvent(id_hash(str(number)), 1, at_ms, 2000 + number, 1), limits)
        row = UserRow.decode(row.encode(), FINGERPRINT)

        left = max(min(ring - number - 1, 4), 0)
        assert [knows(row, name) for name in old] == [False] * (4 - left) + [True] * left
        assert row.has_old_ids == bool(left)
    assert len(row.ring) == RING_ENTRY_BYTES, "with the last of them, the other entries age again"


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40),
    st.integers(0, 12),
    st.integers(1, 12),
)
def test_an_id_is_known_or_its_event_too_late_or_the_ring_full_of_newer_ones(turns, ring, lateness):
    row, limits = UserRow(FINGERPRINT), RowLimits(dedupe_ring=ring, max_lateness_ms=lateness)
    sent: list[tuple[str, int]] = []

    for number, (time_ms, is_reset) in enumerate(turns):
        if is_reset:
            row.forget_events()
        if time_ms < row.newest_ms - lateness:
            continue
        sent.append((str(number), time_ms))
        row.fold(HistoryEvent(id_hash(str(number)), 1, time_ms, number, 1), limits)

        horizon_ms = row.newest_ms - lateness
        for place, (name, at_ms) in enumerate(sent, start=1):
            is_pushed_out = len(sent) - place >= ring
            assert knows(row, name) or at_ms < horizon_ms or is_pushed_out
        assert len(row.ring) <= ring * RING_ENTRY_BYTES
        oldest = [RING_ENTRY_STRUCT.unpack_from(row.ring)[1]] if row.ring else []
        assert all(at_ms >= horizon_ms for at_ms in oldest)


@given(history_events(), st.integers(1, 6))
def test_a_history_is_in_the_order_of_event_time_and_of_offsets_within_one_time(events, length):
    row = folded(events, RowLimits(max_history=length))

    wanted: list[HistoryEvent] = []
    for event in events:
        wanted = sorted([*wanted, event], key=lambda e: (e.time_ms, e.offset))[-length:]
    kept = row.history()

    assert kept["offset"].tolist() == [event.offset for event in wanted]
    assert kept["item"].tolist() == [event.item for event in wanted]
    assert row.newest_ms == max((event.time_ms for event in events), default=0)
    assert row.events_total == len(events)


@given(history_events(), st.integers(1, 6))
def test_the_items_before_an_event_are_those_before_its_place_in_time(events, length):
    row = UserRow(FINGERPRINT)
    limits = RowLimits(max_history=length)

    for event in events:
        kept = row.history()
        earlier = kept["item"][kept["time_ms"] <= event.time_ms].tolist()

        previous = row.fold(event, limits)

        assert previous == earlier[::-1][:CHAIN_DEPTH]
    assert row.recent_items() == row.history()["item"].tolist()[::-1][:CHAIN_DEPTH]


@given(history_events(max_size=40, items=30), st.integers(1, 4), st.integers(0, 40))
def test_an_item_that_left_the_history_is_still_known_as_taken(events, length, max_taken):
    row = folded(events, RowLimits(max_history=length, max_taken=max_taken))

    taken = set(row.taken_items().tolist())

    assert len(row.taken) // 8 <= max_taken
    assert set(row.history()["item"].tolist()) <= taken
    if max_taken >= 30:
        assert taken == {event.item for event in events}


@given(st.lists(st.integers(0, 50), max_size=60, unique=True), st.integers(0, 8))
def test_the_ring_knows_the_newest_event_ids_and_no_others(numbers, ring):
    events = [HistoryEvent(id_hash(str(number)), 1, at, at, 1) for at, number in enumerate(numbers)]

    row = folded(events, RowLimits(dedupe_ring=ring))

    newest = set(numbers[-ring:] if ring else [])
    assert {number for number in range(51) if knows(row, str(number))} == newest


def test_a_hash_that_only_spans_two_entries_of_the_ring_is_not_in_it():
    row = UserRow(FINGERPRINT)
    row.ring = b"aaaabbbb" + b"ccccdddd" + b"eeeeffff" + b"gggghhhh"

    assert row.has_event("", b"eeeeffff")
    assert not row.has_event("", b"bbbbcccc")
    assert not row.has_event("", b"ccccdddd"), "a time is no hash"


def test_a_row_has_a_bound_whatever_is_folded_into_it():
    row = UserRow(FINGERPRINT)

    for number in range(9000):
        row.fold(HistoryEvent(id_hash(str(number)), number, number, number, 1), LARGEST)
        row.served_list(hash64(f"list-{number}"), np.arange(200, dtype=np.uint64))

    assert len(row) == 200 and len(row.taken) == 8000 * 8 and len(row.ring) == 1024 * 16
    assert len(row.served) == MAX_SERVED * 8 and len(row.rec_ids) == MAX_REC_IDS * 8
    assert len(row.encode()) == 94_792 - 256 * FILTER.size


def test_a_history_is_cut_to_a_limit_that_was_set_lower_since():
    events = [HistoryEvent(hash64(str(n)), n, n, n, 1) for n in range(10)]
    row = folded(events, RowLimits(max_history=10))

    row.fold(HistoryEvent(hash64("10"), 10, 10, 10, 1), RowLimits(max_history=4))

    assert row.history()["item"].tolist() == [7, 8, 9, 10]
    assert set(row.taken_items().tolist()) == set(range(11))


@pytest.mark.parametrize(
    "fingerprint", [source_fingerprint("another-topic-id", 8), source_fingerprint("4L6g3nShT", 16)]
)
def test_a_row_of_another_topic_or_partition_count_is_refused_with_what_to_do(fingerprint):
    data = folded([]).encode()

    with pytest.raises(RowError, match=r"another topic or partition count.*prefix"):
        UserRow.decode(data, fingerprint)


@given(history_events(), st.data())
def test_bytes_that_are_cut_or_too_many_are_refused(events, data):
    whole = folded(events).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(RowError):
        UserRow.decode(whole[:cut], FINGERPRINT)
    with pytest.raises(RowError, match="remove the data directory"):
        UserRow.decode(whole + b"\0", FINGERPRINT)


def test_a_row_of_another_codec_version_is_refused():
    data = folded([]).encode()

    with pytest.raises(RowError, match="codec version 1, 2 or 3"):
        UserRow.decode(b"\4" + data[1:], FINGERPRINT)


@given(st.text(), st.text())
def test_known_and_anonymous_users_and_tenants_never_share_a_row(owner, other):
    keys = [
        row_key(tenant, is_known, name)
        for tenant in ("default", "shop")
        for is_known in (True, False)
        for name in {owner, other}
    ]

    assert len(set(keys)) == len(keys)


def test_the_hash_of_a_type_or_session_is_stable_and_never_the_sign_for_none():
    assert hash32("click") == 0x28B325FF
    assert all(hash32(str(number)) for number in range(1000))


@given(
    st.lists(st.integers(1, 12), max_size=9),
    st.lists(st.integers(1, 12), max_size=9),
    st.integers(0, 9),
    st.integers(1, 4),
)
def test_items_are_taken_one_after_another_however_many_are_looked_for_at_once(
    taken, items, max_taken, at_once
):
    packed = [np.array(numbers, "<u8").tobytes() for numbers in (taken, items)]
    for item in items if max_taken else ():
        if item not in taken:
            taken = [*taken, item][-max_taken:]

    with mock.patch.object(history, "_AT_ONCE", at_once):
        after = taken_after(*packed, HASH_BYTES, max_taken)

    assert np.frombuffer(after, "<u8").tolist() == taken
