"""All lists of one batch come from one release and one position, whatever moves on meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from folding import FINGERPRINT, PARTITIONS, RecordSlice, Tp, partition_of, record
from live_parts import live_of
from statistics_strategies import START_MS, Counted, deltas_of, statistics_of

from export.items import item_hash
from stream.agents import BatchProcessor, TableRows
from stream.history import HistoryEvent, RowLimits, UserRow, hash64
from stream.ranker import RankedLists, StatisticsRanker
from stream.refresh_control import RefreshControl
from stream.requests import LiveTensors, RankRequests
from stream.settings import Settings
from stream.state import Folder

USERS = [name for n in range(200) if partition_of(name := f"user-{n}") == 0][:7]


@dataclass
class Moving(StatisticsRanker):
    """Ranks, and as soon as the worker waits for that its statistics and release move on."""

    live: Any = None
    is_replaced: bool = False
    loop: Any = None

    def rank(self, requests: RankRequests, live: LiveTensors, k: int) -> RankedLists:
        self.loop.call_soon_threadsafe(self.move_on)
        return super().rank(requests, live, k)

    def move_on(self) -> None:
        statistics = self.live.statistics.statistics
        offset = statistics.watermarks[0] + 1
        new = Counted(0, offset, f"new-{offset}", ("item-0", "item-1"), START_MS, 256)
        statistics.apply(*deltas_of([new], statistics.index))
        if self.is_replaced:
            self.live.ranker = replace(self, popularity_share=0.9)


def row_of(user: str) -> bytes:
    """A user who has taken one item that many others follow up on."""
    row = UserRow(FINGERPRINT)
    row.fold(HistoryEvent(hash64(user), item_hash("item-0"), START_MS, 0, 1), RowLimits())
    return row.encode()


def processed(max_rank_batch: int, is_replaced: bool) -> list[dict[str, Any]]:
    """The lists of one batch of visits, ranked so many users at a time."""
    settings = Settings(max_rank_batch=max_rank_batch, partitions=PARTITIONS)
    past = [Counted(0, n, f"item-{n % 5}", ("item-0",), START_MS, 16) for n in range(20)]
    live = live_of(statistics_of([past]), START_MS)
    live.ranker = Moving(0.5, live=live, is_replaced=is_replaced)
    sent: list[tuple[str, bytes]] = []

    async def send_records(topic: str, partition: int, records: Sequence[Any], **_: Any) -> Any:
        sent.extend((topic, value) for _, value in records)
        delivery = asyncio.get_running_loop().create_future()
        delivery.set_result((0, len(records)))
        return [delivery]

    rows = SimpleNamespace(
        get_many=lambda p, keys: [row_of(key.decode()) for key in keys], write=lambda *a: None
    )
    folder = Folder(settings, "user-events", PARTITIONS, FINGERPRINT, live.index.hashes_of)
    processor = BatchProcessor(
        settings,
        folder,
        RefreshControl(settings, lambda partition: iter(()), FINGERPRINT),
        rows,
        live,
        send_records,
        TableRows(lambda _, offset: (b"source", b""), lambda has: (b"postponed", b"")),
    )
    visits = [record(n + 1, user_id=user, type="visit") for n, user in enumerate(USERS)]

    async def process() -> None:
        live.ranker.loop = asyncio.get_running_loop()
        await processor.process([RecordSlice(Tp(0), visits)])

    asyncio.run(process())

    return [json.loads(value) for topic, value in sent if topic == "recommendations"]


@pytest.mark.parametrize("is_replaced", [False, True], ids=["statistics", "release"])
def test_lists_are_the_same_however_many_users_are_ranked_at_a_time(is_replaced):
    at_once, in_turn = (processed(users_at_a_time, is_replaced) for users_at_a_time in (64, 1))

    assert len(at_once) == len(USERS)
    for one, other in zip(at_once, in_turn, strict=True):
        assert one["rec_id"] == other["rec_id"]
        assert one["items"] == other["items"]
