"""While a thread ranks, nothing that is done beside it moves the item vectors under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from statistics_strategies import START_MS, Counted, deltas_of

import stream.demo
from export.registry import Registry
from stream.live import LiveParts
from stream.ranker import ModelRanker
from stream.settings import Settings
from stream.shared_outputs import trending_message

RELEASE = Registry(Path(stream.demo.__file__).parent / "registry").open("driftline")
FIRST, SECOND = RELEASE.items[:2]


@pytest.fixture
async def live(tmp_path: Path) -> LiveParts:
    live = LiveParts(Settings(registry=str(tmp_path)))
    live.ranker = ModelRanker(RELEASE, live.index, live.catalogue, "cpu", 1)
    return live


def count(live: LiveParts, item: str, offset: int) -> None:
    events = [Counted(0, offset, item, (), START_MS, 16)]
    live.statistics.statistics.apply(*deltas_of(events, live.index))


async def test_trending_lists_a_new_item_without_touching_the_vectors_that_a_thread_may_read(live):
    count(live, FIRST, 0)
    live.ranking_tensors()  # what a batch does before its thread begins to rank
    generation, filled = live.ranker.table.generation, live.ranker.table.filled

    count(live, SECOND, 1)
    trending = trending_message(live, lifetime_ms=1000)

    assert {item.item_id for item in trending.items} == {FIRST, SECOND}
    assert (live.ranker.table.generation, live.ranker.table.filled) == (generation, filled)


async def test_the_next_batch_has_vectors_for_every_item_in_its_tensors(live):
    count(live, FIRST, 0)
    live.ranking_tensors()
    count(live, SECOND, 1)
    trending_message(live, lifetime_ms=1000)

    tensors = live.ranking_tensors()

    assert len(tensors.known) == live.ranker.table.filled == 2
    assert np.count_nonzero(live.ranker.table.slices(2)[1][1])
