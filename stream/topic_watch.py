"""Notice that a topic was deleted, or deleted and made anew, while the worker runs.

Offsets say nothing of it: a reader of the former topic goes on at its position as soon as the new
one is long enough, and everything before is passed over. So the ids are asked for. Rows written
between the making and the noticing name the former topics (stream.kafka.marks), so that no worker
ever goes on from them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient
from mode import Service

from stream import metrics
from stream.kafka.fencing import end_process
from stream.kafka.marks import (
    CHANGELOG_REMADE,
    FOREIGN_EXIT_CODE,
    SOURCE_REMADE,
    ForeignStateError,
)
from stream.origin import refuse
from stream.settings import Settings
from stream.topics import FoundTopics, state_changelog, topic_ids

#: Between two looks. A look is one request, and takes about a millisecond of CPU.
INTERVAL_S = 5.0
_TIMEOUT_MS = 3000


class TopicWatch(Service):  # type: ignore[misc]
    """Asks every INTERVAL_S whether the topics are still those of the start.

    Where user-events or the changelog is another one, the process ends at once with
    FOREIGN_EXIT_CODE: a clean end would commit offsets and write. `on_made_anew` is told name and
    new id of the others. Missing ones are logged once and counted in a metric.
    """

    def __init__(
        self,
        settings: Settings,
        found: FoundTopics,
        on_made_anew: Callable[[str, str], None],
        end: Callable[[int], None] = end_process,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._bootstrap = settings.bootstrap
        self._ids = dict(found.ids)
        self._vital = {
            settings.topic("user-events"): SOURCE_REMADE,
            state_changelog(settings): CHANGELOG_REMADE,
        }
        self._on_made_anew = on_made_anew
        self._end = end
        self._missing: set[str] = set()
        self._admin: Any = None

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        while not self.should_stop:
            await self.sleep(INTERVAL_S)
            try:
                now = await asyncio.to_thread(self._ask)
            except (KafkaError, OSError, ValueError) as error:
                self.log.warning("cannot ask for the topics' ids: %r", error)
                continue
            if not self.should_stop:
                self.compare(now)

    async def on_stop(self) -> None:
        await asyncio.to_thread(self._disconnect)

    def compare(self, now: dict[str, str]) -> None:
        """Judge by these: name -> id of the topics that are there now."""
        for name, topic_id in self._ids.items():
            found = now.get(name, topic_id)
            if found == topic_id:
                continue
            self._ids[name] = found
            if name in self._vital:
                refuse(ForeignStateError(self._vital[name]))
                self._end(FOREIGN_EXIT_CODE)
            else:
                self.log.error("The topic %s was deleted and made anew", name)
                self._on_made_anew(name, found)
        missing = self._ids.keys() - now.keys()
        if missing - self._missing:
            self.log.error(
                "Topics are missing, what is sent there waits: %s. Restore them, or make them anew "
                "with `driftline topics create`; see deploy/RUNBOOK.md",
                ", ".join(sorted(missing)),
            )
        self._missing = set(missing)
        metrics.TOPICS_MISSING.set(len(missing))

    def _ask(self) -> dict[str, str]:
        """Blocks. The connection is kept from one time to the next, and made anew after errors."""
        try:
            if self._admin is None:
                self._admin = self._connect()
            return topic_ids(self._admin, list(self._ids))
        except BaseException:
            self._disconnect()
            raise

    def _connect(self) -> KafkaAdminClient:
        """Where no broker answers, kafka-python leaves its thread and sockets to nobody."""
        clients: list[KafkaNetClient] = []

        def client(**configs: Any) -> KafkaNetClient:
            clients.append(KafkaNetClient(**configs))
            return clients[0]

        try:
            return KafkaAdminClient(
                bootstrap_servers=self._bootstrap,
                client_id="driftline-topics",
                request_timeout_ms=_TIMEOUT_MS,
                bootstrap_timeout_ms=_TIMEOUT_MS,
                kafka_client=client,
            )
        except BaseException:
            for left in clients:
                left.close()
            raise

    def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(KafkaError, OSError):
                admin.close()
