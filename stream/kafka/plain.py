"""Hands over aiokafka's own records of some topics, without making a `ConsumerRecord` of each.

A record as it was parsed has all that is read here: key, value, offset, timestamp and headers. To
copy it into a ConsumerRecord costs twice as much as to parse it.
"""

from __future__ import annotations

from collections.abc import Callable
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
    if records is not None:
        records._consumer_record = _as_it_is
        found.__class__ = PlainResult


def _as_it_is(tp: Any, record: Any) -> Any:
    return record


class PlainResult(FetchResult):  # type: ignore[misc]
    """A fetch result that hands over records as they were parsed.

    A class, and no function put on the object: that would hold the object which holds it, and so
    the whole answer until Python looks for cycles.
    """

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        """At most so many of the records that are left; none where the partition went away."""
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        taken = list(islice(self._partition_records._records_iterator, max_records))
        self._update_position()
        if max_records is None or len(taken) < max_records:
            self._partition_records = None
        return taken
