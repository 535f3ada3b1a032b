"""Hands over aiokafka's own records of some topics, without making a `ConsumerRecord` of each.

A record as it was parsed has all that is read here: key, value, offset, timestamp and headers. To
copy it into a ConsumerRecord costs twice as much as to parse it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from aiokafka.consumer.fetcher import FetchResult


def hand_over_plain(consumer: Any, is_plain: Callable[[str], bool]) -> None:
    """Let a started AIOKafkaConsumer return plain records of the topics for which this holds.

    What it checks of batches, transactions and positions stays as it is.
    """
    fetcher = consumer._fetcher
    fetch = fetcher._proc_fetch_request

    async def fetch_plain(assignment: Any, node_id: int, request: Any) -> bool:
        has_data: bool = await fetch(assignment, node_id, request)
        if has_data:  # there is no await between the fetch and this: nobody has taken of it yet
            for tp, found in fetcher._records.items():
                if type(found) is FetchResult and is_plain(tp.topic):
                    _make_plain(found)
        return has_data

    fetcher._proc_fetch_request = fetch_plain


def _make_plain(found: Any) -> None:
    records = found._partition_records
    if records is None or "_consumer_record" in vars(records):
        return
    records._consumer_record = _as_it_is
    # weakly: an object that holds a function which holds it is freed with all of its answer only
    # when Python looks for cycles. aiokafka asks for the very class, so that none can stand for it
    found.getall = partial(_getall, weakref.ref(found))


def _as_it_is(tp: Any, record: Any) -> Any:
    return record


def _getall(result: weakref.ref[Any], max_records: int | None = None) -> list[Any]:
    """As FetchResult.getall, but with the records as they were parsed."""
    found: Any = result()
    if not found.check_assignment(found._topic_partition) or not found.has_more():
        return []
    taken = list(islice(found._partition_records._records_iterator, max_records))
    found._update_position()
    if max_records is None or len(taken) < max_records:
        found._partition_records = None
    return taken
