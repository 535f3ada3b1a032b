"""Deltas on the wire: they come back as they were, count once, and rubbish is passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_strategies import ITEMS, SETTINGS, START_MS, bits, index_of

from export.items import NO_ROW, ItemIndex, item_hash
from export.statistics import CHAIN_DEPTH, DAY_MS, ItemStatistics
from stream.deltas import PartitionDeltas
from stream.guards import Guards
from stream.statistics import (
    DeltaRecord,
    DeltasError,
    LiveStatistics,
    decode_deltas,
    delta_records,
    encode_deltas,
)

GOLDEN = Path(__file__).parent / "golden" / "deltas.v1.bin"


@st.composite
def partition_deltas(draw: st.DrawFn, first_offset: int = 0) -> PartitionDeltas:
    """Deltas of one batch, items before an event drawn from those there are."""
    items, events, previous = [], [], []
    offset = first_offset
    for _ in range(draw(st.integers(1, 12))):
        offset += draw(st.integers(1, 4))
        items.append(draw(st.sampled_from(ITEMS)))
        before = draw(st.lists(st.sampled_from(ITEMS), max_size=CHAIN_DEPTH))
        previous.append([item_hash(item) for item in before])
        time_ms = START_MS + draw(st.integers(0, 90 * DAY_MS))
        events.append((offset, time_ms, draw(st.integers(0, 256))))
    return PartitionDeltas.of_events(items, events, previous)


@given(partition_deltas(), st.integers(0, 1000), st.permutations(ITEMS))
def test_deltas_come_back_with_the_rows_of_whoever_reads_them(deltas, partition, order):
    index = index_of(order)

    back = decode_deltas(encode_deltas(partition, deltas), index)

    assert back.partition == partition
    assert back.offsets.tolist() == deltas.offsets.tolist()
    assert [index.ids[row] for row in back.items.tolist()] == deltas.items
    assert back.times_ms.tolist() == deltas.times_ms.tolist()
    assert back.weights.tolist() == deltas.weights.tolist()
    for row, hashes in zip(back.previous.tolist(), deltas.previous.tolist(), strict=True):
        wanted = [NO_ROW if h == 0 else int(index.rows_of_hashes([h])[0]) for h in hashes]
        assert row == wanted


@given(partition_deltas(), st.integers(1, 400))
def test_deltas_that_are_too_many_for_a_record_go_into_several_in_order(deltas, max_bytes):
    records = delta_records(3, deltas, max_bytes)

    together, apart = (LiveStatistics(ItemStatistics(index_of(ITEMS))) for _ in range(2))
    together.read([(3, 0, encode_deltas(3, deltas))])
    apart.read([(3, at, record) for at, record in enumerate(records)])
    assert bits(apart.statistics) == bits(together.statistics)
    of_one = [decode_deltas(record, index_of(ITEMS)) for record in records]
    assert all(
        len(record) <= max_bytes or len(read.offsets) == 1
        for record, read in zip(records, of_one, strict=True)
    )


def golden_deltas() -> PartitionDeltas:
    return PartitionDeltas.of_events(
        ["tt0111161", "é", "tt0111161"],
        [(10, 1_700_000_000_000, 16), (11, 1_700_000_060_000, 40), (14, 1_699_999_999_999, 0)],
        [[], [item_hash("tt0111161")], [item_hash("é"), item_hash("tt0111161")]],
    )


def test_deltas_of_version_1_are_written_and_read_for_ever_as_they_once_were():
    data = GOLDEN.read_bytes()

    back = decode_deltas(data, ItemIndex())

    assert encode_deltas(3, golden_deltas()) == data
    assert (back.partition, back.offsets.tolist()) == (3, [10, 11, 14])
    assert back.items.tolist() == [0, 1, 0]
    assert back.previous.tolist()[2] == [1, 0, NO_ROW, NO_ROW, NO_ROW]
    assert back.weights.tolist() == [16, 40, 0]


def test_an_item_before_an_event_that_was_never_met_is_left_out():
    deltas = PartitionDeltas.of_events(["item-1"], [(1, START_MS, 16)], [[item_hash("strange")]])

    back = decode_deltas(encode_deltas(0, deltas), ItemIndex())

    assert back.previous.tolist() == [[NO_ROW] * CHAIN_DEPTH]


def columns(**changed: object) -> bytes:
    import msgspec

    whole = msgspec.msgpack.decode(encode_deltas(0, golden_deltas()), type=DeltaRecord)
    return msgspec.msgpack.encode(msgspec.structs.replace(whole, **changed))


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"rubbish",
        encode_deltas(0, golden_deltas())[:-1],
        columns(version=2),
        columns(item_at=np.array([0, 1, 2], dtype="<u4").tobytes()),
        columns(item_at=b"\0\0\0"),
        columns(offsets=b""),
        columns(times_ms=bytes(16)),
        columns(weights=bytes(8)),
        columns(previous=bytes(8 * CHAIN_DEPTH)),
        columns(items=[1, 2]),
        b"\x91" * 100_000,  # arrays in arrays
    ],
)
def test_a_record_that_is_no_deltas_is_counted_and_passed_over(data):
    live = LiveStatistics(ItemStatistics(ItemIndex()))
    with pytest.raises(DeltasError):
        decode_deltas(data, ItemIndex())

    live.read([(0, 0, data), (0, 1, encode_deltas(0, golden_deltas()))])

    assert (live.refused, live.statistics.events, live.positions) == (1, 3, {0: 2})


@given(st.data())
def test_own_deltas_count_once_whether_they_are_read_back_or_not(data):
    batches = [
        encode_deltas(0, data.draw(partition_deltas(first_offset=100 * at))) for at in range(4)
    ]
    own = data.draw(st.sets(st.integers(0, 3)))
    only_read = LiveStatistics(ItemStatistics(index_of(ITEMS), SETTINGS))
    wrote = LiveStatistics(ItemStatistics(index_of(ITEMS), SETTINGS))

    only_read.read((0, offset, batch) for offset, batch in enumerate(batches))
    for offset in sorted(own):
        wrote.wrote([(0, offset, batches[offset])])
    wrote.read((0, offset, batch) for offset, batch in enumerate(batches))

    assert bits(wrote.statistics) == bits(only_read.statistics)
    assert wrote.positions == only_read.positions == {0: 4}


def test_own_deltas_wait_for_those_of_others_before_them():
    live = LiveStatistics(ItemStatistics(ItemIndex()))

    live.wrote([(0, 1, encode_deltas(0, golden_deltas()))])

    assert live.statistics.events == 0 and live.positions == {}


@given(partition_deltas())
def test_deltas_that_are_sent_twice_count_once_and_without_the_guard_twice(deltas):
    record = encode_deltas(0, deltas)

    guarded = LiveStatistics(ItemStatistics(ItemIndex()))
    guarded.read([(0, 0, record), (0, 1, record)])
    broken = LiveStatistics(ItemStatistics(ItemIndex()), guards=Guards(watermark=False))
    broken.read([(0, 0, record), (0, 1, record)])

    assert guarded.statistics.events == len(deltas.offsets)
    assert broken.statistics.events == 2 * len(deltas.offsets)
