"""Do what one worker does for all: `trending`, snapshots, dead letters of `items`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from mode import Service

from stream import metrics
from stream.events import DEFAULT_SCENARIO, RankedItem, Trending, encode
from stream.live import LiveParts
from stream.outbox import Outbox, SendRecords
from stream.reasons import POPULAR
from stream.settings import Settings
from stream.snapshots import save_snapshot, take_snapshot

#: Places of the list; a consumer filters out what its user has seen.
TRENDING_LENGTH = 200


def trending_message(live: LiveParts, lifetime_ms: int) -> Trending | None:
    """The most popular listable items by the first half-life; None while there are none."""
    tensors = live.tensors()
    shares = tensors.popularity[0] * tensors.known if len(tensors.known) else np.zeros(0)
    order = np.lexsort((live.index.hashes[: len(shares)], -shares))[:TRENDING_LENGTH]
    items = [
        RankedItem(live.index.ids[row], float(shares[row]), "trend", POPULAR)
        for row in order.tolist()
        if shares[row] > 0
    ]
    if not items:
        return None
    return Trending(
        schema="driftline.trending/1",
        scenario=DEFAULT_SCENARIO,
        request_time=tensors.newest_ms,
        expires_at=tensors.newest_ms + lifetime_ms,
        items=items,
    )


class RefusedItems:
    """Makes dead letters of refused `items` records, each once.

    All workers read `items`; how far dead letters were made is kept as the committed offset of a
    group of its own, so that the next owner goes on from there. A crash between sending and
    committing sends again.
    """

    def __init__(self, settings: Settings, live: LiveParts, send_records: SendRecords) -> None:
        self._settings = settings
        self._live = live
        self._send_records = send_records
        self._consumer: Any = None

    async def send(self) -> None:
        """Send what has been refused since the last call by any owner."""
        waiting = list(self._live.refused_items)
        if not waiting:
            return
        consumer = await self._committer()
        outbox = Outbox()
        where = self._settings.topic("dead-letters"), 0
        done = {letter.partition: letter.offset + 1 for letter in waiting}
        sent = {
            partition: await consumer.committed(TopicPartition(waiting[0].topic, partition)) or 0
            for partition in done
        }
        for letter in waiting:
            if letter.offset >= sent[letter.partition]:
                outbox.add(*where, letter.kept_key(), letter.kept_value(), letter.headers())
        await outbox.send(self._send_records, int(time.time() * 1000))
        if outbox.records:
            metrics.DEAD_LETTERS.labels("items").inc(len(outbox.records[where]))
            topic = self._settings.topic("items")
            await consumer.commit({TopicPartition(topic, p): end for p, end in done.items()})
        refused = self._live.refused_items
        # those that came meanwhile may have pushed out some of these
        while refused and refused[0].offset < done.get(refused[0].partition, 0):
            refused.popleft()

    async def close(self) -> None:
        """Let go of the connection."""
        if self._consumer is not None:
            await self._consumer.stop()

    async def _committer(self) -> Any:
        if self._consumer is None:
            settings = self._settings
            self._consumer = AIOKafkaConsumer(
                bootstrap_servers=settings.bootstrap,
                group_id=f"{settings.prefix}{settings.group}-refused-items",
                enable_auto_commit=False,
            )
            await self._consumer.start()
            self._consumer.assign([TopicPartition(settings.topic("items"), 0)])
        return self._consumer


class SharedOutputs(Service):  # type: ignore[misc]
    """Does what one worker does for all: `trending`, and snapshots of the statistics.

    `is_owner` tells whether this worker is the one: it owns partition 0 of user-events. Two workers
    that both believe so for a while publish the same twice.
    """

    def __init__(
        self,
        settings: Settings,
        live: LiveParts,
        send_records: SendRecords,
        is_owner: Callable[[], bool],
        source: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._settings = settings
        self._live = live
        self._send_records = send_records
        self._is_owner = is_owner
        self._source = source
        self._published: Trending | None = None
        self._refusals = RefusedItems(settings, live, send_records)
        self._saved_events = -1

    async def on_stop(self) -> None:
        await self._refusals.close()

    @Service.task  # type: ignore[untyped-decorator]
    async def _publish(self) -> None:
        await self._live.ready.wait()
        while not self.should_stop:
            if self._is_owner():
                await self._publish_trending()
                await self._refusals.send()
            await self.sleep(self._settings.trending_interval_s)

    @Service.task  # type: ignore[untyped-decorator]
    async def _snapshot(self) -> None:
        await self._live.ready.wait()
        while not self.should_stop:
            await self.sleep(self._settings.snapshot_interval_s)
            if self._is_owner():
                await self._save()

    async def _save(self) -> None:
        live = self._live
        events = live.statistics.statistics.events
        if events == self._saved_events:
            return
        snapshot = take_snapshot(live.statistics, self._source)
        try:
            path = await asyncio.to_thread(save_snapshot, live.snapshot_folder, snapshot)
        except OSError as error:
            self.log.error("cannot save a snapshot of the statistics: %s", error)
            return
        self._saved_events = events
        self.log.info("saved the statistics of %d events as %s", events, path)

    async def _publish_trending(self) -> None:
        message = trending_message(self._live, self._settings.list_lifetime_ms)
        if message is None or not self._is_news(message):
            return
        deliveries = await self._send_records(
            self._settings.topic("trending"),
            0,
            [(DEFAULT_SCENARIO.encode(), encode(message))],
            timestamp_ms=int(time.time() * 1000),
        )
        for delivery in deliveries:
            await delivery
        self._published = message

    def _is_news(self, message: Trending) -> bool:
        before = self._published
        if before is None:
            return True
        is_old = message.request_time - before.request_time >= self._settings.trending_max_age_ms
        return is_old or [i.item_id for i in message.items] != [i.item_id for i in before.items]
