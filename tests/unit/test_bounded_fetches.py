"""Fetched batches are opened up to a bound; what is refused leaves a mark and nothing else."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import cramjam
import pytest
from aiokafka.codec import snappy_encode
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from export.decompress import CODECS, BoundedDecompressor, DecompressionError
from stream.kafka.bounded import TRANSACTION_END, FetchBound, Refusal, refusal_in

LIMIT = 100_000
MEGABYTES = 200
CODEC_NUMBERS = {name: number for number, name in CODECS.items()}


def compressed(codec: str, data: bytes) -> bytes:
    if codec == "gzip":
        return gzip.compress(data)
    if codec == "snappy":
        return snappy_encode(data)
    return bytes(getattr(cramjam, codec).compress(data))


def batch(base: int, values: list[bytes], codec: int = 0, transaction: bool = False) -> bytes:
    """A record batch of format 2 as a producer sends it."""
    builder = DefaultRecordBatchBuilder(2, codec, transaction, 7, 3, 11, 10**9)
    for delta, value in enumerate(values):
        builder.append(delta, 1000 + delta, b"key", value, [("h", b"v")])
    return struct.pack(">q", base) + bytes(builder.build()[8:])


class Read:
    """A record as it comes out of aiokafka's parser."""

    def __init__(self, record: object) -> None:
        for name in ("offset", "timestamp", "key", "value", "headers"):
            setattr(self, name, getattr(record, name))

    @property
    def content(self) -> tuple[object, ...]:
        return self.offset, self.timestamp, self.key, self.value, tuple(self.headers)


def parsed(data: bytes) -> list[Read]:
    records = []
    memory = MemoryRecords(data)
    while memory.has_next():
        found = memory.next_batch()
        assert found.validate_crc()
        records += [Read(record) for record in found]
    return records


def opened(data: bytes, begin: int = 0, limit: int = LIMIT, room: int = 10**9) -> list[Read]:
    return parsed(FetchBound(limit).opened("topic", 0, begin, data, room)[0])


@pytest.mark.parametrize("codec", CODECS.values())
def test_a_decompressed_batch_may_be_as_large_as_the_bound_and_not_a_byte_larger(codec: str):
    decompressor = BoundedDecompressor(LIMIT)
    number = CODEC_NUMBERS[codec]

    assert decompressor.decompress(number, compressed(codec, b"x" * LIMIT)) == b"x" * LIMIT
    with pytest.raises(DecompressionError, match=r"become more than the 100,000 bytes"):
        decompressor.decompress(number, compressed(codec, b"x" * (LIMIT + 1)))


@pytest.mark.parametrize("codec", CODECS.values())
def test_a_bomb_costs_no_more_memory_than_the_bound(codec: str):
    bomb = compressed(codec, bytes(MEGABYTES * 2**20))
    decompressor = BoundedDecompressor(LIMIT)

    tracemalloc.start()
    with pytest.raises(DecompressionError):
        decompressor.decompress(CODEC_NUMBERS[codec], bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20 * LIMIT + len(bomb)


@pytest.mark.parametrize("codec", CODECS.values())
def test_bytes_of_no_codec_or_cut_off_are_refused(codec: str):
    decompressor = BoundedDecompressor(LIMIT)
    whole = compressed(codec, bytes(range(256)) * 40)

    for data in (b"", b"hello", whole[: len(whole) // 2]):
        with pytest.raises(DecompressionError):
            decompressor.decompress(CODEC_NUMBERS[codec], data)


def test_gzip_in_parts_is_one_and_what_comes_after_it_is_passed_over_as_java_does():
    data = gzip.compress(b"one ") + gzip.compress(b"two") + b"not gzip"

    assert BoundedDecompressor(LIMIT).decompress(1, data) == b"one two"


def test_a_snappy_block_that_says_it_is_huge_is_refused_before_memory_is_asked_for():
    with pytest.raises(DecompressionError, match="become more than"):
        BoundedDecompressor(LIMIT).decompress(2, b"\xff\xff\xff\xff\x0f" + bytes(20))


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 3, 4]), st.lists(st.binary(max_size=300), min_size=1)),
        min_size=1,
        max_size=6,
    )
)
def test_opened_batches_hold_the_same_records(batches: list[tuple[int, list[bytes]]]):
    data, base = b"", 100
    for codec, values in batches:
        data += batch(base, values, codec)
        base += len(values)

    assert [r.content for r in opened(data, 100)] == [r.content for r in parsed(data)]


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
@pytest.mark.parametrize("transaction", [False, True])
def test_a_refused_batch_is_one_record_at_its_end_and_its_neighbours_are_whole(
    codec: int, transaction: bool
):
    values = [bytes(LIMIT)] * 3
    data = batch(5, [b"a", b"b"]) + batch(7, values, codec, transaction) + batch(10, [b"c"], codec)

    before, second, mark, after = opened(data, begin=5)

    assert [before.value, second.value, after.value] == [b"a", b"b", b"c"]
    assert (mark.offset, mark.key) == (9, None)
    refusal = refusal_in(mark.value)
    assert (refusal.first, refusal.last) == (7, 9)
    assert "become more than the 100,000 bytes" in refusal.reason
    assert [refusal_in(record.value) for record in (before, second, after)] == [None] * 3


def test_a_mark_keeps_its_transaction_so_that_an_aborted_one_stays_aborted():
    data = FetchBound(LIMIT).opened("topic", 0, 0, batch(0, [bytes(2 * LIMIT)], 4, True), 1)[0]

    mark = MemoryRecords(data).next_batch()

    assert (mark.producer_id, mark.is_transactional, mark.next_offset) == (7, True, 1)


def transaction_end(offset: int) -> bytes:
    """The marker that a coordinator writes at the end of a transaction."""
    builder = DefaultRecordBatchBuilder(2, 0, True, 7, 3, -1, 1000)
    builder.append(0, 1000, struct.pack(">hh", 0, 1), struct.pack(">hi", 0, 0), [])
    data = bytearray(struct.pack(">q", offset) + bytes(builder.build()[8:]))
    data[22] |= 0x20
    data[17:21] = struct.pack(">I", calc_crc32c(bytes(data[21:])))
    return bytes(data)


def test_where_each_offset_is_expected_the_end_of_a_transaction_is_a_refused_record():
    data = batch(0, [b"a", b"b"], transaction=True) + transaction_end(2) + batch(3, [b"c"])

    found, used = FetchBound(LIMIT, is_each_offset_expected=True).opened("t", 0, 0, data, LIMIT)

    records = parsed(found)
    assert [record.offset for record in records] == [0, 1, 2, 3]
    assert refusal_in(records[2].value) == Refusal(2, 2, len(transaction_end(2)), TRANSACTION_END)
    assert [record.value for record in records if record.offset != 2] == [b"a", b"b", b"c"]
    assert used == 0
    assert FetchBound(LIMIT).opened("t", 0, 0, data, LIMIT) == (data, 0)


def test_a_producer_cannot_send_a_mark():
    forged = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 10**6)
    forged.append(0, 0, None, b'driftline-refused-{"first":0,"last":9}', [])

    (record,) = opened(bytes(forged.build()))

    assert refusal_in(record.value) is None


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [1, 2, 3])
def test_the_old_formats_are_bounded_too(magic: int, codec: int):
    if magic == 0 and codec == 3:
        pytest.skip("format 0 has no lz4")
    bodies = []
    for value in (b"small", bytes(2 * LIMIT)):
        builder = LegacyRecordBatchBuilder(magic, codec, 10**9)
        builder.append(0, 1000, b"key", value)
        bodies.append(bytes(builder.build()))
    data = bodies[0] + struct.pack(">q", 1) + bodies[1][8:]

    good, mark = opened(data)

    assert good.value == b"small"
    assert (mark.offset, mark.key, refusal_in(mark.value).last) == (1, None, 1)


def test_what_cannot_be_decompressed_is_refused_and_what_is_damaged_is_left_to_aiokafka():
    good = batch(3, [b"x" * 500], 4)
    garbage = bytearray(good)
    garbage[70:80] = bytes(10)
    with_its_crc = batch_with_crc(garbage)

    (mark,) = opened(with_its_crc, begin=3)

    assert refusal_in(mark.value).reason
    assert FetchBound(LIMIT).opened("topic", 0, 3, bytes(garbage), 10**9)[0] == bytes(garbage)


def batch_with_crc(body: bytearray) -> bytes:
    from aiokafka.record.util import calc_crc32c

    return bytes(body[:17]) + struct.pack(">I", calc_crc32c(bytes(body[21:]))) + bytes(body[21:])


def test_what_is_opened_of_one_answer_is_bounded_and_the_rest_is_fetched_again():
    many = b"".join(batch(base, [bytes(LIMIT // 2)], 4) for base in range(20))
    answer = [("events", [(0, 0, 20, many), (1, 0, 20, many)]), ("other", [(0, 0, 20, many)])]

    first, other = FetchBound(LIMIT).opened_topics(answer, {}, {"events"})

    counts = [len(parsed(data)) if data else 0 for *_, data in first[1]]
    assert counts == [2, 0]
    assert other == answer[1]


def test_a_batch_that_is_cut_off_by_the_fetch_is_left_as_it_is():
    whole, part = batch(0, [b"a"], 4), batch(1, [b"b" * 100], 4)[:-20]

    assert [record.value for record in opened(whole + part)] == [b"a"]
    assert FetchBound(LIMIT).opened("topic", 0, 1, part, 10**9)[0] == part
