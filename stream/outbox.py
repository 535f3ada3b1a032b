"""Collect what a batch sends, by topic and partition, and send it at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

KeyValue = tuple[bytes | None, bytes | None]
Headers = list[tuple[str, bytes]]
#: Resolves to the base offset and number of records.
Delivery = asyncio.Future[tuple[int, int]]


class SendRecords(Protocol):
    """Sends records of one partition; resolves to the deliveries' (base offset, count)."""

    async def __call__(
        self,
        topic: str,
        partition: int,
        records: Sequence[KeyValue],
        *,
        timestamp_ms: int | Sequence[int],
        headers: Sequence[Headers] | None = None,
    ) -> Sequence[Delivery]: ...


@dataclass(slots=True)
class Outbox:
    """Records to send, by topic and partition; headers and times of those that have their own."""

    records: dict[tuple[str, int], list[KeyValue]] = field(
        default_factory=lambda: defaultdict(list)
    )
    headers: dict[tuple[str, int], dict[int, Headers]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    times_ms: dict[tuple[str, int], dict[int, int]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def add(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        sent_ms: int | None = None,
    ) -> None:
        """Put in a record; those of one partition keep their order.

        `sent_ms` is the record's timestamp, where that is not to be the time at which it is sent.
        """
        records = self.records[topic, partition]
        if headers:
            self.headers[topic, partition][len(records)] = headers
        if sent_ms is not None:
            self.times_ms[topic, partition][len(records)] = sent_ms
        records.append((key, value))

    def headers_of(self, topic: str, partition: int) -> list[Headers] | None:
        """The headers of each record of a partition; None where no record has any."""
        given = self.headers.get((topic, partition))
        if not given:
            return None
        return [given.get(number, []) for number in range(len(self.records[topic, partition]))]

    def times_of(self, topic: str, partition: int, now_ms: int) -> int | list[int]:
        """The timestamp of each record of a partition; one for all where none has its own."""
        given = self.times_ms.get((topic, partition))
        if not given:
            return now_ms
        return [given.get(number, now_ms) for number in range(len(self.records[topic, partition]))]

    def topics(self) -> set[str]:
        """The topics that something goes to."""
        return {topic for topic, _ in self.records}

    async def send(
        self, send_records: SendRecords, now_ms: int
    ) -> dict[tuple[str, int], tuple[int, int]]:
        """Send everything and wait until all of it is acknowledged, as `Sent.acknowledged` does."""
        return await (await self.hand_over(send_records, now_ms)).acknowledged()

    async def hand_over(self, send_records: SendRecords, now_ms: int) -> Sent:
        """Send everything; what is returned must be waited for."""
        deliveries: dict[tuple[str, int], Sequence[Delivery]] = {}
        for (topic, partition), records in self.records.items():
            deliveries[topic, partition] = await send_records(
                topic,
                partition,
                records,
                timestamp_ms=self.times_of(topic, partition, now_ms),
                headers=self.headers_of(topic, partition),
            )
        return Sent(deliveries)


@dataclass(frozen=True, slots=True)
class Sent:
    """Records on their way, by topic and partition."""

    deliveries: dict[tuple[str, int], Sequence[Delivery]]

    async def acknowledged(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Wait until the broker has acknowledged all of them.

        Returns: topic and partition -> first and last offset. Raises what the broker refused with.
        """
        await asyncio.gather(*(f for futures in self.deliveries.values() for f in futures))
        offsets = {}
        for where, futures in self.deliveries.items():
            first, (last, count) = futures[0].result()[0], futures[-1].result()
            offsets[where] = first, last + count - 1
        return offsets
