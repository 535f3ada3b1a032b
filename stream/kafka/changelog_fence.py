"""Fences changelog partitions at the broker: only the worker that has one now can add rows to it.

Rows of a worker that was cut off may still be on their way when it has lost its partitions. Behind
the rows of the next owner they would be the newest of their keys, and a recovery would take them.
So each changelog partition has a transactional id, and its owner, before it recovers,

1. asks the coordinator for the id's next producer epoch;
2. writes a row under it, and waits for the acknowledgement: of older epochs the partition's leader
   takes nothing from then on;
3. only then asks where the changelog ends: what was taken before that is recovered.

All its rows go out under that epoch, with sequence numbers: a retry is not written twice, and rows
that the broker has lost are missed at the next one. So does what the owner writes to the partition
of the same number of other topics: once the next owner has written there, nothing older comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from faust.types import TP
from mode import Service

from stream.kafka.epochs import (
    LAST_EPOCH,
    NO_PRODUCER,
    Coordinator,
    EpochsUnknownError,
    EpochTakenError,
    NoEpochError,
    ProducerEpoch,
)
from stream.kafka.own_rows import fence_row
from stream.kafka.producer import BatchProducer

logger = logging.getLogger(__name__)

#: A partition's leader forgets the epoch of a producer that has not written to it for
#: producer.id.expiration.ms (by default a day), the coordinator a transactional id that nobody
#: asked for in transactional.id.expiration.ms (a week). Owners renew both well before.
RENEW_S = 6 * 3600.0

#: After a renewal without an answer, and how long it waits for one: who takes partitions waits too.
RENEW_AGAIN_S = 60.0
RENEWAL_S = 10.0

#: Longest time for all partitions of an assignment. Faust gives recovery 90 s to learn where
#: changelogs end, and hangs after that: better to end with the reason before.
TAKE_S = 80.0


class ChangelogFence(Service):  # type: ignore[misc]
    """The epochs under which this worker writes to its changelog partitions.

    `beside`: other topics of which the owner of a changelog partition alone writes to the one of
    the same number.
    """

    def __init__(
        self,
        producer: Callable[[], BatchProducer],
        coordinator: Coordinator,
        now_ms: Callable[[], int],
        beside: Collection[str] = (),
        **kwargs: object,
    ) -> None:
        self._producer, self._coordinator = producer, coordinator
        self._now_ms, self._beside = now_ms, beside
        self._held: set[TP] = set()
        self._is_known = True
        self._one_at_a_time = asyncio.Lock()
        super().__init__(**kwargs)

    async def take(self, partitions: Collection[TP]) -> dict[TP, int]:
        """Fence these partitions; returns the offset of the row that was written to each.

        Nothing is returned for a broker that has no producer epochs: there, nothing is fenced, and
        the log says so. Raises NoEpochError, or what the broker refused the row with.
        """
        try:
            async with asyncio.timeout(TAKE_S), self._one_at_a_time:
                self._held.update(partitions)
                self._producer().fenced_topics.update(self._beside, (tp.topic for tp in partitions))
                taken = await asyncio.gather(*(self._take(tp) for tp in sorted(partitions)))
        except TimeoutError:
            raise NoEpochError(
                f"wanted to write a row to {len(partitions)} changelog partitions in {TAKE_S:.0f} "
                "s, and could not: look whether all of them have a leader"
            ) from None
        return {tp: offset for tp, offset in taken if offset is not None}

    def release(self, partitions: Collection[TP]) -> None:
        """These are not this worker's any more: nothing can be written to them, or renewed."""
        epochs = self._producer().epochs
        for tp in self._held.intersection(partitions):
            self._held.discard(tp)
            for topic in (tp.topic, *self._beside):
                epochs.pop((topic, tp.partition), None)

    async def renew(self) -> None:
        """Fence anew what this worker has, before the broker forgets it. Work goes on meanwhile.

        What another worker has taken stays that one's, though this one may not know of it yet: no
        recovery follows here. Raises TimeoutError where that takes long, and what `take` raises.
        """
        async with asyncio.timeout(RENEWAL_S), self._one_at_a_time:
            await asyncio.gather(*(self._renew_one(tp) for tp in sorted(self._held)))

    @Service.task  # type: ignore[untyped-decorator]
    async def _renew(self) -> None:
        wait_s = RENEW_S
        while not self.should_stop:
            await self.sleep(wait_s)
            if self.should_stop:
                break  # the producer has stopped by now
            wait_s = RENEW_S
            try:
                await self.renew()
            except (NoEpochError, TimeoutError) as error:
                logger.warning("The changelog's fence is not renewed yet: %r", error)
                wait_s = RENEW_AGAIN_S

    async def _renew_one(self, tp: TP) -> None:
        now = self._producer().epochs.get((tp.topic, tp.partition))
        if now is None or (now.producer_id, now.epoch) == NO_PRODUCER:
            return  # released meanwhile, or never fenced
        try:
            await self._fence(tp, (now.producer_id, now.epoch))
        except (EpochTakenError, EpochsUnknownError) as error:
            logger.warning("The fence of %s is not renewed: %s", tp, error)

    async def _take(self, tp: TP) -> tuple[TP, int | None]:
        try:
            return tp, await self._fence(tp)
        except EpochsUnknownError as error:
            self._warn_once(error)
            self._go_on(tp, (tp.topic, *self._beside), *NO_PRODUCER)
            return tp, None

    async def _fence(self, tp: TP, after: tuple[int, int] | None = None) -> int | None:
        """Get an epoch, that after a certain one, and write a row under it; returns its offset."""
        name = f"{tp.topic}-{tp.partition}"
        producer_id, epoch = await self._coordinator.next_epoch(name, after)
        others = await self._coordinator.producers_of(tp) if epoch == 0 else {}
        if tp not in self._held:  # released meanwhile: a row would fence its next owner off
            return None
        for other_id, other_epoch in others.items():  # of an id that the coordinator forgot
            if other_id != producer_id and other_epoch < LAST_EPOCH:
                await self._write(tp, other_id, LAST_EPOCH)
        offset = await self._write(tp, producer_id, epoch)
        self._go_on(tp, self._beside, producer_id, epoch)
        return offset

    async def _write(self, tp: TP, producer_id: int, epoch: int) -> int:
        """The row that fences off older epochs of this producer id, and its offset."""
        self._go_on(tp, (tp.topic,), producer_id, epoch)
        row = fence_row(producer_id, epoch)
        (delivery,) = await self._producer().send_records(
            tp.topic, tp.partition, [row], timestamp_ms=self._now_ms()
        )
        offset, _ = await delivery
        return offset

    def _go_on(self, tp: TP, topics: Iterable[str], producer_id: int, epoch: int) -> None:
        """What is sent from now on to this partition of these topics goes out so."""
        epochs = self._producer().epochs
        for topic in topics:
            where = topic, tp.partition
            epochs[where] = ProducerEpoch(producer_id, epoch, epochs.get(where))

    def _warn_once(self, error: EpochsUnknownError) -> None:
        if self._is_known:
            self._is_known = False
            logger.warning(
                "This broker cannot fence the changelog: of a worker that was cut off, rows may "
                "come to lie behind those of the next owner. Use Apache Kafka where that matters: "
                "%s",
                error,
            )
