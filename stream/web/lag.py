"""Ask Kafka how far the workers' group is behind: ends of `user-events` less committed offsets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from mode import Service

_INTERVAL_S = 1.0
_TIMEOUT_S = 5.0

#: Takes (lag, committed), both in records, summed over partitions; None: Kafka did not tell.
TakeLag = Callable[[int | None, int | None], None]


class LagPoll(Service):  # type: ignore[misc]
    """Hands the lag to `take` about once a second. A broker that goes away is waited for."""

    def __init__(
        self,
        bootstrap: str,
        group: str,
        consumer: Any,
        partitions: list[TopicPartition],
        take: TakeLag,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._bootstrap = bootstrap
        self._group = group
        self._consumer = consumer
        self._partitions = partitions
        self._take = take
        self._admin: Any = None

    async def on_stop(self) -> None:
        await self._close()

    @Service.task  # type: ignore[untyped-decorator]
    async def _poll(self) -> None:
        while not self.should_stop:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    lag, committed = await self._read()
                self._take(lag, committed)
            except (KafkaError, TimeoutError, OSError) as error:
                self.log.warning("cannot read the lag", extra={"error": str(error)})
                self._take(None, None)
                await self._close()
            await self.sleep(_INTERVAL_S)

    async def _read(self) -> tuple[int, int]:
        if self._admin is None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
            try:
                await admin.start()
            except BaseException:
                await admin.close()
                raise
            self._admin = admin
        committed = await self._admin.list_consumer_group_offsets(
            self._group, partitions=self._partitions
        )
        ends = await self._consumer.end_offsets(self._partitions)
        begins = await self._consumer.beginning_offsets(self._partitions)
        at = {tp: getattr(committed.get(tp), "offset", -1) for tp in self._partitions}
        done = {tp: max(offset, begins[tp]) for tp, offset in at.items()}
        lag = sum(max(ends[tp] - done[tp], 0) for tp in self._partitions)
        return lag, sum(done.values())

    async def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(KafkaError, OSError):
                await admin.close()
