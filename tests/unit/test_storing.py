"""The ends of batches: what goes out when, which rows are seen meanwhile, and what is acked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from stream import storing
from stream.kafka.batches import BatchOptions, RecordBatch
from stream.kafka.stream import LOOK_S
from stream.outbox import Outbox
from stream.simulate.faust_parts import SimulatedConsumer, SimulatedStream, WorkerApp
from stream.storing import BatchEnd, Steps, Storing

ROWS_LOG = "rows-changelog"


class Topics:
    """A broker that acknowledges when it is told to, and a disk."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.waiting: list[tuple[str, asyncio.Future[tuple[int, int]]]] = []
        self.disk: dict[bytes, bytes | None] = {}
        self.ends: dict[str, int] = {}
        self.storing = Storing(
            self,
            ROWS_LOG,
            self.send_records,
            Steps(
                lambda: None, lambda step: None, lambda results, sent: self.log.append(("took",))
            ),
        )

    async def send_records(
        self, topic: str, partition: int, records: Sequence[Any], **_: Any
    ) -> list[asyncio.Future[tuple[int, int]]]:
        self.log.append(("sent", topic, *(value.decode() for _, value in records)))
        delivery: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self.waiting.append((topic, delivery))
        return [delivery]

    def acknowledge(self, topic: str) -> None:
        """What was sent to a topic first and is not acknowledged yet."""
        place = next(at for at, (name, _) in enumerate(self.waiting) if name == topic)
        _, delivery = self.waiting.pop(place)
        delivery.set_result((self.ends.setdefault(topic, 0), 1))
        self.ends[topic] += 1

    def get_many(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.disk.get(key) for key in keys]

    def write(self, partition: int, rows: list[tuple[bytes, bytes | None]], offset: int) -> None:
        self.log.append(("wrote", *(value.decode() for _, value in rows if value), str(offset)))
        self.disk |= dict(rows)

    def end(self, number: int, user: bytes = b"ada") -> BatchEnd:
        """A batch that changes one row."""
        results = Outbox()
        results.add("deltas", 0, None, b"delta-%d" % number)
        rows = {0: [(user, b"row-%d" % number)]}
        return BatchEnd(results, rows, 0, lambda: self.log.append(("done", str(number))))


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(act: Callable[[Topics], Awaitable[None]]) -> Topics:
    topics = Topics()
    asyncio.run(act(topics))  # type: ignore[arg-type]
    return topics


def test_rows_go_out_when_their_deltas_are_acknowledged_and_with_the_next_batchs_deltas():
    async def act(topics: Topics) -> None:
        await topics.storing.begin(topics.end(1))
        second = asyncio.create_task(topics.storing.begin(topics.end(2)))
        await turns()
        assert topics.log == [("sent", "deltas", "delta-1")]
        topics.acknowledge("deltas")
        await second

    topics = run(act)

    assert topics.log[1:] == [
        ("took",),
        ("sent", ROWS_LOG, "row-1"),
        ("sent", "deltas", "delta-2"),
    ]
    assert topics.storing.under_way == 2


@pytest.mark.parametrize("first", ["deltas", ROWS_LOG])
def test_nothing_is_done_or_sent_on_before_both_batches_are_acknowledged(first):
    async def act(topics: Topics) -> None:
        await topics.storing.begin(topics.end(1))
        topics.acknowledge("deltas")
        await topics.storing.begin(topics.end(2))
        before = len(topics.log)
        finishing = asyncio.create_task(topics.storing.finish())
        topics.acknowledge(first)
        await turns()
        assert {entry[0] for entry in topics.log[before:]} <= {"took"}
        topics.acknowledge("deltas" if first == ROWS_LOG else ROWS_LOG)
        await turns()
        assert topics.log[-3:] == [
            ("wrote", "row-1", "0"),
            ("done", "1"),
            ("sent", ROWS_LOG, "row-2"),
        ]
        topics.acknowledge(ROWS_LOG)
        await finishing

    topics = run(act)

    assert topics.log[-2:] == [("wrote", "row-2", "1"), ("done", "2")]
    assert topics.storing.under_way == 0


@pytest.mark.parametrize(
    ("most", "written"), [(4, ["row-1", "row-2", "row-3"]), (1000, ["row-2", "row-3"])]
)
def test_rows_wait_until_there_are_many_bytes_of_them_or_no_next_batch_and_the_newest_is_written(
    monkeypatch, most, written
):
    monkeypatch.setattr(storing, "_WAITING_BYTES", most)

    async def act(topics: Topics) -> None:
        for number in (1, 2, 3):
            await topics.storing.begin(topics.end(number))
            topics.acknowledge("deltas")
            if number > 1:
                topics.acknowledge(ROWS_LOG)
        finishing = asyncio.create_task(topics.storing.finish())
        await turns()
        topics.acknowledge(ROWS_LOG)
        await finishing

    topics = run(act)

    assert [row for step, *rest in topics.log if step == "wrote" for row in rest[:1]] == written
    assert topics.disk == {b"ada": b"row-3"}


def test_who_reads_rows_sees_those_of_batches_under_way_the_newest_of_each():
    async def act(topics: Topics) -> None:
        topics.disk = {b"ada": b"old", b"bob": b"old", b"eve": b"old"}
        await topics.storing.begin(topics.end(1, b"bob"))
        topics.acknowledge("deltas")
        await topics.storing.begin(topics.end(2))
        assert topics.storing.get_many(0, [b"eve", b"ada", b"new", b"bob"]) == [
            b"old",
            b"row-2",
            None,
            b"row-1",
        ]
        assert topics.storing.get_many(1, [b"ada"]) == [b"old"]
        topics.acknowledge("deltas")
        topics.acknowledge(ROWS_LOG)
        await topics.storing.begin(topics.end(3))
        assert topics.storing.get_many(0, [b"ada", b"bob"]) == [b"row-3", b"row-1"]

    assert run(act).disk[b"bob"] == b"old", "it waits to be written"


def test_a_refused_result_keeps_the_rows_back():
    async def act(topics: Topics) -> None:
        await topics.storing.begin(topics.end(1))
        topics.waiting[0][1].set_exception(ConnectionError("refused"))
        with pytest.raises(ConnectionError):
            await topics.storing.finish()

    assert run(act).log == [("sent", "deltas", "delta-1")]


# -- acks ---------------------------------------------------------------------------------------


class Consumer:
    """What the stream tells its consumer."""

    def __init__(self) -> None:
        self.acked: list[int] = []
        self.in_work: list[int] = []
        self.may_deliver = True

    def slice_taken(self) -> None:
        return

    def is_delivering(self) -> bool:
        return self.may_deliver

    def work_started(self, batches: list[RecordBatch]) -> None:
        self.in_work = [batch.first_offset for batch in batches]

    def work_ended(self) -> None:
        self.in_work = []

    def ack_offsets(self, tp: TP, first: int, last: int) -> None:
        self.acked.append(last)


class Work:
    """A body whose newest two lists are always under way, until it is asked to finish."""

    def __init__(self) -> None:
        self.under_way = 0
        self.finished = 0

    async def finish(self) -> None:
        self.finished += 1
        self.under_way = 0


def test_lists_under_way_are_acked_when_they_are_done_or_when_there_is_no_next_one():
    seen: list[tuple[list[int], list[int]]] = []

    async def act() -> tuple[Consumer, Work]:
        app = WorkerApp(None, SimpleNamespace(changelog_topic_name="x"), "events")  # type: ignore[arg-type]
        consumer, work = Consumer(), Work()
        app.consumer, app.consumer_generation_id = consumer, 7  # type: ignore[assignment]
        app.flow_control.resume()
        for offset in range(4):
            record = SimpleNamespace(offset=offset, key=None, value=b"")
            app.queue.force_put_nowait(RecordBatch(TP("events", 0), [record], 7))
        stream = SimulatedStream(app)
        async with asyncio.timeout(20):
            async for batches in stream.record_batches(1, 0.0, lambda: 0.0, work):
                seen.append((list(consumer.acked), list(consumer.in_work)))
                if not batches:
                    break
                work.under_way = min(work.under_way + 1, 2)
        return consumer, work

    _, work = asyncio.run(act())

    assert seen == [
        ([], [0]),
        ([], [0, 1]),
        ([], [0, 1, 2]),
        ([0], [1, 2, 3]),
        ([0, 1, 2, 3], []),
    ]
    assert work.finished == 1


def test_no_other_work_is_done_while_rows_are_restored():
    async def act() -> list[list[RecordBatch]]:
        app = WorkerApp(None, SimpleNamespace(changelog_topic_name="x"), "events")  # type: ignore[arg-type]
        app.consumer = consumer = Consumer()  # type: ignore[assignment]
        app.consumer_generation_id = 7
        app.flow_control.resume()
        consumer.may_deliver = False
        yielded: list[list[RecordBatch]] = []

        async def body() -> None:
            async for batches in SimulatedStream(app).record_batches(1, 0.0, lambda: 0.0):
                yielded.append(batches)
                assert consumer.may_deliver
                return

        async with asyncio.timeout(20):
            running = asyncio.create_task(body())
            await asyncio.sleep(2 * LOOK_S)  # it looks for work again and again meanwhile
            consumer.may_deliver = True
            await running
        return yielded

    assert asyncio.run(act()) == [[]]


async def test_a_worker_without_partitions_keeps_back_what_it_gets_until_it_is_resumed():
    app = WorkerApp(None, SimpleNamespace(changelog_topic_name="x"), "events")  # type: ignore[arg-type]
    client = SimpleNamespace(assignment=set)

    async def nothing(_: set[TP]) -> None:
        return

    options = BatchOptions(frozenset({"events"}), end_within_s=None)
    consumer = SimulatedConsumer(app, options, client, nothing, nothing)  # type: ignore[arg-type]
    consumer._is_sought = True
    consumer.resume_flow()
    assert consumer.is_delivering()

    await consumer.on_partitions_revoked(set())

    assert not consumer.is_delivering()
