"""The parts of the batch layer that can be seen without a worker around them."""

from __future__ import annotations

import asyncio
import os
import struct
import time

import faust
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from batch_harness import new_topics, running_producer
from faust.tables.recovery import ServiceStopped
from faust.types import TP
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.kafka.batches import BatchOptions, BatchOptionsError
from stream.kafka.bounded import FetchBound
from stream.kafka.continuity import Continuity
from stream.kafka.fencing import FENCED_EXIT_CODE, LoopGuard
from stream.kafka.producer import RecordTooLargeError, record_bytes
from stream.kafka.restore import RecoveryTimeoutError
from stream.kafka.watchdog import ProgressWatchdog
from stream.kafka.wiring import BrokerLimits, faust_settings, install

SOURCE = TP("events", 0)


class At:
    """As much of a record as continuity looks at."""

    def __init__(self, offset: int, value: bytes | None = None) -> None:
        self.offset = offset
        self.value = value


def offsets(records: object) -> list[int]:
    return [record.offset for record in records]


# -- continuity ---------------------------------------------------------------------------------


def test_a_slice_that_begins_too_late_is_read_again_before_it_is_believed():
    told: list[tuple[TP, int, int]] = []
    continuity = Continuity(lambda *gap: told.append(gap))
    continuity.start(SOURCE, 10)
    late = [At(13), At(14)]

    first, second = continuity.admit(SOURCE, late), continuity.admit(SOURCE, late)

    assert offsets(first) == []
    assert offsets(second) == [13, 14]
    assert told == [(SOURCE, 10, 13)]
    assert (continuity.gaps_total, continuity.records_lost_total) == (1, 3)


def test_offsets_of_a_refused_batch_are_not_missing_and_those_before_it_are():
    told: list[tuple[TP, int, int]] = []
    continuity = Continuity(lambda *gap: told.append(gap))
    continuity.start(SOURCE, 10)
    (mark,) = marks(batch_of_zeros(base=12, count=4))

    first = continuity.admit(SOURCE, [At(10), At(11), mark, At(16)])
    continuity.delivered(SOURCE, 16)
    second = continuity.admit(SOURCE, [At(17), At(19)])

    assert offsets(first) == [10, 11, 15, 16]
    assert offsets(second) == [17, 19]
    assert told == [(SOURCE, 18, 19)]


def test_reading_may_begin_inside_a_refused_batch():
    continuity = Continuity(None)
    continuity.start(SOURCE, 13)

    admitted = continuity.admit(SOURCE, marks(batch_of_zeros(base=12, count=4)))

    assert offsets(admitted) == [15]
    assert continuity.gaps_total == 0


def batch_of_zeros(base: int, count: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 1, 0, -1, -1, -1, 10**7)
    for delta in range(count):
        builder.append(delta, 0, None, bytes(100_000), [])
    return struct.pack(">q", base) + bytes(builder.build()[8:])


def marks(batch: bytes) -> list[At]:
    """What comes in the place of a batch that is refused."""
    data, _ = FetchBound(1000).opened("events", 0, 0, batch, 1)
    return [At(record.offset, record.value) for record in MemoryRecords(data).next_batch()]


def test_nothing_is_admitted_before_the_start_is_decided():
    assert offsets(Continuity(None).admit(SOURCE, [At(0)])) == []


@settings(deadline=None)
@example(log=[False, False, False, True, True], cuts=[(5, 1), (4, 1)])
@given(
    log=st.lists(st.booleans(), min_size=1, max_size=40),
    cuts=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 10)), max_size=30),
)
def test_whatever_slices_come_every_record_is_delivered_once_in_order_and_every_hole_is_told(
    log: list[bool], cuts: list[tuple[int, int]]
):
    """`log` says which offsets exist; `cuts` are slices that come from anywhere, as after seeks."""
    there = [offset for offset, exists in enumerate(log) if exists]
    holes: list[int] = []
    continuity = Continuity(lambda tp, want, got: holes.extend(range(want, got)))
    continuity.start(SOURCE, 0)
    delivered: list[int] = []

    def fetch(position: int, count: int) -> None:
        slice_ = [At(offset) for offset in there if offset >= position][:count]
        if slice_:
            admitted = offsets(continuity.admit(SOURCE, slice_))
            if admitted:
                delivered.extend(admitted)
                continuity.delivered(SOURCE, admitted[-1])

    for position, count in cuts:
        fetch(position, count)  # a stale slice
        fetch(continuity.next_offset(SOURCE), count)  # what the seek after it brings
    while there and continuity.next_offset(SOURCE) <= there[-1]:
        fetch(continuity.next_offset(SOURCE), 7)

    reached = there[-1] if there else 0
    assert delivered == there
    assert sorted(holes) == [at for at in range(reached) if not log[at]]


# -- fencing ------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_guard_ends_the_process_after_three_quarters_of_a_session_and_not_before():
    clock, ended = Clock(), []
    guard = LoopGuard(10.0, clock=clock, end=ended.append)

    clock.now_s += 7.4
    guard.check()
    assert ended == []

    clock.now_s += 7.6
    guard.check()
    assert ended == [FENCED_EXIT_CODE]


def test_the_guard_asks_further_checks_and_lets_their_errors_out():
    def lost() -> None:
        raise LookupError("partition lost")

    guard = LoopGuard(10.0, also_check=lost)

    with pytest.raises(LookupError, match="partition lost"):
        guard.check()


def test_a_pause_without_partitions_ends_nothing():
    clock, ended = Clock(), []
    guard = LoopGuard(10.0, has_partitions=lambda: False, clock=clock, end=ended.append)

    clock.now_s += 60
    guard.check()

    assert ended == []
    assert guard.longest_pause_s == 60


async def test_work_that_others_have_and_that_does_not_end_ends_the_process():
    ended: list[int] = []
    answers = iter([True, False, *[True] * 1000])
    guard = LoopGuard(0.4, has_lost_work=lambda: next(answers), end=ended.append)
    begun_s = time.monotonic()
    await guard.start()
    async with asyncio.timeout(5):
        while not ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await guard.stop()

    assert ended[0] == FENCED_EXIT_CODE
    assert time.monotonic() - begun_s > guard.max_pause_s  # it had time to notice by itself


async def test_a_blocked_loop_is_noticed_without_anyone_calling_check():
    ended: list[int] = []
    guard = LoopGuard(0.2, end=ended.append)
    await guard.start()

    time.sleep(0.3)  # noqa: ASYNC251  the loop is to stand still
    async with asyncio.timeout(5):
        while not ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await guard.stop()

    assert ended[0] == FENCED_EXIT_CODE
    assert guard.longest_pause_s > 0.15


# -- watchdog -----------------------------------------------------------------------------------


def make_watchdog(clock: Clock) -> ProgressWatchdog:
    return ProgressWatchdog(faust.App("watched", web_enabled=False), patience_s=30, clock=clock)


def test_a_partition_with_lag_that_does_not_move_is_stuck_until_it_moves():
    clock = Clock()
    watchdog = make_watchdog(clock)

    watchdog.observe({SOURCE: 5}, {SOURCE: 20})
    clock.now_s += 31
    watchdog.observe({SOURCE: 5}, {SOURCE: 40})
    assert watchdog.stuck_partitions == {SOURCE}
    assert watchdog.lag == {SOURCE: 35}

    watchdog.observe({SOURCE: 6}, {SOURCE: 40})
    assert watchdog.stuck_partitions == frozenset()


def test_a_partition_without_lag_or_with_progress_is_never_stuck():
    clock = Clock()
    watchdog = make_watchdog(clock)
    idle, slow = TP("events", 1), TP("events", 2)

    for step in range(10):
        watchdog.observe({idle: 7, slow: step}, {idle: 7, slow: 1000})
        clock.now_s += 29

    assert watchdog.stuck_partitions == frozenset()


def test_a_worker_that_stands_still_ends_if_the_broker_has_answered_all_the_while():
    clock, ended = Clock(), []
    app = faust.App("watched", web_enabled=False)
    watchdog = ProgressWatchdog(
        app, end_after_s=120, end=lambda _: ended.append(clock.now_s), clock=clock
    )
    idle, hangs = TP("events", 1), TP("events", 2)

    def look(position: int) -> None:
        watchdog.observe({idle: 7, hangs: position}, {idle: 7, hangs: 1000})
        watchdog.end_if_stuck_for_long()
        clock.now_s += 5

    for position in range(100):  # it moves for longer than that
        look(position)
    assert ended == []
    watchdog._answering_since_s = None  # the broker was away
    clock.now_s += 1000
    moved_s = clock.now_s
    while not ended:
        look(99)

    assert ended[0] - moved_s == 125


def test_a_partition_that_never_started_is_stuck():
    clock = Clock()
    watchdog = make_watchdog(clock)

    watchdog.observe({SOURCE: None}, {SOURCE: 3})
    clock.now_s += 31
    watchdog.observe({SOURCE: None}, {SOURCE: 3})

    assert watchdog.stuck_partitions == {SOURCE}


# -- options and producer -----------------------------------------------------------------------


def test_impossible_options_are_refused_by_name():
    with pytest.raises(BatchOptionsError, match="max_queued_slices"):
        BatchOptions(frozenset({"events"}), max_queued_slices=0)


@pytest.fixture
def topic(kafka, prefix) -> str:
    new_topics(kafka.bootstrap, f"{prefix}out")
    return f"{prefix}out"


async def read_all(bootstrap: str, topic: str) -> list:
    """With aiokafka, as workers do: it decompresses with cramjam, kafka-python does not."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end = (await consumer.end_offsets([partition]))[partition]
    found: list = []
    while await consumer.position(partition) < end:
        for records in (await consumer.getmany(timeout_ms=500)).values():
            found += records
    await consumer.stop()
    return found


@pytest.mark.broker
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
async def test_records_arrive_in_order_and_deliveries_cover_them(kafka, topic, compression):
    records = [(b"key-%d" % n, os.urandom(700) if n % 7 else None) for n in range(2_000)]
    headers = [[("n", b"%d" % n)] for n in range(2_000)]

    sent_at_ms = int(time.time() * 1000)  # much older records are deleted by retention
    limits = BrokerLimits(compression=compression)
    async with running_producer(kafka.bootstrap, limits) as producer:
        deliveries = await producer.send_records(
            topic, 0, records, timestamp_ms=sent_at_ms, headers=headers
        )
        done = await asyncio.gather(*deliveries)
        assert await producer.send_records(topic, 0, [], timestamp_ms=0) == []

    assert len(done) > 1, "2,000 records of 700 bytes need more than one batch of 512 KiB"
    covered = [offset for base, count in done for offset in range(base, base + count)]
    assert covered == list(range(2_000))
    found = await read_all(kafka.bootstrap, topic)
    assert [r.offset for r in found] == list(range(2_000))
    assert [(r.key, r.value) for r in found] == records
    assert [list(r.headers) for r in found] == headers
    assert {r.timestamp for r in found} == {sent_at_ms}


@pytest.mark.broker
async def test_a_record_above_the_limit_is_refused_with_its_size_and_nothing_is_sent(kafka, topic):
    limit = 200_000
    largest = limit - record_bytes(b"k", b"")
    limits = BrokerLimits(max_request_bytes=limit)

    async with running_producer(kafka.bootstrap, limits) as producer:
        with pytest.raises(RecordTooLargeError, match=r"200,000 bytes, got 200,001"):
            await producer.send_records(
                topic, 0, [(b"k", b"small"), (b"k", b"x" * (largest + 1))], timestamp_ms=1
            )
        (delivery,) = await producer.send_records(
            topic, 0, [(b"k", os.urandom(largest))], timestamp_ms=1
        )
        assert await delivery == (0, 1)


@pytest.mark.broker
async def test_a_record_just_under_the_default_limit_is_taken_by_a_default_broker(kafka, topic):
    async with running_producer(kafka.bootstrap, BrokerLimits()) as producer:
        value = os.urandom(1024**2 - record_bytes(b"k", b""))
        (delivery,) = await producer.send_records(topic, 0, [(b"k", value)], timestamp_ms=1)

        assert await delivery == (0, 1)


# -- recovery --------------------------------------------------------------------------------


async def test_a_step_of_a_recovery_that_does_not_end_is_an_error_and_a_stop_is_none():
    app = faust.App("recovery", broker="kafka://127.0.0.1:1", **faust_settings())
    install(app, BatchOptions(frozenset()))
    recovery = app.tables.recovery

    with pytest.raises(RecoveryTimeoutError, match="look whether all brokers answer"):
        await recovery._wait(asyncio.Event(), timeout=0.05)
    recovery._stopped.set()
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.Event(), timeout=5.0)
