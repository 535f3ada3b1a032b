"""A record batch that becomes too large is refused before it is opened, once, and nothing stops."""

from __future__ import annotations

import json

import pytest
from aiokafka import AIOKafkaProducer
from engine import Engine, Worker, event, wait_until
from kafka.partitioner import murmur2
from test_bad_input import dead_letters, item, resident_bytes, users_with_lists

CODECS = ["gzip", "snappy", "lz4", "zstd"]
PARTITIONS = 8
#: A worker that opens one bomb is above this, one that opens none far below.
MAX_WORKER_BYTES = 500 * 2**20
#: snappy makes 20 times less of it; a broker takes 1 MB.
BOMB_BYTES = {"gzip": 400, "snappy": 18, "lz4": 200, "zstd": 500}
KEY = b"visitor"
AT = (murmur2(KEY) & 0x7FFFFFFF) % PARTITIONS


async def send_bomb(engine: Engine, name: str, codec: str, partition: int) -> tuple[int, int]:
    """One batch of three records, most of it zeros; returns its first and last offset."""
    async with AIOKafkaProducer(
        bootstrap_servers=engine.bootstrap,
        compression_type=codec,
        max_batch_size=10**9,
        max_request_size=10**9,
    ) as producer:
        batch = producer.create_batch()
        for value in (b"first", bytes(BOMB_BYTES[codec] * 2**20), b"last"):
            assert batch.append(key=KEY, value=value, timestamp=None)
        sent = await producer.send_batch(batch, engine.topic(name), partition=partition)
        first: int = (await sent).offset
    return first, first + 2


def start(engine: Engine) -> Worker:
    engine.send((b"first", event("first", n, item_id=f"item-{n}")) for n in range(6))
    worker = engine.worker().start(DRIFTLINE_MAX_BATCH_BYTES=str(8 * 2**20))
    engine.wait_until_all_is_done()
    return worker


async def test_a_bomb_on_user_events_is_one_dead_letter_and_the_next_visit_is_served(
    engine: Engine,
) -> None:
    worker = start(engine)
    bombs = {}
    for number, codec in enumerate(CODECS, start=1):
        bombs[codec] = await send_bomb(engine, "user-events", codec, AT)
        engine.send([(KEY, event("visitor", 100 + number, "visit"))])
        wait_until(lambda count=number: len(lists_of_visitor(engine)) == count, engine.logs)
    engine.wait_until_all_is_done()

    assert worker.is_running
    assert resident_bytes(worker) < MAX_WORKER_BYTES
    for (codec, (first, last)), letter in zip(bombs.items(), dead_letters(engine), strict=True):
        where = letter["topic"], letter["partition"], letter["offset"]
        assert where == (engine.topic("user-events"), str(AT), str(last))
        assert f"offsets {first} to {last}: " in letter["reason"]
        assert f"of {codec} become more than the 8,388,608 bytes" in letter["reason"]
    assert "Records are missing" not in worker.log()
    engine.wait_for_snapshot()
    assert worker.stop() == 0
    code, report = engine.verify_fold(worker)
    assert code == 0, report


def lists_of_visitor(engine: Engine) -> list[bytes]:
    return [record.value for record in engine.read("recommendations") if record.key == KEY]


async def test_a_bomb_at_the_end_is_committed_and_not_told_again_after_a_restart(
    engine: Engine,
) -> None:
    worker = start(engine)
    await send_bomb(engine, "user-events", "zstd", AT)
    engine.wait_until_all_is_done()

    worker.kill()
    worker.start(DRIFTLINE_MAX_BATCH_BYTES=str(8 * 2**20))
    engine.send([(KEY, event("visitor", 100, "visit"))])
    wait_until(lambda: "visitor" in users_with_lists(engine), engine.logs)
    engine.wait_until_all_is_done()

    assert len(dead_letters(engine)) == 1


async def test_a_bomb_on_items_is_one_dead_letter_and_the_next_item_is_taken(
    engine: Engine,
) -> None:
    worker = start(engine)
    bombs = {}
    for number, codec in enumerate(CODECS, start=1):
        bombs[codec] = await send_bomb(engine, "items", codec, 0)
        name = f"item-{number}"
        engine.producer.send(
            engine.topic("items"), key=name.encode(), value=item(name, hidden=True)
        )
        engine.producer.flush()
        wait_until(lambda count=number: len(dead_letters(engine)) == count, engine.logs)
        engine.send([(KEY, event("visitor", 100 + number, "visit"))])
        wait_until(lambda count=number: len(lists_of_visitor(engine)) == count, engine.logs)
        listed = {each["item_id"] for each in json.loads(lists_of_visitor(engine)[-1])["items"]}
        assert listed == {"item-0", *(f"item-{n}" for n in range(number + 1, 6))}

    assert worker.is_running
    assert resident_bytes(worker) < MAX_WORKER_BYTES
    for (first, last), letter in zip(bombs.values(), dead_letters(engine), strict=True):
        assert f"offsets {first} to {last}: " in letter["reason"]
        assert (letter["topic"], letter["offset"]) == (engine.topic("items"), str(last))


@pytest.mark.parametrize("topic", ["item-statistics", "model-releases"])
async def test_a_bomb_on_a_topic_that_all_workers_read_stops_none(
    engine: Engine, topic: str
) -> None:
    worker = start(engine)

    await send_bomb(engine, topic, "zstd", 0)
    engine.send([(KEY, event("visitor", 100, "visit"))])
    wait_until(lambda: "visitor" in users_with_lists(engine), engine.logs)
    wait_until(lambda: "A record batch is refused" in worker.log(), engine.logs)

    assert worker.is_running
    assert resident_bytes(worker) < MAX_WORKER_BYTES
