"""Plain records are what ConsumerRecords would have told, slice by slice, and so are positions."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from stream.kafka.plain import hand_over_plain

TP = TopicPartition("events", 3)
BYTES = st.none() | st.binary(max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """Batches of one partition in offset order, with holes as compaction leaves them."""
    data, offset = b"", 0
    for _ in range(draw(st.integers(1, 4))):
        offset += draw(st.integers(0, 3))
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10_000)
        count = draw(st.integers(1, 6))
        for delta in sorted(draw(st.sets(st.integers(0, count - 1), min_size=1))):
            headers = [("name", draw(BYTES))] if draw(st.booleans()) else []
            time_ms = 1_700_000_000_000 + offset + delta
            builder.append(delta, time_ms, draw(BYTES), draw(BYTES), headers)
        batch = bytearray(builder.build())
        batch[:8] = offset.to_bytes(8, "big")
        offset += count
        data += bytes(batch)
    return data


class Consumer:
    """As much of a consumer as fetches: a fetch brings these bytes."""

    def __init__(self, data: bytes, position: int, is_plain: bool) -> None:
        self.state = SimpleNamespace(position=position, paused=False, consumed_to=self._consumed)
        self.data = data
        self._records: dict[TopicPartition, Any] = {}
        self._fetcher = self
        if is_plain:
            hand_over_plain(self, lambda topic: topic == TP.topic)

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        self._records[TP] = FetchResult(
            TP,
            assignment=SimpleNamespace(active=True, state_value=lambda tp: self.state),
            partition_records=PartitionRecords(
                TP, MemoryRecords(self.data), None, self.state.position, None, None, True, 0
            ),
            backoff=0,
        )
        return True

    def fetch(self) -> Any:
        asyncio.run(self._proc_fetch_request(None, 1, None))
        return self._records[TP]

    def _consumed(self, position: int) -> None:
        self.state.position = position


def told(record: Any) -> tuple[object, ...]:
    return record.offset, record.timestamp, record.key, record.value, tuple(record.headers)


@given(batches(), st.integers(0, 5), st.lists(st.none() | st.integers(1, 5), min_size=1))
def test_plain_records_tell_the_same_and_leave_the_same_position(data, position, cuts):
    stock, plain = (Consumer(data, position, is_plain) for is_plain in (False, True))
    usual, found = stock.fetch(), plain.fetch()

    for most in [*cuts, None]:
        if not usual.has_more():
            break
        wanted, got = usual.getall(most), found.getall(most)

        assert [told(record) for record in got] == [told(record) for record in wanted]
        assert not any(isinstance(record, ConsumerRecord) for record in got)
        assert plain.state.position == stock.state.position
        assert found.has_more() == usual.has_more()


def test_a_seek_drops_what_was_fetched_before_it():
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10_000)
    builder.append(0, 1, b"key", b"value", [])
    consumer = Consumer(bytes(builder.build()), 0, is_plain=True)
    found = consumer.fetch()
    consumer.state.position = 7

    assert found.getall(10) == []


def test_a_flipped_bit_is_refused():
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10_000)
    builder.append(0, 1, b"key", b"value", [])
    data = bytearray(builder.build())
    data[-3] ^= 1
    found = Consumer(bytes(data), 0, is_plain=True).fetch()

    with pytest.raises(CorruptRecordException):
        found.getall(10)


def test_an_answer_is_freed_when_all_of_it_was_handed_over():
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10_000)
    builder.append(0, 1, b"key", b"value", [])
    consumer = Consumer(bytes(builder.build()), 0, is_plain=True)
    found = consumer.fetch()
    answer = weakref.ref(found._partition_records)
    gc.disable()  # it would find a cycle, but not before there are thousands
    try:
        found.getall()

        assert answer() is None
    finally:
        gc.enable()
