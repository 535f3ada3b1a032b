"""Finds partitions that have records waiting and do not move.

A worker can be alive, assigned and useless: its fetches hang, its agent waits for ever, its commits
stand still. Readiness means assigned and progressing, so that somebody looks. If the broker answers
all the while, the worker ends: started again, it goes on where its state stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import faust
from faust.types import TP
from mode import Service

from stream.kafka.batches import FAILED_EXIT_CODE
from stream.kafka.consumer import BatchConsumer
from stream.kafka.fencing import clock_s, end_process

logger = logging.getLogger(__name__)

#: A worker that has stood still for so long, with a broker that answers, ends.
STUCK_END_S = 120.0


class ProgressWatchdog(Service):  # type: ignore[misc]
    """Compares, every `interval_s`, how far each source partition is with where it ends.

    `stuck_partitions`: those with lag whose position has not moved for `patience_s`.
    `end` is called with the exit code when one has not for `end_after_s`, and the broker has
    answered for as long; None: never.
    `lag`: records not done yet, by partition, as last seen.
    """

    def __init__(
        self,
        app: faust.App,
        *,
        patience_s: float = 60.0,
        interval_s: float = 5.0,
        end_after_s: float | None = None,
        end: Callable[[int], None] = end_process,
        clock: Callable[[], float] = clock_s,
        **kwargs: object,
    ) -> None:
        self.app = app
        self.patience_s = patience_s
        self.interval_s = interval_s
        self.stuck_partitions: frozenset[TP] = frozenset()
        self.lag: dict[TP, int] = {}
        self._end_after_s, self._end = end_after_s, end
        self._clock = clock
        self._answering_since_s: float | None = None
        self._moved: dict[TP, tuple[int | None, float]] = {}  # position, and since when
        super().__init__(**kwargs)

    @property
    def is_ready(self) -> bool:
        """Whether the worker has its partitions and state, and every partition moves."""
        app = self.app
        is_settled = bool(app.tables.actives_ready) and not (app.rebalancing or app.in_recovery)
        return is_settled and not self.stuck_partitions

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        while not self.should_stop:
            await self.sleep(self.interval_s)
            if self.app.rebalancing or self.app.in_recovery:
                self._answering_since_s = None  # it is not to move meanwhile
            elif not self.should_stop:
                await self.look()

    async def look(self) -> None:
        """Take positions and ends once. Ends are asked of the broker, as a fetch may hang."""
        consumer: BatchConsumer = self.app.consumer
        partitions = consumer.source_partitions()
        if not partitions:
            self.observe({}, {})
            return
        try:
            async with asyncio.timeout(2 * self.interval_s):  # the thread may not come to ask
                ends = await consumer.source_ends(self.interval_s, partitions)
        except Exception as error:  # the broker may be away: what is known is kept, and grows old
            logger.warning("Cannot ask where the source ends: %r", error)
            self._answering_since_s = None
            ends = {tp: self.lag.get(tp, 0) + (consumer.position_of(tp) or 0) for tp in partitions}
        self.observe({tp: consumer.position_of(tp) for tp in partitions}, ends)
        self.end_if_stuck_for_long()

    def end_if_stuck_for_long(self) -> None:
        """To be called after `observe`. The time since a look without an answer counts."""
        now_s = self._clock()
        if self._answering_since_s is None:
            self._answering_since_s = now_s
        waiting = [since_s for tp, (_, since_s) in self._moved.items() if self.lag[tp]]
        since_s = max(min(waiting, default=now_s), self._answering_since_s)
        if self._end_after_s is not None and now_s - since_s > self._end_after_s:
            logger.critical(
                "A partition has not moved for %.0f s, though the broker answers: the worker ends, "
                "and goes on where its state stands when it is started again",
                now_s - since_s,
            )
            self._end(FAILED_EXIT_CODE)  # what hangs would hang an orderly end as well

    def observe(self, positions: dict[TP, int | None], ends: dict[TP, int]) -> None:
        """Judge by these: `positions` is the next offset to be done, None = not started."""
        now_s = self._clock()
        self.lag = {tp: max(ends[tp] - (at or 0), 0) for tp, at in positions.items()}
        moved: dict[TP, tuple[int | None, float]] = {}
        stuck = set()
        for tp, position in positions.items():
            known, since_s = self._moved.get(tp, (position, now_s))
            if position != known or not self.lag[tp]:
                since_s = now_s
            moved[tp] = position, since_s
            if now_s - since_s > self.patience_s:
                stuck.add(tp)
        self._moved = moved
        self._report(frozenset(stuck))

    def _report(self, stuck: frozenset[TP]) -> None:
        for tp in stuck - self.stuck_partitions:
            logger.error(
                "A partition has records waiting and does not move",
                extra={"topic": tp.topic, "partition": tp.partition, "lag": self.lag[tp]},
            )
        for tp in self.stuck_partitions - stuck:
            logger.info(
                "A partition that was stuck moves again, or has left this worker",
                extra={"topic": tp.topic, "partition": tp.partition},
            )
        self.stuck_partitions = stuck
