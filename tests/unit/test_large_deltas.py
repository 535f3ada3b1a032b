"""Deltas that no record has room for go in several, of which none overtakes another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

from folding import FINGERPRINT, NOW_MS, PARTITIONS, RecordSlice, Tp, partition_of, record
from live_parts import live_of
from statistics_strategies import ITEMS, Counted, statistics_of

from export.items import ItemIndex
from stream.agents import BatchProcessor, TableRows
from stream.ranker import StatisticsRanker
from stream.refresh_control import RefreshControl
from stream.settings import Settings
from stream.state import Folder
from stream.statistics import decode_deltas

SETTINGS = Settings(partitions=PARTITIONS, max_request_bytes=2000)


def test_each_piece_is_acknowledged_before_the_next_one_is_sent():
    past = [Counted(0, n, item, (), NOW_MS, 16) for n, item in enumerate(ITEMS)]
    live = live_of(statistics_of([past]), NOW_MS, StatisticsRanker(0.5))
    pieces: list[list[int]] = []
    under_way: list[asyncio.Future[Any]] = []

    async def send_records(topic: str, partition: int, records: Sequence[Any], **_: Any) -> Any:
        delivery = asyncio.get_running_loop().create_future()
        if topic == "item-statistics":
            assert all(sent.done() for sent in under_way), "the piece in front is not there yet"
            under_way.append(delivery)
            ((_, value),) = records
            pieces.append(decode_deltas(value, ItemIndex()).offsets.tolist())
        asyncio.get_running_loop().call_later(0.001, delivery.set_result, (0, len(records)))
        return [delivery]

    processor = BatchProcessor(
        SETTINGS,
        Folder(SETTINGS, "user-events", PARTITIONS, FINGERPRINT, live.index.hashes_of),
        RefreshControl(SETTINGS, lambda partition: iter(()), FINGERPRINT),
        SimpleNamespace(get_many=lambda p, keys: [None] * len(keys), write=lambda *row: None),
        live,
        send_records,
        TableRows(lambda _, offset: (b"source", b""), lambda has: (b"postponed", b"")),
    )
    clicks = [record(n, item_id=f"{n:0>100}") for n in range(1, 41)]

    asyncio.run(processor.process([RecordSlice(Tp(partition_of("ada")), clicks)]))

    assert len(pieces) > 2
    assert list(chain(*pieces)) == list(range(1, 41))
