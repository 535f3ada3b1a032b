"""Hold the parts that every worker keeps whole: statistics, catalogue, and what ranks.

They are read from their topics outside the consumer group, and are there before the first batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from mode import Service

from export.items import ItemIndex
from export.statistics import ItemStatistics
from stream import metrics
from stream.catalogue import Catalogue
from stream.dead_letters import DeadLetter
from stream.guards import ALL_GUARDS, Guards
from stream.ranker import ModelRanker, Ranker, StatisticsRanker
from stream.readers import TopicReader, wait_caught_up
from stream.refused import explained
from stream.releases import ReleaseWatch
from stream.requests import LiveTensors
from stream.settings import Settings
from stream.snapshots import SnapshotError, load_snapshot
from stream.statistics import LiveStatistics, StatisticsTopics

#: A worker that has not read statistics, catalogue and releases by then gives up.
_READY_TIMEOUT_S = 600.0
#: Refused records of `items` that wait for their worker to own the dead letters; about 128 MiB.
_MAX_REFUSED = 2_000


class LiveParts(Service):  # type: ignore[misc]
    """Statistics, catalogue and ranker of one worker; `ready` is set once all are read."""

    def __init__(
        self,
        settings: Settings,
        guards: Guards = ALL_GUARDS,
        topics: StatisticsTopics | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.index = ItemIndex()
        self.catalogue = Catalogue(self.index)
        self.catalogue_positions: dict[int, int] = {}
        self.ready = asyncio.Event()
        self.ranker: Ranker = StatisticsRanker(settings.popularity_share)
        self.statistics = self._load_statistics(topics)
        self.statistics.guards = guards
        self._tensors: LiveTensors | None = None
        self._tensors_for: tuple[int, int, int] = (-1, -1, -1)
        self.refused_items: deque[DeadLetter] = deque(maxlen=_MAX_REFUSED)
        self._readers = [
            TopicReader(
                settings.bootstrap,
                settings.topic("item-statistics"),
                self._take_deltas,
                self.statistics.positions,
                max_batch_bytes=settings.max_batch_bytes,
                gathers=True,
            ),
            TopicReader(
                settings.bootstrap,
                settings.topic("items"),
                self._take_items,
                max_batch_bytes=settings.max_batch_bytes,
            ),
        ]
        self.releases = ReleaseWatch(settings, self.index, self.catalogue, self._swap)

    @property
    def snapshot_folder(self) -> Path:
        """Where snapshots of these statistics lie: beside the releases."""
        return snapshot_folder(self.settings)

    async def on_start(self) -> None:
        await asyncio.gather(*map(self.add_runtime_dependency, self._readers))
        await wait_caught_up(self._readers, _READY_TIMEOUT_S)
        if self.settings.model:
            await self.add_runtime_dependency(self.releases)
            await self.releases.first_look()
        self.ready.set()

    def made_anew(self, topic: str, topic_id: str) -> None:
        """A topic that is read here was deleted and made anew; what it brought stays."""
        if topic == self.settings.topic("item-statistics"):
            self.statistics.deltas_made_anew(topic_id)
        for reader in (*self._readers, self.releases.reader):
            if reader.topic == topic:
                reader.read_anew()

    def tensors(self) -> LiveTensors:
        """The statistics as they are now; the same object while nothing has changed."""
        statistics = self.statistics.statistics
        state = (statistics.events, len(self.index), self.catalogue.listable_changes)
        if self._tensors is None or state != self._tensors_for:
            popularity = statistics.popularity()
            known = (popularity[1] > 0).astype(np.float32)
            self.catalogue.hide_unlisted(known)
            self._tensors = LiveTensors(
                popularity, known, dict(statistics.watermarks), statistics.newest_ms
            )
            self._tensors_for = state
        return self._tensors

    def ranking_tensors(self) -> LiveTensors:
        """`tensors`, with vectors for every item in them. Never while a thread ranks."""
        tensors = self.tensors()
        if isinstance(self.ranker, ModelRanker):
            self.ranker.table.update(self.catalogue)
        return tensors

    def wrote_deltas(self, records: list[tuple[int, int, bytes]]) -> None:
        """Take in (partition, offset, value) of deltas this worker wrote, without reading them."""
        self.statistics.wrote(records)
        self._observe()

    def _take_deltas(self, records: list[Any]) -> None:
        self.statistics.read((record.partition, record.offset, record.value) for record in records)
        self._observe()

    def _take_items(self, records: list[Any]) -> None:
        for record in records:
            reason = self.catalogue.take(record.key, record.value)
            if reason is not None:
                where = record.topic, record.partition, record.offset
                letter = explained(DeadLetter(reason, *where, record.key, record.value))
                self.refused_items.append(letter.cut())
            self.catalogue_positions[record.partition] = record.offset + 1

    def _swap(self, ranker: Ranker) -> None:
        """Rank with this from the next batch on."""
        self.ranker = ranker
        metrics.RELEASE_VERSION.set(ranker.version)

    def _observe(self) -> None:
        metrics.STATISTICS_EVENTS.set(self.statistics.statistics.events)
        metrics.STATISTICS_SUMS.set(self.statistics.statistics.sums)
        metrics.STATISTICS_FLOOR.set(self.statistics.statistics.floor)
        metrics.ITEMS.set(len(self.statistics.statistics.index))
        metrics.STATISTICS_REFUSED.set(self.statistics.refused)

    def _load_statistics(self, topics: StatisticsTopics | None) -> LiveStatistics:
        settings = self.settings.statistics
        source = statistics_source(self.settings)
        try:
            live = load_snapshot(self.snapshot_folder, self.index, settings, source, topics)
        except SnapshotError as error:
            self.log.warning(
                "no usable snapshot: the statistics are read from the beginning of their topic",
                extra={"error": str(error)},
            )
            live = None
        return live or LiveStatistics(ItemStatistics(self.index, settings), topics=topics)


def snapshot_folder(settings: Settings) -> Path:
    """Where the snapshots of an engine's statistics lie."""
    return Path(settings.registry) / ".statistics" / (settings.prefix + settings.group)


def statistics_source(settings: Settings) -> str:
    """Names the topics that statistics come from."""
    return f"{settings.topic('item-statistics')}/{settings.partitions}"
