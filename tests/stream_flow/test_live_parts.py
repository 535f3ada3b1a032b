"""Every worker holds the same statistics, whether it read them all or began with a snapshot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from kafka import KafkaProducer
from kafka_cluster import Broker

from export.items import item_hash
from stream.deltas import PartitionDeltas
from stream.live import LiveParts, statistics_source
from stream.settings import Settings
from stream.snapshots import save_snapshot, take_snapshot
from stream.statistics import encode_deltas
from stream.topics import create_topics

DAY_MS = 86_400_000


def send_deltas(settings: Settings, begin: int, count: int) -> None:
    """Deltas of `count` offsets of every partition, one record for ten, each record sent twice."""
    rng = np.random.default_rng(begin)
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap)
    topic = settings.topic("item-statistics")
    for partition in range(settings.partitions):
        for first in range(begin, begin + count, 10):
            items = [f"item-{rng.integers(30)}" for _ in range(10)]
            hashes = [item_hash(item) for item in items]
            deltas = PartitionDeltas.of_events(
                items,
                [(first + at, int(rng.integers(400) * DAY_MS), 16) for at in range(10)],
                [hashes[max(at - 3, 0) : at][::-1] for at in range(10)],
            )
            for _ in range(2):
                producer.send(topic, value=encode_deltas(partition, deltas), partition=partition)
    producer.close()


def by_item(live: LiveParts) -> tuple[dict[str, bytes], dict[str, dict[str, bytes]]]:
    """Popularity of every item and shares of every item's neighbours, to the bit."""
    ids = live.index.ids
    statistics = live.statistics.statistics
    popularity = dict(
        zip(ids, (column.tobytes() for column in statistics.popularity().T), strict=True)
    )
    chains = {}
    for row, item in enumerate(ids):
        rows, shares = statistics.chain([row])
        chains[item] = {ids[to]: share.tobytes() for to, share in zip(rows, shares.T, strict=True)}
    return popularity, chains


async def started(settings: Settings) -> LiveParts:
    live = LiveParts(settings)
    await live.start()
    assert live.ready.is_set()
    return live


async def compare(settings: Settings) -> None:
    send_deltas(settings, 0, 100)
    early = await started(settings)
    snapshot = take_snapshot(early.statistics, statistics_source(settings))
    await early.stop()
    save_snapshot(early.snapshot_folder, snapshot)
    send_deltas(settings, 100, 50)

    from_snapshot = await started(settings)
    (early.snapshot_folder / "latest.json").unlink()
    from_beginning = await started(settings)

    assert from_beginning.statistics.statistics.events == settings.partitions * 150
    assert from_snapshot.statistics.positions == from_beginning.statistics.positions
    assert by_item(from_snapshot) == by_item(from_beginning)
    for live in (from_snapshot, from_beginning):
        await live.stop()


def test_a_worker_that_begins_with_a_snapshot_holds_the_same_bits_as_one_that_read_all(
    kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap=kafka.bootstrap, prefix=prefix, partitions=3, registry=str(tmp_path)
    )
    create_topics(settings)

    asyncio.run(compare(settings))
